"""Logging services beside a run: TensorBoard, Weights & Biases, MLflow, Trackio, by Transformers' own integrations.

    logging: {report_to: [tensorboard, wandb]}

Each service gets the rows of `metrics.jsonl`, evaluations too, at the step that stands there. Its calls run in a thread
of its own with a deadline, so a service that raises or hangs never stops the run: it is told once, in the log and in
the manifest's notes, and training goes on. One that fails at its start or does not answer is left out from then on; one
that fails later is asked again at the next row, and the failures are counted.

A resumed run goes on in the service's own run, whose name the manifest keeps (`services`): the id of Weights & Biases
and MLflow, the name of Trackio, the folder of TensorBoard (`tensorboard/` in the run's folder), from which rows after
the checkpoint are taken back. Environment variables such as `WANDB_RUN_ID` or `TENSORBOARD_LOGGING_DIR` come first.

Source: `transformers.integrations`. It sends no completions and no models unless the service's variables ask for it.
"""

from __future__ import annotations

import contextvars
import copy
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.recording import warn
from aligntune.utils.run_folder import read_manifest

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

START_SECONDS, ROW_SECONDS, SAVE_SECONDS = 120.0, 20.0, 600.0
"""Deadlines: for the beginning, for a row, and for what may upload files (checkpoints, the end)."""
KEY = "services"
"""The manifest's entry."""


def survive(trainer: Trainer, what: str, call: Callable[[], Any], tell: bool = True) -> bool:
    """Call something that is not part of the training; a failure is told, and is no end of the run.

    Args:
        trainer: the run.
        what: names it in the sentence that is told, such as "the logging service wandb".
        call: it.
        tell: whether a failure is told.

    Returns:
        whether it succeeded.
    """
    try:
        call()
    except Exception as error:  # a logging service or a drawing must not stop a run, whatever it raises
        if tell:
            first = next(iter(str(error).splitlines()), "")
            warn(trainer, f"{what} failed ({type(error).__name__}: {first}); the run goes on without it")
        return False
    return True


@contextmanager
def held_back(args: Any) -> Iterator[None]:
    """Keep the library from making its own callbacks for `report_to`: ours call them."""
    wanted, args.report_to = args.report_to, []
    try:
        yield
    finally:
        args.report_to = wanted


