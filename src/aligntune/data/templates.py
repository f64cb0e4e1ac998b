"""Jinja prompt templates over a row's columns.

>>> PromptTemplate("{{ question }} Answer with a number.").render({"question": "2+2?"})
'2+2? Answer with a number.'

The environment is Jinja's immutable sandbox with strict undefined names: a template cannot reach into Python
objects, and a misspelt column is an error rather than an empty string. A null value that would be printed is
a problem of the row, never the word "None".
"""

from __future__ import annotations

from typing import Any

from aligntune.data.messages import RowProblem
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest


class PromptTemplate:
    """A compiled template.

    Args:
        text: the Jinja source.

    Raises:
        ConfigurationError: the source is not valid Jinja.
    """

    def __init__(self, text: str) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.meta import find_undeclared_variables
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, finalize=_printable, keep_trailing_newline=True
        )
        try:
            self.variables = find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigurationError(
                f"prompt_template, line {error.lineno}: {error.message}", hint="mend the Jinja template"
            ) from error

    def render(self, row: dict[str, Any]) -> str:
        """The prompt of one row.

        Raises:
            ValidationError: the template names a column that the row lacks, or fails on its values.
            RowProblem: a value that the template prints is null, or the prompt comes out empty.
        """
        from jinja2 import TemplateError, UndefinedError

        try:
            text: str = self._template.render(row)
        except UndefinedError as error:
            missing = sorted(self.variables - set(row))
            columns = ", ".join(map(str, row)) or "none"
            if missing:
                raise ValidationError(
                    f"prompt_template needs '{missing[0]}', which is no column; columns found: {columns}",
                    hint=nearest(missing[0], map(str, row)),
                ) from error
            raise ValidationError(
                f"prompt_template fails: {error.message}; columns found: {columns}",
                hint="guard the value with `is defined`",
            ) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise ValidationError(f"prompt_template fails: {error}", hint="mend the Jinja template") from error
        if not text.strip():
            raise RowProblem("the prompt that prompt_template makes is empty")
        return text


def _printable(value: Any) -> Any:
    if value is None:
        raise RowProblem("a column that prompt_template prints is null")
    return value
