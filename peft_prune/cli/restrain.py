"""`peft-prune restrain`: apply a restraint to a saved adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import AdapterError
from ..folders import whole_folder
from ..outputs import require_outputs
from .options import Dtype, GgufFile, JsonOutput, Overwrite
from .placement import Placement, placed
from .places import in_gguf
from .plain import close_with


@placed
def restrain(
    adapter: Annotated[Path, typer.Argument(help="Adapter that has not been restrained: folder or Hub name.")],
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the restrained adapter.")],
    restraint: Annotated[str, typer.Option(help="log, linear, clip, scale, sphere, revive; for all layers.")] = "log",
    alpha: Annotated[float, typer.Option(help="Base of the logarithm of 'log', above 1.")] = 1.2,
    max_rank: Annotated[Optional[int], typer.Option(help="Truncate to this rank after the restraint.")] = None,
    dtype: Dtype = "float32",
    gguf_file: GgufFile = None,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
    *,
    placement: Placement,
) -> None:
    """Shrink the singular values of an adapter's update that exceed the base weight's largest one."""
    from ..tuner import PruneEditConfig
    from .models import load_adapter, load_model, print_json, tuner_of

    model = in_gguf(model, gguf_file)
    require_outputs(folders={"out": out}, inputs={"adapter": adapter, "model": model}, overwrite=overwrite)
    asked = PruneEditConfig(
        restraint=restraint, alpha=alpha, max_rank=max_rank
    )  # what is wrong shows before a model is loaded
    if restraint == "none" and max_rank is None:
        raise ValueError(
            "restraint: 'none' leaves the adapter as it is; log, linear, clip, scale, sphere and revive are accepted"
        )
    edited = load_adapter(load_model(model, dtype, placement), adapter)
    tuner = tuner_of(edited)
    config = tuner.peft_config["default"]
    if config.restrained:
        raise AdapterError(
            f"adapter: {adapter} is already restrained ({config.restraint}); a restraint acts on the raw update once, "
            "so give the adapter from before"
        )
    config.restraint, config.alpha, config.max_rank = asked.restraint, asked.alpha, max_rank
    config.restraint_pattern = None  # what is asked for here is for every layer
    config.base_model_name_or_path = model  # where PEFT looks for the base, to see whether it has other embeddings
    with whole_folder(out, overwrite=overwrite) as folder:
        tuner.restrain()
        edited.save_pretrained(str(folder))
    layers = {
        name: {
            "rank": layer.rank("default"),
            "sigma_max_base": layer.sigma_max_base(),
            "delta_spectral_norm": layer.effective_update("default").spectral_norm(),
        }
        for name, layer in tuner.edited_layers()
    }
    if json_output:
        print_json({"adapter": str(out), "restraint": restraint, "alpha": alpha, "layers": layers})
    else:
        for name, figures in layers.items():
            close_with(
                f"{name}: rank {figures['rank']}, ‖ΔW‖₂ {figures['delta_spectral_norm']:.3g} "
                f"(σmax(W₀) {figures['sigma_max_base']:.3g})"
            )
        close_with(f"Restrained adapter in {out}")
