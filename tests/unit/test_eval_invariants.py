"""What must not change a result: the batch size of greedy decoding, a second run, SIGKILL at any moment; and bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import helpers
from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import (
    AccuracyMetric,
    BaseEvaluator,
    EvalConfig,
    EvalResult,
    EvalRunner,
    EvalSettings,
    MajorityMetric,
)
from aligntune.eval.config import build_eval_config
from aligntune.eval.generation import Answer
from aligntune.eval.likelihood import encode_row
from aligntune.eval.registry import EvalRegistry
from aligntune.rewards.judges import FunctionJudge

LENGTHS = (1, 30, 7, 60, 3, 18, 44)
QUESTIONS = [{"prompt": "go " * n, "reference": str(n)} for n in LENGTHS]
CODE = [{**row, "test_list": ["assert True"]} for row in QUESTIONS]
FOLLOW = [{**row, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for row in QUESTIONS]
GENERATING = {
    "exact_match": QUESTIONS, "generation": QUESTIONS, "code": CODE, "instructions": FOLLOW, "reward": QUESTIONS,
    "win_rate": QUESTIONS,
}  # fmt: skip


def _load(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def models(tiny_model, tiny_model_plain):
    """Untrained models repeat one token; with larger weights their answers depend on the whole prompt."""
    import torch

    found = {"chat": _load(tiny_model), "plain": _load(tiny_model_plain)}
    with torch.no_grad():
        for model, _ in found.values():
            for name, weight in model.named_parameters():
                if "proj" in name:
                    weight.mul_(8)
    return found


def _rewards():
    from aligntune.core.config.sections import RewardConfig
    from aligntune.rewards import build_rewards

    return build_rewards([RewardConfig(type="length", params={"min_length": 3})])


# ---- nothing but the model and the data decides ------------------------------------------------------------------


def test_every_kind_that_generates_is_tried():
    generating = {n for n in EvalRegistry.names() if "max_new_tokens" in EvalRegistry.get(n).options}
    assert generating - {"policy"} == set(GENERATING)  # policy samples: it has no greedy answers


@pytest.mark.parametrize("kind", GENERATING)
@pytest.mark.parametrize("form", ["chat", "plain"])
def test_greedy_results_do_not_depend_on_the_batch_size(models, form, kind):
    model, tokenizer = models[form]
    rows = GENERATING[kind]
    if form == "chat":
        rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    more = {"rewards": _rewards()} if kind == "reward" else {}
    if kind == "win_rate":
        more = {"judge": FunctionJudge(lambda m: json.dumps({"reason": "r", "winner": "tie"}))}
    found = []
    for size in (1, 3, 7):
        settings = EvalSettings(max_new_tokens=10, batch_size=size, metrics=["chrf"], require="weak")
        task = BaseEvaluator(model, tokenizer, **more).run(kind, rows, settings)
        found.append((task.items, {k: v.to_dict() for k, v in task.metrics.items()}))
    assert len({item["output"] for item in found[0][0]}) > 1
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["exact_match", "perplexity", "multiple_choice"])
def test_evaluating_twice_is_identical(models, kind):
    rows = [{**row, "text": row["prompt"], "choices": ["a", "bb"], "reference": "A"} for row in QUESTIONS]
    settings = EvalSettings(max_new_tokens=6)
    if kind == "exact_match":
        settings = EvalSettings(max_new_tokens=6, temperature=1.0, num_samples=3, pass_k=[1, 2])
        rows = QUESTIONS
    runs = [BaseEvaluator(*models["plain"]).run(kind, rows, settings) for _ in range(2)]
    plain = [{**run.to_dict(items=True), "seconds": 0} for run in runs]
    assert plain[0] == plain[1]


# ---- perplexity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "limit"), [(None, None), (None, 24), (8, 24), (23, 24), (1, 10), (5, 400)])
def test_perplexity_equals_a_plain_loop(models, stride, limit):
    """Each token once, under the window in which it is new, by one forward pass for each token."""
    import math

    import torch

    model, tokenizer = models["plain"]
    rows = [{"text": "The quick brown fox jumps over the lazy dog. " * k} for k in (1, 2)] + [{"text": "Hi"}]
    settings = EvalSettings(stride=stride, max_length=limit, batch_size=4)
    task = BaseEvaluator(model, tokenizer).run("perplexity", rows, settings)
    total = count = 0.0
    for row, item in zip(rows, task.items, strict=True):
        ids = encode_row(tokenizer, row).ids
        width = limit or len(ids)
        last = len(ids) if stride is not None else min(len(ids), width)
        own = 0.0
        for t in range(1, last):
            # The first window that holds the token: it begins at the smallest multiple of the stride that does.
            k = 0 if t < width else math.ceil((t - width + 1) / stride)
            begin = k * (stride or 0)
            with torch.no_grad():
                logits = model(torch.tensor([ids[begin:t]])).logits[0, -1].double()
            own -= torch.log_softmax(logits, -1)[ids[t]].item()
        assert item["nll"] == pytest.approx(own, abs=2e-3)
        assert item["tokens"] == last - 1
        assert item["cut"] == (stride is None and last < len(ids))
        total, count = total + own, count + last - 1
    assert task.headline.value == pytest.approx(math.exp(total / count), rel=1e-4)


def test_windows_that_do_not_overlap_are_refused(models):
    with pytest.raises(ConfigurationError, match="stride is 24, and the model's context has 24"):
        BaseEvaluator(*models["plain"]).run("perplexity", [{"text": "x" * 50}], EvalSettings(stride=24, max_length=24))
    task = {"name": "t", "kind": "perplexity", "dataset": "x", "stride": 9, "max_length": 9}
    with pytest.raises(ConfigurationError, match=r"tasks.0.stride: is 9, and must be below max_length = 9"):
        build_eval_config({"model": {"name_or_path": "m"}, "tasks": [task]})


# ---- several samples ---------------------------------------------------------------------------------------------


def test_majority_and_pass_at_k_of_several_samples(models, monkeypatch):
    said = ["#### 2", "#### 3", "The answer is 4/2.", "hmm"]
    monkeypatch.setattr(
        "aligntune.eval.tasks.base.generate_answers",
        lambda m, t, prompts, **o: [[Answer(text, 1, True) for text in said] for _ in prompts],
    )
    rows = [{"prompt": "a", "reference": "2"}, {"prompt": "b", "reference": "3"}]
    settings = EvalSettings(num_samples=4, temperature=1.0, pass_k=[1, 2, 4])
    values = BaseEvaluator(*models["plain"]).run("exact_match", rows, settings).values()
    assert values["accuracy"] == pytest.approx((0.5 + 0.25) / 2)
    assert values["majority"] == 0.5  # 2 has two votes, 3 has one
    assert values["pass@1"] == values["accuracy"]
    assert values["pass@2"] == pytest.approx(((1 - 1 / 6) + 0.5) / 2)
    assert values["pass@4"] == 1.0
    one = BaseEvaluator(*models["plain"]).run("exact_match", rows, EvalSettings()).metrics
    assert "majority" not in one


def test_majority_takes_the_first_of_equals_and_counts_silence_as_wrong():
    def value(*predictions, reference="1"):
        items = [{"id": "q", "prediction": p, "reference": reference} for p in predictions]
        return MajorityMetric("text").compute(items)

    assert value("1", "2").value == 1.0
    assert value("2", "1").value == 0.0
    assert value(None, None, "1").value == 1.0
    assert value(None).value == 0.0
    assert value("1", reference=None).value is None
    assert value("1", reference=None).missing == 1


# ---- killed ------------------------------------------------------------------------------------------------------


def _killed(command, folder, after):
    """Start the command, kill it once `after` chunks stand in its journals; whether it was still running."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder.parent)
    while process.poll() is None:
        journals = folder.glob("items/*.journal")
        if sum(max(0, path.read_bytes().count(b"\n") - 1) for path in journals) >= after:
            time.sleep(random.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_process_goes_on_to_the_same_files(cli, tmp_path, kills):

    model = helpers.save_tiny_model(tmp_path / "m", chat=False, hidden=64)
    rows = [{"prompt": f"{i} " * (1 + i % 5), "answer": str(i)} for i in range(256 * (kills + 2))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = f"{{name: t, kind: exact_match, dataset: {tmp_path}/rows.jsonl, max_new_tokens: 4, temperature: 1, " \
           "batch_size: 16}"  # fmt: skip
    (tmp_path / "eval.yaml").write_text(f"model: {{name_or_path: {model}}}\ntasks: [{task}]\n")
    file = [str(tmp_path / "eval.yaml"), f"output_dir={tmp_path}/cut"]
    command = [sys.executable, "-m", "aligntune", "eval", *file]
    alive = 0
    for k in range(kills):
        alive += _killed([*command, *(["--resume"] if k else [])], tmp_path / "cut", k + 1)
    assert alive == kills
    assert cli("eval", *file, "--resume").code == 0
    assert cli("eval", file[0], f"output_dir={tmp_path}/whole").code == 0
    cut, whole = ((tmp_path / name / "items" / "t.jsonl").read_bytes() for name in ("cut", "whole"))
    assert cut == whole
    assert cut.count(b"\n") == len(rows)
    values = [EvalResult.load(tmp_path / name).tasks["t"].values() for name in ("cut", "whole")]
    assert values[0] == values[1]


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("hellaswg", "(?s)no task 'hellaswg'.*hellaswag"),
        ({"kind": "exact_mtch"}, "exact_mtch.*exact_match"),
        ({"kind": "generation", "metrics": ["rougel"]}, "metrics.*rougeL"),
        ({"kind": "classification", "stride": 3}, "stride: has no effect in the kind classification"),
        ({"kind": "win_rate", "rewards": ["length"], "rubric": "x"}, "rubric: has no effect where rewards decide"),
        ({"kind": "reward_accuracy", "rewards": ["length"], "max_length": 3}, "max_length: has no effect with rewards"),
        ({"kind": "exact_match", "pass_k": [3]}, "pass@3 takes at least 3 answers"),
        ({"kind": "exact_match", "opponent": "x"}, "opponent: has no effect"),
    ],
)
def test_unknown_names_and_settings_are_told_with_the_nearest(task, message):
    listed = task if isinstance(task, str) else {"name": "t", "dataset": "x", **task}
    with pytest.raises(ConfigurationError, match=message):
        build_eval_config({"model": {"name_or_path": "m"}, "tasks": [listed]})


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("exact_match", [{"prompt": "a"}], "needs a reference"),
        ("generation", [{"prompt": "a"}], "needs a reference"),
        ("multiple_choice", [{"prompt": "a", "reference": "A", "option": ["x"]}], "needs the column 'choices'"),
        ("code", [{"prompt": "a"}], "has no tests"),
        ("instructions", [{"prompt": "a"}], "no instruction_id_list"),
        ("classification", [{"text": "a", "lable": "b"}], "label"),
        ("token_classification", [{"tokens": ["a"]}], "tags"),
    ],
)
def test_missing_columns_are_told_before_the_model_is_loaded(
    tiny_model_plain, tmp_path, monkeypatch, kind, rows, message
):
    monkeypatch.setattr(EvalRunner, "_load", lambda self: pytest.fail("loaded"))
    monkeypatch.setattr(EvalRunner, "_find_labels", lambda self, kind: None)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = {"name": "t", "kind": kind, "dataset": str(path)}
    with pytest.raises(ValidationError, match=message):
        EvalRunner(EvalConfig(model=ModelConfig(name_or_path=str(tiny_model_plain)), tasks=[task])).run()


