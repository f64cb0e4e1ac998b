"""Plain values between a program under test and its tests, as tagged JSON.

    unpack(pack((1, {"a": {2.5}})))            # (1, {"a": {2.5}})

Only values whose type is exactly a builtin (or one of a few value types of the standard library) cross. An object of
the program's own, which might call itself equal to everything, stays where it is, and only a number for it crosses. The
receiver builds every value itself, with
limits on size and depth, so that nothing the other side sends can run code or take memory without end.

Standard library only: this file is loaded in clean interpreters too.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import math
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any

MAX_BYTES = 1_000_000
MAX_DEPTH = 60
MAX_BITS = 13_000
SAFE_INT = 2**53


class WireError(Exception):
    """A value that cannot cross, or bytes that are no message."""


def pack(value: Any, depth: int = 0, keep: Callable[[Any], int] | None = None) -> Any:
    """A JSON document for a plain value.

    Args:
        keep: takes an object that is no plain value and gives its number, under which the other side may name it; None
            refuses such objects.

    Raises:
        WireError: another type, nested too deeply, or a number too large.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        if -SAFE_INT < value < SAFE_INT:
            return value
        if value.bit_length() > MAX_BITS:
            raise WireError(f"a whole number of more than {MAX_BITS} bits")
        return {"i": hex(value)}
    if kind is float:
        return {"f": value.hex()}
    if kind is list:
        return [pack(v, depth + 1, keep) for v in value]
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: [pack(v, depth + 1, keep) for v in value]}
    if kind in _MAPPINGS:
        return {"d": [[pack(k, depth + 1, keep), pack(v, depth + 1, keep)] for k, v in value.items()]}
    if kind in _TEXTS:
        return {_TEXTS[kind][0]: _TEXTS[kind][1](value)}
    if kind is type and value in _TYPES.values():
        return {"T": value.__name__}
    if keep is not None:
        return {"o": keep(value)}
    raise WireError(f"a value of type {kind.__name__}")


def unpack(document: Any, depth: int = 0, make: Callable[[int], Any] | None = None) -> Any:
    """The value of a document that `pack` made, or that a hostile sender made up.

    Args:
        make: gives what stands for the other side's object of a number; None refuses such numbers.

    Raises:
        WireError: it is no such document.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"nested more than {MAX_DEPTH} deep")
    if document is None or type(document) in (bool, str):
        return document
    if type(document) is int:
        if document.bit_length() > MAX_BITS:
            raise WireError("a whole number too large")
        return document
    if type(document) is list:
        return [unpack(v, depth + 1, make) for v in document]
    if type(document) is not dict or len(document) != 1:
        raise WireError("not a tagged value")
    ((tag, body),) = document.items()
    try:
        return _untag(tag, body, depth, make)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise WireError(f"not a value of tag {tag[:8]!r}: {type(error).__name__}") from error


def _untag(tag: str, body: Any, depth: int, make: Callable[[int], Any] | None) -> Any:
    if tag == "d":
        return {unpack(k, depth + 1, make): unpack(v, depth + 1, make) for k, v in body}
    if tag in _BUILD:
        return _BUILD[tag](unpack(v, depth + 1, make) for v in body)
    if tag == "o" and make is not None and type(body) is int:
        return make(body)
    if type(body) is not str or len(body) > MAX_BITS:
        raise WireError("not a tagged value")
    if tag in _READ:
        return _READ[tag](body)
    raise WireError(f"unknown tag {tag[:8]!r}")


def _complex(text: str) -> complex:
    real, imaginary = text.split(",")
    return complex(float.fromhex(real), float.fromhex(imaginary))


def _range(text: str) -> range:
    return range(*(int(part) for part in text.split(",")))


_SEQUENCES: dict[type, str] = {tuple: "t", set: "s", frozenset: "z", collections.deque: "q"}
_BUILD: dict[str, Any] = {"t": tuple, "s": set, "z": frozenset, "q": collections.deque}
_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range)}
_MAPPINGS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
_TEXTS: dict[type, tuple[str, Any]] = {
    bytes: ("b", bytes.hex),
    bytearray: ("b", lambda v: bytes(v).hex()),
    complex: ("c", lambda v: f"{v.real.hex()},{v.imag.hex()}"),
    range: ("r", lambda v: f"{v.start},{v.stop},{v.step}"),
    decimal.Decimal: ("D", str),
    fractions.Fraction: ("F", str),
    datetime.date: ("y", datetime.date.isoformat),
    datetime.datetime: ("Y", datetime.datetime.isoformat),
}
_READ: dict[str, Any] = {
    "i": lambda text: int(text, 16),
    "T": lambda name: _TYPES[name],
    "f": float.fromhex,
    "b": bytes.fromhex,
    "c": _complex,
    "r": _range,
    "D": decimal.Decimal,
    "F": fractions.Fraction,
    "y": datetime.date.fromisoformat,
    "Y": datetime.datetime.fromisoformat,
}


def send(handle: int, message: Any) -> None:
    """Write one message: four bytes of length, then JSON.

    Raises:
        WireError: longer than `MAX_BYTES`.
        OSError: the other side is gone.
    """
    data = json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise WireError(f"a value of more than {MAX_BYTES} bytes")
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[os.write(handle, view) :]


def receive(handle: int, deadline: float = math.inf) -> Any:
    """Read one message.

    Args:
        handle: a descriptor.
        deadline: on the clock of `time.monotonic`.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side is gone.
        WireError: no message.
    """
    (length,) = struct.unpack(">I", _exactly(handle, 4, deadline))
    if length > MAX_BYTES:
        raise WireError(f"a message of {length} bytes")
    try:
        return json.loads(_exactly(handle, length, deadline).decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON ({type(error).__name__})") from error


def pending(handle: int) -> bool:
    """Whether bytes wait that nobody asked for."""
    return bool(select.select([handle], [], [], 0)[0])


def _exactly(handle: int, count: int, deadline: float) -> bytes:
    parts = b""
    while len(parts) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        wait = None if math.isinf(left) else left
        if not select.select([handle], [], [], wait)[0]:
            raise TimeoutError
        data = os.read(handle, count - len(parts))
        if not data:
            raise EOFError
        parts += data
    return parts
