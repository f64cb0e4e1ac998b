"""Run an evaluation file: prepare the data, load the model, evaluate each task, write what came out.

>>> result = EvalRunner(load_eval_config("eval.yaml")).run()
>>> str(result.metric("sums"))
'accuracy: 0.614 [0.5706, 0.6556] (n=500)'

Data, rewards and columns are checked before the model is loaded, and nothing is written before the first task runs.
The folder then holds `config.resolved.yaml`, `manifest.json` (the state), `results.json` and `items/<task>.jsonl`.

`run(resume=True)` goes on with an evaluation that was killed, from its journals (`aligntune.eval.journal`). The model
is run by Transformers, or by vLLM for tasks of generated answers (`engine: vllm`).
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.base import to_plain
from aligntune.core.config.sections import ModelConfig
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.comparing import detectable
from aligntune.eval.config import EvalConfig, EvalTask, as_eval_config, check_eval_config
from aligntune.eval.evaluators import BaseEvaluator
from aligntune.eval.heads import labels_of, need_words, stored
from aligntune.eval.journal import Journal
from aligntune.eval.opponents import earlier_answers, identity, is_result
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.result import ITEMS, EvalResult, TaskResult
from aligntune.eval.tasks.base import EvalKind, Opponent, item_ids, need_reference
from aligntune.utils.logging import get_logger, quiet_libraries
from aligntune.utils.model_source import weight_files
from aligntune.utils.run_folder import RunFolder
from aligntune.utils.user_code import load_function

log = get_logger(__name__)

JOURNAL = ".journal"
"""Suffix of a task's journal beside its items."""


@dataclass
class Job:
    """A task with its data, its rewards and its examples."""

    task: EvalTask
    kind: EvalKind
    prepared: Any
    rows: list[dict[str, Any]]
    rewards: Any
    shots: Any
    opponent: Opponent | None = None


class _state:
    """Records in the folder that the evaluation failed or was interrupted; the error goes on."""

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.folder is None or error is None:
            return
        if isinstance(error, KeyboardInterrupt):
            self.folder.mark_interrupted()
        else:
            self.folder.mark_failed(error)


