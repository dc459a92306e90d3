"""What the report counts, against counting by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
from jaxsparse.calibration import gram, observe, zeros


def one(shape, pattern, sparsity=None, dtype=jnp.float32, path="w", **axes):
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    rules = [js.Rule(path, pattern, sparsity, **axes)]
    masks = jax.jit(lambda params: js.compute_masks(params, rules))({path: w})
    return js.report({path: w}, masks, rules=rules).leaves[0]


def test_block_bytes():
    leaf = one((64, 32), js.Block(4, 16), 0.75)  # 8 of 32 blocks; 2 block columns
    assert (leaf.kept, leaf.size, leaf.sparsity) == (512, 2048, 0.75)
    assert leaf.dense_bytes == 64 * 32 * 4
    assert leaf.stored_bytes == 8 * 64 * 4 + 4 * 8 + 4 * 3
    assert leaf.pattern == "Block(4, 16) on (64, 32)"


def test_stacked_blocks_have_pointers_each():
    leaf = one((3, 64, 32), js.Block(4, 16), 0.75, batch_axis=0)
    assert leaf.stored_bytes == 3 * (8 * 64 * 4 + 4 * 8 + 4 * 3)


def test_padded_blocks_store_whole_blocks():
    leaf = one((30, 32), js.Block(4, 16, pad=True), 0.5)  # 8 of 16 blocks
    assert leaf.stored_bytes == 8 * 64 * 4 + 4 * 8 + 4 * 3


@pytest.mark.parametrize(
    "n,m,dtype,share",
    [(2, 4, jnp.bfloat16, 9 / 16), (1, 4, jnp.float32, 17 / 64), (4, 8, jnp.float32, 36 / 64)],
)
def test_nm_bytes(n, m, dtype, share):
    leaf = one((64, 32), js.NM(n, m), dtype=dtype)
    assert leaf.stored_bytes == share * leaf.dense_bytes
    assert leaf.sparsity == 1 - n / m


def test_padded_nm_bytes():
    leaf = one((30, 4), js.NM(2, 4, pad=True), dtype=jnp.bfloat16)
    assert leaf.kept == 64  # two of four, seven times, and two of two
    assert leaf.stored_bytes == 64 * 2 + 64 * 2 // 8


def test_half_pruned_nm_is_not_counted_as_nm():
    w, rules = {"w": jnp.ones((8, 4))}, [js.Rule("w", js.NM(2, 4))]
    mask = {"w": jnp.ones((8, 4), bool).at[2:4].set(False)}  # the lower groups are dense yet
    stored = js.report(w, mask, rules=rules).leaves[0].stored_bytes
    assert stored == 24 * 4 + 4 * 4 + 2 * 4  # as single weights under a word of bits a column


def test_unstructured_and_channel_bytes():
    leaf = one((64, 32), js.Unstructured(), 0.9)
    assert leaf.kept == 2048 - round(0.9 * 2048) == 205
    assert leaf.stored_bytes == 205 * (4 + 2) + 4 * 33
    leaf = one((64, 32), js.Channel(-1), 0.75)  # whole columns, stored as single weights
    assert leaf.stored_bytes == 8 * 64 * 4 + 64 * 32 // 8 + 4 * 2  # and a bit for every place
    leaf = one((64, 32), js.Unstructured(), 0.01)
    assert leaf.stored_bytes == leaf.dense_bytes  # packing would cost more


PARAMS = {
    "mlp": {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8), "bias": jnp.zeros(8)},
    "head": jnp.ones((4, 2), jnp.bfloat16),
}
RULES = [js.Rule("mlp/kernel", js.Block(4, 4), 0.75)]


def test_totals_text_and_json():
    masks = js.compute_masks(PARAMS, RULES)
    report = js.report(PARAMS, masks, rules=RULES, targets=js.targets(RULES, PARAMS))
    by_path = {leaf.path: leaf for leaf in report.leaves}
    assert set(by_path) == {"mlp/kernel", "mlp/bias", "head"}
    assert (report.kept, report.size) == (16 + 8 + 8, 64 + 8 + 8)
    assert report.sparsity == 0.75 and report.total_sparsity == pytest.approx(1 - 32 / 80)
    assert report.dense_bytes == 4 * 64 + 4 * 8 + 2 * 8
    assert report.stored_bytes == (16 * 4 + 4 + 12) + 4 * 8 + 2 * 8
    assert by_path["mlp/kernel"].target == 0.75 and by_path["head"].target is None
    assert (by_path["head"].pattern, by_path["head"].stored_bytes) == ("dense", 16)
    lines = str(report).splitlines()
    for path in by_path:
        assert sum(line.startswith(path + " ") for line in lines) == 1
    assert lines[-1].split() == ["total", "80", "60.00%", "32", "304", "128"]
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["kept"] == 32 and loaded["sparsity"] == 0.75
    assert {leaf["path"]: leaf["kept"] for leaf in loaded["leaves"]}["mlp/kernel"] == 16


def test_masks_as_a_tree_with_none_and_without_rules():
    masks = {"mlp": {"kernel": PARAMS["mlp"]["kernel"] > 32, "bias": None}, "head": None}
    report = js.report(PARAMS, masks)
    assert report.sparsity == 0.5 and report.leaves[0].path == "head"
    assert {x.pattern for x in report.leaves} == {"dense", "Unstructured() on (8, 8)"}
    assert js.report(PARAMS, {}).sparsity == 0.0


def test_what_is_not_finite_under_the_mask_is_counted():
    w = {"w": jnp.asarray([jnp.nan, jnp.inf, 1.0, jnp.nan])}
    leaf = js.report(w, {"w": jnp.asarray([False, False, False, True])}).leaves[0]
    assert leaf.non_finite == 2 and "2 NaN or inf under the mask" in leaf.note
    assert leaf.note in str(js.report(w, {"w": jnp.asarray([False, False, False, True])}))
    assert js.report(w, {"w": jnp.ones(4, bool)}).leaves[0].note == ""


def test_a_mask_without_leaf():
    with pytest.raises(KeyError, match=r"'mlp/kernle'.*did you mean 'mlp/kernel'"):
        js.report(PARAMS, {"mlp/kernle": jnp.ones(1, bool)})


def test_mask_picture_small_is_the_mask():
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    np.testing.assert_array_equal(js.mask_picture(mask), np.where(mask, 0, 255))
    assert js.mask_picture(mask).dtype == np.uint8
    assert js.mask_picture(mask[0]).shape == (1, 7)
    stacked = np.random.default_rng(2).random((2, 3, 4)) < 0.5
    np.testing.assert_array_equal(js.mask_picture(stacked), np.where(stacked, 0, 255).reshape(6, 4))


@pytest.mark.parametrize("shape", [(8, 12), (10, 7), (3, 100)])
def test_mask_picture_averages(shape):
    mask = np.random.default_rng(3).random(shape) < 0.4
    picture = js.mask_picture(mask, longest=4)
    edges = [[size * i // 4 for i in range(5)] if size > 4 else range(size + 1) for size in shape]
    assert picture.shape == tuple(len(e) - 1 for e in edges)
    for i, j in np.ndindex(picture.shape):
        part = mask[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        assert abs(int(picture[i, j]) - 255 * (1 - part.mean())) <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "pattern,spec,cut",
    [
        (js.Block(4, 16), P("a", "b"), None),
        (js.Block(8, 16), P("a", "b"), "4x16"),
        (js.Block(4, 16), P(None, ("a", "b")), "16x4"),
        (js.NM(2, 4), P("a", "b"), None),
        (js.NM(4, 8), P("a", "b"), "4x16"),
        (js.Channel(-1), P(None, "a"), None),
        (js.Channel(-1), P("a", None), "4x32"),
        (js.Unstructured(), P("a", "b"), None),
        (js.Block(8, 16), P(None, None), None),
    ],
)
def test_note_on_shards_that_cut_groups(kind, pattern, spec, cut):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    w = {"w": jax.device_put(np.ones((16, 32), np.float32), NamedSharding(mesh, spec))}
    leaf = js.report(w, {"w": np.ones((16, 32), bool)}, rules=[js.Rule("w", pattern)]).leaves[0]
    assert leaf.note == ("" if cut is None else f"shards of {cut} cut groups: pooling gathers")


@dataclasses.dataclass(frozen=True)
class Diagonal(js.Pattern):
    """A user's own: the diagonals of a square kernel live and die together."""

    step: int
    wrap: bool = True

    def group_shape(self, view):
        return (view.shape[0],)

    def pool(self, entries, view, reduce=None):
        rows = jnp.arange(view.shape[0])
        return jnp.stack([jnp.abs(entries)[rows, (rows + d) % len(rows)].mean() for d in rows])

    def expand(self, groups, view):
        rows = jnp.arange(view.shape[0])
        return groups[(rows[None] - rows[:, None]) % len(rows)]

    def group_size(self, view):
        return view.shape[0]


