"""Validation of reward models: the numbers against brute force on constructed data, and what the verdict catches."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.stats import Interval
from aligntune.rewards import RewardFunction
from aligntune.rewards.training import RewardModelDataset, RewardModelValidator
from aligntune.rewards.training import measures as m
from aligntune.rewards.training.dataset import Pair, ScoredText, prompt_key
from aligntune.rewards.training.report import Thresholds, check


class Scores(RewardFunction):
    """A stand-in for a reward model: any function of the text."""

    name = "stand_in"
    columns = frozenset({"prompt"})

    def __init__(self, fn: Callable[[str], float]) -> None:
        super().__init__()
        self.fn = fn

    def compute(self, text: str, **kwargs: Any) -> float:
        return self.fn(text)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def quality(text: str) -> float:
    """What makes an answer of `pairs` good: the digit that it begins with, less what is odd about the rest."""
    digit = float(text[0]) if text[:1].isdigit() else -3.0
    body = text[1:]
    return digit - 3.0 * (set(body) - {"x"} != set()) - 2.0 * (len(body) < 30)


def pairs(count: int = 120, *, longer_wins: float = 0.5, seed: int = 0) -> list[Pair]:
    """Pairs of which the better one begins with the larger digit, and is the longer one in a share of them."""
    r = random.Random(seed)
    made = []
    for i in range(count):
        low, high = sorted(r.sample(range(10), 2))
        lengths = sorted(r.sample(range(40, 140), 2))
        if r.random() >= longer_wins:
            lengths.reverse()
        made.append(Pair(user(f"p{i}"), f"{high}{'x' * lengths[1]}", f"{low}{'x' * lengths[0]}"))
    return made


# ---- numbers -----------------------------------------------------------------------------------------------------


def brute_kendall(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    both = [
        ((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in itertools.combinations(zip(xs, ys, strict=True), 2)
    ]
    left, right = sum(a != 0 for a, _ in both), sum(b != 0 for _, b in both)
    return sum(a * b for a, b in both) / math.sqrt(left * right) if left and right else None


def brute_ranks(values: Sequence[float]) -> list[float]:
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def test_rank_correlations_agree_with_brute_force() -> None:
    import numpy as np

    r = random.Random(0)
    for _ in range(60):
        n = r.randint(2, 15)
        xs, ys = [r.randint(0, 6) / 2 for _ in range(n)], [r.randint(0, 6) - 3.0 for _ in range(n)]
        expected = brute_kendall(xs, ys)
        found = m.kendall(xs, ys)
        assert found == (None if expected is None else pytest.approx(expected))
        assert m.ranks(xs) == brute_ranks(xs)
        if expected is not None:
            assert m.pearson(xs, ys) == pytest.approx(np.corrcoef(xs, ys)[0, 1], abs=1e-12)
            assert m.spearman(xs, ys) == pytest.approx(np.corrcoef(brute_ranks(xs), brute_ranks(ys))[0, 1], abs=1e-12)
        else:
            assert None in (m.pearson(xs, ys), m.spearman(xs, ys))
    assert m.pearson([1.0], [1.0]) is None


def test_best_of_n_agrees_with_all_draws() -> None:
    r = random.Random(1)
    for _ in range(30):
        total = r.randint(2, 6)
        n = r.randint(1, total)
        scores, values = [float(r.randint(0, 3)) for _ in range(total)], [r.random() for _ in range(total)]
        outcomes = []
        for draw in itertools.combinations(range(total), n):
            top = max(scores[i] for i in draw)
            outcomes.append([values[i] for i in draw if scores[i] == top])
        expected = sum(sum(o) / len(o) for o in outcomes) / len(outcomes)
        assert m.best_of(scores, values, n) == pytest.approx(expected)


def test_calibration_against_plain_sums() -> None:
    gaps = [2.0, 1.0, -1.0, 0.1, 0.0, -3.0, 4.0, 0.5]
    keys = [str(i) for i in range(8)]
    p = [1 / (1 + math.exp(-g)) for g in gaps]
    assert m.brier(gaps, keys).estimate == pytest.approx(sum((1 - x) ** 2 for x in p) / 8)
    sure = [max(x, 1 - x) for x in p]
    right = [0.5 if g == 0 else float(g > 0) for g in gaps]
    error = 0.0
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        part = [i for i in range(8) if low <= sure[i] < low + 0.1]
        if part:
            error += abs(sum(right[i] - sure[i] for i in part)) / 8
    assert m.calibration_error(gaps) == pytest.approx(error)
    assert sum(cell["pairs"] for cell in m.reliability(gaps)) == 8
    fitted = m.temperature(gaps)
    assert fitted is not None

    def likelihood(t: float) -> float:
        return sum(math.log(1 / (1 + math.exp(-g / t))) for g in gaps)

    assert likelihood(fitted) >= max(likelihood(fitted * f) for f in (0.9, 0.99, 1.01, 1.1))
    assert m.temperature([1.0, 2.0]) is None  # every pair is right: the sharper, the better
    assert m.temperature([-1.0, 0.5]) is None


def test_intervals_take_a_prompt_as_one_draw() -> None:
    r = random.Random(2)
    xs = [r.gauss(0, 1) for _ in range(200)]
    ys = [x + r.gauss(0, 1) for x in xs]
    keys = [str(i) for i in range(200)]
    one = m.correlation_interval(xs, ys, keys)
    assert one is not None
    assert one.low is not None
    assert one.high is not None
    z, half = math.atanh(one.estimate), 1.96 / math.sqrt(197)
    assert (one.low, one.high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=0.03)
    four = m.correlation_interval(xs * 4, ys * 4, keys * 4)  # four copies tell nothing new
    assert four is not None
    assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=0.01)
    slope = m.slope_interval(xs, ys, keys)
    assert slope is not None
    assert slope.estimate == pytest.approx(m.pearson(xs, ys) * math.sqrt(_ss(ys) / _ss(xs)))  # type: ignore[operator]
    wins = [float(i % 3 > 0) for i in range(60)]
    assert m.proportion(wins, keys[:60]).method == "wilson"
    assert m.proportion(wins * 2, keys[:60] * 2).low == pytest.approx(m.proportion(wins, keys[:60]).low, abs=0.02)
    assert m.proportion([1.0] * 10, ["a", "b"] * 5).low == pytest.approx(m.wilson_interval(2, 2).low)
    assert m.correlation_interval([1.0] * 5, ys[:5], keys[:5]) is None


def _ss(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values)


def test_a_check_has_three_ends() -> None:
    def status(low: float | None, high: float | None, side: Any = "above") -> str:
        return check("x", Interval(0.5, low, high, 9, "t"), side, 0.5, "is so").status

    assert [status(0.51, 0.6), status(0.4, 0.6), status(0.3, 0.5), status(None, None)] == [
        "pass",
        "undecided",
        "fail",
        "undecided",
    ]
    assert [status(0.51, 0.6, "below"), status(0.4, 0.49, "below")] == ["fail", "pass"]


# ---- the report ----------------------------------------------------------------------------------------------------


def test_a_good_model_passes_and_its_numbers_are_right() -> None:
    data = RewardModelDataset(pairs=pairs())
    wrong = {f"p{i}" for i in range(0, 120, 10)}  # every tenth prompt is ranked the wrong way round
    texts = {
        t: prompt_key(p.prompt) in {prompt_key(w) for w in wrong} for p in data.pairs for t in (p.chosen, p.rejected)
    }
    report = RewardModelValidator(Scores(lambda t: -quality(t) if texts.get(t) else quality(t))).validate(data)
    values = report.values
    expected = sum((quality(p.chosen) > quality(p.rejected)) != texts[p.chosen] for p in data.pairs)
    assert values["pair_accuracy"].estimate == pytest.approx(expected / 120)
    assert values["pair_accuracy"].low == pytest.approx(m.wilson_interval(expected, 120).low)
    longer = sum(len(p.chosen) > len(p.rejected) for p in data.pairs)
    assert values["length_baseline"].estimate == pytest.approx(max(longer, 120 - longer) / 120)
    assert values["over_length"].estimate == pytest.approx(expected / 120 - max(longer, 120 - longer) / 120)
    matched = [
        p for p in data.pairs if abs(len(p.chosen) - len(p.rejected)) <= 0.1 * max(len(p.chosen), len(p.rejected))
    ]
    assert values["pair_accuracy_matched"].n == len(matched)
    assert [cell["accuracy"].n for cell in values["pair_accuracy_by_margin"]] == [30] * 4
    assert values["spread"]["flat_prompts"].estimate == 0
    assert values["correlation"] == {}
    sound = RewardModelValidator(Scores(quality)).validate(data)
    assert sound.status == "pass", sound.verdict
    assert sound.verdict.startswith("PASS")
    assert sound.values["perturbations"]["empty"].estimate == 1.0
    assert "does not say what it was trained on" in sound.verdict
    json.dumps(sound.to_dict())
    assert "pair_accuracy" in sound.text()


def test_a_planted_length_bias_is_caught() -> None:
    data = RewardModelDataset(pairs=pairs(longer_wins=0.8))
    report = RewardModelValidator(Scores(lambda t: len(t) / 50)).validate(data)
    assert report.values["pair_accuracy"].low > 0.5  # it looks like a good model
    assert report.values["length"]["difference_correlation"].estimate == pytest.approx(1.0)
    failed = {c.name for c in report.checks if c.status == "fail"}
    assert {
        "|correlation of score and length differences|",
        "win rate against fluff",
        "win rate against repeated",
    } <= failed
    gain = next(c for c in report.checks if c.name == "gain over length")
    assert gain.status != "pass"
    assert report.status == "fail"
    assert not report.passed
    assert "does not score length: refuted" in report.verdict
    assert "asked for: below 0.5" in report.verdict


def test_a_constant_model_and_a_coin_do_not_pass() -> None:
    data = RewardModelDataset(pairs=pairs())
    flat = RewardModelValidator(Scores(lambda t: 1.0)).validate(data)
    assert flat.values["pair_accuracy"].estimate == 0.5
    assert flat.values["spread"]["flat_prompts"].estimate == 1.0
    assert {c.name for c in flat.checks if c.status == "fail"} >= {"share of flat prompts"}
    coin = random.Random(3)
    found = RewardModelValidator(Scores(lambda t: coin.random())).validate(data)
    assert found.status != "pass"
    strict = Thresholds(accuracy=1.0)
    assert RewardModelValidator(Scores(quality), thresholds=strict).validate(data).status == "fail"
    with pytest.raises(ValidationError, match="the model's score of an answer is None"):
        RewardModelValidator(Scores(lambda t: None)).validate(data)  # type: ignore[arg-type, return-value]


def test_teachers_people_and_best_of_n() -> None:
    r = random.Random(4)
    texts = []
    for i in range(40):
        for j in range(4):
            text = f"{r.randint(0, 9)}{'x' * r.randint(40, 60)}{'' if j else 'y'}"
            value = quality(text)
            parts = {"teacher": value, "other": r.random(), "independent": 2 * value}
            texts.append(ScoredText(user(f"p{i}"), text, value, parts, "", -value))
    data = RewardModelDataset(texts)
    report = RewardModelValidator(Scores(quality), independent=["independent"]).validate(data)
    table = report.values["correlation"]
    assert table["teacher"]["spearman"].estimate == pytest.approx(1.0)
    assert table["people"]["kendall"].estimate == pytest.approx(-1.0)
    assert abs(table["other"]["pearson"].estimate) < 0.3
    assert report.values["pair_accuracy"].estimate == 0.0  # people's scores make the pairs, and they disagree
    gain = report.values["best_of_n"]["independent/4"]
    groups = [[2 * t.score for t in texts[4 * i : 4 * i + 4]] for i in range(40)]
    assert gain["gain"].estimate == pytest.approx(sum(max(g) - sum(g) / 4 for g in groups) / 40)
    assert gain["possible"].estimate == pytest.approx(gain["gain"].estimate)
    taught = RewardModelDataset([ScoredText(t.prompt, t.text, t.score, t.components) for t in texts])
    told = RewardModelValidator(Scores(quality)).validate(taught)
    assert told.values["pair_accuracy"].estimate == 1.0
    assert "nothing here says what people prefer" in told.verdict
    assert all(c.advisory for c in told.checks if c.name.startswith("win rate"))


def test_prompts_that_were_trained_on_are_left_out(tmp_path: Path) -> None:
    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    rows = [{"prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in pairs(12)]
    seen = [prompt_key(row["prompt"]) for row in rows[:5]]
    (folder / "training_prompts.txt").write_text("".join(f"{key}\n" for key in seen))
    report = RewardModelValidator(folder).validate(runs.write_rows(tmp_path / "pairs.jsonl", rows))
    assert report.values["prompts"] == 7
    assert "5 of 12 prompts were trained on, and are left out" in report.verdict
    with pytest.raises(ValidationError, match="every prompt of the given data was trained on"):
        RewardModelValidator(folder).validate(
            RewardModelDataset(pairs=pairs(3)), seen={prompt_key(f"p{i}") for i in range(3)}
        )


def test_the_command_gives_a_verdict_and_an_exit_code(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    rows = [{"prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in pairs(12)]
    data = runs.write_rows(tmp_path / "pairs.jsonl", rows)
    done = cli("rewards", "validate", folder, "--data", data, "--reward", "length", "--json")
    assert done.code == 1  # an untrained model does not pass
    assert done.json["status"] in ("fail", "undecided")
    assert set(done.json["values"]["correlation"]) == {"total", "length"}
    assert "UNDECIDED" in cli("rewards", "validate", folder, "--data", data).out or done.json["status"] == "fail"
    answers = runs.write_rows(tmp_path / "answers.jsonl", [{"prompt": "p", "tries": ["a b", "c"]}] * 4)
    missing = cli("rewards", "validate", folder, "--data", answers, "--answers", "tries")
    assert missing.code == 2
    assert "nothing scores its answers" in missing.err
    assert cli("rewards", "validate", folder, "--data", answers, "--human", "x").code == 2
    assert cli("rewards", "validate", folder, "--data", tmp_path / "gone.jsonl").code == 2
    assert cli("rewards", "validate", tmp_path / "gone", "--data", data).code == 2
    assert cli("rewards", "validate", folder).code == 2


def test_a_scorer_needs_no_teacher_where_people_or_pairs_label(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    rows = [{"prompt": p.prompt[0]["content"], "chosen": p.chosen, "rejected": p.rejected} for p in pairs(6)]
    data = runs.write_rows(tmp_path / "pairs.jsonl", rows)
    done = cli("rewards", "validate", folder, "--data", data, "--scorer", "length", "--json")
    assert set(done.json["values"]["correlation"]) == {"independent length"}
    rated = [{"prompt": f"p {i}", "tries": ["a b", "c", "d e f"], "by": [1, 3, 2]} for i in range(6)]
    answers = runs.write_rows(tmp_path / "answers.jsonl", rated)
    asked = ("rewards", "validate", folder, "--data", answers, "--answers", "tries", "--scorer", "length")
    assert set(cli(*asked, "--human", "by", "--json").json["values"]["correlation"]) == {"independent length", "people"}
    unlabelled = cli(*asked)
    assert unlabelled.code == 2
    assert "add --human COLUMN" in unlabelled.err


def test_teachers_are_composed_as_in_training(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    rows = [{"prompt": f"p {i}", "tries": ["#### 1", "1", "#### 2"], "reference": "1"} for i in range(6)]
    data = runs.write_rows(tmp_path / "answers.jsonl", rows)
    rewards = [{"type": "math_correctness"}, {"type": "answer_format", "params": {"style": "hash"}}]
    asked = ("rewards", "validate", folder, "--data", data, "--answers", "tries", "--json")

    def margins(record: dict[str, Any]) -> set[float]:
        (folder / "reward_model.json").write_text(json.dumps(record))
        return {q[end] for q in cli(*asked).json["values"]["pair_accuracy_by_margin"] for end in ("low", "high")}

    assert margins({"rewards": rewards}) == {1.0}  # totals 2, 1, 1
    gated = {"mode": "gated", "gates": {"math_correctness": 1}}
    assert margins({"rewards": rewards, "composition": gated}) == {1.0, 2.0}  # totals 2, 1, 0


def test_a_wrong_path_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no folder"):
        RewardModelValidator("./gone").validate(RewardModelDataset(pairs=pairs(3)))
