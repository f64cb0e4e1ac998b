"""Rewards made of another reward: rescaled, gated, length controlled, logged alone."""

from __future__ import annotations

import math
import pickle
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligntune.core.config import RewardConfig
from aligntune.errors import ConfigurationError, RewardError
from aligntune.rewards import build_rewards, get_reward_function
from aligntune.rewards.base import REWARDS, RewardFunction, reward_class
from aligntune.rewards.builtin.wrappers import inner_reward

INF = math.inf


def column(name: str, range: tuple[float, float] = (-INF, INF)) -> RewardFunction:
    return reward_class(lambda text, **columns: columns[name], name, range=range)()


def test_rescaled_maps_the_declared_range() -> None:
    made = get_reward_function("rescaled", reward=column("a", (-1, 3)))
    assert made.range == (0, 1)
    assert made.batch(["x"] * 4, {"a": [-1, 0, 3, None]}) == [0, 0.25, 1, None]
    assert made.compute("x", a=1) == 0.5
    turned = get_reward_function("rescaled", reward=column("a", (-1, 3)), to=[1, 0])
    assert turned.batch(["x"] * 3, {"a": [-1, 0, 3]}) == [1, 0.75, 0]
    assert turned.range == (0, 1)


def test_rescaled_by_mean_and_deviation() -> None:
    made = get_reward_function("rescaled", reward=column("a"), mean=2.0, std=4.0)
    assert made.range == (-INF, INF)
    assert made.batch(["x"] * 2, {"a": [2, 10]}) == [0, 2]


def test_gated_asks_the_inner_reward_only_behind_the_gate() -> None:
    asked: list[str] = []

    def inner(text: str, a: float) -> float:
        asked.append(text)
        if text == "bad":
            raise ValueError("no")
        return a

    inside = reward_class(inner, "inner", range=(-1, 2))()
    made = get_reward_function("gated", reward=inside, gate=column("g", (0, 1)), threshold=0.5, below=-3)
    assert made.range == (-3, 2)
    found = made.batch(["p", "q", "r", "s"], {"g": [1, 0, None, 0.5], "a": [2, 1, 1, -1]})
    assert found == [2, -3, None, -1]
    assert asked == ["p", "s"]
    columns = {"g": [0, 1, 1], "a": [0, 1, 1]}
    with pytest.raises(RewardError, match=r"'inner' raised ValueError: no \(row 2\)") as caught:
        made.batch(["p", "q", "bad"], columns)
    assert caught.value.context["row"] == 2
    failures: list[RewardError] = []
    assert made.batch(["bad", "q", "bad"], columns, failures=failures) == [-3, 1, None]
    assert failures[0].context["row"] == 2


def controlled(scores: list[float], texts: list[str], prompts: list[str]) -> list[float]:
    """Ordinary least squares with a mean for each prompt."""
    xs = [len(t.split()) for t in texts]
    group = {p: [i for i, q in enumerate(prompts) if q == p] for p in prompts}
    x = [xs[i] - statistics.fmean(xs[j] for j in group[p]) for i, p in enumerate(prompts)]
    y = [scores[i] - statistics.fmean(scores[j] for j in group[p]) for i, p in enumerate(prompts)]
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    return [s - slope * a for s, a in zip(scores, x, strict=True)]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 30)), min_size=8, max_size=8))
def test_length_control_against_the_formula(rows: list[tuple[float, int]]) -> None:
    scores, texts = [s for s, _ in rows], ["w " * n for _, n in rows]
    prompts = ["p"] * 4 + ["q"] * 4
    made = get_reward_function("length_controlled", reward=column("a"), least_rows=3)
    found = made.batch(texts, {"a": scores, "prompt": prompts})
    lengths = [n for _, n in rows]
    if len(set(lengths[:4])) == len(set(lengths[4:])) == 1:
        assert found == scores
    else:
        assert found == pytest.approx(controlled(scores, texts, prompts), abs=1e-9)


def test_length_control_by_hand() -> None:
    made = get_reward_function("length_controlled", reward=column("a"), least_rows=3)
    texts = ["w " * n for n in (10, 20, 30)]
    assert made.batch(texts, {"a": [1, 2, 3], "prompt": ["p"] * 3}) == pytest.approx([2, 2, 2])
    assert made.batch(texts, {"a": [1, 2, 3], "prompt": ["p", "q", "r"]}) == pytest.approx([2, 2, 2])  # one group
    mixed = made.batch([*texts, "w"], {"a": [1, None, 3, 9], "prompt": ["p", "p", "p", "q"]})
    assert mixed == [pytest.approx(2), None, pytest.approx(2), 9]
    ids = {"completion_ids": [[1] * n for n in (3, 1, 2)]}
    by_tokens = get_reward_function("length_controlled", reward=column("a"), unit="tokens", least_rows=3)
    assert by_tokens.batch(["a", "b", "c"], {"a": [6, 2, 4], **ids}) == pytest.approx([4, 4, 4])


