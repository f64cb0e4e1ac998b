"""Win rates against references, models and earlier results, by judges and rewards; and reward accuracy."""

from __future__ import annotations

import json

import pytest

import helpers
from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.errors import EnvironmentError as MissingError
from aligntune.eval import BaseEvaluator, EvalConfig, EvalResult, EvalRunner, EvalSettings
from aligntune.eval.generation import Answer
from aligntune.eval.tasks.base import Opponent, item_ids
from aligntune.rewards.judges import FunctionJudge, compare
from endpoint import Endpoint, Reply

ROWS = [{"prompt": f"Say {i}", "reference": f"{i}"} for i in range(4)]
PAIRS = [
    {"prompt": "a", "chosen": "long enough", "rejected": "no"},
    {"prompt": "b", "chosen": "x", "rejected": "y"},
    {"prompt": "c", "chosen": "u", "rejected": "much longer"},
]


def _verdict(winner):
    return json.dumps({"reason": "so", "winner": winner})


def _shown(messages):
    """The two answers in the order in which the judge sees them."""
    text = messages[-1]["content"]

    def block(title):
        return text.split(f"[ANSWER {title} ")[1].split("\n", 1)[1].split("\n[END OF")[0]

    return block("A"), block("B")


@pytest.fixture(scope="module")
def plain(tiny_model_plain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model_plain).eval(), AutoTokenizer.from_pretrained(
        tiny_model_plain
    )


@pytest.fixture
def says(monkeypatch):
    """The evaluated model answers with this text, others with `otherwise`."""

    def speak(own, text, otherwise=""):
        def answers(model, tokenizer, prompts, **options):
            return [[Answer(text if model is own else otherwise, 1, True)] for _ in prompts]

        monkeypatch.setattr("aligntune.eval.tasks.base.generate_answers", answers)

    return speak


def test_comparisons_tell_both_orders():
    longer = FunctionJudge(lambda m: _verdict("A" if len(_shown(m)[0]) > len(_shown(m)[1]) else "B"))
    first = FunctionJudge(lambda m: _verdict("A"))
    assert compare(longer, [("p", "aaa", "b")])[0].winner == "first"
    turned = compare(first, [("p", "a", "b")])[0]
    assert (turned.winner, turned.problem, turned.straight, turned.swapped) == (None, "inconsistent", "first", "second")


def test_a_judge_decides_in_both_orders(plain, says):
    says(plain[0], "2")

    def judged(messages):
        a, b = _shown(messages)
        if "0" in (a, b):
            return _verdict("A")  # the place decides
        if "1" in (a, b):
            return "no verdict"
        return _verdict("A" if a == "2" else "B")

    result = BaseEvaluator(*plain, judge=FunctionJudge(judged)).run("win_rate", ROWS)
    # 0 turns with the order: a tie. 1 has no verdict. 2 is the same text. 3 is won.
    assert [item["scores"]["win_rate"] for item in result.items] == [0.5, None, 0.5, 1.0]
    assert result.headline.value == pytest.approx(2 / 3)
    assert (result.headline.n, result.headline.missing) == (3, 1)
    assert result.values()["consistency"] == pytest.approx(2 / 3)
    assert result.values()["tie"] == pytest.approx(2 / 3)
    assert result.values()["longer"] == 0.5
    assert result.details == {
        "opponent": "reference", "judge": "function", "problems": {"inconsistent": 1, "nonsense": 1}
    }  # fmt: skip
    assert "win_rate: 1 without a score: the judge gave no verdict" in result.notes[0]


def test_rewards_decide_without_a_judge(plain, says):
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards import build_rewards

    says(plain[0], "2")
    rewards = build_rewards([RewardConfig(type="math_correctness")])
    result = BaseEvaluator(*plain, rewards=rewards).run("win_rate", ROWS)
    assert [i["scores"]["win_rate"] for i in result.items] == [0.0, 0.0, 0.5, 0.0]
    assert "consistency" not in result.metrics


def test_another_model_or_an_earlier_result_is_met(plain, says, tmp_path):
    other = object()
    says(plain[0], "mine", "theirs!")
    longer = FunctionJudge(lambda m: _verdict("A" if len(_shown(m)[0]) > len(_shown(m)[1]) else "B"))
    met = BaseEvaluator(*plain, judge=longer, opponent=Opponent("o", None, other, plain[1])).run("win_rate", ROWS)
    assert met.headline.value == 0.0
    assert {i["opponent"] for i in met.items} == {"theirs!"}
    known = dict.fromkeys(item_ids(ROWS)[:3], "no")
    stored = BaseEvaluator(*plain, judge=longer, opponent=Opponent("o", known)).run("win_rate", ROWS)
    assert (stored.headline.value, stored.headline.n, stored.headline.missing) == (1.0, 3, 1)
    assert stored.details["problems"] == {"no_opponent": 1}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": r["prompt"], "answer": r["reference"]}) + "\n" for r in ROWS))
    return str(path)


def _file(model, data, judge=None, out=None, **task):
    task = {"name": "t", "kind": "win_rate", "dataset": data, "max_new_tokens": 4, **task}
    return EvalConfig(
        model=ModelConfig(name_or_path=str(model)), tasks=[task], judge=judge, output_dir=out and str(out)
    )


