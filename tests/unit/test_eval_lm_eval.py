"""Tasks of lm-evaluation-harness: our numbers are its own, on local task files, and compare item by item."""

from __future__ import annotations

import json
import sys

import pytest

from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError
from aligntune.errors import EnvironmentError as MissingError
from aligntune.eval import EvalConfig, EvalResult, EvalRunner, LMEvalConfig, LMEvalRunner, compare
from aligntune.eval.config import build_eval_config

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_target: !function utils.gold
doc_to_choice: {choices}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module", autouse=True)
def _harness():
    pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def stories(stories260k):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(stories260k).eval(), AutoTokenizer.from_pretrained(stories260k)


def _folder(path, name, data, text, choices, gold):
    path.mkdir(exist_ok=True)
    (path / f"{name}.yaml").write_text(TASK.format(name=name, data=data, text=text, choices=choices))
    (path / "utils.py").write_text(gold)
    return str(path)


def _first(source, path, count=60):
    """The first rows of a file."""
    path.write_text("".join(line + "\n" for line in source.read_text().splitlines()[:count]))
    return path


ARC = "Question: {{question.stem}}\\nAnswer:"
ARC_CHOICES = "\"{{question.choices | map(attribute='text') | list}}\""
ARC_GOLD = "def gold(doc):\n    return [c['label'] for c in doc['question']['choices']].index(doc['answerKey'])\n"
HELLASWAG_UTILS = """import re
def plain(text):
    return re.sub(r"\\[.*?\\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
def text(doc):
    return plain(doc["activity_label"] + ": " + doc["ctx_a"] + " " + doc["ctx_b"].capitalize())
def choices(doc):
    return [plain(e) for e in doc["endings"]]
def gold(doc):
    return int(doc["label"])
"""


@pytest.mark.parametrize("name", ["arc", "hellaswag"])
def test_multiple_choice_equals_the_harness_on_real_rows(shared, stories, tmp_path, name):
    model, tokenizer = stories
    if name == "arc":
        data = _first(shared / "data/arc/ARC-Challenge-Dev.jsonl", tmp_path / "rows.jsonl")
        folder = _folder(tmp_path / "t", "local_arc", data, ARC, ARC_CHOICES, ARC_GOLD)
    else:
        data = _first(shared / "data/hellaswag/hellaswag.jsonl", tmp_path / "rows.jsonl")
        folder = _folder(tmp_path / "t", "local_hellaswag", data, "x", "!function utils.choices", HELLASWAG_UTILS)
        path = tmp_path / "t" / "local_hellaswag.yaml"
        path.write_text(path.read_text().replace('doc_to_text: "x"', "doc_to_text: !function utils.text"))
    harness = LMEvalConfig(tasks=[f"local_{name}"], include_path=folder, batch_size=32)
    theirs = LMEvalRunner(harness, model, tokenizer).run()[f"local_{name}"]
    config = build_eval_config(
        {"model": {"name_or_path": "m"}, "tasks": [{"use": name, "dataset": str(data), "batch_size": 32}]}
    )
    ours = EvalRunner(config, model, tokenizer).run().tasks[name]
    assert len(ours.items) == len(theirs.items)
    for mine, other in zip(ours.items, theirs.items, strict=True):
        assert mine["logps"] == pytest.approx([r[0] for r in other["output"]], abs=2e-4)
        assert mine["prompt"] == other["prompt"]
    assert ours.metrics["accuracy"].value == theirs.metrics["acc"].value
    assert ours.metrics["accuracy_norm"].value == theirs.metrics["acc_norm"].value
    assert (theirs.metrics["acc"].low, theirs.metrics["acc"].high) == (
        ours.metrics["accuracy"].low,
        ours.metrics["accuracy"].high,
    )
    assert tokenizer.pad_token == stories[1].pad_token


@pytest.fixture
def own(tmp_path):
    """A task with four documents, two of them alike."""
    rows = [{"q": f"{i % 3}?", "options": ["a", "bb"], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    choices = '"{{options}}"'
    return _folder(
        tmp_path / "tasks", "own", tmp_path / "rows.jsonl", "{{q}}", choices, "def gold(doc):\n    return doc['gold']\n"
    )


def test_from_a_file_with_items_that_pair(tiny_model, own, tmp_path):
    harness = {"tasks": ["own"], "include_path": own, "chat_template": False}

    def run(name):
        config = EvalConfig(
            model=ModelConfig(name_or_path=str(tiny_model)), lm_eval=harness, output_dir=str(tmp_path / name)
        )
        return EvalRunner(config).run()

    result = run("a")
    task = result.tasks["lm_eval:own"]
    assert task.settings["chat_template"] is False
    assert task.settings["documents"] == 4
    assert len({item["id"] for item in task.items}) == 4
    stored = EvalResult.load(tmp_path / "a")
    assert stored.tasks["lm_eval:own"].items == json.loads(json.dumps(task.items))
    row = next(r for r in compare(stored, run("b")) if r.metric == "acc")
    assert (row.difference.difference, row.difference.n) == (0.0, 4)


def test_a_chat_model_is_asked_in_its_template(tiny_model, own):
    config = EvalConfig(
        model=ModelConfig(name_or_path=str(tiny_model)), lm_eval={"tasks": ["own"], "include_path": own, "limit": 2}
    )
    task = EvalRunner(config).run().tasks["lm_eval:own"]
    assert task.settings["chat_template"] is True
    assert task.items[0]["prompt"].startswith("<|im_start|>user\n0?")
    assert len(task.items) == 2


def test_an_unknown_task_names_the_nearest(stories, own):
    with pytest.raises(ConfigurationError, match="no task 'hellaswg'") as error:
        LMEvalRunner(LMEvalConfig(tasks=["hellaswg"]), *stories).run()
    assert "hellaswag" in error.value.hint
    with pytest.raises(ConfigurationError, match="no chat template"):
        LMEvalRunner(LMEvalConfig(tasks=["own"], include_path=own, chat_template=True), *stories).run()


def test_without_the_package_the_command_says_what_to_install(stories, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingError) as error:
        LMEvalRunner(LMEvalConfig(tasks=["arc_easy"]), *stories).run()
    assert "pip install 'aligntune[lm-eval]'" in error.value.hint


def test_a_file_without_any_task_is_refused():
    with pytest.raises(ConfigurationError, match="tasks: is empty"):
        build_eval_config({"model": {"name_or_path": "m"}})
