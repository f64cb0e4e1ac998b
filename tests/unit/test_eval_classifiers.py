"""Classifiers under evaluation: values against scikit-learn and plain loops, labels, heads, what is refused."""

from __future__ import annotations

import json
import random

import pytest

import helpers
from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import BaseEvaluator, CalibrationMetric, EvalConfig, EvalResult, EvalRunner, EvalSettings, compare
from aligntune.eval.config import build_eval_config
from aligntune.eval.entities import entity_scores
from aligntune.eval.metrics.labels import MacroF1Metric, TagAccuracyMetric
from aligntune.eval.tasks.classification import confusion, each_label

LABELS = ("card", "fee", "limit")
ROWS = [{"text": f"{'why ' * (i % 4)}text {i}", "label": LABELS[i % 3]} for i in range(30)]
TAGS = ("B-per", "I-per", "O")
SENTENCES = [
    {"tokens": [f"w{j}" for j in range(2 + i % 4)], "tags": [TAGS[(i + j) % 3] for j in range(2 + i % 4)]}
    for i in range(12)
]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return helpers.save_tiny_encoder(tmp_path_factory.mktemp("m") / "texts", labels=LABELS)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A token classifier of the same encoder."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    base = helpers.save_tiny_encoder(tmp_path_factory.mktemp("m") / "base")
    names = dict(enumerate(TAGS))
    import torch

    torch.manual_seed(3)
    model = AutoModelForTokenClassification.from_pretrained(
        base, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()}
    )
    folder = tmp_path_factory.mktemp("m") / "tokens"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def _config(model, data, kind="classification", **more):
    task = {"name": "t", "kind": kind, "dataset": data, **more}
    return EvalConfig(model=ModelConfig(name_or_path=str(model)), tasks=[task])