class EvalRunner:
    """Evaluates one model on the tasks of a configuration.

    Args:
        config: what to measure.
        model: a model in memory, in place of loading `config.model`; needs `tokenizer`.
        tokenizer: its tokenizer.
    """

    def __init__(self, config: EvalConfig, model: Any = None, tokenizer: Any = None) -> None:
        if (model is None) != (tokenizer is None):
            raise ConfigurationError(
                "a model in memory and its tokenizer belong together", hint="pass both to EvalRunner, or neither"
            )
        config = as_eval_config(config)
        check_eval_config(config)
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self._others: dict[str, Any] = {}
        self._labels: Any = None
        self._asked: Any = None

    def run(self, *, resume: bool = False) -> EvalResult:
        """Evaluate every task.

        Args:
            resume: go on in an `output_dir` that holds an unfinished evaluation of the same model, data and settings.

        Raises:
            ConfigurationError: a setting is wrong, or `output_dir` holds a finished run or an unfinished one of
                something else.
            ValidationError: data cannot be used.
            RewardError: a reward raised.
        """
        start = time.monotonic()
        self._check_engine()
        if self.config.output_dir is not None:
            _check_journals(RunFolder.check(self.config.output_dir, resume=resume), resume)
        jobs = self.prepare()
        with ExitStack() as ended:
            name, notes = self._load(ended)
            return self._run(jobs, name, notes, resume=resume, start=start)

    def _run(self, jobs: list[Job], name: str, notes: list[str], *, resume: bool, start: float) -> EvalResult:
        folder = RunFolder.claim(self.config.output_dir, resume=resume) if self.config.output_dir is not None else None
        if folder is not None:
            folder.write_config(self.config)
        with _state(folder):
            journals = {job.task.name: self._journal(job, folder, resume) for job in jobs}
            results = {job.task.name: self.measure(job, journals[job.task.name]) for job in jobs}
            results |= self._lm_eval(folder, resume)
            result = EvalResult(name, results, self.config.seed, time.monotonic() - start, notes)
            if folder is not None:
                result.save(folder.path)
                values = {task.name: task.values() for task in result.tasks.values()}
                folder.mark_finished({"model": name, "tasks": values})
                for path in (folder.path / ITEMS).glob(f"*{JOURNAL}"):  # now that nothing has to go on from them
                    path.unlink()
        return result

    def _check_engine(self) -> None:
        """Refuse an engine that cannot run here, or that has no use for a model in memory."""
        if self.config.engine == "vllm":
            if self.model is not None:
                raise ConfigurationError(
                    "engine vllm loads the model itself, and one in memory was given", hint="remove engine"
                )
            from aligntune.eval.vllm_engine import check_vllm

            check_vllm(self.config.model)

    def prepare(self, *, judge_is_asked: bool = False) -> list[Job]:
        """Read and check the data and rewards of every task.

        Args:
            judge_is_asked: by something else than the tasks.

        Raises:
            ConfigurationError: a setting is wrong, or nothing asks the judge.
            ValidationError: data cannot be used.
        """
        jobs = [self._prepare(task) for task in self.config.tasks]
        self._check_judge(jobs, judge_is_asked)
        return jobs

    def _prepare(self, task: EvalTask) -> Job:
        from aligntune.data import prepare_dataset

        kind = EvalRegistry.get(task.kind)()
        labels = self._find_labels(kind)
        source = task.dataset
        if task.max_samples is not None:
            source = dataclasses.replace(source, max_samples=task.max_samples)
        prepared = prepare_dataset(source, kind.schema_for(task), seed=self.config.seed, labels=labels)
        rewards = None
        listed = kind.rewards_for(task, self.config.model)
        if listed:
            from aligntune.rewards import build_rewards

            rewards = build_rewards(listed, composition=task.composition, judge=self.config.judge)
        rows = _transformed(task, [dict(row) for row in prepared.dataset])
        kind.check(rows, rewards)
        kind.check_settings(rows, task)
        return Job(task, kind, prepared, rows, rewards, self._shots(task), self._opponent(task, rows))

    def _find_labels(self, kind: EvalKind) -> Any:
        """The labels of the model's head, for a kind that measures a classifier."""
        if kind.head in (None, "causal_lm"):
            return None
        if self._labels is None:
            tasks = [task for task in self.config.tasks if EvalRegistry.get(task.kind).head == kind.head]
            if self.model is not None:
                given = next((task.labels for task in tasks if task.labels is not None), None)
                self._labels = labels_of(self.model, given)
            else:
                self._labels = stored(self.config.model, kind.head, tasks)
        return self._labels

    def _opponent(self, task: EvalTask, rows: list[dict[str, Any]]) -> Opponent | None:
        """The other side of a win rate; a model is loaded when it is needed."""
        if "opponent" not in EvalRegistry.get(task.kind).options:
            return None
        if task.opponent is None:
            need_reference(rows, task.kind)
            return None
        if is_result(task.opponent):
            return Opponent(task.opponent, earlier_answers(task.opponent, task.name, item_ids(rows)))
        if self.config.engine == "vllm":
            raise ConfigurationError(
                f"task '{task.name}': opponent {task.opponent} is a model, and engine vllm holds one at a time",
                hint="evaluate the opponent first, and name the folder of its results",
            )
        return Opponent(task.opponent)

    def _check_judge(self, jobs: list[Job], judge_is_asked: bool) -> None:
        """Refuse a judge that nothing asks; make sure that one that is asked answers."""
        rewards = [job.rewards for job in jobs if job.rewards is not None]
        for composite in rewards:
            composite.prepare()
        if any(job.kind.asks_judge(job.task) for job in jobs):
            self._judge().check()
            return
        asked = judge_is_asked or any(composite.asks_judge for composite in rewards)
        if self.config.judge is not None and not asked:
            raise ConfigurationError(
                "judge: has no effect, because no task asks a judge",
                hint="give a reward params: {backend: judge}, or remove the section judge",
            )

    def _shots(self, task: EvalTask) -> Any:
        if task.few_shot is None:
            return None
        from aligntune.data import prepare_dataset
        from aligntune.eval.prompts import Shots

        prepared = prepare_dataset(task.few_shot.dataset, Schema.PROMPT_COMPLETION, seed=self.config.seed)
        rows = [dict(row) for row in prepared.dataset]
        return Shots(rows, task.few_shot.n, sampled=task.few_shot.draw == "sampled", seed=self.config.seed)

    def _load(self, ended: ExitStack) -> tuple[str, list[str]]:
        """Make sure that there is a model, where a task needs one; its name and the notes of loading it."""
        heads = {EvalRegistry.get(task.kind).head for task in self.config.tasks} - {None}
        if self.model is not None or not (heads or self.config.lm_eval):
            return self.config.model.name_or_path, []
        classifier = heads - {"causal_lm"}
        if not classifier:
            need_words(self.config.model)
        if self.config.engine == "vllm":
            from aligntune.eval.vllm_engine import load_vllm

            loaded = load_vllm(self.config.model, self.config.vllm, self.config.seed)
            ended.callback(self._let_go, loaded.model)
        else:
            loaded = self._classifier(classifier.pop()) if classifier else self._loader(self.config.model)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        return loaded.path, list(loaded.notes)

    def _let_go(self, engine: Any) -> None:
        """End an engine, so that its GPU is free for the next model."""
        engine.close()
        self.model = self.tokenizer = None

    def _loader(self, config: ModelConfig) -> Any:
        import transformers  # noqa: F401 - loaded, so that its progress bars can be held back

        from aligntune.utils.model_loader import ModelLoader

        with quiet_libraries():
            return ModelLoader(config, training=False, seed=self.config.seed).load()

    def _classifier(self, head: Any) -> Any:
        import transformers  # noqa: F401 - as in `_loader`

        from aligntune.utils.classifier_loader import ClassifierLoader

        loader = ClassifierLoader(
            self.config.model, head=head, labels=self._labels.names, training=False, seed=self.config.seed
        )
        with quiet_libraries():
            loaded = loader.load()
        if loader.fresh:
            raise ConfigurationError(
                f"{loaded.path} has no weights for its classification head: random ones would be measured",
                hint="give the folder of a trained classifier",
            )
        return loaded

    def _other(self, path: str | None) -> Any:
        """Another model, loaded once."""
        if path is None:
            return None
        if path not in self._others:
            config = dataclasses.replace(self.config.model, name_or_path=path, revision=None)
            self._others[path] = self._loader(config)
        return self._others[path]

    def _met(self, opponent: Opponent | None) -> Opponent | None:
        """The opponent with its model, unless its answers are stored."""
        if opponent is None or opponent.answers is not None:
            return opponent
        loaded = self._other(opponent.name)
        return dataclasses.replace(opponent, model=loaded.model, tokenizer=loaded.tokenizer)

    def _judge(self) -> Any:
        """The file's judge, made once: its weights and its open connections stay."""
        from aligntune.rewards.judges import make_judge

        if self._asked is None and self.config.judge is not None:
            self._asked = make_judge(self.config.judge)
        return self._asked

    def measure(self, job: Job, journal: Journal | None = None, *, told: bool = True) -> TaskResult:
        """One prepared task on the model that is in memory.

        Args:
            job: of `prepare`.
            journal: holds the items that are measured already, and takes the others.
            told: whether the log says what is measured and what came out.
        """
        task = job.task
        if told:
            log.info("evaluating %s (%s); %s", task.name, task.kind, detectable(len(job.rows)))
        evaluator = BaseEvaluator(
            self.model,
            self.tokenizer,
            seed=self.config.seed,
            rewards=job.rewards,
            reference=getattr(self._other(task.reference_model), "model", None),
            shots=job.shots,
            judge=self._judge() if job.kind.asks_judge(task) else None,
            opponent=self._met(job.opponent),
        )
        result = evaluator.run(task.kind, job.rows, task, name=task.name, journal=journal)
        settings = {
            **result.settings,
            "engine": self.config.engine,
            "source": job.prepared.source,
            "format": job.prepared.format,
            "content_hash": job.prepared.content_hash,
            "rows": len(job.rows),
        }
        result = dataclasses.replace(result, settings=settings, notes=[*job.prepared.notes, *result.notes])
        for metric in result.metrics.values() if told else ():
            log.info("%s %s", task.name, metric)
        return result

    def _lm_eval(self, folder: RunFolder | None, resume: bool) -> dict[str, TaskResult]:
        """Results of lm-eval's tasks, one after the other; a killed evaluation does not repeat those that are done."""
        config = self.config.lm_eval
        if config is None:
            return {}
        from aligntune.eval.lm_eval import LMEvalRunner
        from aligntune.eval.result import task_from_dict

        journal = None
        if folder is not None:
            subject = {**self._subject(), **to_plain(config)}
            journal = Journal.open(folder.path / ITEMS / f"lm_eval{JOURNAL}", subject, resume=resume)
        found: dict[str, TaskResult] = {}
        for k, name in enumerate(config.tasks):
            if journal is not None and k in journal.done:
                tasks = [task_from_dict(raw, raw["items"]) for raw in journal.done[k]]
            else:
                log.info("lm-eval: %s", name)
                one = dataclasses.replace(config, tasks=[name])
                tasks = list(LMEvalRunner(one, self.model, self.tokenizer, seed=self.config.seed).run().values())
                if journal is not None:
                    journal.append(k, [task.to_dict(items=True) for task in tasks])
            found |= {task.name: task for task in tasks}
        return found

    def _subject(self) -> dict[str, Any]:
        """What a journal must agree on, whatever the task."""
        return {
            "model": self.config.model.name_or_path,
            "revision": self.config.model.revision,
            "weights": weight_files(self.config.model.name_or_path),
            "seed": self.config.seed,
            **({"engine": self.config.engine} if self.config.engine != "transformers" else {}),
        }

    def _journal(self, job: Job, folder: RunFolder | None, resume: bool) -> Journal | None:
        if folder is None:
            return None
        subject = {
            **self._subject(),
            "data": job.prepared.content_hash,
            "others": {key: identity(getattr(job.task, key)) for key in ("opponent", "reference_model")},
            **{key: value for key, value in to_plain(job.task).items() if key not in ("name", "dataset")},
        }
        return Journal.open(folder.path / ITEMS / f"{job.task.name}{JOURNAL}", subject, resume=resume)


def _transformed(task: EvalTask, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the task's function makes of its data.

    Raises:
        ConfigurationError: no such function.
        ValidationError: it raised, or returned something else than a mapping or None; the row is named.
    """
    if task.transform is None:
        return rows
    change = load_function(task.transform, "transform")
    made = []
    for i, row in enumerate(rows):
        try:
            new = change(row)
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise ValidationError(
                f"{task.transform} raised {type(e).__name__} on row {i} of task '{task.name}': {e}",
                hint=f"the row has the columns {', '.join(sorted(row))}",
            ) from e
        if new is not None and not isinstance(new, dict):
            raise ValidationError(
                f"{task.transform} returned {type(new).__name__} for row {i}", hint="return the row as a dict, or None"
            )
        made += [] if new is None else [new]
    return made


def _check_journals(folder: Path, resume: bool) -> None:
    """Refuse to begin again over an unfinished evaluation."""
    begun = [path for path in (folder / ITEMS).glob(f"*{JOURNAL}") if path.read_bytes().count(b"\n") > 1]
    if begun and not resume:
        raise ConfigurationError(
            f"output_dir {folder} holds an evaluation that did not finish",
            hint="go on with it (--resume), or set output_dir to a new folder",
            context={"path": str(folder)},
        )
