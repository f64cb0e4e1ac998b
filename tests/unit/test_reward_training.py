"""Training of reward models: the data, both losses, the life of a run, and the saved model in use."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards import RewardConfig, build_rewards, get_reward_function
from aligntune.rewards.training import (
    RewardModelDataset,
    RewardModelLoader,
    RewardModelTrainer,
    TRLCompatibleRewardModel,
    best_of_n,
)
from aligntune.rewards.training.config import load_reward_config
from aligntune.rewards.training.dataset import Pair, ScoredText, prompt_key
from aligntune.rewards.training.parts import bradley_terry_loss

ANSWERS = ["aaaa", "aab", "ab", "bbbb", "bba"]
SHARE = """
def share_of_a(text: str, odd: int) -> float:
    return text.count("a") / max(len(text), 1) if odd < 90 else None
"""


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def scored(prompts: int = 12, answers: int = 5) -> RewardModelDataset:
    return RewardModelDataset(
        [
            ScoredText(user(f"Say {i}"), f"answer {j}", float(j % 3) + i / 100, {"it": float(j)}, f"f#{i}/{j}")
            for i in range(prompts)
            for j in range(answers)
        ]
    )


def raw(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Plain values of a run of a second or two on answers that a function scores."""
    from aligntune.core.config.reading import set_key

    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"Say {i}", "samples": [a * (1 + i % 3) for a in ANSWERS], "odd": i} for i in range(16)]
    data = runs.write_rows(folder / "rows.jsonl", rows)
    (folder / "share.py").write_text(SHARE)
    plain: dict[str, Any] = {
        "objective": {"name": "bradley_terry"},
        "model": {"name_or_path": str(model), "max_seq_length": 64},
        "datasets": [{"name": str(data)}],
        "rewards": [{"type": f"{folder / 'share.py'}:share_of_a"}],
        "answers": "samples",
        "held_out": 0.25,
        "train": {"max_steps": 4, "per_device_batch_size": 8, "learning_rate": 1e-3, "seed": 3},
        "logging": {"steps": 1},
        "output_dir": str(folder / "out"),
    }
    for key, value in changes.items():
        set_key(plain, key.replace("__", "."), value)
    return plain


def trained(folder: Path, model: Path, **changes: Any) -> RewardModelTrainer:
    trainer = RewardModelTrainer(raw(folder, model, **changes))
    trainer.train()
    return trainer


# ---- data ------------------------------------------------------------------------------------------------------


def test_pairs_are_made_within_a_prompt_above_the_threshold() -> None:
    data = scored(3, 5)  # scores 0 1 2 0 1 of each prompt
    pairs = data.make_pairs(threshold=0.0, per_prompt=None).pairs
    assert len(pairs) == 3 * 8  # 10 pairs less two ties
    text_score = {(prompt_key(t.prompt), t.text): t.score for t in data.texts}
    for p in pairs:
        gap = text_score[prompt_key(p.prompt), p.chosen] - text_score[prompt_key(p.prompt), p.rejected]
        assert p.margin == pytest.approx(gap)
        assert gap > 0
        assert p.sources[0].startswith("f#")
        assert p.sources[0].split("/")[0] == p.sources[1].split("/")[0]
    strict = data.make_pairs(threshold=1.0, per_prompt=None)
    assert len(strict.pairs) == 3 * 2  # only 2 over 0, twice
    assert strict.counts["below_threshold"] == 3 * 8
    capped = data.make_pairs(threshold=0.0, per_prompt=3, seed=1)
    assert len(capped.pairs) == 9
    assert capped.counts["over_cap"] == 15
    assert capped.pairs == data.make_pairs(threshold=0.0, per_prompt=3, seed=1).pairs
    assert capped.pairs != data.make_pairs(threshold=0.0, per_prompt=3, seed=2).pairs
    with pytest.raises(ValidationError, match="no two answers to one prompt differ"):
        data.make_pairs(threshold=5.0)
    with pytest.raises(ValidationError, match="3 of 3 prompts have one answer"):
        scored(3, 1).make_pairs()


