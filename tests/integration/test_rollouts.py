"""What a run stores of each sampled completion: advantages, log-probabilities, weights, the columns that were read."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core.backend_factory import create_trainer
from aligntune.errors import ConfigurationError
from aligntune.utils.rollouts import read_rollouts

REWARDS = '''
SEEN = []


def share(text, tag, level=0, completion_ids=None):
    """Share of the tag's letter among the characters."""
    SEEN.append(completion_ids)
    return text.count(tag) / max(len(text), 1)


def words(text):
    return float(len(text.split()))
'''


def plain(name: str, model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A run on rows with the columns `tag`, `level` and `unread`, rewarded by two functions."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = runs.plain("grpo", model, folder, train__gradient_accumulation_steps=2, **changes)
    rows = [{**row, "tag": "ae"[i % 2], "level": i, "unread": "x"} for i, row in enumerate(runs.SFT_ROWS)]
    runs.write_rows(folder / "grpo.jsonl", rows)
    (folder / "two.py").write_text(REWARDS, encoding="utf-8")
    raw["rewards"] = [{"type": f"{folder / 'two.py'}:share"}, {"type": f"{folder / 'two.py'}:words", "weight": 0.5}]
    size = {} if name == "online_dpo" else {"num_generations": 4}
    raw["algo"] = {"name": name, **size, **raw["algo"]} if name == "grpo" else {"name": name, **size}
    return raw


def stored(out: Path | str) -> list[dict[str, Any]]:
    return read_rollouts(out).to_pylist()  # type: ignore[no-any-return]


def check_rows(rows: list[dict[str, Any]], group: int) -> None:
    """Everything but the advantage, which algorithms define differently."""
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward/share"] + 0.5 * row["reward/words"])
        assert (row["weight/share"], row["weight/words"]) == (1.0, 0.5)
        assert row["column/tag"] in ("a", "e")
        assert row["column/level"] == str(int(row["prompt"].removeprefix("Say ")))
        assert "column/unread" not in row
        assert 1 <= row["tokens"] <= 12
        assert row["logprob_sum"] < 0
    for step in {row["step"] for row in rows}:
        mine = [row for row in rows if row["step"] == step]
        assert [row["group"] for row in mine] == [i // group for i in range(len(mine))]


def test_grpo_stores_advantages_and_log_probabilities(tiny_model: Path, tmp_path: Path) -> None:
    """The update's own forward pass gives the log-probabilities, which are those of a pass over what is stored."""
    import torch

    trainer = create_trainer(plain("grpo", tiny_model, tmp_path, train__max_steps=1, train__learning_rate=1e-12))
    trainer.train()
    rows = stored(trainer.config.output_dir)
    assert len(rows) == 8
    check_rows(rows, 4)
    for first in (0, 4):
        totals = [row["reward"] for row in rows[first : first + 4]]
        mean, std = statistics.fmean(totals), statistics.stdev(totals)
        expected = [(t - mean) / (std + 1e-4) for t in totals]
        assert [row["advantage"] for row in rows[first : first + 4]] == pytest.approx(expected, abs=1e-4)
    tokenizer, model = trainer.tokenizer, trainer.model.eval()
    seen = type(trainer.rewards.components[0].reward).fn.__globals__["SEEN"][-8:]
    for row, answer in zip(rows, seen, strict=True):
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=True
        )
        prompt = list(chat["input_ids"] if hasattr(chat, "keys") else chat)
        assert len(answer) == row["tokens"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        assert row["logprob_sum"] == pytest.approx(float(logps.sum()), abs=1e-3)


def test_ppo_stores_the_mean_of_its_token_advantages(tiny_model: Path, tmp_path: Path) -> None:
    trainer = create_trainer(plain("ppo", tiny_model, tmp_path, train__max_steps=2))
    trainer.train()
    rows = stored(trainer.config.output_dir)
    check_rows(rows, 4)
    whitened = [row["advantage"] * row["tokens"] for row in rows if row["step"] == rows[0]["step"]]
    assert math.fsum(whitened) == pytest.approx(0, abs=1e-3)  # of a rollout, over its tokens
    assert len({row["advantage"] for row in rows}) > 1


def test_online_dpo_has_no_advantages(tiny_model: Path, tmp_path: Path) -> None:
    trainer = create_trainer(plain("online_dpo", tiny_model, tmp_path, train__max_steps=1))
    trainer.train()
    rows = stored(trainer.config.output_dir)
    check_rows(rows, 2)
    assert {row["advantage"] for row in rows} == {None}
    assert {row["preference"] for row in rows} <= {1.0, -1.0, None}


def test_running_statistics_and_rollouts_of_a_resumed_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies inside a step keeps its rows, and the resumed one goes on to the last bit."""
    from aligntune.core import trainer as core

    changes = {"train__max_steps": 4, "train__save_steps": 2}
    rules = {"normalise": "running", "normalise_of": "components", "clip": [-1.5, 1.5]}
    straight = create_trainer({**plain("grpo", tiny_model, tmp_path / "straight", **changes), "composition": rules})
    straight.train()
    raw = {**plain("grpo", tiny_model, tmp_path / "broken", **changes), "composition": rules}
    record = core.record_rollouts

    def die(run: Any, step: int, *args: Any) -> None:
        record(run, step, *args)
        if step == 3:
            raise RuntimeError("power cut")

    broken = create_trainer(raw)
    with monkeypatch.context() as patch:
        patch.setattr(core, "record_rollouts", die)
        with pytest.raises(RuntimeError, match="power cut"):
            broken.train()
    left = stored(broken.config.output_dir)
    assert [row["step"] for row in left] == [s for s in (1, 2, 3, 4) for _ in range(8)]
    assert {row["advantage"] for row in left[24:]} == {None}
    resumed = create_trainer(raw)
    resumed.train(resume="latest")
    assert resumed.rewards.state() == straight.rewards.state()
    assert resumed.rewards.state()["share"][0] == 32
    assert runs.same_weights(straight.config.output_dir, resumed.config.output_dir)
    whole = stored(straight.config.output_dir)
    assert stored(resumed.config.output_dir) == whole
    assert max(abs(row["reward"]) for row in whole) <= 1.5
    assert "rewards/composed" in straight.state.metrics
    held = json.loads((Path(straight.config.output_dir) / "checkpoint-4" / "aligntune_state.json").read_text())
    assert held == {"rewards": straight.rewards.state()}


@pytest.mark.parametrize(
    ("algo", "rules", "said"),
    [
        ("grpo", {"normalise": "group"}, "composition.normalise: group has no effect here"),
        ("grpo", {"normalise": "running"}, "composition.normalise: running has no effect here"),
        ("online_dpo", {"normalise": "running"}, "has no effect here"),
        ("dr_grpo", {"normalise": "group", "normalise_scale": False}, "has no effect here"),
        ("grpo", {"normalise": "group", "normalise_of": "components"}, "algo.reward_aggregation: normalize_then_sum"),
        ("pace", {"normalise": "running"}, "composition.normalise: pace compares rewards with an expected value"),
        ("ppo", {"normalise": "group"}, "algo.num_generations is 1"),
        ("grpo", {"gates": {"share": 1}}, "composition.gates.share: has no effect here: `composition.mode` is sum"),
        ("grpo", {"normalise_scale": False}, "`composition.normalise` is none"),
        ("dpo", {"mode": "min"}, "composition.mode: has no effect here"),
    ],
)
def test_what_an_algorithm_would_undo_is_refused(
    algo: str, rules: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    from aligntune.core.config.io import build_config

    raw = plain("grpo", tiny_model, tmp_path)
    raw["algo"] = {"name": algo}
    raw["train"]["gradient_accumulation_steps"] = 4
    if algo == "dpo":
        raw = {k: v for k, v in raw.items() if k not in ("rewards", "generation")}
    with pytest.raises(ConfigurationError) as caught:
        build_config({**raw, "composition": rules})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("algo", "rules"),
    [
        ({"name": "ppo"}, {"normalise": "running"}),
        ({"name": "dr_grpo"}, {"normalise": "group"}),
        ({"name": "grpo", "scale_rewards": "batch"}, {"normalise": "group"}),
        ({"name": "dapo"}, {"normalise": "running"}),
        ({"name": "online_dpo"}, {"normalise": "group", "normalise_of": "components"}),
        ({"name": "grpo"}, {"normalise": "running", "normalise_of": "components"}),
        ({"name": "grpo"}, {"mode": "min", "clip": [0, 1]}),
    ],
)
def test_what_has_an_effect_is_taken(
    algo: dict[str, Any], rules: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    from aligntune.core.config.io import build_config

    raw = plain("grpo", tiny_model, tmp_path)
    raw["algo"] = algo
    raw["train"]["gradient_accumulation_steps"] = 4
    assert build_config({**raw, "composition": rules}).composition.clip == rules.get("clip")


def test_rewards_apart_need_a_plain_sum(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.core.config.io import build_config

    raw = plain("grpo", tiny_model, tmp_path, algo__reward_aggregation="normalize_then_sum")
    with pytest.raises(ConfigurationError, match=r"composition\.clip: needs algo\.reward_aggregation: sum"):
        build_config({**raw, "composition": {"clip": [0, 1]}})