def test_predictions_and_references_of_different_length_are_refused():
    assert AccuracyMetric().compute(["a", "b"], references=["a", "c"]).value == 0.5
    with pytest.raises(ValidationError, match="2 predictions and 1 references"):
        AccuracyMetric().compute(["a", "b"], references=["a"])


def test_empty_outputs_count_as_wrong_and_are_counted(models, monkeypatch):
    monkeypatch.setattr(
        "aligntune.eval.tasks.base.generate_answers", lambda m, t, p, **o: [[Answer("", 1, True)] for _ in p]
    )
    for kind in ("exact_match", "generation"):
        task = BaseEvaluator(*models["plain"]).run(kind, QUESTIONS, EvalSettings(metrics=["rougeL"]))
        assert task.headline.value == 0.0
        assert task.headline.missing == 0
        assert task.values()["empty"] == 1.0


def test_code_that_kills_its_worker_is_wrong_and_nothing_else(models, monkeypatch):
    said = ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\ndef f(): return 1", "def f():\n    return 1"]
    monkeypatch.setattr(
        "aligntune.eval.tasks.base.generate_answers",
        lambda m, t, prompts, **o: [[Answer(text, 1, True)] for text in said],
    )
    rows = [{"prompt": f"write f {i}", "test_list": ["assert f() == 1"]} for i in range(2)]
    task = BaseEvaluator(*models["plain"]).run("code", rows, EvalSettings(require="weak"))
    assert [item["correct"] for item in task.items] == [0.0, 1.0]
    assert task.items[0]["verdict"] != task.items[1]["verdict"]


def test_a_template_that_is_missing_and_results_of_another_model(tiny_model, tiny_model_plain, cli, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    task = {"name": "t", "kind": "exact_match", "dataset": str(tmp_path / "rows.jsonl"), "max_new_tokens": 2}
    config = EvalConfig(model=ModelConfig(name_or_path=str(tiny_model_plain)), tasks=[{**task, "chat_template": True}])
    with pytest.raises(ConfigurationError, match="has no chat template"):
        EvalRunner(config).run()
    for name in ("a", "b"):
        helpers.save_tiny_model(tmp_path / name / "model", chat=False)
    flags = ["--kind", "exact_match", "--dataset", tmp_path / "rows.jsonl", "--max-new-tokens", "2"]
    models = [tmp_path / "a" / "model", tiny_model_plain]
    assert cli("eval", *models, *flags, "--output-dir", tmp_path / "out").code == 0
    ran = cli("eval", tmp_path / "b" / "model", tiny_model_plain, *flags, "--output-dir", tmp_path / "out", "--resume")
    assert ran.code == 2
    assert "holds results of" in ran.err
    assert cli("eval", *models, *flags, "--output-dir", tmp_path / "out", "--resume").code == 0
