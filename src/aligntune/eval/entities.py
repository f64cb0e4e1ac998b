"""Entities of a tag sequence, and precision, recall and F1 over whole entities.

An entity is right if its type, its first and its last token are those of a gold entity (Tjong Kim Sang and De Meulder
2003, section 2, as the `conlleval` script counts; the default of seqeval). One definition reads IOB1, IOB2 and BIOES
(L and U of BILOU too) alike: a token that is not O begins an entity

- if its prefix is B, S or U,
- if no entity is open before it: it is the first token, or the one before is O or has the prefix E, L, S or U,
- if its type is another than that of the token before;

else it goes on with the entity before it. A tag without a prefix (`location`) is a type that begins or goes on alike.

>>> find_entities(["B-person", "I-person", "O", "I-location", "B-location"])
[('person', 0, 2), ('location', 3, 4), ('location', 4, 5)]

Sequences that no scheme allows (I- after O under IOB2) are read, not refused, as conlleval does. It knows no nested
entities.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Entity = tuple[str, int, int]
"""Type, first token, token after the last."""
OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIESLU])-(.+)", re.DOTALL)


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type: ("B", "person") of `B-person`; a bare tag has the prefix I; ("O", "") of O."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _PREFIXED.fullmatch(tag)
    return (match[1], match[2]) if match else ("I", tag)


def marks_entities(names: Sequence[str]) -> bool:
    """Whether a tag set marks entities: it has O, or prefixes. A tag set for parts of speech has neither."""
    return OUTSIDE in names or any(_PREFIXED.fullmatch(name) for name in names)


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sequence, in order."""
    found: list[Entity] = []
    open_type: str | None = None
    start = 0
    closed = True
    for i, tag in enumerate(tags):
        prefix, kind = split_tag(tag)
        begins = prefix != OUTSIDE and (prefix in "BSU" or closed or kind != open_type)
        if open_type is not None and (begins or prefix == OUTSIDE):
            found.append((open_type, start, i))
            open_type = None
        if begins:
            open_type, start = kind, i
        closed = prefix in (OUTSIDE, "E", "L", "S", "U")
    if open_type is not None:
        found.append((open_type, start, len(tags)))
    return found


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores over the entities of all sequences.

    Args:
        gold: tags of each sequence.
        predicted: as many tags for each.

    Returns:
        `precision`, `recall`, `f1` over all entities (micro), `precision_macro` ... and `precision_weighted` ... over
        types (weighted by gold entities), `precision/<type>`, `recall/<type>`, `f1/<type>`, `entities` (gold ones) and
        `entities/<type>`. A ratio over nothing is 0. Range: [0, 1], counts aside.
    """
    right, wanted, given = Counter[str](), Counter[str](), Counter[str]()
    for true, guess in zip(gold, predicted, strict=True):
        if len(true) != len(guess):
            raise ValueError(f"{len(true)} gold tags and {len(guess)} predicted ones")
        a, b = set(find_entities(true)), set(find_entities(guess))
        wanted.update(kind for kind, _, _ in a)
        given.update(kind for kind, _, _ in b)
        right.update(kind for kind, _, _ in a & b)
    kinds = sorted({*wanted, *given})
    each = {kind: prf(right[kind], given[kind], wanted[kind]) for kind in kinds}
    scores = dict(zip(("precision", "recall", "f1"), prf(right.total(), given.total(), wanted.total()), strict=True))
    scores |= averages(each, wanted)
    for kind in kinds:
        scores |= {f"{name}/{kind}": v for name, v in zip(("precision", "recall", "f1"), each[kind], strict=True)}
        scores[f"entities/{kind}"] = float(wanted[kind])
    return {**scores, "entities": float(wanted.total())}


def prf(right: int, given: int, wanted: int) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean; 0 where there is nothing to divide by."""
    precision = right / given if given else 0.0
    recall = right / wanted if wanted else 0.0
    f1 = 2 * right / (given + wanted) if right else 0.0
    return precision, recall, f1


def averages(each: dict[str, tuple[float, float, float]], wanted: Counter[str]) -> dict[str, float]:
    """Means over the classes: `..._macro` counts each class once, `..._weighted` by its gold items."""
    total = sum(wanted[kind] for kind in each)
    scores = {}
    for i, name in enumerate(("precision", "recall", "f1")):
        values = {kind: score[i] for kind, score in each.items()}
        scores[f"{name}_macro"] = sum(values.values()) / len(values) if values else 0.0
        scores[f"{name}_weighted"] = sum(v * wanted[k] for k, v in values.items()) / total if total else 0.0
    return scores
