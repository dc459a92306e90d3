"""How many cycles EIE takes: processing elements, their queues, and who waits for whom.

One activation a cycle is broadcast to the queues of all elements, if every queue has room;
an element works one cycle on each entry of a column. With n[j, k] the work of element k on
the j-th active input and queues of depth F,

    B[j] = max(B[j-1] + 1, max_k s[j-F, k])     broadcast; B[0] = 0
    s[j, k] = max(f[j-1, k], B[j] + 1)          start
    f[j, k] = s[j, k] + n[j, k]                 end

and T = max_k f[last, k]. Bounds: max_k sum_j n <= T <= sum_j max_k n + J + 1.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

CLOCK_HZ = 800e6


class Simulation(NamedTuple):
    """What a simulation counted.

    Attributes:
      cycles: T.
      work: entries read by all elements together.
      pes: the number of elements.
    """

    cycles: int
    work: int
    pes: int

    @property
    def efficiency(self) -> float:
        """Load balance: the fraction of all elements' cycles that did work; NaN of no cycles."""
        slots = self.cycles * self.pes
        return self.work / slots if slots else float("nan")

    @property
    def microseconds(self) -> float:
        """Time at the paper's 800 MHz."""
        return self.cycles / CLOCK_HZ * 1e6


def simulate(
    work: Int[np.ndarray, "active elements"], depth: int = 8, *, least: int = 0
) -> Simulation:
    """Counts the cycles of one product of a matrix with a vector.

    Args:
      work: entries that each element reads for each active input, in the inputs' order:
        `EIEMatrix.work`, or `column_work` of a mask.
      depth: activations that a queue holds.
      least: cycles that an element spends on an input without entries. 0 lets it pass free;
        1 reads a pointer each cycle, which is the more honest machine.

    Raises:
      TypeError: work that is no integers.
      ValueError: another shape, negative work, a depth below 1.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> alternating = np.array([[8, 0], [0, 8]] * 6)
      >>> [eie.simulate(alternating, depth).cycles for depth in (1, 2)]
      [55, 50]
    """
    work = np.asarray(work)
    if work.ndim != 2:
        raise ValueError(f"work has shape {work.shape}, needs (active inputs, elements).")
    if work.dtype.kind not in "iu" and work.size:
        raise TypeError(f"work has dtype {work.dtype}, needs whole cycles.")
    if work.size and work.min() < 0:
        raise ValueError(f"work holds {work.min()}; an element cannot read less than nothing.")
    if depth < 1:
        raise ValueError(f"depth={depth}: a queue must hold at least one activation.")
    inputs, pes = work.shape
    if not work.size:
        return Simulation(0, 0, pes)
    spent = np.maximum(work, least).astype(np.int64)
    begun = np.zeros(inputs, np.int64)  # by input, when its last element began
    free = np.zeros(pes, np.int64)
    broadcast = -1
    for j in range(inputs):
        broadcast = max(broadcast + 1, begun[j - depth] if j >= depth else 0)
        start = np.maximum(free, broadcast + 1)
        begun[j] = start.max()
        free = start + spent[j]
    return Simulation(int(free.max()), int(work.sum()), pes)
