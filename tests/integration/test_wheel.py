"""The wheel: what is in it, and that it runs alone, away from the checkout."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

MAX_BYTES = 5_000_000
"""Most that the package may weigh: the embedded model is the bulk of it."""


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(repo)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("aligntune-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, repo: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wheel.stat().st_size < MAX_BYTES
    source = {
        str(p.relative_to(repo / "src"))
        for p in (repo / "src" / "aligntune").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    packed = {n for n in names if not n.partition("/")[0].endswith(".dist-info")}
    assert packed == source
    assert "aligntune/py.typed" in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in a fresh environment that holds the wheel alone.

    Its dependencies are lent by the environment of the tests through one line in a .pth file. Python does not read the
    .pth files of a folder that was added that way, so the editable install of the checkout stays out.
    """
    folder = tmp_path_factory.mktemp("a place") / "env"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([*install, "--no-index"], check=True)
    lent = [p for p in site.getsitepackages() if Path(p).is_dir()]
    Path(own, "lent.pth").write_text("".join(f"{p}\n" for p in lent))
    return python.with_name("aligntune")


def run(program: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_installed_program_is_the_wheels(program: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [program.with_name("python"), "-c", "import aligntune; print(aligntune.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where).is_relative_to(program.parent.parent)
    recipes = run(program, tmp_path, "recipes", "list", "--json")
    assert recipes.returncode == 0, recipes.stderr
    assert len(json.loads(recipes.stdout)) > 10
    assert run(program, tmp_path, "config", "schema").returncode == 0


@pytest.mark.slow
def test_the_installed_program_runs_the_quickstart(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path, "quickstart", "--fast", "--out", "first", "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    report = tmp_path / "first" / "report.html"
    assert "<svg" in report.read_text(encoding="utf-8")
    again = run(program, tmp_path, "quickstart", "--fast", "--out", "first")
    assert again.returncode == 2, again.stderr
