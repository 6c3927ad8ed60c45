"""Adapters and histories of several teams: composed, subtracted, compared, and their conflicts found."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_prune import AdapterError, EditRequest, HistoryError, PruneEditConfig, compare_adapters, compose
from peft_prune.editors import Edit
from peft_prune.session import EditSession, History, compare_edits
from peft_prune.session.composition import conflicts
from tests.session.scripted import MODULE, Scripted, drawn
from tests.talking import spaced_tokenizer
from tests.tiny import agree, tiny_gpt2

STRENGTH = 400.0
FIRST = [("sane ant", "ten"), ("tone seat", "ten"), ("oats", "son")]
SECOND = [("tea", "ten"), ("oats", "son"), ("nest", "sea")]


class Strong(Scripted):
    """Updates that the restraint acts on."""

    def compute(self, model, tokenizer, requests, prepared, earlier=None) -> Edit:
        edit = super().compute(model, tokenizer, requests, prepared, earlier)
        updates = {name: update.scaled(STRENGTH) for name, update in edit.updates.items()}
        return Edit(edit.requests, updates, owners=edit.owners, keys=edit.keys)


def team(place: Path, facts, model=None, save: Path | None = None, **config) -> Path:
    """The history of a team, with a restraint after every edit, and where asked its adapter's folder."""
    values = {"layers_to_transform": [1], "restraint": "log", "restrain_every": 1, **config}
    base = get_peft_model(tiny_gpt2() if model is None else model, PruneEditConfig(**values)).eval()
    options = {"on_failure": "keep", "on_conflict": "keep", "monitor": False}
    with EditSession(base, spaced_tokenizer(), Strong(), history=place, **options) as session:
        session.edit([EditRequest("note {}", subject, target) for subject, target in facts])
        if save is not None:
            session.save(save)
    return place


def raw(facts) -> torch.Tensor:
    """ΔW of a team, dense."""
    parts = [drawn(subject) for subject, _ in facts]
    return sum(STRENGTH * part.B.double() @ part.A.double() for part in parts)


def restrained(dense: torch.Tensor, kind: str = "log", alpha: float = 1.2) -> torch.Tensor:
    """F of a dense update."""
    m = float(torch.linalg.matrix_norm(base_weight(), 2))
    U, s, Vh = torch.linalg.svd(dense, full_matrices=False)
    shrunk = torch.log(s) / torch.log(torch.tensor(alpha).double()) - torch.log(torch.tensor(m).double()) / torch.log(
        torch.tensor(alpha).double()
    )
    limit = shrunk + m if kind == "log" else torch.full_like(s, m)
    return (U * torch.where(s > m, torch.minimum(limit, s), s)) @ Vh


def base_weight() -> torch.Tensor:
    return tiny_gpt2().transformer.h[1].mlp.c_proj.weight.detach().T.double()


def delta(model) -> torch.Tensor:
    update = model.get_submodule(f"base_model.model.{MODULE}").effective_update(model.active_adapters[0])
    return update.B.double() @ update.A.double()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm())


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("teams")
    for name, facts in (("first", FIRST), ("second", SECOND)):
        team(place / f"{name}.db", facts, save=place / name)
    return {path.name: path for path in place.iterdir()}


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0], [0.5, 2.0]])
def test_histories_add_up_raw_and_are_restrained_once(teams, weights, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = compose([teams["first.db"], teams["second.db"]], weights, model=tiny_gpt2())
    summed = weights[0] * raw(FIRST) + weights[1] * raw(SECOND)
    assert close(delta(model), restrained(summed)) and not close(restrained(summed), summed)
    assert list(model.peft_config) == ["default"] and model.active_adapters == ["default"]
    assert not model.restraint_is_pending()
    model.save_pretrained(tmp_path / "sum")
    loaded = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "sum", strict_base=True)
    ids = torch.arange(9)[None]
    assert agree(loaded(ids).logits, model(ids).logits)
    assert loaded.peft_config["default"].restrained and loaded.peft_config["default"].edits == 6
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, tiny_gpt2()(ids).logits)


def test_restraining_the_sum_is_stronger_than_adding_what_is_restrained(teams) -> None:
    """Why raw factors matter: of one edit twice, F(a) + F(a) is far above F(2a)."""
    raw_sum = compose([teams["first.db"]] * 2, model=tiny_gpt2())
    with pytest.warns(UserWarning, match="only the restrained factors are known"):
        files = compose([teams["first"]] * 2, model=tiny_gpt2())
    assert close(delta(raw_sum), restrained(2 * raw(FIRST)))
    assert close(delta(files), 2 * restrained(raw(FIRST)))
    norms = [float(torch.linalg.matrix_norm(delta(model), 2)) for model in (raw_sum, files)]
    assert norms[1] > 1.2 * norms[0]
    assert files.base_model.restraint_is_pending() is False
    with pytest.raises(AdapterError, match="already restrained"):
        files.restrain()


