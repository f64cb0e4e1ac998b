"""Testing, scoring and rescoring rewards: bad rewards fail their checks, good ones pass, and the shell says so."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import planted
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards import RewardRegistry, build_rewards
from aligntune.rewards.audit.lists import read_reward_list
from aligntune.rewards.audit.probes import gold_text, probes
from aligntune.rewards.audit.rescore import compare, rescore, write
from aligntune.rewards.audit.table import from_columns
from aligntune.rewards.audit.trial import try_reward
from aligntune.rewards.base import reward_class
from aligntune.utils.rollouts import RolloutWriter

SUMS = [{"prompt": f"What is {i} + {i * i}?", "reference": str(i + i * i), "n": i} for i in range(2, 22)]


def statuses(trial: Any) -> dict[str, str]:
    return {check.name: check.status for check in trial.checks}


def failed(trial: Any) -> set[str]:
    return {check.name for check in trial.checks if check.status == "fail"}


def made(fn: Any, **options: Any) -> Any:
    return reward_class(fn, fn.__name__, **{"range": (0, 1), **options})()


# ---- rewards that should fail --------------------------------------------------------------------------------------


def helpful_words(text: str, reference: str) -> float:
    """A keyword count under an ambitious name."""
    return min(1.0, sum(text.count(word) for word in ("helpful", "correct", "clear", reference)) / 3)


def contains_gold(text: str, reference: str) -> float:
    """Right wherever the gold answer stands."""
    return float(reference in text)


def generous(text: str, reference: str) -> float:
    """Half for anything."""
    return 1.0 if text.strip() == reference else 0.9


def moody(text: str, reference: str) -> float:
    """Another score each time."""
    return random.random()


def frail(text: str, reference: str) -> float:
    """Raises for NUL and surrogates."""
    return float(text.encode("utf-8").count(reference.encode()) == 1 and "\x00" not in text)


def relative(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Depends on the batch."""
    return [len(c) / max(len(x) for x in completions) if completions else 0.0 for c in completions]


def test_a_keyword_reward_is_caught() -> None:
    trial = try_reward(made(helpful_words), SUMS)
    assert not trial.passed
    assert {"gold", "keywords"} <= failed(trial)


def test_gold_anywhere_is_caught_by_hedges_and_noise() -> None:
    assert {"hedge", "gold in noise"} <= failed(try_reward(made(contains_gold), SUMS))


def test_partial_credit_for_nothing_is_caught_by_the_gap() -> None:
    found = failed(try_reward(made(generous), SUMS))
    assert {"empty", "echo", "junk", "another answer", "shortest", "longest", "injection"} <= found
    assert "empty" not in failed(try_reward(made(generous), SUMS, gap=0.05))


def test_a_random_reward_is_not_deterministic() -> None:
    assert {"gold", "deterministic", "batch", "order", "pickle"} <= failed(try_reward(made(moody), SUMS))


def test_what_raises_is_counted_and_named() -> None:
    def frail_in_a_closure(text: str, reference: str) -> float:
        return frail(text, reference)

    trial = try_reward(made(frail_in_a_closure), SUMS)
    details = {check.name: check.detail for check in trial.checks}
    assert "a lone surrogate" in details["hostile texts"]
    assert "1 texts raised, first: reward 'frail_in_a_closure' raised UnicodeEncodeError" in details["exceptions"]
    assert "cannot be copied" in details["pickle"]


def test_a_score_that_depends_on_the_batch_is_caught() -> None:
    assert "batch" in failed(try_reward(made(relative), [{**row, "answer": "x" * row["n"]} for row in SUMS]))


# ---- rewards that should pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["math_correctness", "exact_match", "f1"])
def test_rewards_that_compare_answers_pass(name: str) -> None:
    trial = try_reward(RewardRegistry.get_reward_function(name), SUMS)
    assert failed(trial) == set()
    assert statuses(trial)["gold"] == "pass"
    assert statuses(trial)["latency"] == "measured"


def test_what_cannot_apply_is_said_and_not_passed() -> None:
    trial = try_reward(RewardRegistry.get_reward_function("brevity"), SUMS)
    found = statuses(trial)
    assert trial.passed
    assert {found[name] for name in ("gold", "empty", "hedge", "injection")} == {"not applicable"}
    assert "a measured reward has no gold answer" in trial.checks[0].detail
    assert {found[name] for name in ("deterministic", "batch", "order", "pickle", "hostile texts")} == {"pass"}
    loose = try_reward(reward_class(lambda text: 1.0, "loose")(), SUMS)
    assert statuses(loose)["empty"] == "not applicable"  # a range without an end has no maximum to reach
    form = try_reward(RewardRegistry.get_reward_function("answer_format"), SUMS)
    assert statuses(form)["gold"] == "not applicable"
    assert statuses(form)["empty"] == "pass"  # whatever the data, nothing must not score the maximum