def test_a_users_own_pattern_names_itself():
    params, rules = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}, [js.Rule("w", Diagonal(1), 0.5)]
    masks = js.compute_masks(params, rules)
    leaf = js.report(params, masks, rules=rules).leaves[0]
    assert (leaf.pattern, leaf.kept, leaf.target) == ("Diagonal(1) on (4, 4)", 8, 0.5)
    assert str(Diagonal(2, wrap=False)) == "Diagonal(2, wrap=False)"
    assert leaf.stored_bytes <= leaf.dense_bytes


@pytest.mark.parametrize(
    "pattern,text",
    [
        (js.Unstructured(), "Unstructured()"),
        (js.Block(4, 16), "Block(4, 16)"),
        (js.Block(4, 16, reduce="l2", pad=True), "Block(4, 16, reduce='l2', pad=True)"),
        (js.NM(2, 4, method="best"), "NM(2, 4, method='best')"),
        (js.Channel(-1), "Channel(-1)"),
    ],
)
def test_patterns_name_themselves(pattern, text):
    assert str(pattern) == text


def test_targets_come_from_the_rules():
    params = {name: jnp.ones((8, 8)) for name in "abcd"}
    rules = [
        js.Rule("a", js.Unstructured(), 0.9),
        js.Rule("b", js.NM(2, 4)),
        js.Rule("c", js.Unstructured()),
    ]
    masks = {name: jnp.ones((8, 8), bool) for name in "abc"}
    leaves = js.report(params, masks, rules=rules).leaves
    assert [leaf.target for leaf in leaves] == [0.9, 0.5, None, None]
    leaves = js.report(params, masks, rules=rules, targets={"c": 0.25, "a": 0.8}).leaves
    assert [leaf.target for leaf in leaves] == [0.8, 0.5, 0.25, None]
    assert "90.00%" in str(js.report(params, masks, rules=rules))


