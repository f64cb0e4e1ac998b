"""The rounds of SPIN (`algorithms.spin`): sample answers from the last round's model, then train against it.

    run(trainer, checkpoint)      # called by the trainer in place of one library loop

A round is a `Trainer` of its own whose library trainer is built as for any other algorithm. It starts from the folder
of the last round, from which TRL reads the reference too; with LoRA the last round's adapter is loaded into a fresh
one, and TRL copies it as the frozen adapter `ref`. What it logs goes into the run's files, with steps that go on over
the rounds and the value `round`.

    round-1/pairs.jsonl  round.json  checkpoint-N/  model.safetensors  trainer_state.json  checkpoint.json (the seal)

A run goes on from the newest checkpoint inside a round, or from the end of a round. Source: arXiv:2401.01335,
algorithm 1. It samples on every process alike, and shards nothing.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aligntune.core.early_stopping import drop_best
from aligntune.core.measuring import evaluate_last
from aligntune.core.refreshing import draw_report
from aligntune.core.rl.adapters import take_adapter
from aligntune.core.saving import Checkpoint, save
from aligntune.core.state import TrainResult
from aligntune.core.trainer import Trainer
from aligntune.errors import TrainingError, ValidationError
from aligntune.utils.checkpoints import seal

PAIRS = "pairs.jsonl"
ROUND = "round.json"
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Plan:
    """One round before it runs.

    Attributes:
        number: from 1.
        folder: where it is kept.
        base: folder of the model that it starts from; None for the run's own starting model.
        seed: of its sampling.
        stored: whether its samples go into the run's rollouts.
    """

    number: int
    folder: Path
    base: Path | None
    seed: int
    stored: bool


def plan(config: Any) -> list[Plan]:
    """The rounds of a run, in order."""
    out = Path(config.output_dir).expanduser().absolute()
    folders = [out / f"round-{k}" for k in range(1, config.algorithm.rounds + 1)]
    return [
        Plan(k, folder, folders[k - 2] if k > 1 else None, config.train.seed + k, config.logging.rollouts)
        for k, folder in enumerate(folders, start=1)
    ]


def sampling(config: Any, seed: int) -> dict[str, Any]:
    """How a round's answers are sampled, as arguments of `generate_answers`."""
    from aligntune.eval.generation import sampling_options

    return {
        **sampling_options(config.generation),
        "max_new_tokens": config.generation.max_completion_length,
        "batch_size": config.train.per_device_batch_size,
        "seed": seed,
    }


def run(trainer: Trainer, checkpoint: Checkpoint | None) -> TrainResult:
    """Train all rounds, or those that a resumed run has left.

    Args:
        trainer: the run, with its data prepared and its folder claimed.
        checkpoint: of a round's end (`round-k`) or inside a round (`round-k/checkpoint-N`).

    Raises:
        ValidationError: the model samples the data's own answer for every row.
        TrainingError: as in any run; or the checkpoint is none of these rounds.
    """
    first, inside = _where(trainer, checkpoint)
    losses, seconds, last = _done(trainer, first), 0.0, None
    step = checkpoint.step - (inside.step if inside else 0) if checkpoint else 0
    for part in plan(trainer.config)[first - 1 :]:
        loaded, trainer._loaded, trainer._hf = trainer._loaded if part.base is None else None, None, None
        last = None  # the last round's model and optimizer
        gc.collect()
        last = Round(trainer, part, step, loaded)
        loss, took = last.go(inside)
        losses.append((loss, last.state.step))
        seconds, step, inside = seconds + took, step + last.state.step, None
        trainer._loaded, trainer._hf = last._loaded, last._hf
    if last is None:
        raise TrainingError("every round is done already", hint="the model of the last round is in its folder")
    steps = sum(n for _, n in losses)
    mean = sum(loss * n for loss, n in losses) / max(steps, 1)
    result = trainer._result(mean, seconds, trainer.save_model(), last.held_out)
    trainer.state.status = "finished"
    trainer._run.mark_finished(result.to_dict())
    drop_best(last)
    draw_report(trainer)
    return result


