"""The runner end to end on a tiny model: every kind, files on disk, pairing of two results, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.eval import (
    EvalConfig,
    EvalResult,
    EvalRunner,
    EvalSettings,
    EvalTask,
    RLEvaluator,
    SampleLogger,
    compare,
    generate_texts,
    preference_logprobs,
    sequence_logprobs,
)
from aligntune.eval.evaluators import BaseEvaluator
from aligntune.eval.metrics.base import MetricValue
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.result import TaskResult
from aligntune.eval.tasks.base import EvalKind, item_ids
from aligntune.eval.tasks.function import function_kind

QUESTIONS = [{"prompt": f"{a}+{a}=?", "answer": str(2 * a)} for a in range(6)]
TEXTS = [{"text": "one two three"}, {"text": "four"}]
PAIRS = [
    {"prompt": "Hi", "chosen": "Hello there", "rejected": "Go"},
    {"prompt": "Bye", "chosen": "So long", "rejected": "No"},
]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def data(tmp_path):
    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return {"questions": write("questions", QUESTIONS), "texts": write("texts", TEXTS), "pairs": write("pairs", PAIRS)}


def _config(model, tasks, **more):
    return EvalConfig(model=ModelConfig(name_or_path=str(model)), tasks=tasks, **more)


def test_every_kind_from_files_to_files(tiny_model, data, tmp_path):
    short = {"dataset": data["questions"], "max_new_tokens": 4, "batch_size": 4}
    tasks = [
        EvalTask(name="sums", kind="exact_match", **short),
        EvalTask(
            name="words",
            kind="reward",
            rewards=[{"type": "length", "params": {"min_length": 1}}, "answer_format"],
            **short,
        ),
        EvalTask(name="text", kind="perplexity", dataset=data["texts"]),
        EvalTask(name="pairs", kind="preference", dataset=data["pairs"], reference_model=str(tiny_model)),
    ]
    out = tmp_path / "out"
    result = EvalRunner(_config(tiny_model, tasks, output_dir=str(out))).run()

    assert result.metric("sums").name == "accuracy"
    assert result.metric("sums").n == 6
    assert set(result.tasks["words"].metrics) == {
        "reward",
        "rewards/length",
        "rewards/answer_format",
        "tokens",
        "finished",
    }
    words = result.tasks["words"]
    for item in words.items:
        assert item["reward"] == pytest.approx(item["rewards/length"] + item["rewards/answer_format"])
    assert result.metric("words", "reward").value == pytest.approx(sum(i["reward"] for i in words.items) / 6)
    nll = result.metric("text", "nll").value
    assert result.metric("text").value == pytest.approx(math.exp(nll))
    # The model is its own reference: no implicit reward differs from 0, and every pair is a tie.
    assert result.metric("pairs", "preference_accuracy").value == 0.5
    assert result.metric("pairs", "reward_margin").value == 0.0
    assert result.metric("pairs", "logprob_accuracy").value in (0.0, 0.5, 1.0)
    assert result.tasks["sums"].settings["chat_template"] is True
    assert result.tasks["sums"].settings["max_new_tokens"] == 4
    assert len(result.tasks["sums"].settings["content_hash"]) == 64

    assert json.loads((out / "manifest.json").read_text())["status"] == "finished"
    assert (out / "config.resolved.yaml").is_file()
    loaded = EvalResult.load(out)
    assert loaded.to_dict(items=True) == json.loads(
        json.dumps(dataclasses.replace(result, seconds=loaded.seconds).to_dict(items=True))
    )
    assert all(row["value"] is not None for row in result.rows())
    with pytest.raises(ConfigurationError, match="holds a finished run"):
        EvalRunner(_config(tiny_model, tasks, output_dir=str(out))).run()


def test_the_answers_are_those_of_generate_texts_and_repeat(tiny, data):
    model, tokenizer = tiny
    task = EvalTask(name="sums", kind="exact_match", dataset=data["questions"], max_new_tokens=5, match="text")
    config = _config("tiny", [task])
    result = EvalRunner(config, model, tokenizer).run()
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in QUESTIONS]
    want = [texts[0] for texts in generate_texts(model, tokenizer, prompts, max_new_tokens=5)]
    assert [item["output"] for item in result.tasks["sums"].items] == want
    assert [item["reference"] for item in result.tasks["sums"].items] == [row["answer"] for row in QUESTIONS]
    assert EvalRunner(config, model, tokenizer).run().tasks["sums"].items == result.tasks["sums"].items


def test_final_answers_are_extracted_and_graded(tiny, data, monkeypatch):
    from aligntune.eval.generation import Answer

    said = ["The answer is 0.", "#### 2", "so 1+1+2 = 4", "7", "nothing", "10 or 11"]
    monkeypatch.setattr(
        "aligntune.eval.tasks.base.generate_answers", lambda *a, **k: [[Answer(text, 3, True)] for text in said]
    )
    task = EvalTask(name="sums", kind="exact_match", dataset=data["questions"])
    items = EvalRunner(_config("tiny", [task]), *tiny).run().tasks["sums"].items
    assert [item["scores"]["accuracy"] for item in items] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert items[4]["prediction"] is None


def test_several_samples_are_averaged_over_the_prompt(tiny, data):
    task = EvalTask(
        name="words", kind="reward", dataset=data["questions"], rewards=["length"], max_new_tokens=6,
        num_samples=3, temperature=1.0, max_samples=4,
    )  # fmt: skip
    result = EvalRunner(_config("tiny", [task]), *tiny).run().tasks["words"]
    assert len(result.items) == 12
    assert [item["sample"] for item in result.items[:4]] == [0, 1, 2, 0]
    assert result.headline.n == 4
    assert len({item["id"] for item in result.items}) == 4


def test_pair_scores_are_sequence_logprobs(tiny):
    model, tokenizer = tiny
    got = preference_logprobs(model, tokenizer, PAIRS)
    flat = sequence_logprobs(model, tokenizer, [(p["prompt"], p[s]) for p in PAIRS for s in ("chosen", "rejected")])
    assert [(round(x, 4), n) for pair in got for x, n in (pair.chosen, pair.rejected)] == [
        (round(x, 4), n) for x, n in flat
    ]


def test_implicit_rewards_equal_trl_dpo(tiny, tmp_path):
    """Accuracy and margin of TRL's DPOTrainer.evaluate for a model that has moved away from its reference."""
    import copy

    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    reference, tokenizer = tiny
    model = copy.deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    rows = [
        {"prompt": [{"role": "user", "content": f"say {i}"}], "chosen": [{"role": "assistant", "content": "a" * i}],
         "rejected": [{"role": "assistant", "content": "bc" * (4 - i)}]} for i in (1, 2, 3)
    ]  # fmt: skip
    args = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, bf16=False, use_cpu=True, report_to=[], per_device_eval_batch_size=3
    )
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    theirs = trainer.evaluate()
    model.eval()
    ours = BaseEvaluator(model, tokenizer, reference=reference).run("preference", rows, EvalSettings(beta=0.3)).values()
    assert ours["preference_accuracy"] == pytest.approx(theirs["eval_rewards/accuracies"])
    assert ours["reward_margin"] == pytest.approx(theirs["eval_rewards/margins"], abs=1e-4)


