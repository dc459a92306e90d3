"""How much two sets of masks have in common."""

import dataclasses

import numpy as np

from jaxsparse.trees import Tree, leaves_by_path, near_misses


@dataclasses.dataclass(frozen=True)
class MaskOverlap:
    """What two masks of one leaf keep.

    Attributes:
      both, only_a, only_b: entries that both keep, and that one alone does.
      size: entries in all.
    """

    both: int
    only_a: int
    only_b: int
    size: int

    @property
    def iou(self) -> float:
        """Intersection over union of what is kept: both / (both + only_a + only_b).

        1 for equal masks, also where both keep nothing; 0 where nothing is shared.
        """
        union = self.both + self.only_a + self.only_b
        return self.both / union if union else 1.0

    @property
    def hamming(self) -> int:
        """Entries in which the masks differ."""
        return self.only_a + self.only_b

    def __add__(self, other: "MaskOverlap") -> "MaskOverlap":
        """The overlap of two leaves together."""
        mine, its = dataclasses.astuple(self), dataclasses.astuple(other)
        return MaskOverlap(*map(sum, zip(mine, its, strict=True)))


def mask_overlap(a: Tree, b: Tree) -> dict[str, MaskOverlap]:
    """Compares masks leaf by leaf: those of two seeds, two scores or two steps.

    Args:
      a, b: masks, `{"slash/path": mask}` or trees of them, of the same leaves.

    Returns:
      `{"slash/path": MaskOverlap}`. They add up: `functools.reduce(operator.add,
      found.values())` is that of the whole model.

    Raises:
      KeyError: if a leaf has a mask in one of them alone.
      ValueError: if two masks differ in shape.

    >>> found = mask_overlap({"w": np.array([True, True, False])},
    ...                      {"w": np.array([True, False, False])})
    >>> found["w"], found["w"].iou, found["w"].hamming
    (MaskOverlap(both=1, only_a=1, only_b=0, size=3), 0.5, 1)
    """
    left, right = leaves_by_path(a), leaves_by_path(b)
    for path in sorted(left.keys() ^ right.keys()):
        misses = near_misses(path, right if path in left else left)
        raise KeyError(f"{path!r} has a mask in one of the two alone; {misses}")
    found = {}
    for path in left:
        one, two = np.asarray(left[path], bool), np.asarray(right[path], bool)
        if one.shape != two.shape:
            raise ValueError(f"the masks of {path!r} have the shapes {one.shape} and {two.shape}")
        both = int(np.sum(one & two))
        found[path] = MaskOverlap(both, int(one.sum()) - both, int(two.sum()) - both, one.size)
    return found
