"""Stages: references, checks of the whole file, what is skipped, resumed, refused and redone; no model is trained."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from aligntune.errors import AlignTuneError, ConfigurationError, EnvironmentError, TrainingError, ValidationError
from aligntune.stages import load_stages, make_plan, run_stages
from aligntune.stages.estimate import estimates, origin, totals
from aligntune.stages.execution import Execution
from aligntune.stages.kinds import KINDS
from aligntune.stages.process import Ended
from aligntune.stages.record import changes, identity, read_record
from aligntune.stages.references import find, resolve


class FakeRunner:
    """Does what the commands do, as far as stages look: writes their files, and notes what was called.

    Args:
        fail: stage whose command fails.
        stop: stage whose command is interrupted.
    """

    def __init__(self, fail: str = "", stop: str = "") -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fail, self.stop = fail, stop
        self.content = "weights"

    @property
    def made(self) -> list[str]:
        """The stages that were called, by name."""
        return [re.sub(r"^\d\d-", "", self._folder(call).name) for call in self.calls]

    @staticmethod
    def _folder(call: Sequence[str]) -> Path:
        if "--out" in call:
            return Path(call[list(call).index("--out") + 1])
        if "--output-dir" in call:
            return Path(call[list(call).index("--output-dir") + 1])
        return Path(next(a for a in call if a.endswith(".yaml"))).parent

    def __call__(self, arguments: Sequence[str], log: Path) -> Ended:
        call = tuple(arguments)
        self.calls.append(call)
        folder, said = self._folder(call), {}
        name = re.sub(r"^\d\d-", "", folder.name)
        if name == self.stop:
            (folder / "checkpoint-2").mkdir()
            raise KeyboardInterrupt
        if name == self.fail:
            error = {"type": "TrainingError", "message": "loss is nan", "hint": "lower train.learning_rate"}
            return Ended(1, json.dumps({"error": error}), 1.0)
        if call[:2] == ("data", "split"):
            for part in ("train", "test"):
                (folder / f"{part}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
            said = {"parts": {"train": {"rows": 1}, "test": {"rows": 1}}}
        elif call[:2] == ("data", "pairs"):
            (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
            said = {"pairs": 1, "prompts": 1, "ranker": "rouge"}
        else:
            (folder / "model.safetensors").write_text(self.content)
            (folder / "config.json").write_text("{}")
            (folder / "manifest.json").write_text(json.dumps({"status": "finished"}))
            (folder / "config.resolved.yaml").write_text("{}")
            said = {"total_steps": 4, "final_loss": 0.5}
        return Ended(0, json.dumps(said), 1.0, 1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A stages file: split, sft, pairs, dpo."""
    data = tmp_path / "rows.csv"
    data.write_text("prompt,completion\n" + "".join(f"say {i},it is {i}\n" for i in range(20)))
    return write(
        tmp_path,
        {
            "output_dir": str(tmp_path / "out"),
            "values": {"data": str(data), "model": str(tmp_path / "base"), "steps": 4},
            "stages": [
                {"name": "split", "kind": "split", "config": {"dataset": {"name": "${values.data}"}, "test": 0.2}},
                {"name": "sft", "kind": "train", "config": sft()},
                {"name": "pairs", "kind": "pairs", "config": pairs()},
                {"name": "dpo", "kind": "train", "config": dpo()},
            ],
        },
    )


def write(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "base").mkdir(exist_ok=True)
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def sft() -> dict[str, Any]:
    return {
        "task": "instruction_following",
        "model": {"name_or_path": "${values.model}"},
        "dataset": {"name": "${stages.split.train}"},
        "train": {"max_steps": "${values.steps}"},
    }


def pairs() -> dict[str, Any]:
    return {
        "model": {"name_or_path": "${stages.sft.model}"},
        "dataset": {"name": "${stages.split.train}"},
        "rewards": ["rouge"],
    }