def test_rl_evaluator_chooses_by_the_rows(tiny):
    from aligntune.core.config import RewardConfig
    from aligntune.rewards import build_rewards

    model, tokenizer = tiny
    rewards = build_rewards([RewardConfig(type="length")])
    evaluator = RLEvaluator(model, tokenizer, rewards=rewards, reference=model, max_new_tokens=3)
    assert set(evaluator.evaluate(QUESTIONS)) == {"reward", "rewards/length", "tokens", "finished"}
    assert evaluator.evaluate(PAIRS)["preference_accuracy"] == 0.5
    assert set(BaseEvaluator(model, tokenizer).evaluate(TEXTS)) == {"perplexity", "nll", "cut"}
    with pytest.raises(ValidationError, match="needs rewards"):
        RLEvaluator(model, tokenizer).evaluate(QUESTIONS)
    with pytest.raises(ValidationError, match="no rows"):
        evaluator.evaluate([])


def test_cut_rows_and_lost_answers_are_counted(tiny):
    evaluator = BaseEvaluator(*tiny)
    text = evaluator.run("perplexity", TEXTS, EvalSettings(max_length=6))
    assert (text.metrics["cut"].value, text.items[0]["tokens"], text.items[1]["tokens"]) == (0.5, 5, 4)
    pairs = evaluator.run("preference", PAIRS, EvalSettings(max_length=3))
    assert pairs.headline.value == pytest.approx(pairs.items[0]["scores"]["logprob_accuracy"])
    assert (pairs.headline.n, pairs.headline.missing) == (1, 1)
    assert pairs.notes[0].endswith("an answer has no token left within max_length or the model's context")


def _result(scores, *, metric="accuracy", weight=None, tokens=None):
    items = [
        {"id": i, "scores": {metric: score}, **({"tokens": tokens[i]} if tokens else {})} for i, score in scores.items()
    ]
    value = MetricValue(metric, 0.5, 0.4, 0.6, len(items), weight=weight)
    return EvalResult("m", {"t": TaskResult("t", "exact_match", {metric: value}, items)})


