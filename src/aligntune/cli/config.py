"""`aligntune config`: the JSON schema of a run's file, for editors and for reading."""

from __future__ import annotations

import json

import click

from aligntune.cli.console import Group, Output, Settings, shared


@click.group(cls=Group, short_help="The JSON schema of a run's file.")
def command() -> None:
    """The JSON schema of a run's file."""


@command.command("schema", short_help="Print the JSON schema of a run's file.")
@shared
def schema(settings: Settings) -> Output:
    """Print the JSON schema of a run's file: every key with its type, default and meaning.

    Write it to a file (`aligntune config schema > aligntune.schema.json`) and begin a YAML file with
    `# yaml-language-server: $schema=aligntune.schema.json`; editors then complete and check it.
    """
    from aligntune.core.config.schema import run_schema

    document = run_schema()
    return Output(document, json.dumps(document, indent=2, ensure_ascii=False))
