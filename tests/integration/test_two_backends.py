"""Both backends from one script, the worker's interpreter, and the proof that neither touches the other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_unsloth import needs_unsloth, python

import runs
from aligntune import errors

gpu_shaped = pytest.mark.skipif(
    importlib.util.find_spec("PIL") is None, reason="Unsloth's patching for GPUs imports pillow (extra `test`)"
)


def scripted(kind: str, model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return runs.plain(kind, model, folder, isolation="process", train__max_steps=2, **changes)


BOTH = """
    from aligntune.core.backend_factory import create_trainer
    result = {}
    for name, raw in given["configs"].items():
        with create_trainer(raw) as trainer:
            trained = trainer.train()
            result[name] = {"loss": trained.final_loss, "answers": trainer.generate(["Say 1"], max_new_tokens=3)}
    result["imported"] = [m for m in ("torch", "trl", "transformers", "unsloth") if m in sys.modules]
"""


@needs_unsloth
def test_one_script_runs_both_backends(tiny_model: Path, tmp_path: Path) -> None:
    """TRL, Unsloth and TRL again, each in its process: the two TRL runs are equal bit for bit, code included."""
    configs = {}
    for name, backend in (("first", "trl"), ("between", "unsloth"), ("again", "trl")):
        (tmp_path / name).mkdir()
        configs[name] = scripted("sft", tiny_model, tmp_path / name, backend=backend)
    result = python(BOTH, tmp_path, configs=configs)
    assert result["imported"] == []
    assert result["first"] == result["again"]
    assert result["between"]["loss"] == pytest.approx(result["first"]["loss"], abs=1e-4)
    assert runs.logged(tmp_path / "first" / "out") == runs.logged(tmp_path / "again" / "out")
    assert runs.same_weights(tmp_path / "first" / "out", tmp_path / "again" / "out")
    marks = {n: json.loads((tmp_path / n / "out" / "manifest.json").read_text())["patch_fingerprint"] for n in configs}
    assert marks["first"] == marks["again"]
    assert marks["first"]["replaced"] == []
    assert len(marks["between"]["foreign"]) >= 5
    assert not list(tmp_path.glob("unsloth_compiled_cache"))


WITHOUT = """
    import importlib.util, os
    from pathlib import Path
    from hiding import hide
    if given["hidden"]:
        hide("unsloth", "unsloth_zoo")
    import runs
    found = importlib.util.find_spec("unsloth") is not None
    before = {k: v for k, v in os.environ.items()}
    trainer = runs.trainer(given["kind"], given["model"], Path(given["folder"]), train__max_steps=2)
    trainer.train()
    changed = sorted(k for k in os.environ if before.get(k) != os.environ[k])
    result = {"found": found, "environment": changed, "beside": sorted(os.listdir("."))}
"""


@needs_unsloth
@pytest.mark.parametrize(
    "kind", ["sft", pytest.param("dpo", marks=pytest.mark.slow), pytest.param("grpo", marks=pytest.mark.slow)]
)
def test_trl_trains_the_same_with_and_without_unsloth(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Its absence is simulated by a finder that does not see it."""
    found = {}
    for hidden in (False, True):
        working, folder = tmp_path / f"work-{hidden}", tmp_path / f"run-{hidden}"
        working.mkdir()
        found[hidden] = python(WITHOUT, working, kind=kind, model=tiny_model, folder=folder, hidden=hidden)
    assert [found[h]["found"] for h in (False, True)] == [True, False]
    assert all(f["beside"] == [] for f in found.values())
    assert not any("UNSLOTH_" in k and k != "DISABLE_UNSLOTH_FOR_TRL" for k in found[False]["environment"])
    here, there = (tmp_path / f"run-{h}" / "out" for h in (False, True))
    assert runs.logged(here) == runs.logged(there)
    assert runs.same_weights(here, there)
    marks = [json.loads((f / "manifest.json").read_text())["patch_fingerprint"] for f in (here, there)]
    assert marks[0] == marks[1]
    assert marks[0]["symbols"] > 5000


