"""The quickstart: SFT from a base model, GRPO and DPO from SFT, all four on the same held-out problems, and a report.

It is a file of stages (`stages.yaml`) over the recipes of `recipes/quickstart/`. Here the data, the base model and
these files are written, the stages are run as `aligntune run` runs them, and what they found is told. Paths, seed and
`--fast` are in the files that are left under `recipes/` in the output folder, so that each can be opened, changed and
run alone, and a quickstart that was stopped goes on by `aligntune run`.

>>> data, text = run_quickstart("runs/quickstart", fast=True)

The commands of the stages run in this process, where `aligntune run` starts a fresh one for each: their libraries are
then imported once for all ten.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.config import apply_overrides, build_config, dump_config, read_yaml
from aligntune.errors import ConfigurationError
from aligntune.quickstart import BASE_MODEL
from aligntune.quickstart.problems import write_datasets
from aligntune.utils.files import disk_errors
from aligntune.utils.logging import ROOT
from aligntune.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from aligntune.stages.process import Ended

RECIPES = Path(__file__).parents[1] / "recipes" / "quickstart"
STAGES = Path(__file__).with_name("stages.yaml")
FAST: dict[str, list[str]] = {
    "sft": ["train.max_steps=80"],
    "grpo": [
        "train.max_steps=12",
        "train.learning_rate=3e-4",
        "train.warmup_steps=2",
        "train.per_device_batch_size=64",
    ],
    "dpo": ["train.max_steps=12", "train.learning_rate=2e-4", "train.warmup_steps=1"],
}
"""What `--fast` changes: the same stages, too short to meet the full run's bars."""
FAST_SIZES = {"pairs_train": 150, "pairs_test": 150}
STEPS: dict[str, tuple[str, float]] = {
    "data": ("writing the problems", 2),
    "sft": ("SFT: teaching the answer format, in two ways of answering", 45),
    "pairs": ("pairs: a right and a wrong answer of the SFT model to the same problem", 7),
    "held_out_pairs": ("pairs: the same, held out", 6),
    "grpo": ("GRPO: reinforcing right answers", 50),
    "dpo": ("DPO: preferring right answers to wrong ones", 20),
    "scores": ("all four models on the same held-out problems", 16),
    "ranking": ("how DPO ranks the held-out pairs", 3),
    "own_ranking": ("how SFT ranks them", 3),
}
"""What is said of each step, and its rough seconds on an idle core; the estimate is corrected as steps end."""


class Clock:
    """Says what happens now and about how long the rest takes."""

    def __init__(self, steps: dict[str, float], say: Callable[[str], None]) -> None:
        self.left = dict(steps)
        self.say = say
        self._scale = 1.0
        self._running: tuple[str, float] | None = None

    @property
    def step(self) -> str | None:
        """The running step."""
        return self._running[0] if self._running else None

    def begin(self, step: str, sentence: str) -> None:
        """Announce a step, and correct the estimate by how long the last one took."""
        self._end()
        rest = sum(self.left.values()) * self._scale
        self.say(f"{sentence}  (about {max(round(rest / 5) * 5, 5)} s left)")
        self._running = (step, time.monotonic())

    def _end(self) -> None:
        if self._running is None:
            return
        step, start = self._running
        seconds = time.monotonic() - start
        expected = self.left.pop(step, None)
        if expected and expected >= 10:
            self._scale = 0.5 * self._scale + 0.5 * seconds / expected


