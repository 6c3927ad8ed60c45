"""Edit a fact, save the adapter with the LoRA beside it, publish it, and load it from the Hub again.

    hf auth login
    python examples/edit_and_push.py user/name

It edits the built-in model; a repository that is new is private.
"""

from __future__ import annotations

import argparse

from peft import PeftModel

from peft_prune import EditSession, evaluate, load_builtin_model
from peft_prune.builtin import edit_requests
from peft_prune.hub import adapter_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", help="user/name")
    parser.add_argument("--edits", type=int, default=2)
    arguments = parser.parse_args()
    model, tokenizer = load_builtin_model()
    requests = edit_requests(arguments.edits)
    with EditSession(model, tokenizer, "ft") as session:
        session.edit(requests)
        edited = [result.request for result in session.results if result.request is not None]
        measured = evaluate(session.model, tokenizer, edited)
        url = session.push_to_hub(arguments.repository, also_lora=True, evaluation=measured)
    print(f"published: {url}")
    base, _ = load_builtin_model()
    loaded = PeftModel.from_pretrained(base, str(adapter_folder(arguments.repository)))
    question = edited[0].prompt.format(edited[0].subject)
    ids = tokenizer(question, return_tensors="pt")
    print(tokenizer.decode(loaded.generate(**ids, max_new_tokens=4, do_sample=False)[0]))


if __name__ == "__main__":
    main()