def test_the_split_is_by_prompt_and_does_not_depend_on_the_order() -> None:
    data = scored(20).make_pairs()
    train, held = data.split(0.25, seed=5)
    assert len(held.keys) == 5
    assert not set(train.keys) & set(held.keys)
    assert len(train.texts) + len(held.texts) == 100
    assert {prompt_key(p.prompt) for p in held.pairs} <= set(held.keys)
    turned = RewardModelDataset(data.texts[::-1]).split(0.25, seed=5)[1]
    assert set(turned.keys) == set(held.keys)
    assert set(data.split(0.25, seed=6)[1].keys) != set(held.keys)
    assert len(data.split(0.001)[1].keys) == 1
    with pytest.raises(ValidationError, match="one prompt only"):
        scored(1).split(0.5)
    assert prompt_key(user("Say 1 ")) == prompt_key("Say 1") != prompt_key("Say 2")


def test_label_noise_swaps_the_stated_share_and_counts_it() -> None:
    data = scored().make_pairs(per_prompt=None)
    noisy = data.with_noise(0.2, seed=1)
    flipped = [i for i, p in enumerate(noisy.pairs) if p.flipped]
    assert len(flipped) == round(0.2 * len(data.pairs)) == noisy.counts["flipped"]
    for i, (before, after) in enumerate(zip(data.pairs, noisy.pairs, strict=True)):
        sides = (after.rejected, after.chosen) if i in flipped else (after.chosen, after.rejected)
        assert sides == (before.chosen, before.rejected)
        assert after.margin == before.margin
    assert noisy.pairs == data.with_noise(0.2, seed=1).pairs != data.with_noise(0.2, seed=2).pairs
    with pytest.raises(ConfigurationError, match=r"label_noise is 0\.5"):
        data.with_noise(0.5)


def test_answers_are_labelled_by_rewards_that_see_the_columns(tmp_path: Path, tiny_model: Path) -> None:
    trainer = RewardModelTrainer(raw(tmp_path, tiny_model, held_out=0))
    data = trainer.data
    assert len(data.texts) == 80
    assert [t.score for t in data.texts[:5]] == pytest.approx([1, 2 / 3, 1 / 2, 0, 1 / 3])
    assert data.texts[7].source.endswith("#1/2")
    assert trainer.held_out is None
    rows = [{"prompt": "p", "text": "a", "odd": 99}, {"prompt": "p", "text": "ab", "odd": 1}]
    made = RewardModelDataset.label(rows, trainer.rewards)
    assert [t.score for t in made.texts] == [0.5]
    assert made.counts["unscored"] == 1
    with pytest.raises(ValidationError, match="none of the 1 answers has a score"):
        RewardModelDataset.label(rows[:1], trainer.rewards)


def test_scores_are_composed_as_the_file_says(tmp_path: Path, tiny_model: Path) -> None:
    plain = raw(tmp_path, tiny_model, composition={"clip": [0.0, 0.4]}, objective__disable_dropout=False)
    trainer = RewardModelTrainer(plain)
    assert max(t.score for t in trainer.data.texts) == 0.4
    assert trainer.arguments()["disable_dropout"] is False
    with pytest.raises(ConfigurationError, match=r"judge.kind: has no effect here"):
        load_reward_config(
            {
                **{k: v for k, v in plain.items() if k not in ("rewards", "answers", "composition")},
                "judge": {"kind": "local", "model": "m"},
            }
        )