class Quickstart:
    """The folder, the files in it, and the run of its stages.

    Args:
        out: folder for data, runs, recipes and the report; made if it is missing.
        fast: the short form.
        seed: of data, training and sampling.
        say: prints a line of progress.

    Raises:
        ConfigurationError: `out` holds an earlier quickstart, is a file, or cannot be written.
    """

    def __init__(self, out: str | Path, *, fast: bool, seed: int, say: Callable[[str], None]) -> None:
        self.out = Path(out).expanduser().absolute()
        self.fast, self.seed = fast, seed
        self.file = self.out / "recipes" / STAGES.name
        if self.file.exists():
            raise ConfigurationError(
                f"{self.out} holds a quickstart already",
                hint=f"choose another folder with --out; one that was stopped goes on with: aligntune run {self.file}",
            )
        RunFolder.check(self.out / "sft")  # raises where nothing can be written
        share = 0.3 if fast else 1.0
        self.clock = Clock({step: seconds * share for step, (_, seconds) in STEPS.items()}, say)

    @property
    def data(self) -> Path:
        """The folder of the data files."""
        return self.out / "data"

    def prepare(self) -> None:
        """Write the data, a copy of the base model, the recipes, and the file of stages last."""
        self.clock.begin("data", STEPS["data"][0])
        with disk_errors(self.out):
            write_datasets(self.data, seed=self.seed, sizes=FAST_SIZES if self.fast else None)
            shutil.copytree(BASE_MODEL, self.out / "base", dirs_exist_ok=True)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for name, changes in FAST.items():
                raw = _moved(read_yaml(RECIPES / f"{name}.yaml"), f"{self.out}/")
                config = apply_overrides(raw, [f"train.seed={self.seed}", *(changes if self.fast else [])])
                self.file.with_name(f"{name}.yaml").write_text(dump_config(build_config(config)), encoding="utf-8")
            self.file.write_text(self._stages(), encoding="utf-8")

    def _stages(self) -> str:
        """`stages.yaml` with this run's folder and seed; its comments stay."""
        text = STAGES.read_text(encoding="utf-8")
        for line, value in (
            ("output_dir: runs/quickstart", str(self.out)),
            ("  given: runs/quickstart", str(self.out)),
            ("  seed: 0", self.seed),
        ):
            key = line.partition(":")[0]
            text = text.replace(f"\n{line}", f"\n{key}: {json.dumps(value, ensure_ascii=False)}", 1)
        return text

    def run(self) -> Any:
        """The stages, as `aligntune run` makes them; its result."""
        from aligntune.stages import run_stages

        return run_stages(self.file, runner=self._command)

    def _command(self, arguments: Sequence[str], log: Path) -> Ended:
        """A command of a stage, announced where it is the stage's first."""
        if log.parent.name != self.clock.step:
            self.clock.begin(log.parent.name, STEPS[log.parent.name][0])
        return run_here(arguments, log)


def run_here(arguments: Sequence[str], log: Path) -> Ended:
    """Run `aligntune ARGUMENTS` in this process, as `aligntune.stages.process.run_process` does in a fresh one.

    Args:
        arguments: of the command line.
        log: file that its standard error is appended to.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    from aligntune.cli.main import main
    from aligntune.stages.process import Ended
    from aligntune.utils.device import peak_rss_bytes

    start, printed = time.monotonic(), io.StringIO()
    with redirect_stdout(printed), _errors_to(log):
        code = main([*arguments, "-v"])
    if code == 130:
        raise KeyboardInterrupt
    return Ended(code, printed.getvalue(), time.monotonic() - start, peak_rss_bytes())


@contextmanager
def _errors_to(log: Path) -> Iterator[None]:
    """Append standard error to a file.

    The descriptor is changed and not `sys.stderr`, whose object libraries keep when they are imported.
    """
    logger = logging.getLogger(ROOT)
    before, handlers = logger.level, list(logger.handlers)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        logger.setLevel(before)
        logger.handlers[:] = handlers


def run_quickstart(
    out: str | Path, *, fast: bool = False, seed: int = 0, say: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Run the whole story.

    Args:
        out: a folder that holds no quickstart yet.
        fast: about a minute, with less to show.
        seed: of every stage.
        say: where progress goes; None is standard error.

    Returns:
        The figures as plain values, and the text that the command line prints.
    """
    from aligntune.quickstart.telling import summarize, tell

    begun = time.monotonic()
    _use_one_thread()
    quickstart = Quickstart(out, fast=fast, seed=seed, say=say or _to_stderr)
    quickstart.prepare()
    data = summarize(quickstart, quickstart.run(), begun)
    return data, tell(quickstart, data)


def _moved(value: Any, folder: str) -> Any:
    """A recipe's values with its paths under another folder than `runs/quickstart/`."""
    if isinstance(value, dict):
        return {k: _moved(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, folder) for v in value]
    return value.replace("runs/quickstart/", folder) if isinstance(value, str) else value


def _use_one_thread() -> None:
    """A model this small trains fastest on one thread; two that wait for each other are slower where cores are shared.

    `OMP_NUM_THREADS` decides where it is set.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
