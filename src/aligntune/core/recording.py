"""What a run writes beside its metrics: the manifest's head, and the completions that were sampled.

>>> write_header(trainer, trainer.backend.fingerprint())

The files themselves are the run folder's (`aligntune.utils.run_folder`); the trainer writes metrics and samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.config.io import effective
from aligntune.core.versions import UNTESTED, untested
from aligntune.utils.files import jsonable, write_atomic
from aligntune.utils.logging import get_logger
from aligntune.utils.run_folder import CODE_DIFF, CONFIG

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer
    from aligntune.rewards import BatchScores

log = get_logger(__name__)


def write_header(run: Trainer, code: dict[str, Any]) -> None:
    """The resolved configuration and the manifest's entries that are known before the first step."""
    from aligntune.utils import manifest

    if (sentence := untested(run.config.backend)) and not any(UNTESTED in note for note in run.notes):
        log.warning(sentence)
        run.notes.append(sentence)
    if run.config.backend == "trl" and code.get("by"):
        who = ", ".join(f"{count} by {name}" for name, count in list(code["by"].items())[:3])
        run._tell([f"parts of the training libraries' code were replaced in this process: {who}"])
    resolved = effective(run.config)
    if changed := _changes(run._run.path / CONFIG, resolved):
        run._tell([f"resumed with other settings than before: {'; '.join(changed)}"])
    run._run.write_config(resolved)
    run._run.update_manifest(header_entries(run, code))
    if (diff := manifest.uncommitted(Path.cwd())) is not None:
        write_atomic(run._run.path / CODE_DIFF, diff.encode("utf-8", "surrogatepass"))


def header_entries(run: Trainer, code: dict[str, Any]) -> dict[str, Any]:
    """The manifest's entries that are known once data, rewards and model are loaded.

    Args:
        run: the run.
        code: the backend's fingerprint of the code that trains.
    """
    from aligntune.utils import manifest
    from aligntune.utils.device import DeviceManager

    sources = {r.name: r.source for r in run.rewards.components} if run.rewards is not None else {}
    return manifest.collect(
        run.config,
        datasets=[d for d in (run._train_data, run._eval_data) if d is not None],
        tokenizer=run.tokenizer,
        model_path=run._loaded.path,
        revision=run.config.model.revision,
        reward_sources=sources,
        fingerprint=code,
        device=DeviceManager(run.config.model.device).summary(),
        extra={"notes": run.notes, "backend": run.config.backend, "algorithm": run.config.algorithm.key},
    )


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
    run: Trainer,
    step: int,
    prompts: list[Any],
    completions: list[Any],
    columns: dict[str, list[Any]],
    scores: BatchScores,
    tokens: list[int] | None = None,
) -> None:
    """Store a batch of sampled completions with what each reward gave them.

    A row holds `step` (the one that learns from it), `group` (number of the prompt's group within the step), `prompt`,
    `completion`, `tokens`, `reward` (the total), `reward/<name>` (raw score), `weight/<name>`, `column/<name>` (the
    data's columns that the rewards read, as text or JSON text), `advantage` and `logprob_sum` (null until the trainer
    knows them; `core.rl.held`), and what the algorithm adds.

    Args:
        run: the run.
        step: optimizer steps done.
        prompts: N prompts, text or messages.
        completions: N completions, text or messages.
        columns: name to N values.
        scores: of the N completions.
        tokens: N lengths of completions.
    """
    from aligntune.rewards.adapters import completion_text

    texts = [completion_text(completion) for completion in completions]
    _note_repetition(run, texts)
    if texts:
        run.display.sample(step + 1, _asked(prompts[0]), texts[0], scores.total[0])
    if not run.config.logging.rollouts:
        return
    from aligntune.rewards.summary import prompt_groups

    hf = run._hf
    plugin, held = getattr(hf, "plugin", None), getattr(hf, "held", None)
    marks = plugin.rollout_columns(scores.total) if plugin is not None else {}
    groups = prompt_groups(prompts, run.config.algorithm.group_size)
    first = held.groups(step, max(groups, default=-1) + 1) if held is not None else 0
    weights = {c.name: scores.weights.get(c.name, [c.weight] * len(prompts)) for c in run.rewards.components}
    read = {name: columns[name] for name in run.rewards.read_columns(list(columns))}
    rows = [
        {
            "step": step + 1,  # the step that learns from them, so that a resume knows what to keep
            "group": first + groups[i],
            "prompt": _asked(prompt),
            "completion": texts[i],
            "tokens": None if tokens is None else tokens[i],
            "reward": scores.total[i],
            **{f"reward/{name}": values[i] for name, values in scores.raw.items()},
            **{f"weight/{name}": values[i] for name, values in weights.items()},
            "advantage": None,
            "logprob_sum": None,
            **{f"column/{name}": _text(values[i]) for name, values in read.items()},
            **{name: values[i] for name, values in marks.items()},
        }
        for i, prompt in enumerate(prompts)
    ]
    if held is None:
        run._run.append_rollouts(rows)
    else:
        held.take(rows, run._run.append_rollouts)


def _asked(prompt: Any) -> str:
    """A prompt as text: itself, or its last message."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _note_repetition(run: Trainer, texts: list[str]) -> None:
    """Put the share of repeated n-grams among the metrics that the library averages until its next line of the log."""
    from aligntune.utils.health.figures import mean_repetition

    metrics = getattr(run._hf, "_metrics", None)
    found = mean_repetition(texts)
    if metrics is not None and found is not None:
        metrics["train"]["completions/repetition"].append(found)


def note_end(run: Trainer, error: BaseException | None) -> None:
    """Leave a true status in the manifest, and nothing in memory, however the run ended."""
    from aligntune.core.rows import write_skipped
    from aligntune.core.services import ROW_SECONDS, SAVE_SECONDS

    write_held(run)
    if any(source.streaming for source in run.config.sources):  # known only now
        write_skipped(run)
    # What comes after the end, such as a signal while the report is drawn, takes nothing back.
    finished = run.state.status == "finished" and run._run.status == "finished"
    if isinstance(error, KeyboardInterrupt) and not finished:
        run.state.status = "interrupted"
        run._run.mark_interrupted()
    elif error is not None and not finished:
        run.state.status = "failed"
        run._run.mark_failed(error)
    if run.services is not None:
        run.services.close(SAVE_SECONDS if error is None else ROW_SECONDS)


def write_held(run: Trainer) -> None:
    """Write the rows that still wait for an advantage, as they are."""
    held = getattr(run._hf, "held", None)
    if held is not None:
        held.flush()


def warn(run: Trainer, sentence: str) -> None:
    """Tell the user at once, and write it into the manifest's notes."""
    log.warning(sentence)
    run.notes.append(sentence)
    run._run.update_manifest({"notes": run.notes})


def _text(value: Any) -> str | None:
    """Text as it is, anything else as JSON text."""
    return value if value is None or isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)
