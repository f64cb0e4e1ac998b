"""The parity probe: equal sides are equal bit for bit, and a planted fault is caught and named. TRL, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.compare.probe import ProbeResult, prepared_config, probe
from aligntune.compare.probe_bare import bare_refusal
from aligntune.compare.probe_verdict import TOLERANCES, Pair, Quantity, compare_sides
from aligntune.compare.probe_worker import measure
from aligntune.core.config import load_config
from aligntune.core.config.io import effective
from aligntune.errors import ConfigurationError, EnvironmentError, TrainingError
from probing import Measured, sides


@pytest.fixture
def side(tiny_model: Path, tmp_path: Path) -> Measured:
    """`side(name, kind, ...)` measures one side of a small run here."""
    return sides(runs.plain, tiny_model, tmp_path)


def quantity(pair: Pair, name: str) -> Quantity:
    return next(q for q in pair.quantities if q.name == name)


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_our_trainer_equals_bare_trl_bit_for_bit(kind: str, peft: Any, side: Measured) -> None:
    """And both see a batch in which every quantity matters: a reference that differs, a gradient that is not 0."""
    ours = side("trl", kind, model__peft=peft)
    pair = compare_sides(ours, side("bare TRL", kind, model__peft=peft, bare=True))
    assert pair.ok, pair.cause
    assert [q.difference for q in pair.quantities] == pytest.approx([0.0] * len(pair.quantities), abs=1e-12)
    names = [q.name for q in pair.quantities]
    assert names[:4] == ["starting weights", "tokens", "mask", "log-probabilities"]
    assert ("reference" in names) is (kind != "sft")
    assert names[-3:] == ["loss", "gradient direction", "gradient norm"]
    assert quantity(pair, "gradient norm").left > 1e-6  # type: ignore[operator]
    arrays = ours.arrays("batch")
    if kind != "sft":
        on = arrays["trained"].astype(bool)
        assert abs(arrays["logps"] - arrays["reference"])[on].max() > 1e-4  # the policy was moved away from it


def test_a_wrong_mask_is_caught_and_its_positions_are_named(side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trained token of each row is left out of the loss."""
    right = side("trl", "sft")
    import trl.trainer.sft_trainer as module

    collate = module.DataCollatorForLanguageModeling.torch_call

    def shifted(self: Any, examples: Any) -> Any:
        batch = collate(self, examples)
        for row in batch["labels"]:
            row[(row != -100).nonzero()[0]] = -100
        return batch

    monkeypatch.setattr(module.DataCollatorForLanguageModeling, "torch_call", shifted)
    wrong = side("wrong", "sft")
    pair = compare_sides(right, wrong)
    assert not pair.ok
    assert pair.first is not None
    assert pair.first.name == "mask"
    assert pair.first.difference == 4  # one token in each of four rows
    a, b = right.arrays("batch")["trained"], wrong.arrays("batch")["trained"]
    row, position = (int(i[0]) for i in (a != b).nonzero())
    assert f"row {row} position {position}" in pair.cause
    assert quantity(pair, "log-probabilities").equal
    assert quantity(pair, "loss").equal is False


@pytest.mark.parametrize(("kind", "named"), [("sft", "sequences"), ("grpo", "max_completion_length")])
def test_a_wrong_normaliser_is_caught_as_one_factor(
    kind: str, named: str, side: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is multiplied by a number that a normaliser is made of; everything before it is equal."""
    import trl

    right = side("trl", kind)
    factor = {"sft": 4.0, "grpo": 12.0}[kind]
    cls = trl.SFTTrainer if kind == "sft" else trl.GRPOTrainer
    compute = cls.compute_loss

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return factor * compute(self, *args, **kwargs)

    monkeypatch.setattr(cls, "compute_loss", scaled)
    pair = compare_sides(right, side("wrong", kind))
    assert pair.first is not None
    assert pair.first.name == "loss"
    assert f"a factor of {factor:g}" in pair.cause
    assert named in pair.cause
    assert quantity(pair, "gradient direction").equal
    norm = quantity(pair, "gradient norm")
    assert norm.equal is False
    assert "the direction is the same: a normaliser" in norm.detail
    assert norm.right == pytest.approx(factor * norm.left, rel=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_wrong_reference_is_caught(kind: str, side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is another model than the starting one, as where TRL reloads it by a name that has changed."""
    import torch

    from aligntune.core import trainer as core

    right = side("trl", kind, algo__beta=0.1)
    monkeypatch.setattr(core, "check_reference", _moved(torch))
    pair = compare_sides(right, side("wrong", kind, algo__beta=0.1))
    assert pair.first is not None
    assert pair.first.name == "reference"
    assert "the reference is another model" in pair.cause
    if kind == "dpo":
        assert "rewards/margins shifts from" in pair.cause
    assert quantity(pair, "log-probabilities").equal
    assert quantity(pair, "mask").equal


def _moved(torch: Any) -> Callable[[Any], None]:
    def plant(hf: Any) -> None:
        with torch.no_grad():
            for i, weight in enumerate(hf.ref_model.parameters()):
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))

    return plant


