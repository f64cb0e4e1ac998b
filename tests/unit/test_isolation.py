"""Keeping Unsloth out of a TRL run: flags, guard, refusal, and the fingerprint of the training code."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligntune.core import isolation
from aligntune.core.fingerprint import of_unsloth
from aligntune.errors import EnvironmentError

FINGERPRINT = """
import json
from aligntune.core.isolation import enter_trl, fingerprint
enter_trl()
from trl import DPOTrainer, SFTTrainer
from transformers import LlamaForCausalLM
print(json.dumps(fingerprint()))
"""
REAL = importlib.util.find_spec("unsloth") is not None


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the flags and the import system back."""
    for flag in isolation.FLAGS:
        monkeypatch.delenv(flag, raising=False)
    finders = list(sys.meta_path)
    sys.meta_path[:] = [f for f in finders if not isinstance(f, isolation._Guard)]
    yield
    sys.meta_path[:] = finders
    for flag in isolation.FLAGS:
        os.environ.pop(flag, None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package called unsloth whose import leaves a file behind."""
    folder = tmp_path / "site" / "unsloth"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in [m for m in sys.modules if m.partition(".")[0] == "unsloth"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "ran"
    sys.modules.pop("unsloth", None)


def test_the_flags_follow_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    isolation.enter_trl()
    assert [os.environ.get(f) for f in ("PURE_TRL_MODE", "TRL_ONLY_MODE", "DISABLE_UNSLOTH_FOR_TRL")] == ["1"] * 3
    monkeypatch.setattr(isolation, "PATCHED_LIBRARIES", ())
    isolation.enter_unsloth()
    assert not any(f in os.environ for f in isolation.FLAGS)
    assert not any(isinstance(f, isolation._Guard) for f in sys.meta_path)


def test_the_guard_lets_the_package_be_seen_and_not_be_run(package: Path) -> None:
    isolation.enter_trl()
    isolation.enter_trl()
    assert sum(isinstance(f, isolation._Guard) for f in sys.meta_path) == 1
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    with pytest.raises(ImportError, match="must not be imported in a run with `backend: trl`"):
        importlib.import_module("unsloth")
    assert not package.exists()
    assert "unsloth" not in sys.modules
    assert importlib.util.find_spec("json") is not None


def test_the_guard_holds_for_an_editable_installation(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose own finder knows the place, which is not on the path."""
    site = sys.path.pop(0)

    class Editable:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return importlib.machinery.PathFinder.find_spec(name, [site]) if name == "unsloth" else None

    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not importlib.machinery.PathFinder])
    sys.meta_path += [Editable, importlib.machinery.PathFinder]  # type: ignore[list-item]
    isolation.enter_trl()
    with pytest.raises(ImportError, match="must not be imported"):
        importlib.import_module("unsloth")
    assert not package.exists()


def test_the_guard_says_nothing_about_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "FOREIGN", ("no_such_package",))
    isolation.enter_trl()
    assert importlib.util.find_spec("no_such_package") is None


def test_without_the_guard_the_package_runs(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolation.enter_trl()
    monkeypatch.setattr(isolation, "PATCHED_LIBRARIES", ())
    isolation.enter_unsloth()
    importlib.import_module("unsloth")
    assert package.exists()


def test_trl_is_refused_where_unsloth_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth_zoo", types.ModuleType("unsloth_zoo"))
    with pytest.raises(EnvironmentError, match="'unsloth_zoo' was imported") as caught:
        isolation.enter_trl()
    assert "isolation: process" in caught.value.hint
    assert caught.value.exit_code == 3
    assert "PURE_TRL_MODE" not in os.environ


def test_unsloth_is_refused_where_trl_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in isolation.FOREIGN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "trl", types.ModuleType("trl"))
    os.environ["PURE_TRL_MODE"] = "1"
    with pytest.raises(EnvironmentError, match="'trl' was imported first"):
        isolation.enter_unsloth()
    assert os.environ["PURE_TRL_MODE"] == "1"


