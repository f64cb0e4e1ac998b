"""The group algorithms as whole runs: two steps and a checkpoint on both backends, from the same definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import INSTALLED, python

import runs

ALGORITHMS = ["dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"]
OPTIONS: dict[str, dict[str, Any]] = {
    "gspo": {"train__save_steps": 4, "train__max_steps": 4},
    "dapo": {"algo__mask_truncated_completions": False, "algo__overlong_buffer": 6},
    "reinforce_pp": {"algo__beta": 0.3},
    "rloo": {"algo__beta": 0.3},
}


def changes(name: str) -> dict[str, Any]:
    """Two groups a step in micro-batches of four, and a checkpoint at the end."""
    return {
        "algo": {"name": name, "num_generations": 4},
        "train__gradient_accumulation_steps": 2,
        "train__max_steps": 2,
        "train__save_steps": 2,
        **OPTIONS.get(name, {}),
    }


TRAIN_ALL = """
    from pathlib import Path
    import runs

    result = {}
    for name, changes in given["cases"].items():
        folder = Path(given["folder"]) / name
        trainer = runs.trainer("grpo", given["model"], folder, backend="unsloth", **changes)
        trained = trainer.train()
        out = trainer.config.output_dir
        result[name] = {key: runs.logged(out, key) for key in ("loss", "reward", "grad_norm")}
        result[name]["checkpoint"] = (Path(out) / f"checkpoint-{trained.total_steps}" / "trainer_state.json").is_file()
"""


@pytest.fixture(scope="module")
def on_unsloth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not INSTALLED:
        pytest.skip("unsloth is not installed")
    cases = {name: changes(name) for name in ALGORITHMS}
    folder = tmp_path_factory.mktemp("unsloth")
    return python(TRAIN_ALL, tmp_path_factory.mktemp("cwd"), model=tiny_model, folder=folder, cases=cases)


@pytest.fixture(scope="module")
def on_trl(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def trained(name: str) -> Any:
        if name not in made:
            made[name] = runs.trainer("grpo", tiny_model, tmp_path_factory.mktemp(name), **changes(name))
            made[name].train()
        return made[name]

    return trained


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_trains_and_leaves_a_checkpoint(name: str, on_trl: Any) -> None:
    import math

    trainer = on_trl(name)
    out = Path(trainer.config.output_dir)
    steps = trainer.config.train.max_steps
    assert len(runs.logged(out)) == steps == trainer.state.step
    assert (out / f"checkpoint-{steps}" / "trainer_state.json").is_file()
    assert json.loads((out / "manifest.json").read_text())["algorithm"] == name
    assert any(g > 0 for g in runs.logged(out, "grad_norm"))
    assert all(math.isfinite(v) for k in ("loss", "reward", "entropy") for v in runs.logged(out, k))
    assert runs.logged(out, "entropy")[0] > 0
    if name in ("rloo", "reinforce_pp"):
        assert runs.logged(out, "kl")[0] == pytest.approx(0, abs=1e-5)
        assert runs.logged(out, "kl")[-1] != 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_both_backends_begin_alike(name: str, on_unsloth: Any, on_trl: Any) -> None:
    ours = on_trl(name).config.output_dir
    theirs = on_unsloth[name]
    assert theirs["checkpoint"]
    assert theirs["loss"][0] == pytest.approx(runs.logged(ours)[0], abs=1e-5)
    assert theirs["reward"][0] == pytest.approx(runs.logged(ours, "reward")[0], abs=1e-6)
    assert theirs["grad_norm"][0] == pytest.approx(runs.logged(ours, "grad_norm")[0], rel=1e-3)


def test_dapo_trains_on_no_group_without_variance_and_stores_what_it_dropped(on_trl: Any) -> None:
    from aligntune.utils.rollouts import read_rollouts

    trainer = on_trl("dapo")
    out = trainer.config.output_dir
    rows = read_rollouts(out).to_pylist()
    groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    assert all(len({r["prompt"] for r in g}) == 1 for g in groups)
    for group in groups:
        assert {r["dropped"] for r in group} == {len({r["reward"] for r in group}) < 2}
    for step in (1, 2):
        mine = [g for g in groups if g[0]["step"] == step]
        first = [g for g in mine if g[0]["round"] == 0]
        assert len(first) == 2
        rounds = max(g[0]["round"] for g in mine)
        kept = [g for g in mine if not g[0]["dropped"]]
        assert len(kept) == 2 or (rounds == 3 and len(kept) < 2)
        for group in kept:
            assert sum(r["advantage"] for r in group) == pytest.approx(0, abs=1e-3)
            assert all(r["logprob_sum"] < 0 and r["weight/share_of_a"] == 1 for r in group)
    shares = runs.logged(out, "dynamic_sampling/dropped_share")
    dropped = [sum(g[0]["dropped"] for g in groups if g[0]["step"] == s) for s in (1, 2)]
    sampled = [sum(g[0]["step"] == s for g in groups) for s in (1, 2)]
    assert shares == pytest.approx([d / n for d, n in zip(dropped, sampled, strict=True)])


def test_an_empty_batch_makes_no_update(tiny_model: Path, tmp_path: Path) -> None:
    """A constant reward leaves nothing to learn from: the weights stay, in spite of weight decay and momentum."""
    trainer = runs.trainer(
        "grpo", tiny_model, tmp_path, **changes("dapo"), train__weight_decay=0.1, algo__max_resample=1
    )
    (tmp_path / "share.py").write_text("def share_of_a(text):\n    return 0.5\n")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert all(v.equal(after[k]) for k, v in before.items())
    out = trainer.config.output_dir
    assert runs.logged(out, "dynamic_sampling/unfilled_share") == [1.0, 1.0]
    assert runs.logged(out, "dynamic_sampling/skipped_updates") == [1.0, 1.0]
    assert runs.logged(out, "dynamic_sampling/rounds") == [1.0, 1.0]


def test_rewards_normalised_apart_train_and_are_logged_by_name(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.utils.rollouts import read_rollouts

    options = changes("grpo") | {"algo__reward_aggregation": "normalize_then_sum", "algo__num_generations_eval": 2}
    options |= {"evaluation__temperature": 1.0, "evaluation__dataset": {"name": str(tmp_path / "grpo.jsonl#2")}}
    (tmp_path / "more.py").write_text("def vowels(text):\n    return float(sum(text.count(v) for v in 'aeiou'))\n")
    trainer = runs.trainer("grpo", tiny_model, tmp_path, **options)
    raw = runs.plain("grpo", tiny_model, tmp_path, **options)
    raw["rewards"] += [{"type": f"{tmp_path / 'more.py'}:vowels", "weight": 0.5}]
    from aligntune.core.backend_factory import create_trainer

    trainer = create_trainer(raw)
    trainer.train()
    out = trainer.config.output_dir
    table = read_rollouts(out).to_pydict()
    assert len(table["step"]) == 16
    for i in range(16):
        total = table["reward/share_of_a"][i] + 0.5 * table["reward/vowels"][i]
        assert table["reward"][i] == pytest.approx(total)
    for name in ("share_of_a", "vowels"):
        scores = table[f"reward/{name}"]
        means = [sum(scores[i : i + 8]) / 8 for i in (0, 8)]
        assert runs.logged(out, f"rewards/{name}/mean") == pytest.approx(means, abs=1e-6)
    assert trainer.state.metrics["eval_rows"] == 2.0
