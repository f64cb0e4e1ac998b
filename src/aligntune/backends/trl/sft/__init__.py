"""TRL trainers for supervised fine-tuning."""

from aligntune.backends.names import exporter

__getattr__, __all__ = exporter("trl", ("sft",))