def test_an_answer_is_never_its_own_gold_answer(tmp_path: Path) -> None:
    from aligntune.core.config import DatasetConfig
    from aligntune.rewards.training.reading import read_answers, read_validation

    exact = build_rewards([RewardConfig(type="exact_match")])
    plain = runs.write_rows(tmp_path / "plain.jsonl", [{"prompt": "2+2?", "completion": "5"}])
    with pytest.raises(ValidationError, match="needs the column reference"):
        read_answers([DatasetConfig(name=str(plain))], exact, answers="completion", seed=0)
    with pytest.raises(ValidationError, match="needs the column reference"):
        read_answers([DatasetConfig(name=str(plain))], exact, seed=0)
    gold = runs.write_rows(
        tmp_path / "gold.jsonl", [{"prompt": "2+2?", "tries": ["5", "4"], "reference": "4", "by": [1, 3]}]
    )
    source = DatasetConfig(name=str(gold))
    assert [t.score for t in read_answers([source], exact, answers="tries", seed=0).texts] == [0.0, 1.0]
    people = read_validation(source, None, answers="tries", human="by", seed=0)
    assert [(t.score, t.human) for t in people.texts] == [(1.0, 1.0), (3.0, 3.0)]
    words = runs.write_rows(tmp_path / "words.jsonl", [{"prompt": "2+2?", "tries": ["5", "4"], "by": ["2", "good"]}])
    with pytest.raises(ValidationError, match=r"row 0 of .*words.jsonl: 'by' holds 'good', not a number"):
        read_validation(DatasetConfig(name=str(words)), None, answers="tries", human="by", seed=0)
    with pytest.raises(ValidationError, match="no column 'trys'"):
        read_answers([source], exact, answers="trys", seed=0)
    pairs = runs.write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "one two", "rejected": "x"}] * 2)
    both = read_answers(
        [DatasetConfig(name=str(pairs))], build_rewards([RewardConfig(type="length", params={"min_length": 2})]), seed=0
    )
    assert [t.text for t in both.texts] == ["one two", "x"] * 2
    judged = read_validation(DatasetConfig(name=str(pairs)), exact, seed=0)
    assert len(judged.pairs) == 2
    assert not judged.texts
    assert any("'exact_match' reads columns that pairs do not have" in note for note in judged.notes)


# ---- configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "bradley_tery"}, "unknown objective 'bradley_tery'"),
        ({"objective": {"name": "regression", "margin": True}}, "objective.margin: belongs to bradley_terry"),
        ({"objective": {"name": "bradley_terry", "margn": True}}, "objective.margn: unknown key"),
        (
            {"rewards": [], "answers": None, "objective": {"name": "bradley_terry", "margin": True}},
            "there are no `rewards`",
        ),
        ({"rewards": [], "answers": None, "objective": "distillation"}, "rewards: is empty, and distillation"),
        ({"rewards": []}, "answers: has no effect here"),
        ({"rewards": [], "answers": None, "pairs": {"threshold": 0.1}}, "pairs.threshold: has no effect here"),
        ({"objective": "distillation", "pairs": {"label_noise": 0.1}}, "pairs.label_noise: has no effect here"),
        ({"pairs": {"label_noise": 0.5}}, "pairs.label_noise: input should be less than 0.5"),
        ({"evaluation": {"dataset": "x.jsonl"}}, "held_out: has no effect here"),
        ({"held_out": 0, "evaluation": {"every": 2}}, "evaluation.every: has no effect here"),
        ({"logging": {"rollouts": False}}, "logging.rollouts: has no effect here"),
        ({"composition": {"normalise": "running"}}, "composition.normalise: has no effect here"),
        ({"backend": "unsloth"}, "backend: input should be 'trl'"),
        ({"algo": "dpo"}, "the file has `algo`"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str, tmp_path: Path, tiny_model: Path) -> None:
    plain = {**raw(tmp_path, tiny_model), **changes}
    with pytest.raises(ConfigurationError) as error:
        load_reward_config({k: v for k, v in plain.items() if v is not None})
    assert said in f"{error.value.message}; {error.value.hint}"


def test_all_faults_come_at_once_and_the_config_reads_back(tmp_path: Path, tiny_model: Path) -> None:
    from aligntune.core.config import dump_config

    plain = raw(tmp_path, tiny_model)
    with pytest.raises(ConfigurationError, match="3 settings are wrong"):
        load_reward_config({**plain, "objective": {"name": "bradley_terry", "x": 1}, "pears": {}, "held_out": 2})
    config = load_reward_config(plain, overrides=["objective.margin=true", "pairs.per_prompt=2"])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_reward_config(tmp_path / "again.yaml") == config
    assert config.train.learning_rate == 1e-3
    assert load_reward_config({**plain, "train": {}}).train.learning_rate == 1e-4


