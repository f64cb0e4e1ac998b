"""Composition: weights, thresholds, normalisation, missing scores, failures, statistics, and the bridge to TRL."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import pytest

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards import Component, CompositeReward, RewardConfig, TRLReward, build_rewards
from aligntune.rewards.adapters import completion_text
from aligntune.rewards.base import reward_class


def column(name: str, source: str | None = None, range=(-math.inf, math.inf)):
    """A reward that returns its column's value."""
    fn = lambda text, **columns: columns[source or name]  # noqa: E731
    return reward_class(fn, name, range=range)()


def test_the_weighted_sum() -> None:
    composite = CompositeReward([column("a"), column("b")], [0.3, -2.0])
    scores = composite.score_batch(["x", "y"], {"a": [1, 2], "b": [0, 0.5]})
    assert scores.total == pytest.approx([0.3, -0.4])
    assert scores.components == scores.raw == {"a": [1, 2], "b": [0, 0.5]}
    assert scores.stats == {"rows": 2, "rows_dropped": 0}
    assert composite.compute("x", a=1, b=0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("none", "total"),
    [("drop", [3.0, None, None, None]), ("renormalise", [3.0, 3.0, 6.0, None]), ("zero", [3.0, 1.0, 4.0, 0.0])],
)
def test_what_a_missing_score_does(none: str, total: list) -> None:
    composite = CompositeReward([column("a"), column("b")], [1.0, 2.0], none=none)
    scores = composite.score_batch(["x"] * 4, {"a": [1, 1, None, None], "b": [1, None, 2, None]})
    if none == "zero":
        total = [3.0, 1.0, 4.0, None]  # a row without any score has no total under any policy
    assert scores.total == total
    assert scores.stats["a/none"] == 2


def test_weight_zero_is_scored_and_changes_nothing() -> None:
    scores = CompositeReward([column("a"), column("b")], [1, 0]).score_batch(["x", "y"], {"a": [1, 2], "b": [None, 9]})
    assert scores.total == [1, 2]
    assert scores.components["b"] == [None, 9]


