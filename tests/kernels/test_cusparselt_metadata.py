"""Metadata of sparse tensor cores, against loops written from its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.kernels.cusparselt import metadata
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.packed.nm_sparse import group_positions

# Position pairs and their bits, from the table in the PTX manual.
TABLE = {
    (0, 1): 0b0100,
    (0, 2): 0b1000,
    (0, 3): 0b1100,
    (1, 2): 0b1001,
    (1, 3): 0b1101,
    (2, 3): 0b1110,
}


@pytest.mark.parametrize("mask", range(16))
def test_every_mask_has_its_code_or_is_refused(mask):
    kept = tuple(i for i in range(4) if mask >> i & 1)
    if len(kept) > 2:
        with pytest.raises(ValueError, match=r"2:4 has room for two"):
            metadata.code(mask)
        assert metadata.CODES[mask] not in TABLE.values()
        return
    # As `pack` fills up groups that keep fewer.
    column = np.isin(np.arange(4), kept)[:, None]
    expected = tuple(group_positions(column, 2, 4)[:, 0])
    assert set(kept) <= set(expected)
    assert metadata.code(mask) == metadata.CODES[mask] == TABLE[expected]


def weight(k, n, dtype, kept=2, seed=0):
    """A random 2:4 (or 1:4) weight, its positions, layout and dense form."""
    rng = np.random.default_rng(seed)
    layout = NMLayout((k, n), kept, 4)
    places = np.sort(rng.permuted(np.tile(np.arange(4), (k // 4, n, 1)), axis=2)[..., :kept], 2)
    places = places.swapaxes(1, 2).reshape(layout.values_shape)
    words = jnp.asarray(layout.encode(places))
    values = jnp.asarray(rng.integers(-9, 9, layout.values_shape), dtype)
    return values, words, layout


def by_hand(values, words, layout):
    """CUTLASS's operand by its definition, one entry of Wᵀ after another."""
    bits = 16 if values.dtype.itemsize == 2 else 32
    group, interweave = (32, 4) if bits == 16 else (16, 2)
    dense = np.asarray(layout.todense(values, words))
    places = np.asarray(layout.positions(words))
    rows, cols = layout.shape[1], layout.shape[0] // bits
    operand = np.zeros((rows, layout.shape[0] // 2), dense.dtype)
    found = np.zeros(rows * cols, np.dtype(f"uint{bits}"))
    for r, c in itertools.product(range(rows), range(cols)):
        word = 0
        for slot in range(bits // 4):
            g = c * bits // 4 + slot
            p, q = places[2 * g : 2 * g + 2, r]
            operand[r, 2 * g], operand[r, 2 * g + 1] = dense[4 * g + p, r], dense[4 * g + q, r]
            word |= TABLE[p, q] << 4 * slot
        to_row = r // group * group + r % 8 * interweave + r % group // 8
        to_col = c
        if to_row % 2 == 0 and to_col % 2 == 1:
            to_row, to_col = to_row + 1, to_col - 1
        elif to_row % 2 == 1 and to_col % 2 == 0:
            to_row, to_col = to_row - 1, to_col + 1
        found[to_col // 2 * 2 * rows + 2 * to_row + to_col % 2] = word
    return operand, found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_the_operand_is_what_the_definition_says(dtype):
    values, words, layout = weight(128, 64, dtype)
    found = jax.jit(metadata.to_cutlass, static_argnames="layout")(values, words, layout=layout)
    operand, memory = by_hand(values, words, layout)
    assert found.values.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found.values), operand)
    np.testing.assert_array_equal(np.asarray(found.metadata).reshape(-1), memory)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(64, 32), (192, 96)], ids=str)
def test_the_round_trip_is_exact(shape, dtype):
    values, words, layout = weight(*shape, dtype)
    operand = metadata.to_cutlass(values, words, layout=layout)
    back = metadata.from_cutlass(operand, layout=layout)
    for a, b in zip(back, (values, words), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_slots_in_any_order_give_the_same_operand():
    values, words, layout = weight(32, 32, "bfloat16")
    places = np.asarray(layout.positions(words))
    turned = places.reshape(-1, 2, 32)[:, ::-1].reshape(places.shape)
    other = jnp.asarray(layout.encode(turned))
    swapped = values.reshape(-1, 2, 32)[:, ::-1].reshape(values.shape)
    for a, b in zip(
        metadata.to_cutlass(values, words, layout=layout),
        metadata.to_cutlass(swapped, other, layout=layout),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_one_of_four_is_filled_up_with_zeros():
    values, words, layout = weight(32, 32, "float16", kept=1)
    operand = metadata.to_cutlass(values, words, layout=layout)
    two = NMLayout(layout.shape, 2, 4)
    back = two.todense(*metadata.from_cutlass(operand, layout=two))
    np.testing.assert_array_equal(back, layout.todense(values, words))


@pytest.mark.parametrize("word", ["uint16", "uint32"])
@pytest.mark.parametrize("shape", [(32, 2), (64, 6), (96, 4)], ids=str)
def test_reordering_is_a_bijection(shape, word):
    words = jnp.arange(np.prod(shape), dtype=word).reshape(shape)
    found = metadata.reorder(words)
    assert found.shape == (shape[1] // 2, shape[0], 2)
    np.testing.assert_array_equal(np.sort(np.asarray(found).reshape(-1)), words.reshape(-1))
    np.testing.assert_array_equal(metadata.restore(found), words)
    # Words stay in their tile of 32 (or 16) rows and two columns.
    group = 32 if word == "uint16" else 16
    rows, cols = np.divmod(np.asarray(found), shape[1])
    for pair, first in itertools.product(range(shape[1] // 2), range(0, shape[0], group)):
        assert set(rows[pair, first : first + group].flat) == set(range(first, first + group))
        assert set(cols[pair, first : first + group].flat) == {2 * pair, 2 * pair + 1}


@pytest.mark.parametrize(
    ("shape", "n", "m", "dtype", "reason"),
    [
        ((32, 32), 3, 4, "bfloat16", "at most two of every four"),
        ((32, 32), 4, 8, "bfloat16", "at most two of every four"),
        ((48, 32), 2, 4, "bfloat16", "multiple of 32, its outputs of 32"),
        ((32, 32), 2, 4, "int8", "multiple of 64, its outputs of 32"),
        ((32, 48), 2, 4, "float16", "not made of whole tiles"),
        ((32, 32), 2, 4, "float32", "bfloat16, float16 or int8, not float32"),
    ],
)
def test_what_has_no_such_form_is_refused(shape, n, m, dtype, reason):
    layout = NMLayout(shape, n, m)
    values = jnp.zeros(layout.values_shape, dtype)
    words = jnp.zeros(layout.index_shapes[0], jnp.uint32)
    with pytest.raises(ValueError, match=reason):
        metadata.to_cutlass(values, words, layout=layout)


def test_a_code_that_no_group_has_is_named():
    values, words, layout = weight(32, 32, "bfloat16")
    operand = metadata.to_cutlass(values, words, layout=layout)
    broken = metadata.restore(operand.metadata).at[3, 1].set(0)
    broken = operand._replace(metadata=metadata.reorder(broken))
    with pytest.raises(ValueError, match="group 4 of column 3 has the code 0000; a 2:4 group has"):
        metadata.from_cutlass(broken, layout=layout)
    with pytest.raises(ValueError, match="2:4 of every column, not NMLayout"):
        metadata.from_cutlass(operand, layout=NMLayout((32, 32), 2, 4, 32))