# ---- training ----------------------------------------------------------------------------------------------------


def test_the_loss_is_bradley_terrys_with_margin_and_centring(tmp_path: Path, tiny_model: Path) -> None:
    """The first step's loss, against ten lines over the scores of the untrained model."""
    objective = {"name": "bradley_terry", "margin": True, "center_rewards_coefficient": 0.1}
    changes = {"objective": objective, "train__per_device_batch_size": 200, "train__max_steps": 1}
    trainer = RewardModelTrainer(raw(tmp_path / "a", tiny_model, **changes))
    pairs, (_, std) = trainer.data.pairs, trainer.standard
    chosen = trainer.score([p.chosen for p in pairs], [p.prompt for p in pairs])
    rejected = trainer.score([p.rejected for p in pairs], [p.prompt for p in pairs])
    total = 0.0
    for p, c, r in zip(pairs, chosen, rejected, strict=True):
        assert p.margin is not None
        total += math.log(1 + math.exp(-(c - r - p.margin / std))) + 0.1 * (c + r) ** 2
    margins = [p.margin / std for p in pairs if p.margin is not None]
    assert bradley_terry_loss(chosen, rejected, margins=margins, centering=0.1) == pytest.approx(total / len(pairs))
    trainer.train()
    assert runs.logged(tmp_path / "a/out")[0] == pytest.approx(total / len(pairs), rel=1e-5)
    plain = {**changes, "objective": "bradley_terry"}
    trained(tmp_path / "b", tiny_model, **plain)
    assert runs.logged(tmp_path / "b/out")[0] == pytest.approx(bradley_terry_loss(chosen, rejected), rel=1e-5)


def test_distillation_learns_standardised_scores(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"objective": "distillation", "train__max_steps": 1, "held_out": 0, "train__per_device_batch_size": 80}
    trainer = RewardModelTrainer(raw(tmp_path / "a", tiny_model, **changes))
    texts = trainer.data.texts
    scores = [t.score for t in texts]
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    targets = trainer._train_rows().dataset["labels"]
    assert list(targets) == pytest.approx([(s - mean) / std for s in scores])
    start = trainer.score([t.text for t in texts], [t.prompt for t in texts])
    expected = sum((a - b) ** 2 for a, b in zip(start, targets, strict=True)) / len(texts)
    trainer.train()
    assert runs.logged(tmp_path / "a/out")[0] == pytest.approx(expected, rel=1e-5)
    halves = {**changes, "train__per_device_batch_size": 20, "train__gradient_accumulation_steps": 4}
    trained(tmp_path / "b", tiny_model, **halves)
    assert runs.logged(tmp_path / "b/out")[0] == pytest.approx(expected, rel=1e-5)
    constant = RewardModelDataset([ScoredText(user("p"), str(i), 0.1) for i in range(5)])
    with pytest.raises(ValidationError, match=r"all 5 answers have the score 0\.1"):
        _ = constant.standard


