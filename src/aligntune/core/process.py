"""`isolation: process`: a run in a fresh interpreter, with its methods called from here.

The worker gets a clean copy of the environment and one JSON line for each call, and answers with one; its standard
output is kept for that, everything it prints goes to standard error. So one notebook can run both backends.

>>> trainer = ProcessTrainer(config)
>>> trainer.train()["final_loss"]

Objects do not cross: `.model` and `.tokenizer` raise, and name the folder to load from.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from aligntune import errors
from aligntune.core.config.base import to_plain
from aligntune.core.config.io import build_config, effective
from aligntune.core.config.root import RunConfig
from aligntune.core.isolation import clean_environment
from aligntune.core.state import TrainingState, TrainResult
from aligntune.utils.parent import end_with


class ProcessTrainer:
    """Stands for a trainer that lives in a worker process. `close()` or the end of this process ends it.

    Args:
        config: a resolved configuration; `python` is the interpreter of the worker.
        log: file that gets what the worker prints; None leaves it on this process's standard error.
    """

    def __init__(self, config: RunConfig, *, log: Path | None = None) -> None:
        self.config = config
        self._log = log
        self.state = TrainingState()
        self.notes: list[str] = []
        self.resume_hint = ""
        self._worker: subprocess.Popen[str] | None = None
        self._closed = False

    def train(self, resume: str | None = None) -> TrainResult:
        """See `Trainer.train`."""
        return TrainResult(**self._call("train", resume=resume))

    def evaluate(self, dataset: Any = None) -> dict[str, float]:
        """See `Trainer.evaluate`; the data set is a path, a hub id or a mapping."""
        plain = str(dataset) if isinstance(dataset, Path) else to_plain(dataset)
        return dict(self._call("evaluate", dataset=plain))

    def generate(self, prompts: Any, **options: Any) -> list[str]:
        """See `Trainer.generate`."""
        return list(self._call("generate", prompts=prompts, **options))

    def predict(self, texts: Any, **options: Any) -> list[dict[str, Any]]:
        """See `Trainer.predict`."""
        return list(self._call("predict", texts=texts, **options))

    def save_model(self, path: str | Path | None = None) -> Path:
        """See `Trainer.save_model`."""
        return Path(self._call("save_model", path=str(path) if path else None))

    def save_merged(self, path: str | Path) -> Path:
        """See `Merging.save_merged`."""
        return Path(self._call("save_merged", path=str(path)))

    def load_model(self, path: str | Path) -> None:
        """See `Trainer.load_model`."""
        self._call("load_model", path=str(path))

    def save_checkpoint(self) -> str:
        """See `Trainer.save_checkpoint`."""
        return str(self._call("save_checkpoint"))

    def load_checkpoint(self, path: str) -> None:
        """See `Trainer.load_checkpoint`."""
        self._call("load_checkpoint", path=path)

    @property
    def model(self) -> NoReturn:
        """Raises: the model lives in the worker."""
        raise errors.ConfigurationError(
            "the model lives in another process (`isolation: process`)",
            hint=f"call save_model(), and load the weights from {self.config.output_dir}",
        )

    tokenizer = model

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None and self._worker.poll() is None:
            assert self._worker.stdin is not None  # opened as a pipe in _start
            self._worker.stdin.close()
            try:
                self._worker.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._worker.kill()
        self._worker, self._closed = None, True

    def kill(self) -> None:
        """End the worker at once, whatever it is doing; a call that waits for it in another thread raises."""
        self._closed = True
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()

    def __enter__(self) -> ProcessTrainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        # A second worker would hold the starting model again, not the one that the first has trained.
        if self._worker is not None and self._worker.poll() is not None:
            raise _ended(self._worker.returncode, "an earlier call")
        if self._closed:
            raise errors.ConfigurationError(
                "this trainer was closed", hint="make a new one with create_trainer(config)"
            )
        if self._worker is None:
            sent = {k: v for k, v in effective(self.config).items() if k != "python"}
            first = _line({"config": {**sent, "isolation": "auto"}}, "the configuration")
            with nullcontext() if self._log is None else open(self._log, "ab") as printed:
                self._worker = subprocess.Popen(
                    [self._python(), "-m", "aligntune.core.process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=printed,
                    text=True,
                    env=clean_environment(),
                    start_new_session=True,  # Ctrl-C reaches the worker through `_answer` only, once
                )
            self._send(first)
        return self._worker

    def _python(self) -> str:
        """The interpreter of the worker.

        Raises:
            ConfigurationError: `python` names no program.
        """
        if self.config.python is None:
            return sys.executable
        # Not resolved: a virtual environment is found by the path of the link that starts it.
        found = shutil.which(os.path.expanduser(self.config.python))
        if found is None:
            raise errors.ConfigurationError(
                f"python: {self.config.python} is no program that can be run",
                hint="give the path of an interpreter, such as envs/unsloth/bin/python",
            )
        return os.path.abspath(found)

    def _send(self, line: str) -> None:
        assert self._worker is not None  # made in _start
        assert self._worker.stdin is not None  # opened as a pipe there
        self._worker.stdin.write(line)
        self._worker.stdin.flush()

    def _call(self, method: str, **arguments: Any) -> Any:
        asked = _line({"method": method, "arguments": arguments}, f"an argument of {method}()")
        try:
            worker = self._start()
            self._send(asked)
            line = self._answer(worker)
        except BrokenPipeError:  # it ended before it had read all, perhaps before it had read the configuration
            line = ""
        if not line:
            assert self._worker is not None  # made in _start
            raise _ended(self._worker.wait(), f"{method}()", self.config.python)
        reply = json.loads(line)
        self.state = TrainingState(**reply["state"])
        self.notes, self.resume_hint = reply["notes"], reply["resume_hint"]
        if "error" not in reply:
            return reply["result"]
        error = reply["error"]
        if error["type"] == "KeyboardInterrupt":
            raise KeyboardInterrupt
        kind = getattr(errors, error["type"], errors.TrainingError)
        raise kind(error["message"], hint=error["hint"])

    @staticmethod
    def _answer(worker: subprocess.Popen[str]) -> str:
        """The worker's line. Ctrl-C asks it to stop and waits for what it says; a second one kills it."""
        assert worker.stdout is not None  # opened as a pipe in _start
        try:
            return worker.stdout.readline()
        except KeyboardInterrupt:
            worker.send_signal(signal.SIGINT)
        try:
            return worker.stdout.readline()
        except KeyboardInterrupt:
            worker.kill()
            raise