def test_length_control_leaves_what_it_cannot_estimate() -> None:
    config = RewardConfig(type="length_controlled", params={"reward": "length"})
    composite = build_rewards([config])
    scores = composite.score_batch(["one two", "one"])
    assert scores.stats["length_controlled/too_few"] == 1
    assert scores.raw["length_controlled"] == composite.components[0].reward.inner.batch(["one two", "one"])
    made = build_rewards([RewardConfig(type="length_controlled", params={"reward": "length", "least_rows": 3})])
    assert made.score_batch(["one"] * 4).stats["length_controlled/no_slope"] == 1
    assert made.components[0].reward.whole


def test_metric_only_never_counts_and_is_logged_by_the_inner_name() -> None:
    configs = [RewardConfig(type="metric_only", params={"reward": "repetition"}), RewardConfig(type="brevity")]
    made = build_rewards(configs)
    assert [(c.name, c.weight) for c in made.components] == [("repetition", 0), ("brevity", 1)]
    scores = made.score_batch(["a b c"])
    assert scores.total == scores.components["brevity"]
    assert "rewards/repetition/mean" in made.summary(scores)
    with pytest.raises(ConfigurationError, match="type metric_only has the weight 2, and never counts"):
        RewardConfig(type="metric_only", weight=2)
    with pytest.raises(ConfigurationError, match="every reward has the weight 0"):
        build_rewards(configs[:1])


def test_columns_devices_and_judges_go_through() -> None:
    class Asks(RewardFunction):
        """A judged reward that remembers what it was given."""

        name, kind, columns = "test_asks", "judge", frozenset({"rubric"})

        def __init__(self, *, judge: Any = None) -> None:
            self.judge, self.placed = judge, ""

        def place(self, device: str) -> None:
            self.placed = device

        def compute(self, text: str, **columns: Any) -> float:
            return 0.5

    REWARDS.add("test_asks", Asks)
    try:
        inner = {"type": "rescaled", "params": {"reward": {"type": "test_asks"}, "mean": 0, "std": 2}}
        config = RewardConfig(type="gated", params={"reward": inner, "gate": "math_correctness"})
        made = build_rewards([config, RewardConfig(type="length")], judge="the judge")
        made.place("cuda")
        asks = made.components[0].reward.inner.inner
        assert (asks.judge, asks.placed) == ("the judge", "cuda")
        assert made.required_columns == {"rubric", "reference"}
        assert made.read_columns(["rubric", "answer", "other"]) == ["answer", "rubric"]
        assert made.components[0].reward.concurrent
        own = build_rewards([RewardConfig(type="test_asks", params={"judge": "mine"})], judge="the judge")
        assert own.components[0].reward.judge == "mine"
        columns = {"rubric": ["r", "r"], "answer": ["7", "8"]}
        assert made.components[0].reward.batch(["#### 7", "#### 7"], columns) == [0.25, 0.0]
        assert (
            pickle.loads(pickle.dumps(get_reward_function("gated", reward="length", gate="code_syntax"))).threshold == 1
        )
    finally:
        REWARDS.remove("test_asks")


@pytest.mark.parametrize(
    ("kind", "params", "said"),
    [
        ("rescaled", {}, "'rescaled' needs an inner reward under `reward`"),
        ("rescaled", {"reward": {"params": {}}}, "needs an inner reward"),
        ("rescaled", {"reward": {"type": "lenght"}}, "'rescaled', reward: unknown reward 'lenght'"),
        ("rescaled", {"reward": {"type": "length", "parms": {}}}, "`reward` has no key 'parms'"),
        ("rescaled", {"reward": {"type": "length", "weight": 2}}, "`reward.weight` belongs to the wrapper's own entry"),
        ("rescaled", {"reward": {"type": "length", "params": {"longest": 2}}}, "has no parameter 'longest'"),
        ("rescaled", {"reward": {"type": "length", "params": [1]}}, "`reward.params` is no mapping"),
        ("rescaled", {"reward": {"type": "length", "deadline": -1}}, "`reward.deadline` is -1"),
        ("rescaled", {"reward": "length"}, "changes nothing"),
        ("rescaled", {"reward": "length", "to": [1, 1]}, "`to` is"),
        ("rescaled", {"reward": "length", "mean": 1.0}, "`mean` and `std` together"),
        ("rescaled", {"reward": "length", "mean": 1.0, "std": 0}, "`std` is 0"),
        ("gated", {"reward": "length"}, "needs an inner reward under `gate`"),
        ("gated", {"reward": "length", "gate": "code_syntax", "threshold": 2}, "misses"),
        ("length_controlled", {"reward": "length", "unit": "lines"}, "unit is 'lines'"),
        ("length_controlled", {"reward": "length", "least_rows": 2}, "least_rows is 2"),
        ("metric_only", {"reward": "length", "most": 2}, "has no parameter 'most'"),
    ],
)
def test_wrong_specifications_are_refused(kind: str, params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_rewards([RewardConfig(type=kind, params=params), RewardConfig(type="brevity")])


def test_a_range_is_needed_to_map_it() -> None:
    with pytest.raises(ConfigurationError, match="'a' declares no finite range to map"):
        get_reward_function("rescaled", reward=column("a"))
    assert inner_reward("length", "x").name == "length"