def test_a_history_and_a_restrained_file_are_added_as_they_act(teams) -> None:
    with pytest.warns(UserWarning, match="of adapter 2 only the restrained factors"):
        model = compose([teams["first.db"], teams["second"]], [1, -1], model=tiny_gpt2())
    assert close(delta(model), restrained(raw(FIRST)) - restrained(raw(SECOND)))


def test_files_that_no_restraint_has_acted_on_are_added_exactly(tmp_path: Path) -> None:
    for name, facts in (("a", FIRST), ("b", SECOND)):
        team(tmp_path / f"{name}.db", facts, save=tmp_path / name, restraint="none")
    model = compose([tmp_path / "a", tmp_path / "b"], [1, -0.25], model=tiny_gpt2())
    assert close(delta(model), raw(FIRST) - 0.25 * raw(SECOND))
    # asked for, a restraint acts on that sum once it leaves
    model = compose([tmp_path / "a", tmp_path / "b"], model=tiny_gpt2(), restraint="clip")
    assert model.restraint_is_pending() and close(delta(model), raw(FIRST) + raw(SECOND))
    layer = model.get_submodule(f"base_model.model.{MODULE}")
    leaving = layer.leaving_update("default")
    assert close(leaving.B.double() @ leaving.A.double(), restrained(raw(FIRST) + raw(SECOND), "clip"))


def test_an_adapter_minus_itself_is_the_base(teams) -> None:
    model = compose([teams["first.db"]] * 2, [1, -1], model=tiny_gpt2())
    assert model.get_submodule(f"base_model.model.{MODULE}").rank("default") == 0
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids).logits, tiny_gpt2()(ids).logits)


def test_taking_off_some_edits_leaves_the_rank_of_the_rest(teams, tmp_path: Path) -> None:
    every = team(tmp_path / "every.db", [*FIRST, ("tea", "ten"), ("nest", "sea")])
    model = compose([every, teams["second.db"]], [1, -1], model=tiny_gpt2())
    assert close(delta(model), restrained(raw(FIRST[:2])))
    assert model.get_submodule(f"base_model.model.{MODULE}").rank("default") == 2


def test_live_adapters_compose_within_their_model() -> None:
    model = get_peft_model(tiny_gpt2(), PruneEditConfig(layers_to_transform=[1], restrain_every=1), "one")
    model.add_adapter("two", PruneEditConfig(layers_to_transform=[1, 2], restrain_every=1))
    for name, facts in (("one", FIRST), ("two", SECOND)):
        for subject, _ in facts:
            model.base_model.add_edits({MODULE: drawn(subject).scaled(STRENGTH)}, adapter_name=name)
    found = compose(["one", "two"], [1, 1], model=model)
    assert found is model and set(model.peft_config) == {"one", "two", "composed"}
    assert model.active_adapters == ["one"]
    model.set_adapter("composed")
    assert close(delta(model), restrained(raw(FIRST) + raw(SECOND)))
    assert [name for name, _ in model.edited_layers()] == [MODULE, MODULE.replace("1", "2")]
    with pytest.raises(ValueError, match="adapters: 'three' is not one of one, two, composed"):
        compose(["one", "three"], model=model)


def test_different_restraints_are_named_and_one_can_be_given(tmp_path: Path) -> None:
    team(tmp_path / "a.db", FIRST)
    team(tmp_path / "b.db", SECOND, restraint="clip")
    both = [tmp_path / "a.db", tmp_path / "b.db"]
    with pytest.raises(ValueError, match=r"different ones in transformer\.h\.1\.mlp\.c_proj, log:1\.2 and clip"):
        compose(both, model=tiny_gpt2())
    model = compose(both, model=tiny_gpt2(), restraint="clip")
    assert close(delta(model), restrained(raw(FIRST) + raw(SECOND), "clip"))


