"""The bridge to lm-evaluation-harness: any of its tasks, before and after the edits."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MissingPackageError
from ..models.inference import undisturbed
from .bootstrap import GAP
from .estimates import Mean
from .visibility import require_visible_edits


def harness_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8
) -> Any:
    """A model as ``lm_eval.simple_evaluate`` takes it, with its adapter unmerged and as active as it is.

    Args:
        model: A causal language model of transformers, or a PEFT model of one.
        tokenizer: Its tokenizer; the harness works with a copy, since it gives it a pad token.
        batch_size: Requests in one batch.

    Raises:
        MissingPackageError: lm_eval is not installed.
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} must be at least 1")
    return _harness().models.huggingface.HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size
    )


def harness_figures(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness on the base model and on the edited one.

    Args:
        model: A PEFT model with an unmerged, active adapter, or a plain causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or groups.
        include_path: Folder with task files of your own.
        num_fewshot: Solved items before each prompt; the task's own number if not given.
        limit: Use the first so many items of each task.
        batch_size: Requests in one batch.

    Returns:
        ``{"before": M, "after": M, "difference": D}``, ready for JSON. M holds by task and then by metric, a filter's
        name behind a comma where it has one, ``{"value", "stderr", "n", "higher_is_better"}`` as the harness computes
        them. D holds "after" minus "before", paired by item, with the 95 % bootstrap interval over items, for metrics
        that are the mean of a number for each item. A model without an adapter counts as a base: both are its own
        figures. What the harness prints goes to standard error, and the global random states are as before.

    Raises:
        MissingPackageError: lm_eval is not installed.
        ValueError: A task is unknown, a number is out of range, or the adapter is merged or disabled.
    """
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}: {value} must be at least {least}")
    manager = _manager(tasks, include_path)
    if isinstance(model, PeftModel):
        require_visible_edits(model)
    options: dict[str, Any] = {"task_manager": manager, "num_fewshot": num_fewshot, "limit": limit}
    with undisturbed(model):
        lm = harness_model(model, tokenizer, batch_size=batch_size)
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            before = _evaluated(lm, tasks, options)
        after = _evaluated(lm, tasks, options) if isinstance(model, PeftModel) else before
    figures = {"before": _figures(before), "after": _figures(after)}
    return {**figures, "difference": _differences(before, after, figures)}


def _evaluated(lm: Any, tasks: Sequence[str], options: Mapping[str, Any]) -> Mapping[str, Any]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
            return _harness().simple_evaluate(lm, tasks=list(tasks), **options)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ModuleNotFoundError:
        raise MissingPackageError("lm_eval is not installed; pip install 'peft-prune[lm-eval]'") from None
    return lm_eval


def _manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    if not tasks:
        raise ValueError("tasks: is empty, at least one name is needed")
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"include_path: {include_path} is no folder")
    path = None if include_path is None else str(include_path)
    own = _harness().tasks.TaskManager(include_path=path, include_defaults=False) if path else None
    if own is not None and set(tasks) <= set(own.all_tasks):
        return own
    manager = _harness().tasks.TaskManager(include_path=path)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        beside = f" nor in {path}" if path else ""
        raise ValueError(f"tasks: {unknown[0]!r} is not among the harness's {len(manager.all_tasks)} tasks{beside}")
    return manager


def _figures(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for task, values in results["results"].items():
        better = results["higher_is_better"].get(task, {})
        count = results["n-samples"].get(task, {}).get("effective")
        for name, value in values.items():
            metric, separator, kind = name.partition(",")
            if not separator or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            found.setdefault(task, {})[_label(metric, kind)] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, (int, float)) else None,
                "n": count,
                "higher_is_better": better.get(metric),
            }
    return found


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Of metrics whose figure is the mean over items in both moments; that of a perplexity is none."""
    found: dict[str, dict[str, Any]] = {}
    for task, samples in before["samples"].items():
        pairs: dict[str, list[tuple[float, float]]] = {}
        for one, other in zip(samples, after["samples"][task], strict=True):
            for metric in one["metrics"]:
                values = (one[metric], other[metric])
                if all(isinstance(value, (int, float)) for value in values):
                    label = _label(metric, one["filter"])
                    pairs.setdefault(label, []).append((float(values[0]), float(values[1])))
        found[task] = {
            label: Mean.of((after - before for before, after in own), _bounds(own)).to_json()
            for label, own in pairs.items()
            if _is_mean([pair[0] for pair in own], figures["before"][task].get(label))
            and _is_mean([pair[1] for pair in own], figures["after"][task].get(label))
        }
    return found


def _bounds(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """What bounds the differences of items that are right or wrong."""
    return GAP if {value for pair in pairs for value in pair} <= {0.0, 1.0} else None


def _is_mean(values: Sequence[float], figure: Mapping[str, Any] | None) -> bool:
    mean = sum(values) / len(values)
    return figure is not None and math.isclose(mean, figure["value"], rel_tol=1e-6, abs_tol=1e-9)


def _label(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric},{kind}"
