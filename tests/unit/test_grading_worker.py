"""The worker process: deadlines, crashes, threads, forks, and a clean environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from aligntune import errors
from aligntune.grading import worker as module
from aligntune.grading.worker import Worker, WorkerDied, WorkerTimeout

SEARCH = {"pattern": "b+", "text": "abc", "mode": "search"}
HANG = {"pattern": "(a+)+$", "text": "a" * 64 + "b", "mode": "search"}


@pytest.fixture
def worker():
    made = Worker("regex")
    yield made
    made.stop()


def test_answers_and_keeps_its_process(worker: Worker) -> None:
    assert worker.pid is None
    assert worker.ask(SEARCH, 10) == {"found": True}
    pid = worker.pid
    assert worker.ask({**SEARCH, "mode": "fullmatch"}, 10) == {"found": False}
    assert worker.pid == pid


def test_a_hang_ends_the_process_and_the_next_request_gets_a_new_one(worker: Worker) -> None:
    worker.ask(SEARCH, 10)
    pid = worker.pid
    with pytest.raises(WorkerTimeout, match=r"no answer after 0\.3 s"):
        worker.ask(HANG, 0.3)
    assert worker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.ask(SEARCH, 10) == {"found": True}


def test_a_killed_process_is_told_apart(worker: Worker) -> None:
    worker.ask(SEARCH, 10)
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerDied):
        worker.ask(HANG, 30)


def test_large_requests_pass(worker: Worker) -> None:
    assert worker.ask({"pattern": "b", "text": "a" * 1_000_000 + "b", "mode": "search"}, 30) == {"found": True}


def test_threads_get_their_own_answers(worker: Worker) -> None:
    answers: dict[int, bool] = {}

    def ask(i: int) -> None:
        for _ in range(20):
            answers[i] = worker.ask({"pattern": "b", "text": "b" if i % 2 else "a", "mode": "search"}, 10)["found"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == {i: bool(i % 2) for i in range(6)}


def test_a_forked_child_has_a_worker_of_its_own(worker: Worker) -> None:
    worker.ask(SEARCH, 10)
    pid, child = worker.pid, os.fork()
    if child == 0:
        ok = worker.pid is None and worker.ask(SEARCH, 10) == {"found": True} and worker.pid != pid
        worker.stop()
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.ask(SEARCH, 10) == {"found": True}
    assert worker.pid == pid


def test_the_environment_is_clean(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    worker.ask(SEARCH, 10)
    with open(f"/proc/{worker.pid}/environ", "rb") as file:
        assert b"secret" not in file.read()


def test_a_worker_whose_owner_was_killed_ends() -> None:
    script = "from aligntune.grading.worker import *; w = Worker('regex'); w.ask({'pattern':'a','text':'a','mode':'match'}, 9)"
    owner = subprocess.Popen(
        [sys.executable, "-c", script + "; print(w.pid, flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still running")


def test_a_missing_package_is_an_environment_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    script = tmp_path / "worker_main.py"
    script.write_text('print(\'{"ready": false, "error": "No module named math_verify"}\', flush=True)')
    monkeypatch.setattr(module, "__file__", str(tmp_path / "worker.py"))
    with pytest.raises(errors.EnvironmentError, match="lacks a package: No module named math_verify"):
        Worker("math").ask({}, 1)