class Service:
    """One logging service of a run.

    Args:
        name: as in `logging.report_to`.
        trainer: the run, whose folder is claimed.
    """

    def __init__(self, name: str, trainer: Trainer) -> None:
        from aligntune.rewards.deadline import Guard

        self.name, self.trainer = name, trainer
        self.failures = 0
        self.known: dict[str, Any] = dict((read_manifest(trainer._run.path) or {}).get(KEY, {}).get(name, {}))
        self._guard = Guard(contextvars.copy_context())
        self._callback: Any = None
        self._last: tuple[Any, Any, Any, dict[str, Any]] | None = None
        self._gone = False

    def begin(self, args: Any, state: Any, control: Any, given: Mapping[str, Any]) -> None:
        """Open the service's run, or go on in it; nothing happens where it is open."""
        own = copy.copy(args)
        if self.name == "trackio":
            own.run_name = self.known.setdefault("name", f"{own.run_name or 'run'}-{secrets.token_hex(3)}")
        self._last = own, state, control, dict(given)
        if self._callback is not None or self._gone:
            return

        def start() -> Any:
            from transformers.integrations import INTEGRATION_TO_CALLBACK

            made = INTEGRATION_TO_CALLBACK[self.name]()
            if self.name == "tensorboard":
                self._open_folder(made, state.global_step)
            with _environment(self._variables()):
                made.on_train_begin(own, state, control, **given)
            self.known.update(self._identity(made))
            self._callback = made

        self._gone = not self._call(start, START_SECONDS)
        if not self._gone:
            entries = (read_manifest(self.trainer._run.path) or {}).get(KEY, {})
            self.trainer._run.update_manifest({KEY: {**entries, self.name: self.known}})

    def row(self, step: int, logs: Mapping[str, Any]) -> None:
        """Send a row of the log."""
        if self._callback is None or self._gone or self._last is None:
            return
        args, state, control, given = self._last
        at = copy.copy(state)
        at.global_step = step
        renamed = {k.replace("eval/", "eval_", 1) if k.startswith("eval/") else k: v for k, v in logs.items()}
        self._call(lambda: self._callback.on_log(args, at, control, logs=renamed, **given), ROW_SECONDS)

    def saved(self, state: Any, control: Any) -> None:
        """A checkpoint was written."""
        if self._callback is not None and not self._gone and self._last is not None:
            args, _, _, given = self._last
            self._call(lambda: self._callback.on_save(args, state, control, **given), SAVE_SECONDS)

    def end(self, deadline: float = SAVE_SECONDS) -> None:
        """Close the service's run."""
        if self._callback is not None and not self._gone and self._last is not None:
            args, state, control, given = self._last
            self._call(lambda: self._callback.on_train_end(args, state, control, **given), deadline)
        if self.failures > 1:
            self.trainer._tell([f"the logging service {self.name} failed {self.failures} times"])
            self.trainer._run.update_manifest({"notes": self.trainer.notes})
        self._gone = True

    def _call(self, call: Callable[[], Any], deadline: float) -> bool:
        from aligntune.rewards.deadline import DeadlineExceeded

        late = False

        def guarded() -> None:
            nonlocal late
            try:
                self._guard.call(call, deadline)
            except DeadlineExceeded:
                late = True
                raise

        good = survive(self.trainer, f"the logging service {self.name}", guarded, tell=self.failures == 0)
        self.failures += not good
        self._gone = self._gone or late  # its thread is stuck in the call
        return good

    # ---- the service's own run -----------------------------------------------------------------------------------

    def _variables(self) -> dict[str, str]:
        """Environment variables that let the service go on in its own run, where the user has set none."""
        if self.name == "wandb":
            found = {"WANDB_DIR": str(self.trainer._run.path)}
            if "id" in self.known:
                found |= {"WANDB_RUN_ID": self.known["id"], "WANDB_RESUME": "allow"}
            return found
        return {"MLFLOW_RUN_ID": self.known["id"]} if self.name == "mlflow" and "id" in self.known else {}

    def _open_folder(self, callback: Any, step: int) -> None:
        if callback.logging_dir is None:
            callback.logging_dir = str(Path(self.trainer._run.path) / "tensorboard")
        if step:
            callback.tb_writer = callback._SummaryWriter(log_dir=callback.logging_dir, purge_step=step + 1)

    @staticmethod
    def _identity(callback: Any) -> dict[str, Any]:
        """What a resumed run needs to find the service's run again."""
        if (library := getattr(callback, "_wandb", None)) is not None and library.run is not None:
            return {"id": library.run.id, "url": getattr(library.run, "url", None)}
        if (library := getattr(callback, "_ml_flow", None)) is not None and library.active_run() is not None:
            return {"id": library.active_run().info.run_id}
        folder = getattr(callback, "logging_dir", None)
        return {"folder": folder} if folder is not None else {}


class Services:
    """The services of one run, over all its training loops.

    Args:
        trainer: the run, whose folder is claimed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.all = [Service(name, trainer) for name in dict.fromkeys(trainer.config.logging.report_to)]

    def row(self, step: int, logs: Mapping[str, Any]) -> None:
        """Send a row of the log to each."""
        for service in self.all:
            service.row(step, logs)

    def close(self, deadline: float = SAVE_SECONDS) -> None:
        """Close each service's run."""
        for service in self.all:
            service.end(deadline)


def attach_services(hf: Any, trainer: Trainer) -> None:
    """Open the services of a run when the loop of `hf` begins, and tell them of its checkpoints."""
    owner: Any = getattr(trainer, "outer", trainer)  # a round belongs to its run
    if not trainer.config.logging.report_to or not owner._run.leads:
        return
    from transformers import TrainerCallback

    if owner.services is None:
        owner.services = Services(owner)
    services: Services = owner.services

    class ServiceCallback(TrainerCallback):  # type: ignore[misc]
        """Hands the loop's beginning and its checkpoints on; rows come from `Trainer.record`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            given: dict[str, Any] = {name: kwargs[name] for name in ("model", "processing_class") if name in kwargs}
            for service in services.all:
                service.begin(args, state, control, given)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for service in services.all:
                service.saved(state, control)

    hf.add_callback(ServiceCallback())


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that are not set, and take them away again."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
