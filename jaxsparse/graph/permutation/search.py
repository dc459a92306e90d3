"""`search_permutation`: the order of columns under which n:m keeps the most magnitude.

Source: Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from jaxsparse.graph.permutation.moves import Moves, SwapMoves, WindowMoves, WindowSplits, pool
from jaxsparse.graph.permutation.topsums import enumerable, top_sums

Method = Literal["auto", "exhaustive", "swap", "progressive"]

# Window-row evaluations of one pass up to which "auto" tries every set of stripes.
EXHAUSTIVE_PASS = 5_000_000
CHUNK = 4096  # moves looked at together while the best disjoint ones are picked


@dataclasses.dataclass(frozen=True, eq=False)
class PermutationSearch:
    """A permutation of columns and the magnitude, sum |w|, that n:m retains under it.

    Attributes:
      permutation: `matrix[:, permutation]` is the permuted matrix.
      plain: retained by the order as given.
      retained: retained by the permuted order, from `plain` to `bound`.
      bound: what the n/m largest entries of every row hold, whatever their columns.
      method: "exhaustive", "swap" or "progressive".
    """

    permutation: Int[np.ndarray, "columns"]
    plain: float
    retained: float
    bound: float
    method: str

    @property
    def efficacy(self) -> float:
        """(retained - plain) / (bound - plain); 0 where there is nothing to recover."""
        room = self.bound - self.plain
        return (self.retained - self.plain) / room if room > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{len(self.permutation)} columns: {self.plain:.6g} plain, {self.retained:.6g} "
            f"permuted, {self.bound:.6g} at most; {self.efficacy:.1%} recovered ({self.method})"
        )


def search_permutation(
    matrix: Any,
    n: int = 2,
    m: int = 4,
    window: int | None = None,
    escapes: int = 100,
    seed: int = 0,
    *,
    method: Method = "auto",
    budget: float = 5e8,
) -> PermutationSearch:
    """Searches the column order that keeps most of |matrix| when n of every m are kept.

    Columns are pruned in stripes of m, so only which columns share a stripe matters.
    All methods climb: they evaluate moves, make those that gain most and touch
    different stripes, and evaluate again what these changed, until nothing gains more
    than a millionth of what its stripes retain. Scaling the matrix changes nothing.

    - "exhaustive": every set of window / m stripes, every split of its columns into
      stripes: 35 splits for a window of 8 at 2:4, 5,775 for 12.
    - "swap": every exchange of two columns of different stripes. The only one for m
      whose splits are too many to list.
    - "progressive": pairs of stripes in rounds, each stripe in one pair a round and
      every pair once in a sweep, all splits of a pair; ends when a sweep gains
      nothing or `budget` is spent. For thousands of columns.
    - "auto": exhaustive where a pass is cheap, else progressive; swap where it must be.

    An escape exchanges a few random pairs of columns, one pair more than a single
    window could put back, and climbs again; the better of before and after stays, so
    escapes never lose. "progressive" makes none.

    Args:
      matrix: (rows, columns), any real dtype. An (I, O) kernel is given transposed.
      n: entries kept of every m.
      m: columns of a stripe; must divide the columns.
      window: columns of a window of "exhaustive", a multiple of m; default 2 m.
      escapes: how often a converged search is shaken.
      seed: of the escapes and of the rounds of "progressive"; the same seed gives the
        same permutation.
      method: "auto", "exhaustive", "swap" or "progressive".
      budget: of "progressive", in pairs of stripes times rows evaluated.

    Returns:
      A PermutationSearch.

    Raises:
      ValueError: if the matrix is not 2-D, has NaN or infinite entries, or its columns
        do not split into stripes; on a window with too many splits or sets of stripes,
        and on arguments out of range.

    >>> matrix = np.array([[8, 7, 6, 5, 1, 1, 1, 1]])
    >>> found = search_permutation(matrix)
    >>> found.plain, found.retained, found.bound, found.permutation.tolist()
    (17.0, 26.0, 26.0, [0, 1, 4, 5, 2, 3, 6, 7])
    """
    entries, scale = _magnitudes(matrix)
    _check(entries, n, m, escapes, method)
    columns = entries.shape[1]
    identity = np.arange(columns)
    chosen, window = _choose(method, window, entries.shape, m)
    transposed = np.ascontiguousarray(entries.T)
    stripes = identity.reshape(-1, m)
    plain = float(top_sums(transposed[stripes], n).sum())
    kept = columns // m * n
    bound = float(np.partition(entries, columns - kept, axis=1)[:, columns - kept :].sum())
    if len(stripes) > 1:
        single = transposed.astype(np.float32)
        with pool() as executor:
            climb = _Climb(transposed, stripes, n)
            if chosen == "progressive":
                splits = WindowSplits(single, n, m, 2 * m, executor)
                climb.sweep(splits, np.random.default_rng(seed), budget)
            else:
                moves: Moves
                if chosen == "swap":
                    moves = SwapMoves(single, n, executor)
                else:
                    splits = WindowSplits(single, n, m, window, executor)
                    moves = WindowMoves(splits, len(stripes), window, m)
                climb.run(moves)
                swaps = window // m + 1
                climb.escape(moves, escapes, swaps, np.random.default_rng(seed))
        stripes = climb.stripes
    retained = float(top_sums(transposed[stripes], n).sum())
    permutation = _tidy(stripes)
    if not retained > plain:
        permutation, retained = identity, plain
    # The three are summed in different orders.
    sums = np.ldexp([min(plain, bound), min(retained, bound), bound], scale)
    return PermutationSearch(permutation, *map(float, sums), method=chosen)


class _Climb:
    """Stripes and what each retains, in float64."""

    def __init__(self, entries: Float[np.ndarray, "C R"], stripes: Int[np.ndarray, "S m"], n: int):
        self._entries, self._n = entries, n
        self.stripes = stripes.copy()
        self.values = top_sums(entries[stripes], n)

    def run(self, moves: Moves, changed: Any = True) -> None:
        """Makes the best moves until none gains; `changed` are the stale stripes."""
        changed = np.full(len(self.stripes), changed) if changed is True else changed.copy()
        touched = np.zeros(len(self.stripes), bool)
        while changed.any():
            moves.refresh(self.stripes, changed)
            changed[:] = False
            ranked, result = moves.ranked(self.stripes)
            for at in range(0, len(ranked), CHUNK):
                free = ~changed[ranked[at : at + CHUNK]].any(axis=1)
                for move in (np.flatnonzero(free) + at).tolist():
                    if not changed[ranked[move]].any():
                        self.stripes[ranked[move]] = result(move)
                        changed[ranked[move]] = True
            touched |= changed
        self.update(np.flatnonzero(touched))

    def update(self, stripes: Int[np.ndarray, "s"]) -> None:
        """Recomputes what these stripes retain."""
        self.values[stripes] = top_sums(self._entries[self.stripes[stripes]], self._n)

    def escape(self, moves: Moves, escapes: int, swaps: int, rng: np.random.Generator) -> None:
        """Shakes and climbs again, keeping the better each time."""
        count, m = self.stripes.shape
        best = self.stripes.copy(), self.values.copy(), moves.snapshot()
        for _ in range(escapes):
            changed = np.zeros(count, bool)
            for _ in range(swaps):
                pair, places = rng.choice(count, 2, replace=False), rng.integers(m, size=2)
                self.stripes[pair, places] = self.stripes[pair[::-1], places[::-1]]
                changed[pair] = True
            shaken = np.flatnonzero(changed)
            self.run(moves, changed)
            self.update(shaken)
            if self.values.sum() > best[1].sum():
                best = self.stripes.copy(), self.values.copy(), moves.snapshot()
            else:
                self.stripes[:], self.values[:] = best[:2]
                moves.restore(best[2])

    def sweep(self, splits: WindowSplits, rng: np.random.Generator, budget: float) -> None:
        """Splits all pairs of stripes anew, a round of disjoint pairs at a time."""
        count, m = self.stripes.shape
        rows = self._entries.shape[1]
        # A tournament: one stays seated, the others move round the table; an odd one rests.
        table = rng.permutation(count + count % 2)
        changed_at = np.zeros(len(table), np.int64)
        compared_at = np.full((len(table), len(table)), -1)
        clock, quiet = 0, 0
        while quiet < len(table) - 1 and budget > 0:
            half = len(table) // 2
            first, second = table[:half], table[: half - 1 : -1]
            table = np.concatenate([table[:1], table[-1:], table[1:-1]])
            clock, quiet = clock + 1, quiet + 1
            stale = compared_at[first, second] < np.maximum(changed_at[first], changed_at[second])
            pairs = np.stack([first, second], axis=1)[stale & (np.maximum(first, second) < count)]
            pairs = pairs[: math.ceil(budget / rows)]
            if not len(pairs):
                continue
            budget -= len(pairs) * rows
            gains, columns = splits.evaluate(self.stripes[pairs].reshape(len(pairs), -1))
            compared_at[pairs[:, 0], pairs[:, 1]] = compared_at[pairs[:, 1], pairs[:, 0]] = clock
            better = pairs[gains > 0]
            if len(better):
                self.stripes[better] = columns[gains > 0].reshape(*better.shape, m)
                # This round's split is the best of its pair: only others look again.
                changed_at[better] = clock
                quiet = 0


def _magnitudes(matrix: Any) -> tuple[Float[np.ndarray, "rows columns"], int]:
    """Returns |matrix| in float64, its largest entry in [1/2, 1), and the power of two taken out.

    A power of two changes no bit, and float32 copies neither overflow nor vanish.
    """
    entries = np.asarray(matrix)
    if entries.ndim != 2:
        raise ValueError(
            f"search_permutation: a (rows, columns) matrix is needed, not shape {entries.shape}; "
            "a kernel's view with its input axis last would work"
        )
    entries = np.abs(entries.astype(np.float64))
    wrong = int(entries.size - np.isfinite(entries).sum())
    if wrong:
        raise ValueError(
            f"search_permutation: {wrong} of {entries.size} entries of the {entries.shape} matrix "
            "are NaN or infinite: they have no magnitude to retain; zero them first"
        )
    scale = int(np.frexp(entries.max(initial=0))[1])
    return np.ldexp(entries, -scale), scale


def _check(entries: np.ndarray, n: int, m: int, escapes: int, method: str) -> None:
    columns = entries.shape[1]
    if not 0 < n < m:
        raise ValueError(f"search_permutation: {n}:{m} is no pattern; 0 < n < m must hold")
    if columns % m or not columns:
        below = columns // m * m
        near = f"{below} or {below + m}" if below else f"{m}"
        raise ValueError(
            f"search_permutation: {n}:{m} groups {m} columns, which does not divide the "
            f"{columns} of the {entries.shape} matrix; {near} columns would work (zero "
            "columns may pad it)"
        )
    if escapes < 0:
        raise ValueError(f"search_permutation: escapes={escapes} must not be negative")
    if method not in get_args(Method):
        raise ValueError(f"search_permutation: method={method!r} is none of {get_args(Method)}")


def _choose(method: Method, window: int | None, shape: tuple[int, ...], m: int) -> tuple[str, int]:
    """Returns the method and the window of the search."""
    rows, columns = shape
    stripes = columns // m
    if window is None and method == "auto" and not enumerable(2 * m, m):
        method = "swap"
    window = 2 * m if window is None else window
    if window % m or window < 2 * m:
        raise ValueError(
            f"search_permutation: window={window} must be a multiple of m={m}, at least {2 * m}"
        )
    if method == "auto":
        size = window // m
        cost = math.comb(stripes, size) * rows * math.comb(window, m) / math.comb(2 * m, m)
        method = "exhaustive" if cost <= EXHAUSTIVE_PASS else "progressive"
    if method != "exhaustive":
        window = 2 * m
    return method, min(window, columns)


def _tidy(stripes: Int[np.ndarray, "S m"]) -> Int[np.ndarray, "columns"]:
    """Columns rising within a stripe, stripes by their first: as near the identity as can be."""
    stripes = np.sort(stripes, axis=1)
    return stripes[np.argsort(stripes[:, 0])].reshape(-1)
