"""Preference pairs from a model: what is ranked, which pairs are kept and why not, the file, its report, and a resume."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml

import runs
from aligntune.core.config import RewardConfig, field_docs
from aligntune.data.pairs import PairMaker, PairwiseRanker, RewardRanker, build_pairs_config, choose
from aligntune.data.pairs.config import PairsConfig, RankingConfig, SamplingConfig, SelectConfig
from aligntune.data.pairs.maker import COLUMNS, encoded
from aligntune.data.pairs.ranking import make_ranker
from aligntune.data.pairs.report import described, length_bias, notes, spread, summarise
from aligntune.data.pairs.selecting import REASONS, Pair, Ranked, ranks, taking_part
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.generation import Answer
from aligntune.rewards import build_rewards
from aligntune.rewards.judges import FunctionJudge, load_rubric
from endpoint import Endpoint, Reply

PROMPTS = [{"prompt": f"Say {i}", "answer": str(i)} for i in range(6)]


def ranked(scores, tokens=None, wins=None, name="p"):
    tokens = tokens or [4] * len(scores)
    answers = [Answer(f"answer {i}", n, True) for i, n in enumerate(tokens)]
    return Ranked(name, answers, list(scores), wins)


def kept(scores, tokens=None, wins=None, seed=0, name="p", **select):
    pairs, reason = choose(ranked(scores, tokens, wins, name), SelectConfig(**select), seed=seed)
    assert bool(pairs) == (reason is None)
    return reason or [(p.chosen, p.rejected) for p in pairs]


# ---- who takes part ----------------------------------------------------------------------------------------------


def test_cut_blank_and_repeated_answers_do_not_take_part():
    answers = [
        Answer("a", 1, True),
        Answer("b", 9, False),
        Answer(" a\n", 2, True),
        Answer(" ", 1, True),
        Answer("c", 1, True),
    ]
    found = taking_part("p", answers, keep_truncated=False)
    assert [a.text for a in found.answers] == ["a", "c"]
    assert found.counts == {"sampled": 5, "truncated": 1, "empty": 1, "repeated": 1}
    assert found.reason is None
    assert [a.text for a in taking_part("p", answers, keep_truncated=True).answers] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([("a", False), ("b", False), ("c", True)], "truncated"),
        ([("", True), ("  ", True), ("c", True)], "empty"),
        ([("a", True), ("a ", True), ("\na", True)], "identical"),
    ],
)
def test_the_first_step_that_leaves_fewer_than_two_is_the_reason(answers, reason):
    found = taking_part("p", [Answer(text, 1, done) for text, done in answers], keep_truncated=False)
    assert found.reason == reason
    assert choose(found, SelectConfig(), seed=0) == ([], reason)


# ---- which pairs -------------------------------------------------------------------------------------------------


def test_equal_scores_share_a_rank():
    assert ranks([0.5, 1.0, None, 0.5, 0.0]) == [2, 1, None, 2, 4]
    assert ranks([0.1 + 0.2, 0.3]) == [1, 1]


def test_best_against_worst():
    assert kept([0.2, 0.9, 0.0, 0.5]) == [(1, 2)]
    assert kept([0.2, 0.9, 0.0, 0.5], per_prompt=2) == [(1, 2), (3, 0)]
    assert kept([0.2, 0.9, 0.0, 0.5], per_prompt=9) == [(1, 2), (3, 0)]
    assert kept([1.0, 0.0, 1.0, 0.0]) == [(0, 1)]  # among equals the first
    assert kept([1.0, 0.0, 1.0, 0.0], [9, 5, 4, 8]) == [(0, 3)]  # among equals those of similar length
    assert kept([1.0, 0.0, 1.0, 0.0], [9, 5, 4, 8], per_prompt=2) == [(0, 3), (2, 1)]
    assert kept([None, 3.0, 1.0]) == [(1, 2)]


def test_best_against_random_draws_from_all_others_by_seed_and_prompt():
    scores = [0.2, 0.9, 0.0, 0.5]
    drawn = Counter(kept(scores, pairs="best_random", seed=seed)[0] for seed in range(90))
    assert set(drawn) == {(1, 0), (1, 2), (1, 3)}
    assert min(drawn.values()) > 15
    assert kept(scores, pairs="best_random", seed=5) == kept(scores, pairs="best_random", seed=5)
    assert len({tuple(kept(scores, pairs="best_random", name=str(i))) for i in range(30)}) == 3
    assert kept(scores, pairs="best_random", per_prompt=9) == [(1, 0), (1, 2), (1, 3)]
    assert kept(scores, pairs="best_random", per_prompt=9, margin=0.6) == [(1, 0), (1, 2)]


def test_all_pairs_above_the_margin_and_a_draw_of_them():
    scores = [0.2, 0.9, 0.0, 0.5]
    every = [(0, 2), (1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
    assert kept(scores, pairs="all") == every
    assert kept(scores, pairs="all", margin=0.5) == [(1, 0), (1, 2), (3, 2)]
    some = kept(scores, pairs="all", per_prompt=2)
    assert len(some) == 2
    assert set(some) < set(every)


def test_the_margin_is_reached_and_rounding_is_no_difference():
    assert kept([0.3, 0.2], margin=0.1) == [(0, 1)]  # 0.3 - 0.2 is less than 0.1 in binary
    assert kept([0.3, 0.2], margin=0.11) == "below_margin"
    assert kept([0.1 + 0.2, 0.3]) == "equal_scores"
    assert kept([5.0, 5.0, 5.0], pairs="all") == "equal_scores"
    assert kept([1.0, None, None]) == "no_score"
    pair = choose(ranked([1.0, -2.5]), SelectConfig(), seed=0)[0][0]
    assert pair == Pair(0, 1, 3.5)


def test_lengths_are_kept_alike():
    scores, tokens = [0.0, 1.0, 0.4], [30, 10, 12]
    assert kept(scores, tokens) == [(1, 0)]
    assert kept(scores, tokens, max_length_ratio=3.0) == [(1, 0)]
    assert kept(scores, tokens, max_length_ratio=2.0) == [(1, 2)]  # the furthest apart of those that are alike
    assert kept(scores, tokens, max_length_ratio=1.1) == "length_ratio"
    assert kept(scores, [30, 3, 28], max_length_ratio=2.0) == [(2, 0)]
    assert kept(scores, [30, 3, 28], max_length_ratio=2.0, pairs="best_random") == "length_ratio"


def test_a_pair_that_a_judge_compared_must_have_been_won():
    scores = [1.0, 0.5, 0.0]
    assert kept(scores, wins=frozenset({(0, 1), (0, 2), (1, 2)})) == [(0, 2)]
    assert kept(scores, wins=frozenset({(0, 1), (1, 2)}), pairs="all") == [(0, 1), (1, 2)]
    assert kept(scores, wins=frozenset()) == "not_confirmed"
    assert kept(scores, wins=frozenset({(1, 2)}), pairs="best_random") == "not_confirmed"


# ---- rankers -----------------------------------------------------------------------------------------------------


def test_rewards_get_the_row_s_columns_and_score_each_prompt_apart():
    ranker = RewardRanker(build_rewards([RewardConfig(type="contains"), RewardConfig(type="length", weight=0)]), "c")
    rows = [{"prompt": "a", "reference": "4"}, {"prompt": "b", "reference": "5"}]
    found = ranker.rank(rows, [["It is 4", "It is 5", "6"], ["5"]])
    assert found.scores == [[1.0, 0.0, 0.0], [1.0]]
    assert found.wins is None
    with pytest.raises(ValidationError, match="reference"):
        ranker.check(["prompt"])


def longer_wins(messages):
    """A judge that prefers the longer answer, in whatever place."""
    text = messages[-1]["content"]
    if "[ANSWER A " not in text:
        return "ready"
    a, b = (text.split(f"[ANSWER {x} ")[1].split("\n", 1)[1].split("\n[END OF")[0] for x in "AB")
    winner = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
    return json.dumps({"reason": "By length.", "winner": winner})


def test_comparisons_in_both_orders_become_shares_of_wins():
    judge = FunctionJudge(longer_wins)
    ranker = PairwiseRanker(judge, load_rubric("pairwise"), 1000)
    found = ranker.rank([{"prompt": "p"}, {"prompt": "q"}], [["aa", "bbbb", "cc"], []])
    assert found.scores == [[0.25, 1.0, 0.25], []]  # a tie of the two short ones counts one half
    assert found.wins == [frozenset({(1, 0), (1, 2)}), frozenset()]
    assert found.counts == {"judge/tie": 1}
    assert judge.usage.requests == 6


def test_a_judge_that_favours_a_place_decides_nothing():
    ranker = PairwiseRanker(FunctionJudge(lambda m: '{"reason": "First.", "winner": "A"}'), load_rubric("pairwise"), 99)
    found = ranker.rank([{"prompt": "p"}], [["a", "b"]])
    assert found.scores == [[None, None]]
    assert found.counts == {"judge/inconsistent": 1}


def test_an_answer_that_is_all_thought_loses_unasked():
    judge = FunctionJudge(longer_wins)
    found = PairwiseRanker(judge, load_rubric("pairwise"), 99).rank([{"prompt": "p"}], [["<think>so", "4", "<think>x"]])
    assert found.scores == [[0.25, 1.0, 0.25]]
    assert judge.usage.requests == 0


def test_rankers_say_who_ranked(tmp_path):
    def name(judge=None, **raw):
        config = build_pairs_config({**BASE, **raw}, judge=judge is not None)
        return make_ranker(config, judge).name

    judge = FunctionJudge(longer_wins)
    assert name(rewards=["contains"]) == "contains"
    assert name(rewards=["contains", {"type": "length", "weight": 0.5}]) == "sum: 1 contains + 0.5 length"
    assert name(ranking={"reward_model": "out/rm"}) == "reward_model: out/rm"
    assert name(judge) == "pairwise: function, rubric pairwise-1"
    assert name(judge, ranking={"rubric": "safety"}) == "rubric: function, rubric safety-1"
    assert name(judge, ranking={"by": "rubric"}) == "rubric: function, rubric helpfulness-1"


# ---- settings ----------------------------------------------------------------------------------------------------

BASE = {"model": {"name_or_path": "m"}, "dataset": "prompts.jsonl", "output": "pairs.jsonl"}
ENDPOINT = {"url": "http://localhost:1/v1", "model": "j"}


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        ({}, "rewards", ["rewards: [math_correctness]", "ranking.reward_model", "judge: {url"]),
        ({"ranking": {"by": "pairwise"}}, "judge", ["judge: {url", "kind: local", "reward_model"]),
        ({"ranking": {"by": "rubric"}, "rewards": []}, "judge", ["asks one"]),
        ({"rewards": ["length"], "sampling": {"num_samples": 1}}, "sampling.num_samples", ["two answers"]),
        ({"rewards": ["length"], "sampling": {"temperature": 0}}, "sampling.temperature", ["equal answers"]),
        ({"rewards": ["length"], "output": "pairs.csv"}, "output", [".jsonl or .parquet"]),
        ({"rewards": ["length"], "ranking": {"reward_model": "rm"}}, "ranking.reward_model", ["no effect", "combine"]),
        ({"rewards": ["length"], "ranking": {"by": "reward_model", "reward_model": "rm"}}, "rewards", ["no effect"]),
        ({"ranking": {"by": "rewards"}}, "rewards", ["is empty"]),
        ({"ranking": {"by": "reward_model"}}, "ranking.reward_model", ["is missing"]),
        ({"ranking": {"reward_model": "rm"}, "judge": ENDPOINT}, "judge", ["no effect"]),
        ({"rewards": ["length"], "ranking": {"max_chars": 5}}, "ranking.max_chars", ["no effect"]),
        ({"judge": ENDPOINT, "composition": {"none": "zero"}}, "composition.none", ["no effect"]),
        ({"judge": ENDPOINT, "ranking": {"by": "pairwise", "rubric": "safety"}}, "ranking.rubric", ["form: score"]),
        ({"judge": ENDPOINT, "select": {"margin": 1.5}}, "select.margin", ["at most 1"]),
        ({"judge": {"model": "j"}}, "judge.url", ["is missing"]),
        ({"rewards": ["length", "contains"], "composition": {"normalise": "group"}}, "composition.normalise", ["training"]),
        ({"rewards": ["length"], "composition": {"mode": "min"}}, "composition.mode", ["two rewards"]),
        ({"rewards": ["length"], "dataset": {"name": "p", "streaming": True}}, "dataset.streaming", ["no effect"]),
        ({"rewards": ["length"], "select": {"margn": 1}}, "select.margn", ["unknown key", "margin"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_cure(raw, key, words):
    with pytest.raises(ConfigurationError) as error:
        build_pairs_config({**BASE, **raw})
    told = f"{error.value.message} {error.value.hint}"
    assert key in told
    assert [word for word in words if word not in told] == []


def test_all_faults_come_at_once_and_overrides_reach_everything():
    with pytest.raises(ConfigurationError, match=r"3 settings") as error:
        build_pairs_config(BASE, ["sampling.num_samples=1", "output=x.txt"])
    assert len(error.value.context["faults"]) == 3
    config = build_pairs_config(BASE, ["rewards=[length]", "select.per_prompt=3", "sampling.stop=['.']"])
    assert (config.select.per_prompt, config.sampling.stop) == (3, ["."])


def test_every_field_is_documented_with_its_source():
    for cls in (PairsConfig, SamplingConfig, RankingConfig, SelectConfig):
        assert set(cls.__dataclass_fields__) <= set(field_docs(cls))


def test_a_margin_that_no_two_scores_have_and_a_judge_that_nothing_asks():
    config = build_pairs_config({**BASE, "rewards": ["contains"], "select": {"margin": 2}})
    with pytest.raises(ConfigurationError, match="differ by at most 1"):
        make_ranker(config)
    with pytest.raises(ConfigurationError, match="no reward asks"):
        make_ranker(build_pairs_config({**BASE, "rewards": ["contains"], "judge": ENDPOINT}))


# ---- the report --------------------------------------------------------------------------------------------------


def test_numbers_of_scores_and_lengths():
    assert spread([]) == {"n": 0}
    assert spread([4.0, 1.0, 2.0, 3.0]) == pytest.approx(
        {"n": 4, "mean": 2.5, "std": (5 / 3) ** 0.5, "min": 1.0, "q1": 1.75, "median": 2.5, "q3": 3.25, "max": 4.0}
    )
    pairs = [{"chosen_tokens": a, "rejected_tokens": b} for a, b in [(9, 3), (8, 3), (2, 3), (5, 5)]]
    assert length_bias(pairs) == {
        "chosen_tokens": 6.0, "rejected_tokens": 3.5, "longer": 2, "shorter": 1, "equal": 1, "chosen_longer": 2 / 3,
        "p": 1.0,
    }  # fmt: skip
    assert length_bias([])["chosen_longer"] is None


def test_every_prompt_is_counted_once_and_a_bias_is_told():
    answers = [Answer("a", 1, True), Answer("bb", 2, True)]
    asked = [Ranked(str(i), answers, [0.0, 1.0], counts=Counter(sampled=5, truncated=2, repeated=1)) for i in range(10)]
    pairs = [{"margin": 1.0, "chosen_tokens": 2, "rejected_tokens": 1} for _ in range(9)]
    report = summarise(asked, pairs, {"below_margin": 1, "prompt_too_long": 2, "truncated": 0})
    assert (report["prompts"], report["prompts_with_pairs"], report["pairs"]) == (12, 9, 9)
    assert report["dropped"] == {"prompt_too_long": 2, "below_margin": 1}
    assert report["answers"] == {
        "sampled": 50, "truncated": 20, "empty": 0, "repeated": 10, "no_score": 0, "ranked": 20
    }  # fmt: skip
    assert report["length"]["p"] == 2 / 2**9
    told = notes(report)
    assert len(told) == 2
    assert "longer one in 100%" in told[0]
    assert "20 of 50 answers were cut" in told[1]
    text = described({**report, "ranker": "contains", "notes": told})
    assert "9 pairs of 12 prompts, ranked by contains" in text
    assert REASONS["below_margin"] in text


# ---- the whole ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tiny_model):
    """The tiny model in memory, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def raw(tiny_model, tmp_path):
    """Plain values that rank by the share of a reward written here; answers of an untrained model are never finished."""
    rows = runs.write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    reward = tmp_path / "shape.py"
    reward.write_text(
        "def low_bytes(text, answer):\n    return sum(ord(c) < 80 for c in text) / len(text)\n\n"
        "def constant(text):\n    return 0.5\n"
    )
    return {
        "model": {"name_or_path": str(tiny_model)},
        "dataset": str(rows),
        "sampling": {"num_samples": 4, "max_new_tokens": 8, "batch_size": 2, "temperature": 1.0, "keep_truncated": True},
        "rewards": [{"type": f"{reward}:low_bytes"}],
        "output": str(tmp_path / "pairs.jsonl"),
    }  # fmt: skip


