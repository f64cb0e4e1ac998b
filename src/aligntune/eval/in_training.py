"""The tasks of a training run: read once, and measured again and again with the model that is in memory.

    evaluation:
      every: 50
      tasks: [gsm8k, {name: sums, kind: exact_match, dataset: data/test.jsonl}]

>>> tasks = RunTasks(config); tasks.prepare()
>>> result = tasks.measure(model, tokenizer)
>>> named_values(result)
{'eval/gsm8k/accuracy': 0.31, 'eval/sums/accuracy': 0.52, ...}

They are the tasks of an evaluation file and the same code measures them, so a value here is what `aligntune eval` gives
for the saved model. The tokenizer is the run's, with its chat template. A task that does not say otherwise takes
`evaluation.batch_size`, `evaluation.temperature`, and `evaluation.max_new_tokens` (in policy optimisation at most
`generation.max_completion_length`). It spreads nothing over several processes.
"""

from __future__ import annotations

import time
from typing import Any

from aligntune.core.config.io import parse_section
from aligntune.core.config.root import RunConfig
from aligntune.errors import ConfigurationError
from aligntune.eval.config import EvalConfig, check_eval_config
from aligntune.eval.library import expand
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.result import EvalResult
from aligntune.eval.runner import EvalRunner, Job

PREFIX = "eval/"
"""Before a task's name in `metrics.jsonl`."""


def resolved_tasks(config: RunConfig) -> list[Any]:
    """`evaluation.tasks` with those of the library written out.

    Raises:
        ConfigurationError: with every fault; its keys begin with `tasks`.
    """
    written: list[Any] = expand(config.evaluation.tasks)
    parsed = _eval_config(config, written)
    wrong = [(i, task.kind) for i, task in enumerate(parsed.tasks) if not _fits(task.kind, config.algorithm.head)]
    if wrong:
        faults = [
            (f"tasks.{i}.kind", f"{kind} needs another model than {config.algorithm.key} trains; remove the task")
            for i, kind in wrong
        ]
        raise ConfigurationError(
            "; ".join(f"{key}: {told}" for key, told in faults),
            hint="`aligntune eval list` names the kinds and the models that they need",
            context={"faults": faults},
        )
    return written


def _fits(kind: str, head: str) -> bool:
    """Whether a kind measures models with this head."""
    return EvalRegistry.get(kind).head in (None, head)


def _eval_config(config: RunConfig, tasks: list[Any]) -> EvalConfig:
    """The evaluation file that the run's tasks are, with the run's settings where a task does not say."""
    raw = {
        "model": config.model,
        "tasks": [_with_defaults(task, config) for task in tasks],
        "judge": getattr(config, "judge", None),
        "seed": config.train.seed,
    }
    parsed = parse_section(EvalConfig, raw, hint="docs/evaluation.md lists the keys of a task")
    check_eval_config(parsed)
    return parsed


def _with_defaults(task: Any, config: RunConfig) -> Any:
    if not isinstance(task, dict):
        return task  # the check of the whole says what is wrong with it
    try:
        reads = EvalRegistry.get(str(task.get("kind"))).options
    except ConfigurationError:
        return task  # as above
    e = config.evaluation
    generation = getattr(config, "generation", None)
    most = e.max_new_tokens
    if generation is not None and config.algorithm.uses_rewards:
        most = min(most, generation.max_completion_length)
    known: dict[str, Any] = {"batch_size": e.batch_size}
    if "max_new_tokens" in reads:
        known["max_new_tokens"] = most
    if "temperature" in reads and e.temperature:
        known["temperature"] = e.temperature
    return {**known, **task}


class RunTasks:
    """The tasks of one run.

    Args:
        config: the run's, with `evaluation.tasks`.

    Raises:
        ConfigurationError: a task is wrong, or the run is spread over several processes.
    """

    def __init__(self, config: RunConfig, *, processes: int = 1) -> None:
        if processes > 1:
            raise ConfigurationError(
                f"evaluation.tasks are measured by one process, and this run has {processes}",
                hint="remove evaluation.tasks, and evaluate the checkpoints with `aligntune eval`",
            )
        self.config = config
        self._runner = EvalRunner(_eval_config(config, config.evaluation.tasks))
        self._jobs: list[Job] = []

    def prepare(self) -> list[str]:
        """Read and check the data; one sentence for each thing that was found, with the task's name before it.

        Raises:
            ConfigurationError: a reward or a function is wrong.
            ValidationError: data cannot be used.
        """
        self._jobs = self._runner.prepare(judge_is_asked=self.config.algorithm.uses_rewards)
        return [f"task {job.task.name}: {note}" for job in self._jobs for note in job.prepared.notes]

    def measure(self, model: Any, tokenizer: Any, name: str = "") -> EvalResult:
        """Values and items of every task.

        Args:
            model: the model as it is now; it is left in the mode that it was in, and so is the random state.
            tokenizer: of the run.
            name: of the model in the result; "" takes the starting model's.
        """
        start = time.monotonic()
        self._runner.model, self._runner.tokenizer = model, tokenizer
        found = {job.task.name: self._runner.measure(job, told=False) for job in self._jobs}
        self._runner.model = self._runner.tokenizer = None  # the run may load another one
        name = name or self.config.model.name_or_path
        return EvalResult(name, found, self.config.train.seed, time.monotonic() - start)


def named_values(result: EvalResult) -> dict[str, float]:
    """The values under the names that they have in `metrics.jsonl`; metrics without a value are left out."""
    return {
        f"{PREFIX}{task.name}/{metric}": value
        for task in result.tasks.values()
        for metric, value in task.values().items()
    }


def headline(result: EvalResult) -> str:
    """The name of the first task's first metric, in `metrics.jsonl`."""
    task = next(iter(result.tasks.values()))
    return f"{PREFIX}{task.name}/{task.headline.name}"


def evaluation_rows(result: EvalResult, step: int) -> list[dict[str, Any]]:
    """Rows of `evaluations.jsonl`: one for each task, with the intervals that `metrics.jsonl` has no place for."""
    return [
        {
            "step": step,
            "task": task.name,
            "kind": task.kind,
            "seconds": round(task.seconds, 3),
            "metrics": {name: metric.to_dict() for name, metric in task.metrics.items()},
            "notes": task.notes,
        }
        for task in result.tasks.values()
    ]


def directions(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Metric name to whether larger is better, from rows of `evaluations.jsonl`."""
    return {
        f"{PREFIX}{row['task']}/{name}": bool(metric["higher_is_better"])
        for row in rows
        if row["task"] is not None  # the held-out rows' values have theirs in `core.best`
        for name, metric in row["metrics"].items()
    }