def test_other_rows_and_other_weights_are_named(side: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    one = side("trl", "sft")
    rows = compare_sides(one, side("shuffled", "sft", train__seed=4))
    assert rows.first is not None
    assert rows.first.name == "tokens"
    lora, other = side("trl", "sft", model__peft={"r": 4}), side("other", "sft", model__peft={"r": 4}, train__seed=4)
    weights = compare_sides(lora, other).first
    assert weights is not None
    assert weights.name == "starting weights"
    assert "adapters are drawn by other random numbers" in weights.detail
    assert "trained on one side only" in compare_sides(one, lora).cause


def test_the_verdict_is_by_the_coarser_precision(side: Measured) -> None:
    """A bf16 side is judged by bf16, and its rounding is within it."""
    exact, rounded = side("trl", "sft"), side("bf16", "sft", model__precision="bf16")
    pair = compare_sides(exact, rounded)
    assert pair.precision == "bf16"
    assert quantity(pair, "loss").tolerance == TOLERANCES["bf16"]["loss"]
    assert pair.ok, pair.cause
    assert quantity(pair, "log-probabilities").difference > TOLERANCES["fp32"]["largest"]


def test_what_no_bare_library_has_is_said(tiny_model: Path, tmp_path: Path) -> None:
    def refused(kind: str, **changes: Any) -> str | None:
        return bare_refusal(load_config(runs.plain(kind, tiny_model, tmp_path, **changes)))

    assert refused("sft") is None
    assert refused("dpo") is None
    assert refused("grpo") is None
    assert refused("simpo") is None
    gbmpo = {"name": "gbmpo", "num_generations": 4}
    assert "own" in str(refused("grpo", algo=gbmpo))
    assert "reference" in str(refused("dpo", algo__reference=str(tiny_model)))


def test_distillation_is_probed_without_the_sampling_that_it_leaves_out(tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path)
    rows, _ = raw.pop("dataset"), raw.pop("task")
    algo = {"name": "gkd", "teacher": str(tiny_model), "lmbda": 0.5}
    raw |= {"datasets": [rows], "algo": algo, "generation": {"max_completion_length": 24}}
    prepared, notes = prepared_config(load_config(raw))
    assert load_config(effective(prepared)).algorithm.lmbda == 0.0  # type: ignore[attr-defined]
    assert "nothing is sampled" in notes[0]


def test_a_probe_that_cannot_be_is_refused(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = runs.plain("dpo", tiny_model, tmp_path)
    with pytest.raises(ConfigurationError, match="two sides"):
        probe(raw, ["trl"], bare=False)
    with pytest.raises(ConfigurationError, match="different backends"):
        probe(raw, ["trl", "trl"])
    with pytest.raises(ConfigurationError, match="unknown backend 'trl2'"):
        probe(raw, ["trl", "trl2"])
    answers = runs.plain("sft", tiny_model, tmp_path)["dataset"]
    spin, _ = prepared_config(load_config({**raw, "algo": {"name": "spin"}, "datasets": answers}))
    with pytest.raises(ConfigurationError, match="no single loss"):
        measure(spin, tmp_path / "spin")
    with pytest.raises(TrainingError, match="ended with code 1 and no result") as caught:
        probe(raw, ["trl"], python="/bin/false")
    assert "it said" in caught.value.hint
    from aligntune.core.backend import BackendInfo

    monkeypatch.setattr(BackendInfo, "available", False)
    with pytest.raises(EnvironmentError, match="not installed"):
        probe(raw)


def test_a_result_is_told_and_has_plain_values() -> None:
    good = Pair("trl", "unsloth", "fp32", [Quantity("loss", True, 1e-7, 1e-5, "relative", 0.5, 0.5)])
    bad = Pair(
        "trl", "bare TRL", "fp32", [Quantity("mask", False, 2, 0, "tokens", detail="row 0 position 3")], "mask: row 0"
    )
    result = ProbeResult("dpo", "fp32", [good, bad], {"trl": {"loss": 0.5, "weights": {}}}, ["a note"])
    assert not result.ok
    plain = result.to_dict()
    assert plain["pairs"][1]["first"] == "mask"
    assert "weights" not in plain["sides"]["trl"]
    text = str(result)
    assert "unsloth against trl, fp32: equal" in text
    assert "DIFFERENT" in text
    assert "note: a note" in text