def make(raw, policy, *overrides, resume=False, judge=None):
    config = build_pairs_config(raw, overrides, judge=judge is not None)
    return PairMaker(config, *policy, judge=judge).make(resume=resume)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_file_holds_the_pairs_and_where_they_come_from(raw, policy, tmp_path):
    result = make(raw, policy)
    rows = read(tmp_path / "pairs.jsonl")
    assert rows == result.pairs
    assert len(rows) == len({row["prompt_id"] for row in rows}) == result.report["prompts_with_pairs"] > 3
    for row in rows:
        assert list(row) == ["prompt", "chosen", "rejected", *COLUMNS]
        for side in ("chosen", "rejected"):
            text = row[side][0]["content"]
            assert row[side][0]["role"] == "assistant"
            assert row[f"{side}_score"] == sum(ord(c) < 80 for c in text) / len(text)
        assert row["margin"] == row["chosen_score"] - row["rejected_score"] > 0
        assert (row["chosen_rank"], row["seed"], row["ranker"]) == (1, 42, "low_bytes")
        assert 2 <= row["rejected_rank"] <= row["answers"] <= 4
        assert row["sampling"]["temperature"] == 1.0
    report = yaml.safe_load((tmp_path / "pairs.report.yaml").read_text())
    assert report["pairs"] == len(rows)
    assert report["prompts"] == 6
    assert report["answers"]["sampled"] == 24
    assert report["config"]["sampling"]["num_samples"] == 4
    assert report["margins"]["min"] == min(row["margin"] for row in rows)
    assert not list(tmp_path.glob(".*journal"))
    with pytest.raises(ConfigurationError, match="exists"):
        make(raw, policy)
    assert make(raw, policy, f"output={tmp_path / 'again.jsonl'}").pairs == rows
    assert make(raw, policy, f"output={tmp_path / 'other.jsonl'}", "seed=7").pairs != rows


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_file(raw, policy, tmp_path, monkeypatch, after):
    monkeypatch.setattr("aligntune.data.pairs.maker.BATCHES", 4)  # chunks of two prompts
    whole = make(raw, policy, f"output={tmp_path / 'whole.jsonl'}").pairs
    calls = []
    chunk = PairMaker._chunk

    def dying(self, *args):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(args[-1])
        return chunk(self, *args)

    monkeypatch.setattr(PairMaker, "_chunk", dying)
    with pytest.raises(KeyboardInterrupt):
        make(raw, policy)
    assert not (tmp_path / "pairs.jsonl").exists()
    journal = tmp_path / ".pairs.jsonl.journal"
    journal.write_bytes(journal.read_bytes() + b'{"chunk": 2, "items": [{"id"')  # killed while writing
    monkeypatch.setattr(PairMaker, "_chunk", lambda self, *args: calls.append(args[-1]) or chunk(self, *args))
    with pytest.raises(ConfigurationError, match="unfinished") as refused:
        make(raw, policy)
    assert "--resume" in refused.value.hint
    with pytest.raises(ConfigurationError, match="another sampling"):
        make(raw, policy, "sampling.temperature=0.9", resume=True)
    assert make(raw, policy, resume=True).pairs == whole
    assert calls == [0, 1, 2]
    assert read(tmp_path / "pairs.jsonl") == whole


