"""What a run writes beside its metrics: the manifest's head, and the completions that were sampled.

>>> write_header(trainer, trainer.backend.fingerprint())

The files themselves are the run folder's (`aligntune.utils.run_folder`); the trainer writes metrics and samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligntune.core.config.io import effective

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def write_header(run: Trainer, code: dict[str, Any]) -> None:
    """The resolved configuration and the manifest's entries that are known before the first step."""
    from aligntune.utils import manifest
    from aligntune.utils.device import DeviceManager

    run._run.write_config(effective(run.config))
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