@pytest.mark.parametrize(("name", "peft"), [("bradley_terry", None), ("distillation", {"r": 4})])
def test_a_saved_model_scores_as_the_one_in_memory(name: str, peft: Any, tmp_path: Path, tiny_model: Path) -> None:
    changes = {"objective": name, "train__max_steps": 30, "train__learning_rate": 5e-3, "model__peft": peft}
    trainer = trained(tmp_path, tiny_model, **changes, pairs={} if peft else {"label_noise": 0.1})
    out = tmp_path / "out"
    prompts = [user("Say 3"), user("Say 4")]
    expected = trainer.score(["aaab", "b" * 200], prompts)
    assert expected[0] > expected[1]
    reward = get_reward_function("reward_model", path=str(out))
    assert reward.batch(["aaab", "b" * 200], {"prompt": prompts}) == pytest.approx(expected, abs=1e-5)
    assert reward._load()[2] == 64  # the length that it was trained with, not the 2048 of the model
    loaded = RewardModelLoader().load_reward(out)
    assert loaded(prompts, ["aaab", [{"role": "assistant", "content": "b" * 200}]]) == pytest.approx(expected, abs=1e-5)
    assert loaded.module.config.num_labels == 1
    record = json.loads((out / "reward_model.json").read_text())
    items = [(t.prompt, t.text) for t in trainer.data.texts]
    scores = trainer.score([t for _, t in items], [p for p, _ in items])
    mean = sum(scores) / len(scores)
    assert record["scores"]["mean"] == pytest.approx(mean)
    assert record["scores"]["std"] == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)))
    assert (record["objective"]["name"], record["max_length"], record["held_out_prompts"]) == (name, 64, 4)
    assert record["measured"]["eval_rewards/accuracies"] > 0.9
    seen = (out / "training_prompts.txt").read_text().split()
    assert set(seen) == set(trainer.data.keys)
    assert not set(seen) & set(trainer.held_out.keys if trainer.held_out else ())
    assert not any(p.flipped for p in (trainer.held_out.pairs if trainer.held_out else ()))
    import pyarrow.parquet as pq

    labels = pq.read_table(out / "labels.parquet").to_pylist()
    assert {row["part"] for row in labels} == {"train", "held_out"}
    assert sum(bool(row.get("flipped")) for row in labels) == trainer.data.counts["flipped"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert len(manifest["datasets"]) == 2
    assert manifest["rewards"]


def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path / "straight", tiny_model)
    stopped = RewardModelTrainer(raw(tmp_path / "stopped", tiny_model))
    record = stopped.record

    def stop(at: int, logs: Any) -> None:
        record(at, logs)
        if at == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopped, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    folder = tmp_path / "stopped/out"
    assert stopped.state.checkpoint_path == str(folder / "checkpoint-2")
    assert not (folder / "reward_model.json").exists()
    RewardModelTrainer(raw(tmp_path / "stopped", tiny_model)).train(resume="latest")
    assert runs.same_weights(folder, tmp_path / "straight/out")
    assert runs.logged(folder) == runs.logged(tmp_path / "straight/out")
    with pytest.raises(ConfigurationError, match="holds a finished run"):
        RewardModelTrainer(raw(tmp_path / "stopped", tiny_model)).train()


def test_given_pairs_and_given_held_out_data(tmp_path: Path, tiny_model: Path, tiny_model_plain: Path) -> None:
    train = runs.write_rows(tmp_path / "pairs.jsonl", runs.PAIRS)
    test = runs.write_rows(
        tmp_path / "test.jsonl", [*runs.PAIRS[:2], {"prompt": "New", "chosen": "Yes, sir.", "rejected": "no"}]
    )
    plain = raw(tmp_path, tiny_model_plain, train__max_steps=2, evaluation={"dataset": str(test), "every": 1})
    plain = {k: v for k, v in plain.items() if k not in ("rewards", "answers", "held_out")}
    trainer = RewardModelTrainer({**plain, "datasets": [str(train)]})
    result = trainer.train()
    assert result.metrics["eval_pairs"] == 1.0
    assert any("2 of 3 prompts are trained on" in note for note in trainer.notes)
    assert len(runs.logged(tmp_path / "out", "eval_rewards/margins")) == 2
    ids = trainer._train_rows().dataset[0]["chosen_ids"]
    assert trainer.tokenizer.decode(ids) == "Say 0\nYes 0, sir."  # as PPO writes prompt and answer without a template
    reward = get_reward_function("reward_model", path=str(tmp_path / "out"))
    assert reward.compute("Yes", prompt="New\n") == pytest.approx(trainer.score(["Yes"], ["New"])[0], abs=1e-6)
    with pytest.raises(ValidationError, match="every held-out prompt is trained on"):
        RewardModelTrainer({**plain, "datasets": [str(test)], "output_dir": str(tmp_path / "b")}).train()
    with pytest.raises(ConfigurationError, match="writes none"):
        trainer.generate("x")


def test_what_is_no_start_for_a_reward_model_is_refused(tmp_path: Path) -> None:
    import helpers

    two = helpers.save_tiny_reward_model(tmp_path / "two", labels=2)
    with pytest.raises(ConfigurationError, match="a classifier with 2 outputs"):
        RewardModelTrainer(raw(tmp_path, two)).train()
    (two / "reward_model.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is damaged"):
        RewardModelLoader().load(two)