def test_from_a_file_against_an_earlier_result_and_a_model(tiny_model_plain, plain, says, data, tmp_path):
    """An earlier evaluation's answers are found by their questions; a model is loaded with its own tokenizer."""
    earlier = {"kind": "exact_match"}
    EvalRunner(_file(tiny_model_plain, data, out=tmp_path / "before", **earlier)).run()
    other = helpers.save_tiny_model(tmp_path / "other", chat=True, seed=4)
    with Endpoint(lambda call: Reply(_verdict("A"))) as endpoint:
        judge = {"url": endpoint.url, "model": "j"}
        same = EvalRunner(_file(tiny_model_plain, data, judge, opponent=str(tmp_path / "before"))).run().tasks["t"]
        assert same.headline.value == 0.5
        assert all(i["output"] == i["opponent"] for i in same.items)
        asked = len(endpoint.calls)
        model, tokenizer = plain
        says(model, "a", "b")
        against = EvalRunner(
            _file(tiny_model_plain, data, judge, out=tmp_path / "w", opponent=str(other)), model, tokenizer
        ).run()
        assert len(endpoint.calls) > asked
    task = EvalResult.load(tmp_path / "w").tasks["t"]
    assert task.details["opponent"] == str(other)
    assert against.metric("t").value == 0.5  # the judge takes whatever stands first
    assert task.metrics["consistency"].value == 0
    rows = [{"prompt": f"Other {i}", "answer": "1"} for i in range(4)]
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = _file(tiny_model_plain, str(others), judge, opponent=str(tmp_path / "before"))
    with pytest.raises(ValidationError, match="answered none of the 4 questions"):
        EvalRunner(config).run()


def test_a_bad_judge_is_told_before_anything_is_generated(tiny_model_plain, data, tmp_path, monkeypatch):
    monkeypatch.setattr(EvalRunner, "_load", lambda self: pytest.fail("loaded"))
    judge = {"url": "http://127.0.0.1:9/v1", "model": "j", "retries": 0, "timeout": 2}
    with pytest.raises(MissingError, match="cannot be asked"):
        EvalRunner(_file(tiny_model_plain, data, judge, out=tmp_path / "w")).run()
    assert not (tmp_path / "w").exists()
    with pytest.raises(ConfigurationError, match=r"tasks.0.kind: win_rate asks a judge, and the file has none"):
        EvalRunner(_file(tiny_model_plain, data))
    with pytest.raises(ConfigurationError, match="'helpfulness' scores one answer"):
        EvalRunner(_file(tiny_model_plain, data, judge, rubric="helpfulness"))
    with pytest.raises(ConfigurationError, match=r"no rubric 'pairwse'.*pairwise"):
        EvalRunner(_file(tiny_model_plain, data, judge, rubric="pairwse"))
    with pytest.raises(ConfigurationError, match="num_samples: has no effect in the kind win_rate"):
        EvalRunner(_file(tiny_model_plain, data, judge, num_samples=2, temperature=1.0))


def test_rows_without_a_reference_are_refused(tiny_model_plain, tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setattr(EvalRunner, "_load", lambda self: pytest.fail("loaded"))
    with pytest.raises(ValidationError, match="needs a reference"):
        EvalRunner(_file(tiny_model_plain, str(tmp_path / "rows.jsonl"), rewards=["length"])).run()


def test_rewards_order_pairs(plain, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    task = {
        "name": "t",
        "kind": "reward_accuracy",
        "dataset": str(tmp_path / "pairs.jsonl"),
        "rewards": [{"type": "length", "params": {"min_length": 5}}],
    }
    result = EvalRunner(EvalConfig(model=ModelConfig(name_or_path="none/such"), tasks=[task])).run().tasks["t"]
    assert [item["scores"]["reward_accuracy"] for item in result.items] == [1.0, 0.5, 0.0]
    assert result.headline.value == 0.5
    scores = [i["chosen_score"] - i["rejected_score"] for i in result.items]
    assert result.values()["reward_margin"] == pytest.approx(sum(scores) / 3)


def test_the_files_model_is_the_reward_model(tmp_path):
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards import build_rewards

    path = helpers.save_tiny_reward_model(tmp_path / "rm")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    task = {"name": "t", "kind": "reward_accuracy", "dataset": str(tmp_path / "pairs.jsonl"), "max_length": 64}
    result = EvalRunner(EvalConfig(model=ModelConfig(name_or_path=str(path)), tasks=[task])).run().tasks["t"]
    reward = build_rewards([RewardConfig(type="reward_model", params={"path": str(path)})])
    for item, pair in zip(result.items, PAIRS, strict=True):
        for side in ("chosen", "rejected"):
            alone = reward.score_batch([pair[side]], {"prompt": [item["prompt"]]}).total[0]
            assert item[f"{side}_score"] == pytest.approx(alone, abs=1e-5)
        assert item["scores"]["reward_accuracy"] == float(item["chosen_score"] > item["rejected_score"])


def test_what_needs_a_judge_or_rewards_says_so(plain):
    with pytest.raises(ValidationError, match="needs a judge or rewards"):
        BaseEvaluator(*plain).run("win_rate", ROWS, EvalSettings(max_new_tokens=1))
    with pytest.raises(ValidationError, match="needs rewards"):
        BaseEvaluator(*plain).run("reward_accuracy", PAIRS)
