"""What every way to group the columns of a window would retain, by compiled array code."""

import itertools
import math
import threading
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Table = tuple[int, int]  # (size, count): the sum of the `count` largest of `size` columns

MAX_CANDIDATES = 20_000


class Term(NamedTuple):
    """T_k(A) + T_(n-k)(B) for one A and every B that may follow it."""

    low: Table | None
    row: int
    high: Table | None
    start: int


class TopSums:
    """Retained magnitude of all C(window, m) groups of m of the columns of a window.

    With T_k(G) the sum of the k largest entries that a row has in the columns G,

        T_n(A + B) = max over k of T_k(A) + T_(n-k)(B),

    where A holds the lower half of a group's columns and B the upper half, so that
    tables of small groups make those of larger ones: at 2:4 a group costs two maxima
    and one sum. With groups in lexicographic order the B that may follow an A lie in
    one slice: nothing is sorted or gathered.

    Args:
      window: columns of a window.
      n: entries kept of a group.
      m: columns of a group.
    """

    def __init__(self, window: int, n: int, m: int):
        self._window, self._last = window, (m, n)
        self._rows: dict[Table, int] = {(1, 1): window}
        self._steps: list[tuple[Table, slice, list[Term]]] = []
        self._plan(m, n)
        self._scratch = threading.local()

    def __call__(self, columns: Float[np.ndarray, "W P R"]) -> Float[np.ndarray, "G P"]:
        """Returns the sum over rows of T_n of all G groups, for P windows.

        Several threads may call it at once; numpy computes outside Python's lock.
        """
        window, count, rows = columns.shape
        tables = self._buffers(count * rows)
        tables[1, 1] = columns.reshape(window, count * rows)
        for table, at, terms in self._steps:
            out = tables[table][at]
            for place, term in enumerate(terms):
                into = out if place == 0 else tables[0, 0][: len(out)]
                if term.low is None or term.high is None:
                    into = _operand(tables, term)
                    if place == 0:
                        out[...] = into
                else:
                    np.add(tables[term.low][term.row], tables[term.high][term.start :], out=into)
                if place > 0:
                    np.maximum(out, into, out=out)
        last = tables[self._last]
        return last.reshape(len(last) * count, rows).sum(axis=-1).reshape(len(last), count)

    def _plan(self, size: int, count: int) -> None:
        if (size, count) in self._rows:
            return
        lower, upper = size // 2, size - size // 2
        splits = range(max(0, count - upper), min(lower, count) + 1)
        for k in splits:
            if k:
                self._plan(lower, k)
            if count - k:
                self._plan(upper, count - k)
        starts: dict[int, int] = {}
        for row, group in enumerate(itertools.combinations(range(self._window), upper)):
            starts.setdefault(group[0], row)
        at = 0
        for row, group in enumerate(itertools.combinations(range(self._window), lower)):
            start = starts.get(group[-1] + 1)
            if start is None:
                continue
            terms = [
                Term(
                    (lower, k) if k else None, row, (upper, count - k) if k < count else None, start
                )
                # Sums first: the first term is written where it belongs.
                for k in sorted(splits, key=lambda k: k in (0, count))
            ]
            into = slice(at, at + math.comb(self._window, upper) - start)
            self._steps.append(((size, count), into, terms))
            at = into.stop
        self._rows[size, count] = at

    def _buffers(self, width: int) -> dict[Table, np.ndarray]:
        """This thread's arrays: fresh memory would cost as much as the arithmetic."""
        kept: dict[Table, np.ndarray] = self._scratch.__dict__.setdefault("tables", {})
        rows = self._rows | {(0, 0): max(self._rows.values())}
        if not kept or kept[0, 0].size < rows[0, 0] * width:
            kept.update(
                {table: np.empty(count * width, np.float32) for table, count in rows.items()}
            )
        return {t: kept[t][: count * width].reshape(count, width) for t, count in rows.items()}


def _operand(tables: dict[Table, np.ndarray], term: Term) -> np.ndarray:
    if term.low is not None:
        return tables[term.low][term.row]
    assert term.high is not None
    return tables[term.high][term.start :]


def partitions(window: int, m: int) -> Int[np.ndarray, "candidates W/m m"]:
    """Returns all ways to split `window` columns into unordered groups of m.

    There are window! / (m!^g g!) for g = window / m groups; the first leaves every
    column where it is.

    Raises:
      ValueError: if there are more than 20,000 ways.
    """
    if not enumerable(window, m):
        raise ValueError(
            f"window={window} has {_ways(window, m):,} partitions into groups of {m}, more than "
            f"{MAX_CANDIDATES:,}: {_smaller(window, m)}method='swap' would work"
        )
    return np.array(list(_split(tuple(range(window)), m)))


def enumerable(window: int, m: int) -> bool:
    """Returns whether `partitions` lists them."""
    return _ways(window, m) <= MAX_CANDIDATES


def _ways(window: int, m: int) -> int:
    groups = window // m
    return math.factorial(window) // (math.factorial(m) ** groups * math.factorial(groups))


def _smaller(window: int, m: int) -> str:
    fits = next((w for w in range(window - m, m, -m) if enumerable(w, m)), None)
    return f"window={fits} or " if fits else ""


def _split(columns: tuple[int, ...], m: int):
    if not columns:
        yield ()
        return
    first, others = columns[0], columns[1:]
    for rest in itertools.combinations(others, m - 1):
        left = tuple(c for c in others if c not in rest)
        for tail in _split(left, m):
            yield ((first, *rest), *tail)


def group_rows(window: int, groups: Int[np.ndarray, "... m"]) -> Int[np.ndarray, "..."]:
    """Returns the row of `TopSums`' result for every group: its lexicographic rank."""
    m = groups.shape[-1]
    ranks = np.full(groups.shape[:-1], math.comb(window, m) - 1)
    for place in range(m):
        binomials = np.array([math.comb(window - 1 - c, m - place) for c in range(window)])
        ranks -= binomials[groups[..., place]]
    return ranks


def top_sums(columns: Float[np.ndarray, "... m R"], n: int) -> Float[np.ndarray, "..."]:
    """Returns the sum over rows of the n largest of m columns, in the columns' precision."""
    m = columns.shape[-2]
    return np.partition(columns, m - n, axis=-2)[..., m - n :, :].sum(axis=(-2, -1))
