"""Comparing results of several models, the task library, and the commands that show them."""

from __future__ import annotations

import json

import pytest
import yaml

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import EvalRegistry, EvalResult
from aligntune.eval.comparing import changed_items, compare_all, detectable
from aligntune.eval.config import build_eval_config
from aligntune.eval.library import expand, names, read_task
from aligntune.eval.library.rows import arc, hellaswag, mmlu, truthfulqa_mc1
from aligntune.eval.metrics import MeanMetric
from aligntune.eval.result import TaskResult
from aligntune.eval.significance import adjust, equivalent_proportions
from aligntune.eval.stats import mcnemar_exact


def _task(name, scores):
    items = [
        {
            "id": str(i),
            "prompt": f"q{i}",
            "reference": "r",
            "output": f"said {s:g}",
            "correct": s,
            "scores": {"accuracy": s},
        }
        for i, s in enumerate(scores)
    ]
    metric = MeanMetric("correct", "accuracy")
    return TaskResult(name, "exact_match", {"accuracy": metric.compute(items)}, items)


def _result(model, **scores):
    return EvalResult(model, {name: _task(name, values) for name, values in scores.items()})


BEFORE = _result("before", a=[1, 0, 0, 0, 1, 0, 0, 0, 0, 0], b=[1, 1, 0, 0])
AFTER = _result("after", a=[1, 1, 1, 1, 1, 1, 1, 0, 0, 0], b=[1, 0, 0, 0])


def test_headlines_are_corrected_together():
    rows = compare_all([BEFORE, AFTER, BEFORE])
    assert [(r.model, r.comparison.task) for r in rows] == [
        ("after", "a"),
        ("after", "b"),
        ("before", "a"),
        ("before", "b"),
    ]
    raw = [mcnemar_exact(5, 0), mcnemar_exact(0, 1), 1.0, 1.0]
    assert [r.p_adjusted for r in rows] == adjust(raw)
    assert rows[0].comparison.difference.difference == pytest.approx(0.5)
    assert rows[0].effect == pytest.approx(0.5 / 0.5270462766947299)
    assert "corrected p" in str(rows[0])
    with pytest.raises(ValidationError, match="two results"):
        compare_all([BEFORE])


def test_a_margin_gives_a_verdict():
    rows = compare_all([BEFORE, AFTER], margin=0.05)
    assert rows[0].equivalence == equivalent_proportions(2, 5, 0, 3, 0.05)
    assert rows[1].equivalence.verdict == "undecided"
    assert "items needed" in str(rows[1])


def test_items_that_changed_are_listed_with_both_answers():
    changed = changed_items(AFTER, BEFORE, "a")
    assert [c["id"] for c in changed] == ["1", "2", "3", "5", "6"]
    assert changed[0]["before_output"] == "said 0"
    assert changed[0]["after_output"] == "said 1"
    assert changed_items(BEFORE, BEFORE, "a") == []


def test_what_a_set_can_show_is_said_in_one_sentence():
    assert detectable(500) == (
        "500 items: a comparison of two models finds a difference of 0.089 with 80% power "
        "(0.056 if they agree on 80% of the items)"
    )


def test_every_task_of_the_library_is_a_valid_configuration():
    heads: dict[str, list[str]] = {}
    for name in names():
        heads.setdefault(EvalRegistry.get(read_task(name)["kind"]).head, []).append(name)
    assert set(heads) == {"causal_lm", "sequence_classification", "token_classification"}
    for group in heads.values():
        config = build_eval_config({"model": {"name_or_path": "m"}, "tasks": group})
        assert [t.name for t in config.tasks] == group
    for name in names():
        assert read_task(name)["about"]
        assert read_task(name)["kind"] in EvalRegistry.names()


