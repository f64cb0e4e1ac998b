"""Composition: the five modes, missing scores, normalisation, the clip; each against a reference of a few lines."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligntune.core.config import CompositionConfig, RewardConfig
from aligntune.errors import ConfigurationError
from aligntune.rewards import Component, CompositeReward, build_rewards
from aligntune.rewards.base import reward_class
from aligntune.rewards.by_task import TaskRewards

INF = math.inf


def column(name: str, range: tuple[float, float] = (-INF, INF)) -> Any:
    """A reward that returns its column's value."""
    return reward_class(lambda text, **columns: columns[name], name, range=range)()


def composite(*parts: tuple[float, tuple[float, float]], **rules: Any) -> CompositeReward:
    """Rewards a, b, c ... with weight and range."""
    made = [Component(n, column(n, r), w) for n, (w, r) in zip("abcdef", parts, strict=False)]
    return CompositeReward(made, composition=rules)


def totals(made: CompositeReward, rows: list[tuple[float | None, ...]], **options: Any) -> list[float | None]:
    columns = {name: [row[i] for row in rows] for i, name in enumerate("abcdef"[: len(rows[0])])}
    prompts = options.pop("prompts", None)
    columns |= {} if prompts is None else {"prompt": prompts}
    return made.score_batch(["x"] * len(rows), columns, **options).total


UNIT = (0.0, 1.0)
numbers = st.floats(0, 1, allow_subnormal=False)


@given(a=numbers, b=numbers, u=st.floats(0.1, 3), v=st.floats(0.1, 3))
def test_product_and_minimum(a: float, b: float, u: float, v: float) -> None:
    (product,) = totals(composite((u, UNIT), (v, UNIT), (0, UNIT), mode="product"), [(a, b, 0.0)])
    assert product == pytest.approx(a**u * b**v)
    (least,) = totals(composite((u, UNIT), (v, UNIT), (0, UNIT), mode="min"), [(a, b, 0.0)])
    assert least == min(u * a, v * b)


def test_format_only_if_correct() -> None:
    made = composite((1, UNIT), (0.2, UNIT), (-0.5, UNIT), mode="gated", gates={"a": 1})
    assert totals(made, [(1, 1, 0), (0, 1, 0), (0.5, 1, 1), (1, 1, 1)]) == pytest.approx([1.2, 0, 0.5, 0.7])
    assert made.bounds == (-0.5, 1.2)


def test_several_gates_are_taken_in_order() -> None:
    """A row that fails at the second gate has the parts of both, and nothing behind them."""
    made = composite((1, UNIT), (2, UNIT), (4, UNIT), mode="gated", gates={"b": 0.5, "a": 0.5})
    rows = [(0.4, 1, 1), (0.5, 0.4, 1), (0.5, 0.5, 1)]
    assert totals(made, rows) == pytest.approx([0.4, 0.5 + 0.8, 0.5 + 1 + 4])


def test_a_gate_without_weight_decides_and_adds_nothing() -> None:
    made = composite((0, UNIT), (1, UNIT), mode="gated", gates={"a": 1})
    assert totals(made, [(1, 0.7), (0, 0.7)]) == [0.7, 0]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"mode": "product", "none": "drop"}, [0.32, None, None]),
        ({"mode": "product", "none": "renormalise"}, [0.32, 0.5**3, None]),  # exponents 1 and 2, so 1 x 3 / 1
        ({"mode": "product", "none": "zero"}, [0.32, 0, None]),
        ({"mode": "min", "none": "renormalise"}, [0.5, 0.5, None]),
        ({"mode": "min", "none": "zero"}, [0.5, 0, None]),
        ({"mode": "gated", "gates": {"a": 0.4}, "none": "drop"}, [2.1, None, None]),
        ({"mode": "gated", "gates": {"a": 0.4}, "none": "zero"}, [2.1, 0.5, 0]),
        ({"mode": "gated", "gates": {"a": 0.4}, "none": "renormalise"}, [2.1, 1.5, None]),
        ({"mode": "gated", "gates": {"a": 0.6}, "none": "drop"}, [0.5, 0.5, None]),  # what is behind is not missed
        ({"mode": "gated", "gates": {"a": 0.6}, "none": "renormalise"}, [0.5, 0.5, None]),
    ],
)
def test_missing_scores_in_each_mode(rules: dict[str, Any], expected: list[float | None]) -> None:
    found = totals(composite((1, UNIT), (2, UNIT), **rules), [(0.5, 0.8), (0.5, None), (None, None)])
    assert found == [e if e is None else pytest.approx(e) for e in expected]


