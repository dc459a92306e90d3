"""Words for messages: values cut short, numbers checked by name, tables of columns."""

import math
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

MAX_RANK = 32
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxstring = 3, 8, 100
shorten = _REPR.repr  # a value in an error: a file may hold anything


def whole(field: str, value: Any, least: int, most: int) -> int:
    """The value, an int in a range; a ValueError names the field otherwise."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"field {field!r}: {shorten(value)} is no whole number from {least} to {most}"
        )
    return value


def finite(field: str, value: Any) -> float:
    """The value, a finite number; a ValueError names the field otherwise."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"field {field!r}: {shorten(value)} is no finite number")
    return float(value)


def wholes(field: str, value: Any, least: int, most: int) -> tuple[int, ...]:
    """The value, a list of at most MAX_RANK ints in a range, as a tuple."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise ValueError(
            f"field {field!r}: {shorten(value)} is no list of at most {MAX_RANK} numbers"
        )
    return tuple(whole(field, item, least, most) for item in value)


def columned(rows: Sequence[Sequence[Any]], left: Collection[int]) -> list[str]:
    """Lines of cells one under another, the columns numbered in `left` to the left.

    >>> columned([("leaf", "kept"), ("kernel", 8)], {0})
    ['leaf    kept', 'kernel     8']
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
