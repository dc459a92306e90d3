"""How a 2:4 product by few rows is divided among multiprocessors and steps."""

import math
from typing import NamedTuple

from jaxsparse.kernels.devices import SHARED_MEMORY
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.kernels.mosaic_gpu.configs import RESERVED

GROUPS = 8  # of 4 inputs in a word
PLACES = 4  # in a group
KEPT = 2  # of them
SIDE = 64  # rows of a step, and outputs of a warpgroup


class Cut(NamedTuple):
    """How a product is divided.

    Attributes:
      words: of a step, for each of SIDE // words groups.
      warpgroups: that multiply, each SIDE outputs.
      splits: parts of the inputs that are summed apart.
      stages: steps that may be loaded ahead.
    """

    words: int
    warpgroups: int
    splits: int
    stages: int

    @property
    def groups(self) -> int:
        """Of each word in one step."""
        return SIDE // self.words

    @property
    def phases(self) -> int:
        """Steps until the words are done with."""
        return GROUPS // self.groups


def cut(layout: NMLayout, rows: int, in_bytes: int, sms: int) -> Cut:
    """As many words at a time as divide K; then what keeps most multiprocessors busy."""
    words = math.gcd(layout.shape[0] // (GROUPS * PLACES), SIDE)
    depth = layout.shape[0] // (GROUPS * PLACES * words)
    # Widening int8 beside the sums of many rows takes more registers than two could have.
    most = 1 if layout.shape[1] % (2 * SIDE) or (in_bytes == 1 and rows > 32) else 2

    def cost(choice):
        warpgroups, splits = choice
        tiles = layout.shape[1] // (SIDE * warpgroups) * splits
        # Reading counts by outputs, and every further part writes and adds up once more.
        return -(-tiles // sms) * -(-depth // splits) * warpgroups * (1 + splits / 32), -warpgroups

    choices = [(w, s) for w in range(1, most + 1) for s in range(1, min(depth, 16) + 1)]
    warpgroups, splits = min(choices, key=cost)
    splits = -(-depth // -(-depth // splits))  # none is empty
    stage = SIDE * 2 * (KEPT * SIDE * warpgroups + PLACES * rows)
    held = warpgroups * SIDE * SIDE * (4 + 2 * 2)
    return Cut(words, warpgroups, splits, min(4, (SHARED_MEMORY - RESERVED - held) // stage))
