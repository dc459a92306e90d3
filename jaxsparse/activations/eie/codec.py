"""EIE's storage of a sparse matrix: 4-bit codes, each after a 4-bit run of zeros.

Row i belongs to processing element i mod N, where it is local row i // N. An element
stores its part column by column, an entry a byte: the number of zeros skipped, then the
code. A run longer than 15 is broken by fillers, entries (0, 15) that take 16 places. Zeros
after the last nonzero are not stored.

Han et al., 2016, "EIE: Efficient Inference Engine on Compressed Deep Neural Network",
https://arxiv.org/abs/1602.01528.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

Runs = Literal["reset", "continue"]
CODES = 16
LONGEST_RUN = 15


class Stream(NamedTuple):
    """The entries of one processing element.

    Attributes:
      codes: of every entry, 0 for a filler.
      runs: zeros skipped before it.
      pointers: where each column begins, and where the last one ends.
    """

    codes: UInt8[np.ndarray, " entries"]
    runs: UInt8[np.ndarray, " entries"]
    pointers: Int[np.ndarray, " columns+1"]


@dataclasses.dataclass(frozen=True, eq=False)
class EIEMatrix:
    """A matrix of codes as the processing elements store it; made by `encode`.

    Attributes:
      shape: (rows, columns); a column belongs to one input.
      runs: "reset" starts every column anew, which is what lets inactive ones be skipped;
        "continue" counts zeros across columns.
      streams: one for each processing element.
    """

    shape: tuple[int, int]
    runs: Runs
    streams: tuple[Stream, ...]

    @property
    def entries(self) -> int:
        """Stored entries, fillers too."""
        return sum(len(s.codes) for s in self.streams)

    @property
    def nonzeros(self) -> int:
        """Entries that are codes."""
        return sum(int(np.count_nonzero(s.codes)) for s in self.streams)

    @property
    def padding(self) -> int:
        """Entries that are fillers."""
        return self.entries - self.nonzeros

    def work(self, active: np.ndarray) -> Int[np.ndarray, "active elements"]:
        """Entries that each element reads for each active input, as `simulate` takes them.

        Args:
          active: indices of inputs, or a vector with one truth value or activation an input.

        Raises:
          ValueError: `runs` is "continue", or the inputs are not the columns.
        """
        if self.runs != "reset":
            raise ValueError(
                "a column whose runs continue from the one before cannot be skipped; "
                'encode with runs="reset".'
            )
        columns = _active_columns(active, self.shape[1])
        counts = [np.diff(s.pointers)[columns] for s in self.streams]
        return np.stack(counts, axis=1) if counts else np.zeros((len(columns), 0), int)


def _active_columns(active: np.ndarray, columns: int) -> np.ndarray:
    active = np.asarray(active)
    if active.ndim != 1:
        raise ValueError(f"active has shape {active.shape}, needs one axis.")
    if active.dtype.kind in "iu":
        if active.size and not (active.min() >= 0 and active.max() < columns):
            raise ValueError(
                f"active inputs {active.min()} to {active.max()} are not all in [0, {columns}); "
                "give activations as booleans or floats, indices as integers."
            )
        return active
    if len(active) != columns:
        raise ValueError(f"{len(active)} activations for a matrix of {columns} columns.")
    return np.flatnonzero(active)


def encode(codes: Int[np.ndarray, "rows columns"], pes: int = 1, runs: Runs = "reset") -> EIEMatrix:
    """Stores a matrix of codes.

    Args:
      codes: integers in [0, 15], 0 for zero; `quantize` makes them of weights.
      pes: how many processing elements share the rows.
      runs: "reset" as in the paper, or "continue"; see `EIEMatrix`.

    Raises:
      TypeError: codes that are no integers.
      ValueError: another shape, a code that has no 4 bits, `pes` below 1, unknown `runs`.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> column = np.zeros((23, 1), int)
      >>> column[[2, 3, 22], 0] = 1, 2, 3
      >>> stream = eie.encode(column).streams[0]
      >>> stream.codes.tolist(), stream.runs.tolist()
      ([1, 2, 0, 3], [2, 0, 15, 2])
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise TypeError(
            f"codes have dtype {codes.dtype}, need integers; quantize() makes them of weights."
        )
    if codes.ndim != 2:
        raise ValueError(f"codes have shape {codes.shape}, need (rows, columns).")
    if codes.size and not (codes.min() >= 0 and codes.max() < CODES):
        raise ValueError(
            f"codes from {codes.min()} to {codes.max()} do not fit 4 bits, need 0 to {CODES - 1}; "
            "quantize() makes such codes of weights."
        )
    if pes < 1:
        raise ValueError(f"pes={pes} must be at least 1.")
    if runs not in ("reset", "continue"):
        raise ValueError(f'runs={runs!r} must be "reset" or "continue".')
    streams = tuple(_encode_part(codes[pe::pes], runs) for pe in range(pes))
    return EIEMatrix((codes.shape[0], codes.shape[1]), runs, streams)


def _encode_part(part: np.ndarray, runs: Runs) -> Stream:
    rows, columns = part.shape
    column, row = np.nonzero(part.T)
    found = part[row, column].astype(np.uint8)
    place = row + column * rows
    before = np.empty_like(place)
    before[:1], before[1:] = -1, place[:-1]
    if runs == "reset":
        before = np.maximum(before, column * rows - 1)
    zeros = place - before - 1
    fillers = zeros // CODES
    ends = np.cumsum(fillers + 1)
    entries = int(ends[-1]) if len(ends) else 0
    stored, skipped = np.zeros(entries, np.uint8), np.full(entries, LONGEST_RUN, np.uint8)
    stored[ends - 1] = found
    skipped[ends - 1] = zeros % CODES
    counts = np.zeros(columns, np.int64)
    np.add.at(counts, column, fillers + 1)
    return Stream(stored, skipped, np.concatenate([[0], np.cumsum(counts)]))


def decode(matrix: EIEMatrix) -> UInt8[np.ndarray, "rows columns"]:
    """The codes that `encode` stored.

    Raises:
      ValueError: a stream that reaches beyond its last row.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> eie.decode(eie.encode(np.eye(3, dtype=int), pes=2))
      array([[1, 0, 0],
             [0, 1, 0],
             [0, 0, 1]], dtype=uint8)
    """
    codes = np.zeros(matrix.shape, np.uint8)
    pes = len(matrix.streams)
    for pe, stream in enumerate(matrix.streams):
        codes[pe::pes] = _decode_part(stream, codes[pe::pes].shape, matrix.runs, pe)
    return codes


def _decode_part(stream: Stream, shape: tuple[int, int], runs: Runs, pe: int) -> np.ndarray:
    rows, columns = shape
    steps = np.cumsum(stream.runs.astype(np.int64) + 1)
    column = np.repeat(np.arange(columns), np.diff(stream.pointers))
    limit = rows * columns
    place = steps - 1
    if runs == "reset":
        # What earlier columns advanced is taken off.
        passed = np.concatenate([[0], steps])[stream.pointers[:-1]]
        inside = place - passed[column]
        if inside.size and inside.max() >= rows:
            raise ValueError(f"an entry of element {pe} stands at local row {inside.max()}/{rows}.")
        place = inside + column * rows
    if place.size and place.max() >= limit:
        raise ValueError(f"an entry of element {pe} stands at place {place.max()}/{limit}.")
    part = np.zeros(limit, np.uint8)
    part[place] = stream.codes
    return part.reshape(columns, rows).T
