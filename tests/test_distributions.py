"""One sparsity for the model, many for its leaves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js

ALL = [js.Rule(".*", js.Unstructured())]


def resnet50():
    """(path, kernel shape, output resolution) of ResNet-50 v1.5: the 3x3 has the stride."""
    yield "stem/kernel", (7, 7, 3, 64), 112
    inputs, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            out = size // 2 if block == 0 and stage > 0 else size
            name = f"stage{stage}_block{block}"
            yield f"{name}/conv1/kernel", (1, 1, inputs, width), size
            yield f"{name}/conv2/kernel", (3, 3, width, width), out
            yield f"{name}/conv3/kernel", (1, 1, width, 4 * width), out
            if block == 0:
                yield f"{name}/proj/kernel", (1, 1, inputs, 4 * width), out
            inputs, size = 4 * width, out
    yield "head/kernel", (2048, 1000), 1


def erk_oracle(shapes, sparsity):
    """Densities min(1, c * sum / prod), with c by bisection."""

    def densities(c):
        return {p: min(1.0, c * sum(s) / math.prod(s)) for p, s in shapes.items()}

    def kept(c):
        return sum(d * math.prod(shapes[p]) for p, d in densities(c).items())

    low, high, budget = 0.0, 1e9, (1 - sparsity) * sum(map(math.prod, shapes.values()))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) < budget else (low, middle)
    return densities(high)


def structs(shapes):
    return {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}


def compute(params, rules=ALL, **options):
    """Compiled as a whole, which takes less time than op by op."""
    return jax.jit(lambda params: js.compute_masks(params, rules, **options))(params)


def counts(masks):
    return {path: int(mask.sum()) for path, mask in masks.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.3, 0.5, 0.9, 0.99])
def test_erk_against_bisection(sparsity):
    rng = np.random.default_rng(0)
    shapes = {f"conv{i}": tuple(int(x) for x in rng.integers(1, 40, 4)) for i in range(6)}
    shapes |= {"dense": (300, 7), "small": (3, 4)}
    rules = [js.Rule("conv.*", js.Unstructured()), js.Rule("dense|small", js.Unstructured())]
    got = js.targets(rules, structs(shapes), sparsity, js.erk())
    for path, density in erk_oracle(shapes, sparsity).items():
        assert 1 - got[path] == pytest.approx(density, abs=1e-9)
        assert 0 <= got[path] < 1


def test_erk_of_a_stack_is_that_of_its_layers():
    layers = {f"l{i}": (20, 30) for i in range(4)} | {"head": (30, 10)}
    stack = {"layers/kernel": (4, 20, 30), "head": (30, 10)}
    apart = js.targets(ALL, structs(layers), 0.8, js.erk())
    rules = [
        js.Rule("layers.*", js.Unstructured(), batch_axis=0),
        js.Rule("head", js.Unstructured()),
    ]
    together = js.targets(rules, structs(stack), 0.8, js.erk())
    assert together["layers/kernel"] == pytest.approx(apart["l0"])
    assert together["head"] == pytest.approx(apart["head"])


@pytest.mark.parametrize(
    "sparsity,erk,uniform", [(0.8, 0.414, 0.223), (0.9, 0.242, 0.126), (0.95, 0.122, 0.077)]
)
def test_resnet50_flops(sparsity, erk, uniform):
    layers = {path: (shape, size) for path, shape, size in resnet50()}
    macs = {path: math.prod(shape) * size**2 for path, (shape, size) in layers.items()}
    params = structs({path: shape for path, (shape, _) in layers.items()})
    assert sum(macs.values()) == pytest.approx(4.09e9, rel=1e-3)

    def share(targets):
        return sum((1 - targets.get(p, 0)) * m for p, m in macs.items()) / sum(macs.values())

    assert share(js.targets(ALL, params, sparsity, js.erk())) == pytest.approx(erk, abs=6e-4)
    rest = [js.Rule("(?!stem).*", js.Unstructured())]
    assert share(js.targets(rest, params, sparsity)) == pytest.approx(uniform, abs=6e-4)


def test_a_rules_own_sparsity_and_nm_come_first():
    params = structs({"a": (8, 8), "b": (8, 8), "c": (8, 8)})
    rules = [
        js.Rule("a", js.Unstructured(), 0.25),
        js.Rule("b", js.NM(1, 4)),
        js.Rule("c", js.Unstructured()),
    ]
    for distribution in (js.uniform(), js.erk(), js.global_()):
        got = js.targets(rules, params, 0.6, distribution)
        assert got == pytest.approx({"a": 0.25, "b": 0.75, "c": 0.6})
    with pytest.raises(ValueError, match="no sparsity for leaf 'c'"):
        js.targets(rules, params)
    with pytest.raises(ValueError, match=r"sparsity 90.*did you mean 0.9"):
        js.targets(rules, params, 90)


def test_global_is_one_threshold():
    rng = np.random.default_rng(1)
    params = {f"l{i}": jnp.asarray(rng.normal(size=s), jnp.float32) * (i + 1)
              for i, s in enumerate([(40, 30), (7, 5), (64,)])}  # fmt: skip
    masks = compute(params, sparsity=0.7, distribution=js.global_(0.0, 0.999))
    flat = np.concatenate([np.abs(np.asarray(w)).ravel() for w in params.values()])
    cut = np.sort(flat)[round(0.7 * flat.size)]
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, np.abs(np.asarray(params[path])) >= cut)


def test_global_bounds_are_kept_and_the_rest_redistributed():
    rng = np.random.default_rng(2)
    scale = {"large": 100.0, "middle": 1.0, "small": 0.01}
    params = {p: jnp.asarray(rng.random((50, 20)) + 0.1, jnp.float32) * s for p, s in scale.items()}
    free = counts(compute(params, sparsity=0.6, distribution=js.global_(0, 1 - 1e-9)))
    assert free == {"large": 1000, "middle": 200, "small": 0}
    bound = js.global_(0.3, 0.9)
    masks = compute(params, sparsity=0.6, distribution=bound)
    assert counts(masks) == {"large": 700, "middle": 400, "small": 100}
    for path, mask in masks.items():  # within a leaf the largest
        w = np.asarray(params[path])
        assert w[np.asarray(mask)].min() > w[~np.asarray(mask)].max()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("levels", [1, 3])
def test_global_total_is_exact_with_ties_over_leaves_and_layers(sparsity, levels):
    rng = np.random.default_rng(3)
    params = {
        "layers/kernel": jnp.asarray(rng.integers(0, levels, (5, 8, 6)), jnp.float32),
        "head/kernel": jnp.asarray(rng.integers(0, levels, (33, 4)), jnp.float32),
        "bias": jnp.zeros(17),
    }
    rules = [
        js.Rule("layers/kernel", js.Unstructured(), batch_axis=0),
        js.Rule("head/kernel|bias", js.Unstructured()),
    ]
    masks = compute(params, rules, sparsity=sparsity, distribution=js.global_(0.05, 0.9))
    size = 240 + 132 + 17
    assert sum(counts(masks).values()) == size - round(sparsity * size)
    slices = [*np.asarray(masks["layers/kernel"]), masks["head/kernel"], masks["bias"]]
    for mask in map(np.asarray, slices):
        assert mask.size - round(0.9 * mask.size) <= mask.sum()
        assert mask.sum() <= mask.size - round(0.05 * mask.size)


def test_global_is_jointly_chosen_at_every_step_of_a_schedule():
    params = {"a": jnp.arange(1.0, 101.0), "b": jnp.arange(1001.0, 1101.0)}
    for schedule, asked in (
        (js.linear(0.4, begin=0, end=2, every=1), [0.4, 0.45, 0.5]),
        (0.4, [0.4]),  # the schedule is the sparsity itself
    ):
        tx = js.prune(ALL, schedule=schedule, sparsity=0.5 if len(asked) > 1 else None,
                      distribution=js.global_(0.0, 0.98))  # fmt: skip
        state, update = tx.init(params), jax.jit(tx.update)
        for sparsity in asked:
            _, state = update(params, state, params)
            kept = counts(js.masks(state))
            assert kept == {"a": max(2, 100 - round(200 * sparsity)), "b": kept["b"]}
            assert sum(kept.values()) == 200 - round(200 * sparsity)


def test_global_ranks_float32_and_float64_leaves_together():
    with jax.enable_x64(True):
        params = {"a": jnp.asarray([1.0, 2, 3, 4], jnp.float32)}
        params["b"] = jnp.asarray([1.5, 2.5, 0.1, 0.2], jnp.float64)
        masks = compute(params, sparsity=0.5, distribution=js.global_())
    assert masks["a"].tolist() == [False, True, True, True]
    assert masks["b"].tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: js.global_(0.5, 0.4), "minimum=0.5 > maximum=0.4"),
        (lambda: js.global_(-0.1), "minimum"),
        (lambda: js.global_(0, 1.0), "maximum"),
        (lambda: js.targets(ALL, structs({"w": (4,)}), 0.99, js.global_()), "0.99 is out of reach"),
        (lambda: js.targets(ALL, structs({"w": (4,)}), 0.1, js.global_(0.2)), "0.1 is out of rea"),
    ],
)
def test_out_of_reach(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_global_refuses_groups_of_different_sizes():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    rules = [js.Rule("a", js.Block(2, 4)), js.Rule("b", js.Block(4, 4))]
    with pytest.raises(ValueError, match="8 in 'a', 16 in 'b'; by_size=True"):
        js.targets(rules, params, 0.5, js.global_())
    tx = js.prune(rules, schedule=0.5, distribution=js.global_())
    with pytest.raises(ValueError, match="8 in 'a', 16 in 'b'; by_size=True"):
        tx.update(params, tx.init(params), params)


def test_global_by_size_has_a_threshold_for_groups_of_each_size():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: scale * jax.random.normal(key, (8, 8))
        for name, scale, key in zip("abc", (1, 3, 10), keys, strict=True)
    }
    rules = [js.Rule("[ab]", js.Block(2, 4)), js.Rule("c", js.Block(4, 4))]
    masks = compute(params, rules, sparsity=0.5, distribution=js.global_(by_size=True))
    ones = {name: params[name] for name in "ab"}
    apart = compute(ones, rules[:1], sparsity=0.5, distribution=js.global_())
    apart |= compute({"c": params["c"]}, rules[1:], sparsity=0.5, distribution=js.global_())
    jax.tree.map(np.testing.assert_array_equal, masks, apart)
    assert counts(masks)["a"] < counts(masks)["b"] and counts(masks)["c"] == 32