def test_comparison_pairs_items_by_id():
    a = _result({"x": 1.0, "y": 1.0, "z": 0.0, "only": 1.0})
    b = _result({"z": 0.0, "y": 0.0, "x": 1.0, "none": None})
    [row] = compare(a, b)
    assert (row.a, row.b, row.difference.difference) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    assert (row.difference.wins, row.difference.losses, row.difference.n) == (1, 0, 3)
    assert (row.only_a, row.only_b) == (1, 0)
    assert "t accuracy: 0.6667 - 0.3333 = +0.3333" in str(row)
    assert a.compare(a)[0].difference.p_value == 1.0


def test_comparison_of_likelihood_is_weighted_by_tokens():
    tokens = {"x": 1, "y": 3}
    a = _result({"x": 2.0, "y": 1.0}, metric="nll", weight="tokens", tokens=tokens)
    b = _result({"x": 1.0, "y": 1.0}, metric="nll", weight="tokens", tokens=tokens)
    [row] = compare(a, b)
    assert (row.a, row.b, row.difference.difference) == (1.25, 1.0, 0.25)
    c = _result({"x": 1.0, "y": 1.0}, metric="nll", weight="tokens", tokens={"x": 2, "y": 3})
    [row] = compare(a, c)
    assert row.difference is None
    assert "count different tokens" in row.reason


def test_comparisons_that_cannot_be_made_say_why():
    [row] = compare(_result({"x": 1.0}), _result({"y": 1.0}))
    assert (row.difference, row.only_a, row.only_b) == (None, 1, 1)
    assert "share no scored item" in str(row)
    other = EvalResult("m", {"u": _result({"x": 1.0}).tasks["t"]})
    with pytest.raises(ValidationError, match="no task in common"):
        compare(_result({"x": 1.0}), other)
    with pytest.raises(ValidationError, match="no task 'u'"):
        _result({"x": 1.0}).metric("u")
    with pytest.raises(ValidationError, match="no metric 'bleu'"):
        _result({"x": 1.0}).metric("t", "bleu")


def test_results_that_cannot_be_read(tmp_path):
    with pytest.raises(ValidationError, match=r"holds no results\.json"):
        EvalResult.load(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValidationError, match="is not an evaluation result"):
        EvalResult.load(tmp_path)


def test_item_ids_follow_content_not_order():
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 1}, {"n": 1, "prompt": "a"}]
    ids = item_ids(rows)
    assert ids[2] == f"{ids[0]}-2"
    assert item_ids(rows[1:])[::-1] == ids[:2]


