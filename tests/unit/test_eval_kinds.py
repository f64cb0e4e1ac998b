"""Kinds of evaluation on tiny models: values against plain loops, few-shot prompts, stop strings, what is refused."""

from __future__ import annotations

import json
import math

import pytest

from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import (
    BaseEvaluator,
    EvalConfig,
    EvalResult,
    EvalRunner,
    EvalSettings,
    RougeMetric,
    compare,
    token_statistics,
)
from aligntune.eval.generation import Answer, generate_answers
from aligntune.eval.prompts import Shots, ask
from aligntune.eval.tasks.base import Subject, item_ids

QUESTIONS = [
    {"prompt": "2+2?", "choices": ["three", "four"], "reference": "B"},
    {"prompt": "The sky is", "choices": {"A": "blue", "B": "a kind of cheese", "C": "up"}, "reference": "blue"},
    {"prompt": "Grass is", "choices": {"label": ["1", "2"], "text": ["green", "red"]}, "reference": "1"},
]


def _load(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return _load(tiny_model)


@pytest.fixture(scope="module")
def plain(tiny_model_plain):
    return _load(tiny_model_plain)


@pytest.fixture
def says(monkeypatch):
    """Every prompt is answered by what this is given, sample after sample."""

    def speak(*texts):
        def answers(model, tokenizer, prompts, **options):
            return [[Answer(text, len(text), True) for text in texts] for _ in prompts]

        monkeypatch.setattr("aligntune.eval.tasks.base.generate_answers", answers)

    return speak


def _logp(model, tokenizer, context, continuation):
    """log p(continuation | context), one pass and a loop."""
    import torch

    start, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(logps[t - 1, ids[t]].item() for t in range(start, len(ids)))


def test_multiple_choice_equals_a_plain_loop(plain):
    model, tokenizer = plain
    result = BaseEvaluator(model, tokenizer).run("multiple_choice", QUESTIONS, EvalSettings(batch_size=2))
    for item, row in zip(result.items, QUESTIONS, strict=True):
        wanted = [_logp(model, tokenizer, row["prompt"], " " + text) for text in item["options"].values()]
        assert item["logps"] == pytest.approx(wanted, abs=1e-4)
        labels, lengths = list(item["options"]), [len(t) for t in item["options"].values()]
        assert item["prediction"] == labels[wanted.index(max(wanted))]
        norm = [w / n for w, n in zip(wanted, lengths, strict=True)]
        assert item["prediction_norm"] == labels[norm.index(max(norm))]
        assert item["correct"] == float(item["prediction"] == item["reference"])
        assert item["confidence"] == pytest.approx(max(map(math.exp, wanted)) / sum(map(math.exp, wanted)), rel=1e-3)
    assert [item["reference"] for item in result.items] == ["B", "A", "1"]
    assert list(result.metrics) == ["accuracy", "accuracy_norm", "brier", "ece"]
    one = BaseEvaluator(model, tokenizer).run("multiple_choice", QUESTIONS, EvalSettings(batch_size=1))
    assert [i["logps"] for i in one.items] == [pytest.approx(i["logps"], abs=1e-4) for i in result.items]


def test_a_long_question_loses_its_beginning_and_a_long_option_is_refused(plain):
    import torch

    model, tokenizer = plain
    row = {"prompt": "one two three four five", "choices": ["six", "7"], "reference": 0}
    item = BaseEvaluator(model, tokenizer).run("multiple_choice", [row], EvalSettings(max_length=6)).items[0]
    for option, logp in zip((" six", " 7"), item["logps"], strict=True):
        # As lm-evaluation-harness cuts: six tokens are read, and the last one only predicted.
        ids = tokenizer(row["prompt"] + option)["input_ids"][-7:]
        count = len(tokenizer(row["prompt"] + option)["input_ids"]) - len(tokenizer(row["prompt"])["input_ids"])
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), -1)
        assert logp == pytest.approx(sum(logps[t - 1, ids[t]].item() for t in range(7 - count, 7)), abs=1e-4)
    with pytest.raises(ValidationError, match="option A has 4 tokens, and the model reads 3"):
        BaseEvaluator(model, tokenizer).run("multiple_choice", [row], EvalSettings(max_length=3))


def test_labels_can_be_scored_in_place_of_texts(plain):
    rows = [{"prompt": "Q\nA. x\nB. y\nAnswer:", "A": "x", "B": "y", "reference": "A"}]
    settings = EvalSettings(choices=["A", "B"], answer_with="label")
    item = BaseEvaluator(*plain).run("multiple_choice", rows, settings).items[0]
    assert item["options"] == {"A": "A", "B": "B"}
    assert item["logps"][1] == pytest.approx(_logp(*plain, rows[0]["prompt"], " B"), abs=1e-4)