# ---- lexicographic ----------------------------------------------------------------------------------------------------


def order(row: tuple[float, ...], widths: tuple[float, float]) -> tuple[float, ...]:
    """What a lexicographic order compares: whole steps, and the last value as it is."""
    return (math.floor(row[0] / widths[0] + 1e-9), math.floor((1 - row[1]) / widths[1] + 1e-9), row[2])


rows3 = st.tuples(st.sampled_from([0.0, 0.3, 0.5, 1.0]), numbers, st.integers(0, 20).map(lambda i: i / 20))


@given(first=rows3, second=rows3)
def test_the_total_respects_the_order(first: Any, second: Any) -> None:
    made = composite((1, UNIT), (-1, UNIT), (1, UNIT), mode="lexicographic", tolerance={"a": 0.5, "b": 0.25})
    a, b = totals(made, [first, second])
    x, y = order(first, (0.5, 0.25)), order(second, (0.5, 0.25))
    assert 0 <= min(a, b) <= max(a, b) <= 1
    assert (a > b) == (x > y)
    assert (a == pytest.approx(b, abs=1e-12)) == (x == y)


def test_the_lexicographic_total_by_hand() -> None:
    """Two levels, then three, then a share: L of 0 to 5, (2 L + x) / 11."""
    made = composite((1, UNIT), (1, UNIT), (1, UNIT), mode="lexicographic", tolerance={"a": 1, "b": 0.5})
    assert totals(made, [(1, 0.6, 0.25), (0, 1, 1), (0, 0, 0), (1, 1, 1)]) == pytest.approx([8.25 / 11, 5 / 11, 0, 1])
    assert made.bounds == (0, 1)