# ---- use ---------------------------------------------------------------------------------------------------------


def test_best_of_n_takes_the_highest_score() -> None:
    words = get_reward_function("length", min_length=4, max_length=4)
    found = best_of_n(["p", "q"], [["a", "a b c d", "b c d e"], ["x y"]], words)
    assert [(b.index, b.text) for b in found] == [(1, "a b c d"), (0, "x y")]
    assert found[0].scores[1] == 1.0
    composite = build_rewards([RewardConfig(type="exact_match")])
    assert best_of_n(["p"], [["1", "2"]], composite, {"reference": ["2"]})[0].index == 1
    with pytest.raises(ValidationError, match="2 prompts and 1 lists"):
        best_of_n(["p", "q"], [["a"]], words)
    with pytest.raises(ValidationError, match="prompt 0 has no answer"):
        best_of_n(["p"], [[]], words)


def test_it_stands_among_other_rewards_and_in_trls_place(tmp_path: Path) -> None:
    import helpers
    from aligntune.rewards import CompositeReward

    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    model = TRLCompatibleRewardModel(str(folder))
    composite = CompositeReward([model, get_reward_function("length", min_length=1)], [1.0, 0.5])
    total = composite.score_batch(["yes"], {"prompt": [user("p")]}).total[0]
    assert total == pytest.approx(model([user("p")], ["yes"])[0] + 0.5)
    assert model.__name__ == "reward_model"
    assert model.processing_class.padding_side == "right"


# ---- command line --------------------------------------------------------------------------------------------------


def test_the_command_trains_and_refuses(cli: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> None:
    import yaml

    file = tmp_path / "rm.yaml"
    file.write_text(yaml.safe_dump(raw(tmp_path, tiny_model)))
    dry = cli("rewards", "train", file, "--dry-run", "--json")
    assert dry.code == 0
    assert dry.json["library_class"] == "trl:RewardTrainer"
    assert not (tmp_path / "out").exists()
    assert cli("rewards", "train", file, "--dry-run", "--resume").code == 2
    wrong = cli("rewards", "train", file, "pairs.treshold=1")
    assert wrong.code == 2
    assert "did you mean 'threshold'" in wrong.err
    assert cli("rewards", "train").code == 2
    done = cli("rewards", "train", file, "train.max_steps=1", "--json")
    assert done.code == 0
    assert done.json["total_steps"] == 1
    assert cli("rewards", "train", file).code == 2


def test_all_pairs_of_a_small_group_are_found_by_brute_force() -> None:
    data = scored(4, 6)
    expected = {
        (prompt_key(a.prompt), *((a.text, b.text) if a.score > b.score else (b.text, a.text)))
        for a, b in itertools.combinations(data.texts, 2)
        if prompt_key(a.prompt) == prompt_key(b.prompt) and abs(a.score - b.score) > 0.5
    }
    made = data.make_pairs(threshold=0.5, per_prompt=None)
    assert {(prompt_key(p.prompt), p.chosen, p.rejected) for p in made.pairs} == expected
    assert isinstance(made[0], Pair)
    assert len(made) == len(expected)


def test_the_page_lists_every_key_of_reward_models(repo: Path) -> None:
    from dataclasses import fields

    from aligntune.core.config.root import RLConfig
    from aligntune.rewards.training.config import PairConfig, RewardModelConfig
    from aligntune.rewards.training.objectives import OBJECTIVES

    page = (repo / "docs/reward-models.md").read_text(encoding="utf-8")
    own = {f.name for f in fields(RewardModelConfig)} - {f.name for f in fields(RLConfig)}  # type: ignore[arg-type]
    keys = {f"pairs.{f.name}" for f in fields(PairConfig)} | (own - {"objective", "pairs"})  # type: ignore[arg-type]
    keys |= {f"objective.{f.name}" for o in OBJECTIVES.values() for f in fields(o)}  # type: ignore[arg-type]
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []
