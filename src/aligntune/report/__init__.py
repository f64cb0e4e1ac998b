"""The HTML report: one self-contained file for a run, or for a story told in several stages.

>>> build_report("out/sft")
PosixPath('out/sft/report.html')

`build_story(title, stages, out)` compares stages with intervals; see `story.Stage`. Names are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.report.build import build_report
    from aligntune.report.story import Answer, Interval, Sample, Stage, build_story

_LAZY = {
    "Answer": "aligntune.report.story:Answer",
    "Interval": "aligntune.report.story:Interval",
    "Sample": "aligntune.report.story:Sample",
    "Stage": "aligntune.report.story:Stage",
    "build_report": "aligntune.report.build:build_report",
    "build_story": "aligntune.report.story:build_story",
}

__all__ = ["Answer", "Interval", "Sample", "Stage", "build_report", "build_story"]


__getattr__, __dir__ = lazy_names(__name__, _LAZY)
