"""One run per folder: the lock, its takeover from the dead, and what other machines are told."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aligntune.errors import ConfigurationError
from aligntune.utils.lock import NAME, RunLock
from aligntune.utils.run_folder import RunFolder

HOLDER = """
import sys, time
from aligntune.utils.lock import RunLock
print(RunLock(sys.argv[1]).acquire(), flush=True)
sys.stdin.read()
RunLock(sys.argv[1]).release()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder's lock, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "None\n"
    return process


def test_two_processes_refuse_each_other_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    other = hold(tmp_path)
    lock = RunLock(tmp_path)
    for attempt in (lock.check, lock.acquire):
        with pytest.raises(ConfigurationError, match=f"in use by process {other.pid} on this machine") as caught:
            attempt()
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigurationError, match="in use by process"):
        RunFolder.claim(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    note = lock.acquire()
    assert note == f"the folder was left locked by process {other.pid}, which is gone; this run takes it over"
    assert json.loads((tmp_path / NAME).read_text()) == {"host": platform.node(), "pid": os.getpid()}
    assert lock.acquire() is None  # a second run of this process, as in a notebook
    lock.check()
    lock.release()
    assert not (tmp_path / NAME).exists()
    lock.release()


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    other = hold(tmp_path)
    other.communicate("")
    lock = RunLock(tmp_path)
    assert lock.acquire() is None
    # A child that is forked holds nothing, and cannot take what its parent has.
    pid = os.fork()
    if pid == 0:
        try:
            RunLock(tmp_path).acquire()
        except ConfigurationError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert RunLock(tmp_path).acquire() is None
    lock.release()


def test_another_machine_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"host": "node-17", "pid": 4711}')
    with pytest.raises(ConfigurationError, match="process 4711 on the machine node-17") as caught:
        RunLock(tmp_path).acquire()
    assert f"remove {tmp_path / NAME}" in caught.value.hint
    (tmp_path / NAME).unlink()
    assert RunLock(tmp_path).acquire() is None
    RunLock(tmp_path).release()


def test_a_run_holds_its_folder_to_its_end(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "run")
    child = f"""
from aligntune.utils.run_folder import RunFolder
from aligntune.errors import ConfigurationError
for attempt in (RunFolder.check, RunFolder.claim):
    try:
        attempt({str(run.path)!r}, resume=True)
    except ConfigurationError as error:
        print("in use" in error.message)
"""
    said = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert said.stdout == "True\nTrue\n", said.stderr
    run.mark_interrupted()
    assert not (run.path / NAME).exists()
    again = RunFolder.claim(run.path, resume=True)
    again.mark_failed(ValueError("x"))
    assert not (run.path / NAME).exists()


def test_processes_after_the_first_write_only_their_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntune.utils.rollouts import read_rollouts

    first = RunFolder.claim(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    second = RunFolder.claim(tmp_path / "run")
    for run in (first, second):
        run.append_metrics({"step": 1, "loss": 1.0})
        run.append_samples([{"step": 1}])
        run.update_manifest({"by": "first" if run is first else "second"})
        run.append_rollouts([{"step": 1, "completion": str(run is first)}])
        run.flush()
    assert len((first.path / "metrics.jsonl").read_text().splitlines()) == 1
    assert json.loads((first.path / "manifest.json").read_text())["by"] == "first"
    assert sorted(read_rollouts(first.path).column("completion").to_pylist()) == ["False", "True"]
    assert sorted(p.name for p in (first.path / "rollouts").iterdir()) == [
        "part-00000.parquet",
        "part-00001-r1.parquet",
    ]
    assert second.rewind(0) == []
    second.mark_finished()
    assert first.status == "running"
    first.mark_finished()
    assert first.status == "finished"