def test_what_the_user_writes_goes_before_the_library(tmp_path):
    task = expand([{"use": "arc", "dataset": "x.jsonl", "max_samples": 3, "name": "mine"}])[0]
    assert task["dataset"] == {"name": "x.jsonl", "preset": "arc"}
    assert (task["max_samples"], task["name"], task["kind"]) == (3, "mine", "multiple_choice")
    assert expand([{"use": "arc", "dataset": {"split": "validation"}}])[0]["dataset"]["name"] == "allenai/ai2_arc"
    own = tmp_path / "tasks.yaml"
    own.write_text(yaml.safe_dump({"capitals": {"kind": "exact_match", "dataset": "c.jsonl", "match": "text"}}))
    assert expand([f"{own}:capitals"]) == [
        {"name": "capitals", "kind": "exact_match", "dataset": "c.jsonl", "match": "text"}
    ]
    with pytest.raises(ConfigurationError, match="no task 'capital'") as error:
        expand([f"{own}:capital"])
    assert "capitals" in error.value.hint
    with pytest.raises(ConfigurationError, match="no task 'hellaswg'"):
        expand(["hellaswg"])


def test_rows_are_asked_in_the_published_form():
    nested = {"question": {"stem": "Q", "choices": [{"text": "a", "label": "A"}]}, "answerKey": "A"}
    assert (
        arc(nested)["prompt"]
        == arc({"question": "Q", "choices": {}, "answerKey": "A"})["prompt"]
        == "Question: Q\nAnswer:"
    )
    row = {
        "ctx_a": "A man sits.",
        "ctx_b": "he [x] reads",
        "activity_label": "Rest",
        "endings": [" a [title] b "],
        "label": "0",
    }
    asked = hellaswag(row)
    assert asked["prompt"] == "Rest: A man sits. He reads"
    assert asked["choices"] == ["a. b"]
    assert asked["reference"] == 0
    question = {"question": " Why? ", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"}
    assert mmlu(question)["prompt"] == "Why?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert truthfulqa_mc1({"question": "Q", "mc1_targets": {"n": 0, "y": 1, "other": None}})["reference"] == 1


def test_summaries_are_read_in_the_hubs_columns_and_in_those_of_files(tmp_path):
    from aligntune.eval.runner import EvalRunner

    stored = {"hub": {"document": "It rained.", "summary": "Rain.", "id": "1"}}
    stored["file"] = {"prompt": "Summarize: It rained.", "completion": "Rain.<|endoftext|>"}
    for name, row in stored.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        task = expand([{"use": "xsum", "dataset": str(path)} if name == "file" else "xsum"])[0]
        task["dataset"]["name"] = str(path)
        task["dataset"].pop("split", None)
        config = build_eval_config({"model": {"name_or_path": "m"}, "tasks": [task]})
        (found,) = EvalRunner(config)._prepare(config.tasks[0]).rows
        assert (found["prompt"][0]["content"], found["reference"]) == ("Summarize: It rained.", "Rain.")


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("arc", "arc/ARC-Challenge-Dev.jsonl", 294),
        ("hellaswag", "hellaswag/hellaswag.jsonl", 450),
        ("truthfulqa_mc1", "truthfulqa/mc_task.json", 408),
        ("mmlu", "mmlu/test/business_ethics_test.csv", 50),
        ("gsm8k", "gsm8k/test.jsonl", 300),
        ("svamp", "svamp/test.jsonl", 569),
        ("mbpp", "mbpp/mbpp.jsonl", 724),
        ("human_eval", "human_eval/HumanEval.jsonl", 101),
        ("ifeval", "ifeval/input_data.jsonl", 270),
        ("xsum", "summarization/xsum.jsonl", 130),
        ("tinystories", "tinystories/tinystories.jsonl", 1800),
        ("hh_rlhf", "hh_rlhf/harmless-base-test.jsonl", 1051),
        ("banking77", "banking77/test.csv", 1002),
        ("bitext_intents", "bitext_customer_support/customer_support.csv", 2429),
        ("hate_speech", "hate_speech/labeled_data.csv", 5012),
        ("wnut17", "wnut17/emerging.dev.conll", 1009),
        ("ud_english_ewt", "ud_english_ewt/en_ewt-ud-dev.conllu", 1000),
        ("alpaca", "alpaca/alpaca_en_demo.json", 710),
        ("dolly", "dolly/dolly.json", 12),
        ("self_instruct", "self_instruct/user_oriented_instructions.jsonl", 126),
        ("cnn_dailymail", "summarization/cnn_dailymail.jsonl", 133),
        ("retail_banking", "retail_banking/retail_banking_dataset.json", 900),
        ("glaive_tools", "chat_tools/glaive_toolcall_en_demo.json", 237),
        ("dpo_en_demo", "dpo_en_demo/dpo_en_demo.json", 205),
        ("llmbar", "llmbar/Natural.json", 50),
        ("pandalm", "pandalm/testset-v1.json", 411),
        ("spider", "spider/dev.json", 567),
    ],
)
def test_real_sets_are_read_whole(shared, monkeypatch, name, file, rows):
    from aligntune.eval.runner import EvalRunner
    from aligntune.eval.tasks.multiple_choice import options_of
    from aligntune.grading.choice import gold_label

    path = shared / "data" / file
    config = build_eval_config({"model": {"name_or_path": "m"}, "tasks": [{"use": name, "dataset": str(path)}]})
    monkeypatch.setattr(EvalRunner, "_find_labels", lambda self, kind: None)
    job = EvalRunner(config)._prepare(config.tasks[0])
    assert len(job.rows) == rows
    if config.tasks[0].kind == "multiple_choice":
        for row in job.rows:
            assert gold_label(row["reference"], options_of(row, "choices")) is not None