def test_bad_data_is_refused_before_anything_is_loaded_or_written(data, tmp_path):
    out = tmp_path / "out"

    def run(**task):
        EvalRunner(_config("no-such-model", [EvalTask(name="t", **task)], output_dir=str(out))).run()

    (tmp_path / "bare.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(ValidationError, match="exact_match needs a reference answer"):
        run(kind="exact_match", dataset=str(tmp_path / "bare.jsonl"))
    with pytest.raises(ValidationError, match="needs the column"):
        run(kind="reward", dataset=str(tmp_path / "bare.jsonl"), rewards=["math_correctness"])
    with pytest.raises(ConfigurationError):
        run(kind="reward", dataset=data["questions"], rewards=["no_such_reward"])
    with pytest.raises(ConfigurationError, match="belong together"):
        EvalRunner(_config("x", [EvalTask(name="t", kind="perplexity", dataset=data["texts"])]), model=object())
    assert not out.exists()


def test_a_reward_that_raises_marks_the_folder_as_failed(tiny, data, tmp_path):
    (tmp_path / "bad.py").write_text("def broken(text):\n    raise ZeroDivisionError('no')\n")
    task = EvalTask(
        name="t", kind="reward", dataset=data["questions"], rewards=[f"{tmp_path}/bad.py:broken"], max_new_tokens=2
    )
    with pytest.raises(RewardError, match="broken"):
        EvalRunner(_config("tiny", [task], output_dir=str(tmp_path / "out")), *tiny).run()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "failed"


def test_a_kind_of_ones_own_runs(tiny):
    from aligntune.eval.metrics import MeanMetric
    from aligntune.eval.tasks.base import answers

    class Letters(EvalKind):
        options = frozenset({"max_new_tokens"})

        def items(self, rows, ids, settings, subject):
            return [{**item, "letters": len(item["output"])} for item in answers(rows, ids, settings, subject)]

        def metrics(self, settings, items):
            return [MeanMetric("letters")]

    result = BaseEvaluator(*tiny).run(Letters(), QUESTIONS, EvalSettings(max_new_tokens=3))
    assert (result.kind, result.headline.n) == ("Letters", 6)
    assert result.settings["max_new_tokens"] == 3


def test_a_function_scores_answers(tiny, tmp_path):
    """A decorated function is a kind: numbers, truth values, items without a score, and what is refused."""

    @EvalRegistry.register("even")
    def even(output, row):
        return None if row["reference"] == "3" else len(row["reference"]) % 2 == 1 and bool(output)

    rows = [{"prompt": q["prompt"], "reference": "1" * (1 + i % 2) if i else "3"} for i, q in enumerate(QUESTIONS)]
    try:
        result = BaseEvaluator(*tiny).run("even", rows, EvalSettings(max_new_tokens=3))
        metric = result.headline
        assert (metric.name, metric.missing, metric.n) == ("even", 1, len(rows) - 1)
        assert metric.value == pytest.approx(sum(len(r["reference"]) == 1 for r in rows[1:]) / (len(rows) - 1))
        assert metric.method == "wilson"
        with pytest.raises(ConfigurationError, match="registered already"):
            EvalRegistry.register("even")(lambda output, row: 1.0)
    finally:
        EvalRegistry.remove("even")
    (tmp_path / "mine.py").write_text("def half(output, row):\n    return 0.5\n\ndef one(output):\n    return 1\n")
    kind = EvalRegistry.get(f"{tmp_path / 'mine.py'}:half")
    assert BaseEvaluator(*tiny).run(kind(), rows, EvalSettings(max_new_tokens=1)).headline.value == 0.5
    unnamed = function_kind(lambda output, row: 1.0, "mine.py:always")
    assert unnamed.name == "always"
    with pytest.raises(ConfigurationError, match="cannot score an answer") as caught:
        EvalRegistry.get(f"{tmp_path / 'mine.py'}:one")
    assert "(output, row)" in caught.value.hint
    for wrong, told in (
        (lambda output, row: "x", "returned 'x'"),
        (lambda output, row: row["gold"], "raised KeyError"),
    ):
        with pytest.raises(ValidationError, match=told):
            BaseEvaluator(*tiny).run(function_kind(wrong, "wrong")(), rows[:1], EvalSettings(max_new_tokens=1))


def test_sample_logger_keeps_answers_side_by_side(tiny, tmp_path):
    model, tokenizer = tiny
    path = tmp_path / "samples.jsonl"
    samples = SampleLogger(["1+1=?", "2+2=?"], references=["2", "4"], path=path, max_new_tokens=3)
    first = samples.log(model, tokenizer, step=0)
    samples.log(model, tokenizer, step=10)
    table = samples.side_by_side()
    assert [row["reference"] for row in table] == ["2", "4"]
    assert table[1]["answers"] == {0: first[1]["answer"], 10: first[1]["answer"]}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 0, 10, 10]
    with pytest.raises(ValidationError, match="2 prompts and 1 references"):
        SampleLogger(["a", "b"], references=["x"])
    with pytest.raises(ValidationError, match="0 prompts"):
        SampleLogger([])
    with pytest.raises(ValidationError, match=r"1\.5 is no share"):
        SampleLogger(["a"], shares=[1.5])


def test_sample_logger_answers_at_shares_of_training_once(tiny, tmp_path, monkeypatch):
    asked = []

    def answer(model, tokenizer, prompts, **options):
        asked.append(prompts)
        return [[f"answer {len(asked)}"] for _ in prompts]

    monkeypatch.setattr("aligntune.eval.sample_logger.generate_texts", answer)
    model, tokenizer = tiny
    path = tmp_path / "samples.jsonl"
    for last in (7, 10):  # a loop that is stopped after step 6, and goes on from step 5
        samples = SampleLogger(["1+1=?"], shares=[1, 0, 0.51, 0.5], path=path)
        for step in range(0 if last == 7 else 5, last + (last == 10)):
            if (share := samples.due(step, 10)) is not None:
                samples.log(model, tokenizer, step, share)
    assert [(row["step"], row["share"]) for row in samples.rows] == [(0, 0), (5, 0.51), (10, 1)]
    (row,) = samples.side_by_side()
    assert row["answers"] == {0: "answer 1", 5: "answer 2", 10: "answer 3"}
    # A text is the user's turn, as a run asks it.
    want = [{"role": "user", "content": "1+1=?"}] if tokenizer.chat_template else "1+1=?"
    assert asked == [[want]] * 3
