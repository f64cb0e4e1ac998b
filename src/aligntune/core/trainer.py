"""The life of one run, the same for every algorithm and backend: check, load, prepare, train, evaluate, save.

Everything that can be wrong with a run is found before its folder is written: the output folder, the data, the
model, the rewards. What an algorithm adds is its row of `algorithms/`, what a backend adds is its class.

>>> trainer = create_trainer(load_config("run.yaml"))
>>> result = trainer.train()
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from aligntune.core.arguments import library_arguments, trainer_arguments
from aligntune.core.backend import Backend, get_backend
from aligntune.core.best import best_entry
from aligntune.core.callbacks import make_callback, numbers, quiet
from aligntune.core.checks import check_config, check_packages, check_reference, check_values
from aligntune.core.config.io import parse_section
from aligntune.core.config.root import RunConfig
from aligntune.core.config.sections import DatasetConfig
from aligntune.core.durable import durable, keeps_window
from aligntune.core.early_stopping import drop_best
from aligntune.core.evaluation import evaluate_model, sample_answers
from aligntune.core.exhaustion import guarded
from aligntune.core.isolation import no_telemetry
from aligntune.core.live import Progress, progress_of
from aligntune.core.measuring import evaluate_last, finish_evaluation, prepare_tasks
from aligntune.core.pretokenised import taking_tokens
from aligntune.core.recording import note_end, record_rollouts, warn, write_header, write_held
from aligntune.core.refreshing import draw_report
from aligntune.core.resuming import begin, find_start, how_to_go_on
from aligntune.core.room import check_room
from aligntune.core.rows import write_skipped
from aligntune.core.saving import Checkpoint
from aligntune.core.services import Services, held_back
from aligntune.core.state import TrainingState, TrainResult
from aligntune.core.stopping import StopRequest, request_of
from aligntune.core.timing import phased
from aligntune.core.watch import refuse_broken_weights, tell_counts, watch
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.eval.in_training import named_values
from aligntune.registry import import_attribute
from aligntune.utils.allocation import patient_collector, settled_objects, steady_heap
from aligntune.utils.logging import get_logger, quiet_libraries
from aligntune.utils.quantization import kept_adapters

log = get_logger(__name__)


@phased
class Trainer:
    """One run. Nothing heavy happens before a method or `model` is used.

    Args:
        config: a resolved configuration (`load_config`).
        backend: an instance; None makes the one that `config.backend` names.

    Attributes:
        config: the configuration.
        state: where the run stands.
        notes: one sentence for each thing that was detected, decided or dropped.
    """

    kind: str = ""

    def __init__(self, config: RunConfig, *, backend: Backend | None = None) -> None:
        check_config(config, type(self).__name__)
        if self.kind and config.kind != self.kind:
            raise ConfigurationError(
                f"{type(self).__name__} takes a configuration with `{'algo' if self.kind == 'rl' else 'task'}`",
                hint="use create_sft_trainer for tasks and create_rl_trainer for algorithms",
            )
        self.config = config
        self.backend: Backend = backend or get_backend(config.backend)
        self.state = TrainingState()
        self.notes: list[str] = []
        self._loaded: Any = None
        self._rewards: Any = None
        self._train_data: Any = None
        self._tokens: tuple[Any, Any] = (None, None)
        self._eval_data: Any = None
        self._tasks: Any = None
        self._directions: dict[str, bool] = {}
        self._answered: set[Any] | None = None
        self._hf: Any = None
        self._run: Any = None
        self._resume: str | None = None
        self._start = config
        self._began = time.monotonic()
        self.stop = StopRequest()
        self.batch_changes: list[dict[str, Any]] = []
        self.display = Progress("", mode="off")
        self.services: Services | None = None

    def _load(self) -> Any:
        if self._loaded is None:
            self._ready()
            with quiet_libraries():
                self._loaded = self._load_model()
            self._tell(self._loaded.notes)
        return self._loaded

    def _load_model(self) -> Any:
        return self.backend.load_model(self.config)

    @property
    def starting_config(self) -> RunConfig:
        """The configuration that names the starting model, which is the reference of preference data."""
        return self._start

    def _ready(self) -> None:
        """Prepare the process for the backend, and only then import the libraries that it may replace parts of."""
        no_telemetry()
        self.backend.prepare(self.config)
        for library in ("transformers", "datasets"):  # loaded here, so that `quiet_libraries` finds their bars
            importlib.import_module(library)

    @property
    def model(self) -> Any:
        """The model, loaded on first use; the trained one after `train()`."""
        model = self._load().model
        if self._hf is None and self.config.model.quantization is None:
            from aligntune.utils.device import DeviceManager

            model.to(DeviceManager(self.config.model.device).device)
        return model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use."""
        return self._load().tokenizer

    @property
    def rewards(self) -> Any:
        """The run's `CompositeReward`; None for algorithms without rewards."""
        if self._rewards is None and self.config.algorithm.uses_rewards:
            from aligntune.rewards import build_rewards

            config: Any = self.config
            made = build_rewards(config.rewards, composition=config.composition, judge=config.judge)
            made.check_judge(config.judge)
            made.place(self.config.model.device)
            self._rewards = self.config.algorithm.rewards(made)
        return self._rewards

    def _tell(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                log.info(note)

    def _prepare(self, sources: Any, label: str, *, training: bool = False) -> Any:
        """Rows of one or more sources in the algorithm's schema, fitted to the tokenizer."""
        from aligntune.core.rows import fit_rows

        self._ready()
        with quiet_libraries():
            fitted = fit_rows(self, sources, training=training)
        self._tell([f"{label}: {note}" for note in fitted.notes])
        return fitted

    def _train_rows(self) -> Any:
        if self._train_data is None:
            prepared = self._prepare(self.config.sources, "training data", training=True)
            rows, notes = self.config.algorithm.arrange(prepared.dataset, self.config)
            tokens = prepared.tokens
            if tokens is not None:
                tokens, _ = self.config.algorithm.arrange(tokens, self.config)
            self._tell(notes)
            self._tokens = (rows, tokens)
            self._train_data = replace(prepared, dataset=rows, tokens=None)
        return self._train_data

    def _eval_rows(self) -> Any:
        if self._eval_data is None and self.config.evaluation.dataset is not None:
            self._eval_data = self._prepare(self.config.evaluation.dataset, "held-out data")
        return self._eval_data

    def _probe_rewards(self) -> None:
        """Call every reward on an empty answer to the first rows, so that a broken one fails before training."""
        if self.rewards is None:
            return
        rows = self._train_rows().dataset
        self.rewards.check_columns(rows.column_names)
        self.rewards.prepare()
        first = rows.select(range(min(2, len(rows))))
        self.rewards.score_batch([""] * len(first), {name: list(first[name]) for name in first.column_names})

    def train(self, resume: str | None = None) -> TrainResult:
        """Train, evaluate on the held-out rows if there are any, and save.

        Args:
            resume: "latest" or the path of a checkpoint of this run.

        Raises:
            ConfigurationError: the output folder holds a finished run, or cannot be written.
            ValidationError: the data cannot be trained on.
            TrainingError: the run failed.
            KeyboardInterrupt: it was stopped; a checkpoint is written, and `resume_hint` says how to go on.
        """
        from aligntune.utils.run_folder import RunFolder

        resume, self._start, self._began = resume or self._resume, self.config, time.monotonic()
        check_packages(self.config)
        RunFolder.check(self.config.output_dir, resume=resume is not None)
        checkpoint = find_start(self, resume)
        with patient_collector():
            check_room(self)
            self._train_rows()
            self._eval_rows()
            self._tasks = prepare_tasks(self)
            self._probe_rewards()
            self._load()
            self.config.algorithm.check(self)
            self._tell(self.config.algorithm.notes(self.config))
            with quiet_libraries():
                self.backend.trainer_class(self.config.algorithm)  # loads the code that the fingerprint describes
            code = self.backend.fingerprint()
        self._run = RunFolder.claim(self.config.output_dir, resume=resume is not None)
        with self._closing_run():
            write_skipped(self)
            write_header(self, code)
            checkpoint = begin(self, checkpoint)
            with quiet_libraries():
                driver = self.config.algorithm.driver
                return import_attribute(driver)(self, checkpoint) if driver else self._fit(checkpoint)

    @contextmanager
    def _closing_run(self) -> Iterator[None]:
        """Leave a true status in the manifest, whatever ends the block."""
        from aligntune.utils.files import disk_errors

        with ExitStack() as stack:
            stack.callback(self._run.release)
            stack.push(self._note_end)
            with disk_errors(self._run.path):
                yield

    def _note_end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        note_end(self, error)

    def _fit(self, checkpoint: Checkpoint | None) -> TrainResult:
        loss, seconds = self._loop(checkpoint)
        held_out = evaluate_last(self, seconds)
        path = self.save_model()
        result = self._result(loss, seconds, path, held_out)
        write_held(self)
        self._run.update_manifest({"best": result.best, "notes": self.notes})
        self.state.status = "finished"
        self._run.mark_finished(result.to_dict())
        drop_best(self)
        draw_report(self)
        return result

    def _loop(self, checkpoint: Checkpoint | None) -> tuple[float, float]:
        """One library loop; returns the mean loss of its steps, and its seconds.

        Raises:
            TrainingError: the loss or the weights are no finite numbers, or memory ran out.
            KeyboardInterrupt: it was stopped.
        """
        return guarded(self, checkpoint, self._run_loop)

    def _run_loop(self, checkpoint: Checkpoint | None) -> tuple[float, float]:
        stop = request_of(self)
        progress = self.display = progress_of(self)
        started = time.monotonic()
        with stop.listening():
            with patient_collector():
                self._hf = self._build(stop, progress)
            tell_counts(self)
            if self._hf.args.device.type == "cpu":
                steady_heap()
            try:
                with settled_objects():
                    output = self._hf.train(resume_from_checkpoint=checkpoint.path if checkpoint else None)
            finally:
                progress.close()
        if stop:
            raise KeyboardInterrupt
        seconds, loss = time.monotonic() - started, float(output.training_loss)
        if keeps_window(self._hf):
            # Transformers 5.17 divides the sum by all steps and 5.23 by those since the resume; the sum is of all.
            loss = float(self._hf._total_loss_scalar) / max(self.state.step, 1)
        elif checkpoint:
            loss *= self.state.step / max(self.state.step - checkpoint.step, 1)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the training loss is not a finite number ({loss})",
                hint="lower train.learning_rate; metrics.jsonl shows where it began",
            )
        refuse_broken_weights(self._hf.model, self.state.step)
        return loss, seconds

    def _result(self, loss: float, seconds: float, path: Path, held_out: dict[str, float]) -> TrainResult:
        from aligntune.utils.device import peak_rss_bytes

        at, metrics = (self.state.step, seconds, str(path)), {**self.state.metrics, **held_out}
        return TrainResult(loss, *at, peak_rss_bytes(), metrics, best_entry(self), self.state.intervals)

    def _build(self, stop: StopRequest, progress: Progress) -> Any:
        """The library's trainer, with every value explicit."""
        params = self.config.algorithm
        loaded = self._load()
        values = self.arguments()
        args = library_arguments(self.backend.args_class(params), values)
        late = params.late_arguments(self.config)
        for key, value in late.items():
            setattr(args, key, value)
        rows = self._train_rows().dataset
        tokens = self._tokens[1] if rows is self._tokens[0] else None  # other rows may have taken their place
        if tokens is not None and values.get("assistant_only_loss"):
            # The labels of token rows say it already, and TRL takes the option with message lists only.
            values["assistant_only_loss"] = args.assistant_only_loss = False
        kwargs: dict[str, Any] = {
            "model": loaded.model,
            "args": args,
            "train_dataset": rows if tokens is None else tokens,
            "processing_class": loaded.tokenizer,
            "callbacks": [make_callback(self, stop, progress)],
        }
        if params.uses_rewards:
            from aligntune.rewards.adapters import trl_rewards

            split = getattr(params, "splits_rewards", False)
            kwargs["reward_funcs"] = trl_rewards(
                self.rewards,
                recorder=partial(record_rollouts, self),
                split=split,
                tell=partial(warn, self),
                group_size=params.group_size,
            )
        kind = params.trainer_type(self.backend.trainer_class(params))
        if tokens is not None:
            kind = taking_tokens(kind)
        with kept_adapters(loaded.model, self.config.model.quantization is not None), held_back(args):
            own = params.trainer_kwargs(self)
            hf = durable(kind)(**kwargs, **own)
        hf.owner, self.stop = self, stop
        params.attach(hf, self)
        check_values(hf.args, {**values, **late})
        if "ref_model" not in own:  # a reference that the algorithm chose is not the starting model
            check_reference(hf)
        watch(hf, self)
        quiet(hf)
        return hf

    def arguments(self) -> dict[str, Any]:
        """Every value that the library's configuration class gets."""
        from aligntune.utils.device import DeviceManager

        device = DeviceManager(self.config.model.device)
        values = trainer_arguments(
            self.config,
            device=device.device,
            precision=device.precision(self.config.model.precision),
            output_dir=str(Path(self.config.output_dir).expanduser().absolute()),
        )
        return {**values, **self.backend.arguments(self.config)}

    def record(self, step: int, logs: dict[str, Any]) -> None:
        """Take one row of logged values: into the state and into `metrics.jsonl`."""
        values = numbers(logs)
        self.state.metrics.update(values)
        row = {"step": step, "epoch": round(self.state.epoch, 6), **values}
        self._run.append_metrics(row)
        self.display.row(row)
        if self.services is not None:
            self.services.row(step, values)

    def flush(self) -> None:
        """Write what is still in memory of the run folder's files."""
        if self._run is not None:
            write_held(self)
            self._run.flush()

    def evaluate_now(self, step: int) -> dict[str, float]:
        """Evaluate on the run's held-out rows and tasks during training: logged, and the best value remembered."""
        self.display.busy(f"evaluating after step {step}")
        rows = self._eval_rows()
        return finish_evaluation(self, step, evaluate_model(self, rows) if rows is not None else {})

    def _samples(self, prepared: Any, count: int) -> list[dict[str, Any]]:
        return sample_answers(self, prepared, count)

    @property
    def resume_hint(self) -> str:
        """How to go on after a stop."""
        return how_to_go_on(self)

    def evaluate(self, dataset: Any = None) -> dict[str, float]:
        """Measure the model on held-out rows.

        Args:
            dataset: a path, hub id, mapping or `DatasetConfig`; None takes `evaluation.dataset` and `evaluation.tasks`.

        Returns:
            Names as in `metrics.jsonl`: `eval_...` for rows (`core.evaluation`), `eval/<task>/<metric>` for tasks.

        Raises:
            ConfigurationError: no data set was given here or in the configuration.
        """
        if dataset is not None:
            raw = {"name": str(dataset)} if isinstance(dataset, (str, Path)) else dataset
            source = raw if isinstance(raw, DatasetConfig) else parse_section(DatasetConfig, raw, "evaluate()")
            rows, tasks = self._prepare(source, "evaluation data"), None
        else:
            rows, tasks = self._eval_rows(), self._tasks or prepare_tasks(self)
        if rows is None and tasks is None:
            raise ConfigurationError(
                "there is nothing to evaluate on", hint="set evaluation.dataset, or pass one to evaluate()"
            )
        with quiet_libraries():
            values = {} if rows is None else evaluate_model(self, rows)
            return values if tasks is None else values | named_values(tasks.measure(self.model, self.tokenizer))

    def generate(self, prompts: Any, **options: Any) -> list[str]:
        """One answer for each prompt (strings, or message lists), decoded as `evaluation` says.

        Args:
            prompts: a list, or one string.
            options: `max_new_tokens`, `temperature`, `batch_size`, `seed` in place of the configured ones.
        """
        from aligntune.eval.generation import generate_texts

        single = isinstance(prompts, str)
        e = self.config.evaluation
        settings = {
            "max_new_tokens": e.max_new_tokens,
            "temperature": e.temperature,
            "batch_size": e.batch_size,
            "seed": self.config.train.seed,
            **options,
        }
        chat = getattr(self.tokenizer, "chat_template", None)
        asked = [prompts] if single else list(prompts)
        asked = [[{"role": "user", "content": p}] if chat and isinstance(p, str) else p for p in asked]
        return [texts[0] for texts in generate_texts(self.model, self.tokenizer, asked, **settings)]

    def predict(self, texts: Any, **options: Any) -> list[dict[str, Any]]:
        """Labels with probabilities; see `aligntune.core.sft.classification.ClassifierRun.predict`.

        Raises:
            ConfigurationError: this run trains no classifier.
        """
        raise ConfigurationError(
            f"{self.config.algorithm.key} trains no classifier, so there are no labels to predict",
            hint="use generate(prompts)",
        )

    def save_model(self, path: str | Path | None = None) -> Path:
        """Write the model (or adapter), tokenizer and a model card; returns the folder."""
        from aligntune.core.saving import save

        with quiet_libraries():
            return save(self, Path(path or self.config.output_dir).expanduser())

    def load_model(self, path: str | Path) -> None:
        """Take the weights from another folder, in place of `model.name_or_path`.

        `evaluate()` of preference data still measures against the starting model, until `train()` starts from here.
        """
        self.config = replace(self.config, model=replace(self.config.model, name_or_path=str(path)))
        self._loaded, self._hf = None, None

    def save_checkpoint(self) -> str:
        """Write a checkpoint of the present step (model, optimizer, schedule, random states).

        Raises:
            TrainingError: no training has begun.
        """
        if self._hf is None:
            raise TrainingError("there is nothing to save before training", hint="call train() first")
        self._hf._save_checkpoint(self._hf.model, trial=None)
        self.state.checkpoint_path = f"{self._hf.args.output_dir}/checkpoint-{self._hf.state.global_step}"
        return self.state.checkpoint_path

    def load_checkpoint(self, path: str) -> None:
        """Make the next `train()` go on from this checkpoint ("latest" or a path)."""
        self._resume = path
