"""The probe against trainers of the bare library that AlignTune does not stand on: pairs, distillation, classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import helpers
import runs
from aligntune.compare.probe_bare import bare_notes, bare_refusal
from aligntune.compare.probe_verdict import Pair, Quantity, compare_sides
from aligntune.core.config import load_config
from probing import Measured, sides

TEXTS = [{"text": f"{'good' if i % 2 else 'bad'} number {i % 5}", "label": "ab"[i % 2]} for i in range(24)]
TAGS = [{"tokens": ["see", f"x{i % 7}", "now"], "tags": ["O", "NAME" if i % 2 else "PLACE", "O"]} for i in range(24)]
PAIRS = ("simpo", "cpo", "orpo")
KINDS = (*PAIRS, "gkd", "text_classification", "token_classification")


def plain(kind: str, model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A small run of one of `KINDS`."""
    if kind in PAIRS:
        return runs.plain(kind, model, folder, **changes)
    if kind == "gkd":
        teacher = folder.parent / "teacher"
        if not teacher.exists():
            helpers.save_tiny_model(teacher, seed=5)
        raw = runs.plain("sft", model, folder, **changes)
        raw["datasets"] = [raw.pop("dataset")]
        del raw["task"]
        return {**raw, "algo": {"name": "gkd", "teacher": str(teacher), "beta": 0.3}}
    rows = runs.write_rows(folder / "rows.jsonl", TEXTS if kind == "text_classification" else TAGS)
    raw = runs.plain("sft", model, folder, **changes)
    return {**raw, "task": {"name": kind}, "dataset": {"name": str(rows)}}


@pytest.fixture
def side(tiny_model: Path, tmp_path: Path) -> Measured:
    """`side(name, kind, ...)` measures one side of a small run here."""
    return sides(plain, tiny_model, tmp_path)


def quantity(pair: Pair, name: str) -> Quantity:
    return next(q for q in pair.quantities if q.name == name)


@pytest.mark.parametrize("peft", [None, {"r": 4}])
@pytest.mark.parametrize("kind", KINDS)
def test_our_trainer_equals_the_bare_library(kind: str, peft: Any, side: Measured) -> None:
    """Two programs that share nothing but the model: tokens, mask, log-probabilities, loss and gradient."""
    ours, bare = side("trl", kind, model__peft=peft), side("bare TRL", kind, bare=True, model__peft=peft)
    library = "transformers" if "classification" in kind else "trl"
    assert bare.result["class"].startswith(library) or kind in ("cpo", "orpo")
    pair = compare_sides(ours, bare)
    assert pair.ok, pair.cause
    names = [q.name for q in pair.quantities]
    assert names[:4] == ["starting weights", "tokens", "mask", "log-probabilities"]
    assert ("reference" in names) is (kind == "gkd")
    assert quantity(pair, "loss").difference < 2e-6
    assert quantity(pair, "gradient direction").difference < 1e-9
    assert quantity(pair, "gradient norm").left > 1e-6  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["simpo", "orpo", "gkd", "token_classification"])
def test_a_wrong_mask_is_caught(kind: str, side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trained token of each row is left out of the loss, by AlignTune's side alone."""
    bare = side("bare TRL", kind, bare=True)
    _plant_mask(kind, monkeypatch)
    pair = compare_sides(bare, side("trl", kind))
    assert pair.first is not None
    assert pair.first.name == "mask"
    assert pair.first.difference >= 4
    if kind != "gkd":  # two untrained models differ nowhere much
        assert quantity(pair, "loss").equal is False


def _plant_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "token_classification":
        from aligntune.core.sft import classification

        collate = classification.Collator.__call__
        monkeypatch.setattr(classification.Collator, "__call__", lambda s, rows: _cut(collate(s, rows), "labels"))
    elif kind == "gkd":
        import trl.trainer.sft_trainer as sft

        one = sft.DataCollatorForLanguageModeling.torch_call
        monkeypatch.setattr(
            sft.DataCollatorForLanguageModeling, "torch_call", lambda s, rows: _cut(one(s, rows), "labels")
        )
    else:
        import trl.trainer.dpo_trainer as dpo

        two = dpo.DataCollatorForPreference.torch_call
        monkeypatch.setattr(
            dpo.DataCollatorForPreference, "torch_call", lambda s, rows: _cut(two(s, rows), "completion_mask")
        )


def _cut(batch: dict[str, Any], name: str) -> dict[str, Any]:
    nothing = -100 if name == "labels" else 0
    for row in batch[name]:
        row[(row != nothing).nonzero()[0]] = nothing
    return batch


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_normaliser_is_caught(kind: str, side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """AlignTune's loss is four times too large; everything before it is equal."""
    bare = side("bare TRL", kind, bare=True)
    if kind in PAIRS:
        from aligntune.algorithms.base import get_algorithm

        cls = get_algorithm(kind)
        objective = cls.objective  # type: ignore[attr-defined]

        def four(self: Any, *answers: Any) -> Any:
            losses, values = objective(self, *answers)
            return 4 * losses, values

        monkeypatch.setattr(cls, "objective", four)
    elif kind == "gkd":
        from aligntune.core.rl import distill

        divergence = distill.divergence
        monkeypatch.setattr(distill, "divergence", lambda *a: 4 * divergence(*a))
    else:
        from aligntune.core.sft.classification import LabelLoss

        loss = LabelLoss.__call__
        monkeypatch.setattr(LabelLoss, "__call__", lambda self, *a, **k: 4 * loss(self, *a, **k))
    pair = compare_sides(bare, side("trl", kind))
    assert pair.first is not None
    assert pair.first.name == "loss"
    assert "a factor of 4" in pair.cause
    assert quantity(pair, "gradient direction").equal
    assert "a normaliser" in quantity(pair, "gradient norm").detail


def test_a_wrong_teacher_is_caught(side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distillation compares with its teacher, which is its reference."""
    bare = side("bare TRL", "gkd", bare=True)
    from aligntune.core.rl import distill

    load = distill.load_teacher

    def moved(trainer: Any) -> Any:
        import torch

        teacher = load(trainer)
        with torch.no_grad():
            for i, weight in enumerate(teacher.parameters()):
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        return teacher

    monkeypatch.setattr(distill, "load_teacher", moved)
    pair = compare_sides(bare, side("trl", "gkd"))
    assert pair.first is not None
    assert pair.first.name == "reference"
    assert quantity(pair, "mask").equal


def test_what_has_no_bare_side_says_why(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(kind: str, **changes: Any) -> Any:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        return load_config(plain(kind, tiny_model, folder, **changes))

    for kind in KINDS:
        assert bare_refusal(config(kind)) is None
    assert "over each answer's tokens" in bare_notes(config("cpo"))[0]
    assert "the prompt's too" in bare_notes(config("orpo"))[0]
    assert bare_notes(config("simpo")) == []
    raw = plain("text_classification", tiny_model, tmp_path)
    raw["task"]["class_weights"] = "balanced"
    assert "weights of the classes" in str(bare_refusal(load_config(raw)))
    raw = plain("gkd", tiny_model, tmp_path / "gkd")
    raw["algo"]["temperature"] = 2.0
    assert "temperature" in str(bare_refusal(load_config(raw)))
    from aligntune.compare import probe_bare

    monkeypatch.setattr(probe_bare, "_there", lambda name: False)
    assert "no trl.experimental.cpo" in str(bare_refusal(config("simpo")))
