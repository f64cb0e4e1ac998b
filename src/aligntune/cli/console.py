"""What all commands share: the options --json, -v and --debug, the output, and groups that suggest a name.

A command is a function that returns `Output(data, text)`: `data` is what --json prints, `text` what people read.

    @click.command()
    @shared
    def command(settings: Settings) -> Output:
        \"\"\"One line for the help.\"\"\"
        return Output({"answer": 42}, "the answer is 42")

With --json everything that a library prints goes to standard error, so that standard output holds one JSON document.
Nothing here imports more than click.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from aligntune.errors import AlignTuneError, ConfigurationError
from aligntune.registry import nearest


@dataclass(frozen=True)
class Output:
    """What a command found out: plain values for programs, text for people, and an exit code (a check that failed)."""

    data: Any
    text: str
    exit_code: int = 0


@dataclass(frozen=True)
class Settings:
    """The options that every command takes, wherever they stand on the line."""

    json: bool = False
    verbose: bool = False
    debug: bool = False

    @classmethod
    def read(cls, args: Sequence[str]) -> Settings:
        """Find the shared options among the arguments; errors in the other arguments must know them too."""
        given = set(args[: args.index("--")] if "--" in args else args)
        return cls("--json" in given, bool({"-v", "--verbose"} & given), "--debug" in given)

    @property
    def color(self) -> bool:
        """Colour only where a person watches and has not declined it (https://no-color.org)."""
        return sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def start_logging(self) -> None:
        """Show progress messages to a person; to a program only warnings, unless it asks for more."""
        from aligntune.utils.logging import configure

        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars, which read it when they are imported
        level = "debug" if self.debug else "info" if self.verbose or sys.stderr.isatty() else "warning"
        configure(level)

    @contextlib.contextmanager
    def guarded_output(self) -> Iterator[None]:
        """With --json: send what libraries and child processes print to standard error inside the block."""
        if not self.json:
            yield
            return
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)

    def emit(self, output: Output) -> None:
        """Print a command's result to standard output."""
        if self.json:
            _print_json(output.data)
        elif output.text:
            click.echo(output.text)

    def fail(self, error: BaseException, message: str, hint: str, exit_code: int) -> int:
        """Report an error on standard error (with --json: on standard output too), and return the exit code."""
        if self.debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        label = click.style("error:", fg="red", bold=True) if self.color else "error:"
        click.echo(f"{label} {message}" + (f"\n  hint: {hint}" if hint else ""), err=True)
        if self.json:
            context = error.context if isinstance(error, AlignTuneError) else {}
            described = {"type": type(error).__name__, "message": message, "hint": hint, "context": context}
            _print_json({"error": {**described, "exit_code": exit_code}})
        return exit_code


def _print_json(value: Any) -> None:
    from aligntune.utils.files import jsonable

    click.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def shared(command: Callable[..., Output]) -> Callable[..., None]:
    """Decorator for a command function: adds the shared options, passes `Settings` first, prints the result."""

    @functools.wraps(command)
    def run(settings: Settings, **arguments: Any) -> None:
        settings.start_logging()
        with settings.guarded_output():
            output = command(settings, **arguments)
        settings.emit(output)
        if output.exit_code:
            raise click.exceptions.Exit(output.exit_code)

    decorated: Any = click.pass_obj(run)
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and all messages."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Say what is decided on the way."),
        click.option("--json", is_flag=True, expose_value=False, help="Print one JSON document on standard output."),
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


class Group(click.Group):
    """A group of commands that names the nearest command when the given one does not exist."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise ConfigurationError(
                f"unknown command '{ctx.command_path} {name}'", hint=nearest(name, self.list_commands(ctx))
            )
        return super().resolve_command(ctx, args)


class Family(Group):
    """A group that has, beside its own commands, each file `cli/<group>_<name>.py`: its attribute `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._files()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        file = self._files().get(cmd_name)
        if file is None:
            return super().get_command(ctx, cmd_name)
        return importlib.import_module(f"aligntune.cli.{file}").command  # type: ignore[no-any-return]

    def _files(self) -> dict[str, str]:
        """The commands' names, and the modules that hold them."""
        from aligntune import cli

        names = [module.name for module in pkgutil.iter_modules(cli.__path__)]
        start = f"{self.name}_"
        return {n.removeprefix(start).replace("_", "-"): n for n in names if n.startswith(start)}


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Rows as text in aligned columns."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """`[FILE] [KEY=VALUE]...` as (file or None, overrides). Only the first argument can be the file.

    Raises:
        ConfigurationError: a later argument is not `key=value`.
    """
    rest = list(arguments)
    file = rest.pop(0) if rest and ("=" not in rest[0] or os.path.isfile(rest[0])) else None
    for item in rest:
        if "=" not in item:
            raise ConfigurationError(
                f"'{item}' is not an override", hint="after the file write key=value, such as train.max_steps=20"
            )
    return file, rest
