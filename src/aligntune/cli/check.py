"""`aligntune check`: what a run would train on, verified before it starts.

    aligntune check run.yaml
    aligntune check run.yaml train.max_steps=20 --rows 5 --strict --json

Exit code 0 where nothing fails, 1 where something does (with --strict also where something is warned of), 2 where the
configuration itself is wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments
from aligntune.errors import ConfigurationError


@click.command(short_help="Check a run before training: data, masks, memory.")
@click.argument("arguments", nargs=-1, metavar="FILE [KEY=VALUE]...")
@click.option(
    "--rows", type=click.IntRange(0), default=2, show_default=True, metavar="N", help="Rows to show as trained."
)
@click.option(
    "--stream-rows",
    type=click.IntRange(1),
    metavar="N",
    help="Rows of a stream to look at, from its beginning.  [default: 10000]",
)
@click.option("--strict", is_flag=True, help="Exit with 1 for a warning too.")
@click.option("--smoke", is_flag=True, help="Train a few real steps on the longest rows, in a folder that is removed.")
@click.option("--keep", is_flag=True, help="Keep the folder of --smoke.")
@shared
def command(
    settings: Settings,
    arguments: tuple[str, ...],
    rows: int,
    stream_rows: int | None,
    strict: bool,
    smoke: bool,
    keep: bool,
) -> Output:
    """Check FILE, changed by KEY=VALUE: configuration, memory, rows as trained, classic mistakes, rewards.

    No weights are loaded and nothing is trained, unless --smoke is given.
    """
    from aligntune.cli.train import build
    from aligntune.preflight import check

    file, overrides = split_arguments(arguments)
    if file is None:
        raise ConfigurationError("no configuration is given", hint="aligntune check FILE [KEY=VALUE]...")
    if keep and not smoke:
        raise ConfigurationError("--keep is for --smoke", hint="add --smoke, or remove --keep")
    config = build(file, overrides, {})
    if stream_rows is not None and not any(source.streaming for source in config.sources):
        raise ConfigurationError(
            "--stream-rows is for streams, and no source is one", hint="remove it, or set streaming: true"
        )
    looked = {} if stream_rows is None else {"stream_rows": stream_rows}
    report = check(config, file=file, overrides=overrides, show=rows, **looked)
    kept = None
    if smoke:
        from aligntune.preflight.smoke_run import smoke_in_process

        found, kept = smoke_in_process(config, keep=keep)
        report.add(found)
    data: dict[str, Any] = {"file": file, "strict": strict, **report.to_dict(), "smoke_folder": kept}
    title = f"{file}: {config.algorithm.key} on {config.backend}"
    text = f"{title}\n\n{as_text(report, settings=settings.verbose)}" + (f"\nkept in {kept}" if kept else "")
    return Output(data, text, exit_code=report.exit_code(strict=strict))


def as_text(report: Any, *, settings: bool = False) -> str:
    """A report for this terminal: its width, its colours, its characters."""
    from aligntune.preflight.show import render

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    symbols = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    width = min(shutil.get_terminal_size((80, 24)).columns, 120)
    return render(report, width=width, color=bool(color), symbols=symbols, special=report.special, settings=settings)
