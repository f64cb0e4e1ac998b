"""Several sources in one data set, by weight, without repeating a row.

Equal weights (the default) join all sources whole. Unequal weights are shares of the mixture: with weights w
and sizes n, source i gives k_i = floor(T w_i / sum(w)) rows, where T = min_i n_i sum(w) / w_i is the largest
total that repeats nothing; which rows is drawn with the seed. Either way the rows are then shuffled together
with the seed.

>>> order, note = mix([90, 90], [2, 1], ["a", "b"], seed=0)
>>> len(order)
135

`interleave_datasets(stopping_strategy="first_exhausted")` of the `datasets` library has the same shares in
expectation; here they are exact.
"""

from __future__ import annotations

import random
from typing import Any

from aligntune.data.spool import BLOCK
from aligntune.data.table import RowTable


def mix(sizes: list[int], weights: list[float], names: list[str], seed: int) -> tuple[list[tuple[int, int]], str]:
    """Which rows the mixture holds, in its order, as (source, row); and a sentence that says how many of each.

    Args:
        sizes: rows of each source.
        weights: positive, one for each.
        names: for the sentence.
        seed: of the draws and of the order.
    """
    generator = random.Random(seed)
    if len(set(weights)) == 1:
        counts = sizes
    else:
        total = min(size / weight for size, weight in zip(sizes, weights, strict=True))
        # The small term keeps a share that is a whole number from falling below it by rounding.
        counts = [max(1, int(total * weight + 1e-9)) for weight in weights]
    mixed = [
        (part, i)
        for part, (size, count) in enumerate(zip(sizes, counts, strict=True))
        for i in (range(count) if count == size else sorted(generator.sample(range(size), count)))
    ]
    generator.shuffle(mixed)
    how = (
        "joined whole (equal weights)" if counts is sizes else f"mixed by weight {', '.join(f'{w:g}' for w in weights)}"
    )
    shares = "; ".join(f"{c} of {s} rows from {n}" for c, s, n in zip(counts, sizes, names, strict=True))
    return mixed, f"{len(sizes)} sources {how}, order shuffled with seed {seed}: {shares}."


def mixed_rows(parts: list[RowTable], weights: list[float], names: list[str], seed: int) -> tuple[RowTable, str]:
    """The rows of the mixture, read back block by block; see `mix`."""
    order, note = mix([len(part) for part in parts], weights, names, seed)
    datasets, mixed = [part.dataset() for part in parts], RowTable(hashed=True)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        rows: list[dict[str, Any]] = [{} for _ in block]
        for number, dataset in enumerate(datasets):
            places = [place for place, (part, _) in enumerate(block) if part == number]
            columns = dataset[[block[place][1] for place in places]] if places else {}
            for name, values in columns.items():
                for place, value in zip(places, values, strict=True):
                    rows[place][name] = value
        mixed.extend(rows)
    return mixed, note
