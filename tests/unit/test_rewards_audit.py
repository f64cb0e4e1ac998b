"""The audit of a run's rewards: every planted fault is found, clean runs stay clean, parts add up to the advantage."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import planted
from aligntune.errors import ValidationError
from aligntune.rewards.audit import audit
from aligntune.rewards.audit.attribution import attribute, group_advantages, scaling, shapley
from aligntune.rewards.audit.ranks import correlation, difference, group_spans, kendall, ranks, spearman
from aligntune.rewards.audit.table import decoded, from_columns, read
from aligntune.utils.rollouts import RolloutWriter


def table(**columns: Any) -> dict[str, Any]:
    """Rollouts of one step unless they say otherwise, with the columns that are needed."""
    n = len(columns["reward"])
    base = {"step": [1] * n, "group": [0] * n, "prompt": ["p"] * n, "completion": [f"text {i}" for i in range(n)]}
    return {**base, "tokens": list(range(5, 5 + n)), **columns}


def codes(report: Any) -> list[tuple[str, str]]:
    return [(finding.code, finding.subject) for finding in report.findings]


# ---- findings ------------------------------------------------------------------------------------------------------

SUBJECT = {
    "constant": "quality", "constant_in_groups": "quality", "dominant_scale": "quality", "saturated": "format",
    "length_driven": "quality", "duplicated": "quality", "opposed": "quality", "drift": "quality",
    "reward_hack": "held", "missing_scores": "accuracy",
}  # fmt: skip


@pytest.mark.parametrize("fault", planted.FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    columns, config = planted.run(7, fault=fault)
    report = audit(from_columns(columns, config), planted.metrics(7))
    assert (fault, SUBJECT.get(fault, "total")) in codes(report)
    finding = next(f for f in report.findings if f.code == fault)
    assert finding.message
    assert finding.threshold
    assert finding.source
    assert finding.advice
    assert finding.evidence
    assert all(i in report.examples for i in finding.rows)


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_run_has_no_findings(seed: int) -> None:
    columns, config = planted.run(seed)
    assert codes(audit(from_columns(columns, config), planted.metrics(seed))) == []


def test_a_held_out_metric_that_falls_while_the_reward_rises_is_a_hack() -> None:
    columns, config = planted.run(1)
    report = audit(from_columns(columns, config), planted.metrics(1, hacked=True))
    assert [(f.code, f.subject, f.severity) for f in report.findings] == [("reward_hack", "eval_reward", "critical")]


def test_findings_are_ranked_and_name_the_key() -> None:
    columns, config = planted.run(3, fault="no_signal")
    report = audit(from_columns(columns, config))
    severities = [f.severity for f in report.findings]
    assert severities == sorted(severities, key=["critical", "warning", "note"].index)
    assert report.worst() == "critical"
    constants = {f.subject: f.advice for f in report.findings if f.code == "constant"}
    assert "rewards.1.weight" in constants["format"]
    assert "rewards.2.weight" in constants["quality"]


def test_a_length_reward_that_drives_the_advantage_is_called_meant() -> None:
    columns, config = planted.run(0, fault="length_driven")
    config["rewards"][2]["type"] = "length"
    found = {f.code: f for f in audit(from_columns(columns, config)).findings}
    assert "whose purpose it is" in found["length_driven"].message


def test_what_nothing_is_held_out_for_is_said() -> None:
    columns, config = planted.run(0, steps=4)
    columns["weight/held"] = [0.1] * len(columns["step"])
    notes = audit(from_columns(columns, config)).notes
    assert any("nothing is held out" in note for note in notes)
    assert any("4 steps only" in note for note in notes)


# ---- attribution ---------------------------------------------------------------------------------------------------


def advantages(columns: dict[str, Any], scale: str) -> list[float]:
    """GRPO's rule in a few lines."""
    out = []
    groups = list(zip(columns["step"], columns["group"], strict=True))
    reward = np.asarray(columns["reward"], dtype=float)
    for i, g in enumerate(groups):
        mine = reward[[h == g for h in groups]]
        spread = {"group": mine.std(ddof=1) + 1e-4, "batch": reward.std(ddof=1) + 1e-4, "none": 1.0}[scale]
        out.append(float((reward[i] - mine.mean()) / spread))
    return out


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("stored", [True, False])
def test_parts_of_a_weighted_sum_add_up_to_the_advantage(scale: str, stored: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(12), rng.random(12)
    columns = table(
        reward=list(a + 0.5 * b), group=[0] * 4 + [1] * 4 + [2] * 4, prompt=["p"] * 4 + ["q"] * 4 + ["r"] * 4,
        **{"reward/a": list(a), "reward/b": list(b), "weight/a": [1.0] * 12, "weight/b": [0.5] * 12},
    )  # fmt: skip
    if stored:
        columns["advantage"] = advantages(columns, scale)
    found = attribute(from_columns(columns, {"algo": {"name": "grpo", "scale_rewards": scale}}))
    assert found.advantage == pytest.approx(advantages(columns, scale), abs=1e-9)
    assert found.parts["a"] + found.parts["b"] == pytest.approx(found.advantage, abs=1e-9)
    assert found.residual == pytest.approx(np.zeros(12), abs=1e-9)
    assert math.fsum(v for v in found.shares().values() if v is not None) == pytest.approx(1.0)
    k = found.advantage[0] / (columns["reward"][0] - np.mean(columns["reward"][:4]))
    assert found.parts["b"][0] == pytest.approx(k * 0.5 * (b[0] - b[:4].mean()))


def test_the_example_of_the_documentation() -> None:
    columns = table(
        reward=[1.2, 0.0], **{"reward/accuracy": [1.0, 0.0], "reward/format": [1.0, 0.0],
        "weight/accuracy": [1.0, 1.0], "weight/format": [0.2, 0.2]},
    )  # fmt: skip
    found = attribute(from_columns(columns))
    assert found.advantage == pytest.approx([0.707, -0.707], abs=1e-3)
    assert found.parts["accuracy"] == pytest.approx([0.589, -0.589], abs=1e-3)
    assert found.shares()["format"] == pytest.approx(1 / 6)


def test_what_the_components_do_not_explain_is_the_residual() -> None:
    columns = table(reward=[1.0, 0.0, 1.0, 0.0], **{"reward/a": [1.0, 0.0, 1.0, 0.0], "weight/a": [1.0] * 4})
    columns["advantage"] = [0.9, -0.5, 0.5, -0.9]  # a part that has nothing to do with the reward
    found = attribute(from_columns(columns))
    assert found.parts["a"] + found.residual == pytest.approx(columns["advantage"])
    shares = found.shares()
    assert shares["a"] + shares["residual"] == pytest.approx(1.0)
    assert shares["residual"] == pytest.approx(0.16 / 2.12)  # parts of 0.7, and 0.2 or -0.2 beside them


def test_without_groups_the_step_is_the_baseline() -> None:
    columns = table(
        reward=[1.0, 0.0, 0.5, 0.5], group=[0, 1, 2, 3], prompt=list("abcd"),
        **{"reward/a": [1.0, 0.0, 0.5, 0.5], "weight/a": [1.0] * 4, "advantage": [None] * 4},
    )  # fmt: skip
    rollouts = from_columns(columns, {"algo": "ppo"})
    found = attribute(rollouts)
    assert found.baseline == "step"
    assert found.parts["a"] == pytest.approx([0.5, -0.5, 0.0, 0.0])
    assert any("one for each token" in note for note in rollouts.notes)


def test_normalised_apart_and_then_added() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(8), 100 * rng.random(8)
    columns = table(reward=list(a + b), group=[0] * 4 + [1] * 4, prompt=["p"] * 4 + ["q"] * 4,
                    **{"reward/a": list(a), "reward/b": list(b), "weight/a": [1.0] * 8, "weight/b": [1.0] * 8})  # fmt: skip
    config = {"algo": {"name": "grpo", "reward_aggregation": "normalize_then_sum"}}
    found = attribute(from_columns(columns, config))
    assert found.parts["a"] + found.parts["b"] == pytest.approx(found.advantage, abs=1e-9)
    assert 0.2 < found.shares()["a"] < 0.8  # the scale of b counts no more


def test_shapley_values_add_up_and_agree_with_all_orders() -> None:
    rng = np.random.default_rng(0)
    values, baseline = rng.random((5, 3)), rng.random((5, 3))

    def total(rows: Any) -> Any:
        return rows[:, 0] * rows[:, 1] + np.minimum(rows[:, 1], rows[:, 2])

    expected = np.zeros((5, 3))
    for order in itertools.permutations(range(3)):
        now = baseline.copy()
        for c in order:
            before = total(now)
            now[:, c] = values[:, c]
            expected[:, c] += (total(now) - before) / 6
    found = shapley(values, baseline, total)
    assert found == pytest.approx(expected)
    many = shapley(np.tile(values, 4), np.tile(baseline, 4), lambda rows: rows.prod(axis=1))
    assert many.sum(axis=1) == pytest.approx(np.tile(values, 4).prod(axis=1) - np.tile(baseline, 4).prod(axis=1))


@pytest.mark.parametrize(
    ("composition", "total"),
    [
        ({"mode": "product"}, lambda a, b: a * b**0.5),
        ({"mode": "min"}, lambda a, b: min(a, 0.5 * b)),
        ({"mode": "gated", "gates": {"a": 0.5}}, lambda a, b: a + 0.5 * b if a >= 0.5 else a),
        ({"normalise": "group"}, lambda a, b: a + 0.5 * b),
    ],
)
def test_a_total_that_is_no_sum_is_split_too(composition: dict[str, Any], total: Any) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(12), rng.random(12)
    columns = table(
        reward=[total(x, y) for x, y in zip(a, b, strict=True)], group=[0] * 6 + [1] * 6, prompt=["p"] * 6 + ["q"] * 6,
        **{"reward/a": list(a), "reward/b": list(b), "weight/a": [1.0] * 12, "weight/b": [0.5] * 12},
    )  # fmt: skip
    config = {
        "algo": "grpo",
        "composition": composition,
        "rewards": [{"type": "brevity", "name": "a"}, {"type": "brevity", "name": "b", "weight": 0.5}],
    }
    found = attribute(from_columns(columns, config))
    assert found.parts["a"] + found.parts["b"] == pytest.approx(found.advantage, abs=1e-9)
    assert found.residual == pytest.approx(np.zeros(12), abs=1e-9)
    assert sum(v for v in found.shares().values() if v is not None) == pytest.approx(1.0)


def test_a_row_without_a_total_has_no_part() -> None:
    columns = table(reward=[1.0, None, 0.0], **{"reward/a": [1.0, None, 0.0], "weight/a": [1.0] * 3})
    found = attribute(from_columns(columns))
    assert np.isnan(found.advantage[1])
    assert np.isnan(found.parts["a"][1])
    assert found.parts["a"][[0, 2]] == pytest.approx(found.advantage[[0, 2]])


def test_the_algorithm_s_own_scale_is_used_where_no_advantage_is_stored() -> None:
    assert scaling({"algo": {"name": "dr_grpo"}}) == "none"
    assert scaling({"algo": "dapo"}) == "group"
    assert scaling({"algo": {"name": "grpo", "scale_rewards": "batch"}}) == "batch"
    assert scaling({"algo": "of another version"}) == "group"
    total, cell = np.asarray([1.0, 0.0, 3.0, 1.0]), np.asarray([0, 0, 1, 1])
    assert group_advantages(total, cell, "none", cell) == pytest.approx([0.5, -0.5, 1.0, -1.0])


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_ranks_and_their_correlations_against_definitions() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 12), rng.integers(0, 5, 12)
        signs = [np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in itertools.combinations(range(12), 2)]
        free = [sum(v[i] != v[j] for i, j in itertools.combinations(range(12), 2)) for v in (x, y)]
        assert kendall(x, y) == pytest.approx(sum(signs) / math.sqrt(free[0] * free[1]))
        expected = np.corrcoef([[(v < u).sum() + ((v == u).sum() + 1) / 2 for u in v] for v in (x, y)])[0, 1]
        assert spearman(x, y) == pytest.approx(expected)
    assert ranks([3, 1, 3]).tolist() == [2.5, 1, 2.5]
    assert (kendall([1, 1], [1, 2]), spearman([1, 1], [1, 2])) == (None, None)


