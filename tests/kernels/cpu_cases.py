"""Weights in every storage of the native kernels, made with numpy alone."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxsparse.kernels import cpu
from jaxsparse.kernels.layouts import (
    BitmapLayout,
    BlockLayout,
    CSCLayout,
    CSRLayout,
    Layout,
    NMLayout,
)

DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "int8": np.int8}
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2, "int8": 1e-5}


@dataclasses.dataclass
class Case:
    """A packed weight, the same weight dense, and how to call the kernels."""

    layout: Layout
    dense: np.ndarray  # (K, N) float64: what the stored values say, scales and all
    values: np.ndarray
    index: tuple[np.ndarray, ...]
    scales: np.ndarray | None

    def dot(self, x):
        options = {"layout": self.layout, "out_dtype": jnp.float32}
        if self.scales is None:
            return cpu.product(x, self.values, *self.index, transpose=False, **options)
        return cpu.scaled_product(x, self.values, self.scales, *self.index, **options)

    def dot_transposed(self, dy):
        options = {"layout": self.layout, "out_dtype": jnp.float32, "transpose": True}
        return cpu.product(self._scaled(dy), self.values, *self.index, **options)

    def sampled(self, x, dy):
        options = {"layout": self.layout, "out_dtype": jnp.float32}
        return cpu.sampled(x, self._scaled(dy), *self.index, **options)

    def _scaled(self, dy):
        return dy if self.scales is None else dy * self.scales

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)

    def pick(self, full):
        """The entries of a (K, N) matrix where this weight stores values; 0 beyond the edge."""
        raise NotImplementedError


def stored(rng, shape, dtype, columns):
    """Values of a dtype, and the scale of every column for int8."""
    if dtype == "int8":
        scales = rng.uniform(0.01, 0.1, columns).astype(np.float32)
        return rng.integers(-127, 128, shape).astype(np.int8), scales
    return rng.standard_normal(shape).astype(DTYPES[dtype]), None


class BlockCase(Case):
    def pick(self, full):
        indptr, rows = self.index
        _, bk, bn = self.values.shape
        grid = -(-full.shape[0] // bk) * bk, (len(indptr) - 1) * bn
        padded = np.zeros(grid)
        padded[: full.shape[0], : full.shape[1]] = full
        out = np.zeros(self.values.shape)
        for j in range(len(indptr) - 1):
            for e in range(indptr[j], indptr[j + 1]):
                i = rows[e]
                out[e] = padded[i * bk : (i + 1) * bk, j * bn : (j + 1) * bn]
        return out


def block_case(rng, shape, block, density, dtype="f32", spare=0):
    """Blocks kept at random; `spare` entries beyond indptr's end."""
    (k, n), (bk, bn) = shape, block
    down, across = -(-k // bk), -(-n // bn)
    columns, rows = np.nonzero(rng.random((across, down)) < density)
    counts = np.bincount(columns, minlength=across)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values, scales = stored(rng, (len(rows) + spare, bk, bn), dtype, n)
    values[len(rows) :] = 0
    indices = np.concatenate([rows, np.zeros(spare, int)]).astype(np.int32)
    dense = np.zeros((down * bk, across * bn))
    for e, (i, j) in enumerate(zip(rows, columns, strict=True)):
        dense[i * bk : (i + 1) * bk, j * bn : (j + 1) * bn] = values[e].astype(np.float64)
    dense = dense[:k, :n] * (1 if scales is None else scales)
    layout = BlockLayout(shape, block, len(values))
    return BlockCase(layout, dense, values, (indptr, indices), scales)


class CscCase(Case):
    def pick(self, full):
        indptr, rows = self.index
        columns = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        out = np.zeros(self.values.shape)
        out[: len(columns)] = full[rows[: len(columns)], columns]
        return out


def csc_case(rng, shape, density, dtype="f32", index_dtype=np.uint16, spare=0):
    k, n = shape
    columns, rows = np.nonzero(rng.random((n, k)) < density)
    counts = np.bincount(columns, minlength=n)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values, scales = stored(rng, (len(rows) + spare,), dtype, n)
    values[len(rows) :] = 0
    dense = np.zeros((k, n))
    dense[rows, columns] = values[: len(rows)].astype(np.float64)
    dense *= 1 if scales is None else scales
    indices = np.concatenate([rows, np.zeros(spare, int)]).astype(index_dtype)
    return CscCase(CSCLayout(shape, len(values)), dense, values, (indptr, indices), scales)


class CsrCase(CscCase):
    def pick(self, full):
        return super().pick(full.T)


def csr_case(rng, shape, density, dtype="f32", index_dtype=np.uint16, spare=0):
    turned = csc_case(rng, shape[::-1], density, dtype, index_dtype, spare)
    dense, scales = turned.dense.T, turned.scales
    if scales is not None:  # of outputs, where the ones drawn are of inputs
        dense, scales = dense / scales[:, None], rng.uniform(0.01, 0.1, shape[1])
        scales = scales.astype(np.float32)
        dense = dense * scales
    layout = CSRLayout(shape, len(turned.values))
    return CsrCase(layout, dense, turned.values, turned.index, scales)


class BitmapCase(Case):
    def pick(self, full):
        rows, columns = bitmap_places(self.index[1])
        out = np.zeros(self.values.shape)
        out[: len(rows)] = full[rows, columns]
        return out


def bitmap_places(bits):
    """Rows and columns of the bits set, in the order of the values."""
    strips = np.unpackbits(bits.view(np.uint8), axis=2, bitorder="little")
    strip, columns, rows = np.nonzero(strips)
    return strip * strips.shape[2] + rows, columns


def bitmap_case(rng, shape, density, dtype="f32", spare=0):
    layout = BitmapLayout(shape, 0)
    kept = np.zeros((layout.strips * layout.strip, shape[1]), bool)
    kept[: shape[0]] = rng.random(shape) < density
    strips = kept.reshape(layout.strips, layout.strip, -1).swapaxes(1, 2)
    bits = np.ascontiguousarray(np.packbits(strips, axis=2, bitorder="little")).view(np.uint32)
    chunks = [c.sum() for s in strips for c in np.split(s, range(64, shape[1], 64))]
    starts = np.concatenate([[0], np.cumsum(chunks)]).astype(np.int32)
    values, scales = stored(rng, (starts[-1] + spare,), dtype, shape[1])
    values[starts[-1] :] = 0
    dense = np.zeros(shape)
    dense[bitmap_places(bits)] = values[: starts[-1]].astype(np.float64)
    dense *= 1 if scales is None else scales
    return BitmapCase(BitmapLayout(shape, len(values)), dense, values, (starts, bits), scales)


class NmCase(Case):
    def pick(self, full):
        n, m = self.layout.n, self.layout.m
        rows = self.values.shape[0]
        padded = np.zeros((rows // n * m, full.shape[1]))
        padded[: full.shape[0]] = full
        at = positions_of(self.index[0], self.layout) + m * (np.arange(rows) // n)[:, None]
        return np.take_along_axis(padded, at, 0)


def positions_of(words, layout):
    bits, r = layout.bits, np.arange(layout.values_shape[0])
    shifts = (bits * (r % layout.per_word))[:, None]
    return ((words[r // layout.per_word] >> shifts) & (2**bits - 1)).astype(int)


def pack_positions(at, layout):
    words = np.zeros(layout.index_shapes[0], np.uint32)
    for r, row in enumerate(at):
        shift = layout.bits * (r % layout.per_word)
        words[r // layout.per_word] |= row.astype(np.uint32) << np.uint32(shift)
    return words


def nm_case(rng, shape, n, m, dtype="f32"):
    k, columns = shape
    groups = -(-k // m)
    at = np.argsort(rng.random((groups, m, columns)), axis=1)[:, :n].reshape(groups * n, columns)
    values, scales = stored(rng, at.shape, dtype, columns)
    dense = np.zeros((groups * m, columns))
    rows = at + m * (np.arange(groups * n) // n)[:, None]
    np.put_along_axis(dense, rows, values.astype(np.float64), 0)
    dense = dense[:k] * (1 if scales is None else scales)
    layout = NMLayout(shape, n, m)
    return NmCase(layout, dense, values, (pack_positions(at, layout),), scales)


def relative_error(got, expected, size=0.0):
    """max |got - expected| over max |expected|, or over max size where that is more."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    if got.size == 0:
        return 0.0
    return np.abs(got - expected).max() / max(np.abs(expected).max(), np.max(size), 1e-30)


def check_all(case, rng, batch, tolerance):
    """The three products against float64."""
    k, n = case.dense.shape
    x = rng.standard_normal((batch, k)).astype(np.float32)
    dy = rng.standard_normal((batch, n)).astype(np.float32)
    x64, dy64 = x.astype(np.float64), dy.astype(np.float64)
    assert relative_error(case.dot(x), x64 @ case.dense) < tolerance
    assert relative_error(case.dot_transposed(dy), dy64 @ case.dense.T) < tolerance
    scales = 1 if case.scales is None else case.scales
    expected = case.pick((x64.T @ dy64) * scales)
    # Few entries may all be sums of terms that cancel: what is summed is the measure there.
    size = case.pick((abs(x64).T @ abs(dy64)) * scales) / max(1, batch) ** 0.5
    assert relative_error(case.sampled(x, dy), expected, size) < tolerance