def _done(trainer: Trainer, first: int) -> list[tuple[float, int]]:
    """Mean loss and steps of the rounds that a resumed run has behind it."""
    found = []
    for part in plan(trainer.config)[: first - 1]:
        stored = json.loads((part.folder / STATE).read_text(encoding="utf-8"))
        found.append((float(stored["loss"]), int(stored["global_step"]) - first_step(part.folder)))
    return found


def _where(trainer: Trainer, checkpoint: Checkpoint | None) -> tuple[int, Checkpoint | None]:
    """The round to begin with, and the checkpoint inside it (its step counts within the round)."""
    if checkpoint is None:
        return 1, None
    path = Path(checkpoint.path)
    for part in plan(trainer.config):
        if path == part.folder:
            return part.number + 1, None
        if path.parent == part.folder:
            return part.number, Checkpoint(str(path), checkpoint.step - first_step(part.folder))
    raise TrainingError(
        f"{checkpoint.path} is no checkpoint of these rounds",
        hint="give --resume without a path, or a folder round-N or round-N/checkpoint-M of this run",
    )


def first_step(folder: Path) -> int:
    """Optimizer steps of the rounds before the one in `folder`."""
    return int(json.loads((folder / ROUND).read_text(encoding="utf-8"))["first_step"])


class Round(Trainer):
    """One round: a run within the run.

    Args:
        outer: the run.
        part: the round.
        first_step: optimizer steps of the rounds before.
        loaded: the starting model, where it is loaded already.
    """

    kind = "rl"

    def __init__(self, outer: Trainer, part: Plan, first_step: int, loaded: Any) -> None:
        model = outer.config.model
        if part.base is not None and model.peft is None:
            model = replace(model, name_or_path=str(part.base), revision=None)
        evaluation = outer.config.evaluation
        if first_step:  # the end of the round before
            evaluation = replace(evaluation, at_start=False)
        changes: dict[str, Any] = {"model": model, "evaluation": evaluation, "output_dir": str(part.folder)}
        super().__init__(replace(outer.config, **changes), backend=outer.backend)
        self.outer, self.part, self.first_step = outer, part, first_step
        self._began = outer._began
        self.held_out: dict[str, float] = {}
        self._rows = outer._train_data
        self._eval_data, self._loaded, self._run = outer._eval_data, loaded, _Shifted(outer, first_step)
        self._tasks, self._answered = outer._tasks, set()

    def health_rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of this round: each begins at a loss of log 2 again."""
        return [row for row in rows if row.get("round") == self.part.number]

    def _load(self) -> Any:
        fresh, loaded = self._loaded is None, super()._load()
        if fresh and self.config.model.peft is not None and self.part.base is not None:
            take_adapter(loaded.model, self.part.base)
        return loaded

    def _build(self, stop: Any, progress: Any) -> Any:
        self.outer.stop, self.outer.display = stop, progress
        return super()._build(stop, progress)

    def go(self, inside: Checkpoint | None) -> tuple[float, float]:
        """Sample, train, evaluate and save; the mean loss of the steps made, and their seconds."""
        import datasets

        self.part.folder.mkdir(parents=True, exist_ok=True)
        pairs = self._pairs(new=inside is None)
        self._train_data = replace(self._rows, dataset=datasets.Dataset.from_list(pairs))
        loss, seconds = self._loop(inside)
        self.held_out = evaluate_last(self, seconds)
        self.outer.state.intervals = self.state.intervals
        if self.part.number < self.config.algorithm.rounds:  # type: ignore[attr-defined]
            save(self, self.part.folder)
            step = self.first_step + self.state.step
            self._write(STATE, {"global_step": step, "round": self.part.number, "loss": loss})
            seal(self.part.folder, step)
            drop_best(self)
            self.outer.state.checkpoint_path = str(self.part.folder)
        self.outer.state.step = self.first_step + self.state.step
        return loss, seconds

    def _pairs(self, *, new: bool) -> list[dict[str, Any]]:
        """The round's pairs: those of its file, or newly sampled ones, which are counted and recorded."""
        from aligntune.utils.files import read_lines, write_atomic

        file = self.part.folder / PAIRS
        if (self.part.folder / ROUND).exists():
            rows = read_lines(file)
            counts = json.loads((self.part.folder / ROUND).read_text(encoding="utf-8"))
        else:
            rows, counts = self._sample()
            text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
            write_atomic(file, text.encode())
            counts = {"first_step": self.first_step, **counts}
            self._write(ROUND, counts)
        if new:
            self.record(1, {f"pairs/{k}": v for k, v in counts.items() if k != "first_step"})
            if self.part.stored:
                self._run.append_rollouts(
                    [
                        {
                            "step": 1,
                            "round": self.part.number,
                            "prompt": _text(r["prompt"]),
                            "completion": _text(r["rejected"]),
                        }
                        for r in rows
                    ]
                )
        return rows

    def _sample(self) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Pairs of the data's answer and one of the model, and their counts.

        Raises:
            ValidationError: every sampled answer is the data's own.
        """
        from aligntune.eval.generation import generate_answers

        rows = list(self._rows.dataset)
        prompts = [row["prompt"] for row in rows]
        answers = generate_answers(self.model, self.tokenizer, prompts, **sampling(self.config, self.part.seed))
        pairs = []
        for row, [answer] in zip(rows, answers, strict=True):
            chosen = row["completion"]
            if _text(chosen) == answer.text:
                continue
            told = isinstance(chosen, list)
            rejected = [{"role": "assistant", "content": answer.text}] if told else answer.text
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
        equal = len(rows) - len(pairs)
        if not pairs:
            raise ValidationError(
                f"in round {self.part.number} the model gives the data's own answer to all {len(rows)} prompts, so "
                "there is nothing to learn",
                hint="the model of the last round is the result; set algo.rounds to a smaller number, or raise "
                "generation.temperature",
            )
        if equal:
            self.outer._tell(
                [f"round {self.part.number}: left out {equal} of {len(rows)} rows, as the sampled answer is the data's"]
            )
        cut = sum(not a.finished for [a] in answers)
        return pairs, {"kept": len(pairs), "equal": equal, "unfinished": cut}

    def record(self, step: int, logs: dict[str, Any]) -> None:
        """Into the run's files, with the step over all rounds and the round."""
        from aligntune.core.callbacks import numbers

        self.state.metrics.update(numbers(logs))
        self.outer.state.step, self.outer.state.epoch = self.first_step + step, self.state.epoch
        self.outer.state.status = self.state.status
        self.outer.record(self.first_step + step, {**logs, "round": self.part.number})

    def flush(self) -> None:
        """Told after each checkpoint."""
        self.outer.state.checkpoint_path = self.state.checkpoint_path
        self.outer.flush()

    def _write(self, name: str, values: dict[str, Any]) -> None:
        from aligntune.utils.files import write_json

        write_json(self.part.folder / name, values)


