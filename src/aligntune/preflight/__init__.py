"""What a run would train on, checked before an hour is spent: `aligntune check`, and the quick form at `train`'s start.

>>> from aligntune.core.config import load_config
>>> report = check(load_config("run.yaml"))
>>> report.exit_code(), report.named("terminator").status
(0, 'pass')

No weights are loaded and nothing is trained, but by `smoke`. Sources of the checks are named in their modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.preflight.run import check as check
    from aligntune.preflight.run import quick as quick
    from aligntune.preflight.smoke_run import smoke as smoke
    from aligntune.preflight.verdict import Report as Report
    from aligntune.preflight.verdict import Verdict as Verdict

_NAMES = {"Report": "verdict", "Verdict": "verdict", "check": "run", "quick": "run", "smoke": "smoke_run"}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
