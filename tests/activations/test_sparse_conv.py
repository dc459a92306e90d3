"""Sparse convolution: facts of other libraries, and the dense convolution at active sites."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_cases import (
    CASES,
    EDGE,
    bounds,
    coordinates,
    features,
    geometry,
    kernel_map,
    moments,
    rows_for,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

import jaxsparse as js
from jaxsparse import activations as act

named = pytest.mark.parametrize
CONVOLUTIONS = [case for case in CASES if case["op"] != "inverse"]
INVERSES = [case for case in CASES if case["op"] == "inverse"]


@named("case", CONVOLUTIONS, ids=lambda case: case["name"])
def test_outputs_maps_and_gradients_are_the_facts(case):
    rows = coordinates(case)
    n, channels = len(rows), case["cout"]
    x = act.sparse_tensor(
        rows, features(case["seed"], n, case["cin"]), bounds(case), capacity=rows_for(n)
    )
    maps = kernel_map(case, x)
    assert maps.sizes.tolist() == case["map_sizes"]
    count = int(maps.outputs.count)
    assert count == case["n_out"]
    w = jnp.asarray(weights(case["seed"], (*case["kernel"], case["cin"], channels)))

    def convolve(features, w):
        return act.sparse_conv(x.with_features(features), w, maps).features

    y, pull = jax.vjp(convolve, x.features, w)
    # What reaches padding rows is not looked at, so it may be NaN.
    g = np.full((maps.outputs.capacity, channels), np.nan, np.float32)
    g[:count] = features(case["seed"] + 5000, count, channels)
    dx, dw = pull(jnp.asarray(g))
    assert not np.any(y[count:]) and not np.any(dx[n:])
    found = np.asarray(maps.outputs.coordinates)
    y, dx, dw = np.asarray(y)[:count], np.asarray(dx)[:n], np.asarray(dw).reshape(-1, channels)
    if "y" not in case:
        np.testing.assert_array_equal(found[:5], case["first_out_coords"])
        for table, sums in ((y, "y_sums"), (dx, "dx_sums"), (dw, "dw_sums")):
            assert moments(table) == case[sums]
        return
    np.testing.assert_array_equal(found[:count], case["out_coords"])
    np.testing.assert_array_equal(y, case["y"])
    np.testing.assert_array_equal(dx, case["dx"])
    np.testing.assert_array_equal(dw.ravel(), case["dw_flat"])


@named("case", INVERSES, ids=lambda case: case["name"])
def test_inverse_convolutions_are_the_facts(case):
    rows, options = coordinates(case), geometry(case)
    n = len(rows)
    if case["forward_sites"] == "receptive":
        shape, kernel = case["spatial_shape"], case["kernel"]
        options["out_shape"] = act.convolved_shape(shape, kernel, **options)
    x = act.sites(rows, bounds(case), capacity=64)
    forward = act.kernel_map(
        x, case["kernel"], outputs=case["forward_sites"], capacity=192, **options
    )
    count = int(forward.outputs.count)
    np.testing.assert_array_equal(forward.outputs.coordinates[:count], case["forward_out_coords"])
    given = np.zeros((192, case["cin"]), np.float32)
    given[:count] = features(case["seed"], count, case["cin"])
    w = weights(case["seed"], (*case["kernel"], case["cin"], case["cout"]))
    y = act.sparse_conv(act.SparseTensor(jnp.asarray(given), forward.outputs), w, forward.inverse)
    assert y.sites.coordinates is x.coordinates
    np.testing.assert_array_equal(y.features[:n], case["y"])
    assert forward.inverse.sizes.tolist() == case["map_sizes"]


# One box and one capacity for every drawn cloud: the programs are compiled once.
BOX = act.Bounds(2, (-3, -2), (4, 5))
WINDOWS = {
    "submanifold 3": dict(size=3),
    "submanifold 3x1 dilated": dict(size=(3, 1), dilation=(2, 1)),
    "submanifold 2": dict(size=2),
    "receptive 3 stride 2": dict(size=3, stride=2, padding=1, outputs="receptive"),
    "receptive 2 stride 3": dict(size=2, stride=3, padding=-1, outputs="receptive"),
    "receptive dilated": dict(size=3, stride=2, dilation=2, padding=0, outputs="receptive"),
    "floor 2 stride 2": dict(size=2, stride=2, outputs="floor"),
    "floor 3 stride 2": dict(size=3, stride=2, outputs="floor"),
}


@st.composite
def clouds(draw):
    """Up to 12 sites of a box, its corners often among them, in a capacity of 12."""
    place = st.tuples(
        st.integers(0, 1),
        st.sampled_from([-3, 3]) | st.integers(-3, 3),
        st.sampled_from([-2, 4]) | st.integers(-2, 4),
    )
    rows = draw(st.lists(place, max_size=12, unique=True))
    return np.array(rows, np.int32).reshape(-1, 3)


def dense_at(x, w, window, sites):
    """The dense convolution of the whole plane, read off at some sites."""
    grid = np.zeros((2, 40, 40, x.channels), np.float32)  # coordinate c stands at c + 16
    count = int(x.count)
    b, i, j = np.asarray(x.coordinates)[:count].T
    grid[b, i + 16, j + 16] = x.features[:count]
    y = np.asarray(
        lax.conv_general_dilated(
            grid, w, (1, 1), "VALID", rhs_dilation=window.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )  # fmt: skip
    b, *q = np.asarray(sites.coordinates)[: int(sites.count)].T
    at = [s * c - p + 16 for s, c, p in zip(window.stride, q, window.padding, strict=True)]
    return y[(b, *at)]


@named("name", WINDOWS)
@settings(deadline=None, max_examples=12, database=None)
@given(cloud=clouds(), seed=st.integers(0, 100))
def test_equal_to_the_dense_convolution_at_active_sites(name, cloud, seed):
    options = WINDOWS[name]
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(cloud), 3)).astype(np.float32)
    x = act.sparse_tensor(cloud, values, BOX, capacity=12)
    maps = act.kernel_map(x, **options)
    w = rng.normal(size=(*maps.window.size, 3, 2)).astype(np.float32)
    y = act.sparse_conv(x, w, maps)
    assert bool(y.sites.ok) and not np.any(y.features[int(y.count) :])
    expected = dense_at(x, w, maps.window, y.sites)
    np.testing.assert_allclose(y.features[: int(y.count)], expected, atol=1e-5)
    if options.get("outputs") == "receptive":
        # Nothing else of the plane is reached.
        assert int(y.count) == len(_reached_places(cloud, maps.window))


def _reached_places(cloud, window):
    reached = set()
    for batch, *place in cloud.tolist():
        for tap in window.places:
            axes = zip(place, tap, window.stride, window.dilation, window.padding, strict=True)
            moved = [(p + pad - t * d, s) for p, t, s, d, pad in axes]
            if all(m % s == 0 for m, s in moved):
                reached.add((batch, *(m // s for m, s in moved)))
    return reached


def test_rows_may_come_in_any_order():
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(0, 6, (30, 3)) % (2, 6, 6), axis=0)
    values = rng.normal(size=(len(rows), 4)).astype(np.float32)
    w = rng.normal(size=(3, 3, 4, 2)).astype(np.float32)
    order = rng.permutation(len(rows))
    results = []
    for rows_, values_ in ((rows, values), (rows[order], values[order])):
        x = act.sparse_tensor(rows_, values_, BOX_6)
        results.append(np.asarray(act.sparse_conv(x, w, act.kernel_map(x, 3)).features))
    np.testing.assert_allclose(results[0][order], results[1], atol=1e-5)


BOX_6 = act.Bounds(2, (0, 0), (6, 6))


def test_padding_rows_reach_nothing():
    case = EDGE["padding_rows"]
    rows = np.array(case["coords"])
    n = sum(case["valid"])
    values = np.where(np.arange(24)[:, None] < n, features(7, 24, 2), np.nan)
    box = act.Bounds.of_shape(1, (6, 6, 6))
    w = weights(7, (3, 3, 3, 2, 2))

    def run(values, w):
        x = act.sparse_tensor(rows, values, box, count=n)
        maps = act.kernel_map(x, 3)
        return act.sparse_conv(x, w, maps).features[:n], maps.sizes

    (y, sizes), pull = jax.vjp(jax.jit(run), jnp.asarray(values), jnp.asarray(w))
    assert sizes.tolist() == case["map_sizes_submanifold_333"]
    dx, dw = pull((y, np.zeros(27, jax.dtypes.float0)))
    alone = act.sparse_tensor(rows[:n], values[:n], box)
    maps = act.kernel_map(alone, 3)

    def plain(v, w):
        return act.sparse_conv(alone.with_features(v), w, maps).features

    expected, pull = jax.vjp(plain, alone.features, jnp.asarray(w))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx[:n], pull(expected)[0])
    np.testing.assert_array_equal(dw, pull(expected)[1])
    assert not np.any(dx[n:])


def test_an_empty_cloud_convolves_to_nothing():
    x = act.sparse_tensor(np.zeros((0, 3), int), np.zeros((0, 2)), BOX, capacity=12)
    ways = [act.kernel_map(x, **options) for options in WINDOWS.values()]
    ways += [act.transposed_map(x, 2, stride=2), ways[3].inverse]
    for maps in ways:
        empty = act.SparseTensor(jnp.full((maps.inputs.capacity, 2), jnp.nan), maps.inputs)
        w = jnp.ones((*maps.window.size, 2, 2))
        y, pull = jax.vjp(lambda w, e=empty, m=maps: act.sparse_conv(e, w, m).features, w)
        assert int(maps.outputs.count) == 0 and not np.any(maps.sizes)
        assert not np.any(y) and not np.any(pull(y)[0])


@named("case", EDGE["false_neighbours"], ids=lambda case: case["name"])
def test_neighbours_in_key_are_no_neighbours_in_space(case):
    rows = np.array(case["coords"])
    if "both ends" in case["name"]:
        with pytest.raises(ValueError, match="int32 keys"):
            act.sites(rows)
        return
    maps = act.kernel_map(act.sites(rows), case["kernel"])
    assert maps.sizes.tolist() == case["map_sizes"]
    for tap, pairs in enumerate(case["pairs"]):
        assert [[i, j] for j, i in enumerate(maps.index[tap].tolist()) if i < 2] == sorted(
            pairs, key=lambda pair: pair[1]
        )


@pytest.mark.slow
@named("case", EDGE["floor_division"], ids=lambda case: f"stride {case['stride']}")
def test_coordinates_are_floored_exactly(case):
    for place, floor in zip(case["p"], case["floor"], strict=True):
        with jax.disable_jit():  # each box would compile a program of its own
            x = act.sites(np.array([[0, place]], np.int64))
            maps = act.kernel_map(x, 1, stride=case["stride"], outputs="floor")
        assert maps.outputs.coordinates.tolist() == [[0, floor]]


@named("case", EDGE["linear_keys"], ids=lambda case: case["name"])
def test_boxes_that_int32_keys_cannot_number_are_refused(case):
    def make():
        return act.Bounds(case["batch"], case["lo"], [n + 1 for n in case["hi"]])

    if case["tight_fits_int32"]:  # no halo is kept around them
        assert make().places == case["tight"]
        return
    with pytest.raises(ValueError, match=str(case["tight"])):
        make()


def test_half_of_a_submanifold_map_mirrors_the_other():
    rows = np.unique(np.random.default_rng(1).integers(0, 5, (60, 4)) % (1, 5, 5, 5), axis=0)
    sizes = act.kernel_map(act.sites(rows), 3).sizes.tolist()
    assert sizes == sizes[::-1] and sizes[13] == len(rows)
    cube = np.stack(np.meshgrid(*[range(n) for n in (1, 4, 4, 4)], indexing="ij"), -1)
    assert int(act.kernel_map(act.sites(cube.reshape(-1, 4)), 3).sizes.sum()) == 10**3


def pyramid(x, w, v):
    """Down and up again: maps are built once and serve several layers."""
    same = act.kernel_map(x, 3)
    down = act.kernel_map(x, 2, stride=2, outputs="floor")
    x = act.sparse_conv(act.sparse_conv(x, w, same), w, same)
    coarse = act.sparse_conv(x, v, down).map(jax.nn.relu)
    return x + act.sparse_conv(coarse, v, down.inverse)


def drawn(seed):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 6, (9, 3)) % (2, 6, 6), axis=0)
    return act.sparse_tensor(rows, rng.normal(size=(len(rows), 2)), BOX_6, capacity=12)


W, V = jnp.asarray(weights(0, (3, 3, 2, 2))), jnp.asarray(weights(1, (2, 2, 2, 2)))


def test_jit_vmap_and_export_agree_with_eager_calls():
    clouds = [drawn(seed) for seed in range(3)]
    expected = [pyramid(x, W, V) for x in clouds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clouds)
    together = jax.vmap(pyramid, in_axes=(0, None, None))(stacked, W, V)
    exported = jax.export.export(jax.jit(pyramid))(clouds[0], W, V)
    called = jax.export.deserialize(exported.serialize()).call
    for i, (x, y) in enumerate(zip(clouds, expected, strict=True)):
        np.testing.assert_allclose(together.features[i], y.features, atol=1e-4)
        np.testing.assert_allclose(called(x, W, V).features, y.features, atol=1e-4)
        np.testing.assert_array_equal(together.sites.coordinates[i], y.coordinates)
    assert called(clouds[0], W, V).bounds == BOX_6


def test_gradients_are_those_of_finite_differences():
    x = drawn(5)

    @jax.jit
    def loss(f, w, v):
        return jnp.sum(pyramid(x.with_features(f), w, v).features ** 2)

    check_grads(loss, (x.features, W / 5, V / 5), order=1, modes=["rev"], eps=1e-2, rtol=2e-2)


@named("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_taken_in_float32(dtype):
    side = 9
    rows = np.stack(np.meshgrid([0], range(side), range(side), indexing="ij"), -1).reshape(-1, 3)
    x = act.sparse_tensor(rows, np.ones((81, 1)), capacity=81).map(lambda f: f.astype(dtype))
    w = np.full((side, side, 1, 1), 1 / 64, np.float32)
    w[0, 0] = 256
    for dataflow in ("implicit", "fetch_on_demand"):
        maps = act.kernel_map(x, side, padding=4)
        y = act.sparse_conv(x, jnp.asarray(w, dtype), maps, dataflow=dataflow)
        assert y.features.dtype == dtype
        middle = y.features[40].astype(jnp.float32)
        np.testing.assert_array_equal(middle, jnp.asarray([256 + 80 / 64]).astype(dtype))


@named("case", [c for c in EDGE["capacity"] if c["kind"].startswith("output")])
def test_too_many_outputs_are_an_error_or_a_flag(case):
    x = act.sites(np.array(case["coords"]))
    options = {name: case[name] for name in ("stride", "padding", "capacity")}
    run = jax.jit(lambda x: act.kernel_map(x, 3, outputs="receptive", **options).outputs)
    found = run(x)
    assert bool(found.overflow) == case["overflow"] == (not found.ok)
    assert int(found.needed) == case["needed"]
    assert int(found.count) == min(case["needed"], case["capacity"])


def test_what_is_lost_is_named_or_makes_nan():
    x = drawn(3)

    def run(x):
        down = act.kernel_map(x, 2, stride=2, outputs="floor", capacity=3)
        return act.sparse_conv(x, V, down)

    y = jax.jit(run)(x)
    assert bool(jnp.all(jnp.isnan(y.features)))
    for call in (run, act.checked(run), act.checked(lambda x: run(x).features.sum())):
        with pytest.raises(ValueError, match=f"pass capacity={int(y.sites.needed)} or more"):
            call(x)
    with pytest.raises(ValueError, match="lost or mistaken"):
        y + y


def test_flags_travel_to_the_end_of_a_network():
    x = drawn(3)

    def run(x):
        down = act.kernel_map(x, 2, stride=2, outputs="floor", capacity=2)
        return act.global_pool(act.sparse_conv(act.sparse_conv(x, V, down), V, down.inverse))

    assert bool(jnp.all(jnp.isnan(jax.jit(run)(x))))
    with pytest.raises(ValueError, match="do not fit a capacity of 2"):
        act.checked(run)(x)


def test_a_map_of_other_coordinates_is_refused():
    x, y = drawn(0), drawn(1)
    maps = act.kernel_map(y, 3)
    with pytest.raises(ValueError, match="rows of their coordinates differ"):
        act.sparse_conv(x, W, maps)
    assert not jax.jit(act.sparse_conv)(x, W, maps).sites.ok
    with pytest.raises(ValueError, match="rows of their coordinates differ"):
        act.checked(act.sparse_conv)(x, W, maps)
    with pytest.raises(ValueError, match="rows of their coordinates differ"):
        x + y
    other_batch = act.sparse_tensor(
        np.array([[0, 1, 1]]), np.ones((1, 2)), act.Bounds(1, (0, 0), (6, 6)), capacity=12
    )
    with pytest.raises(ValueError, match=r"1 batches.*2 batches"):
        act.sparse_conv(other_batch, W, maps)
    with pytest.raises(ValueError, match="batches or axes"):
        act.kernel_map(x, 2, stride=2, outputs=other_batch.sites)


def one(rows, **options):
    return act.sparse_tensor(np.array(rows), np.ones((len(rows), 2)), **options)


FAR = act.sites(np.array([[0, 1 << 30]]))
REFUSED = [
    ("batch index", lambda: one([[-1, 0, 0]])),
    (r"row 1, \(2, 0, 0\), lies outside", lambda: one([[0, 0, 0], [2, 0, 0]], bounds=BOX)),
    (r"row 0, \(0, 4, 0\), lies outside", lambda: one([[0, 4, 0]], bounds=BOX)),
    ("rows 0 and 2 are both", lambda: one([[0, 1, 1], [0, 0, 0], [0, 1, 1]])),
    ("pass capacity=2", lambda: one([[0, 1, 1], [0, 0, 0]], capacity=1)),
    ("9 sites do not fit a capacity of 2", lambda: one([[0, 1, 1], [0, 0, 0]], count=9)),
    ("1 axes behind the batch", lambda: one([[0, 1]], bounds=BOX)),
    ("row for each", lambda: act.sparse_tensor(np.zeros((1, 3), int), np.ones((2, 2)))),
    ("needs 2", lambda: act.kernel_map(drawn(0), (3, 3, 3))),
    ("stride 1", lambda: act.kernel_map(drawn(0), 3, stride=2)),
    ("'valid' must be", lambda: act.kernel_map(drawn(0), 3, outputs="valid")),
    ("have padding", lambda: act.kernel_map(drawn(0), 3, stride=2, padding=0, outputs="floor")),
    ("an option of receptive", lambda: act.kernel_map(drawn(0), 3, capacity=5)),
    (r"need \(3, 3, 2\)", lambda: act.sparse_conv(drawn(0), V, act.kernel_map(drawn(0), 3))),
    (
        "bias has shape",
        lambda: act.sparse_conv(drawn(0), W, act.kernel_map(drawn(0), 3), jnp.ones(3)),
    ),
    (
        "'dense' is none of",
        lambda: act.sparse_conv(drawn(0), W, act.kernel_map(drawn(0), 3), dataflow="dense"),
    ),
    ("holds no place", lambda: act.Bounds(1, (0,), (0,))),
    ("beyond the coord", lambda: act.transposed_map(FAR, 2, stride=9)),
]  # fmt: skip


@named(("quoted", "call"), REFUSED, ids=[quoted for quoted, _ in REFUSED])
def test_bad_input_is_refused_and_named(quoted, call):
    with pytest.raises(ValueError, match=quoted):
        call()


def test_what_is_no_whole_number_is_refused():
    with pytest.raises(TypeError, match="voxelize"):
        act.sites(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="integer"):
        act.Bounds(1, (0.5,), (4,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="integer"):
        act.kernel_map(FAR, 3, stride=1.5)  # pyright: ignore[reportArgumentType]


@named(
    ("rows", "quoted"),
    [
        ([[0, 0, 0], [0, 5, 0], [2, 0, 0]], "2 coordinates lie outside bounds of 2"),
        ([[0, 0, 0], [0, 1, 1], [0, 0, 0]], "1 coordinates stand twice; coalesce"),
    ],
)
def test_traced_coordinates_are_flagged(rows, quoted):

    def make(rows):
        return act.sparse_tensor(rows, jnp.ones((3, 1)), BOX)

    assert not jax.jit(make)(jnp.array(rows)).sites.ok
    with pytest.raises(ValueError, match=quoted):
        act.checked(make)(jnp.array(rows))
    with pytest.raises(ValueError, match="need bounds="):
        jax.jit(lambda rows: act.sites(rows))(jnp.array(rows))


@pytest.mark.parametrize("channels", [(0, 4), (4, 0)])
def test_weights_without_channels_are_refused(channels):
    x = act.sparse_tensor(np.array([[0, 1], [0, 2]]), jnp.ones((2, channels[0])))
    with pytest.raises(ValueError, match="need one channel or more"):
        act.sparse_conv(x, jnp.ones((3, *channels)), act.kernel_map(x, 3))


def test_packed_weights_are_refused_with_advice():
    x = act.sparse_tensor(np.array([[0, 1], [0, 2]]), jnp.ones((2, 4)))
    packed = js.pack(jnp.ones((3, 4, 4)), js.Unstructured(), in_axis=(0, 1), out_axis=2)
    # Where annotations are checked, they refuse it first.
    words = r"weights are packed, .* js\.unpack\(weights\) would work|parameter 'weights'"
    with pytest.raises(TypeError, match=words):
        act.sparse_conv(x, packed, act.kernel_map(x, 3))
    y = act.sparse_conv(x, js.unpack(packed), act.kernel_map(x, 3))
    assert y.features.tolist() == [[8] * 4] * 2