def test_the_commands_list_show_and_compare(cli, tmp_path):
    listed = cli("eval", "list", "--json").json
    assert [t["name"] for t in listed["tasks"]] == names()
    assert "multiple_choice" in [k["name"] for k in listed["kinds"]]
    assert yaml.safe_load(cli("eval", "show", "arc").out)["tasks"][0]["kind"] == "multiple_choice"
    for result in (BEFORE, AFTER):
        result.save(tmp_path / result.model)
    assert "accuracy: 0.2" in cli("eval", "show", tmp_path / "before").out
    ran = cli(
        "eval", "compare", tmp_path / "before", tmp_path / "after", "--task", "a", "--margin", "0.05", "--changed", "1"
    )
    assert ran.code == 0
    assert "a: 5 items changed, the first 1:" in ran.out
    assert "b accuracy" not in ran.out
    data = cli("eval", "compare", tmp_path / "before", tmp_path / "after", "--json").json
    assert len(data["changed"]) == 6
    assert cli("eval", "compare", tmp_path / "before", tmp_path / "after", "--task", "c").code == 2
    assert cli("eval", "compare", tmp_path / "before").code == 2
    assert cli("eval", "compare", tmp_path / "nowhere", tmp_path / "after").code == 2


def test_two_models_on_one_set(cli, tiny_model_plain, tmp_path):
    rows = [{"prompt": f"{i}?", "choices": ["x", "y"], "reference": "A"} for i in range(4)]
    (tmp_path / "own.yaml").write_text(
        yaml.safe_dump({"two": {"kind": "multiple_choice", "dataset": str(tmp_path / "rows.jsonl")}})
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    line = ["eval", tiny_model_plain, tiny_model_plain, "--tasks", f"{tmp_path / 'own.yaml'}:two", "--json"]
    ran = cli(*line, "--output-dir", tmp_path / "out", "--margin", "0.9")
    assert ran.code == 0
    assert [row["equivalence"]["verdict"] for row in ran.json["rows"] if row["headline"]] == ["equivalent"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i}-{tiny_model_plain.name}" for i in range(2)]
    again = cli(*line, "--output-dir", tmp_path / "out", "--resume")
    assert again.json["rows"][0]["comparison"] == ran.json["rows"][0]["comparison"]
    assert cli(*line, "--output-dir", tmp_path / "out").code == 2
