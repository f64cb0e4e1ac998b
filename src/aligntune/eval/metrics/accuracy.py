"""Right or wrong: the share of items whose prediction equals the reference.

>>> AccuracyMetric().compute([{"prediction": "Paris ", "reference": "Paris"}]).value
1.0

`MathAccuracyMetric` asks `aligntune.grading` whether two expressions are equal, so "0.5" equals "1/2". Neither finds
the answer in a longer text; that is `aligntune.grading.final_answer`, which the task `exact_match` applies first.
"""

from __future__ import annotations

from aligntune.eval.metrics.base import Item, Metric


class AccuracyMetric(Metric):
    """Share of predictions that equal the reference, white space at both ends aside. Values in [0, 1].

    A prediction of None (nothing was answered) is wrong; a reference of None leaves the item out.
    """

    name = "accuracy"
    requires = ("prediction", "reference")
    why_missing = "the reference is missing"

    def score(self, item: Item) -> float | None:
        """1 or 0; None without a reference."""
        prediction, reference = item["prediction"], item["reference"]
        if reference is None:
            return None
        return float(prediction is not None and str(prediction).strip() == str(reference).strip())


class MathAccuracyMetric(AccuracyMetric):
    """Share of predictions that are mathematically equal to the reference. Values in [0, 1].

    An item whose reference cannot be read as mathematics is left out and counted.
    """

    why_missing = "the reference is missing or is not a mathematical expression (text answers need `match: text`)"

    def score(self, item: Item) -> float | None:
        """1 or 0; None without a readable reference."""
        from aligntune.grading.math import math_equal

        prediction, reference = item["prediction"], item["reference"]
        if reference is None:
            return None
        # Asked even without a prediction: an unreadable reference leaves the item out for every model alike.
        equal = math_equal(reference, prediction)
        return None if equal is None else float(equal)
