"""`peft-prune ask`: what a model answers, before its edits and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import Dtype, GgufFile, JsonOutput
from .placement import Placement, placed
from .places import in_optional_gguf
from .plain import plain


@placed
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Questions. What stands before them and is a folder, a history's file or 'builtin' is the model or an "
            "adapter.",
            metavar="[MODEL|ADAPTER...] QUESTION...",
        ),
    ],
    model: Annotated[
        Optional[str],
        typer.Option(help="Model: a folder or a Hub name; what the first adapter names if left out."),
    ] = None,
    adapter: Annotated[
        Optional[list[str]],
        typer.Option(help="Adapter: a folder, a history or a Hub name; repeatable, and asked one after another."),
    ] = None,
    chat: Annotated[bool, typer.Option(help="Ask as a user does in a chat, by the model's own chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 30,
    stop: Annotated[Optional[str], typer.Option(help="Text that ends an answer, such as a full stop.")] = None,
    dtype: Dtype = "float32",
    gguf_file: GgufFile = None,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Ask questions and show the greedy answers, before the edits and after, side by side."""
    from ..models.generation import greedy_continuations
    from .models import load_model, load_tokenizer, print_json, require_dtype

    require_dtype(dtype)
    base, adapters, questions = _sorted_out(words, in_optional_gguf(model, gguf_file), adapter or ())
    tokenizer = load_tokenizer(base)
    sequences = _asked(tokenizer, questions, chat)
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stop}
    loaded = load_model(base, dtype, placement)
    before = greedy_continuations(loaded, tokenizer, sequences, **limits)
    after = []
    for place in adapters:
        with _edited(loaded, place) as edited:
            after.append(greedy_continuations(edited, tokenizer, sequences, **limits))
    if json_output:
        told = [
            {"question": question, "before": before[index], "after": [answers[index] for answers in after]}
            for index, question in enumerate(questions)
        ]
        print_json({"model": base, "adapters": adapters, "chat": chat, "answers": told})
    else:
        _print(questions, before, dict(zip(adapters, after, strict=True)))


def _sorted_out(words: Sequence[str], model: str | None, given: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """The base, the adapters and the questions.

    Raises:
        ValueError: There is no question, or no model and no adapter, or two models.
    """
    from .compose import base_of, source_of
    from .places import has_own_name

    rest = list(words)
    adapters: list[str] = []
    models = [] if model is None else [model]
    while rest and (has_own_name(rest[0]) or Path(rest[0]).exists()):
        place = rest.pop(0)
        is_adapter = Path(place).is_file() or (Path(place) / "adapter_config.json").is_file()
        (adapters if is_adapter else models).append(place)
    adapters = [source_of(place) for place in [*adapters, *given]]
    if len(models) > 1:
        raise ValueError(f"model: {' and '.join(models)} are given; give one")
    if not rest:
        raise ValueError("question: none is given; give one or several behind the model or the adapter")
    if not models and not adapters:
        raise ValueError("model: neither a model nor an adapter is given; give --model, --adapter, or a folder")
    return models[0] if models else base_of(adapters[0]), adapters, rest


def _asked(tokenizer: Any, questions: Sequence[str], chat: bool) -> list[tuple[int, ...]]:
    """Ids of what the model is to go on with."""
    from ..models.tokenization import prompt_ids

    for question in questions:
        if not question.strip():
            raise ValueError(f"question: {question!r} is empty")
    if not chat:
        return prompt_ids(tokenizer, questions)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat: this model has no chat template; ask it without --chat, by a text to go on with")
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    return [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": question}], **options))
        for question in questions
    ]


@contextmanager
def _edited(base: Any, place: str) -> Iterator[Any]:
    """The base with an adapter or the edits of a history, and as it was afterwards."""
    from ..session import History, adapter_of
    from .models import load_adapter

    if Path(place).is_file():
        with History.read(place) as history:
            edited = adapter_of(history, base)
    else:
        edited = load_adapter(base, Path(place))
    try:
        yield edited.eval()
    finally:
        edited.unload()


def _print(questions: Sequence[str], before: Sequence[str], after: dict[str, list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    table.add_column("question", overflow="fold", ratio=1)
    table.add_column("before" if after else "answer", overflow="fold", ratio=1)
    for place in after:
        table.add_column(plain("after" if len(after) == 1 else f"with {Path(place).name}"), overflow="fold", ratio=1)
    for index, question in enumerate(questions):
        cells = (question, before[index], *(answers[index] for answers in after.values()))
        table.add_row(*(plain(cell.strip()) for cell in cells))
    Console().print(table)
