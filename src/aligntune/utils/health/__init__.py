"""The health of a run, from its numbers: rules, the monitor that holds them over the log, and what they say in all.

>>> from aligntune.utils.health import HealthMonitor, TrainingDiagnostics
>>> TrainingDiagnostics.of_folder("runs/a").verdict
'healthy'
"""

from aligntune.utils.health.figures import DiagnosticsCollector
from aligntune.utils.health.monitor import Event, HealthMonitor, TrainingMonitor, monitor_of
from aligntune.utils.health.rules import RULES, Finding, History
from aligntune.utils.health.summary import TrainingDiagnostics

__all__ = [
    "RULES",
    "DiagnosticsCollector",
    "Event",
    "Finding",
    "HealthMonitor",
    "History",
    "TrainingDiagnostics",
    "TrainingMonitor",
    "monitor_of",
]
