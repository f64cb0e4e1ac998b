"""The run folder: claims, refusals, atomic files, torn lines, rollouts, full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.report.sampled import Sampled
from aligntune.utils.files import append_line, disk_errors, jsonable, number, read_lines, write_atomic
from aligntune.utils.rollouts import RolloutWriter, parts, read_rollouts, rewind_rollouts
from aligntune.utils.run_folder import RunFolder, read_manifest


def test_claim_makes_the_folder_and_marks_it_running(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "a" / "b")
    assert run.path == tmp_path / "a" / "b"
    assert run.status == "running"
    assert sorted(os.listdir(run.path)) == [".run.lock", "manifest.json"]
    assert read_manifest(run.path)["process"]["pid"] == os.getpid()


def test_a_finished_run_is_refused_and_not_touched(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    run.append_metrics({"step": 1, "loss": 2.0})
    run.mark_finished({"final_loss": 2.0})
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    for resume in (False, True):
        with pytest.raises(ConfigurationError, match="holds a finished run") as caught:
            RunFolder.claim(run.path, resume=resume)
        assert caught.value.exit_code == 2
        assert "output_dir" in caught.value.hint
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_an_unfinished_run_with_results_needs_resume(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    run.append_metrics({"step": 1, "loss": 2.0})
    run.mark_interrupted()
    with pytest.raises(ConfigurationError, match=r"did not finish \(status: interrupted\)") as caught:
        RunFolder.claim(run.path)
    assert "--resume" in caught.value.hint
    again = RunFolder.claim(run.path, resume=True)
    assert again.resumed
    assert again.status == "running"
    assert [a["status"] for a in read_manifest(run.path)["attempts"]] == ["interrupted"]
    assert read_lines(run.path / "metrics.jsonl")[0]["loss"] == 2.0


def test_a_search_with_a_finished_member_needs_resume(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    (run.path / "meta_es").mkdir()
    (run.path / "meta_es" / "i000-m00.json").write_text("{}")
    run.mark_interrupted()
    with pytest.raises(ConfigurationError, match="did not finish"):
        RunFolder.claim(run.path)
    assert RunFolder.claim(run.path, resume=True).resumed


def test_a_run_that_failed_before_any_result_may_start_again(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    run.write_config({"seed": 1})
    run.mark_failed(ValueError("no such column"))
    assert read_manifest(run.path)["error"] == {"type": "ValueError", "message": "no such column"}
    again = RunFolder.claim(run.path)
    assert not again.resumed
    assert "error" not in read_manifest(run.path)


def test_a_folder_in_use_by_a_living_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from aligntune.utils.run_folder import RunFolder\n"
        f"RunFolder.claim({str(tmp_path / 'run')!r}); print('claimed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        for resume in (False, True):
            with pytest.raises(ConfigurationError, match=f"in use by the running process {other.pid}"):
                RunFolder.claim(tmp_path / "run", resume=resume)
        other.stdin.close()
        other.wait()
    assert RunFolder.claim(tmp_path / "run").status == "running"  # it left no results


def test_files_that_would_be_overwritten_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.check(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigurationError, match=r"would be overwritten: model\.safetensors"):
        RunFolder.claim(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "notes.txt"]


def test_check_writes_nothing(tmp_path: Path) -> None:
    assert RunFolder.check(tmp_path / "new" / "run") == tmp_path / "new" / "run"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="is a file, not a folder"):
        RunFolder.claim(tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"status": "fini')
    with pytest.raises(ConfigurationError, match="is damaged"):
        RunFolder.claim(tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "no permission to write in"),
        (errno.EROFS, "no permission"),
        (errno.ENOSPC, "no space left"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> object:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("aligntune.utils.run_folder.tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigurationError, match=message) as caught:
        RunFolder.claim(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="no permission"):
        RunFolder.claim(tmp_path / "run")


def test_a_disk_that_fills_while_claiming_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "old").mkdir()
    monkeypatch.setattr("aligntune.utils.files.os.fsync", full)
    monkeypatch.setattr("aligntune.utils.run_folder._check_writable", lambda folder: None)
    with pytest.raises(ConfigurationError, match="no space left"):
        RunFolder.claim(tmp_path / "old" / "new" / "run")
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_becomes_our_error(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ConfigurationError, match="no space left on the disk that holds") as caught:
        run.append_metrics({"step": 1})
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_library_messages_about_a_full_disk_are_understood(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no space left"), disk_errors(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="else"), disk_errors(tmp_path):
        raise RuntimeError("something else")


def test_write_atomic_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fail(source: object, target: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("aligntune.utils.files.os.replace", fail)
    with pytest.raises(ConfigurationError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_metrics_lines_survive_a_torn_last_line(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    run.append_metrics({"step": 1, "loss": 2.5, "time": 0.5})
    run.append_metrics({"step": 2, "loss": math.nan, "time": 1.0})
    path = run.path / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    rows = read_lines(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert math.isnan(number(rows[1]["loss"]))
    again = RunFolder.claim(tmp_path / "run", resume=True)
    again.append_metrics({"step": 3, "loss": 2.0, "time": 1.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert [row["step"] for row in read_lines(tmp_path / "m.jsonl")] == [1, 2]
    assert read_lines(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("bad", ["{", "[1]"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    (tmp_path / "m.jsonl").write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(ValidationError, match=r"m\.jsonl:2: not a JSON object"):
        read_lines(tmp_path / "m.jsonl")


def test_rows_are_json_that_every_parser_reads(tmp_path: Path) -> None:
    import numpy as np

    append_line(
        tmp_path / "m",
        {"a": np.float32(0.5), "b": np.array([1, 2]), "c": -math.inf, "d": tmp_path, "e": {2, 1}},
    )
    row = json.loads((tmp_path / "m").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"a": 0.5, "b": [1, 2], "c": "-Infinity", "d": str(tmp_path), "e": [1, 2]}
    assert jsonable(np.int64(3)) == 3


def test_number_reads_what_jsonable_writes() -> None:
    assert [number(v) for v in (1, 0.5, "Infinity", "-Infinity")] == [1.0, 0.5, math.inf, -math.inf]
    assert [number(v) for v in (True, "x", None, [1])] == [None, None, None, None]


def test_rewind_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    for step in range(1, 6):
        run.append_metrics({"step": step})
        run.append_samples([{"step": step, "answer": "x"}])
        run.append_rollouts([{"step": step, "reward": float(step)}, {"step": step, "reward": 0.0}])
        if step == 2:
            run.flush()
    run.flush()
    run.rewind(3)
    assert [row["step"] for row in read_lines(run.path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in read_lines(run.path / "samples.jsonl")] == [1, 2, 3]
    assert read_rollouts(run.path)["step"].to_pylist() == [1, 1, 2, 2, 3, 3]
    run.rewind(2)
    assert len(parts(run.path / "rollouts")) == 1


def test_rewind_by_the_lines_that_a_checkpoint_knew(tmp_path: Path) -> None:
    """The evaluation that ends a run stands at the step of its last checkpoint, and is measured again."""
    run = RunFolder.claim(tmp_path / "run")
    run.append_metrics({"step": 0, "eval_nll": 2.0})
    run.append_metrics({"step": 4, "loss": 1.0})
    counts = run.line_counts()
    assert counts == {"metrics.jsonl": 2}
    run.append_evaluations([{"step": 4, "task": None}])
    run.append_metrics({"step": 4, "eval_nll": 1.5})
    assert [row["step"] for row in run.rewind(4)] == [0, 4, 4]
    assert [row.get("loss") for row in run.rewind(4, counts)] == [None, 1.0]
    assert read_lines(run.path / "evaluations.jsonl") == []
    assert len(read_lines(run.path / "metrics.jsonl")) == 2
    assert run.rewind(-1) == []  # from the beginning: the evaluation of the starting model is made again


def test_a_damaged_part_is_told_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "rollouts"
    writer = RolloutWriter(folder)
    writer.append([{"step": 1, "prompt": "a", "completion": "b", "reward": 1.0}])
    writer.flush()
    whole = parts(folder)[0].read_bytes()
    (folder / "part-00001.parquet").write_bytes(whole[: len(whole) // 2])
    for look in (read_rollouts, lambda run: rewind_rollouts(run / "rollouts", 9), Sampled.of):
        with pytest.raises(ValidationError, match=r"part-00001\.parquet cannot be read") as caught:
            look(tmp_path)
        assert "move it out of the folder" in caught.value.hint


def test_rollouts_are_written_in_parts_and_read_as_one_table(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path / "rollouts", rows_per_part=2)
    writer.append([{"step": 1, "prompt": "p", "reward": 1.0, "meta": {"a": 1}}])
    assert not (tmp_path / "rollouts").exists()
    writer.append([{"step": 1, "prompt": "q \ud800", "reward": None, "meta": "text"}])
    RolloutWriter(tmp_path / "rollouts", rows_per_part=1).append([{"step": 2, "reward": 1, "gold": 7}])
    assert [part.name for part in parts(tmp_path / "rollouts")] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    table = read_rollouts(tmp_path)
    assert table["reward"].to_pylist() == [1.0, None, 1.0]
    assert table["meta"].to_pylist() == ['{"a": 1}', "text", None]
    assert table["prompt"].to_pylist() == ["p", "q \\ud800", None]
    assert table["gold"].to_pylist() == [None, None, 7]
    assert read_rollouts(tmp_path / "elsewhere").num_rows == 0


def test_finishing_flushes_the_rollouts_and_keeps_the_manifest(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    run.update_manifest({"seeds": {"seed": 7}})
    run.append_rollouts([{"step": 1, "reward": 0.5}])
    run.mark_finished({"final_loss": 1.5})
    manifest = read_manifest(run.path)
    assert (manifest["status"], manifest["seeds"], manifest["summary"]) == (
        "finished",
        {"seed": 7},
        {"final_loss": 1.5},
    )
    assert manifest["seconds"] >= 0
    assert read_rollouts(run.path).num_rows == 1


def test_the_resolved_config_reads_back_with_its_numbers(tmp_path: Path) -> None:
    import yaml

    run = RunFolder.claim(tmp_path / "run")
    plain = {"train": {"learning_rate": 1e-5, "betas": [0.9, 0.999]}, "name": "süß", "none": None}
    assert yaml.safe_load(run.write_config(plain).read_text(encoding="utf-8")) == plain


def test_claiming_needs_no_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys; from aligntune.utils import RunFolder, DeviceManager, ModelLoader\n"
        f"RunFolder.claim({str(tmp_path / 'run')!r}).append_metrics({{'step': 1}})\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
