"""Tasks of lm-evaluation-harness on our model in memory, with our intervals, items and paired comparisons.

    lm_eval: {tasks: [arc_easy, hellaswag], num_fewshot: 0}            # beside `tasks`, in an evaluation file
    LMEvalRunner(LMEvalConfig(tasks=["arc_easy"]), model, tokenizer).run()      # task name to TaskResult

The requests, the tokenization and the scores are the harness's own (`lm_eval.simple_evaluate`, Gao et al. 2024,
doi:10.5281/zenodo.12608602); a metric whose value is the mean of its documents' scores gets our interval over them and
can be compared item by item, any other keeps the harness's value without an interval. Its data come from the hub, or
from a folder of task files (`include_path`). Extra `lm-eval`.

It does not run tasks that execute model-written programs, unless `unsafe_code` says so: the harness runs them in this
process, without the sandbox that the kind `code` has.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import Field, NonNegativeInt, PositiveInt

from aligntune import errors
from aligntune.core.config.base import section, to_plain
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.metrics.base import MetricValue
from aligntune.eval.result import TaskResult
from aligntune.eval.stats import proportion_or_mean
from aligntune.registry import nearest


@section
class LMEvalConfig:
    """Tasks of lm-evaluation-harness, and how it asks."""

    tasks: Annotated[list[str], MinLen(1)]
    """Names of its tasks or groups (`lm_eval ls tasks`), or of those in `include_path`."""
    include_path: str | None = None
    """Folder with task files of one's own; its `!function` entries run that folder's Python."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question; None takes each task's own number."""
    limit: PositiveInt | None = None
    """The first so many documents of each task; None takes all."""
    batch_size: PositiveInt = 8
    """Sequences per forward pass."""
    max_length: PositiveInt | None = None
    """Tokens after which a text loses its beginning; None takes the model's context."""
    chat_template: bool | None = None
    """Whether the chat template writes the requests; None: if the model has one (the harness: never unless asked)."""
    system_prompt: str | None = None
    """System message before each request."""
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Generation settings in place of a task's own."""
    unsafe_code: bool = False
    """Run tasks that execute model-written programs without a sandbox."""


class LMEvalRunner:
    """Runs tasks of the harness.

    Args:
        config: which tasks, and how.
        model: a causal language model in memory.
        tokenizer: its tokenizer.
        seed: of examples and sampling.
    """

    def __init__(self, config: LMEvalConfig, model: Any, tokenizer: Any, *, seed: int = 42) -> None:
        self.config, self.model, self.tokenizer, self.seed = config, model, tokenizer, seed

    @property
    def chat(self) -> bool:
        """Whether the chat template writes the requests.

        Raises:
            ConfigurationError: it is asked for, and the model has none.
        """
        has = bool(self.tokenizer.chat_template)
        if self.config.chat_template and not has:
            raise ConfigurationError(
                "lm_eval.chat_template is true, and the model's tokenizer has no chat template",
                hint="remove chat_template, or evaluate a chat model",
            )
        return has if self.config.chat_template is None else self.config.chat_template

    def run(self) -> dict[str, TaskResult]:
        """Task name to result; a group gives its tasks.

        Raises:
            EnvironmentError: the harness is not installed, or a task's data cannot be had.
            ConfigurationError: an unknown task (the nearest is named), or one that runs model-written programs.
        """
        harness = _harness()
        start = time.monotonic()
        known = self._known(harness)
        from aligntune.eval.generation import evaluating

        with evaluating(self.model), _kept_pad_token(self.tokenizer):
            model = harness.HFLM(
                pretrained=self.model,
                tokenizer=self.tokenizer,
                batch_size=self.config.batch_size,
                max_length=self.config.max_length,
                device=str(next(self.model.parameters()).device),
            )
            raw = self._evaluate(harness, model, known)
        seconds = time.monotonic() - start
        return {name: self._result(name, raw, seconds / len(raw["samples"])) for name in raw["samples"]}

    def _known(self, harness: Any) -> Any:
        """The harness's index of tasks; its own thousands are read only where `include_path` lacks a name."""
        own = self.config.include_path
        if own is not None:
            known = harness.TaskManager(include_path=own, include_defaults=False)
            if set(self.config.tasks) <= set(known.all_tasks):
                return known
        known = harness.TaskManager(include_path=own)
        for name in self.config.tasks:
            if name not in known.all_tasks:
                raise ConfigurationError(f"lm-eval has no task '{name}'", hint=nearest(name, known.all_tasks))
        return known

    def _evaluate(self, harness: Any, model: Any, known: Any) -> Any:
        c = self.config
        try:
            return harness.simple_evaluate(
                model=model,
                tasks=list(c.tasks),
                task_manager=known,
                num_fewshot=c.num_fewshot,
                limit=c.limit,
                apply_chat_template=self.chat,
                fewshot_as_multiturn=self.chat,
                system_instruction=c.system_prompt,
                gen_kwargs=c.gen_kwargs or None,
                confirm_run_unsafe_code=c.unsafe_code,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
                fewshot_random_seed=self.seed,
            )
        except ValueError as e:
            if "unsafe" not in str(e).lower():
                raise
            raise ConfigurationError(
                f"a task of {', '.join(c.tasks)} executes model-written programs, and the harness has no sandbox",
                hint="use the kind `code` (tasks: [human_eval, mbpp]), or accept it: lm_eval.unsafe_code: true",
            ) from e
        except (ConnectionError, FileNotFoundError) as e:
            raise errors.EnvironmentError(
                f"the data of {', '.join(c.tasks)} cannot be had: {e}",
                hint="go online once, or write a task file for local data: lm_eval.include_path",
            ) from e

    def _result(self, name: str, raw: Mapping[str, Any], seconds: float) -> TaskResult:
        samples = raw["samples"][name]
        items, scores = _items(samples)
        values = {k: v for k, v in raw["results"][name].items() if isinstance(v, (int, float)) and "," in k}
        metrics: dict[str, MetricValue] = {}
        for key, value in values.items():
            metric, _, sieve = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            label = metric if sieve == "none" else f"{metric},{sieve}"
            higher = raw["higher_is_better"].get(name, {}).get(metric, True)
            metrics[label] = _value(label, float(value), scores.get(label, {}), bool(higher))
            for item in items:
                score = scores.get(label, {}).get(item["id"])
                if metrics[label].low is not None and score is not None:
                    item.setdefault("scores", {})[label] = score
        if not metrics:
            raise ValidationError(f"lm-eval gave no value for '{name}'", hint="see its own output with --debug")
        told = {k: v for k, v in to_plain(self.config).items() if k not in ("tasks", "include_path")}
        settings = {
            **told,
            "chat_template": self.chat,
            "num_fewshot": raw["n-shot"].get(name),
            "version": raw["versions"].get(name),
            "lm_eval": raw["lm_eval_version"],
            "documents": raw["n-samples"].get(name, {}).get("effective"),
            "seed": self.seed,
        }
        return TaskResult(f"lm_eval:{name}", "lm_eval", metrics, items, settings, [], seconds)