def test_a_chat_model_is_asked_in_its_template(tiny):
    model, tokenizer = tiny
    rows = [{"prompt": [{"role": "user", "content": "2+2?"}], "choices": ["four", "five"], "reference": 0}]
    item = BaseEvaluator(model, tokenizer).run("multiple_choice", rows).items[0]
    assert item["prompt"] == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert item["logps"][0] == pytest.approx(_logp(model, tokenizer, item["prompt"], "four"), abs=1e-4)
    settings = EvalSettings(chat_template=False)
    result = BaseEvaluator(model, tokenizer).run("multiple_choice", rows, settings)
    assert result.items[0]["prompt"] == "2+2?"
    assert result.settings["chat_template"] is False


def test_options_that_are_missing_are_named(plain):
    with pytest.raises(ValidationError, match="'choices'; the row has prompt, reference"):
        BaseEvaluator(*plain).run("multiple_choice", [{"prompt": "x", "reference": "A"}])
    with pytest.raises(ValidationError, match="needs a reference"):
        BaseEvaluator(*plain).run("multiple_choice", [{"prompt": "x", "choices": ["a"]}])


def _shots():
    return [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": str(i)}]}
        for i in range(6)
    ]


def test_examples_stand_before_the_question(tiny, plain):
    rows = [{"prompt": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "9?"}]}]
    shots = Shots(_shots(), 2, sampled=False, seed=0)
    chat = ask(rows, ["a"], EvalSettings(), Subject(*tiny, shots=shots))[0]
    assert [m["content"] for m in chat] == ["Be brief", "0?", "0", "1?", "1", "9?"]
    assert ask(rows, ["a"], EvalSettings(), Subject(*plain, shots=shots)) == ["0?\n0\n\n1?\n1\n\nBe brief\n\n9?\n"]


def test_sampled_examples_depend_on_seed_and_row_alone(plain):
    shots = Shots(_shots(), 3, sampled=True, seed=1)
    first = [shots.of(i) for i in ("a", "b", "c")]
    assert [shots.of(i) for i in ("c", "a")] == [first[2], first[0]]
    assert first[0] != first[1] or first[1] != first[2]
    assert Shots(_shots(), 3, sampled=True, seed=2).of("a") != first[0]
    with pytest.raises(ValidationError, match="wants 9 examples"):
        Shots(_shots(), 9, sampled=True, seed=1)


def test_a_row_that_is_also_an_example_is_refused(plain):
    rows = [{"prompt": _shots()[1]["prompt"]}]
    with pytest.raises(ValidationError, match="1 of 2 examples"):
        ask(rows, ["a"], EvalSettings(), Subject(*plain, shots=Shots(_shots(), 2, sampled=False, seed=0)))


def test_a_template_that_is_asked_for_must_be_there(plain):
    with pytest.raises(ConfigurationError, match="no chat template"):
        BaseEvaluator(*plain).run("exact_match", [{"prompt": "x", "reference": "1"}], EvalSettings(chat_template=True))


def test_an_answer_ends_before_a_stop_string(plain):
    model, tokenizer = plain
    prompts = ["one", "a longer one", "three"]
    free = generate_answers(model, tokenizer, prompts, max_new_tokens=24)
    mark = free[0][0].text[5:7]
    cut = generate_answers(model, tokenizer, prompts, max_new_tokens=24, stop=[mark], batch_size=3)
    for before, after in zip(free, cut, strict=True):
        text = before[0].text
        if mark not in text:
            assert after[0] == before[0]
            continue
        assert after[0].text == text[: text.find(mark)]
        assert after[0].finished
        # One token is one byte here, and the mark's own tokens count.
        assert after[0].tokens <= len(text.encode()[: text.encode().find(mark.encode()) + len(mark.encode())])
    assert any(mark in row[0].text for row in free)


def test_generation_measures_overlap(plain, says):
    says("the cat sat")
    rows = [{"prompt": "a", "reference": "the cat slept"}, {"prompt": "b", "reference": "the cat sat"}]
    settings = EvalSettings(metrics=["rouge1", "chrf", "bleu"])
    result = BaseEvaluator(*plain).run("generation", rows, settings)
    items = [{"prediction": "the cat sat", "reference": r["reference"]} for r in rows]
    assert result.headline.value == RougeMetric("rouge1").compute(items).value
    assert list(result.metrics) == ["rouge1", "chrf", "bleu", "empty", "tokens", "finished"]
    assert result.metrics["empty"].value == 0


def test_corpus_scores_of_stored_results_are_compared_by_question(plain, says, tmp_path):
    rows = [{"prompt": f"{i}", "reference": f"the cat number {i} sat on the mat"} for i in range(12)]
    settings = EvalSettings(metrics=["chrf"])
    results = []
    for name, text in (("a", "the cat number 3 sat on the mat"), ("b", "a dog ran")):
        says(text)
        task = BaseEvaluator(*plain).run("generation", rows, settings, name="t")
        EvalResult(name, {"t": task}).save(tmp_path / name)
        results.append(EvalResult.load(tmp_path / name))
    row = next(r for r in compare(*results) if r.metric == "chrf")
    assert row.a - row.b == pytest.approx(row.difference.difference)
    assert row.difference.low > 0
    assert (row.difference.n, row.difference.method) == (12, "bootstrap")


