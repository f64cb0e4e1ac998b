"""Shared fixtures, and the environment that every test runs in: offline, one thread, nothing left in the home folder.

The environment is set before anything else is imported, because torch, tokenizers and the hub client read it once.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",  # threads that contend make a test several times slower
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    NO_COLOR="1",
    COLUMNS="120",
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share the folder that the main process made
    _home = tempfile.mkdtemp(prefix="aligntune-tests-")
    os.environ["HF_HOME"] = _home
    os.environ["ALIGNTUNE_CACHE"] = os.path.join(_home, "aligntune")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)

import helpers

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout that the tests stand in."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and small pretrained models beside the checkout; skips where there is none."""
    folder = REPO.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no folder {folder} with real data and models")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: an untrained Llama (hidden 32, 2 layers) and a byte tokenizer with a chat template."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model_plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model`, without a chat template."""
    return helpers.save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-plain", chat=False)


@pytest.fixture(scope="session")
def stories260k(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the really trained 260k-parameter story model (no chat template, no pad token)."""
    source = shared / "models" / "stories260K"
    return helpers.convert_stories260k(source, tmp_path_factory.mktemp("models") / "stories260k")


@pytest.fixture(scope="session")
def docs_prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The folder of `docs_folder`, with its runs and evaluations; copy it before you change something in it."""
    import docs_folder

    folder = tmp_path_factory.mktemp("docs") / "all"
    folder.mkdir()
    here = Path.cwd()
    os.chdir(folder)
    try:
        docs_folder.prepare(folder, tiny_model)
        docs_folder.evaluations(folder)
    finally:
        os.chdir(here)
    return folder


@dataclass(frozen=True)
class Ran:
    """What a command did: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """`cli("train", "run.yaml", ...)` runs the command line in this process."""
    from aligntune.cli.main import main

    monkeypatch.setenv("TQDM_DISABLE", "1")  # as the program sets it, and put back after the test

    def run(*arguments: Any) -> Ran:
        capfd.readouterr()
        code = main([str(a) for a in arguments])
        return Ran(code, *capfd.readouterr())

    yield run
    log = logging.getLogger("aligntune")  # its handler holds the standard error of this test
    log.handlers = [h for h in log.handlers if not getattr(h, "aligntune", False)]
