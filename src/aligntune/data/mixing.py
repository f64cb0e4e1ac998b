"""Several sources in one data set, by weight, without repeating a row.

Equal weights (the default) join all sources whole. Unequal weights are shares of the mixture: with weights w
and sizes n, source i gives k_i = floor(T w_i / sum(w)) rows, where T = min_i n_i sum(w) / w_i is the largest
total that repeats nothing; which rows is drawn with the seed. Either way the rows are then shuffled together
with the seed.

>>> rows, note = mix([[{"text": "a"}] * 90, [{"text": "b"}] * 90], [2, 1], ["a", "b"], seed=0)
>>> len(rows)
135

`interleave_datasets(stopping_strategy="first_exhausted")` of the `datasets` library has the same shares in
expectation; here they are exact.
"""

from __future__ import annotations

import random
from typing import Any


def mix(
    parts: list[list[dict[str, Any]]], weights: list[float], names: list[str], seed: int
) -> tuple[list[dict[str, Any]], str]:
    """Mixed rows, and a sentence that says how many came from each source.

    Args:
        parts: rows of each source.
        weights: positive, one for each.
        names: for the sentence.
        seed: of the draws and of the order.
    """
    sizes = [len(part) for part in parts]
    generator = random.Random(seed)
    if len(set(weights)) == 1:
        counts = sizes
    else:
        total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        # The small term keeps a share that is a whole number from falling below it by rounding.
        counts = [max(1, int(total * weight + 1e-9)) for weight in weights]
    mixed = [
        part[i]
        for part, count in zip(parts, counts, strict=True)
        for i in (range(count) if count == len(part) else sorted(generator.sample(range(len(part)), count)))
    ]
    generator.shuffle(mixed)
    how = (
        "joined whole (equal weights)" if counts is sizes else f"mixed by weight {', '.join(f'{w:g}' for w in weights)}"
    )
    shares = "; ".join(f"{c} of {s} rows from {n}" for c, s, n in zip(counts, sizes, names, strict=True))
    return mixed, f"{len(parts)} sources {how}, order shuffled with seed {seed}: {shares}."
