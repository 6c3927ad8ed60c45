"""Edit in several processes, which share the work out; one GPU each where there are some, else the CPU.

    accelerate launch --num_processes 2 examples/accelerate_multi_gpu.py --model Qwen/Qwen2.5-1.5B-Instruct \
        --requests edits.json --texts texts.txt --out edits

`torchrun --nproc-per-node 2 examples/accelerate_multi_gpu.py` does the same. Without ``--model`` it takes the built-in
model and its own world. Every process holds the whole model, makes the same calls and ends up with the same adapter;
rank 0 alone writes the history, the adapter and standard output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_prune import (
    EditRequest,
    EditSession,
    collect_second_moments,
    evaluate,
    get_editor,
    load_requests,
    load_texts,
)
from peft_prune.builtin import builtin_model_path, edit_requests, plain_texts


def main() -> None:
    arguments = parse_arguments()
    accelerator = Accelerator(cpu=arguments.cpu)  # before anything is computed: by it the processes know of each other
    model = AutoModelForCausalLM.from_pretrained(arguments.model, device_map={"": accelerator.device}).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    if arguments.requests is None:
        requests = [EditRequest.from_record(record) for record in edit_requests(arguments.edits)]
    else:
        requests = load_requests(arguments.requests)
    requests = requests[: arguments.edits]
    texts = plain_texts(300) if arguments.texts is None else load_texts(arguments.texts)
    editor = get_editor("memit", model=model)
    statistics = collect_second_moments(model, tokenizer, texts, editor.modules(model), progress=False)
    with EditSession(model, tokenizer, editor, statistics=statistics, history=arguments.history) as session:
        results = session.edit(requests, batch_size=arguments.batch_size)
        session.save(arguments.out)
        figures = evaluate(session.model, tokenizer, requests)
    took = sum(result.took for result in results)
    accelerator.print(f"{took} of {len(results)} edits took, in {accelerator.num_processes} processes")
    accelerator.print(f"efficacy {figures['before']['efficacy']['value']} to {figures['after']['efficacy']['value']}")
    accelerator.end_training()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(builtin_model_path()), help="folder or Hub name")
    parser.add_argument("--requests", help="file of edit requests")
    parser.add_argument("--texts", help="ordinary texts for the second moments")
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--history", type=Path, help="SQLite file for the log of all edits")
    parser.add_argument("--out", type=Path, default=Path("edits"))
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
