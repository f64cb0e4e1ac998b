"""`backend: auto`: what it takes into account, that it says why, and that a named backend is never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core import backend_choice, versions
from aligntune.core.backend import BackendInfo
from aligntune.core.backend_choice import settle_backend
from aligntune.core.backend_factory import create_trainer, describe
from aligntune.core.config import load_config
from aligntune.errors import EnvironmentError


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Any:
    """`config(kind, ...)` with `backend: auto`."""
    return lambda kind="sft", **changes: load_config(
        runs.plain(kind, tiny_model, tmp_path, **{"backend": "auto", **changes})
    )


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing speaks against Unsloth."""
    monkeypatch.setattr(BackendInfo, "available", True)
    monkeypatch.setattr(backend_choice, "imported", lambda packages: [])
    monkeypatch.setattr(backend_choice, "version_conflicts", lambda: [])
    monkeypatch.setattr(backend_choice, "gpu", lambda: "NVIDIA H100")


def test_unsloth_where_nothing_speaks_against_it(config: Any, fits: None) -> None:
    settled, why = settle_backend(config())
    assert settled.backend == "unsloth"
    assert why.startswith("backend auto is unsloth: NVIDIA H100, Unsloth")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("package", "Unsloth is not installed (pip install --no-deps unsloth=="),
        ("gpu", "no CUDA GPU"),
        ("versions", "wants trl <=1.15.0, and 1.16.0 is installed"),
        ("imported", "'trl' is imported in this process already"),
    ],
)
def test_trl_with_the_reason(what: str, said: str, config: Any, fits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "package":
        monkeypatch.setattr(BackendInfo, "available", property(lambda self: self.name == "trl"))
    if what == "gpu":
        monkeypatch.setattr(backend_choice, "gpu", lambda: None)
    if what == "versions":
        line = "unsloth 2026.10.9 wants trl <=1.15.0, and 1.16.0 is installed"
        monkeypatch.setattr(backend_choice, "version_conflicts", lambda: [line])
    if what == "imported":
        monkeypatch.setattr(backend_choice, "imported", lambda packages: ["trl"] if "trl" in packages else [])
    settled, why = settle_backend(config())
    assert settled.backend == "trl"
    assert said in why


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("sft", {"model__device": "cpu"}, "model.device is set, and Unsloth chooses the device itself"),
        ("sft", {"model__attn_implementation": "eager"}, "its own attention kernels"),
        ("grpo", {"algo__use_adaptive_entropy": True}, "use_adaptive_entropy"),
    ],
)
def test_an_algorithm_or_option_that_unsloth_does_not_keep(
    kind: str, changes: dict[str, Any], said: str, config: Any, fits: None
) -> None:
    settled, why = settle_backend(config(kind, **changes))
    assert settled.backend == "trl"
    assert said in why


def test_a_worker_process_does_not_care_what_is_imported_here(
    config: Any, fits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_choice, "imported", lambda packages: ["trl"] if "trl" in packages else [])
    assert settle_backend(config(isolation="process"))[0].backend == "unsloth"


def test_a_named_backend_is_never_replaced(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackendInfo, "available", property(lambda self: self.name == "trl"))
    named = config(backend="unsloth")
    assert settle_backend(named) == (named, "")
    with pytest.raises(EnvironmentError, match="not installed"):
        create_trainer(named)


def test_the_choice_stands_in_the_notes_the_record_and_the_manifest(config: Any, tmp_path: Path, cli: Any) -> None:
    """On this machine: without a GPU, and with the libraries imported by the tests."""
    trainer = create_trainer(config(train__max_steps=1))
    assert trainer.config.backend == "trl"
    trainer.train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["backend"] == "trl"
    assert any(note.startswith("backend auto is trl: ") for note in manifest["notes"])
    assert "backend: trl" in (tmp_path / "out" / "config.resolved.yaml").read_text()
    assert describe(config())["notes"][0].startswith("backend auto is trl: ")


# ---- versions -------------------------------------------------------------------------------------------------------


def test_the_first_tested_set_is_that_of_the_constraints(repo: Path) -> None:
    pinned = dict(
        line.split("==")
        for line in (repo / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    first = versions.TESTED[0]
    assert {n: pinned[n] for n in ("torch", "trl", "transformers", "datasets")} == {
        n: v for n, v in first.items() if n != "unsloth"
    }
    assert f"unsloth=={first['unsloth']}" in (repo / "Makefile").read_text()
    second = versions.TESTED[1]
    assert all(f"{n}=={second[n]}" in (repo / "Makefile").read_text() for n in ("trl", "transformers", "datasets"))


def test_an_untested_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {**versions.TESTED[0]}
    monkeypatch.setattr(versions, "installed", lambda name: there.get(name))
    assert versions.untested("trl") is None
    assert versions.untested("unsloth") is None
    there["trl"] = "1.99.0"
    sentence = versions.untested("trl")
    assert sentence is not None
    assert "trl 1.99.0" in sentence
    assert "tested: torch 2.13.0, trl 1.14.2" in sentence
    there.update(versions.TESTED[1])
    assert versions.untested("trl") is None
    assert versions.untested("unsloth") is not None  # the second set is of TRL alone


def test_conflicts_come_from_the_packages_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["trl<=1.15.0,>=0.18", "transformers>=5", "torch>=2 ; extra == 'gpu'", "numpy<1", "peft>=0.1"]
    monkeypatch.setattr(versions.importlib.metadata, "requires", lambda package: lines)
    there = {"trl": "1.16.0", "transformers": "5.17.0", "unsloth": "1", "numpy": "2", "torch": "1"}
    monkeypatch.setattr(versions, "installed", lambda name: there.get(name))
    assert versions.conflicts("unsloth") == ["unsloth 1 wants trl <=1.15.0,>=0.18, and 1.16.0 is installed"]


def test_a_conflict_of_unsloth_with_trl_is_refused_by_name(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Before Unsloth is imported, whose own error would name neither."""
    from aligntune.backends.unsloth import backend as module

    monkeypatch.setattr(module, "version_conflicts", lambda: ["unsloth 1 wants trl <=1.15.0, and 1.16.0 is installed"])
    config = load_config(runs.plain("sft", tiny_model, tmp_path, backend="unsloth"))
    with pytest.raises(EnvironmentError, match=r"wants trl <=1\.15\.0") as caught:
        module.UnslothBackend().check(config)
    assert "backend: trl" in caught.value.hint
