"""Classification runs on both backends: numbers, invariants, resuming, saving, predicting, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth, python

import runs
from aligntune.errors import ConfigurationError, ValidationError

TASKS = ["text_classification", "token_classification"]
COLOURS = ("red", "green", "blue")


def rows_of(task: str, count: int = 30) -> list[dict[str, Any]]:
    """Texts whose label is their first word, twice as often `red`; sentences with a name after `Mr`."""
    if task == "text_classification":
        return [{"text": f"{COLOURS[i % 4 % 3]} thing {i}", "label": COLOURS[i % 4 % 3]} for i in range(count)]
    return [
        {"tokens": ["Mr", f"Bob{i}", "went", *["far"] * (i % 3)], "tags": ["O", "B-person", "O", *["O"] * (i % 3)]}
        for i in range(count)
    ]


def plain(task: str, model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    from aligntune.core.config.reading import set_key

    folder.mkdir(parents=True, exist_ok=True)
    rows = runs.write_rows(folder / f"{task}.jsonl", rows_of(task))
    raw: dict[str, Any] = {
        "task": {"name": task},
        "model": {"name_or_path": str(model), "max_seq_length": 64},
        "dataset": {"name": str(rows)},
        "train": {"max_steps": 4, "per_device_batch_size": 4, "learning_rate": 1e-2, "seed": 3},
        "logging": {"steps": 1},
        "output_dir": str(folder / "out"),
    }
    for key, value in changes.items():
        set_key(raw, key.replace("__", "."), value)
    return raw


def trainer(task: str, model: Path, folder: Path, **changes: Any) -> Any:
    from aligntune.core.backend_factory import create_trainer

    return create_trainer(plain(task, model, folder, **changes))


def held(folder: Path, task: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return {"name": str(runs.write_rows(folder / "held.jsonl", rows or rows_of(task, 12)))}


@pytest.fixture(scope="module")
def steady_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without the dropout that Transformers puts before a head for tokens (0.1 by default)."""
    folder = tmp_path_factory.mktemp("steady")
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "classifier_dropout": 0.0}))
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_a_run_learns_is_saved_and_comes_back(task: str, peft: Any, tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(
        task, tiny_model, tmp_path, model__peft=peft, train__max_steps=30, evaluation__every=10, train__save_steps=10,
        evaluation__dataset=held(tmp_path, task),
    )  # fmt: skip
    result = run.train()
    out = Path(run.config.output_dir)
    assert type(run).__name__ == "ClassificationTrainer"
    measure = "eval_f1_macro" if task == "text_classification" else "eval_f1"
    assert result[measure] == 1.0 == run.state.best_metric
    assert len(runs.logged(out, measure)) == 3
    losses = runs.logged(out)
    assert losses[-1] < 0.3 * losses[0]
    stored = json.loads((out / "config.json").read_text())
    names = COLOURS if task == "text_classification" else ("B-person", "O")
    assert stored["id2label"] == {str(i): name for i, name in enumerate(sorted(names))}
    assert stored["architectures"][0].endswith("Classification")
    card = (out / "README.md").read_text()
    assert "| accuracy | 1 |" in card
    assert "f1/" not in card
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert samples[-1]["gold"] in ("red", "green", "blue", rows_of(task)[3].get("tags"))
    assert (out / "report.html").exists()

    asked = ["blue sky", "red sea"] if task == "text_classification" else ["Mr Bob8 went far", ["Mr", "Bob7"]]
    before = run.predict(asked)
    if task == "text_classification":
        assert [one["label"] for one in before] == ["blue", "red"]
        assert sum(before[0]["probabilities"].values()) == pytest.approx(1)
        assert before[0]["probability"] == max(before[0]["probabilities"].values())
    else:
        assert before[0]["labels"] == ["O", "B-person", "O", "O"]
        assert before[0]["entities"] == [{"type": "person", "start": 1, "end": 2, "text": "Bob8"}]
        assert all(0.5 < p <= 1 for p in before[1]["probabilities"])
    # Without the data, from the folder alone, and from a checkpoint.
    again = trainer(task, out, tmp_path / "again", model__peft=peft, dataset__name="nowhere/rows")
    assert [one.get("label", one.get("labels")) for one in again.predict(asked)] == [
        one.get("label", one.get("labels")) for one in before
    ]
    assert again.evaluate(held(tmp_path, task))[measure] == 1.0
    fresh = trainer(task, tiny_model, tmp_path / "fresh", model__peft=peft)
    fresh.load_model(out)
    assert fresh.labels.names == sorted(names)
    assert fresh.evaluate(held(tmp_path, task))[measure] == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_eight_at_once_are_four_accumulated_twos(task: str, steady_model: Path, tmp_path: Path) -> None:
    common = {"train__max_steps": 3, "task__class_weights": "balanced"}
    whole = trainer(task, steady_model, tmp_path / "a", train__per_device_batch_size=8, **common)
    parts = trainer(
        task,
        steady_model,
        tmp_path / "b",
        train__per_device_batch_size=2,
        train__gradient_accumulation_steps=4,
        **common,
    )
    whole.train()
    parts.train()
    assert runs.logged(whole.config.output_dir) == pytest.approx(runs.logged(parts.config.output_dir), abs=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_first_loss_is_the_formula_on_the_first_batch(task: str, steady_model: Path, tmp_path: Path) -> None:
    """All rows in one batch, so that the order does not matter; the labels' weights by hand."""
    import torch

    run = trainer(
        task,
        steady_model,
        tmp_path,
        train__max_steps=1,
        train__per_device_batch_size=30,
        task__class_weights="balanced",
    )
    model = run.model.eval()
    total, count, seen = 0.0, 0, {}
    items = []
    for row in run._train_rows().dataset.to_list():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().detach()
        pairs = [(logits, row["labels"])] if logits.dim() == 1 else list(zip(logits, row["labels"], strict=True))
        for z, y in pairs:
            if y != -100:
                items.append((float(torch.logsumexp(z, 0) - z[y]), y))
                seen[y] = seen.get(y, 0) + 1
    count = len(items)
    total = sum(nll * count / (len(seen) * seen[y]) for nll, y in items)
    run.train()
    assert runs.logged(run.config.output_dir)[0] == pytest.approx(total / count, abs=1e-5)


def test_every_option_reaches_the_training(tiny_model: Path, tmp_path: Path) -> None:
    short = {"train__max_steps": 2}
    base = runs_losses(trainer("text_classification", tiny_model, tmp_path / "base", **short))
    for i, change in enumerate(
        (
            {"task__class_weights": {"red": 5.0}},
            {"task__balanced_sampling": True},
            {"task__neftune_noise_alpha": 50.0},
            {"task__labels": ["red", "green", "blue"]},
            {"task__labels": ["blue", "green", "red", "pink"]},
        )
    ):
        assert runs_losses(trainer("text_classification", tiny_model, tmp_path / str(i), **short, **change)) != base, (
            change
        )
    same = {**short, "task__class_weights": {"blue": 1.0}}
    assert runs_losses(trainer("text_classification", tiny_model, tmp_path / "same", **same)) == base


def runs_losses(run: Any) -> list[float]:
    run.train()
    return runs.logged(run.config.output_dir)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_stopped_run_goes_on_to_the_same_weights(
    balanced: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"task__balanced_sampling": balanced, "train__max_steps": 12}  # 8 steps an epoch
    straight = trainer("text_classification", tiny_model, tmp_path / "a", **changes)
    straight.train()
    for step in (2, 9):
        stopped = trainer("text_classification", tiny_model, tmp_path / f"b{step}", **changes)
        record = stopped.record

        def stop(at: int, logs: Any, record: Any = record, step: int = step) -> None:
            record(at, logs)
            if at == step:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(stopped, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
        resumed = trainer("text_classification", tiny_model, tmp_path / f"b{step}", **changes)
        resumed.train(resume="latest")
        assert runs.same_weights(resumed.config.output_dir, straight.config.output_dir)


def test_it_stops_early_by_f1(tiny_model: Path, tmp_path: Path) -> None:
    run = trainer(
        "text_classification", tiny_model, tmp_path, train__max_steps=60, train__early_stopping_patience=2,
        evaluation__every=5, evaluation__dataset=held(tmp_path, "text_classification"),
    )  # fmt: skip
    result = run.train()
    assert result["eval_f1_macro"] == 1.0
    assert result.total_steps < 60
    assert run.state.best_step == result.total_steps - 10
    assert run.evaluate()["eval_nll"] == pytest.approx(run.state.best_values["eval_nll"], abs=1e-6)


@pytest.mark.slow
def test_a_worker_process_predicts(tiny_model: Path, tmp_path: Path) -> None:
    with trainer("text_classification", tiny_model, tmp_path, isolation="process") as run:
        run.train()
        made = run.predict(["red sea"])
        assert set(made[0]["probabilities"]) == set(COLOURS)
        with pytest.raises(ConfigurationError, match="writes no text"):
            run.generate(["red sea"])


def test_words_beyond_the_limit_have_no_label(tiny_model: Path, tmp_path: Path) -> None:
    run = trainer("token_classification", tiny_model, tmp_path, model__max_seq_length=8)
    made = run.predict(["Mr Bobby went"])[0]
    assert made["labels"][2] is None
    assert made["probabilities"][2] is None
    assert None not in made["labels"][:2]


def test_learned_positions_limit_the_length(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    import helpers

    tokenizer = helpers.byte_tokenizer(chat=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    run = trainer("text_classification", tmp_path / "bert", tmp_path, model__max_seq_length=512)
    long = [{"text": "red " * 50, "label": "red"}, {"text": "blue", "label": "blue"}]
    assert run.evaluate(held(tmp_path, "", long))["eval_rows"] == 2
    assert any("1 of 2 rows are longer than the model's limit of 40 tokens" in note for note in run.notes)
    run.train()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_generate_and_predict_name_each_other(tiny_model: Path, tmp_path: Path) -> None:
    run = trainer("text_classification", tiny_model, tmp_path)
    with pytest.raises(ConfigurationError, match="writes no text") as caught:
        run.generate(["red"])
    assert "predict(texts)" in caught.value.hint
    with pytest.raises(ConfigurationError, match="trains no classifier") as caught:
        runs.trainer("sft", tiny_model, tmp_path / "sft").predict(["red"])
    assert "generate" in caught.value.hint
    for texts in ([""], ["red", " "], [None], [3]):
        with pytest.raises(ValidationError, match="is empty or no text"):
            run.predict(texts)
    with pytest.raises(ConfigurationError, match="no option 'temperature'"):
        run.predict(["red"], temperature=1.0)
    with pytest.raises(ValidationError, match="or has such a word"):
        trainer("token_classification", tiny_model, tmp_path).predict([["Mr", ""]])


def test_labels_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    task = "text_classification"
    unknown = held(tmp_path, task, [*rows_of(task, 2), {"text": "pink thing", "label": "pink"}])
    with pytest.raises(ValidationError, match=r"held\.jsonl:3: the label 'pink' is not among the 3 labels"):
        trainer(task, tiny_model, tmp_path / "a", evaluation__dataset=unknown).train()
    assert not (tmp_path / "a" / "out").exists()
    listed = trainer(
        task,
        tiny_model,
        tmp_path / "a",
        evaluation__dataset=unknown,
        task__labels=["pink", *COLOURS],
        train__max_steps=1,
    )
    listed.train()
    assert any("1 of 4 labels have none of rows: pink" in note for note in listed.notes)
    with pytest.raises(ValidationError, match=r"the label 'red' is not among the 2 labels of task\.labels"):
        trainer(task, tiny_model, tmp_path / "b", task__labels=["green", "blue"]).train()
    with pytest.raises(ValidationError, match="class_weights names 'redd'"):
        trainer(task, tiny_model, tmp_path / "c", task__class_weights={"redd": 2.0}).train()
    single = held(tmp_path / "single", task, [{"text": "a", "label": "red"}] * 3)
    with pytest.raises(ValidationError, match="has the label 'red'; a classifier needs two"):
        trainer(task, tiny_model, tmp_path / "d", dataset=single).train()


def test_a_class_with_one_row_is_told_and_trained(tiny_model: Path, tmp_path: Path) -> None:
    task = "text_classification"
    source = held(tmp_path, task, [*rows_of(task, 9), {"text": "pink thing", "label": "pink"}])
    run = trainer(task, tiny_model, tmp_path, dataset=source, task__balanced_sampling=True)
    run.train()
    assert any("1 of 4 labels have one of rows only: pink" in note for note in run.notes)


def test_a_head_of_other_labels_is_refused_unless_it_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    task = "text_classification"
    first = trainer(task, tiny_model, tmp_path / "a", train__max_steps=1)
    first.train()
    out = first.config.output_dir
    other = held(tmp_path, task, [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": str(i % 2)} for i in range(8)])
    # Numbers are numbers of the head's labels: 0 is blue, 1 is green.
    assert trainer(task, out, tmp_path / "b", dataset=other)._train_rows().dataset["labels"] == [0, 1] * 4
    words = held(tmp_path / "w", task, [{"text": f"x {i}", "label": ("bad", "good")[i % 2]} for i in range(8)])
    with pytest.raises(ValidationError, match="the label 'bad' is not among the 3 labels of the head of") as caught:
        trainer(task, out, tmp_path / "c", dataset=words).train()
    assert "task.new_head: true" in caught.value.hint
    with pytest.raises(ConfigurationError, match=r"task\.labels and the head of .* have different labels"):
        trainer(task, out, tmp_path / "d", task__labels=["red", "green", "pink"]).train()
    # Any order of the same labels is the head's order.
    assert trainer(task, out, tmp_path / "e", task__labels=["red", "green", "blue"]).labels.names == sorted(COLOURS)
    renewed = trainer(task, out, tmp_path / "f", dataset=words, task__new_head=True)
    renewed.train()
    assert renewed.model.score.weight.shape[0] == 2
    config = json.loads((Path(out) / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    (Path(out) / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="has 3 outputs, and the training data 2 labels") as caught:
        trainer(task, out, tmp_path / "g", dataset=words).train()
    assert "new_head" in caught.value.hint
    assert trainer(task, out, tmp_path / "h").labels.names == sorted(COLOURS)


def test_an_adapter_must_say_its_labels(tiny_model: Path, tmp_path: Path) -> None:
    task, peft = "text_classification", {"r": 4}
    run = trainer(task, tiny_model, tmp_path / "a", model__peft=peft)
    run.train()
    (Path(run.config.output_dir) / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="does not say which labels"):
        trainer(task, run.config.output_dir, tmp_path / "b", model__peft=peft).labels  # noqa: B018
    listed = trainer(task, run.config.output_dir, tmp_path / "b", model__peft=peft, task__labels=sorted(COLOURS))
    assert listed.predict(["red sea"]) == run.predict(["red sea"])


def test_a_loss_that_is_never_called_stops_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.core.sft.classification import LabelLoss
    from aligntune.errors import TrainingError

    real = LabelLoss.__call__

    def silent(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        self.calls = 0
        return loss

    monkeypatch.setattr(LabelLoss, "__call__", silent)
    with pytest.raises(TrainingError, match="did not call the loss"):
        trainer("text_classification", tiny_model, tmp_path).train()


# ---- Unsloth ---------------------------------------------------------------------------------------------------------

ON_UNSLOTH = """
    import sys
    from pathlib import Path
    sys.path.insert(0, given["here"])
    import runs
    from test_classification import TASKS, trainer

    result = {}
    for task in TASKS:
        for peft in (None, {"r": 4}):
            folder = Path(given["folder"]) / f"{task}-{peft is not None}"
            run = trainer(
                task, given["model"], folder, backend="unsloth", model__peft=peft, train__max_steps=2,
                train__save_steps=1, task__class_weights="balanced",
            )
            done = run.train()
            rows = str(folder / f"{task}.jsonl")
            result[folder.name] = {
                "losses": runs.logged(run.config.output_dir), "trainer": type(run._hf).__mro__[1].__module__,
                "model": type(run._hf.model).__name__, "nll": run.evaluate(rows)["eval_nll"],
                "files": sorted(p.name for p in Path(run.config.output_dir).iterdir()),
            }
    result["unsloth"] = "unsloth" in sys.modules
"""


@needs_unsloth
def test_the_losses_on_unsloth_are_those_on_trl(tiny_model: Path, tmp_path: Path) -> None:
    found = python(ON_UNSLOTH, tmp_path, model=tiny_model, folder=tmp_path / "unsloth", here=str(Path(__file__).parent))
    assert found["unsloth"]
    for task in TASKS:
        for peft in (None, {"r": 4}):
            theirs = found[f"{task}-{peft is not None}"]
            ours = trainer(
                task, tiny_model, tmp_path / f"{task}-{peft is not None}", model__peft=peft, train__max_steps=2,
                task__class_weights="balanced",
            )  # fmt: skip
            assert theirs["losses"] == pytest.approx(runs_losses(ours), abs=1e-5)
            rows = str(tmp_path / f"{task}-{peft is not None}" / f"{task}.jsonl")
            assert theirs["nll"] == pytest.approx(ours.evaluate(rows)["eval_nll"], abs=1e-4)
            assert "checkpoint-1" in theirs["files"]
            assert "config.json" in theirs["files"]