def _line(message: dict[str, Any], what: str) -> str:
    """A message as the line that the worker reads.

    Raises:
        ValidationError: it holds an object.
    """
    try:
        return json.dumps(message) + "\n"
    except (TypeError, ValueError) as error:  # no plain value, or one that holds itself
        raise errors.ValidationError(
            f"{what} cannot be sent to the worker process (`isolation: process`): {errors.first_line(error)}",
            hint="give text, numbers, lists and mappings of them; data as a path, a hub id or a mapping",
        ) from error


def _ended(code: int, when: str, python: str | None = None) -> errors.TrainingError:
    if python is not None and code == 1:
        return errors.TrainingError(
            f"the worker process of {python} ended with code 1 during {when}",
            hint=f"its last words are above; `{python} -m pip install aligntune` if the package is missing there",
        )
    return errors.TrainingError(
        f"the worker process ended with code {code} during {when}, and its model with it",
        hint="its last words are above, on standard error; code -9 often means that memory ran out",
    )


def _serve() -> None:
    """The worker: build the trainer, then answer calls until standard input ends."""
    end_with(os.getppid())  # nobody could take its answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    trainer: Any = None
    raw = json.loads(sys.stdin.readline())["config"]
    for line in sys.stdin:
        call = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if trainer is None:
                from aligntune.core.backend_factory import create_trainer

                # Here, because another environment may not know a key, a reward or a version that the parent knows.
                trainer = create_trainer(build_config(raw))
            result = getattr(trainer, call["method"])(**call["arguments"])
            reply["result"] = result.to_dict() if isinstance(result, TrainResult) else _plain(result)
        except KeyboardInterrupt:
            reply["error"] = {"type": "KeyboardInterrupt", "message": "interrupted", "hint": ""}
        except errors.AlignTuneError as e:
            reply["error"] = {"type": type(e).__name__, "message": e.message, "hint": e.hint}
        reply["state"] = vars(trainer.state) if trainer else vars(TrainingState())
        reply["notes"] = trainer.notes if trainer else []
        reply["resume_hint"] = trainer.resume_hint if trainer else ""
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    _serve()
