"""Device, model loading, run folder, manifest and logging: what every run needs around its trainer.

Names are resolved on first use (PEP 562), so `import aligntune.utils` imports no torch.

>>> from aligntune.utils import DeviceManager
>>> DeviceManager("cpu").precision("auto")
'fp32'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.errors import (
        AlignTuneError,
        ConfigurationError,
        EnvironmentError,
        TrainingError,
        ValidationError,
    )
    from aligntune.utils.checkpoints import CheckpointManager
    from aligntune.utils.device import DeviceManager
    from aligntune.utils.health import DiagnosticsCollector, HealthMonitor, TrainingDiagnostics, TrainingMonitor
    from aligntune.utils.model_loader import Loaded, ModelLoader
    from aligntune.utils.run_folder import RunFolder
    from aligntune.utils.validation import ConfigValidator

_LAZY = {
    "AlignTuneError": "aligntune.errors:AlignTuneError",
    "ConfigurationError": "aligntune.errors:ConfigurationError",
    "EnvironmentError": "aligntune.errors:EnvironmentError",
    "TrainingError": "aligntune.errors:TrainingError",
    "ValidationError": "aligntune.errors:ValidationError",
    "CheckpointManager": "aligntune.utils.checkpoints:CheckpointManager",
    "ConfigValidator": "aligntune.utils.validation:ConfigValidator",
    "DiagnosticsCollector": "aligntune.utils.health:DiagnosticsCollector",
    "HealthMonitor": "aligntune.utils.health:HealthMonitor",
    "TrainingDiagnostics": "aligntune.utils.health:TrainingDiagnostics",
    "TrainingMonitor": "aligntune.utils.health:TrainingMonitor",
    "DeviceManager": "aligntune.utils.device:DeviceManager",
    "Loaded": "aligntune.utils.model_loader:Loaded",
    "ModelLoader": "aligntune.utils.model_loader:ModelLoader",
    "RunFolder": "aligntune.utils.run_folder:RunFolder",
}

__all__ = [
    "AlignTuneError",
    "CheckpointManager",
    "ConfigValidator",
    "ConfigurationError",
    "DeviceManager",
    "DiagnosticsCollector",
    "EnvironmentError",
    "HealthMonitor",
    "Loaded",
    "ModelLoader",
    "RunFolder",
    "TrainingDiagnostics",
    "TrainingError",
    "TrainingMonitor",
    "ValidationError",
]


__getattr__, __dir__ = lazy_names(__name__, _LAZY)