def test_a_correlation_within_groups_does_not_see_the_groups() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 8)
    level = np.repeat(rng.normal(0, 10, 50), 8)
    x, y = level + rng.normal(size=400), level + rng.normal(size=400)
    pooled, within = correlation(x, y), correlation(x, y, group)
    assert pooled is not None
    assert within is not None
    assert pooled.value > 0.9
    assert within.low is not None
    assert within.high is not None
    assert within.low < 0 < within.high
    assert within.high - within.low < 0.25
    assert correlation(x, np.ones(400), group) is None


def test_the_interval_of_a_difference_is_welch_s() -> None:
    a, b = np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([3.0, 5.0, 7.0])
    found = difference(a, b, 0.95)
    assert found is not None
    assert found.value == pytest.approx(2.5)
    # variances 5/3 and 4, standard error sqrt(5/12 + 4/3), Welch's degrees of freedom 3.23, t quantile 3.06
    assert found.low == pytest.approx(2.5 - 3.06 * math.sqrt(5 / 12 + 4 / 3), abs=0.02)
    assert difference(a[:1], b, 0.95) is None


def test_spans_are_exact_where_all_are_equal() -> None:
    values = np.asarray([0.1, 0.1, 0.1, 0.3, np.nan])
    assert group_spans(values, np.asarray([0, 0, 0, 1, 1])).tolist()[0] == 0.0
    assert np.isnan(group_spans(values, np.asarray([0, 0, 0, 1, 1]))[1])