def test_where_nothing_is_kept_the_answers_stay_for_another_selection(raw, policy, tmp_path, monkeypatch):
    with pytest.raises(ValidationError, match="none of 6 prompts gives a pair") as error:
        make(raw, policy, "select.margin=0.99")
    assert "lower select.margin and go on with --resume" in error.value.hint
    monkeypatch.setattr(PairMaker, "_chunk", None)  # nothing is sampled again
    assert make(raw, policy, resume=True).report["pairs"] > 3


def test_a_reward_that_tells_nothing_apart(raw, policy, tmp_path):
    constant = [{"type": raw["rewards"][0]["type"].replace("low_bytes", "constant")}]
    with pytest.raises(ValidationError, match=r"all \d+ answers have the score 0.5 .* nothing to learn"):
        make({**raw, "rewards": constant}, policy)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("__")) == ["prompts.jsonl", "shape.py"]


def test_answers_that_do_not_end_and_prompts_that_are_too_long(raw, policy, tmp_path):
    with pytest.raises(ValidationError, match="none of 6 prompts") as error:
        make(raw, policy, "sampling.keep_truncated=false", "sampling.max_new_tokens=1")
    assert "max_new_tokens" in error.value.hint
    with pytest.raises(ValidationError, match="no prompt leaves room"):
        make(raw, policy, "sampling.max_new_tokens=2040", f"output={tmp_path / 'b.jsonl'}")
    runs.write_rows(tmp_path / "prompts.jsonl", [*PROMPTS, {"prompt": "x" * 3000, "answer": "1"}])
    report = make(raw, policy, f"output={tmp_path / 'c.jsonl'}").report
    assert (report["prompts"], report["dropped"]["prompt_too_long"], report["answers"]["sampled"]) == (7, 1, 24)