def test_the_worker_runs_in_the_interpreter_that_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """A link to this interpreter, in a folder of its own with the settings of this environment, as venv makes it."""
    env = tmp_path / "other"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    if sys.prefix != sys.base_prefix:
        (env / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        (env / "lib").symlink_to(Path(sys.prefix) / "lib")
    reward = tmp_path / "who.py"
    reward.write_text(
        "import sys\nfrom pathlib import Path\n\n\ndef share_of_a(text):\n"
        f"    Path({str(tmp_path / 'who')!r}).write_text(sys.executable)\n    return float(len(text))\n"
    )
    raw = scripted("grpo", tiny_model, tmp_path, python=str(env / "bin" / "python"))
    raw["rewards"] = [{"type": f"{reward}:share_of_a"}]
    from aligntune.core.backend_factory import create_trainer

    with create_trainer(raw) as trainer:  # type: ignore[attr-defined]
        assert trainer.train().total_steps == 2
    assert (tmp_path / "who").read_text() == str(env / "bin" / "python")


def test_an_interpreter_that_cannot_be_used_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    missing = create_trainer(scripted("sft", tiny_model, tmp_path, python=str(tmp_path / "no" / "python")))
    with pytest.raises(errors.ConfigurationError, match="no program that can be run"):
        missing.train()
    broken = create_trainer(scripted("sft", tiny_model, tmp_path, python="/bin/false"))
    with pytest.raises(errors.TrainingError, match=r"worker process of /bin/false ended with code 1") as caught:
        broken.train()
    assert "pip install aligntune" in caught.value.hint
    with pytest.raises(errors.ConfigurationError, match="python: has no effect"):
        create_trainer(runs.plain("sft", tiny_model, tmp_path, python="/bin/false"))


PROCESS_OF_A_PROCESS = """
    import os
    from aligntune.backends.unsloth.backend import UnslothBackend
    from aligntune.core.isolation import clean_environment
    before = dict(os.environ)
    os.environ["MINE"] = "1"
    UnslothBackend()._import()
    leaked = {k for k in os.environ if before.get(k) != os.environ[k]} - {"MINE"}
    clean = clean_environment()
    os.environ["TOKENIZERS_PARALLELISM"] = "asked for"
    from aligntune.compare.probe import probe
    probed = probe(given["config"], ["trl"])
    result = {
        "leaked": len(leaked), "left": sorted(k for k in leaked if clean.get(k) != before.get(k)), "mine": clean["MINE"],
        "again": clean_environment()["TOKENIZERS_PARALLELISM"], "ok": probed.ok, "beside": sorted(os.listdir(".")),
    }
"""


@pytest.mark.slow
@needs_unsloth
def test_a_process_of_an_unsloth_process_is_clean(tiny_model: Path, tmp_path: Path) -> None:
    """Its variables do not reach the next one, and TRL trains there as the bare library does."""
    (tmp_path / "work").mkdir()
    config = runs.plain("sft", tiny_model, tmp_path)
    result = python(PROCESS_OF_A_PROCESS, tmp_path / "work", config=config)
    assert result["leaked"] > 15
    assert result["left"] == []
    assert result["mine"] == "1"
    assert result["again"] == "asked for"
    assert result["ok"]
    assert result["beside"] == []


# ---- the probe between the backends, and what Unsloth does on a GPU -------------------------------------------------


@needs_unsloth
@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, {"r": 4}])
@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "grpo"])
def test_the_backends_have_one_loss_and_one_gradient(kind: str, peft: Any, tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.compare.probe import probe

    result = probe(runs.plain(kind, tiny_model, tmp_path, model__peft=peft), bare=False)
    assert result.ok, str(result)
    (pair,) = result.pairs
    assert pair.precision == "fp32"
    values = {q.name: q.difference for q in pair.quantities}
    assert values["log-probabilities"] < 2e-6
    assert values["loss"] < 1e-6
    assert values["gradient direction"] < 1e-9


OURS = ["gspo", "dapo", "rloo", "cispo", "gbmpo", "pace", "counterfactual_grpo", "neural_mirror", "reinforce_pp", "ppo"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_every_policy_algorithm_can_be_probed(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """Measured twice here, on a batch that passes through its own hooks: equal bit for bit."""
    from aligntune.compare.probe import prepared_config
    from aligntune.compare.probe_verdict import Side, compare_sides
    from aligntune.compare.probe_worker import measure
    from aligntune.core.config import load_config

    algo = {"name": name, **({} if name in ("ppo", "pace") else {"num_generations": 4})}
    sides = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        raw = runs.plain("grpo", tiny_model, folder, algo=algo, rewards=[{"type": "length"}])
        config, _ = prepared_config(load_config(raw))
        sides.append(Side(str(i), measure(config, folder / "measured"), folder / "measured"))
    pair = compare_sides(*sides)
    assert pair.ok, pair.cause
    assert all(q.difference == 0 for q in pair.quantities if q.name != "gradient direction")


@gpu_shaped
@needs_unsloth
@pytest.mark.slow
def test_the_detector_sees_what_unsloth_does_on_a_gpu() -> None:
    """Its patching for GPUs is forced here; the process cannot train."""
    from aligntune.algorithms.base import algorithm_names, get_algorithm
    from aligntune.core.backend import REBOUND
    from aligntune.diagnosis.isolation import isolation_report

    shaped = isolation_report("gpu_shaped")
    assert sum(shaped.fingerprint["by"].values()) > 300
    assert any("UnslothGRPOTrainer" in name for name in shaped.fingerprint["by"])
    assert not shaped.clean
    assert shaped.files == []
    used = {get_algorithm(n).trainer for n in algorithm_names()} | {"trl:SFTTrainer", "trl:RewardTrainer"}
    made = {f"trl:{name.removeprefix('Unsloth')}" for name in shaped.fingerprint["by"] if name.startswith("Unsloth")}
    assert used <= made  # what `list_backends` says of these algorithms
    assert set(REBOUND) <= made
    clean = isolation_report("trl")
    assert clean.clean
    assert clean.fingerprint["by"] == {}


@pytest.mark.slow
@needs_unsloth
def test_every_symbol_of_a_trl_process_is_as_without_unsloth(cli: Any) -> None:
    ran = cli("diagnose", "isolation", "--full", "--json")
    assert ran.code == 0
    found = ran.json
    assert found["changed"] == {}
    assert found["symbols"] > 50000
    assert found["clean"]
    assert set(found["environment"]) == {"PURE_TRL_MODE", "TRL_ONLY_MODE", "DISABLE_UNSLOTH_FOR_TRL"}


def test_an_unknown_backend_is_refused(cli: Any) -> None:
    ran = cli("diagnose", "isolation", "--backend", "unslot")
    assert ran.code == 2
    assert "unsloth" in ran.err


def subprocess_env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("UNSLOTH")}


@needs_unsloth
@pytest.mark.slow
def test_the_command_shows_what_unsloth_replaces() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aligntune", "diagnose", "isolation", "--backend", "unsloth", "--json"],
        env=subprocess_env(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 5 <= sum(found["fingerprint"]["by"].values()) < 100
    assert all("unsloth" in name for name in found["fingerprint"]["by"])
