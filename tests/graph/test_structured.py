"""Masks resolved to whole heads and neurons, as NNCF resolves them, and put in force."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_models import MODELS, numbers, randomize
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
from jaxsparse.graph import Member, Structure, StructuredGroup

CASES = json.loads(
    (pathlib.Path(__file__).parent.parent / "cases" / "structured.json").read_text()
)["cases"]


def layer(params, x, heads_of=4):
    """The layer of the cases: attention over heads of 4 and 12 neurons."""

    def split(name):
        y = x @ params[name]["kernel"] + params[name]["bias"]
        return y.reshape(*x.shape[:2], -1, heads_of)

    weights = jnp.einsum("bthd,bshd->bhts", split("q"), split("k"))
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(weights), split("v"))
    x = x + y.reshape(*x.shape[:2], -1) @ params["o"]["kernel"] + params["o"]["bias"]
    y = jax.nn.gelu(x @ params["i"]["kernel"] + params["i"]["bias"])
    return x + y @ params["u"]["kernel"] + params["u"]["bias"]


X = numbers(2, 3, 16)
SHAPES = {name: (16, 16) for name in "qkvo"} | {"i": (16, 12), "u": (12, 16)}
PARAMS = randomize(
    {n: {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[1])} for n, shape in SHAPES.items()}
)
STRUCTURE = js.graph.structure(layer, PARAMS, X)


def masks_of(case):
    """The masks of a case in the shapes of Flax."""
    masks = {}
    for name, (rows, columns) in case["sparse_factors"].items():
        weight, bias = (np.array(case["groups"][name][part], bool) for part in ("weight", "bias"))
        masks[f"{name}/kernel"] = weight.repeat(rows, 0).repeat(columns, 1).T
        masks[f"{name}/bias"] = bias.repeat(rows)
    return masks


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("resolve", ["union", "intersection"])
def test_resolution_is_nncfs(case, resolve):
    masks, expected = masks_of(case), case["expected"]
    found = STRUCTURE.resolve(masks, resolve)
    wanted = expected["union" if resolve == "union" else "intersection_derived"]
    for unit, size, written, read in ("heads", 4, "qkv", "o"), ("neurons", 1, "i", "u"):
        left = found[f"{written[0]}/bias"][::size]
        if any(wanted[unit]):
            np.testing.assert_array_equal(left, np.array(wanted[unit], bool))
        else:
            assert left.sum() == 1
        rows = left.repeat(size)
        for name in written:
            shape = SHAPES[name]
            np.testing.assert_array_equal(found[f"{name}/kernel"], np.broadcast_to(rows, shape))
            np.testing.assert_array_equal(found[f"{name}/bias"], rows)
        columns = np.broadcast_to(rows[:, None], SHAPES[read])
        np.testing.assert_array_equal(found[f"{read}/kernel"], columns)
        assert found[f"{read}/bias"].all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_biases_and_density_after_union_are_nncfs(case):
    found, expected = STRUCTURE.resolve(masks_of(case)), case["expected"]["union"]
    for names, unit in ("qkvo", "heads"), ("iu", "neurons"):
        for name in names if any(expected[unit]) else ():
            bias = np.array(expected["bias"][name], bool)
            np.testing.assert_array_equal(found[f"{name}/bias"], bias)
    if any(expected["heads"]) and any(expected["neurons"]):
        left = sum(int(found[f"{name}/kernel"].sum()) for name in SHAPES)
        entries = sum(np.prod(shape) for shape in SHAPES.values())
        assert left / entries == pytest.approx(expected["weight_density_after"], abs=1e-6)


def some_masks(seed=0):
    """Heads 1 and 3 and neurons 2 and 7 are read by nothing; else blocks of 4x4, some empty."""
    rng = np.random.default_rng(seed)
    masks = {}
    for name, (rows, columns) in SHAPES.items():
        blocks = rng.random((rows // 4, columns // 4)) < 0.6
        masks[f"{name}/kernel"] = jnp.asarray(blocks.repeat(4, 0).repeat(4, 1))
        masks[f"{name}/bias"] = jnp.asarray(rng.random(columns) < 0.8)
    read = np.isin(np.arange(16) // 4, [0, 2])[:, None]
    masks["o/kernel"] = jnp.asarray(np.broadcast_to(read, (16, 16)))
    read = ~np.isin(np.arange(12), [2, 7])[:, None]
    masks["u/kernel"] = jnp.asarray(np.broadcast_to(read, (12, 16)))
    return masks


def test_without_refill_what_is_not_read_goes_and_nothing_comes_back():
    masks = some_masks()
    found = STRUCTURE.resolve(masks, refill=False)
    for path, mask in masks.items():
        assert not (found[path] & ~mask).any()
    np.testing.assert_array_equal(found["o/kernel"], masks["o/kernel"])
    gone = np.isin(np.arange(16) // 4, [1, 3])
    for name in "qkv":
        for part in "kernel", "bias":
            found_, mask = found[f"{name}/{part}"], masks[f"{name}/{part}"]
            np.testing.assert_array_equal(found_, mask & ~gone)
    for how in masks, found:
        same = layer(js.mask_params(PARAMS, how), X), layer(js.mask_params(PARAMS, masks), X)
        np.testing.assert_allclose(*same, atol=1e-6)


@pytest.mark.parametrize("resolve", ["union", "intersection"])
@pytest.mark.parametrize("refill", [True, False])
def test_shrink_removes_what_was_dropped(resolve, refill):
    found = STRUCTURE.resolve(some_masks(), resolve, refill=refill)
    report = STRUCTURE.report(found)
    heads, neurons = (row.kept for row in report.groups)
    small, run, shrunk = js.graph.shrink(layer, PARAMS, found, X)
    left = {path: tuple(map(len, axes)) for path, axes in shrunk.kept.items()}
    if refill:
        assert left["o/kernel"] == (4 * len(heads), 16) and left["u/kernel"][0] == len(neurons)
    else:  # and units that nothing feeds
        assert left["o/kernel"][0] <= 4 * len(heads) and left["u/kernel"][0] <= len(neurons)
    np.testing.assert_allclose(run(small, X), layer(js.mask_params(PARAMS, found), X), atol=1e-5)


def test_it_runs_under_jit_and_vmap():
    masks = some_masks()
    plain = STRUCTURE.resolve(masks)
    jitted = jax.jit(STRUCTURE.resolve)(masks)
    both = jax.tree.map(lambda *m: jnp.stack(m), masks, some_masks(1))
    mapped = jax.vmap(STRUCTURE.resolve)(both)
    other = STRUCTURE.resolve(some_masks(1))
    for path, mask in plain.items():
        np.testing.assert_array_equal(jitted[path], mask)
        np.testing.assert_array_equal(mapped[path], jnp.stack([mask, other[path]]))
    hash(STRUCTURE)  # a static argument


def test_it_is_found_while_something_else_is_traced():
    def padded(params, x):
        return layer(params, jnp.where(~jnp.zeros(3, bool)[:, None], x, 0))

    @jax.jit
    def asked(x):
        assert js.graph.structure(padded, PARAMS, X).groups == STRUCTURE.groups
        return x + 1

    assert asked(1) == 2


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_sharded_masks_are_resolved_where_they_lie(kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    masks = some_masks()

    def place(mask):
        return jax.device_put(mask, NamedSharding(mesh, P("a", "b") if mask.ndim == 2 else P("a")))

    sharded = jax.tree.map(place, masks)
    with jax.set_mesh(mesh):
        resolve = jax.jit(STRUCTURE.resolve)
        compiled = resolve.lower(sharded).compile()
        found = compiled(sharded)
    for path, mask in STRUCTURE.resolve(masks).items():
        np.testing.assert_array_equal(found[path], mask)
        assert found[path].sharding.is_equivalent_to(sharded[path].sharding, mask.ndim)
    gathered = [line for line in str(compiled.as_text()).splitlines() if "= pred[16,16]" in line]
    assert not gathered


def fused(params, x):
    """Queries, keys and values side by side in one kernel."""
    q, k, v = jnp.split(x @ params["qkv"], 3, axis=-1)
    q, k, v = (y.reshape(*x.shape[:2], 4, 4) for y in (q, k, v))
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), v)
    return x + y.reshape(x.shape) @ params["out"]


def grouped(params, x):
    """Two query heads for each of two key heads."""
    q = (x @ params["q"]).reshape(*x.shape[:2], 2, 2, 4)
    k, v = ((x @ params[name]).reshape(*x.shape[:2], 2, 4) for name in "kv")
    weights = jax.nn.softmax(jnp.einsum("btngd,bsnd->bngts", q, k))
    y = jnp.einsum("bngts,bsnd->btngd", weights, v)
    return x + y.reshape(x.shape) @ params["o"]


def test_fused_queries_keys_and_values_are_three_places_of_one_leaf():
    params = {"qkv": jnp.ones((16, 48)), "out": jnp.ones((16, 16))}
    structure = js.graph.structure(fused, params, X)
    (group,) = structure.groups
    assert (group.kind, group.units) == ("heads", 4)
    offsets = [member.offset for member in group.members if member.path == "qkv"]
    assert offsets == [0, 16, 32]
    mask = jnp.zeros((16, 48), bool).at[:, 16 + 4].set(True)  # of the keys, head 1
    found = structure.resolve({"qkv": mask, "out": jnp.zeros((16, 16), bool)})
    one = np.arange(16) // 4 == 1
    np.testing.assert_array_equal(found["qkv"], np.broadcast_to(np.tile(one, 3), (16, 48)))
    np.testing.assert_array_equal(found["out"], np.broadcast_to(one[:, None], (16, 16)))


def test_key_heads_go_with_all_their_query_heads():
    params = {"q": jnp.ones((16, 16)), "o": jnp.ones((16, 16))}
    params |= {"k": jnp.ones((16, 8)), "v": jnp.ones((16, 8))}
    structure = js.graph.structure(grouped, params, X)
    (group,) = structure.groups
    assert (group.kind, group.units) == ("heads", 2)
    masks = {path: jnp.zeros(leaf.shape, bool) for path, leaf in params.items()}
    masks["q"] = masks["q"].at[:, 12].set(True)  # the second query head of key head 1
    found = structure.resolve(masks)
    for path, width in ("q", 8), ("k", 4), ("v", 4):
        assert found[path].any(axis=0).tolist() == [False] * width + [True] * width
    assert found["o"].any(axis=1).tolist() == [False] * 8 + [True] * 8


LAYER = [("heads", 2), ("neurons", 12)]
FOUND = {
    "fused_qkv_reshape": [("heads", 2)],
    "gated_fused": [("neurons", 8)],
    "native_grouped_query_attention": [("heads", 2)],
    "norms": [],
    "recurrent": [],
    "remat_transformer": LAYER * 2,
    "residual": [],
    "scanned_transformer": LAYER,  # of all its layers at once
    "tied_transformer": LAYER * 2,
}


@pytest.mark.parametrize("name", FOUND)
def test_units_of_models_built_in_other_ways(name):
    model = MODELS[name]()
    structure = js.graph.structure(model.fn, model.params, *model.inputs)
    assert [(group.kind, group.units) for group in structure.groups] == FOUND[name]


def test_a_query_head_alone_stays_and_is_named():
    params = {"q": numbers(16, 16), "o": numbers(16, 16, seed=2)}
    params |= {"k": numbers(16, 8, seed=3), "v": numbers(16, 8, seed=4)}
    masks = {"o": jnp.broadcast_to((jnp.arange(16) // 4 != 2)[:, None], (16, 16))}
    small, run, report = js.graph.shrink(grouped, params, masks, X)
    assert small["q"].shape == (16, 16)
    (crossing,) = report.crossings
    assert (crossing.path, crossing.axis, crossing.channels.tolist()) == ("o", 0, [[1, 0]])
    assert "o[0] is empty where channels (1, 0) of groups" in str(report)
    assert "2 channels) meet: these stay, one alone cannot go" in str(report)
    masks["o"] &= (jnp.arange(16) // 4 != 3)[:, None]  # and the other one of its key head
    small, run, report = js.graph.shrink(grouped, params, masks, X)
    assert small["q"].shape == (16, 8) and small["k"].shape == (16, 4) and not report.crossings
    assert "2 -> 1 channels [0]" in str(report)
    masked = grouped(js.mask_params(params, masks), X)
    np.testing.assert_allclose(run(small, X), masked, atol=1e-5, rtol=1e-5)


def test_a_layer_between_two_others_has_neurons_on_both_axes():
    def mlp(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]

    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 6)), "c": jnp.ones((6, 3))}
    structure = js.graph.structure(mlp, params, jnp.ones((5, 2)))
    assert [group.units for group in structure.groups] == [4, 6]
    masks = {path: jnp.zeros(leaf.shape, bool) for path, leaf in params.items()}
    masks["b"] = masks["b"].at[1, 5].set(True)
    found = structure.resolve(masks)
    rows, columns = np.arange(4) == 1, np.arange(6) == 5
    np.testing.assert_array_equal(found["a"], np.broadcast_to(rows, (2, 4)))
    np.testing.assert_array_equal(found["b"], rows[:, None] & columns)
    np.testing.assert_array_equal(found["c"], np.broadcast_to(columns[:, None], (6, 3)))


def test_groups_declared_by_hand():
    heads = {"stride": 4, "repeats": ((4, 1),)}
    members = [Member(f"{n}/kernel", 1, 16, "writes", **heads) for n in "qkv"]
    members += [Member("o/kernel", 0, 16, "reads", **heads)]
    members += [Member(f"{n}/bias", 0, 16, "beside", **heads, layer=f"{n}/kernel") for n in "qkv"]
    group = StructuredGroup("attention", "heads", 4, tuple(members), ("o/bias",))
    found, masks = Structure((group,)).resolve(some_masks()), STRUCTURE.resolve(some_masks())
    for path in masks:
        same = path if path[0] in "qkvo" else None
        np.testing.assert_array_equal(found[path], masks[path] if same else some_masks()[path])


def test_errors_of_groups_declared_by_hand():
    up, down = Member("up", 1, 8, "writes"), Member("down", 0, 8, "reads")
    with pytest.raises(ValueError, match=r"9 neurons in up\[1\] .* 0 to 8, and the axis has 8"):
        StructuredGroup("mlp", "neurons", 9, (up, down))
    with pytest.raises(ValueError, match="one that reads them; given: writes"):
        StructuredGroup("mlp", "neurons", 8, (up,))


def test_a_group_of_which_a_weight_has_no_mask_stays():
    masks = some_masks()
    del masks["k/kernel"]
    found = STRUCTURE.resolve(masks)
    np.testing.assert_array_equal(found["q/kernel"], masks["q/kernel"])
    assert found["i/kernel"].all(axis=0).sum() == found["i/kernel"].any(axis=0).sum()
    assert "4 heads left as they are, no mask for k/kernel" in str(STRUCTURE.report(masks))
    masks = {path: mask for path, mask in masks.items() if path[0] in "iu"}
    (row,) = STRUCTURE.report(masks).groups
    assert row.group.kind == "neurons"


def test_what_is_kept_is_told_by_name():
    found = STRUCTURE.resolve(some_masks(), refill=False)
    nested = js.graph.structure(
        lambda params, x: layer(params["layers"]["0"], x), {"layers": {"0": PARAMS}}, X
    )
    report = nested.report({f"layers/0/{path}": mask for path, mask in found.items()})
    assert str(report).splitlines()[0] == "layers/0/{k, q, v, o}: heads kept [0, 2] of 4"
    assert report.groups[1].kept.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]


def test_errors_of_masks():
    masks = some_masks()
    with pytest.raises(ValueError, match="no group has masks for all its weights; lacking are"):
        STRUCTURE.resolve({"q/kernel": masks["q/kernel"]})


@pytest.mark.parametrize("ask", [STRUCTURE.resolve, STRUCTURE.report])
def test_what_is_no_mask_of_the_model_is_refused(ask):
    masks = some_masks()
    with pytest.raises(ValueError, match=r"'q/kernel' has shape \(7, 16\), the leaf \(16, 16\)"):
        ask(masks | {"q/kernel": masks["q/kernel"][:7]})
    with pytest.raises(ValueError, match=r"mask of 'k/bias' is of float32, .* bool would work"):
        ask(masks | {"k/bias": PARAMS["k"]["bias"]})
    with pytest.raises(KeyError, match=r"mask for 'q/kernell', but no such leaf; .*'q/kernel'"):
        ask(masks | {"q/kernell": masks["q/kernel"]})
    with pytest.raises(ValueError, match="'both' is neither 'union' nor 'intersection'"):
        ask(masks, "both")


def test_of_groups_declared_by_hand_the_axis_is_known():
    up, down = Member("up", 1, 8, "writes"), Member("down", 0, 8, "reads")
    structure = Structure((StructuredGroup("mlp", "neurons", 8, (up, down)),))
    masks = {"up": jnp.ones((3, 8), bool), "down": jnp.ones((7, 3), bool)}
    with pytest.raises(ValueError, match=r"'down' has shape \(7, 3\); .* 8 .* axis 0"):
        structure.resolve(masks)


@pytest.mark.parametrize("resolve", ["union", "intersection"])
@pytest.mark.parametrize("refill", [True, False])
def test_a_report_says_what_resolving_keeps(resolve, refill):
    masks = some_masks() | {"i/bias": jnp.ones(12, bool)}  # which keeps neurons 2 and 7, too
    masks["i/kernel"] &= jnp.arange(12) < 4
    report = STRUCTURE.report(masks, resolve, refill=refill)
    found = STRUCTURE.resolve(masks, resolve, refill=refill)
    neurons = report.groups[1].kept.tolist()
    assert neurons == np.flatnonzero(found["u/kernel"].any(axis=1)).tolist()
    assert (7 in neurons) == (resolve == "union" and refill)
    if refill:  # what is whole stays so
        assert str(STRUCTURE.report(found)) == str(report)


def test_a_structure_without_groups_says_so():
    structure = js.graph.structure(lambda params, x: x @ params["w"], {"w": jnp.ones((16, 3))}, X)
    assert str(structure) == "no heads and no neurons"


def mlp(params, x, and_then=lambda params, x, h, y: y):
    """A block of 6 neurons; what else reads them is put in."""
    h = jnp.tanh(x @ params["up"])
    return and_then(params, x, h, x + h @ params["down"])


OTHER = numbers(6, 16, seed=7)


def latent(params, x):
    """Queries and keys whose scores weigh the keys themselves."""
    q, c = x @ params["up"], x @ params["keys"]
    weights = jax.nn.softmax(jnp.einsum("btf,bsf->bts", q, c))
    return jnp.einsum("bts,bsf->btf", weights, c) @ params["down"]


def gram_of_a_scan(params, x):
    def step(carry, x):
        h = jnp.tanh(x @ params["up"])
        return carry + h @ params["down"], h @ h.T

    return jax.lax.scan(step, jnp.zeros((3, 16)), x)


def convolved(params, x):
    h = jnp.tanh(x @ params["up"])
    y = jax.lax.conv_general_dilated(h, OTHER[None], (1,), "SAME", dimension_numbers=CHANNELS_LAST)
    return y + h @ params["down"]


CHANNELS_LAST = ("NWC", "WIO", "NWC")
READ_BESIDE = {
    "latent attention": latent,
    "a scan": gram_of_a_scan,
    "a convolution": convolved,
    "a Gram matrix": lambda p, x: mlp(p, x, lambda p, x, h, y: (y, h @ h.swapaxes(1, 2))),
    "a Gram matrix times a kernel": lambda p, x: mlp(
        p, x, lambda p, x, h, y: y + (h @ h.swapaxes(1, 2)) @ p["keys"][:3, :1]
    ),
    "a norm": lambda p, x: mlp(
        p, x, lambda p, x, h, y: y * jnp.einsum("btf,btf->bt", h, h)[..., None]
    ),
    "a constant kernel": lambda p, x: mlp(p, x, lambda p, x, h, y: y + h @ OTHER),
    "a constant before": lambda p, x: jnp.tanh(x @ p["up"]) @ OTHER[:, :6] @ p["down"] + mlp(p, x),
    "a constant in the sum": lambda p, x: jnp.tanh(x @ p["up"]) @ (p["down"] + OTHER),
    "zeros that become ones": lambda p, x: jnp.tanh(x @ p["up"]) @ jnp.exp(p["down"]),
    "a mean of the rows": lambda p, x: jnp.tanh(x @ p["up"]) @ (p["down"] - p["down"].mean(0)),
}


@pytest.mark.parametrize("name", READ_BESIDE)
def test_units_that_something_without_a_mask_reads_are_none(name):
    fn = READ_BESIDE[name]
    params = {"up": numbers(16, 6), "keys": numbers(16, 6, seed=2), "down": numbers(6, 16, seed=3)}
    structure = js.graph.structure(fn, params, X)
    masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in params.items()}
    masks["down"] = masks["down"].at[1].set(False)
    dropped = [masks | {"up": masks["up"].at[:, 1].set(False)}, masks]
    outputs = [jax.tree.leaves(fn(js.mask_params(params, each), X)) for each in dropped]
    assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(*outputs, strict=True))
    assert not structure.groups


def test_units_that_several_weights_read_are_found():
    params = {"up": numbers(16, 6), "down": numbers(6, 16), "more": numbers(6, 16)}
    params["gate"] = numbers(6, 1)

    def fn(params, x):
        kernel = (params["down"] + 2 * params["more"]) * params["gate"]
        return mlp(params, x) + jnp.tanh(x @ params["up"]) @ kernel.astype(jnp.bfloat16)

    (group,) = js.graph.structure(fn, params, X).groups
    assert {m.path for m in group.members if m.role == "reads"} == {"down", "more", "gate"}


def experts(params, x):
    """Five experts with 6 neurons each."""
    h = jax.nn.relu(jnp.einsum("btd,edf->btef", x, params["up"]) + params["bias"])
    y = jnp.einsum("btef,efd->bted", h, params["down"])
    return x + (y * jax.nn.softmax(x @ params["gate"])[..., None]).sum(2)


def test_neurons_of_experts_go_in_all_of_them():
    params = {"up": numbers(5, 16, 6), "bias": numbers(5, 6), "down": numbers(5, 6, 16)}
    params["gate"] = numbers(16, 5)
    structure = js.graph.structure(experts, params, X)
    (group,) = structure.groups
    assert (group.kind, group.units) == ("neurons", 6)
    masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in params.items()}
    masks["down"] &= (jnp.arange(6) != 4)[:, None]
    found = structure.resolve(masks, refill=False)
    for path in "up", "bias":
        assert found[path].reshape(-1, 6).any(axis=0).tolist() == [u != 4 for u in range(6)]
    same, masked = (experts(js.mask_params(params, each), X) for each in (found, masks))
    np.testing.assert_allclose(same, masked, atol=1e-5)


def shared(params, x):
    """One layer, twice."""
    for _ in range(2):
        x = mlp(params, x)
    return x


def stateful(params, x, start=None):
    """What is carried is read by one weight and written by others."""

    def step(state, x):
        return jnp.tanh(jax.nn.relu(state @ params["up"]) @ params["down"] + x @ params["in"]), ()

    start = x[0] @ params["in"] if start is None else start
    return jax.lax.scan(step, start, x)[0] @ params["out"]


@pytest.mark.parametrize("fn, width", [(shared, 16), (stateful, 8)])
def test_a_layer_that_occurs_again_owns_its_neurons_and_no_state(fn, width):
    params = {"up": numbers(width, 6), "down": numbers(6, width)}
    params |= {"in": numbers(16, width), "out": numbers(width, 3)}
    (group,) = js.graph.structure(fn, params, X).groups
    assert [str(member) for member in group.members] == ["down[0]", "up[1]"]


def test_a_state_that_starts_as_a_constant_has_no_units():
    params = {
        "up": numbers(8, 6),
        "down": numbers(6, 8),
        "in": numbers(16, 8),
        "out": numbers(8, 3),
    }
    fn = functools.partial(stateful, start=jnp.zeros((3, 8)))
    assert not js.graph.structure(fn, params, X).groups


def test_a_residual_stream_of_no_input_is_none_either():
    def fn(params, x):
        return shared(params, x @ params["in"]) @ params["out"]

    params = {
        "up": numbers(8, 6),
        "down": numbers(6, 8),
        "in": numbers(16, 8),
        "out": numbers(8, 3),
    }
    (group,) = js.graph.structure(fn, params, X).groups
    assert group.units == 6


def test_names_of_groups_are_unlike():
    def fn(params, x):
        inside = params["params"]
        for n in "12":
            x = x + jnp.tanh(x @ inside["up" + n]) @ inside["down" + n]
        alone = params["last"]
        return x + jnp.tanh(x @ alone["up"]) @ alone["down"]

    params = {"params": {}, "last": {"up": jnp.ones((16, 6)), "down": jnp.ones((6, 16))}}
    for n in "12":
        params["params"] |= {f"up{n}": jnp.ones((16, 6)), f"down{n}": jnp.ones((6, 16))}
    found = [group.name for group in js.graph.structure(fn, params, X).groups]
    assert found == ["params/{up1, down1}", "params/{up2, down2}", "last"]


def test_groups_in_the_same_weights_are_numbered():
    def fn(params, x):
        h = jnp.tanh(x @ params["up"])
        return jnp.tanh(h[..., :4]) @ params["down"][:4] + jnp.exp(h[..., 4:]) @ params["down"][4:]

    params = {"up": jnp.ones((16, 8)), "down": jnp.ones((8, 16))}
    found = [group.name for group in js.graph.structure(fn, params, X).groups]
    assert found == ["up, down", "up, down #2"]
