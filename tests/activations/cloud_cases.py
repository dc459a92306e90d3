"""Facts about sparse convolution, and the whole numbers that they were made with."""

import json
import math
import pathlib

import numpy as np

from jaxsparse import activations as act

FACTS = json.loads((pathlib.Path(__file__).parents[1] / "cases/sparse_conv.json").read_text())
CASES = FACTS["sparse_conv"]
EDGE = FACTS["edge"]
_WORD = (1 << 64) - 1


def _mixed(word):
    """SplitMix64's output function: the facts were drawn with it."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def _draw(seed, index):
    return _mixed(((seed << 32) ^ index) & _WORD)


def features(seed, rows, channels):
    drawn = [_draw(seed, i) % 9 - 4 for i in range(rows * channels)]
    return np.array(drawn, np.float32).reshape(rows, channels)


def weights(seed, shape):
    drawn = [_draw(seed + 1000, i) % 7 - 3 for i in range(math.prod(shape))]
    return np.array(drawn, np.float32).reshape(shape)


def cloud(seed, n, lower, upper, batch=1):
    axes, rows, i = len(lower), {}, 0
    while len(rows) < n:
        first, *rest = (_draw(seed, i * (axes + 1) + j) for j in range(axes + 1))
        ends = zip(rest, lower, upper, strict=True)
        rows[(first % batch, *(low + x % (high - low + 1) for x, low, high in ends))] = None
        i += 1
    return np.array(list(rows))


def coordinates(case):
    given = cloud(*case["cloud"]) if "cloud" in case else case["coords"]
    return np.array(given, np.int64).reshape(-1, len(case["kernel"]) + 1)


def bounds(case):
    """One box for all clouds that fit it: boxes are static, and each compiles anew."""
    axes, rows = len(case["kernel"]), coordinates(case)[:, 1:]
    if rows.min() >= -16 and rows.max() < 32:
        return act.Bounds(3, (-16,) * axes, (32,) * axes)
    lower, upper = rows.min(0), rows.max(0) + 1
    return act.Bounds(case["batch"], tuple(lower.tolist()), tuple(upper.tolist()))


def rows_for(n):
    """Few different capacities, for the same reason."""
    return next(size for size in (64, 192, 448, 1_600, 3_200) if n < size)


def geometry(case):
    return {name: case[name] for name in ("stride", "dilation", "padding")}


def kernel_map(case, x):
    """The map that a case of `conv` or `transposed` describes."""
    options = geometry(case)
    if case["sites"] == "given":
        target = act.sites(np.array(case["out_coords"]), x.bounds, capacity=64)
        return act.transposed_map(x, case["kernel"], outputs=target, **options)
    if case["sites"] != "submanifold":
        options["capacity"] = rows_for(case["n_out"])
    if case["op"] == "transposed":
        return act.transposed_map(x, case["kernel"], out_shape=case["out_shape"], **options)
    if case["sites"] == "receptive":
        options["out_shape"] = case["out_shape"]
    return act.kernel_map(x, case["kernel"], outputs=case["sites"], **options)


def moments(table):
    """The three sums by which large results are known."""
    table = np.asarray(table, np.int64)
    row, column = np.indices(table.shape)
    weighted = int(np.sum(table * ((31 * row + 7 * column) % 97)))
    return {"sum": int(table.sum()), "sum_sq": int(np.sum(table**2)), "weighted": weighted}
