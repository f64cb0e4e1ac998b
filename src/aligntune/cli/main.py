"""The program `aligntune`: finds the command, runs it, and turns every error into one message and an exit code.

Exit codes: 0 done, 2 the user's mistake, 3 something missing in the environment, 1 a failure, 130 an interrupt.
A command is a module of this package with an attribute `command`; its name is the module's. A name with an underscore
is a command of a group: `rewards_audit` is `aligntune rewards audit` (`console.Family`).

>>> main(["info", "--json"])
0

`--help` imports click and the command files only, which hold their heavy imports inside functions.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

import click

import aligntune
from aligntune import cli
from aligntune.cli.console import Group, Settings
from aligntune.errors import AlignTuneError
from aligntune.utils.signals import terminable

NOT_COMMANDS = ("main", "console")


class Commands(Group):
    """Every command file of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [m.name for m in pkgutil.iter_modules(cli.__path__)]
        return [name for name in names if name not in NOT_COMMANDS and "_" not in name]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"aligntune.cli.{cmd_name}").command  # type: ignore[no-any-return]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--json", is_flag=True, expose_value=False, help="Print one JSON document on standard output.")
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Say what is decided on the way.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks and all messages.")
@click.version_option(aligntune.__version__, message="aligntune %(version)s")
def program() -> None:
    """Post-train language models from one file: train, evaluate, report, with nothing silent.

    `aligntune quickstart` shows the whole way on this machine, without network or GPU.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments without the program's name; None takes the process's own.
    """
    try:
        with terminable():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # the reader of our output has gone (`aligntune ... | head`); keep Python from flushing into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _run(args: list[str]) -> int:
    settings = Settings.read(args)
    try:
        with program.make_context("aligntune", args, obj=settings) as context:
            program.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        if not args:  # no command at all: click's message is the help
            click.echo(error.format_message())
            return 2
        where = error.ctx.command_path if error.ctx else "aligntune"
        return settings.fail(error, error.format_message(), f"see `{where} --help`", 2)
    except AlignTuneError as error:
        return settings.fail(error, error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        return settings.fail(error, "stopped", str(error), 130)
    except BrokenPipeError:
        raise
    except Exception as error:  # the program's last line: everyone gets a sentence, --debug the traceback
        return settings.fail(error, _unexpected(error), "run it again with --debug to see where it happened", 1)


def _unexpected(error: Any) -> str:
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}" + (f": {text}" if text else "")