def test_no_prompts_and_a_missing_column(raw, policy, tmp_path):
    runs.write_rows(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    with pytest.raises(ValidationError, match="answer"):
        make(raw, policy)
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(ValidationError, match="holds no rows"):
        make(raw, policy)


def test_a_judge_in_memory_compares(raw, policy, tmp_path):
    judge = FunctionJudge(longer_wins)
    plain = {k: v for k, v in raw.items() if k != "rewards"}
    result = make(plain, policy, "select.pairs=all", judge=judge)
    for row in result.pairs:
        assert len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"])
        assert 0 < row["margin"] <= 1
    assert result.report["judge"]["requests"] == judge.usage.requests > 0
    with pytest.raises(ConfigurationError, match="two judges"):
        PairMaker(build_pairs_config({**plain, "judge": ENDPOINT}), judge=judge)


def test_a_preference_run_reads_the_file_without_a_mapping(raw, policy, tiny_model, tmp_path):
    for name in ("pairs.jsonl", "pairs.parquet"):
        made = make(raw, policy, f"output={tmp_path / name}").pairs
        (tmp_path / f"{(tmp_path / name).stem}.report.yaml").unlink()
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "pairs.parquet").to_pylist() == made
    folder = tmp_path / "dpo"
    trainer = runs.trainer("dpo", tiny_model, folder, datasets=[str(tmp_path / "pairs.parquet")], train__max_steps=2)
    result = trainer.train()
    assert result.total_steps == 2
    assert runs.logged(folder / "out")[0] == pytest.approx(0.6931, abs=1e-3)
    from aligntune.algorithms.base import Schema
    from aligntune.core.config import DatasetConfig
    from aligntune.data import prepare_dataset

    prepared = prepare_dataset(DatasetConfig(name=str(tmp_path / "pairs.jsonl")), Schema.PREFERENCE)
    assert [dict(row) for row in prepared.dataset] == [
        {k: p[k] for k in ("prompt", "chosen", "rejected")} for p in made
    ]