def test_threshold_and_normalisation() -> None:
    bounded = column("b", range=(-1, 3))
    composite = CompositeReward(
        [Component("t", column("a"), threshold=2), Component("n", bounded, weight=10, normalization="minmax")]
    )
    scores = composite.score_batch(["x"] * 3, {"a": [1.9, 2, None], "b": [-1, 0, 3]})
    assert scores.components == {"t": [0, 1, None], "n": [0, 0.25, 1]}
    assert scores.raw == {"t": [1.9, 2, None], "n": [-1, 0, 3]}
    assert scores.total == [0, 3.5, None]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"normalization": "minmax"}, "declares no finite range"),
        ({"weight": math.nan}, "has the weight nan"),
        ({"reward": column("b", range=(0, 1)), "threshold": 0.0}, "threshold 0, which all of its range .* reaches"),
        ({"reward": column("b", range=(0, 1)), "threshold": 1.1}, "threshold 1.1, which all of its range .* misses"),
        (
            {"reward": column("b", range=(0, 1)), "threshold": 1, "normalization": "minmax"},
            "a threshold and a normalization",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings: dict, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        Component(**{"name": "b", "reward": column("b"), **settings})


def test_names_must_differ() -> None:
    with pytest.raises(ConfigurationError, match="two rewards are named 'length'"):
        build_rewards([RewardConfig(type="length"), RewardConfig(type="length", params={"target_length": 5})])
    with pytest.raises(ConfigurationError, match="a reward is named 'total'"):
        build_rewards([RewardConfig(type="length", name="total")])
    both = build_rewards(
        [RewardConfig(type="length"), RewardConfig(type="length", name="short", params={"max_length": 20})]
    )
    assert [c.name for c in both.components] == ["length", "short"]


def test_empty_and_odd_composites() -> None:
    with pytest.raises(ConfigurationError, match="there is no reward"):
        CompositeReward([])
    with pytest.raises(ConfigurationError, match="1 weights for 2 rewards"):
        CompositeReward([column("a"), column("b")], [1.0])
    with pytest.raises(ConfigurationError, match="unknown policy none='skip'"):
        CompositeReward([column("a")], none="skip")  # type: ignore[arg-type]


def test_failures_stop_the_run_or_are_counted() -> None:
    def picky(text: str) -> float:
        if text == "bad":
            raise ValueError("no")
        return 1.0

    picky_reward = reward_class(picky, "picky")()
    with pytest.raises(RewardError, match=r"reward 'picky' raised ValueError: no \(row 1\)"):
        CompositeReward([picky_reward]).score_batch(["ok", "bad"])
    skipping = CompositeReward([Component("picky", picky_reward, on_error="skip"), column("a")])
    scores = skipping.score_batch(["ok", "bad"], {"a": [1, 1]})
    assert scores.total == [2.0, None]
    assert scores.stats == {"picky/errors": 1, "rows": 2, "rows_dropped": 1}


def test_a_failure_that_is_skipped_is_told_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    picky = reward_class(lambda text: 1 / len(text), "picky")()
    other = reward_class(lambda text: {}[text], "other")()
    composite = CompositeReward(
        [Component("picky", picky, on_error="skip"), Component("other", other, on_error="skip")]
    )
    with caplog.at_level("WARNING", logger="aligntune"):
        for _ in range(3):
            composite.score_batch(["", "a"])
    assert [r.getMessage().partition(";")[0] for r in caplog.records] == [
        "reward 'picky' raised ZeroDivisionError: division by zero (row 0)",
        "reward 'other' raised KeyError: '' (row 0)",
    ]
    assert "rewards/picky/errors" in caplog.text


def test_columns_are_checked_first() -> None:
    composite = build_rewards([RewardConfig(type="math_correctness"), RewardConfig(type="length")])
    assert composite.required_columns == {"reference"}
    with pytest.raises(ValidationError, match="reward 'math_correctness' needs the column reference") as e:
        composite.score_batch(["5"], {"question": ["?"]})
    assert "the data have: question" in e.value.hint
    with pytest.raises(ValidationError, match="column 'answer' has 2 values for 1 texts"):
        composite.score_batch(["5"], {"answer": ["5", "6"]})
    composite.check_columns(["solution"])


def test_the_configuration_reaches_the_reward() -> None:
    made = build_rewards([
        RewardConfig(type="math_correctness", deadline=1.5, weight=2),
        RewardConfig(type="length", deadline=3, params={"max_length": 20}, threshold=0.5, on_error="skip"),
    ]).components  # fmt: skip
    assert made[0].reward.params == {"deadline": 1.5}
    assert (made[0].weight, made[0].reward.deadline) == (2, None)
    assert (made[1].reward.deadline, made[1].reward.params, made[1].threshold, made[1].on_error) == (
        3, {"max_length": 20}, 0.5, "skip",
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="two deadlines"):
        build_rewards([RewardConfig(type="regex", deadline=1, params={"pattern": "a", "deadline": 2})])


def test_the_summary_against_the_formulas() -> None:
    """The simulation of the catalogue in small: an unscaled reward of weight 0.1 holds most of the total's variance."""
    exact, wide = column("exact", range=(0, 1)), column("wide", range=(0, 100))
    composite = CompositeReward([exact, wide], [1.0, 0.1])
    a, b = [0, 1, 1, 0, 1, None], [10, 90, 30, 55, 70, 20]
    scores = composite.score_batch(["x"] * 6, {"exact": a, "wide": b})
    summary = composite.summary(scores, ["p", "p", "p", "q", "q", "q"])
    assert summary["rewards/exact/mean"] == pytest.approx(0.6)
    assert summary["rewards/exact/std"] == pytest.approx(statistics.stdev(a[:5]))
    assert (summary["rewards/wide/min"], summary["rewards/wide/max"]) == (10, 90)
    assert summary["rewards/exact/none"] == pytest.approx(1 / 6)
    assert summary["rewards/exact/at_max"] == pytest.approx(0.6)
    assert summary["rewards/wide/at_max"] == 0
    within = (statistics.variance(b[:3]) + statistics.variance(b[3:])) / 2
    assert summary["rewards/wide/within_group_var"] == pytest.approx(within)
    total = [x + 0.1 * y for x, y in zip(a[:5], b[:5], strict=True)]
    share = 0.1 * statistics.covariance(b[:5], total) / statistics.variance(total)
    assert summary["rewards/wide/share"] == pytest.approx(share)
    assert share > 0.7
    assert summary["rewards/exact/share"] + summary["rewards/wide/share"] == pytest.approx(1)
    assert summary["rewards/rows_dropped"] == 1


def test_a_name_with_a_slash_keeps_its_share_without_a_score() -> None:
    composite = CompositeReward([Component("a/b", column("x")), column("y")])
    scores = composite.score_batch(["t"] * 4, {"x": [1, None, None, 0], "y": [1] * 4})
    assert scores.stats["a/b/none"] == 2
    assert composite.summary(scores)["rewards/a/b/none"] == 0.5


def test_the_summary_leaves_out_what_is_undefined() -> None:
    composite = CompositeReward([column("a")])
    assert composite.summary(composite.score_batch(["x"], {"a": [None]}), ["p"]) == {
        "rewards/a/none": 1,
        "rewards/rows_dropped": 1,
    }
    one = composite.summary(composite.score_batch(["x"], {"a": [2]}), ["p"])
    assert {k: v for k, v in one.items() if "share" in k or "within" in k or "at_" in k} == {}
    assert one["rewards/a/std"] == 0


def test_trl_gets_totals_and_logs() -> None:
    logged: dict[str, float] = {}
    recorded: list = []
    reward = TRLReward(CompositeReward([column("a")], [2.0]), recorder=lambda *args: recorded.append(args))
    assert reward.__name__ == "total"
    prompts = [[{"role": "user", "content": "q"}]] * 2
    completions = [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two"}]]
    totals = reward(
        prompts=prompts, completions=completions, completion_ids=[[1], [2]], a=[1, None],
        trainer_state=SimpleNamespace(global_step=7), log_extra=print, log_metric=logged.__setitem__,
    )  # fmt: skip
    assert totals == [2.0, None]
    assert logged["rewards/a/mean"] == 1
    assert logged["rewards/a/none"] == 0.5
    step, seen_prompts, seen_completions, columns, scores, tokens = recorded[0]
    assert tokens == [1, 1]
    assert (step, seen_prompts, seen_completions, columns) == (7, prompts, completions, {"a": [1, None]})
    assert scores.total == totals


def test_trl_runs_a_batch_function_as_it_would_itself() -> None:
    seen = {}

    def theirs(prompts, completions, completion_ids, log_metric, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions, ids=completion_ids)
        log_metric("mine", 3.0)
        return [float(len(c)) for c in completions]

    logged: dict[str, float] = {}
    reward = TRLReward(CompositeReward([reward_class(theirs, "theirs")()]))
    state = SimpleNamespace(global_step=0)
    totals = reward(["p", "q"], ["ab", "c"], [[1], [2]], logged.__setitem__, tag=["x", "y"], trainer_state=state)
    assert totals == [2, 1]
    assert logged["mine"] == 3.0
    assert seen == {
        "tag": ["x", "y"],
        "trainer_state": state,
        "prompts": ["p", "q"],
        "completions": ["ab", "c"],
        "ids": [[1], [2]],
    }


def test_completion_text() -> None:
    turns = [
        {"role": "assistant", "content": "first"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": None},
    ]
    assert completion_text("a") == "a"
    assert completion_text(turns[:2]) == "first"
    assert completion_text(turns) == ""
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]) == "x"
    assert completion_text([]) == ""
    with pytest.raises(ValidationError, match="neither text nor messages"):
        completion_text([{"role": "user", "content": "x"}])


def watched(steps: list[tuple[int, list[float | None]]], weight: float = 1.0) -> list[str]:
    """What is told while a component `a` gives these scores."""
    told: list[str] = []
    other = Component("b", column("b"), 1.0)
    reward = TRLReward(CompositeReward([Component("a", column("a"), weight), other], none="zero"), tell=told.append)
    for step, scores in steps:
        state = SimpleNamespace(global_step=step)
        reward(
            ["p"] * len(scores), ["x"] * len(scores), a=scores, b=[step, *range(1, len(scores))], trainer_state=state
        )
    return [sentence for sentence in told if "'a'" in sentence]


def test_a_constant_component_is_told_of_once_by_name() -> None:
    assert watched([(s, [0.5, 0.5]) for s in range(19)]) == []
    (told,) = watched([(s, [0.5, 0.5]) for s in range(60)])
    assert "reward 'a' gave every completion of 20 steps in a row the same score (mean 0.5)" in told
    (told,) = watched([(s, [None, None]) for s in range(60)])
    assert "reward 'a' gave no score in 20 steps in a row" in told
    assert len(watched([(s, [0.0]) for s in range(0, 60, 4)])) == 1  # one generation for several steps


def test_the_first_batch_without_any_reward_is_told_of() -> None:
    told: list[str] = []
    reward = TRLReward(CompositeReward([column("a"), column("b")]), tell=told.append)
    for step, a in enumerate([[1, None], [None, None], [None, None]]):
        reward(["p"] * 2, ["x"] * 2, a=a, b=[1, 2], trainer_state=SimpleNamespace(global_step=step))
    (sentence,) = told
    assert sentence.startswith("no completion of the batch for step 2 has a reward")
    assert "(a/none 2)" in sentence
    reward([], [], a=[], b=[])
    assert len(told) == 1


def test_what_changes_now_and_then_is_not_constant() -> None:
    assert watched([(s, [0.0, float(s % 19 == 0)]) for s in range(80)]) == []
    assert watched([(s, [float(s // 15)] * 2) for s in range(80)]) == []  # constant within a step, not over steps
    assert watched([(s, [0.0, 0.0]) for s in range(60)], weight=0.0) == []
