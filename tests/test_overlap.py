"""The overlap of two masks, against sets."""

import functools
import operator

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js


def test_counts_are_those_of_sets():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 7)) < 0.4
    left, right = (set(np.flatnonzero(mask)) for mask in (a, b))
    found = js.mask_overlap({"m": {"w": jnp.asarray(a), "b": None}}, {"m/w": b})["m/w"]
    assert (found.both, found.size) == (len(left & right), 42)
    assert (found.only_a, found.only_b) == (len(left - right), len(right - left))
    assert found.iou == len(left & right) / len(left | right)
    assert found.hamming == len(left ^ right) == (a != b).sum()


def test_extremes_and_sums():
    none, all_ = np.zeros(4, bool), np.ones(4, bool)
    found = js.mask_overlap({"a": none, "b": all_, "c": none}, {"a": none, "b": none, "c": none})
    assert [found[path].iou for path in "abc"] == [1.0, 0.0, 1.0]
    together = functools.reduce(operator.add, found.values())
    assert together == js.MaskOverlap(0, 4, 0, 12)


def test_what_cannot_be_compared_is_named():
    mask = np.ones(4, bool)
    for pair in (
        ({"up/w": mask, "v": mask}, {"v": mask}),
        ({"v": mask}, {"up/w": mask, "v": mask}),
    ):
        with pytest.raises(KeyError, match="'up/w' has a mask in one of the two alone"):
            js.mask_overlap(*pair)
    with pytest.raises(ValueError, match=r"masks of 'v' have the shapes \(4,\) and \(2,\)"):
        js.mask_overlap({"v": mask}, {"v": mask[:2]})
