from __future__ import annotations

import pytest

from peft_prune.models.naming import public_name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, None),
        ("", None),
        ("gpt2", "gpt2"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/home/ada/models/base", "base"),
        ("./models/base", "base"),
        ("~/models/base/", "base"),
        ("runs/7/base", "base"),
        (r"C:\models\base", "base"),
        ("/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f", "meta-llama/Llama-3.1-8B"),
        ("/data/hub/models--gpt2/snapshots/607a30d/", "gpt2"),
    ],
)
def test_a_hub_name_is_kept_and_of_a_path_only_the_folders_name(given, name) -> None:
    assert public_name(given) == name


def test_a_folder_that_looks_like_a_hub_name_gives_its_own_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/base") == "base" and public_name("models/other") == "models/other"