@pytest.mark.parametrize(
    ("parts", "rules", "said"),
    [
        ([(1, (0, INF)), (1, UNIT)], {}, "'a' declares no finite range"),
        ([(2, UNIT), (1, UNIT)], {}, "weight 2, which a lexicographic order does not use"),
        ([(1, UNIT), (1, UNIT)], {}, "'a' comes before others .* and has no tolerance"),
        ([(1, UNIT), (1, UNIT)], {"tolerance": {"a": 2}}, "tolerance.a is 2, which leaves one level"),
        ([(1, UNIT), (1, UNIT)], {"tolerance": {"a": 1e-9}}, "more than 1048576 levels"),
        ([(1, UNIT), (1, UNIT)], {"tolerance": {"z": 1}}, "tolerance: there is no reward 'z'"),
        ([(1, UNIT), (1, UNIT)], {"tolerance": {"a": 1}, "none": "renormalise"}, "renormalise has no meaning"),
        ([(1, (1, 2)), (1, UNIT)], {"tolerance": {"a": 1}, "none": "zero"}, "zero is outside the range"),
    ],
)
def test_orders_without_meaning_are_refused(parts: Any, rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        composite(*parts, mode="lexicographic", **rules)


# ---- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "rules", "said"),
    [
        ([(0, UNIT), (0, UNIT)], {}, r"every reward has the weight 0 \(a, b\)"),
        ([(1, UNIT)], {"clip": [-1, 2]}, r"clip \[-1, 2\] cuts nothing: totals lie in \[0, 1\]"),
        ([(1, UNIT)], {"clip": [3, 4]}, "makes every total the same"),
        ([(1, UNIT)], {"clip": [1, 0]}, "the first below the second"),
        ([(1, UNIT), (1, UNIT)], {"mode": "gated"}, "there is no gate"),
        ([(1, UNIT), (1, UNIT)], {"mode": "gated", "gates": {"A": 1}}, "gates: there is no reward 'A'"),
        (
            [(1, UNIT), (1, UNIT)],
            {"mode": "gated", "gates": {"a": 0}},
            "gates.a is 0, which all of its range .* reaches",
        ),
        (
            [(1, UNIT), (1, UNIT)],
            {"mode": "gated", "gates": {"a": 2}},
            "gates.a is 2, which all of its range .* misses",
        ),
        ([(1, UNIT), (0, UNIT)], {"mode": "gated", "gates": {"a": 1}}, "nothing stands behind the gate"),
        ([(1, UNIT), (-1, UNIT)], {"mode": "product"}, "'b' has the weight -1, and composition.mode is product"),
        ([(1, (-1, 1)), (1, UNIT)], {"mode": "product"}, "'a' may be -1, and a product needs numbers from 0 up"),
        ([(1, UNIT), (-1, UNIT)], {"mode": "min"}, "'b' has the weight -1, and composition.mode is min"),
        (
            [(1, UNIT), (1, UNIT)],
            {"mode": "min", "normalise": "group", "normalise_of": "components"},
            "components cannot be normalised apart in mode min",
        ),
        ([(1, UNIT)], {"mode": "sume"}, "composition"),
        ([(1, UNIT)], {"modus": "sum"}, "modus: unknown key"),
        ([(1, UNIT)], {"clip": [1]}, "clip"),
    ],
)
def test_rules_without_effect_or_meaning_are_refused(parts: Any, rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        composite(*parts, **rules)


def test_weights_of_a_wrong_number_and_two_policies() -> None:
    with pytest.raises(ConfigurationError, match="3 weights for 2 rewards"):
        CompositeReward([column("a"), column("b")], [1, 2, 3])
    with pytest.raises(ConfigurationError, match="both none and composition"):
        CompositeReward([column("a"), column("b")], none="zero", composition={})


@given(
    mode=st.sampled_from(["sum", "product", "min", "gated"]),
    none=st.sampled_from(["drop", "renormalise", "zero"]),
    row=st.tuples(*[st.none() | numbers] * 3),
    weights=st.tuples(*[st.sampled_from([0.5, 1, 2])] * 3),
)
def test_totals_stay_inside_the_bounds(mode: str, none: str, row: Any, weights: Any) -> None:
    gates = {"gates": {"b": 0.5}} if mode == "gated" else {}
    made = composite(*[(w, UNIT) for w in weights], mode=mode, none=none, **gates)
    (total,) = totals(made, [row])
    low, high = made.bounds
    assert total is None or low - 1e-9 <= total <= high + 1e-9


# ---- normalisation and clip ---------------------------------------------------------------------------------------------


def standard(values: list[float], *, scale: bool = True) -> list[float]:
    mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return [(v - mean) / (std + 1e-4) if scale else v - mean for v in values]


@pytest.mark.parametrize("scale", [True, False])
def test_normalised_by_group(scale: bool) -> None:
    made = composite((2, UNIT), normalise="group", normalise_scale=scale)
    rows = [(0.1,), (0.9,), (None,), (0.4,), (0.4,), (0.7,)]
    found = totals(made, rows, prompts=["p"] * 3 + ["q"] * 3, train=True)
    expected = standard([0.2, 1.8], scale=scale)
    expected = [*expected, None, *standard([0.8, 0.8, 1.4], scale=scale)]
    assert found == [e if e is None else pytest.approx(e) for e in expected]
    assert totals(made, rows, prompts=["p"] * 6) == pytest.approx([0.2, 1.8, None, 0.8, 0.8, 1.4])  # in evaluation
    assert made.bounds == (-INF, INF)


def test_groups_of_one_prompt_side_by_side_are_told_apart_by_their_size() -> None:
    made = composite((1, UNIT), normalise="group", normalise_scale=False)
    rows = [(0.0,), (1.0,), (0.0,), (0.0,)]
    assert totals(made, rows, prompts=["p"] * 4, train=True, group_size=2) == [-0.5, 0.5, 0, 0]
    assert totals(made, rows, prompts=["p"] * 4, train=True) == [-0.25, 0.75, -0.25, -0.25]


def test_components_normalised_before_the_sum() -> None:
    made = composite((1, UNIT), (0.5, (0, 100)), normalise="group", normalise_of="components")
    a, b = [0.0, 1.0, 1.0], [10.0, 90.0, 30.0]
    expected = [x + 0.5 * y for x, y in zip(standard(a), standard(b), strict=True)]
    assert totals(made, list(zip(a, b, strict=True)), prompts=["p"] * 3, train=True) == pytest.approx(expected)


def test_running_statistics_are_those_of_all_scores_and_go_on_to_the_last_bit() -> None:
    batches = [[0.1, 0.7, None], [0.3, 1 / 3, 0.9], [0.2, 0.2, 0.5]]

    def made() -> CompositeReward:
        return composite((1, UNIT), normalise="running")

    straight, seen = made(), []
    for batch in batches:
        found = totals(straight, [(v,) for v in batch], train=True)
        seen += [v for v in batch if v is not None]
        mean, std = statistics.fmean(seen), statistics.stdev(seen)
        expected = [None if v is None else pytest.approx((v - mean) / (std + 1e-4)) for v in batch]
        assert found == expected
    first = made()
    totals(first, [(v,) for v in batches[0]], train=True)
    totals(first, [(v,) for v in batches[1]])  # evaluation leaves them alone
    again = made()
    again.load_state(json.loads(json.dumps(first.state())))
    for batch in batches[1:]:
        last = totals(again, [(v,) for v in batch], train=True)
    assert last == found  # bit for bit
    assert again.state() == straight.state()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_welford_equals_the_formulas(values: list[float]) -> None:
    from aligntune.rewards.normalise import Moments

    moments = Moments()
    for value in values:
        moments.add(value)
    assert moments.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert moments.std == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-5)