def test_odd_texts_are_written_as_json():
    data = encoded([{"chosen": "\ud800 ü", "margin": 1.0}], ".jsonl")
    assert json.loads(data.decode("utf-8")) == {"chosen": "\ud800 ü", "margin": 1.0}


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_with_flags_and_with_a_file(raw, tmp_path, cli):
    reward = raw["rewards"][0]["type"]
    flags = ["--model", raw["model"]["name_or_path"], "--dataset", raw["dataset"], "--reward", reward]
    small = ["--samples", "3", "--max-new-tokens", "6", "--temperature", "1", "--select", "all", "--per-prompt", "2"]
    ran = cli("data", "pairs", *flags, *small, "--out", tmp_path / "a.jsonl", "sampling.keep_truncated=true", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pairs"] == len(read(tmp_path / "a.jsonl")) > 6
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    ran = cli("data", "pairs", tmp_path / "run.yaml", "--margin", "0.1", "select.max_length_ratio=3")
    assert ran.code == 0, ran.err
    assert "pairs of 6 prompts, ranked by low_bytes" in ran.out
    assert min(row["margin"] for row in read(tmp_path / "pairs.jsonl")) >= 0.1
    assert cli("data", "pairs", tmp_path / "run.yaml").code == 2


def test_the_command_asks_a_judge_at_its_endpoint(raw, tmp_path, cli):
    flags = ["--model", raw["model"]["name_or_path"], "--dataset", raw["dataset"], "--max-prompts", "2"]
    small = ["--samples", "3", "--max-new-tokens", "6", "sampling.keep_truncated=true", "--out", tmp_path / "a.jsonl"]
    with Endpoint(lambda call: Reply(longer_wins(call.body["messages"]))) as endpoint:
        ran = cli("data", "pairs", *flags, *small, "--judge-url", endpoint.url, "--judge-model", "j", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["ranker"] == "pairwise: j at 127.0.0.1, rubric pairwise-1"
    assert ran.json["judge"]["failures"] == 0
    ran = cli("data", "pairs", *flags, *small)
    assert ran.code == 2
    assert "nothing says what ranks" in ran.err
    assert "Traceback" not in ran.err


def test_a_reward_model_ranks(raw, policy, tmp_path):
    import helpers

    path = helpers.save_tiny_reward_model(tmp_path / "rm")
    plain = {k: v for k, v in raw.items() if k != "rewards"}
    result = make({**plain, "ranking": {"reward_model": str(path)}}, policy)
    assert result.report["ranker"] == f"reward_model: {path}"
    alone = build_rewards([RewardConfig(type="reward_model", params={"path": str(path)})])
    row = result.pairs[0]
    for side in ("chosen", "rejected"):
        score = alone.compute(row[side][0]["content"], prompt=row["prompt"])
        assert row[f"{side}_score"] == pytest.approx(score, abs=1e-4)