def test_code_is_run_against_the_tests(plain, says):
    says("```python\ndef f(x):\n    return x + 1\n```", "```python\ndef f(x):\n    return x\n```")
    rows = [{"prompt": "Write f.", "test_list": ["assert f(1) == 2", "assert f(0) == 0 or f(0) == 1"]}]
    settings = EvalSettings(num_samples=2, temperature=1.0, pass_k=[1, 2], require="weak")
    result = BaseEvaluator(*plain).run("code", rows, settings)
    assert [item["correct"] for item in result.items] == [1.0, 0.0]
    assert [item["tests_passed"] for item in result.items] == [1.0, 0.5]
    assert result.values()["pass@1"] == 0.5
    assert result.values()["pass@2"] == 1.0
    with pytest.raises(ValidationError, match="row 0 has no tests"):
        BaseEvaluator(*plain).run("code", [{"prompt": "x"}])


def test_ifeval_counts_prompts_and_instructions(plain, says):
    says("No comma here\n*bold*")
    rows = [
        {"prompt": "a", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]},
        {"prompt": "b", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    ]
    values = BaseEvaluator(*plain).run("instructions", rows).values()
    assert values["prompt_strict"] == 0.5
    assert values["instruction_strict"] == pytest.approx(2 / 3)
    with pytest.raises(ValidationError, match="unknown instruction 'x:y'"):
        BaseEvaluator(*plain).run("instructions", [{"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{}]}])


def test_token_statistics_equal_a_loop_in_every_batch(plain, tmp_path):
    import torch

    from helpers import save_tiny_model

    model, tokenizer = plain
    other, _ = _load(save_tiny_model(tmp_path / "other", chat=False, seed=5))
    pairs = [(tokenizer(p)["input_ids"], tokenizer(a)["input_ids"]) for p, a in (("hi", "there"), ("a b c", "d"))]
    rows = token_statistics(model, other, pairs, pad_id=0, batch_size=2)
    for (prompt, answer), row in zip(pairs, rows, strict=True):
        with torch.no_grad():
            both = [
                torch.log_softmax(m(torch.tensor([prompt + answer])).logits[0].double(), -1) for m in (model, other)
            ]
        for t, token in enumerate(answer):
            p, q = (b[len(prompt) + t - 1] for b in both)
            assert row["policy_logps"][t] == pytest.approx(p[token].item(), abs=1e-4)
            assert row["reference_logps"][t] == pytest.approx(q[token].item(), abs=1e-4)
            assert row["kl"][t] == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-5)
            assert row["entropy"][t] == pytest.approx(-(p.exp() * p).sum().item(), abs=1e-4)
        assert len(row["kl"]) == len(answer)


def test_policy_measures_zero_divergence_from_itself(plain):
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    settings = EvalSettings(max_new_tokens=6, num_samples=3)
    same = BaseEvaluator(*plain, reference=plain[0]).run("policy", rows, settings)
    assert same.headline.name == "kl"
    assert same.headline.value == pytest.approx(0, abs=1e-6)
    assert len(same.items) == 6
    assert 0 < same.values()["entropy"] <= math.log(plain[0].config.vocab_size)
    again = BaseEvaluator(*plain, reference=plain[0]).run("policy", rows, settings)
    assert again.items == same.items
    assert "kl" not in BaseEvaluator(*plain).run("policy", rows, settings).metrics


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "code", "pass_k": [4]}, "pass@4 takes at least 4 answers"),
        ({"kind": "generation", "metrics": ["bertscore"]}, "is missing: name path and layer"),
        ({"kind": "generation", "metrics": []}, "name at least one"),
        ({"kind": "exact_match", "choices": "x"}, "has no effect in the kind exact_match"),
        ({"kind": "perplexity", "stop": ["x"]}, "has no effect in the kind perplexity"),
        ({"kind": "multiple_choice", "max_new_tokens": 9}, "has no effect in the kind multiple_choice"),
    ],
)
def test_settings_without_effect_are_refused(tiny_model, task, message):
    with pytest.raises(ConfigurationError, match=message.replace("(", "\\(")):
        EvalRunner(
            EvalConfig(model=ModelConfig(name_or_path=str(tiny_model)), tasks=[{"name": "t", "dataset": "x", **task}])
        )


def test_few_shot_from_a_file(tiny_model_plain, tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    shots = write("train.jsonl", [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(4)])
    test = write("test.jsonl", [{"question": "7+1?", "answer": "8"}])
    task = {
        "name": "sums",
        "kind": "exact_match",
        "dataset": {"name": test},
        "few_shot": {"n": 2, "dataset": {"name": shots}},
        "max_new_tokens": 4,
        "stop": ["\n"],
    }
    config = EvalConfig(model=ModelConfig(name_or_path=str(tiny_model_plain)), tasks=[task])
    result = EvalRunner(config).run().tasks["sums"]
    assert result.settings["few_shot"]["n"] == 2
    assert "\n" not in result.items[0]["output"]
    assert item_ids([{"a": 1}]) == item_ids([{"a": 1}])