def test_the_clip_comes_last_and_the_mean_before_it_is_logged() -> None:
    made = composite((1, (0, 10)), clip=[1, 3])
    scores = made.score_batch(["x"] * 4, {"a": [0, 2, 9, None]})
    assert scores.total == [1, 2, 3, None]
    assert scores.composed == [0, 2, 9, None]
    assert made.bounds == (1, 3)
    assert made.summary(scores)["rewards/composed"] == pytest.approx(11 / 3)
    assert made.summary(scores)["rewards/a/share"] == pytest.approx(1)  # of the sum, before the clip


def test_shares_are_told_of_sums_alone() -> None:
    made = composite((1, UNIT), (1, UNIT), mode="min")
    summary = made.summary(made.score_batch(["x", "y"], {"a": [0, 1], "b": [1, 0.5]}))
    assert not [key for key in summary if key.endswith("share")]


# ---- by task, and from a configuration -----------------------------------------------------------------------------------


def test_weights_by_task_keep_the_rules() -> None:
    base = composite((1, UNIT), (1, UNIT), mode="gated", gates={"a": 1}, clip=[0, 1.5])
    made = TaskRewards(base, column="task", weights={"t": {"b": 3.0}})
    columns = {"a": [1, 0, 1], "b": [1, 1, 1], "task": ["t", "t", "other"]}
    scores = made.score_batch(["x"] * 3, columns)
    assert scores.total == [1.5, 0, 1.5]
    assert scores.composed == [4, 0, 2]
    assert scores.weights == {"a": [1, 1, 1], "b": [3, 3, 1]}
    assert made.bounds == (0, 1.5)
    assert made.compute("x", a=1, b=0.125, task="t") == 1.375
    ordered = composite((1, UNIT), (1, UNIT), mode="lexicographic", tolerance={"a": 1})
    with pytest.raises(ConfigurationError, match="weight 2, which a lexicographic order"):
        TaskRewards(ordered, column="task", weights={"t": {"b": 2.0}})


def test_a_configuration_reaches_the_composite() -> None:
    rules = CompositionConfig(mode="gated", gates={"answer_format": 1})
    rewards = [
        RewardConfig(type="answer_format", params={"style": "hash"}),
        RewardConfig(type="length", weight=0.5, params={"max_length": 50}),
    ]
    made = build_rewards(rewards, composition=rules)
    assert made.compute("no answer here") == 0
    assert made.compute("so\n#### 7") == pytest.approx(1 + 0.5 * made.components[1].reward.compute("so\n#### 7"))


def gathered_in_a_process(rank: int, place: str, found: Any) -> None:
    """One process of two; what it normalises is put into `found`."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    made = composite((1, UNIT), normalise="running")
    totals_of = totals(made, [(v,) for v in ((0.1, 0.4), (0.9, None))[rank]], train=True)
    found.put((rank, totals_of, made.state()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_running_statistics_are_those_of_all_processes(tmp_path: Any) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=gathered_in_a_process, args=(r, str(tmp_path / "store"), found)) for r in (0, 1)]
    for worker in workers:
        worker.start()
    results = sorted(found.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
    one = composite((1, UNIT), normalise="running")
    expected = totals(one, [(0.1,), (0.4,), (0.9,), (None,)], train=True)
    assert results[0][1] + results[1][1] == expected
    assert results[0][2] == results[1][2] == one.state()