# ---- what is read --------------------------------------------------------------------------------------------------


def write_run(folder: Path, columns: dict[str, Any], config: dict[str, Any], metrics: Any = ()) -> Path:
    names = list(columns)
    writer = RolloutWriter(folder / "rollouts")
    writer.append([dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    writer.flush()
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return folder


def test_a_run_folder_is_read_and_audited_from_the_shell(cli: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", *planted.run(0, fault="dominant_scale"), planted.metrics(0))
    ran = cli("rewards", "audit", str(run))
    assert ran.code == 0
    assert "CRITICAL  dominant_scale" in ran.out
    assert "rewards.2.normalization" in ran.out
    said = cli("rewards", "audit", str(run), "--json").json
    assert said["findings"][0]["code"] == "dominant_scale"
    assert said["findings"][0]["rows"][0]["completion"]
    shares = [c["share"] for c in said["components"] if c["name"] != "total"]
    assert sum(shares) + said["attribution"]["residual"] == pytest.approx(1.0)
    assert cli("rewards", "audit", str(run), "--fail-on", "critical").code == 1
    clean = write_run(tmp_path / "clean", *planted.run(0))
    assert cli("rewards", "audit", str(clean), "--fail-on", "note").code == 0


def test_what_an_old_run_lacks_is_said_and_the_rest_is_computed() -> None:
    columns, config = planted.run(0)
    old = {k: v for k, v in columns.items() if k not in ("group", "tokens", "advantage") and "weight/" not in k}
    rollouts = from_columns(old, config)
    assert [note.split("'")[1] for note in rollouts.notes] == ["tokens", "group", "advantage", "weight/accuracy"]
    new = from_columns(columns, config)
    assert (rollouts.group == new.group).all()
    assert rollouts.weight["format"][0] == 0.2
    assert attribute(rollouts).parts["format"] == pytest.approx(attribute(new).parts["format"], abs=1e-9)


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p])
def test_a_folder_without_rollouts_is_the_user_s_mistake(cli: Any, tmp_path: Path, make: Any) -> None:
    ran = cli("rewards", "audit", str(make(tmp_path)))
    assert (ran.code, ran.out) == (2, "")
    assert "hint:" in ran.err


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(ValidationError, match="lack the column prompt, completion"):
        from_columns({"step": [1], "reward": [1.0]})


def test_thresholds_and_minmax_are_applied_as_in_the_run(tmp_path: Path) -> None:
    columns = table(reward=[1.0, 0.0], **{"reward/a": [0.9, 0.2], "reward/b": [-0.5, 1.0]})
    rewards = [
        {"type": "brevity", "name": "a", "threshold": 0.5, "weight": 2},
        {"type": "mbpp_reward", "name": "b", "normalization": "minmax"},
    ]
    write_run(tmp_path / "run", columns, {"rewards": rewards})
    rollouts = read(tmp_path / "run")
    assert rollouts.values("a").tolist() == [1.0, 0.0]
    assert rollouts.values("b").tolist() == [0.0, 1.0]
    assert rollouts.weight["a"].tolist() == [2.0, 2.0]


def test_json_text_of_lists_is_read_back() -> None:
    assert decoded('["assert 1"]') == ["assert 1"]
    assert decoded("72") == "72"
    assert decoded("[a, b)") == "[a, b)"
    assert decoded(3) == 3


# ---- the report ----------------------------------------------------------------------------------------------------


def test_the_run_s_page_shows_shares_and_findings(tmp_path: Path) -> None:
    from aligntune.report import build_report

    run = write_run(tmp_path / "run", *planted.run(0, fault="dominant_scale"))
    page = build_report(run).read_text(encoding="utf-8")
    assert "Share of the advantage" in page
    assert "its scale drowns the rest" in page
    assert "rewards.2.normalization" in page
    one = table(reward=[1.0, 0.0], **{"reward/a": [1.0, 0.0]})
    assert "The audit has no findings" in build_report(write_run(tmp_path / "one", one, {})).read_text("utf-8")


def test_a_long_run_is_thinned_by_whole_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", *planted.run(0))
    some = read(run, most_rows=500)
    assert len(some) == 8 * 64  # every fourth of 30 steps
    assert some.notes == ["8 of 30 steps are looked at, evenly spread"]
    assert read(run, most_rows=5000).notes == []