def _value(name: str, value: float, scores: Mapping[str, float], higher: bool) -> MetricValue:
    """The harness's value; with our interval where it is the mean of the documents' scores."""
    n = len(scores)
    mean = math.fsum(scores.values()) / n if n else math.nan
    if not n or not math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
        return MetricValue(name, value, None, None, n, method="lm-eval", higher_is_better=higher)
    interval = proportion_or_mean(list(scores.values()))
    return MetricValue(name, value, interval.low, interval.high, n, method=interval.method, higher_is_better=higher)


def _items(samples: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """One item per document, and metric label to document id to score."""
    items: dict[int, dict[str, Any]] = {}
    scores: dict[str, dict[str, float]] = {}
    seen: Counter[str] = Counter()
    for sample in samples:
        number = sample["doc_id"]
        if number not in items:
            digest = str(sample["doc_hash"])[:16]
            seen[digest] += 1
            items[number] = {
                "id": digest if seen[digest] == 1 else f"{digest}-{seen[digest]}",
                "prompt": _prompt(sample["arguments"]),
                "reference": sample["target"],
                "output": sample["filtered_resps"],
            }
        for metric in sample["metrics"]:
            sieve = sample.get("filter", "none")
            label = metric if sieve == "none" else f"{metric},{sieve}"
            if isinstance(sample[metric], (int, float, bool)):
                scores.setdefault(label, {})[items[number]["id"]] = float(sample[metric])
    return list(items.values()), scores


def _prompt(arguments: Any) -> Any:
    """The text of the first request, whether the harness gives a list or a mapping of them."""
    first = next(iter(arguments.values())) if isinstance(arguments, Mapping) else arguments[0]
    return next(iter(first.values())) if isinstance(first, Mapping) else first[0]


@contextlib.contextmanager
def _kept_pad_token(tokenizer: Any) -> Iterator[None]:
    """The harness gives a tokenizer without a padding token one; afterwards it has what it had."""
    pad, side = tokenizer.pad_token, tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.pad_token, tokenizer.padding_side = pad, side


def _harness() -> Any:
    """The parts of the harness that are used.

    Raises:
        EnvironmentError: it is not installed.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise errors.EnvironmentError(
            f"tasks of lm-eval need the package lm_eval, which cannot be imported ({e})",
            hint="run: pip install 'aligntune[lm-eval]'",
        ) from e

    return SimpleNamespace(simple_evaluate=lm_eval.simple_evaluate, HFLM=HFLM, TaskManager=TaskManager)
