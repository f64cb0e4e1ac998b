"""The TRL backend. Its trainers are made on first use, from the table in `backends/names.py`."""

from aligntune.backends.names import exporter

__getattr__, __all__ = exporter("trl", ("sft", "rl"))
