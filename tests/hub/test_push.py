"""Adapters on the Hub, with the real client against a server on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from safetensors.torch import load

from tests.hub.conftest import MODULE
from tests.hub.scene import IMPATIENT, Loopback
from tests.hub.server import READER
from tests.spectral.test_basis import cosines

PUSH = (
    IMPATIENT
    + """
import sys
from peft_prune import hub
for name in sys.argv[2:]:
    try:
        print("done", hub.push_folder(sys.argv[1], hub.Destination(name)))
    except hub.HubError as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""
)
FACTOR = f"base_model.model.{MODULE}.prune_edit_"


def changed(adapter: Path, place: Path, factor: float) -> Path:
    """Another adapter, whose bytes the server does not know yet."""
    from safetensors.torch import save_file

    shutil.copytree(adapter, place)
    entries = load((adapter / "adapter_model.safetensors").read_bytes())
    entries[FACTOR + "B.weight"] *= factor
    save_file(entries, place / "adapter_model.safetensors", {"format": "pt"})
    return place


def pushed(hub: Loopback, folder: Path, *names: str, **options: str) -> list[str]:
    done = hub.run(PUSH, folder, *names, **options)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("done", "HubError"))]


def test_what_is_published_is_the_adapter_and_its_card_and_nothing_else(
    hub: Loopback, adapter: Path, place: Path, base: Path
) -> None:
    evaluation = {
        "n_requests": 5,
        "before": {"efficacy": {"value": 0.2, "n": 5, "low": 0.04, "high": 0.62}, "perplexity": 7.25},
        "after": {"efficacy": {"value": 0.8, "n": 5, "low": 0.38, "high": 0.96}, "perplexity": 7.5},
    }
    (place / "figures.json").write_text(json.dumps(evaluation))
    options = ("--also-lora", "--evaluation", place / "figures.json", "--message", "five edits")
    done = hub.command("push", adapter, "someone/edits", *options, "--json")
    assert done.returncode == 0, done.stderr
    files, own = hub.files("someone/edits"), hub.state()["repositories"]["someone/edits"]
    assert json.loads(done.stdout)["url"].startswith(f"{hub.url}/someone/edits/commit/")
    assert own["private"] and own["messages"] == ["initial commit", "five edits"]
    lora = {"lora/adapter_config.json", "lora/adapter_model.safetensors"}
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "measured.png", *lora}
    assert not any(str(place).encode() in content or b"facts in the clear" in content for content in files.values())
    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert {"peft", "prune-edit", "model-editing", "base_model:adapter:tiny-base"} <= set(head["tags"])
    metrics = {one["type"]: one["value"] for one in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"efficacy": 0.8, "perplexity": 7.5}
    assert "| efficacy ↑ | 5 | 0.200 [0.040, 0.620] | 0.800 [0.380, 0.960] |" in card
    assert "arxiv.org/abs/2602.10134" in card and 'subfolder="lora"' in card

    keys, entries = load((place / "keys.safetensors").read_bytes())["keys"], load(files["adapter_model.safetensors"])
    assert float(cosines(entries[FACTOR + "A.weight"], keys).max()) < 0.9
    again = hub.command("merge", "someone/edits@main", "--model", base, "--out", place / "merged")
    assert again.returncode == 0, again.stderr


def test_what_goes_wrong_is_one_line_and_leaves_nothing_and_the_next_try_works(
    hub: Loopback, adapter: Path, place: Path
) -> None:
    folder = changed(adapter, place / "other", 1.5)
    for where, status, times, says in (
        ("create", 500, 1, "the Hub cannot push now (500)"),
        ("batch", 503, 9, "the Hub cannot push now (503)"),
        ("put", 500, 9, "the Hub cannot push now (500)"),
        ("put", 0, 9, "the connection failed (peer closed connection"),
        ("damage", 1, 1, "the checksum of the upload is another than announced"),
        ("verify", 502, 9, "the Hub cannot push now (502)"),
        ("commit", 500, 1, "the Hub cannot push now (500)"),
        ("commit", 412, 1, "was changed meanwhile (412)"),
    ):
        hub.fail(where, status, times)
        (line,) = pushed(hub, folder, "someone/flaky")
        hub.fail(where, status, 0)
        assert line.startswith("HubError hub: someone/flaky: ") and says in line, (where, line)
        assert hub.files("someone/flaky") == {}
    (line,) = pushed(hub, folder, "someone/flaky")
    assert line.startswith("done") and "adapter_model.safetensors" in hub.files("someone/flaky")


def test_a_repository_that_exists_may_not_be_written_or_has_no_name(hub: Loopback, adapter: Path) -> None:
    first, second = pushed(hub, adapter, "someone/once", "someone/once")
    assert first.startswith("done") and "exists and holds adapter_config.json; --overwrite" in second
    (foreign,) = pushed(hub, adapter, "another/edits")
    assert "may not be written with this token (403)" in foreign
    (reader,) = pushed(hub, adapter, "someone/reader", token=READER)
    assert "may not be written with this token (403)" in reader
    for token in ("hf_wrong", None):
        done = hub.command("push", adapter, "someone/denied", token=token)
        lines = [line for line in done.stderr.splitlines() if line.startswith("peft-prune:")]
        assert done.returncode == 2 and len(lines) == 1 and "the token is missing or not accepted (401)" in lines[0]
    assert hub.files("someone/reader") == hub.files("someone/denied") == hub.files("another/edits") == {}


