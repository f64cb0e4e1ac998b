"""`aligntune diagnose`: each check says what it must on a machine that lacks the thing, and gives the fix."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from aligntune.core import isolation, versions
from aligntune.diagnosis import environment as looking
from aligntune.errors import EnvironmentError
from aligntune.grading.sandbox import executor

GB = 1e9


def only(checks: Any) -> looking.Check:
    (check,) = checks
    return check  # type: ignore[no-any-return]


def test_another_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(looking._python()).status == "ok"
    monkeypatch.setattr(looking.sys, "version_info", (3, 9, 1))
    check = only(looking._python())
    assert (check.status, check.fix) == ("warn", "use Python 3.11 to 3.13")


def test_sets_of_versions_that_were_not_tested_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {**versions.TESTED[0], "peft": "0.21", "unsloth_zoo": "2026.10.9"}
    monkeypatch.setattr(versions, "installed", lambda name: there.get(name))
    monkeypatch.setattr(versions.importlib.metadata, "requires", lambda name: ["trl<=1.15.0", "torch>=2"])
    checks = {check.name: check for check in looking._sets()}
    assert checks["versions for trl"].status == "ok"
    assert "trl 1.14.2" in checks["versions for trl"].found
    there["trl"] = "1.99.0"
    checks = {check.name: check for check in looking._sets()}
    check = checks["versions for trl"]
    assert check.status == "warn"
    assert "the tests have not run with this set" in check.found
    assert check.fix.startswith("install a tested set: torch 2.13.0, trl 1.14.2")
    if "versions for unsloth" in checks:
        assert "wants trl <=1.15.0, and 1.99.0 is installed" in checks["versions for unsloth"].found


@pytest.mark.parametrize(
    ("cuda", "free", "driver", "status", "found", "fix"),
    [
        (True, 70, False, "ok", "H100; CUDA 13.0; 70.0 of 80.0 GB free", ""),
        (True, 10, False, "warn", "10.0 of 80.0 GB free", "end other programs on the GPU"),
        (False, 0, True, "warn", "finds no GPU", "CUDA_VISIBLE_DEVICES"),
        (False, 0, False, "note", "the CPU, no CUDA GPU", "small models and adapters run here"),
    ],
)
def test_the_device(
    cuda: bool, free: int, driver: bool, status: str, found: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = SimpleNamespace(
        is_available=lambda: cuda,
        device_count=lambda: 1,
        get_device_name=lambda i: "H100",
        mem_get_info=lambda: (free * GB, 80 * GB),
    )
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    torch = SimpleNamespace(cuda=made, version=SimpleNamespace(cuda="13.0"), __version__="2.13.0", backends=backends)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(looking.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    check = only(looking._device())
    assert check.status == status
    assert found in check.found
    assert fix in check.fix
    monkeypatch.setitem(sys.modules, "torch", None)
    check = only(looking._device())
    assert (check.status, "cannot be imported" in check.found, "pytorch.org" in check.fix) == ("fail", True, True)


def test_little_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((2 * GB, "warn"), (60 * GB, "ok")):
        memory = SimpleNamespace(available=free, total=64 * GB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        monkeypatch.setattr(looking.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        for check in (only(looking._memory()), only(looking._disk(tmp_path / "not" / "there"))):
            assert check.status == status, check
            assert bool(check.fix) == (status == "warn")
    assert f"60.0 GB free in {tmp_path}" in only(looking._disk(tmp_path / "not" / "there")).found


def test_permission_is_tried_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNTUNE_CACHE", str(tmp_path / "cache"))
    assert [check.status for check in looking._writing(tmp_path / "later")] == ["ok", "ok"]

    def refuse(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(looking.tempfile, "TemporaryFile", refuse)
    folder, cache = looking._writing(tmp_path / "later")
    assert (folder.status, cache.status) == ("fail", "fail")
    assert "set output_dir to a folder that you may write to" in folder.fix
    assert "ALIGNTUNE_CACHE" in cache.fix
    assert "Permission denied" in folder.found


def test_the_hub_and_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    waited: list[float] = []

    class Open:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *exc: object) -> None:
            return None

    def connect(address: Any, timeout: float) -> Open:
        waited.append(timeout)
        return Open()

    monkeypatch.setattr(looking.socket, "create_connection", connect)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    hub, token = looking._hub()
    assert (hub.status, token.status) == ("ok", "ok")
    assert "hf_secret" not in f"{hub}{token}"
    assert waited == [looking.DEADLINE]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert list(looking._hub())[1].fix.endswith("`hf auth login`")


@pytest.mark.parametrize(
    ("given", "status", "fix"),
    [("1", "ok", ""), ("", "ok", ""), ("x", "warn", "a number from 1"), ("0", "warn", "a number"), ("9999", "warn", "at most")],
)  # fmt: skip
def test_threads(given: str, status: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    check = only(looking._threads())
    assert check.status == status
    assert fix in check.fix


def test_the_sandbox_by_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sandbox:
        level = "full"

        def __enter__(self) -> Sandbox:
            return self

        def __exit__(self, *exc: object) -> None:
            return None

    monkeypatch.setattr(executor, "SafeCodeExecutor", Sandbox)
    assert (only(looking._sandbox()).status, only(looking._sandbox()).fix) == ("ok", "")
    Sandbox.level = "limits"
    check = only(looking._sandbox())
    assert check.status == "note"
    assert "level limits" in check.found
    assert "user namespaces" in check.fix

    def none() -> Any:
        raise EnvironmentError("the code sandbox needs Linux or macOS", hint="on Windows, run in WSL")

    monkeypatch.setattr(executor, "SafeCodeExecutor", none)
    assert only(looking._sandbox()) == looking.Check(
        "sandbox", "warn", "the code sandbox needs Linux or macOS", "on Windows, run in WSL"
    )


def test_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "imported", list)
    assert only(looking._isolation()).status == "ok"
    monkeypatch.setattr(isolation, "imported", lambda: ["unsloth"])
    check = only(looking._isolation())
    assert check.status == "warn"
    assert "unsloth is imported" in check.found
    assert "isolation: process" in check.fix
    assert os.environ["HF_HUB_OFFLINE"] == "1"
