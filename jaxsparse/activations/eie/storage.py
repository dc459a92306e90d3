"""What a matrix takes in EIE's storage, and how much of it is padding."""

from typing import NamedTuple

from jaxsparse.activations.eie.codec import CODES, EIEMatrix

ENTRY_BITS = 8
POINTER_BITS = 16
VALUE_BITS = 16


class StorageBits(NamedTuple):
    """Bits by what they are spent on.

    Attributes:
      nonzeros: 8 an entry that is a code.
      padding: 8 a filler.
      pointers: 16 a column and element, one more an element.
      codebook: 16 a code.
    """

    nonzeros: int
    padding: int
    pointers: int
    codebook: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def storage_bits(matrix: EIEMatrix) -> StorageBits:
    """Counts the bits of an encoded matrix.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> eie.storage_bits(eie.encode(np.eye(8, dtype=int), pes=4))
      StorageBits(nonzeros=64, padding=0, pointers=576, codebook=256)
    """
    pointers = len(matrix.streams) * (matrix.shape[1] + 1)
    return StorageBits(
        ENTRY_BITS * matrix.nonzeros,
        ENTRY_BITS * matrix.padding,
        POINTER_BITS * pointers,
        VALUE_BITS * CODES,
    )


def expected_padding(density: float, rows: int | None = None) -> float:
    """Expected fillers for each nonzero where entries are nonzero independently.

    With p the density, q = 1 - p and runs that never end, q^16 / (1 - q^16). With runs
    that begin anew in columns of L rows, a nonzero at row i has r zeros before it with
    probability q^r p for r < i, and q^i for r = i, the start of the column, so it is

        sum_i (sum_{r<i} p q^r floor(r/16) + q^i floor(i/16)) / L

    Args:
      density: fraction kept, in (0, 1].
      rows: of a column in one processing element; None for an endless stream.

    Raises:
      ValueError: a density outside (0, 1], a negative number of rows.

    Example:
      >>> from jaxsparse.activations import eie
      >>> round(eie.expected_padding(0.09), 3), round(eie.expected_padding(0.09, rows=64), 3)
      (0.284, 0.193)
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must lie in (0, 1].")
    if rows is not None and rows < 0:
        raise ValueError(f"rows={rows} must not be negative.")
    q = 1 - density
    if rows is None:
        return q**CODES / (1 - q**CODES)
    inside = total = 0.0
    for i in range(rows):
        total += inside + q**i * (i // CODES)
        inside += density * q**i * (i // CODES)
    return total / rows if rows else 0.0