def test_branches_pull_requests_and_overwriting(hub: Loopback, adapter: Path, place: Path) -> None:
    code = """
import sys
from peft_prune import hub
folder, other = sys.argv[1:]
print("URL", hub.push_folder(folder, hub.Destination("someone/many"), also_lora=True))
print("URL", hub.push_folder(other, hub.Destination("someone/many", revision="next", overwrite=True)))
print("URL", hub.push_folder(other, hub.Destination("someone/many", create_pr=True)))
try:
    hub.adapter_folder("someone/many@never")
except hub.HubError as error:
    print("URL", error)
print("URL", hub.adapter_folder("someone/many@next"))
"""
    done = hub.run(code, adapter, changed(adapter, place / "third", 2.0))
    lines = [line.removeprefix("URL ") for line in done.stdout.splitlines() if line.startswith("URL ")]
    assert done.returncode == 0, done.stderr
    assert lines[2].endswith("/discussions/1") and "has no such revision (404)" in lines[3]
    main, following = hub.files("someone/many"), hub.files("someone/many", "next")
    assert "lora/adapter_config.json" in main and "lora/adapter_config.json" not in following, "it would be another's"
    assert main["adapter_model.safetensors"] != following["adapter_model.safetensors"]
    assert hub.files("someone/many", "refs/pr/1") == following
    assert (Path(lines[4]) / "adapter_model.safetensors").read_bytes() == following["adapter_model.safetensors"]


def test_a_file_that_arrives_damaged_is_refused_and_fetched_again(hub: Loopback, adapter: Path) -> None:
    assert pushed(hub, adapter, "someone/damaged")[0].startswith("done")
    code = """
from peft_prune import hub
try:
    print("GOT", hub.adapter_folder("someone/damaged"))
except hub.HubError as error:
    print("GOT", error)
"""
    hub.fail("damage_on_the_way", 1, 1)
    first, second = (hub.run(code) for _ in range(2))
    assert "adapter_model.safetensors arrived damaged" in first.stdout
    assert "arrived damaged" not in second.stdout and "GOT" in second.stdout, second.stderr


def test_models_sessions_and_second_moments_end_with_our_card(hub: Loopback, place: Path) -> None:
    code = """
import sys

import torch
from peft import get_peft_model
from peft_prune import AdapterError, PruneEditConfig, SecondMoments
from tests.session.scene import REQUESTS, MODULE, moments, session
from tests.tiny import tiny_llama, willing
with session() as own:
    own.edit(REQUESTS[:2])
    own.push_to_hub("someone/session")
    own.push_to_hub("someone/open", redact=False)
    own.model.push_to_hub("someone/model", tags=["mine"])
    own.model.push_to_hub("someone/model", commit_message="once more")
moments().push_to_hub("someone/moments")
again = SecondMoments.from_pretrained("someone/moments", willing("gpt2"))
print("SAME", torch.equal(again.moments[MODULE], moments().moments[MODULE]))
try:
    SecondMoments.from_pretrained("someone/moments", tiny_llama())
except AdapterError as error:
    print("SAME", error)
"""
    done = hub.run(code)
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stdout.splitlines() if line.startswith("SAME ")]
    assert first == "SAME True" and "were taken with other base weights" in second
    cards = {
        name: hub.files(f"someone/{name}")["README.md"].decode() for name in ("session", "open", "model", "moments")
    }
    assert "Editor: **rome**" in cards["session"] and "κ(W₀+ΔW)" in cards["session"]
    assert "sane ant" not in cards["session"] + cards["model"] and "sane ant" in cards["open"]
    assert "- mine" in cards["model"] and "What this adapter gives away" in cards["model"]
    assert "[More Information Needed]" not in "".join(cards.values()) and "over" in cards["moments"]
    assert "edits.db" not in " ".join(hub.files("someone/session"))


def test_python_takes_the_names_that_the_commands_take(hub: Loopback, adapter: Path, place: Path, base: Path) -> None:
    assert pushed(hub, adapter, "someone/named")[0].startswith("done")
    code = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from peft_prune import AdapterError, compare_adapters, compose, export_lora
from peft_prune.hub import HubError

place, base, out = sys.argv[1:]
name, module = "someone/named@main", "model.layers.1.mlp.down_proj"

def acting(model):
    layer = dict(model.base_model.edited_layers())[module]
    return layer.effective_update(model.base_model.active_adapters[0]).dense()

def loaded():
    return AutoModelForCausalLM.from_pretrained(base)

model = PeftModel.from_pretrained(loaded(), place)
expected = acting(model)
print("SAID", torch.allclose(acting(compose([name, place], [2, -1], model=loaded())), expected, atol=1e-5))
print("SAID", compare_adapters(name, place).layers[module].difference < 1e-5)
model.base_model.hotswap(name)
print("SAID", torch.allclose(acting(model), expected, atol=1e-5))
model.base_model.hotswap("someone/named", revision="main")
print("SAID", export_lora(name, out).rank == 5)
for options in ({"revision": "main"}, {}):
    try:
        model.base_model.hotswap(name if options else "someone/named@never", **options)
    except (AdapterError, HubError) as error:
        print("SAID", error)
"""
    done = hub.run(code, adapter, base, place / "lora-of-a-name")
    said = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert done.returncode == 0, done.stderr
    assert said[:4] == ["True"] * 4
    assert "names a revision, and revision is 'main'" in said[4] and "has no such revision (404)" in said[5]
    exported = hub.command("export", "someone/named@main", "--out", place / "exported")
    assert exported.returncode == 0, exported.stderr
