"""Packing is exact, indices are checked, and packed weights are ordinary pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse as js
from tests.packed_cases import BY_NAME, STORAGES, draw, draw_x

every_storage = pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)


@every_storage
@given(
    shape=st.sampled_from([(1, 1), (70, 33)]),
    density=st.sampled_from([0, 0.1, 1]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
@settings(max_examples=3, deadline=None, derandomize=True)
def test_the_round_trip_is_exact(storage, shape, density, dtype):
    rng = np.random.default_rng(0)
    mask = storage.mask(rng, *shape, density)
    weight = jnp.asarray(rng.standard_normal(shape), dtype)
    weight = weight.at[0, 0].set(-0.0).at[-1, -1].set(jnp.nan)
    expected = np.asarray(jnp.where(mask, weight, 0))
    packed = storage.pack(weight, mask)
    assert packed.shape == shape and packed.dtype == weight.dtype
    actual = np.asarray(js.unpack(packed))
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()  # signs of zeros and NaN too
    again = storage.pack(js.unpack(packed), mask)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(packed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@every_storage
def test_int8_is_exact_once_rounded(storage):
    packed, dense = draw(storage, 50, 33, 0.5, dtype="int8")
    assert packed.values.dtype == jnp.int8
    places = packed.replace(values=jnp.ones_like(packed.values), scales=None).todense()
    again = storage.pack(js.unpack(packed), places != 0, "int8")
    np.testing.assert_array_equal(again.values, packed.values)
    np.testing.assert_allclose(again.todense(), dense, rtol=1e-6)
    # NumPy's would be copied to the device in every call.
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(packed))


KERNELS = [
    ((3, 3, 16, 32), {"in_axis": -2}),
    ((16, 4, 8), {"in_axis": 0, "out_axis": (1, 2)}),
    ((4, 8, 16), {"in_axis": (0, 1), "out_axis": 2}),
    ((32, 16), {"in_axis": 1, "out_axis": 0}),
    ((3, 16, 32), {"batch_axis": 0}),
    ((2, 3, 16, 32), {"batch_axis": (0, 1)}),
]


@pytest.mark.parametrize(("shape", "axes"), KERNELS)
@pytest.mark.parametrize(
    "pattern", [js.Block(4, 16), js.Unstructured(), js.Channel(-1), js.Channel(-2)]
)
def test_kernels_of_every_shape(shape, axes, pattern):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.standard_normal(shape) * (rng.random(shape) < 0.2), jnp.float32)
    packed = js.pack(weight, pattern, **axes)
    assert packed.shape == shape and packed.ndim == len(shape) and packed.size == weight.size
    np.testing.assert_array_equal(packed.todense(), weight)


def test_bytes_are_counted_with_the_indices():
    mask = np.tile([True, True, False, False], 256)[:, None] * np.ones((1, 512), bool)
    weight = jnp.ones((1024, 512), jnp.bfloat16)
    packed = js.pack(weight, js.NM(2, 4), mask)
    assert packed.nbytes == weight.nbytes * 9 // 16
    block = js.pack(jnp.eye(64), js.Block(16, 16))
    assert block.nbytes == 4 * (4 * 256 + 5 + 4) + 4 * 256 // 8  # a bit a value: most stay zero
    block = js.pack(jnp.ones((64, 64)), js.Block(16, 16))
    assert block.nbytes == 4 * (16 * 256 + 5 + 16)
    assert js.pack(jnp.eye(64), js.Unstructured()).nbytes == 64 * (4 + 2) + 65 * 4
    single = js.pack(weight, js.Unstructured(), mask)
    assert single.nbytes == weight.nbytes * 9 // 16 + 4 * (4 * 8 + 1)


@pytest.mark.parametrize(("density", "kind"), [(0.19, js.CSC), (0.2, js.Bitmap)])
def test_single_weights_get_bits_where_a_fifth_is_kept(density, kind):
    weight = jnp.zeros((100, 100)).at[:, : int(100 * density)].set(1)
    assert isinstance(js.pack(weight, js.Unstructured()), kind)
    assert isinstance(
        js.nn.random_structure(jax.random.key(0), (100, 100), js.Unstructured(), 1 - density), kind
    )
    odd = jnp.zeros((3, 5)).at[0, :3].set(1)  # 0.2 * 3 * 5 > 3 in floating point
    assert isinstance(js.pack(odd, js.Unstructured()), js.Bitmap)
    stacked = js.pack(jnp.stack([weight, jnp.eye(100)]), js.Unstructured(), batch_axis=0)
    assert isinstance(stacked, kind) and stacked.values.shape == (2, 10000 * density)
    np.testing.assert_array_equal(stacked.todense()[1], jnp.eye(100))


def test_a_shared_pattern_needs_shared_positions():
    mask = np.tile([True, True, False, False], 4)[:, None] * np.ones((1, 8), bool)
    assert js.pack(jnp.ones((16, 8)), js.NM(2, 4), mask, columns=8).positions.shape == (1, 1)
    mask[0, 0], mask[2, 0] = False, True
    with pytest.raises(ValueError, match=r"group 0 .* keeps 3 entries, 2:4 shared by 8 columns"):
        js.pack(jnp.ones((16, 8)), js.NM(2, 4), mask, columns=8)


def test_masked_nan_is_zero_and_the_weight_may_be_traced():
    weight = jnp.ones((8, 16)).at[0, 0].set(jnp.nan)
    mask = np.ones((8, 16), bool)
    mask[0, 0] = False
    for pack in (js.pack, jax.jit(lambda w, p, m: js.pack(w, p, mask), static_argnums=1)):
        assert pack(weight, js.Block(4, 16), mask).todense()[0, 0] == 0


def test_packing_errors_name_what_would_work():
    with pytest.raises(ValueError, match=r"mask has shape \(4, 4\), the weight \(8, 8\)"):
        js.pack(jnp.ones((8, 8)), js.Block(4, 4), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match=r"keeps 4 entries, 2:4 stores 2; prune with NM\(2, 4\)"):
        js.pack(jnp.ones((8, 8)), js.NM(2, 4))
    with pytest.raises(ValueError, match="must be its first ones"):
        js.pack(jnp.ones((8, 2, 8)), js.Block(4, 4), in_axis=0, out_axis=2, batch_axis=1)
    params = {"up": {"kernel": jnp.ones((8, 8))}}
    with pytest.raises(ValueError, match=r"'up/kernel' of shape \(8, 8\): .*2:4"):
        js.pack_params(params, {}, [js.Rule("up/kernel", js.NM(2, 4))])
    with pytest.raises(ValueError, match=r"no rule for it \(known: .*\); masks without it"):
        js.pack_params(
            params | {"x": jnp.ones((4, 4))},
            {"x": jnp.ones((4, 4), bool)},
            [js.Rule("up/kernel", js.Block(4, 4), 0.5)],
        )


BAD_COLUMNS = [
    ([0, 2, 3], [0, 5, 1], r"rows\[1\] = 5 is outside the 4 rows"),
    ([0, 2, 3], [0, -1, 1], r"rows\[1\] = -1 is outside"),
    ([0, 2, 3], [1, 0, 1], r"rows\[1\] = 0 does not come after rows\[0\] = 1"),
    ([0, 2, 3], [1, 1, 1], r"strictly increasing"),
    ([1, 2, 3], [0, 1, 1], r"indptr runs from 1 to 3; it must start at 0"),
    ([0, 2, 4], [0, 1, 1], r"end at most at the 3"),
    ([0, 3, 2], [0, 1, 1], r"indptr falls from 3 to 2 after column 1"),
    ([0, 3], [0, 1, 2], r"indptr has shape \(2,\), needs \(3,\)"),
]


@pytest.mark.parametrize(("indptr", "rows", "message"), BAD_COLUMNS)
def test_bad_indices_by_hand_are_errors(indptr, rows, message):
    indptr, rows = np.array(indptr, np.int32), np.array(rows, np.int32)
    with pytest.raises(ValueError, match=message):
        js.BlockSparse(jnp.ones((3, 4, 16)), indptr, rows, (4, 16), (16, 32))
    with pytest.raises(ValueError, match=message):
        js.CSC(jnp.ones(3), indptr, rows, (4, 2))


def test_bad_bits_by_hand_are_errors():
    packed = js.pack(jnp.ones((300, 70)), js.Unstructured())

    def changed(**fields):
        fields = {"values": packed.values, "starts": packed.starts, "bits": packed.bits} | fields
        return js.Bitmap(**fields, nnz=fields["values"].size, view=(300, 70))

    assert changed().shape == (300, 70)
    bits = np.array(packed.bits)
    bits[1, 5, 2] |= 1 << 3
    with pytest.raises(ValueError, match="bits name row 323 of column 5; the weight has 300 rows"):
        changed(bits=bits)
    bits = np.array(packed.bits)
    bits[0, 66, 0] = 0
    with pytest.raises(ValueError, match=r"starts\[2\] = 17920, but 17888 bits .* 0, column 69"):
        changed(bits=bits)
    with pytest.raises(ValueError, match=r"starts\[4\] = 20999, but 21000 bits .* 1, column 69"):
        changed(starts=packed.starts.at[4].add(-1))
    with pytest.raises(ValueError, match=r"starts\[0\] = 1, it must be 0"):
        changed(starts=packed.starts.at[0].set(1))
    with pytest.raises(ValueError, match="bits are int32, they must be uint32"):
        changed(bits=np.array(packed.bits).view(np.int32))
    with pytest.raises(ValueError, match="room for one, a zero, would work"):
        js.Bitmap(jnp.zeros(0), np.zeros(2, np.int32), np.zeros((1, 3, 1), np.uint32), 0, (4, 3))
    with pytest.raises(ValueError, match="bits name 21000 weights, 20999 are stored"):
        changed(values=packed.values[1:])
    with pytest.raises(ValueError, match=r"starts has shape \(4,\), needs \(5,\)"):
        changed(starts=packed.starts[1:])


def test_bad_positions_and_shapes_by_hand_are_errors():
    with pytest.raises(ValueError, match="names a position twice"):
        js.NMSparse(jnp.ones((2, 1)), np.zeros((1, 1), np.uint32), 2, 4, (4, 1))
    with pytest.raises(ValueError, match="has a position 3, m is 3"):
        js.NMSparse(jnp.ones((2, 1)), np.full((1, 1), 0b1100, np.uint32), 2, 3, (3, 1))
    with pytest.raises(ValueError, match=r"values has shape \(3, 4, 8\), needs \(3, 4, 16\)"):
        js.BlockSparse(
            jnp.ones((3, 4, 8)), np.array([0, 3], np.int32), np.arange(3), (4, 16), (16, 16)
        )


@every_storage
def test_split_and_merge(storage):
    packed, dense = draw(storage, 20, 24, 0.5)
    params = {"a": packed, "b": jnp.ones(3)}
    values, structure = js.split_packed(params)
    assert values["a"] is packed.values and structure["b"] is None
    restored = js.merge_packed(jax.tree.map(lambda v: 2 * v, values), structure)
    np.testing.assert_array_equal(restored["a"].todense(), 2 * dense)


@every_storage
def test_orbax_saves_packed_weights(storage, tmp_path):
    packed, dense = draw(storage, 20, 24, 0.5)
    like = {"a": jax.tree.map(jnp.zeros_like, packed), "b": jnp.zeros(3)}
    with js.checkpoint.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": packed, "b": jnp.ones(3)})
        checkpointer.wait()
        _, restored = checkpointer.restore_latest(like)
    np.testing.assert_array_equal(restored["a"].todense(), dense)


@every_storage
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_safetensors_saves_packed_weights(storage, dtype, tmp_path):
    packed, _ = draw(storage, 20, 24, 0.5, dtype=dtype)
    params = {"layers": [{"kernel": packed, "bias": jnp.ones(3)}]}
    js.save_safetensors(tmp_path / "model.safetensors", params)
    restored = js.load_safetensors(tmp_path / "model.safetensors")["layers"]["0"]
    assert type(restored["kernel"]) is type(packed)
    assert restored["kernel"].view == packed.view and restored["kernel"].dtype == packed.dtype
    x = draw_x(3, 20)
    for implementation in (None, "xla"):
        y = js.sparse_dot(x, restored["kernel"], implementation=implementation)
        expected = js.sparse_dot(x, packed, implementation=implementation)
        np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(restored["bias"], jnp.ones(3))


def test_safetensors_checks_what_it_reads(tmp_path):
    packed, _ = draw(BY_NAME["block4x16"], 16, 32, 1)
    file = tmp_path / "model.safetensors"
    js.save_safetensors(file, {"w": packed.replace(rows=packed.rows + 7)})
    with pytest.raises(ValueError, match="outside"):
        js.load_safetensors(file)


def test_a_storage_by_name():
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((40, 30)) < 0.3, 1.5, 0).astype(np.float32)
    for kind in (js.CSR, js.CSC, js.Bitmap):
        packed = js.pack(weight, js.Unstructured(), storage=kind)
        assert type(packed) is kind
        np.testing.assert_array_equal(packed.todense(), weight)
    by_input = js.pack(weight, js.Unstructured(), storage=js.CSR)
    assert by_input.columns.dtype == jnp.uint16 and by_input.indptr.shape == (41,)
    wide = js.pack(np.ones((1, 65537), bool).astype(np.float32), js.Unstructured(), storage=js.CSR)
    assert wide.columns.dtype == jnp.int32
    for storage, pattern in ((js.CSR, js.Block(4, 5)), (js.NMSparse, js.Unstructured())):
        with pytest.raises(ValueError, match=rf"storage={storage.__name__} does not .* would work"):
            js.pack(weight, pattern, storage=storage)
    with pytest.raises(ValueError, match="storage=csr does not store Unstructured"):
        js.pack(weight, js.Unstructured(), storage="csr")  # type: ignore


def test_storages_of_a_tree_go_by_path():
    params = {"up": {"kernel": jnp.eye(8)}, "down": {"kernel": jnp.eye(8)}}
    rules = [js.Rule(".*/kernel", js.Unstructured(), 0.5)]
    packed = js.pack_params(params, {}, rules, storage={"down/.*": js.CSR})
    assert type(packed["down"]["kernel"]) is js.CSR
    assert type(packed["up"]["kernel"]) is js.CSC
    with pytest.raises(ValueError, match=r"storage for 'side/\.\*', but no rule packs such a leaf"):
        js.pack_params(params, {}, rules, storage={"side/.*": js.CSR})


@pytest.mark.parametrize(
    ("indptr", "columns", "message"),
    [
        ([0, 2, 3], [0, 5, 1], r"columns\[1\] = 5 is outside the 4 columns of weights"),
        ([0, 2, 3], [1, 1, 1], "columns within one input are strictly increasing"),
        ([0, 3, 2], [0, 1, 1], r"indptr falls from 3 to 2 after input 1"),
        ([0, 3], [0, 1, 2], r"indptr has shape \(2,\), needs \(3,\)"),
    ],
)
def test_bad_indices_by_input_are_errors(indptr, columns, message):
    indptr, columns = np.array(indptr, np.int32), np.array(columns, np.int32)
    with pytest.raises(ValueError, match=message):
        js.CSR(jnp.ones(3), indptr, columns, (2, 4))
