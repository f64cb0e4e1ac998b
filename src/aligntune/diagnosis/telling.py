"""A comparison of two runs, in words for a terminal.

>>> print(told(diff_runs("runs/a", "runs/b")))
different: the curves part at step 2 (loss)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aligntune.diagnosis.curves import Parting
from aligntune.diagnosis.diff import RunDiff
from aligntune.diagnosis.differences import Difference

WIDTH = 60
SHOWN = 12


def told(found: RunDiff) -> str:
    """Verdict, causes, curves and final metrics."""
    lines = [f"a  {found.a}", f"b  {found.b}", "", headline(found), ""]
    if found.causes:
        title = "what differs" if found.verdict == "identical" else "what differs, most likely cause first"
        lines += [title, *causes(found.causes), ""]
    else:
        lines += ["nothing that could change the result differs in the two manifests", ""]
    if found.harmless:
        names = [d.what for d in found.harmless]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines += [f"differs without effect on the result: {', '.join(names[:SHOWN])}{more}", ""]
    lines += [*curve_lines(found.parting, found.tolerance), order_line(found), weights_line(found)]
    if found.finals:
        lines += ["", "final values", *final_lines(found.finals)]
    return "\n".join(line for line in lines if line is not None)


def headline(found: RunDiff) -> str:
    """The verdict in one sentence."""
    parting = found.parting
    if found.verdict == "identical":
        also = "" if found.weights is None else ", and so are the weights"
        return f"identical: {parting.values} values at {parting.steps} steps are equal bit for bit{also}"
    if found.verdict == "nothing to compare":
        return "nothing to compare: there is no step that both have logged"
    if found.verdict == "equal within tolerance":
        if parting.first_bit is None:
            return "equal within tolerance: all values are equal bit for bit, and the weights are not"
        return (
            f"equal within tolerance: the largest relative difference is {parting.largest:.2g}, of "
            f"{parting.largest_metric} at step {parting.largest_step}"
        )
    if parting.first_step is not None:
        return f"different: the curves part at step {parting.first_step} ({parting.first_metric})"
    return "different: they have not logged the same steps or metrics"


def causes(found: Sequence[Difference]) -> list[str]:
    """Numbered lines: what, both values, what it does."""
    lines = []
    for i, item in enumerate(found[:SHOWN], 1):
        lines += [f"  {i}. {item.what}: {_short(item.a)} -> {_short(item.b)}", f"     {item.effect}"]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more; --json has them all")
    return lines


def curve_lines(parting: Parting, tolerance: float) -> list[str]:
    """Where the curves part."""
    lines = [f"compared {parting.values} values at {parting.steps} steps"]
    if parting.first_bit is not None:
        lines.append(f"first difference in any bit: step {parting.first_bit}")
    if parting.first_step is not None:
        lines.append(
            f"first difference beyond rounding ({tolerance:g}): step {parting.first_step}, {parting.first_metric}; the "
            f"largest: {parting.largest:.3g} at step {parting.largest_step}, {parting.largest_metric}"
        )
    for side, steps in (("a", parting.only_a), ("b", parting.only_b)):
        if steps:
            lines.append(f"only {side} logged {len(steps)} steps, from {steps[0]} to {steps[-1]}")
    if parting.names:
        lines.append(f"only one of them logged {', '.join(parting.names[:SHOWN])}")
    return lines


def order_line(found: RunDiff) -> str:
    """Whether the batches were the same, in the same order."""
    if found.order_parts is not None:
        return f"the batches differ from step {found.order_parts} on, or from one of those before that are not logged"
    return "the batches are the same wherever both recorded their order"


def weights_line(found: RunDiff) -> str:
    """Whether the weights are the same."""
    known = {True: "are equal bit for bit", False: "differ", None: "cannot be compared (one of the runs has none)"}
    return f"the final weights {known[found.weights]}"


def final_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The last values of both as a small table."""
    shown = rows[:SHOWN]
    width = max(len(row["metric"]) for row in shown)
    lines = [
        f"  {row['metric']:<{width}}  {row['a']:>12.6g}  {row['b']:>12.6g}  {row['relative']:.2g}" for row in shown
    ]
    return [f"  {'':<{width}}  {'a':>12}  {'b':>12}  relative", *lines]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _row(row: dict[str, Any], width: int) -> str:
    return f"  {row['metric']:<{width}}  {row['a']:>12.6g}  {row['b']:>12.6g}  {row['relative']:.2g}"
