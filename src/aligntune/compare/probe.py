"""Do two backends train the same? One batch, one loss, one gradient, in seconds, before a comparison takes hours.

    result = probe("dpo.yaml")            # TRL against Unsloth, and our trainer against bare TRL
    result.ok, print(result)

Each side is measured in a fresh process (`probe_worker`) from the same configuration, and held against the first
(`probe_verdict`). A wrong mask, a wrong normaliser or a wrong reference shows as the first quantity that differs.

It compares one loss at one point: not the optimizer, not sampling, not the rewards, not speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aligntune import errors
from aligntune.compare.probe_bare import bare_notes, bare_refusal
from aligntune.compare.probe_verdict import Pair, Side, compare_sides
from aligntune.core.backend import get_backend
from aligntune.core.config.io import effective, load_config
from aligntune.core.config.root import RunConfig
from aligntune.core.isolation import clean_environment
from aligntune.errors import ConfigurationError, TrainingError

BARE = "bare TRL"
"""Name of the side without anything of ours."""


@dataclass(frozen=True)
class ProbeResult:
    """The verdicts of a probe.

    Attributes:
        algorithm: the algorithm or task.
        precision: of the first side.
        pairs: each other side against the first.
        sides: name to what was measured there (loss, class, metrics, sizes).
        notes: what was left out, and why.
    """

    algorithm: str
    precision: str
    pairs: list[Pair]
    sides: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all sides are equal within the tolerances."""
        return all(pair.ok for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": self.ok,
            "algorithm": self.algorithm,
            "precision": self.precision,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "sides": {n: {k: v for k, v in s.items() if k != "weights"} for n, s in self.sides.items()},
            "notes": self.notes,
        }

    def __str__(self) -> str:
        lines = []
        for pair in self.pairs:
            verdict = "equal" if pair.ok else "DIFFERENT"
            lines.append(f"{self.algorithm}, {pair.right} against {pair.left}, {pair.precision}: {verdict}")
            for q in pair.quantities:
                mark = {True: "equal", False: "differs", None: "none"}[q.equal]
                lines.append(f"  {q.name:<20}{mark:<9}{q.difference:<10.2g}limit {q.tolerance:<8.2g}{q.unit}")
            if pair.cause:
                lines.append(f"  {pair.cause}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def probe(
    config: Any,
    backends: Sequence[str] = ("trl", "unsloth"),
    *,
    bare: bool = True,
    python: str | None = None,
    timeout: float = 1800.0,
) -> ProbeResult:
    """Measure one loss and its gradient on several backends, and say whether they are equal.

    Args:
        config: a file, mapping or configuration.
        backends: the sides; the others are held against the first.
        bare: hold our trainer on TRL against the bare library too, where that has the algorithm.
        python: interpreter of the worker processes; None takes this one.
        timeout: seconds for each process.

    Raises:
        ConfigurationError: the configuration is wrong, or its algorithm has no single loss.
        EnvironmentError: a backend is not installed.
        TrainingError: a worker process ended without a result.
    """
    loaded = load_config(config)
    if len(set(backends)) != len(backends) or not backends:
        raise ConfigurationError("a probe needs different backends", hint="such as backends=('trl', 'unsloth')")
    if len(backends) < 2 and not bare:
        raise ConfigurationError("a probe needs two sides", hint="name two backends, or leave bare=True")
    for name in backends:
        get_backend(name)
    prepared, notes = prepared_config(loaded)
    jobs = [(name, name, False) for name in backends]
    if bare and "trl" in backends:
        if reason := bare_refusal(prepared):
            notes.append(f"no side '{BARE}': {reason}")
        else:
            jobs.append((BARE, "trl", True))
            notes += bare_notes(prepared)
    with tempfile.TemporaryDirectory(prefix="aligntune-probe-") as folder:
        sides = [
            _measured(name, _on(prepared, backend), Path(folder) / str(i), alone, python, timeout)
            for i, (name, backend, alone) in enumerate(jobs)
        ]
        base = {side.name: side for side in sides}
        pairs = [compare_sides(sides[0] if s.name != BARE else base["trl"], s) for s in sides[1:]]
        return ProbeResult(
            loaded.algorithm.key, sides[0].result["precision"], pairs, {s.name: s.result for s in sides}, notes
        )


def _on(config: RunConfig, backend: Any) -> RunConfig:
    return replace(config, backend=backend)


def prepared_config(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration without what has nothing to do with a loss, and a note for each change that matters."""
    params, notes = config.algorithm, []
    if params.key == "gkd":
        params = replace(params, lmbda=0.0, seq_kd=False)  # type: ignore[call-arg]
        notes.append("distillation is probed on the answers of the data (lmbda 0), so that nothing is sampled")
    model = config.model
    if model.peft is not None and model.peft.dropout:
        model = replace(model, peft=replace(model.peft, dropout=0.0))
        notes.append("adapter dropout is 0 in the probe")
    optimizer = config.train.optimizer
    train = replace(
        config.train,
        save_steps=None,
        save_total_limit=type(config.train)().save_total_limit,
        early_stopping_patience=None,
        optimizer="adamw_torch" if "8bit" in optimizer else optimizer,
    )
    changes: dict[str, Any] = {"algo" if config.kind == "rl" else "task": params}
    if params.key == "gkd":
        changes["generation"] = type(config.generation)()  # type: ignore[attr-defined]
    changed = replace(
        config,
        **changes,
        model=model,
        train=train,
        isolation="auto",
        python=None,
        evaluation=replace(config.evaluation, dataset=None, every=None),
        logging=replace(config.logging, report_to=[], samples=type(config.logging)().samples),
    )
    return changed, notes


def _measured(name: str, config: RunConfig, folder: Path, bare: bool, python: str | None, timeout: float) -> Side:
    """One side, measured in a process of its own."""
    folder.mkdir(parents=True)
    request = {"config": effective(config), "folder": str(folder), "bare": bare}
    env = {**clean_environment(), "UNSLOTH_RETURN_LOGITS": "1", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            [python or sys.executable, "-m", "aligntune.compare.probe_worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=env,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as e:
        raise TrainingError(f"the side '{name}' took more than {timeout:g} s", hint="probe a smaller batch") from e
    file = folder / "result.json"
    if not file.is_file():
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise TrainingError(
            f"the process of side '{name}' ended with code {done.returncode} and no result", hint=f"it said: {last}"
        )
    result = json.loads(file.read_text(encoding="utf-8"))
    if "error" in result:
        kind = getattr(errors, result["error"]["type"], TrainingError)
        raise kind(f"side '{name}': {result['error']['message']}", hint=result["error"]["hint"])
    return Side(name, result, folder)
