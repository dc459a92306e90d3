"""Moves of columns between stripes, and what each would gain.

A *stripe* is a group of m columns that n:m prunes together. Columns are known by their
place in the matrix as it was given, so that a gain stays valid until one of its stripes
changes.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsparse.graph.permutation.topsums import TopSums, group_rows, partitions

# Relative to what the stripes of a move retain: below it is float32 rounding.
TOLERANCE = 1e-6
# Entries of the largest table of one evaluation: all tables together stay in the cache.
TABLE = 600_000
MAX_WINDOWS = 5_000_000


class Moves(Protocol):
    """All moves of one kind, with their gains."""

    def refresh(self, stripes: Int[np.ndarray, "S m"], changed: Bool[np.ndarray, "S"]) -> None:
        """Evaluates the moves that touch a changed stripe."""
        ...

    def ranked(
        self, stripes: Int[np.ndarray, "S m"]
    ) -> tuple[Int[np.ndarray, "N s"], Callable[[int], Int[np.ndarray, "s m"]]]:
        """Returns, by falling gain, the stripes each move touches and what it makes of them."""
        ...

    def snapshot(self) -> Sequence[np.ndarray]:
        """Returns a copy of the gains."""
        ...

    def restore(self, snapshot: Sequence[np.ndarray]) -> None:
        """Takes the gains of a snapshot."""
        ...


class WindowSplits:
    """The best split of every window's columns into stripes, all splits tried.

    Args:
      entries: |w|, columns first.
      n, m: of n:m.
      window: columns of a window.
      executor: runs blocks of windows side by side.
    """

    def __init__(
        self, entries: Float[np.ndarray, "C R"], n: int, m: int, window: int, executor: Executor
    ):
        splits = partitions(window, m)
        self._entries, self._executor = entries, executor
        self._orders = splits.reshape(len(splits), window)
        self._rows = group_rows(window, splits)
        self._sums = TopSums(window, n, m)
        self._width = max(64, TABLE // math.comb(window, m))

    def evaluate(
        self, windows: Int[np.ndarray, "P W"]
    ) -> tuple[Float[np.ndarray, "P"], Int[np.ndarray, "P W"]]:
        """Returns what the best split gains, 0 for less than rounding, and its columns."""
        step = max(1, self._width // self._entries.shape[1])
        blocks = [windows[at : at + step] for at in range(0, len(windows), step)]
        run = self._executor.map if len(blocks) > 1 else map
        gains, splits = zip(*run(self._best, blocks), strict=True)
        return np.concatenate(gains), np.concatenate(splits)

    def _best(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self._entries.shape[1]
        chunks = range(0, rows, self._width)
        values = np.zeros((), np.float64)
        for at in chunks:
            values = values + self._sums(self._entries[windows.T, at : at + self._width])
        totals = np.sum([values[part] for part in self._rows.T], axis=0)
        best = totals.argmax(axis=0)
        gain = totals[best, np.arange(len(windows))] - totals[0]
        return (
            np.where(gain > TOLERANCE * totals[0], gain, 0),
            np.take_along_axis(windows, self._orders[best], axis=1),
        )


class WindowMoves:
    """Splits of the columns of every set of window / m stripes.

    Source: Pool and Yu, NeurIPS 2021 ("stripe groups").

    Raises:
      ValueError: if there are more than 5,000,000 sets.
    """

    def __init__(self, splits: WindowSplits, stripes: int, window: int, m: int):
        size = window // m
        if math.comb(stripes, size) > MAX_WINDOWS:
            raise ValueError(
                f"window={window}: {stripes} stripes of {m} columns have "
                f"{math.comb(stripes, size):,} sets of {size}, more than {MAX_WINDOWS:,}; a "
                "smaller window, method='progressive' or method='swap' would work"
            )
        self._splits = splits
        self._sets = np.array(list(itertools.combinations(range(stripes), size)), np.int32)
        self._gains = np.zeros(len(self._sets))
        self._columns = np.zeros((len(self._sets), window), np.int32)

    def refresh(self, stripes, changed):
        stale = np.flatnonzero(changed[self._sets].any(axis=1))
        windows = stripes[self._sets[stale]].reshape(len(stale), -1)
        self._gains[stale], self._columns[stale] = self._splits.evaluate(windows)

    def ranked(self, stripes):
        order = _falling(self._gains)
        return self._sets[order], lambda k: self._columns[order[k]].reshape(-1, stripes.shape[1])

    def snapshot(self):
        return self._gains.copy(), self._columns.copy()

    def restore(self, snapshot):
        self._gains[:], self._columns[:] = snapshot


class SwapMoves:
    """Exchanges of two columns between two stripes.

    Column b in the place of a makes of a's stripe, in every row,

        T_n(rest + b) = max(T_n(rest), T_(n-1)(rest) + b),

    with T_k the sum of the k largest and rest the stripe without a.

    Args:
      entries: |w|, columns first.
      n: entries kept of a stripe.
      executor: runs stripes side by side.
    """

    def __init__(self, entries: Float[np.ndarray, "C R"], n: int, executor: Executor):
        columns = len(entries)
        self._entries, self._n, self._executor = entries, n, executor
        self._after = np.zeros((columns, columns), np.float32)
        self._stripe_of = np.zeros(columns, np.int32)
        self._value = np.zeros(columns, np.float32)

    def refresh(self, stripes, changed):
        stale = np.flatnonzero(changed)
        self._stripe_of[stripes[stale]] = stale[:, None]
        list(self._executor.map(self._replace, stripes[stale]))

    def ranked(self, stripes):
        value, stripe_of = self._value, self._stripe_of
        before = value[:, None] + value[None, :]
        gains = self._after + self._after.T - before
        apart = np.triu(stripe_of[:, None] != stripe_of[None, :])
        gains = np.where(apart & (gains > TOLERANCE * before), gains, 0)
        first, second = np.unravel_index(_falling(gains.reshape(-1)), gains.shape)

        def swapped(k: int) -> np.ndarray:
            pair = stripes[stripe_of[[first[k], second[k]]]]
            a, b = pair == first[k], pair == second[k]
            return np.where(a, second[k], np.where(b, first[k], pair))

        return np.stack([stripe_of[first], stripe_of[second]], axis=1), swapped

    def snapshot(self):
        return self._after.copy(), self._stripe_of.copy(), self._value.copy()

    def restore(self, snapshot):
        self._after[:], self._stripe_of[:], self._value[:] = snapshot

    def _replace(self, stripe: np.ndarray) -> None:
        columns, rows = self._entries.shape
        step = max(1, TABLE // rows)
        for place, column in enumerate(stripe):
            rest = np.sort(self._entries[np.delete(stripe, place)], axis=0)[::-1]
            fewer, full = rest[: self._n - 1].sum(axis=0), rest[: self._n].sum(axis=0)
            for at in range(0, columns, step):
                with_other = self._entries[at : at + step] + fewer
                np.maximum(with_other, full, out=with_other)
                self._after[column, at : at + step] = with_other.sum(axis=1)
        # Every column in its own place: the stripe as it is.
        self._value[stripe] = self._after[stripe[0], stripe[0]]


def pool() -> ThreadPoolExecutor:
    """Returns threads, one for each core that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return ThreadPoolExecutor(len(affinity(0)) if affinity else os.cpu_count())


def _falling(gains: np.ndarray) -> np.ndarray:
    """The positive gains' places, the largest first, ties by place."""
    positive = np.flatnonzero(gains)
    return positive[np.argsort(-gains[positive], kind="stable")]
