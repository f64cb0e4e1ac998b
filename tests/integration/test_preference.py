"""Preference algorithms from end to end: they train, resume, evaluate and refuse, on both backends."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from aligntune.errors import ConfigurationError, ValidationError

KINDS = ["kto", "orpo", "cpo", "simpo"]
STEPS = {"train__max_steps": 2, "train__save_steps": 1}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished(kind)`: a run of two steps with a checkpoint each and held-out rows, made once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            held = {"evaluation__dataset": {"name": str(folder / f"{kind}.jsonl")}}
            made[kind] = runs.trainer(kind, tiny_model, folder, **STEPS, **held)
            made[kind].train()
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_saves_and_learns_the_rows(kind: str, finished: Any) -> None:
    trainer = finished(kind)
    out = Path(trainer.config.output_dir)
    assert len(runs.logged(out)) == 2
    assert {"model.safetensors", "metrics.jsonl", "manifest.json", "checkpoint-1", "checkpoint-2"} <= {
        p.name for p in out.iterdir()
    }
    first, last = runs.logged(out)
    assert last < first
    assert json.loads((out / "manifest.json").read_text())["algorithm"] == kind
    assert runs.logged(out, "eval_rewards/margins")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_run_that_was_never_stopped(kind: str, finished: Any, tmp_path: Path) -> None:
    whole = finished(kind)
    again = runs.trainer(kind, Path(whole.config.model.name_or_path), tmp_path, **STEPS)
    again.train(resume=f"{whole.config.output_dir}/checkpoint-1")
    assert runs.same_weights(whole.config.output_dir, again.config.output_dir)


def test_a_moved_reference_is_part_of_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    """TR-DPO with a move at each step: the resumed run equals the whole one, and needs the stored reference."""
    from safetensors.torch import load_file

    moved = {"algo__sync_ref_model": True, "algo__ref_model_sync_steps": 1, "algo__ref_model_mixup_alpha": 0.5}
    changes = {**moved, "train__max_steps": 3, "train__save_steps": 1}
    whole = runs.trainer("dpo", tiny_model, tmp_path / "whole", **changes)
    whole.train()
    first = Path(whole.config.output_dir) / "checkpoint-1"
    start, policy = runs.weights(tiny_model), load_file(first / "model.safetensors")
    reference = load_file(first / "aligntune_reference.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(reference[name], 0.5 * start[name] + 0.5 * policy[name], atol=1e-6)
    again = runs.trainer("dpo", tiny_model, tmp_path / "again", **changes)
    again.train(resume=str(first))
    assert runs.same_weights(whole.config.output_dir, again.config.output_dir)
    margins = [runs.logged(t.config.output_dir, "rewards/margins")[-1] for t in (whole, again)]
    assert margins[0] == margins[1]
    (first / "aligntune_reference.safetensors").unlink()
    broken = runs.trainer("dpo", tiny_model, tmp_path / "broken", **changes)
    with pytest.raises(ConfigurationError, match=r"aligntune_reference\.safetensors is missing"):
        broken.train(resume=str(first))


def test_a_moved_reference_does_not_move_the_measure(tiny_model: Path, tmp_path: Path) -> None:
    """Held-out margins are against the model that the run began with, also where the reference has become the policy."""
    changes = {"algo__sync_ref_model": True, "algo__ref_model_sync_steps": 1, "algo__ref_model_mixup_alpha": 1.0}
    trainer = runs.trainer("dpo", tiny_model, tmp_path, train__max_steps=2, **changes)
    trainer.train()
    assert trainer.evaluate(tmp_path / "dpo.jsonl")["eval_rewards/margins"] > 0.01


# ---- invariants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orpo", "cpo", "simpo"])
def test_a_batch_of_eight_equals_four_accumulated_twos(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for name, batch, steps in (("whole", 8, 1), ("parts", 2, 4)):
        changes = {"train__per_device_batch_size": batch, "train__gradient_accumulation_steps": steps}
        trainer = runs.trainer(kind, tiny_model, tmp_path / name, train__max_steps=2, train__optimizer="sgd", **changes)
        trainer.train()
        found.append([runs.logged(trainer.config.output_dir, k) for k in ("loss", "grad_norm")])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


# ---- held-out measures ------------------------------------------------------------------------------------------


def pair_logps(folder: Path | str, rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """(sum, tokens) of each answer, from the template and a plain forward pass in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).double(), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        start = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True)["input_ids"])
        whole = [*asked, {"role": "assistant", "content": row["completion"]}]
        ids = torch.tensor(tokenizer.apply_chat_template(whole, tokenize=True)["input_ids"])
        with torch.no_grad():
            table = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        logps = table.gather(-1, ids[1:, None])[start - 1 :, 0]
        found.append((float(logps.sum()), len(logps)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_measures_equal_a_reference(kind: str, finished: Any, tiny_model: Path) -> None:
    trainer = finished(kind)
    values = trainer.evaluate()
    rows = runs.LABELLED
    policy, start = pair_logps(trainer.config.output_dir, rows), pair_logps(tiny_model, rows)
    reward = {
        "kto": lambda p, s: 0.1 * (p[0] - s[0]),
        "cpo": lambda p, s: 0.1 * p[0],
        "simpo": lambda p, s: 2.0 * p[0] / p[1],
        "orpo": lambda p, s: p[0] / p[1] - torch.log1p(-torch.tensor(p[0] / p[1]).double().exp()).item(),
    }[kind]
    rewards = [reward(p, s) for p, s in zip(policy, start, strict=True)]
    good, bad = rewards[::2], rewards[1::2]
    n = len(good)
    assert values["eval_rewards/chosen"] == pytest.approx(sum(good) / n, rel=1e-4)
    assert values["eval_rewards/margins"] == pytest.approx((sum(good) - sum(bad)) / n, rel=1e-3, abs=1e-5)
    if kind == "kto":
        wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
        assert values["eval_rewards/auc"] == pytest.approx(wins / n**2)
        assert values["eval_kl"] >= 0
        assert 0 < values["eval_loss"] < 1
        assert "eval_rewards/accuracies" not in values
    else:
        assert values["eval_rewards/accuracies"] == sum(g > b for g, b in zip(good, bad, strict=True)) / n
        assert values["eval_loss"] > 0


def test_kto_on_pairs_has_an_accuracy(finished: Any, tmp_path: Path) -> None:
    file = runs.write_rows(tmp_path / "pairs.jsonl", runs.PAIRS)
    trainer = finished("kto")
    values = trainer.evaluate(file)
    unpaired = trainer.evaluate(runs.write_rows(tmp_path / "labels.jsonl", runs.LABELLED))
    assert 0 <= values["eval_rewards/accuracies"] <= 1
    assert values["eval_rewards/margins"] == pytest.approx(unpaired["eval_rewards/margins"], rel=1e-6)
    only = runs.write_rows(tmp_path / "good.jsonl", runs.LABELLED[::2])
    assert "eval_rewards/margins" not in trainer.evaluate(only)


# ---- references, and bad input --------------------------------------------------------------------------------------


def test_a_named_reference_trains_and_measures(tiny_model: Path, tmp_path: Path) -> None:
    import helpers

    other = helpers.save_tiny_model(tmp_path / "other", seed=9)
    trainer = runs.trainer("dpo", tiny_model, tmp_path, algo__reference=str(other), model__peft={"r": 2}, **STEPS)
    trainer.train()
    assert runs.logged(trainer.config.output_dir)[0] != pytest.approx(0.6931, abs=1e-3)
    with_reference = trainer.evaluate(tmp_path / "dpo.jsonl")
    trainer._hf = None  # what is measured does not depend on the trainer that is still there
    assert trainer.evaluate(tmp_path / "dpo.jsonl") == pytest.approx(with_reference, rel=1e-5)


def test_kto_refuses_rows_of_one_kind_before_anything_is_written(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("kto", tiny_model, tmp_path)
    runs.write_rows(tmp_path / "kto.jsonl", runs.LABELLED[::2])
    with pytest.raises(ValidationError, match="all 24 rows are desirable"):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_dpo_refuses_labels_and_kto_takes_pairs(tiny_model: Path, tmp_path: Path) -> None:
    labels = runs.write_rows(tmp_path / "labels.jsonl", runs.LABELLED)
    with pytest.raises(ValidationError, match="single answers with a label"):
        runs.trainer("dpo", tiny_model, tmp_path, datasets=[{"name": str(labels)}]).train()
    pairs = runs.write_rows(tmp_path / "pairs.jsonl", runs.PAIRS)
    trainer = runs.trainer("kto", tiny_model, tmp_path, datasets=[{"name": str(pairs)}], train__max_steps=1)
    trainer.train()
    notes = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]
    assert any("24 pairs are taken apart" in n for n in notes)
    assert any("24 of 48 rows (50.0%) are desirable" in n for n in notes)
    assert any("shuffled once with seed 3" in n for n in notes)


# ---- Unsloth --------------------------------------------------------------------------------------------------------


ON_UNSLOTH = """
    from pathlib import Path
    import runs

    result = {}
    for kind in ("kto", "orpo", "cpo", "simpo"):
        for peft in (None, {"r": 4}):
            folder = Path(given["folder"]) / f"{kind}-{peft is not None}"
            trainer = runs.trainer(kind, given["model"], folder, backend="unsloth", model__peft=peft,
                                   train__max_steps=2, train__save_steps=2)
            trainer.train()
            result[folder.name] = {
                "losses": runs.logged(trainer.config.output_dir), "reference": trainer._hf.ref_model is not None,
                "files": [p.name for p in Path(trainer.config.output_dir).iterdir()],
                "evaluated": trainer.evaluate(folder / f"{kind}.jsonl"),
            }
    for name, algo in given["more"].items():
        folder = Path(given["folder"]) / name
        trainer = runs.trainer("dpo", given["model"], folder, backend="unsloth", train__max_steps=1,
                               **{f"algo__{k}": v for k, v in algo.items()})
        trainer.train()
        result[name] = {"losses": runs.logged(trainer.config.output_dir)}
"""
MORE: dict[str, dict[str, Any]] = {
    "free": {"reference_free": True},
    "conservative": {"label_smoothing": 0.2, "loss_type": ["sigmoid", "sft"]},
    "moved": {"sync_ref_model": True},
}


@pytest.fixture(scope="module")
def on_unsloth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed (see `aligntune info` for the command)")
    from test_unsloth import python

    folder = tmp_path_factory.mktemp("unsloth")
    return python(ON_UNSLOTH, tmp_path_factory.mktemp("cwd"), model=tiny_model, folder=folder, more=MORE)


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unsloth_trains_the_same(
    kind: str, peft: bool, on_unsloth: Any, finished: Any, tiny_model: Path, tmp_path: Path
) -> None:
    theirs = on_unsloth[f"{kind}-{peft}"]
    ours = finished(kind)
    if peft:
        ours = runs.trainer(kind, tiny_model, tmp_path, model__peft={"r": 4}, train__max_steps=1)
        ours.train()
    assert theirs["losses"][0] == pytest.approx(runs.logged(ours.config.output_dir)[0], abs=1e-5)
    assert len(theirs["losses"]) == 2
    assert "checkpoint-2" in theirs["files"]
    assert theirs["reference"] == (kind == "kto" and not peft)
    assert "eval_rewards/margins" in theirs["evaluated"]


@pytest.mark.parametrize("name", MORE)
def test_unsloth_trains_the_options_of_dpo(name: str, on_unsloth: Any, tiny_model: Path, tmp_path: Path) -> None:
    algo = {f"algo__{k}": v for k, v in MORE[name].items()}
    ours = runs.trainer("dpo", tiny_model, tmp_path, train__max_steps=1, **algo)
    ours.train()
    assert on_unsloth[name]["losses"][0] == pytest.approx(runs.logged(ours.config.output_dir)[0], abs=1e-5)