def test_the_usage_ping_is_off_even_where_the_hub_client_was_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    isolation.no_telemetry()
    assert constants.HF_HUB_DISABLE_TELEMETRY is True
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_the_users_own_variables_reach_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's import and what it sets later are taken out; what stood there before is as it was."""
    monkeypatch.setattr(isolation, "_own", {})
    monkeypatch.setattr(isolation, "_changed", {})
    for name in isolation.FOREIGN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    theirs = {"TRITON_CACHE_DIR": "/mine", "TORCHINDUCTOR_CACHE_DIR": "/too", "UNSLOTH_COMPILE_LOCATION": "/compiled"}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRL_ONLY_MODE", "1")
    assert theirs.items() <= isolation.clean_environment().items()

    for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_RETURN_LOGITS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # put back at the end
    with isolation.watched_environment():
        monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    os.environ.update(UNSLOTH_RETURN_LOGITS="1", TRITON_CACHE_DIR="/its")  # while it trains
    clean = isolation.clean_environment()
    assert theirs.items() <= clean.items()
    assert not {"UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_RETURN_LOGITS", "TRL_ONLY_MODE"} & clean.keys()


# ---- the fingerprint ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fingerprints() -> list[dict[str, object]]:
    """From two processes with different hash seeds."""
    found = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", FINGERPRINT], env=env, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        ("/envs/unsloth/lib/python3.11/site-packages/trl/trainer/utils.py", False),
        ("/home/me/unsloth-env/lib/python3.12/site-packages/peft/peft_model.py", False),
        ("/home/me/unsloth/notebook.py", False),
        ("C:\\envs\\unsloth\\Lib\\site-packages\\trl\\trainer\\utils.py", False),
        ("/envs/a/lib/python3.11/site-packages/unsloth/models/llama.py", True),
        ("/usr/local/lib/python3.12/dist-packages/unsloth_zoo/patching_utils.py", True),
        ("/tmp/aligntune-unsloth-1/cache/UnslothGRPOTrainer.py", True),
        ("/home/me/unsloth_compiled_cache/moe_utils.py", True),
        ("UnslothDPOTrainer", True),
        ("<unsloth-fused:LlamaForCausalLM>", True),
    ],
)
def test_a_folder_that_is_called_unsloth_is_not_unsloth(origin: str, foreign: bool) -> None:
    """An environment of that name must not make every TRL run a patched one."""
    assert of_unsloth(origin) is foreign


def test_a_checkout_of_unsloth_is_known_by_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("unsloth")
    module.__file__ = str(tmp_path / "unsloth" / "__init__.py")
    monkeypatch.setitem(sys.modules, "unsloth", module)
    assert of_unsloth(str(tmp_path / "unsloth" / "models" / "llama.py"))
    assert not of_unsloth(str(tmp_path / "mine" / "llama.py"))


def test_the_fingerprint_is_the_same_in_every_process(fingerprints: list[dict[str, object]]) -> None:
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0]["foreign"] == []
    assert int(str(fingerprints[0]["symbols"])) > 1000
    assert len(str(fingerprints[0]["hash"])) == 64


def test_the_fingerprint_moves_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.sft_trainer as module

    before = isolation.fingerprint()

    def compute_loss(self, model, inputs):  # type: ignore[no-untyped-def]
        return 0

    monkeypatch.setattr(module.SFTTrainer, "compute_loss", compute_loss)
    after = isolation.fingerprint()
    assert after["hash"] != before["hash"]
    assert after["foreign"] == []


