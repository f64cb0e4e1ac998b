"""TRL trainers for preference and policy optimisation."""

from aligntune.backends.names import exporter

__getattr__, __all__ = exporter("trl", ("rl",))