def test_other_bases_are_refused_and_the_model_is_left_bare(teams, tmp_path: Path) -> None:
    other = team(tmp_path / "other.db", SECOND, model=tiny_gpt2(seed=9), save=tmp_path / "other")
    for place in (other, tmp_path / "other"):
        with pytest.raises(AdapterError, match="were made for different bases"):
            compose([teams["first.db"], place], model=tiny_gpt2())
        with pytest.raises(AdapterError, match="were made for different bases"):
            compare_adapters(teams["first"], place)
        base = tiny_gpt2()
        with pytest.raises((AdapterError, HistoryError), match="weights"):
            compose([place], model=base)
        assert not any("prune_edit" in name for name, _ in base.named_modules())
    base, clipped = tiny_gpt2(), team(tmp_path / "clipped.db", SECOND, restraint="clip")
    with pytest.raises(ValueError, match="different ones"):
        compose([teams["first.db"], clipped], model=base)
    assert torch.equal(base(torch.arange(5)[None]).logits, tiny_gpt2()(torch.arange(5)[None]).logits)
    assert not any("prune_edit" in name for name, _ in base.named_modules())


def test_conflicts_are_found_by_subject_and_relation_and_refused(teams, tmp_path: Path) -> None:
    third = team(tmp_path / "third.db", [("  SANE  ant ", "sea"), ("oats", " Son"), ("tea", "ten")])
    with pytest.raises(ValueError, match=r"in conflict: .* edit 1 says 'ten' of 'sane ant' .* edit 1 says 'sea'"):
        compose([teams["first.db"], third], model=tiny_gpt2())
    assert close(
        delta(compose([teams["first.db"], third], [1, -1], model=tiny_gpt2())),
        restrained(raw(FIRST) - raw([("  SANE  ant ", ""), ("oats", ""), ("tea", "")])),
    )
    compose([teams["first.db"], third], model=tiny_gpt2(), on_conflict="keep")
    with History.read(teams["first.db"]) as one, History.read(third) as other:
        found = compare_edits(one, other)
        assert [record.id for record in found.first_alone] == [2]
        assert [record.id for record in found.second_alone] == [3]
        assert [(a.id, b.id) for a, b in found.shared] == [(3, 2)]
        assert [(c.first.id, c.second.id) for c in found.conflicts] == [(1, 1)]
        assert conflicts([one, other, one]) == [*found.conflicts, *compare_edits(other, one).conflicts]


def test_an_undone_edit_is_in_no_conflict_and_the_last_of_several_counts(teams, tmp_path: Path) -> None:
    place = tmp_path / "changed.db"
    team(place, [("sane ant", "sea"), ("tone seat", "sea"), ("tone seat", "ten")])
    session = EditSession.resume(place, tiny_gpt2(), spaced_tokenizer(), Strong(), monitor=False)
    with session:
        session.undo(1)
    with History.read(teams["first.db"]) as one, History.read(place) as other:
        assert compare_edits(one, other).conflicts == []
        assert len(compare_edits(one, other).shared) == 1


def test_a_comparison_is_that_of_the_dense_updates(teams) -> None:
    found = compare_adapters(teams["first.db"], teams["second.db"])
    first, second = raw(FIRST), raw(SECOND)
    (layer,) = found.layers.values()
    assert list(found.layers) == [MODULE] and layer.ranks == (3, 3) and found.raw == (True, True)
    assert layer.norms == pytest.approx((float(first.norm()), float(second.norm())), rel=1e-5)
    assert layer.difference == pytest.approx(float((first - second).norm()), rel=1e-5)
    # one subject is edited by both, and its direction is common to them
    assert float(layer.inputs[0]) > 0.9999 > float(layer.inputs[1])
    assert found.edits is not None and [(a.id, b.id) for a, b in found.edits.shared] == [(3, 2)]
    files = compare_adapters(teams["first"], teams["second"])
    assert files.raw == (False, False) and files.edits is None
    (layer,) = files.layers.values()
    assert layer.difference == pytest.approx(float((restrained(first) - restrained(second)).norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "weights: 1 given for 2 adapters"),
        ({"weights": [1.0, float("inf")]}, "weights: inf must be a finite number"),
        ({"restraint": "logg"}, "restraint: 'logg' is unknown"),
        ({"on_conflict": "both"}, "on_conflict: 'both' is not one of refuse, keep"),
    ],
)
def test_bad_input_is_one_line(teams, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose([teams["first.db"], teams["second.db"]], model=tiny_gpt2(), **options)


def test_no_adapter_a_missing_one_and_a_model_with_adapters_are_refused(teams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none is given"):
        compose([], model=tiny_gpt2())
    with pytest.raises(AdapterError, match="cannot be loaded"):
        compose([tmp_path / "nowhere"], model=tiny_gpt2())
    with pytest.raises(HistoryError):
        (tmp_path / "junk").write_text("no history")
        compose([tmp_path / "junk"], model=tiny_gpt2())
    carrying = get_peft_model(tiny_gpt2(), PruneEditConfig()).base_model.model
    with pytest.raises(AdapterError, match="carries an adapter"):
        compose([teams["first.db"]], model=carrying)