@pytest.mark.parametrize("how", ["method", "static", "property", "class"])
def test_replaced_code_is_found_and_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.sft_trainer as module

    space: dict[str, object] = {"__name__": "unsloth.models.rl"}
    exec(
        compile(
            "def f(self): return 1\nclass C:\n    def g(self): return 2\n", "/x/site-packages/unsloth/rl.py", "exec"
        ),
        space,
    )
    value = {"method": space["f"], "static": staticmethod(space["f"]), "property": property(space["f"])}  # type: ignore[arg-type]
    if how == "class":
        monkeypatch.setattr(module, "SFTTrainer", space["C"])
    else:
        monkeypatch.setattr(module.SFTTrainer, "replaced", value[how], raising=False)
    with pytest.raises(EnvironmentError, match="parts of the training code were replaced") as caught:
        isolation.assert_unpatched()
    assert any("SFTTrainer" in name for name in caught.value.context["foreign"])


class Stands:
    """A callable object in the place of a function."""

    def __call__(self, *args: object) -> int:
        return 0

    def bound(self, *args: object) -> int:
        return 0


@pytest.mark.parametrize("how", ["instance", "wrapping", "partial", "bound"])
@pytest.mark.parametrize("where", ["function", "method"])
def test_a_callable_object_in_the_place_of_code_is_found(where: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it calls the replaced function, whose code is as it was."""
    import functools

    import trl.trainer.sft_trainer as module
    import trl.trainer.utils as utils

    holder, name = (utils, "pad") if where == "function" else (module.SFTTrainer, "compute_loss")
    original = getattr(holder, name)
    value = {
        "instance": Stands(),
        "wrapping": functools.update_wrapper(Stands(), original),
        "partial": functools.partial(original, 1),
        "bound": Stands().bound,
    }[how]
    monkeypatch.setattr(holder, name, value)
    found = isolation.fingerprint()
    assert [n.rpartition(".")[2] for n in found["replaced"]] == [name]
    assert sum(found["by"].values()) == 1
    assert found["foreign"] == []
    (culprit,) = found["by"]
    assert culprit == (original.__code__.co_filename if how == "partial" else __file__)


@pytest.mark.parametrize("how", ["class", "subclass", "partial"])
def test_what_is_replaced_on_the_package_alone_is_found(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trl` imports its names when they are asked for, and what has been put there instead is found in it alone."""
    import functools

    import trl

    before = isolation.fingerprint()
    original = trl.SFTTrainer
    space: dict[str, object] = {"__name__": "unsloth.models.rl", "Base": original}
    code = "class C:\n    def __init__(self): pass\nclass D(Base):\n    pass\n"
    exec(compile(code, "/x/site-packages/unsloth/rl.py", "exec"), space)
    made = {"class": space["C"], "subclass": space["D"], "partial": functools.partial(original)}
    monkeypatch.setattr(trl, "SFTTrainer", made[how])
    found = isolation.fingerprint()
    assert found["replaced"] == ["trl.SFTTrainer"]
    assert found["hash"] != before["hash"]
    assert found["foreign"] == ([] if how == "partial" else ["trl.SFTTrainer"])
    if how != "partial":
        with pytest.raises(EnvironmentError, match=r"first trl\.SFTTrainer"):
            isolation.assert_unpatched()


def test_a_clean_process_passes() -> None:
    import trl.trainer.sft_trainer  # noqa: F401

    assert isolation.assert_unpatched()["foreign"] == []


@pytest.mark.skipif(not REAL, reason="unsloth is not installed")
def test_the_real_unsloth_is_found_after_its_import(tmp_path: Path) -> None:
    code = """
import contextlib, json, os, sys
os.environ["UNSLOTH_COMPILE_LOCATION"] = os.path.abspath("cache")
with contextlib.redirect_stdout(sys.stderr):
    import unsloth
from trl import SFTTrainer
from aligntune.core.isolation import assert_unpatched, fingerprint
from aligntune.errors import EnvironmentError
try:
    assert_unpatched()
    print(json.dumps("passed"))
except EnvironmentError as error:
    print(json.dumps(error.message))
"""
    env = {k: v for k, v in os.environ.items() if k not in isolation.FLAGS}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parts of the training code were replaced" in json.loads(done.stdout.splitlines()[-1])
