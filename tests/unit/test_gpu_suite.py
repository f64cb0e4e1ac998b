"""The GPU suite on a CPU: parts that go on where they were left, the figures, the page; and a part for real."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def suite(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module, with its package on the path."""
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    for name in [n for n in sys.modules if n == "gpu" or n.startswith("gpu.") or n == "gpu_suite"]:
        del sys.modules[name]
    return importlib.import_module("gpu_suite")


@pytest.fixture
def record(suite: Any) -> Any:
    return importlib.import_module("gpu.record")


def settings(record: Any, folder: Path, **values: Any) -> Any:
    return record.Settings(folder / "out", folder / "work", tiny=True, cpu=True, **values)


def saved(folder: Path, part: str = "p") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / f"{part}.json").read_text())
    return found


def test_a_part_keeps_what_it_has_and_goes_on(record: Any, tmp_path: Path) -> None:
    ran: list[str] = []

    def case(name: str, broken: bool = False) -> Any:
        def run(seconds: float) -> dict[str, Any]:
            ran.append(name)
            if broken:
                raise KeyboardInterrupt
            return {"value": len(ran)}

        return record.Case(name, run)

    stopped = record.Part("p", "what", lambda s: [case("a"), case("b", broken=True), case("c")])
    with pytest.raises(KeyboardInterrupt):
        record.run_part(stopped, settings(record, tmp_path), {"cores": 2})
    assert saved(tmp_path)["status"] == "unfinished"
    assert saved(tmp_path)["left"] == ["b", "c"]
    whole = record.Part("p", "what", lambda s: [case("a"), case("b"), case("c")])
    result = record.run_part(whole, settings(record, tmp_path), {"cores": 2})
    assert ran == ["a", "b", "b", "c"]
    assert result == saved(tmp_path)
    assert (result["status"], result["failed"]) == ("finished", [])
    assert result["cases"]["a"]["value"] == 1
    record.run_part(whole, settings(record, tmp_path), {"cores": 2}, again=True)
    assert ran[4:] == ["a", "b", "c"]
    other = record.Settings(tmp_path / "out", tmp_path / "work")  # the full form takes nothing from the tiny one
    assert len(record.run_part(whole, other, {})["cases"]) == 3
    assert ran[7:] == ["a", "b", "c"]