def test_a_named_gold_column_makes_a_measured_reward_comparable() -> None:
    rows = [{**row, "good": "four words are here"} for row in SUMS]
    reward = RewardRegistry.get_reward_function("length", min_length=4, max_length=8)
    found = statuses(try_reward(reward, rows, gold="good"))
    assert (found["gold"], found["empty"], found["longest"]) == ("pass", "pass", "pass")
    with pytest.raises(ValidationError, match="no column 'bad'"):
        try_reward(reward, rows, gold="bad")


def test_a_reward_that_compares_a_group_is_not_blamed_for_it() -> None:
    rows = [{"prompt": f"p{i // 4}", "answer": f"answer {i} of {i % 3}"} for i in range(12)]
    trial = try_reward(RewardRegistry.get_reward_function("diversity", method="distinct"), rows)
    assert {statuses(trial)[name] for name in ("batch", "order")} == {"not applicable"}
    assert failed(trial) == set()


def test_an_unbounded_reward_must_rank_gold_first() -> None:
    def points(text: str, reference: str) -> float:
        return 10.0 if text.strip() == reference else -len(text) / 1000

    found = statuses(try_reward(made(points, range=(-np.inf, np.inf)), SUMS))
    assert found["gold"] == "not applicable"
    assert {found[name] for name in ("empty", "hedge", "injection", "another answer")} == {"pass"}


def test_the_probes_are_what_they_are_called() -> None:
    found = {probe.name: probe.texts for probe in probes(SUMS, [row["reference"] for row in SUMS])}
    for i, row in enumerate(SUMS):
        assert found["echo"][i] == row["prompt"]
        assert row["reference"] in found["hedge"][i].split(" or ")
        assert found["another answer"][i] != row["reference"]
        assert f" {row['reference']} " in found["gold in noise"][i]
    assert len(found["longest"][0]) > 19_000
    assert gold_text(["a", "b"]) == "a"
    assert gold_text({"text": ["c"]}) == "c"
    assert gold_text([{"f": 1}]) == '[{"f": 1}]'
    assert gold_text("  ") is None


def test_one_row_or_a_missing_column_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least two rows"):
        try_reward(RewardRegistry.get_reward_function("f1"), SUMS[:1])
    with pytest.raises(ValidationError, match="needs the column reference"):
        try_reward(RewardRegistry.get_reward_function("f1"), [{"prompt": "a"}, {"prompt": "b"}])


# ---- the shell -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    (tmp_path / "mine.py").write_text(
        "def anywhere(text, reference):\n    return float(reference in text)\n"
        "def breaks(text):\n    raise ValueError('no')\n"
    )
    return tmp_path


def test_the_exit_code_says_whether_a_check_failed(cli: Any, data: Path) -> None:
    good = cli("rewards", "test", "--reward", "math_correctness", "--data", "sums.jsonl")
    assert (good.code, good.out.splitlines()[-1]) == (0, "no check failed")
    bad = cli("rewards", "test", "--reward", "mine.py:anywhere", "--data", "sums.jsonl", "--json")
    assert (bad.code, bad.json["passed"]) == (1, False)
    assert [c["status"] for c in bad.json["rewards"][0]["checks"] if c["name"] == "gold in noise"] == ["fail"]


def test_lists_and_runs_are_tested_from_their_files(cli: Any, data: Path) -> None:
    listed = {"rewards": ["exact_match", {"type": "brevity", "weight": 0.1}], "data": "sums.jsonl"}
    (data / "list.yaml").write_text(yaml.safe_dump(listed))
    said = cli("rewards", "test", "list.yaml", "--samples", "8", "--json").json
    assert (said["rows"], [r["name"] for r in said["rewards"]]) == (8, ["exact_match", "brevity"])
    run = {"algo": "grpo", "model": {"name_or_path": "m"}, "datasets": ["sums.jsonl"], "rewards": ["exact_match"]}
    (data / "run.yaml").write_text(yaml.safe_dump(run))
    assert cli("rewards", "test", "run.yaml").code == 0
    (data / "bare.yaml").write_text(yaml.safe_dump(["exact_match"]))
    assert cli("rewards", "test", "bare.yaml", "--data", "sums.jsonl").code == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["test"], "give FILE or --reward"),
        (["test", "--reward", "f1"], "nothing says on what data"),
        (["test", "--reward", "f2", "--data", "sums.jsonl"], "f1"),
        (["test", "--reward", "f1", "--data", "none.jsonl"], "none.jsonl"),
        (["test", "--reward", "f1", "--data", "sums.jsonl", "--param", "where"], "is not KEY=VALUE"),
        (["test", "--reward", "json_schema", "--data", "sums.jsonl"], "schema"),
        (["test", "none.yaml"], "no such config file"),
        (["test", "wrong.yaml"], "unknown key 'reward'"),
        (["score", "sums.jsonl"], "give --reward NAME"),
        (["score", "sums.jsonl", "--reward", "f1"], "sums.jsonl:1: no text in the column"),
        (["score", "none.txt", "--reward", "f1"], "no file none.txt"),
        (["score", "bad.jsonl", "--reward", "brevity"], "bad.jsonl:2: not JSON"),
        (["score", "bad.csv", "--reward", "brevity"], "bad.csv:3: another number of cells"),
        (["score", "empty.txt", "--reward", "brevity"], "holds no rows"),
        (["score", "two.txt", "--reward", "mine.py:breaks"], "two.txt:1: reward 'breaks' raised ValueError: no"),
        (["score", "two.txt", "--reward", "brevity", "--json", "--jsonl"], "two outputs"),
        (["rescore", "none", "--reward", "f1"], "no folder none"),
        (["rescore", ".", "--reward", "f1"], "holds no rollouts"),
        (["rescore", "."], "--rewards"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(cli: Any, data: Path, line: list[str], said: str) -> None:
    (data / "wrong.yaml").write_text("reward: f1\n")
    (data / "bad.jsonl").write_text('{"text": "a"}\n{oops\n')
    (data / "bad.csv").write_text("text,b\nx,1\ny\n")
    (data / "empty.txt").write_text("")
    (data / "two.txt").write_text("one\ntwo\n")
    ran = cli("rewards", *line)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_texts_are_scored_from_every_kind_of_file(cli: Any, data: Path) -> None:
    (data / "a.txt").write_text("one two three\nfour\n")
    assert cli("rewards", "score", "a.txt", "--reward", "brevity", "--param", "budget=2").out.splitlines() == [
        "0.5\tone two three",
        "1\tfour",
    ]
    (data / "a.jsonl").write_text('{"text": "#### 72", "reference": "72"}\n\n{"text": "#### 7", "reference": "72"}\n')
    rows = [
        json.loads(line)
        for line in cli("rewards", "score", "a.jsonl", "--reward", "math_correctness", "--jsonl").out.splitlines()
    ]
    assert [(row["line"], row["score"], row["reference"]) for row in rows] == [(1, 1.0, "72"), (3, 0.0, "72")]
    (data / "a.csv").write_text('said,gold\n"The Seine, of course",Seine\nSeine,Seine\n')
    (data / "two.yaml").write_text("- {type: exact_match}\n- {type: brevity, weight: 0.5}\n")
    (data / "mapped.csv").write_text('response,reference\n"Rome",Seine\nSeine,Seine\n')
    said = cli("rewards", "score", "mapped.csv", "--rewards", "two.yaml", "--json").json
    assert [row["score"] for row in said["scores"]] == [0.5, 1.5]
    assert said["scores"][0]["components"] == {"exact_match": 0.0, "brevity": 1.0}
    assert said["mean"] == 1.0
    chosen = cli("rewards", "score", "a.csv", "--reward", "brevity", "--text", "said", "--param", "budget=1")
    assert [line.split("\t")[0] for line in chosen.out.splitlines()] == ["0", "1"]


def test_a_list_without_rewards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("composition: {mode: min}\n")
    with pytest.raises(ConfigurationError, match="names no rewards"):
        read_reward_list(tmp_path / "a.yaml")


def test_rewards_are_listed_by_kind(cli: Any) -> None:
    assert {row["kind"] for row in cli("rewards", "list", "--kind", "reference", "--json").json} == {"reference"}
    assert " verifiable " in cli("rewards", "list").out
    assert cli("rewards", "list", "--kind", "nice").code == 2


# ---- rescoring -----------------------------------------------------------------------------------------------------


def answers() -> dict[str, Any]:
    """Two groups: in the first the new reward reverses the order, in the second it sees no difference."""
    texts = ["#### 7", "a much longer answer: #### 8", "short", "#### 7", "#### 7 ", "no"]
    return {
        "step": [1] * 6, "group": [0, 0, 0, 1, 1, 1], "prompt": ["p"] * 3 + ["q"] * 3, "completion": texts,
        "tokens": [2, 8, 1, 2, 2, 1], "reward": [0.0, 1.0, 0.5, 1.0, 1.0, 0.0], "column/reference": ["7"] * 6,
        "reward/old": [0.0, 1.0, 0.5, 1.0, 1.0, 0.0], "weight/old": [1.0] * 6,
    }  # fmt: skip


def test_rescoring_compares_ranks_signs_and_groups() -> None:
    rollouts = from_columns(answers())
    result = rescore(rollouts, build_rewards_of("math_correctness"))
    assert result.total.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert result.components["math_correctness"].tolist() == result.total.tolist()
    assert (result.died, result.woke, result.rows, result.groups) == (0, 0, 6, 2)
    assert result.flips == pytest.approx(2 / 6)  # rows 0 and 1; row 2 had none before
    assert result.within["kendall"] == pytest.approx((1.0 + -2 / np.sqrt(6)) / 2)
    assert set(result.changed[:2]) == {0, 1}
    assert result.counts["math_correctness/no_answer"] == 2


def build_rewards_of(*names: str) -> Any:
    from aligntune.core.config.sections import RewardConfig

    return build_rewards([RewardConfig(type=name) for name in names])


def test_groups_die_and_wake() -> None:
    rollouts = from_columns(answers())
    new = compare(rollouts, np.asarray([1.0, 1.0, 1.0, 0.0, 0.5, np.nan]))
    assert (new.died, new.woke, new.rows) == (1, 0, 5)
    assert new.died_rows == [0]
    flat = {**answers(), "reward": [1.0] * 6}
    assert compare(from_columns(flat), np.arange(6.0)).woke == 2


def test_the_same_reward_changes_nothing() -> None:
    columns, config = planted.run(0, steps=4)
    rollouts = from_columns(columns, config)
    same = compare(rollouts, rollouts.total)
    assert (same.flips, same.died, same.woke, same.changed) == (0.0, 0, 0, [])
    assert same.overall == {"spearman": pytest.approx(1.0), "kendall": pytest.approx(1.0)}
    assert same.within["kendall"] == pytest.approx(1.0)
    opposite = compare(rollouts, -rollouts.total)
    assert opposite.overall["kendall"] == pytest.approx(-1.0)
    assert opposite.flips > 0.99


def test_both_scores_are_written_beside_each_other(cli: Any, tmp_path: Path) -> None:
    columns = answers()
    writer = RolloutWriter(tmp_path / "run" / "rollouts")
    writer.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    writer.flush()
    (tmp_path / "new.yaml").write_text("rewards: [{type: math_correctness}]\n")
    ran = cli("rewards", "rescore", str(tmp_path / "run"), "--rewards", str(tmp_path / "new.yaml"), "--json")
    assert ran.json["sign_flips"] == pytest.approx(1 / 3)
    assert ran.json["changed_most"][0]["completion"]
    table = pq.read_table(ran.json["file"])
    assert Path(ran.json["file"]) == tmp_path / "run" / "rescored" / "new.parquet"
    assert table["reward"].to_pylist() == columns["reward"]
    assert table["new/reward/math_correctness"].to_pylist() == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    missing = cli("rewards", "rescore", str(tmp_path / "run"), "--reward", "code_correctness", "--reward", "tool_call")
    assert missing.code == 2


def test_a_dropped_row_is_null_in_the_file(tmp_path: Path) -> None:
    rollouts = from_columns(answers())
    result = compare(rollouts, np.asarray([1.0, np.nan, 0.0, 1.0, 0.0, 1.0]))
    table = pq.read_table(write(tmp_path / "a" / "b.parquet", rollouts, result))
    assert table["new/reward"].to_pylist()[1] is None
    assert table["new/advantage"].to_pylist()[1] is None


# ---- every built-in on real rows -----------------------------------------------------------------------------------


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]


def spider(folder: Path, count: int = 20) -> list[dict[str, Any]]:
    """Queries of one Spider database over tables of random content."""
    rng = random.Random(0)
    rows = [row for row in json.loads((folder / "dev.json").read_text()) if row["db_id"] == "concert_singer"][:count]
    schema = next(s for s in json.loads((folder / "tables.json").read_text()) if s["db_id"] == "concert_singer")
    base = sqlite3.connect(":memory:")
    for t, table in enumerate(schema["table_names_original"]):
        places = [i for i, (owner, _) in enumerate(schema["column_names_original"]) if owner == t]
        names = [f'"{schema["column_names_original"][i][1]}"' for i in places]
        base.execute(f'CREATE TABLE "{table}" ({", ".join(names)})')
        for _ in range(30):
            values = [
                rng.randrange(9) if schema["column_types"][i] == "number" else rng.choice("abcde") for i in places
            ]
            base.execute(f'INSERT INTO "{table}" VALUES ({", ".join("?" * len(names))})', values)
    script = "\n".join(base.iterdump())
    return [{"prompt": r["question"], "reference": r["query"], "database": script} for r in rows]


def real_rows(data: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]]:
    """Reward to rows, parameters, and options of the trial."""
    gsm = [
        {"prompt": r["question"], "answer": r["answer"], "reference": r["answer"].split("####")[1].strip()}
        for r in lines(data / "gsm8k" / "train.jsonl", 40)
    ]
    changed = [{**r, "original": s["reference"]} for r, s in zip(gsm, gsm[1:] + gsm[:1], strict=True)]
    mbpp = [{**r, "prompt": r["text"]} for r in lines(data / "mbpp" / "mbpp.jsonl", 12)]
    human = lines(data / "human_eval" / "HumanEval.jsonl", 12)
    arc = [
        {
            "prompt": r["question"]["stem"],
            "choices": [c["text"] for c in r["question"]["choices"]],
            "reference": r["answerKey"],
        }
        for r in lines(data / "arc" / "ARC-Challenge-Test.jsonl", 40)
        if r["answerKey"] in "ABCD"
    ]
    with (data / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8") as file:
        truthful = [{"prompt": r["Question"], "reference": r["Best Answer"]} for r in list(csv.DictReader(file))[:30]]
    tools = [
        {"prompt": r["conversations"][0]["value"], "tools": r["tools"], "reference": calls[0]["value"]}
        for r in json.loads((data / "chat_tools" / "glaive_toolcall_en_demo.json").read_text())
        if (calls := [turn for turn in r["conversations"] if turn["from"] == "function_call"])
    ][:30]
    summaries = [
        {"prompt": r["prompt"], "reference": r["completion"].replace("<|endoftext|>", "").strip()}
        for r in lines(data / "summarization" / "xsum.jsonl", 20)
    ]
    return {
        "math_correctness": (gsm, {}, {}),
        "math_reasoning": (gsm, {}, {"least": 0.8}),  # 0.8 for the answer, where no step can be checked
        "counterfactual_math": (changed, {}, {"least": 0.8}),
        "exact_match": (truthful, {}, {}),
        "f1": (truthful, {}, {}),
        "rouge": (summaries, {}, {}),
        "bleu": (summaries, {}, {}),
        "chrf": (summaries, {}, {}),
        "choice": (arc, {}, {}),
        "code_execution": (mbpp, {}, {}),
        "code_correctness": (human, {}, {}),
        "mbpp_reward": (mbpp, {}, {}),
        "code_completeness": (mbpp, {}, {}),
        "sql_result": (spider(data / "spider"), {}, {}),
        "tool_call": (tools, {}, {}),
        "answer_format": (gsm, {"style": "hash"}, {"gold": "answer"}),
    }


@pytest.mark.slow
def test_built_in_rewards_pass_on_real_rows(shared: Path) -> None:
    found = {}
    for name, (rows, params, options) in real_rows(shared / "data").items():
        trial = try_reward(RewardRegistry.get_reward_function(name, **params), rows, **options)
        found[name] = {check.name: check.detail for check in trial.checks if check.status == "fail"}
        assert statuses(trial)["gold"] == "pass", (name, found[name])
    assert {name: bad for name, bad in found.items() if bad} == {}


def test_contains_fails_by_definition() -> None:
    """It asks whether the gold text stands anywhere: hedges and lists score, as its documentation says."""
    trial = try_reward(RewardRegistry.get_reward_function("contains"), SUMS)
    assert {"hedge", "gold in noise"} <= failed(trial)


def test_a_list_may_say_how_its_rewards_are_composed(cli: Any, data: Path) -> None:
    """An answer of the right form scores its length only where it is right."""
    composed = {
        "rewards": [{"type": "exact_match"}, {"type": "brevity", "params": {"budget": 1}}],
        "composition": {"mode": "gated", "gates": {"exact_match": 1}},
    }
    (data / "gated.yaml").write_text(yaml.safe_dump(composed))
    (data / "rows.jsonl").write_text('{"text": "7", "reference": "7"}\n{"text": "8", "reference": "7"}\n')
    said = cli("rewards", "score", "rows.jsonl", "--rewards", "gated.yaml", "--json").json
    assert [row["score"] for row in said["scores"]] == [2.0, 0.0]