def dpo() -> dict[str, Any]:
    return {
        "algo": "dpo",
        "model": {"name_or_path": "${stages.sft.model}"},
        "datasets": ["${stages.pairs.data}"],
        "train": {"max_steps": 4},
    }


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    raw = yaml.safe_load(file.read_text())
    change(raw)
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def refused(file: Path, *overrides: str, kind: type[AlignTuneError] = ConfigurationError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        run_stages(file, overrides, runner=FakeRunner(), **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake run folders have nothing to draw; the page is tested with a real run."""
    monkeypatch.setattr("aligntune.stages.story.draw", lambda plan, found, out, stage=None: out)


# ---- references -------------------------------------------------------------------------------------------------


def test_a_whole_reference_keeps_its_type_and_a_part_is_written_in() -> None:
    values = {"n": 8, "list": [1, 2], "model": "out/sft"}
    raw = {"a": "${values.n}", "b": ["${values.list}"], "c": "${stages.sft.model}/x-${values.n}", "d": "$${values.n}"}
    assert resolve(raw, lambda r: values[r.last]) == {"a": 8, "b": [[1, 2]], "c": "out/sft/x-8", "d": "${values.n}"}
    assert [r.path for r in find(raw)] == [("n",), ("list",), ("sft", "model"), ("n",)]


@pytest.mark.parametrize("text", ["${HOME}", "${stages.sft}", "${stages.sft.a.b}", "${values.}", "${values.n", "${}"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no reference"):
        list(find(text))


def test_a_list_does_not_go_into_a_text() -> None:
    with pytest.raises(ConfigurationError, match="stands inside the text"):
        resolve("a ${values.list}", lambda r: [1])


# ---- the file ---------------------------------------------------------------------------------------------------


def test_plan_knows_folders_needs_and_configurations(file: Path, tmp_path: Path) -> None:
    plan = make_plan(file)
    assert [stage.folder.name for stage in plan.stages] == ["01-split", "02-sft", "03-pairs", "04-dpo"]
    assert [stage.needs for stage in plan.stages] == [(), ("split",), ("split", "sft"), ("sft", "pairs")]
    assert plan["sft"].kind.config["train"] == {"max_steps": 4}
    assert plan["dpo"].kind.config["model"]["name_or_path"] == str(tmp_path / "out" / "02-sft")
    assert plan.dependents("sft") == {"sft", "pairs", "dpo"}
    assert plan.dependents("pairs") == {"pairs", "dpo"}
    assert not (tmp_path / "out").exists()


def test_overrides_reach_values_and_stages_by_name(file: Path) -> None:
    plan = make_plan(file, ["values.steps=9", "stages.dpo.train.max_steps=7", "stages.dpo.algo.beta=0.5"])
    assert plan["sft"].kind.config["train"]["max_steps"] == 9
    assert plan["dpo"].kind.config["train"]["max_steps"] == 7
    assert plan["dpo"].kind.config["algo"] == {"name": "dpo", "beta": 0.5}
    assert "did you mean 'dpo'" in refused(file, "stages.dop.train.max_steps=7")


def test_a_file_of_its_own_lies_below_the_inline_config(file: Path, tmp_path: Path) -> None:
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump({**dpo(), "output_dir": "runs/dpo", "train": {"max_steps": 30}}))

    def change(raw: dict[str, Any]) -> None:
        raw["stages"][3] = {"name": "dpo", "kind": "train", "file": "dpo.yaml", "config": {"algo": {"beta": 0.3}}}

    config = make_plan(changed(file, change))["dpo"].kind.config
    assert config["train"] == {"max_steps": 30}
    assert config["algo"] == {"name": "dpo", "beta": 0.3}


def test_typed_config_loads_as_the_file_does(file: Path) -> None:
    config = load_stages(file)
    assert make_plan(config).names == ["split", "sft", "pairs", "dpo"]
    assert dataclasses.replace(config, title="x").title == "x"


def test_two_stages_with_one_name(file: Path) -> None:
    said = refused(changed(file, lambda raw: raw["stages"][3].update(name="sft")))
    assert "two stages have the name 'sft' (numbers 2 and 4)" in said


def test_a_missing_stage_or_result_is_named_with_the_nearest(file: Path) -> None:
    def stage(raw: dict[str, Any]) -> None:
        raw["stages"][3]["config"]["datasets"] = ["${stages.pair.data}"]

    said = refused(changed(file, stage))
    assert "stage dpo: ${stages.pair.data} names a stage that is not there" in said
    assert "did you mean 'pairs'" in said

    def result(raw: dict[str, Any]) -> None:
        raw["stages"][3]["config"]["datasets"] = ["${stages.pairs.date}"]

    said = refused(changed(file, result))
    assert "a pairs stage makes no 'date'" in said
    assert "did you mean 'data'" in said


def test_a_circle_and_a_later_stage(file: Path) -> None:
    def circle(raw: dict[str, Any]) -> None:
        raw["stages"][1]["config"]["model"]["name_or_path"] = "${stages.dpo.model}"

    assert "in a circle: sft -> dpo -> sft" in refused(changed(file, circle))

    def later(raw: dict[str, Any]) -> None:
        raw["stages"][1]["config"]["model"]["name_or_path"] = "${values.model}"
        raw["stages"].reverse()

    assert "stage dpo needs a result of pairs, which comes after it" in refused(changed(file, later))


def test_all_stages_are_checked_before_any_starts(file: Path, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"][1]["config"]["train"]["max_stepz"] = 3
        raw["stages"][3]["config"]["algo"] = {"name": "dpo", "beta": -1}

    said = refused(changed(file, change))
    assert "2 stages are wrong" in said
    assert re.search(r"sft: .*max_stepz", said)
    assert re.search(r"dpo: .*beta", said)
    assert not (tmp_path / "out").exists()


def test_missing_values_files_and_outputs(file: Path) -> None:
    assert "values.data has no value" in refused(file, "values.data=")
    said = refused(file, "values.data=nowhere/rows.csv", kind=EnvironmentError)
    assert "stage split: name: nowhere/rows.csv is not there" in said
    assert "output_dir: is the stage's own folder" in refused(file, "stages.sft.output_dir=runs/x")
    assert "did you mean 'steps'" in refused(file, "stages.sft.train.max_steps=${values.step}")


def test_an_absent_judge_is_told_with_the_three_ways(file: Path) -> None:
    def without(raw: dict[str, Any]) -> None:
        del raw["stages"][2]["config"]["rewards"]

    said = refused(changed(file, without))
    assert "nothing says what ranks" in said
    assert all(way in said for way in ("rewards:", "ranking.reward_model", "judge:"))


def test_a_judge_that_does_not_answer_is_found_before_training(file: Path, tmp_path: Path) -> None:
    def judge(raw: dict[str, Any]) -> None:
        del raw["stages"][2]["config"]["rewards"]
        raw["stages"][2]["config"]["judge"] = {"url": "http://127.0.0.1:9/v1", "model": "m", "timeout": 2}

    runner = FakeRunner()
    with pytest.raises(EnvironmentError) as caught:
        run_stages(changed(file, judge), runner=runner)
    said = str(caught.value)
    assert "stage pairs: the judge" in said
    assert all(way in said for way in ("judge.url", "kind: local", "ranking.reward_model"))
    assert runner.calls == []


# ---- running ----------------------------------------------------------------------------------------------------


def test_every_stage_runs_once_and_is_then_skipped(file: Path, tmp_path: Path) -> None:
    runner = FakeRunner()
    result = run_stages(file, runner=runner)
    assert runner.made == ["split", "sft", "pairs", "dpo"]
    assert result["dpo"].results["model"] == str(tmp_path / "out" / "04-dpo")
    assert result["sft"].numbers == {"total_steps": 4, "final_loss": 0.5}
    assert result["split"].numbers == {"train rows": 1, "test rows": 1}
    assert result.report == str(tmp_path / "out" / "report.html")
    record = read_record(tmp_path / "out" / "02-sft")
    assert record is not None
    assert record["status"] == "finished"
    assert record["memory"] == 1000
    assert yaml.safe_load((tmp_path / "out" / "02-sft" / "stage.yaml").read_text())["output_dir"].endswith("02-sft")
    again = FakeRunner()
    result = run_stages(file, runner=again)
    assert again.calls == []
    assert {stage.status for stage in result.stages.values()} == {"skipped"}


def test_a_failure_ends_the_run_and_says_what_to_do(file: Path) -> None:
    runner = FakeRunner(fail="pairs")
    with pytest.raises(TrainingError) as caught:
        run_stages(file, runner=runner)
    error = caught.value
    assert error.message == "stage pairs (pairs) failed: loss is nan"
    assert f"lower train.learning_rate; then go on with: aligntune run {file}" in error.hint
    assert "Not started: dpo." in error.hint
    assert runner.made == ["split", "sft", "pairs"]
    after = FakeRunner()
    run_stages(file, runner=after)
    assert after.made == ["pairs", "dpo"]


def test_ctrl_c_marks_the_stage_and_the_next_run_goes_on_from_its_checkpoint(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="stage sft was stopped; go on with: aligntune run"):
        run_stages(file, runner=FakeRunner(stop="sft"))
    assert (read_record(tmp_path / "out" / "02-sft") or {})["status"] == "interrupted"
    runner = FakeRunner()
    result = run_stages(file, runner=runner)
    assert runner.made == ["sft", "pairs", "dpo"]
    assert "--resume=latest" in runner.calls[0]
    assert result["sft"].status == "finished"
    assert (read_record(tmp_path / "out" / "02-sft") or {})["attempts"] == 2


def test_a_changed_finished_stage_is_refused_with_the_choices(file: Path, tmp_path: Path) -> None:
    run_stages(file, runner=FakeRunner())
    said = refused(file, "values.steps=5")
    assert "stage sft is finished, and has changed since: train.max_steps: 4 -> 5" in said
    assert "--from sft" in said
    assert "output_dir" in said
    runner = FakeRunner()
    run_stages(file, ["values.steps=5"], start="sft", runner=runner)
    assert runner.made == ["sft", "pairs", "dpo"]
    kept = sorted(p.name for p in (tmp_path / "out" / "replaced" / "1").iterdir())
    assert kept == ["02-sft", "03-pairs", "04-dpo"]


def test_changed_data_are_a_change(file: Path, tmp_path: Path) -> None:
    run_stages(file, runner=FakeRunner())
    with open(tmp_path / "rows.csv", "a") as rows:
        rows.write("say x,it is x\n")
    said = refused(file)
    assert f"stage split is finished, and has changed since: the content of {tmp_path / 'rows.csv'}" in said


def test_what_a_stage_reads_is_part_of_it(file: Path) -> None:
    run_stages(file, runner=FakeRunner())
    redone = FakeRunner()
    redone.content = "other weights"
    run_stages(file, start="sft", runner=redone)
    plan = make_plan(file)
    record = read_record(plan["pairs"].folder) or {}
    now = identity(plan["pairs"], {"split": record["identity"]["inputs"]["split"], "sft": "another"})
    assert changes(record["identity"], now) == ["what the stage sft has made"]


def test_an_unfinished_stage_that_changed_begins_again(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stages(file, runner=FakeRunner(stop="sft"))
    runner = FakeRunner()
    run_stages(file, ["values.steps=6"], runner=runner)
    assert "--resume=latest" not in runner.calls[0]
    assert (tmp_path / "out" / "replaced" / "1" / "02-sft" / "checkpoint-2").is_dir()


def test_only_runs_those_stages_and_wants_their_needs(file: Path) -> None:
    assert "it needs split, which is not finished" in refused(file, only=["sft"])
    runner = FakeRunner()
    result = run_stages(file, only=["split", "sft"], runner=runner)
    assert runner.made == ["split", "sft"]
    assert [stage.status for stage in result.stages.values()] == ["finished", "finished", "waiting", "waiting"]
    runner = FakeRunner()
    run_stages(file, only=["pairs"], runner=runner)
    assert runner.made == ["pairs"]
    assert "contradict" in refused(file, only=["pairs"], start="sft")
    assert "did you mean 'pairs'" in refused(file, only=["pair"])


def test_a_stage_put_before_others_keeps_their_folders(file: Path, tmp_path: Path) -> None:
    run_stages(file, runner=FakeRunner())
    extra = {"name": "more", "kind": "split", "config": {"dataset": {"name": "${values.data}"}, "test": 3}}
    runner = FakeRunner()
    run_stages(changed(file, lambda raw: raw["stages"].insert(0, extra)), runner=runner)
    assert runner.made == ["more"]


def test_folders_without_numbers(file: Path, tmp_path: Path) -> None:
    runner = FakeRunner()
    result = run_stages(file, ["numbered=false"], runner=runner)
    assert [Path(stage.folder).name for stage in result.stages.values()] == ["split", "sft", "pairs", "dpo"]
    assert result["dpo"].results["model"] == str(tmp_path / "out" / "dpo")
    run_stages(file, ["numbered=false"], start="pairs", runner=runner)
    assert runner.made == ["split", "sft", "pairs", "dpo", "pairs", "dpo"]
    assert sorted(p.name for p in (tmp_path / "out" / "replaced" / "1").iterdir()) == ["dpo", "pairs"]
    renamed = changed(file, lambda raw: raw["stages"][3].update(name="replaced"))
    assert "is where stages that were made again are kept" in refused(renamed, "numbered=false")


def test_one_model_is_called_as_its_folder(tmp_path: Path) -> None:
    for path, name in ((str(tmp_path / "02-sft"), "02-sft"), ("org/model", "org/model")):
        assert list(KINDS["evaluate"]({"model": {"name_or_path": path}}, tmp_path).configs()) == [name]  # type: ignore[attr-defined]


def test_a_stage_never_takes_the_folder_of_other_files(file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "sft" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    said = refused(file, "numbered=false")
    assert f"stage sft: {mine.parent} is there and holds other files" in said
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out" / "split").exists()


def test_the_folder_is_not_shared_with_a_running_process(file: Path, tmp_path: Path) -> None:
    parent = psutil.Process(os.getppid())
    process = {"host": platform.node(), "pid": parent.pid, "created": parent.create_time()}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.json").write_text(json.dumps({"status": "running", "process": process}))
    assert "is in use by the running process" in refused(file)


def test_two_that_start_at_once_refuse_each_other(file: Path, tmp_path: Path) -> None:
    """Whoever has the folder's lock has the folder, whatever `stages.json` says."""
    ends = []

    class Second(FakeRunner):
        def __call__(self, arguments: Sequence[str], log: Path) -> Ended:
            if not ends:
                (tmp_path / "out" / "stages.json").unlink()
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        code = 7 if "is in use by process" in refused(file) else 2
                    finally:  # the child must never come back into the parent's tests
                        os._exit(code)
                ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return super().__call__(arguments, log)

    run_stages(file, runner=Second())
    assert ends == [7]
    assert not (tmp_path / "out" / ".run.lock").exists()


def test_a_damaged_record_is_told(file: Path, tmp_path: Path) -> None:
    run_stages(file, runner=FakeRunner())
    (tmp_path / "out" / "02-sft" / "stage.json").write_text("{")
    assert "is damaged" in refused(file)


# ---- the other kinds --------------------------------------------------------------------------------------------


def others(file: Path) -> Path:
    """The file with a reward model, GRPO on it, an evaluation of two models, a comparison and a report."""

    def change(raw: dict[str, Any]) -> None:
        run = {**sft(), "train": {"max_steps": 2}}
        raw["stages"] += [
            {
                "name": "rm",
                "kind": "reward_model",
                "config": {
                    "objective": "bradley_terry",
                    "model": {"name_or_path": "${values.model}"},
                    "datasets": ["${stages.pairs.data}"],
                },
            },
            {
                "name": "grpo",
                "kind": "train",
                "config": {
                    "algo": {"name": "grpo", "num_generations": 4},
                    "model": {"name_or_path": "${stages.sft.model}"},
                    "datasets": ["${stages.split.train}"],
                    "rewards": "${stages.rm.rewards}",
                    "train": {"max_steps": 2, "per_device_batch_size": 4},
                },
            },
            {
                "name": "scores",
                "kind": "evaluate",
                "config": {
                    "models": {"base": "${values.model}", "sft": "${stages.sft.model}"},
                    "tasks": [{"name": "t", "kind": "generation", "dataset": "${stages.split.test}"}],
                },
            },
            {"name": "lr", "kind": "compare", "config": {"run": run, "axes": {"train.learning_rate": [1e-4, 1e-3]}}},
            {"name": "page", "kind": "report", "config": {"about": {"sft": "teaches"}}},
        ]

    return changed(file, change)


def test_other_kinds_make_their_commands(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligntune.stages.tables.measure", lambda *a, **k: {"base t rougeL": 0.5})
    runner = FakeRunner()
    result = run_stages(others(file), runner=runner)
    out = tmp_path / "out"
    calls = {call[0] if call[0] != "rewards" else "rewards train": call for call in runner.calls}
    assert calls["rewards train"] == ("rewards", "train", str(out / "05-rm" / "stage.yaml"), "--json")
    grpo = yaml.safe_load((out / "06-grpo" / "stage.yaml").read_text())
    assert grpo["rewards"][0]["type"] == "reward_model"
    assert grpo["rewards"][0]["params"] == {"path": str(out / "05-rm")}
    evaluations = [call[1] for call in runner.calls if call[0] == "eval"]
    assert [Path(name).name for name in evaluations] == ["0-base.yaml", "1-sft.yaml"]
    measured = yaml.safe_load(Path(evaluations[1]).read_text())
    assert measured["model"] == {"name_or_path": str(out / "02-sft")}
    assert measured["output_dir"] == str(out / "07-scores" / "1-sft")
    assert "models" not in measured
    assert calls["compare"][2] == "train.learning_rate=[0.0001, 0.001]"
    assert result["scores"].numbers == {"base t rougeL": 0.5}
    assert result["page"].status == "finished"
    assert result.report == str(out / "09-page" / "report.html")
    assert result["grpo"].results["rewards"] == result["rm"].results["rewards"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.scores.margin=-1", "margin"),
        ("stages.scores.model.name_or_path=x", "has no effect beside models"),
        ("stages.scores.tasks.0.kindd=x", "kindd"),
        ("stages.lr.axes={}", "axes"),
        ("stages.lr.run.train.max_stepz=3", "max_stepz"),
        ("stages.page.abouts={}", "abouts"),
        ("stages.split.stratify=true", "needs the column of the classes"),
        ("stages.split.tests=3", "tests"),
        ("stages.rm.objective=bradley", "objective"),
    ],
)
def test_faults_of_each_kind(file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        make_plan(others(file), [override])


# ---- estimates --------------------------------------------------------------------------------------------------


def test_estimates_follow_the_model_and_count_steps(file: Path, tiny_model: Path) -> None:
    overrides = [f"values.model={tiny_model}", "stages.dpo.train.max_steps=", "stages.dpo.train.num_epochs=2"]
    plan = make_plan(file, overrides)
    assert origin(plan, plan["dpo"].kind.config["model"]["name_or_path"]) == str(tiny_model)
    rows = {row.name: row for row in estimates(plan)}
    assert rows["sft"].steps == 4
    assert rows["dpo"].steps is None
    assert any("not counted yet" in note for note in rows["dpo"].notes)
    assert any(note.startswith("memory and disk") for note in rows["pairs"].notes)
    assert rows["sft"].memory is not None
    assert rows["sft"].memory > 60_000_000
    assert rows["sft"].disk is not None
    assert rows["sft"].disk > 0
    found = totals(list(rows.values()))
    assert found["steps"] == 4
    assert found["steps_unknown"] == ["dpo"]
    run_stages(file, overrides, runner=FakeRunner())
    rows = {row.name: row for row in estimates(make_plan(file, [*overrides, "values.steps=8"]))}
    assert rows["dpo"].steps == 1  # two epochs of one row in batches of several
    run_stages(file, [*overrides, "values.steps=8"], start="sft", runner=FakeRunner())
    plan = make_plan(file, [*overrides, "values.steps=8"])
    assert estimates(plan)[1].seconds == (read_record(plan["sft"].folder) or {})["seconds"]


def test_a_comparison_is_estimated_as_all_of_its_runs(file: Path, tiny_model: Path) -> None:
    def add(raw: dict[str, Any]) -> None:
        run = {**sft(), "model": {"name_or_path": str(tiny_model)}, "train": {"max_steps": 6}}
        config = {"run": run, "axes": {"train.learning_rate": [1e-4, 1e-3]}, "seeds": 3}
        raw["stages"].append({"name": "rates", "kind": "compare", "config": config})

    plan = make_plan(changed(file, add), [f"values.model={tiny_model}"])
    rows = {row.name: row for row in estimates(plan)}
    assert rows["rates"].steps == 6 * 2 * 3
    assert rows["rates"].memory == rows["sft"].memory  # one run after the other
    assert rows["rates"].disk == 6 * (rows["sft"].disk or 0)
    assert totals(list(rows.values()))["steps"] == 36 + 8


def test_check_tells_what_is_to_do(file: Path) -> None:
    run_stages(file, only=["split"], runner=FakeRunner())
    assert [stage.name for stage in Execution(make_plan(file)).check()] == ["sft", "pairs", "dpo"]
    assert [s.name for s in Execution(make_plan(file), start="split").check()] == ["split", "sft", "pairs", "dpo"]


# ---- the command ------------------------------------------------------------------------------------------------


def test_dry_run_writes_nothing(cli: Any, file: Path, tmp_path: Path) -> None:
    ran = cli("run", file, "--dry-run")
    assert ran.code == 0, ran.err
    assert "to do: 4 of 4 stages, 8 steps" in ran.out
    assert "time not known; memory not known; disk not known" in ran.out
    assert not (tmp_path / "out").exists()
    document = cli("run", file, "--dry-run", "--json").json
    assert [stage["name"] for stage in document["stages"]] == ["split", "sft", "pairs", "dpo"]
    assert document["total"]["steps"] == 8


def test_a_run_file_is_told_from_a_stages_file(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: instruction_following\n")
    ran = cli("run", path)
    assert ran.code == 2
    assert "has no stages" in ran.err
    assert "aligntune train" in ran.err
    assert cli("run").code == 2


def test_the_command_reports_faults_without_a_traceback(cli: Any, file: Path) -> None:
    ran = cli("run", file, "--from", "stf", "--json")
    assert ran.code == 2
    assert "did you mean" in ran.json["error"]["hint"]
    assert "Traceback" not in ran.err


def test_what_only_the_tables_need_may_change_while_unfinished(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> dict[str, Any]:
        if options["by"] == "intnt":
            raise ConfigurationError("by: no row of t has 'intnt'", hint="did you mean 'intent'?")
        return {}

    monkeypatch.setattr("aligntune.stages.tables.measure", broken)
    overrides = ["stages.scores.by=intnt"]
    first = FakeRunner()
    with pytest.raises(ConfigurationError, match=r"stage scores \(evaluate\) failed: by: no row"):
        run_stages(others(file), overrides, runner=first)
    assert first.made[-2:] == ["scores", "scores"]
    record = read_record(make_plan(file, overrides)["scores"].folder) or {}
    assert record["status"] == "failed"
    for name in ("0-base", "1-sft"):  # what the real command leaves
        folder = make_plan(file, overrides)["scores"].folder / name
        folder.mkdir()
        (folder / "manifest.json").write_text('{"status": "finished"}')
    second = FakeRunner()
    run_stages(file, ["stages.scores.by=intent"], runner=second)
    assert second.made == ["lr"]


def test_a_task_is_compared_with_another_one_on_the_same_rows(file: Path, tmp_path: Path) -> None:
    from aligntune.eval import EvalResult
    from aligntune.eval.metrics import MeanMetric
    from aligntune.eval.result import TaskResult
    from aligntune.stages.story import evaluation_tables
    from aligntune.stages.tables import measure

    def task(name: str, scores: Sequence[int], first: int = 0) -> TaskResult:
        items: list[dict[str, Any]] = [
            {"id": str(first + i), "correct": s, "scores": {"accuracy": s}} for i, s in enumerate(scores)
        ]
        return TaskResult(name, "exact_match", {"accuracy": MeanMetric("correct", "accuracy").compute(items)}, items)

    config = make_plan(others(file), ["stages.scores.against={t: t}"])["scores"]
    config.folder.mkdir(parents=True)
    configs = {name: {"output_dir": str(tmp_path / name)} for name in ("base", "sft")}
    plain, shots = [1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]
    EvalResult("m", {"zero": task("zero", plain), "two": task("two", plain)}).save(tmp_path / "base")
    EvalResult("n", {"zero": task("zero", plain), "two": task("two", shots)}).save(tmp_path / "sft")
    measure(configs, config.folder, against={"two": "zero"})
    found = json.loads((config.folder / "tables.json").read_bytes())["tasks"]
    assert [(r["model"], r["changed"], r["against"]) for r in found] == [
        ("base", "two", "zero"),
        ("sft", "two", "zero"),
    ]
    assert [r["comparison"]["difference"]["difference"] for r in found] == [0.0, 0.75]
    p = found[1]["comparison"]["difference"]["p_value"]
    assert [r["p_adjusted"] for r in found] == [1.0, pytest.approx(2 * p)]  # Holm over two models
    table = evaluation_tables(config)[-1]
    assert (table.title, table.headers) == ("scores: two minus zero", ["Metric", "base", "sft"])
    assert table.rows[0][0] == "accuracy"
    assert table.rows[0][2].startswith("+0.75 [")
    EvalResult("m", {"zero": task("zero", plain), "two": task("two", plain, first=100)}).save(tmp_path / "base")
    with pytest.raises(ValidationError, match="two and zero have no row in common"):
        measure(configs, config.folder, against={"two": "zero"})
    with pytest.raises(ConfigurationError, match="against: there is no task ttt"):
        make_plan(file, ["stages.scores.against={ttt: t}"])


def test_an_error_of_another_kind_is_recorded_and_goes_on(file: Path) -> None:
    class Broken(FakeRunner):
        def __call__(self, arguments: Sequence[str], log: Path) -> Ended:
            raise OSError("no process could be started")

    with pytest.raises(OSError, match="no process"):
        run_stages(file, runner=Broken())
    assert (read_record(make_plan(file)["split"].folder) or {})["error"] == "OSError: no process could be started"