def test_time_that_runs_out_fails_a_case_or_leaves_it(record: Any, tmp_path: Path) -> None:
    def late(seconds: float) -> dict[str, Any]:
        raise record.OutOfTime(f"it took more than {seconds:.0f} s")

    part = record.Part("p", "what", lambda s: [record.Case("own limit", late, 5), record.Case("the part's", late)])
    result = record.run_part(part, settings(record, tmp_path, limit=60), {})
    assert result["cases"]["own limit"]["error"] == "it took more than 5 s"
    assert result["failed"] == ["own limit"]
    assert result["left"] == ["the part's"]
    assert record.run_part(part, settings(record, tmp_path, limit=0), {})["left"] == ["the part's"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_case_that_breaks_does_not_end_the_part(jobs: int, record: Any, tmp_path: Path) -> None:
    cases = [record.Case(n, lambda seconds, n=n: {} if n == "good" else {}["missing"]) for n in ("bad", "good")]
    part = record.Part("p", "what", lambda s: list(cases), together=True)
    result = record.run_part(part, settings(record, tmp_path, jobs=jobs), {})
    assert result["failed"] == ["bad"]
    assert "KeyError" in result["cases"]["bad"]["error"]
    assert result["status"] == "finished"


def test_a_figure_of_the_device_that_fails_ends_nothing(record: Any, tmp_path: Path, capsys: Any) -> None:
    def late(settings: Any) -> dict[str, Any]:
        raise record.OutOfTime("it took more than 120 s")

    def broken(settings: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA error")

    cases = [record.Case("one", lambda seconds: {"value": 1})]
    for facts in (late, broken):
        part = record.Part("p", "what", lambda s: list(cases), facts=facts)
        assert record.run_part(part, settings(record, tmp_path), {}, again=True)["cases"]["one"]["value"] == 1
    assert "facts: FAILED: RuntimeError: CUDA error" in capsys.readouterr().out
    whole = record.Part("p", "what", lambda s: list(cases), facts=lambda s: {"peak_flops": 1e15})
    assert record.run_part(whole, settings(record, tmp_path), {})["facts"]["peak_flops"] == 1e15  # asked for again


def test_rows_of_every_kind_can_be_trained_on(suite: Any, record: Any, tmp_path: Path) -> None:
    made = importlib.import_module("gpu.models").data(settings(record, tmp_path))
    tags = [json.loads(line) for line in made["tags"].read_text().splitlines()]
    assert all(token.strip() for row in tags for token in row["tokens"])
    assert all(len(row["tokens"]) == len(row["tags"]) for row in tags)
    pairs = [json.loads(line) for line in made["pairs"].read_text().splitlines()]
    assert all(row["chosen"] != row["rejected"] for row in pairs)


def test_operations_and_peaks(suite: Any) -> None:
    device = importlib.import_module("gpu.device")
    assert device.flops_per_token(1_000_000_000, 16, 2048, 1024, full=True) == 6e9 + 12 * 16 * 2048 * 1024
    assert device.flops_per_token(10, 2, 4, 8, full=False) == 40 + 12 * 2 * 4 * 8
    assert device.peak("NVIDIA H100 80GB HBM3")[0] == 989e12
    assert device.peak("NVIDIA H100 PCIe")[0] == 756e12
    assert device.peak("NVIDIA A10G")[0] == 70e12
    assert device.peak("NVIDIA Unheard 9000") == (None, "not in the table")


def test_every_part_and_case_has_a_name_of_its_own(suite: Any, record: Any, tmp_path: Path) -> None:
    from aligntune.algorithms.base import algorithm_names, task_names

    names = [part.name for part in suite.PARTS]
    assert len(set(names)) == len(names) == 19
    full = record.Settings(tmp_path, tmp_path)
    cases = {part.name: [case.name for case in part.cases(full)] for part in suite.PARTS}
    assert all(found and len(set(found)) == len(found) for found in cases.values())
    assert {*cases["smoke-supervised"], *cases["smoke-policy"]} == {*task_names(), *algorithm_names()}
    assert suite.chosen(["smoke"]) == [p for p in suite.PARTS if p.name.startswith("smoke-")]
    with pytest.raises(SystemExit, match="there is no part 'smok'"):
        suite.chosen(["smok"])


def test_bad_arguments_and_a_missing_gpu(suite: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    with pytest.raises(SystemExit, match="--cpu needs --tiny"):
        suite.main(["--cpu", "--list"])
    with pytest.raises(SystemExit, match="the architectures are llama, qwen, phi"):
        suite.main(["--hub", "gpt=x", "--list"])
    assert suite.main(["--list", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not run yet") == 19
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert suite.main(["--out", str(tmp_path), "--work", str(tmp_path / "w")]) == 3
    assert "finds no NVIDIA GPU (--tiny --cpu" in capsys.readouterr().err


def test_the_page_says_what_has_not_been_run(suite: Any, record: Any, repo: Path, tmp_path: Path) -> None:
    page = importlib.import_module("gpu.page")
    text = page.tables(tmp_path, suite.PARTS)
    assert text.count("| not run yet |") == 19
    full = record.Settings(tmp_path, tmp_path)
    machine = {"gpu": {"name": "NVIDIA H100"}, "packages": {"torch": "2"}}
    parts = {part.name: part for part in suite.PARTS}

    def result(name: str, values: dict[str, Any], *, tiny: bool = False) -> None:
        case = record.Case("one", lambda seconds: dict(values))
        part = record.Part(name, "what", lambda s: [case], facts=parts[name].facts and (lambda s: {"peak_flops": 1e15}))
        record.run_part(part, record.Settings(tmp_path, tmp_path, tiny=tiny) if tiny else full, machine)

    side = {"tokens_per_second": 50_000.0, "model_flops": 3.2e14, "peak_bytes": 4e9}
    result("speed-llama", {"trl": side, "unsloth": side, "speed_ratio": 1.0})
    result("memory-trl", {"estimated": {"peak": 2e9}, "measured": 1e9, "ratio": 2.0})
    result("smoke-ways", {"ok": False, "error": "no such\nthing | here"})
    result("isolation", {"verdict": "equal bit for bit", "ok": True}, tiny=True)
    text = page.tables(tmp_path, suite.PARTS)
    assert "| one | 50,000 | 50,000 | 1.00 | 32% | 32% | 4.00 GB | 4.00 GB |" in text
    assert "| one | 2.00 GB | 1.00 GB | 2.00 |" in text
    assert "failed: thing / here" in text
    assert "| `isolation` | " + parts["isolation"].what + " | not run yet |" in text  # a tiny run is no result
    stated = (repo / "docs" / "gpu.md").read_text(encoding="utf-8")
    results = repo / "benchmarks" / "results" / "gpu"
    assert page.tables(results, suite.PARTS) in stated, "run `python benchmarks/gpu_suite.py --page`"


def test_unsloth_is_told_by_name_among_the_packages(suite: Any) -> None:
    isolation = importlib.import_module("gpu.isolation")
    there = ["unsloth", "unsloth_zoo", "unsloth-2026.10.9.dist-info", "unsloth_zoo-2026.10.9.dist-info"]
    assert all(isolation._foreign(name) for name in [*there, "__editable__unsloth-1.pth"])
    assert not any(isolation._foreign(name) for name in ("trl", "transformers", "unslothful", "not_unsloth"))


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")
@pytest.mark.slow
def test_an_environment_without_unsloth_is_one(suite: Any, tmp_path: Path, capsys: Any) -> None:
    """The cheapest case for real: no hook, no package, the same PyTorch; and the result file says so."""
    line = ["--tiny", "--cpu", "--part", "isolation", "--case", "environment", "--out", str(tmp_path / "out")]
    assert suite.main([*line, "--work", str(tmp_path / "work")]) == 0
    case = saved(tmp_path, "isolation")["cases"]["environment without Unsloth"]
    assert case["ok"]
    assert case["without"]["found"] == []
    assert case["without"]["versions"] == [None, None]
    assert case["without"]["torch"] == case["with"]["torch"]
    assert case["with"]["found"] == ["unsloth", "unsloth_zoo"]
    assert suite.main([*line, "--work", str(tmp_path / "work")]) == 0
    assert "finished already" in capsys.readouterr().out


def test_every_configuration_of_the_suite_is_a_valid_one(
    suite: Any, record: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """In the full form, whose runs take a GPU."""
    from aligntune.core.config import load_config

    configs, experiments, memory, smoke = (
        importlib.import_module(f"gpu.{name}") for name in ("configs", "experiments", "memory", "smoke")
    )
    models = importlib.import_module("gpu.models")
    tiny = settings(record, tmp_path)
    models.data(tiny)  # of the tiny form, in the place of the full one
    (tmp_path / "full").symlink_to(tmp_path / "work")
    full = record.Settings(tmp_path / "out", tmp_path / "full")
    out = {"output_dir": str(tmp_path / "run")}

    def valid(values: dict[str, Any]) -> Any:
        return load_config({**values, **out})

    for name in configs.names():
        for backend in ("trl", "unsloth"):
            assert valid(configs.config(name, full, tiny_model, backend=backend)).backend == backend
    for way in smoke.WAYS.values():
        valid(configs.config("text_generation", full, tiny_model, backend="unsloth", **way))
    for algorithm, _, batch, length, changes in memory.CASES.values():
        laid = {**changes, "model": {"max_seq_length": length, **changes.get("model", {})}}
        valid(configs.config(algorithm, full, tiny_model, backend="trl", batch=batch, **laid))
    for algorithm in ("dpo", "grpo"):
        made = valid(experiments._config(algorithm, tiny_model, full))
        assert made.evaluation.dataset is not None
        assert set(experiments.MARGINS[algorithm]) < set(experiments.SHOWN)