class _Shifted:
    """The run's folder as a round sees it: the steps of samples and rollouts count over all rounds, and the manifest's
    notes are those of the whole run."""

    def __init__(self, outer: Trainer, first_step: int) -> None:
        self._outer, self._run, self._first, self.path = outer, outer._run, first_step, outer._run.path

    def update_manifest(self, entries: dict[str, Any]) -> None:
        self._outer._tell(entries.get("notes", []))
        self._run.update_manifest({**entries, "notes": self._outer.notes})

    @property
    def leads(self) -> bool:
        return bool(self._run.leads)

    @property
    def observer(self) -> Any:
        return self._run.observer

    @observer.setter
    def observer(self, look: Any) -> None:
        self._run.observer = look

    def line_counts(self) -> dict[str, int]:
        return dict(self._run.line_counts())

    def append_samples(self, rows: list[dict[str, Any]]) -> None:
        self._run.append_samples([{**row, "step": row["step"] + self._first} for row in rows])

    def append_evaluations(self, rows: list[dict[str, Any]]) -> None:
        self._run.append_evaluations([{**row, "step": row["step"] + self._first} for row in rows])

    def append_rollouts(self, rows: list[dict[str, Any]]) -> None:
        self._run.append_rollouts([{**row, "step": row["step"] + self._first} for row in rows])


def _text(value: Any) -> str:
    """The text of a prompt or an answer: itself, or the content of its last message."""
    return value if isinstance(value, str) else str(value[-1].get("content") or "")
