"""The model card in a run's root: what was trained, on what, how, what was measured, and what that does not show.

Every sentence under "Limits" is a fact of this run: data without a held-out part, one seed, rewards, health events and
rows that were left out. It judges no model and claims no use.

Source: the sections of Mitchell et al. 2019 (arXiv:1810.03993) that a training run can fill; the header is that of the
Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aligntune.core.best import held_out
from aligntune.utils.files import read_lines
from aligntune.utils.run_folder import EVENTS

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

BY_CLASS = tuple(f"eval_{name}/" for name in ("precision", "recall", "f1", "rows", "tags", "entities"))
"""Values of single classes, which `metrics.jsonl` has; a card with hundreds of them would be no card."""
LEFT_OUT = ("left out", "skipped", "truncat", "longer than", "cut")
"""Words of notes about rows that were not trained on as they are."""
MOST_NOTES = 6


def model_card(trainer: Trainer) -> str:
    """A model card that states what was trained, on what, how, what was measured, and what that does not show."""
    from aligntune import __version__

    config = trainer.config
    base = config.model.name_or_path
    hub = "" if Path(base).exists() else f"base_model: {base}\n"
    peft = "library_name: peft\n" if config.model.peft else "library_name: transformers\n"
    sources = ", ".join(f"`{d.name}`" + (f" ({d.split})" if d.split != "train" else "") for d in config.sources)
    shown = (k for k in sorted(trainer.state.metrics) if held_out(k) and not k.startswith(BY_CLASS))
    measured = {k.removeprefix("eval_").removeprefix("eval/"): trainer.state.metrics[k] for k in shown}
    measured.pop("seconds", None)
    lines = [
        "---",
        f"{hub}{peft}tags:\n- aligntune\n- {config.algorithm.key}",
        "---",
        "",
        f"# {config.logging.run_name or Path(config.output_dir).name}",
        "",
        f"`{base}` trained with {config.algorithm.key} on {sources} (AlignTune {__version__}, backend "
        f"{config.backend}, {trainer.state.step} steps, seed {config.train.seed}).",
        "",
        "`config.resolved.yaml` repeats the run; `manifest.json` names the versions, data hashes and hardware.",
    ]
    metrics = trainer.state.metrics
    last = [f"{name} {metrics[name]:.4g}" for name in ("reward", "rewards/accuracies", "loss") if name in metrics]
    if last:
        lines += ["", f"Last values in training, on the training data: {', '.join(last)}."]
    if measured:
        intervals = {
            k.removeprefix("eval_").removeprefix("eval/"): f"{low:.4g} to {high:.4g}"
            for k, (low, high) in trainer.state.intervals.items()
        }
        lines += ["", "| held-out measure | value | 95% interval |", "|---|---|---|"]
        lines += [f"| {name} | {value:.4g} | {intervals.get(name, '')} |" for name, value in measured.items()]
    lines += ["", "## Limits", "", *(f"- {sentence}" for sentence in limits(trainer, bool(measured)))]
    return "\n".join(lines) + "\n"


def limits(trainer: Trainer, measured: bool) -> list[str]:
    """What the numbers of a run do not show, one sentence each.

    Args:
        trainer: the run.
        measured: whether there is a held-out measure.
    """
    config, found = trainer.config, []
    if not measured:
        found.append("No held-out data were measured, so nothing here says how good the model is.")
    else:
        found.append("The measures are those of the run's own held-out data; other data can give other values.")
    found.append(f"It is one run with seed {config.train.seed}; other seeds give other weights and values.")
    if trainer.rewards is not None:
        names = ", ".join(f"`{component.name}`" for component in trainer.rewards.components)
        found.append(f"It was trained to raise {names}; a reward that is high can be one that was outwitted.")
    if trainer.state.best_step is not None and trainer.state.best_step < trainer.state.step:
        found.append(f"The best evaluation was that of step {trainer.state.best_step} of {trainer.state.step}.")
    path = getattr(trainer._run, "path", None)
    events = read_lines(Path(path) / EVENTS) if isinstance(path, Path) else []
    if events:
        rules = ", ".join(dict.fromkeys(str(event.get("rule")) for event in events))
        count = f"{len(events)} {'event' if len(events) == 1 else 'events'}"
        found.append(f"The health rules told {count} while it trained ({rules}); see `events.jsonl`.")
    notes = [note for note in trainer.notes if any(word in note.lower() for word in LEFT_OUT)]
    found += [note.rstrip(".") + "." for note in notes[:MOST_NOTES]]
    found.append("What it writes was not checked for falsehoods, harm or private data.")
    return found
