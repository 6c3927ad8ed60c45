"""Edit a quantized model, and say what each way of merging would do to the edits.

    python examples/quantized.py --model HuggingFaceTB/SmolLM2-135M --requests edits.json --texts texts.txt --out edits

Without ``--model`` it takes the built-in model and its own world, quantized to int8 by bitsandbytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from peft_prune import (
    EditRequest,
    EditSession,
    PruneEditConfig,
    collect_second_moments,
    get_editor,
    load_requests,
    load_texts,
    merge_report,
)
from peft_prune.builtin import builtin_model_path, edit_requests, plain_texts


def main() -> None:
    arguments = parse_arguments()
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(arguments.model, quantization_config=quantization).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if arguments.requests is None:
        requests = [EditRequest.from_record(record) for record in edit_requests(arguments.edits)]
    else:
        requests = load_requests(arguments.requests)
    texts = plain_texts(300) if arguments.texts is None else load_texts(arguments.texts)
    requests = requests[: arguments.edits]
    editor = get_editor("rome", model=base)
    statistics = collect_second_moments(base, tokenizer, texts, editor.modules(base), progress=False)
    config = PruneEditConfig(restrain_on="merge", layers_to_transform=list(editor.layers(base)))
    model = get_peft_model(base, config).eval()
    EditSession(model, tokenizer, editor, statistics=statistics, monitor=False).edit(requests)
    model.save_pretrained(arguments.out)
    for requantize in (False, True):
        found = merge_report(model, tokenizer, requests, requantize=requantize)
        print(f"{found.into}: {sum(found.held_before)} edits hold before, {sum(found.held_after)} after")
        for name, figure in found.layers.items():
            print(f"  {name}: share {figure.share:.3f}, error {figure.error:.3f} ‖ΔW‖")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(builtin_model_path()), help="folder or Hub name")
    parser.add_argument("--requests", help="file of edit requests")
    parser.add_argument("--texts", help="ordinary texts for the second moments")
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("quantized-edits"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