def test_a_mask_of_another_shape_is_no_mask():
    with pytest.raises(ValueError, match=r"mask of 'w' has shape \(2,\), the leaf \(4,\)"):
        js.report({"w": jnp.ones(4)}, {"w": jnp.ones(2, bool)})


def test_infinite_complex_weights_under_the_mask():
    w = {"w": jnp.array([1 + 2j, complex(0, jnp.inf)])}
    assert js.report(w, {"w": np.array([True, False])}).leaves[0].non_finite == 1


def test_axes_that_the_model_does_not_sum_over_are_noted():
    params = {"out": {"w": jnp.ones((4, 8, 16))}, "head": {"kernel": jnp.ones((16, 4))}}

    def model(params, x):
        x = jnp.einsum("bnh,nhd->bd", x, params["out"]["w"])
        return x @ params["head"]["kernel"]

    def notes(**axes):
        rules = [
            js.Rule("out/w", js.Block(4, 4), 0.5, **axes),
            js.Rule("head/kernel", js.Block(4, 4), 0.5),
        ]
        masks = js.compute_masks(params, rules)
        inputs = (jax.ShapeDtypeStruct((2, 4, 8), jnp.float32),)
        report = js.report(params, masks, rules=rules, fn=model, inputs=inputs)
        return {leaf.path: leaf.note for leaf in report.leaves}

    assert notes(in_axis=(0, 1), out_axis=2) == {"out/w": "", "head/kernel": ""}
    found = notes(batch_axis=0)
    assert "dot_general sums over in_axis=(0, 1), out_axis=2: with those" in found["out/w"]
    assert found["head/kernel"] == ""


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_packed_weight_is_one_row(dtype):
    weight = jax.random.normal(jax.random.key(0), (8, 32))
    mask = jnp.zeros((8, 32), bool).at[:4, :16].set(True).at[0, 0].set(False)
    packed = js.pack(weight, js.Block(4, 16), mask, dtype=jnp.dtype(dtype))
    table = js.report({"up": packed, "bias": jnp.zeros(32)}, {})
    bias, up = table.leaves
    assert (up.path, up.shape, up.pattern) == ("up", (8, 32), "BlockSparse[4x16, 25.0%]")
    assert (up.kept, up.size, up.stored_bytes) == (63, 256, packed.nbytes)
    assert bias.pattern == "dense" and table.sparsity == 1 - 63 / 256


def test_how_sparse_what_a_weight_meets_is():
    params = {"up": jnp.eye(4), "stack": jnp.ones((2, 4, 4)), "bias": jnp.zeros(4)}

    def model(params, x):
        x = jax.nn.relu(x @ params["up"] + params["bias"])
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0]

    x = jnp.array([[1.0, -1.0, -2.0, 0.0], [1.0, 2.0, -3.0, 4.0]])
    _, met = observe(model, params, x, reducer=zeros())
    found = js.report(params, {}, activations=met)
    assert {leaf.path: leaf.zeros_met for leaf in found.leaves} == {
        "up": 1 / 8,
        "stack": 4 / 16,
        "bias": None,
    }
    assert "25% of what it meets is 0" in str(found)
    assert [leaf["zeros_met"] for leaf in found.to_dict()["leaves"]].count(None) == 1


def test_states_of_another_reducer_are_refused():
    params, x = {"w": jnp.eye(4)}, jnp.ones((2, 4))
    for states in (observe(lambda p, x: x @ p["w"], params, x, reducer=gram())[1], zeros()):
        with pytest.raises(TypeError, match="report: activations"):
            js.report(params, {}, activations=states)


def test_what_saturates_is_in_the_row_of_its_weight():
    params = {"up": jnp.ones((8, 8)), "down": jnp.ones((8, 8))}
    counts = {
        "up": js.quantized.Saturation(saturated=3, size=200),
        "down": js.quantized.Saturation(saturated=0, size=200),
    }
    found = js.report(params, {}, saturation=counts)
    assert [leaf.saturated for leaf in found.leaves] == [0.0, 0.015]
    lines = str(found).splitlines()
    assert ["1.50% of what it meets saturates" in line for line in lines[2:4]] == [False, True]
    assert "saturates" not in str(js.report(params, {}))