def test_texts_from_file_to_file_equal_a_loop(texts, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = _config(texts, _write(tmp_path / "rows.jsonl", ROWS), batch_size=4)
    config.output_dir = str(tmp_path / "out")
    task = EvalRunner(config).run().tasks["t"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(texts), AutoTokenizer.from_pretrained(texts)
    for row, item in zip(ROWS, task.items, strict=True):
        with torch.no_grad():
            p = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        best = int(p.argmax())
        assert item["prediction"] == LABELS[best]
        assert item["confidence"] == pytest.approx(p[best].item(), abs=1e-5)
        assert item["nll"] == pytest.approx(-p[LABELS.index(row["label"])].log().item(), abs=1e-4)
    assert list(task.metrics) == ["accuracy", "f1_macro", "nll", "ece", "adaptive_ece", "brier", "cut"]
    assert task.metrics["accuracy"].method == "wilson"
    assert "chat_template" not in task.settings
    assert sum(n for *_, n in task.details["confusion"]["counts"]) == 30
    stored = EvalResult.load(tmp_path / "out")
    assert stored.tasks["t"].details == json.loads(json.dumps(task.details))
    again = BaseEvaluator(model, tokenizer).run("classification", ROWS, EvalSettings(batch_size=1), name="t")
    assert [i["prediction"] for i in again.items] == [i["prediction"] for i in task.items]


def test_scores_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(0)
    gold = [draw.choice("abcd") for _ in range(200)]
    guess = [g if draw.random() < 0.6 else draw.choice("abce") for g in gold]
    items = [{"reference": g, "prediction": p} for g, p in zip(gold, guess, strict=True)]
    value = MacroF1Metric("abcde").compute(items)
    assert value.value == pytest.approx(metrics.f1_score(gold, guess, average="macro"), abs=1e-12)
    assert value.low < value.value < value.high
    table = each_label(list(zip(gold, guess, strict=True)))
    report = metrics.classification_report(gold, guess, output_dict=True, zero_division=0)
    for name, row in table.items():
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert (row["recall"] or 0.0) == pytest.approx(report[name]["recall"])
        assert (row["precision"] or 0.0) == pytest.approx(report[name]["precision"])
        assert row["rows"] == report[name]["support"]
    wanted = metrics.confusion_matrix(gold, guess, labels=list("abcde"))
    found = confusion(zip(gold, guess, strict=True))
    for i, j, n in found["counts"]:
        assert wanted["abcde".index(found["labels"][i])]["abcde".index(found["labels"][j])] == n
    assert sum(n for *_, n in found["counts"]) == wanted.sum()


def test_calibration_equals_scikit_learn():
    metrics, calibration = pytest.importorskip("sklearn.metrics"), pytest.importorskip("sklearn.calibration")
    draw = random.Random(1)
    items = [{"confidence": c, "correct": float(draw.random() < c)} for c in (draw.random() for _ in range(400))]
    right, sure = [i["correct"] for i in items], [i["confidence"] for i in items]
    assert CalibrationMetric("brier").compute(items).value == pytest.approx(metrics.brier_score_loss(right, sure))
    import numpy as np

    for measure, strategy in (("ece", "uniform"), ("adaptive_ece", "quantile")):
        shares, means = calibration.calibration_curve(right, sure, n_bins=10, strategy=strategy)
        inner = np.linspace(0, 1, 11)[1:-1] if strategy == "uniform" else np.quantile(sure, np.linspace(0, 1, 11))[1:-1]
        sizes = np.bincount(np.searchsorted(inner, sure), minlength=10)
        ece = float((sizes[sizes > 0] * abs(shares - means)).sum() / len(items))
        assert CalibrationMetric(measure, bins=10, resamples=10).compute(items).value == pytest.approx(ece, abs=1e-12)


def test_tags_from_file_to_file_equal_the_counting_of_training(tokens, tmp_path):
    config = _config(tokens, _write(tmp_path / "rows.jsonl", SENTENCES), "token_classification")
    task = EvalRunner(config).run().tasks["t"]
    gold, guess = [i["tags"] for i in task.items], [i["predicted_tags"] for i in task.items]
    assert gold == [row["tags"] for row in SENTENCES]
    wanted = entity_scores(gold, guess)
    for measure in ("f1", "precision", "recall"):
        value = task.metrics[f"entity_{measure}"].value
        assert value == (pytest.approx(wanted[measure]) if wanted["entities"] else None)
    flat = [(a, b) for g, p in zip(gold, guess, strict=True) for a, b in zip(g, p, strict=True)]
    assert task.metrics["accuracy"].value == pytest.approx(sum(a == b for a, b in flat) / len(flat))
    assert task.headline.name == "entity_f1"
    assert task.details["entities"]["per"]["entities"] == wanted["entities/per"]


def test_tags_without_entities_have_no_entity_score():
    items = [{"tags": ["NOUN", "VERB"], "predicted_tags": ["NOUN", None], "words": 2, "entities": False}] * 2
    from aligntune.eval.tasks.token_classification import TokenClassification

    names = [m.name for m in TokenClassification().metrics(EvalSettings(), items)]
    assert names == ["accuracy", "f1_macro", "cut"]
    assert TagAccuracyMetric().compute(items).value == 0.5


def test_two_classifiers_are_compared_by_macro_f1(texts, tmp_path):
    other = helpers.save_tiny_encoder(tmp_path / "other", labels=LABELS, seed=9)
    data = _write(tmp_path / "rows.jsonl", ROWS)
    a, b = (EvalRunner(_config(model, data)).run() for model in (texts, other))
    rows = {row.metric: row for row in compare(a, b)}
    assert {"accuracy", "f1_macro", "brier", "nll"} <= set(rows)
    row = rows["f1_macro"]
    assert row.a == pytest.approx(a.metric("t", "f1_macro").value)
    assert row.difference.difference == pytest.approx(row.a - row.b)
    assert row.difference.method == "bootstrap"


def test_long_texts_are_cut_and_counted(texts, tmp_path):
    rows = [{"text": "x" * 400, "label": "fee"}, {"text": "y", "label": "card"}]
    task = EvalRunner(_config(texts, _write(tmp_path / "rows.jsonl", rows))).run().tasks["t"]
    assert [item["cut"] for item in task.items] == [1.0, 0.0]
    limited = _config(texts, _write(tmp_path / "rows.jsonl", ROWS), max_length=4)
    assert EvalRunner(limited).run().metric("t", "cut").value > 0


def test_a_label_that_the_model_does_not_know_is_refused_before_loading(texts, tmp_path, monkeypatch):
    data = _write(tmp_path / "rows.jsonl", [*ROWS, {"text": "z", "label": "feee"}])
    monkeypatch.setattr(EvalRunner, "_load", lambda self: pytest.fail("loaded"))
    with pytest.raises(ValidationError, match="label 'feee' is not among the 3 labels") as error:
        EvalRunner(_config(texts, data)).run()
    assert "fee" in error.value.hint


def test_heads_that_do_not_fit_are_refused(texts, tokens, tiny_model, tmp_path):
    data = _write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ConfigurationError, match="has no classification head") as error:
        EvalRunner(_config(tiny_model, data)).run()
    assert "match: text" in error.value.hint
    with pytest.raises(ConfigurationError, match="needs a SequenceClassification head"):
        EvalRunner(_config(tokens, data)).run()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = AutoModelForSequenceClassification.from_pretrained(texts), AutoTokenizer.from_pretrained(texts)
    with pytest.raises(ConfigurationError, match="needs a model that writes text, and the model is a classifier"):
        BaseEvaluator(*loaded).run("exact_match", [{"prompt": "a", "reference": "b"}])
    reward_model = helpers.save_tiny_reward_model(tmp_path / "rm")
    with pytest.raises(ConfigurationError, match="has one output") as error:
        EvalRunner(_config(reward_model, data)).run()
    assert "reward_accuracy" in error.value.hint
    prompts = _write(tmp_path / "prompts.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(ConfigurationError, match="is a classifier of texts, and these tasks need a model that writes"):
        EvalRunner(_config(texts, prompts, "exact_match")).run()
    with pytest.raises(ConfigurationError, match="one model cannot serve them all") as error:
        build_eval_config({"model": {"name_or_path": "m"}, "tasks": ["banking77", "arc"]})
    assert "'banking77' a classifier of texts and 'arc' a model that writes text" in error.value.message


def test_a_config_that_promises_a_head_without_weights_is_refused(texts, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(texts, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("classifier")}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(ConfigurationError, match="no weights for its classification head"):
        EvalRunner(_config(folder, _write(tmp_path / "rows.jsonl", ROWS))).run()


def test_labels_name_the_outputs_of_a_model_that_names_none(texts, tmp_path):
    bare = helpers.save_tiny_encoder(tmp_path / "bare", labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    data = _write(tmp_path / "rows.jsonl", ROWS)
    numbers = _write(tmp_path / "n.jsonl", [{**row, "label": LABELS.index(row["label"])} for row in ROWS])
    with pytest.raises(ValidationError, match="label 'card' is not among"):
        EvalRunner(_config(bare, data)).run()
    by_number = EvalRunner(_config(bare, numbers)).run()
    named = EvalRunner(_config(bare, data, labels=list(LABELS))).run()
    assert by_number.metric("t").value == named.metric("t").value
    assert {i["reference"] for i in by_number.tasks["t"].items} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    with pytest.raises(ConfigurationError, match="has 3 outputs, and labels lists 2"):
        EvalRunner(_config(bare, data, labels=["a", "b"])).run()
    with pytest.raises(ConfigurationError, match="labels is not what"):
        EvalRunner(_config(texts, data, labels=["x", "y", "z"])).run()
