"""What a run writes beside its metrics: the manifest's head, and the completions that were sampled.

>>> write_header(trainer, trainer.backend.fingerprint())

The files themselves are the run folder's (`aligntune.utils.run_folder`); the trainer writes metrics and samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.config.io import effective
from aligntune.utils.run_folder import CONFIG

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def write_header(run: Trainer, code: dict[str, Any]) -> None:
    """The resolved configuration and the manifest's entries that are known before the first step."""
    from aligntune.utils import manifest
    from aligntune.utils.device import DeviceManager

    resolved = effective(run.config)
    if changed := _changes(run._run.path / CONFIG, resolved):
        run._tell([f"resumed with other settings than before: {'; '.join(changed)}"])
    run._run.write_config(resolved)
    sources = {r.name: r.source for r in run.rewards.components} if run.rewards is not None else {}
    entries = manifest.collect(
        run.config,
        datasets=[d for d in (run._train_data, run._eval_data) if d is not None],
        tokenizer=run.tokenizer,
        model_path=run._loaded.path,
        revision=run.config.model.revision,
        reward_sources=sources,
        fingerprint=code,
        device=DeviceManager(run.config.model.device).summary(),
        extra={
            "notes": run.notes,
            "backend": run.config.backend,
            "algorithm": run.config.algorithm.key,
        },
    )
    run._run.update_manifest(entries)


def _changes(before: Path, now: dict[str, Any]) -> list[str]:
    """Keys of a resumed run whose values are not those of its first part, as `key was -> is`."""
    import yaml

    if not before.is_file():
        return []
    old, new = _flat(yaml.safe_load(before.read_text(encoding="utf-8"))), _flat(now)
    return [f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in {**old, **new} if old.get(key) != new.get(key)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings; a list is one value."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}


def record_rollouts(
    run: Trainer, step: int, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]], scores: Any
) -> None:
    """Store a batch of sampled completions with what each reward gave them."""
    if not run.config.logging.rollouts:
        return
    from aligntune.rewards.adapters import completion_text

    plugin = getattr(run._hf, "plugin", None)
    marks = plugin.rollout_columns(scores.total) if plugin is not None else {}
    rows = [
        {
            "step": step + 1,  # the step that learns from them, so that a resume knows what to keep
            "prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"],
            "completion": completion_text(completion),
            "reward": scores.total[i],
            **{f"reward/{name}": values[i] for name, values in scores.raw.items()},
            **{name: values[i] for name, values in marks.items()},
        }
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    run._run.append_rollouts(rows)
