"""A killed evaluation goes on: the same items and values, nothing lost or done twice, nothing of another model mixed in."""

from __future__ import annotations

import json

import pytest

from aligntune.core.config import ModelConfig
from aligntune.errors import ConfigurationError
from aligntune.eval import EvalConfig, EvalRunner
from aligntune.eval.journal import Journal
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.tasks.exact_match import ExactMatch

ROWS = [{"prompt": f"{i}+1=?", "answer": str(i + 1)} for i in range(7)]
DIES = {"after": None, "chunks": []}


@pytest.fixture
def dying(monkeypatch):
    """A kind that stops in the middle, in chunks of two rows."""
    monkeypatch.setattr("aligntune.eval.evaluators.CHUNK", 2)
    DIES.update(after=None, chunks=[])

    @EvalRegistry.register("dying")
    class Dying(ExactMatch):
        options = ExactMatch.options

        def items(self, rows, ids, settings, subject):
            if DIES["after"] is not None and len(DIES["chunks"]) >= DIES["after"]:
                raise KeyboardInterrupt
            DIES["chunks"].append([row["prompt"][0]["content"] for row in rows])
            return super().items(rows, ids, settings, subject)

    # Sixteen batches would be one chunk of all rows.
    monkeypatch.setattr("aligntune.eval.evaluators.max", lambda a, b: a, raising=False)
    yield
    EvalRegistry.remove("dying")


@pytest.fixture
def config(tiny_model_plain, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    task = {"kind": "dying", "dataset": str(tmp_path / "rows.jsonl"), "max_new_tokens": 3, "temperature": 1.0}

    def make(name, **more):
        tasks = [{"name": "one", **task}, {"name": "two", **task, **more}]
        model = ModelConfig(name_or_path=str(tiny_model_plain))
        return EvalConfig(model=model, tasks=tasks, output_dir=str(tmp_path / name))

    return make


def _files(folder):
    results = json.loads((folder / "results.json").read_text())
    for task in results["tasks"].values():
        task.pop("seconds")
    return results["tasks"], {p.name: p.read_bytes() for p in sorted((folder / "items").iterdir())}


@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_interrupted_evaluation_ends_with_the_same_files(dying, config, tmp_path, after):
    EvalRunner(config("whole")).run()
    whole, measured = _files(tmp_path / "whole"), list(DIES["chunks"])
    DIES.update(after=after, chunks=[])
    with pytest.raises(KeyboardInterrupt):
        EvalRunner(config("cut")).run()
    first = list(DIES["chunks"])
    journal = next((tmp_path / "cut" / "items").glob("*.journal"))
    journal.write_bytes(journal.read_bytes() + b'{"chunk": 9, "items": [{"id"')  # killed while writing
    with pytest.raises(ConfigurationError, match="did not finish") as refused:
        EvalRunner(config("cut")).run()
    assert "--resume" in refused.value.hint
    DIES.update(after=None, chunks=[])
    EvalRunner(config("cut")).run(resume=True)
    assert first + DIES["chunks"] == measured
    assert _files(tmp_path / "cut") == whole


def test_an_evaluation_of_something_else_is_not_mixed_in(dying, config, tmp_path):
    DIES["after"] = 5
    with pytest.raises(KeyboardInterrupt):
        EvalRunner(config("cut")).run()
    DIES["after"] = None
    with pytest.raises(ConfigurationError, match="another max_new_tokens"):
        EvalRunner(config("cut", max_new_tokens=4)).run(resume=True)


def test_a_journal_keeps_infinities_and_whole_chunks(tmp_path):
    path = tmp_path / "items" / "t.journal"
    journal = Journal.open(path, {"a": 1})
    journal.append(0, [{"x": float("-inf")}])
    again = Journal.open(path, {"a": 1}, resume=True)
    assert again.done == {0: [{"x": float("-inf")}]}
    assert Journal.open(path, {"a": 1}).done == {}
    path.write_bytes(b'{"sub')
    assert Journal.open(path, {"a": 2}, resume=True).done == {}
    with pytest.raises(ConfigurationError, match="another a"):
        Journal.open(path, {"a": 3}, resume=True)
