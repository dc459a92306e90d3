"""Surgery keeps what a layer does, or refuses by its path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.nn.nnx import SparseLinear

HALF = js.Unstructured(), 0.5


def masked(model, rules):
    """The model with its masks applied."""
    state = nnx.state(model, nnx.Param)
    return nnx.merge(
        nnx.graphdef(model),
        js.mask_params(state, js.compute_masks(state, rules)),
        nnx.state(model, nnx.Not(nnx.Param)),
    )


def counted(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


class Tagged(nnx.Param):
    """A kind of parameter of the user's own."""


def cast_later(arrays, *, dtype):
    return nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype or jnp.float16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, jnp.float32),
        ({"use_bias": False}, jnp.float32),
        ({"dtype": jnp.bfloat16}, jnp.bfloat16),
        ({"param_dtype": jnp.bfloat16}, jnp.float32),
        ({"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}, jnp.float32),
        ({"promote_dtype": cast_later}, jnp.float16),
        ({"kernel_metadata": {"group": "slow"}, "bias_metadata": {"group": "fast"}}, jnp.float32),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else given.__name__,
)
def test_options_of_a_layer_are_kept(options, dtype):
    layer = nnx.Linear(16, 32, rngs=nnx.Rngs(0), **options)
    model, x = nnx.Sequential(layer), jax.random.normal(jax.random.key(1), (3, 16))
    rules = [js.Rule("layers/0/kernel", *HALF)]
    new, surgery = js.nn.replace(model, rules, inputs=[x])
    assert isinstance(new.layers[0], SparseLinear)
    y, right = new(x), masked(model, rules)(x)
    assert y.dtype == right.dtype == dtype
    np.testing.assert_allclose(y, right, rtol=0.05, atol=0.02 if dtype != jnp.float32 else 1e-5)
    assert surgery.after == counted(new) == surgery.before - 256
    for name in ("use_bias", "dtype", "param_dtype", "in_features", "out_features"):
        assert getattr(new.layers[0], name) == getattr(layer, name)
    for name in ("kernel", "bias"):
        if "bias_metadata" in options:
            kept, old = getattr(new.layers[0], name), getattr(layer, name)
            assert kept.get_metadata() == old.get_metadata() and "group" in kept.get_metadata()


@pytest.mark.slow
def test_kinds_of_parameters_are_kept():
    layer = nnx.Linear(16, 32, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = Tagged(layer.kernel[...]), Tagged(layer.bias[...])
    new, _ = js.nn.replace(nnx.Sequential(layer), [js.Rule("layers/0/kernel", *HALF)])
    assert type(new.layers[0].kernel) is type(new.layers[0].bias) is Tagged
    assert len(jax.tree.leaves(nnx.state(new, Tagged))) == 2


@pytest.mark.slow
def test_a_model_that_is_one_layer():
    layer = nnx.Linear(16, 32, rngs=nnx.Rngs(0))
    new, surgery = js.nn.replace(layer, [js.Rule("kernel", *HALF)], inputs=[jnp.ones((2, 16))])
    assert isinstance(new, SparseLinear) and surgery.after == 256 + 32


@pytest.mark.slow
def test_results_are_laid_out_as_asked():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    layer = nnx.Linear(16, 32, rngs=nnx.Rngs(0))
    new, _ = js.nn.replace(layer, [js.Rule("kernel", *HALF)])
    with jax.set_mesh(mesh):
        spec = jax.P(None, "x")
        y = jax.jit(lambda x: new(x, out_sharding=spec))(jnp.ones((2, 16)))
        assert jax.typeof(y).sharding.spec == spec


@pytest.mark.slow
def test_models_on_several_devices_stay_there():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    model, x = nnx.Sequential(linear(), nnx.relu, linear()), jnp.ones((8, 16))
    state = nnx.state(model)
    split = jax.NamedSharding(mesh, jax.P("x"))
    nnx.update(model, jax.tree.map(lambda leaf: jax.device_put(leaf, split), state))
    rules = [js.Rule("layers/0/kernel", *HALF)]
    new, _ = js.nn.replace(model, rules, inputs=[x])
    for leaf in jax.tree.leaves(nnx.state(new)):
        assert len(leaf.sharding.device_set) == 8
    np.testing.assert_allclose(new(x), masked(model, rules)(x), rtol=1e-4, atol=1e-5)


class Scaled(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Held(nnx.Module):
    def __init__(self, layer):
        self.layers = nnx.data((layer, nnx.relu))

    def __call__(self, x):
        return self.layers[0](x)


def linear(**options):
    return nnx.Linear(16, 16, rngs=nnx.Rngs(0), **options)


def with_attribute():
    layer = linear()
    layer.gain = nnx.Param(jnp.ones(()))
    return layer


def with_metadata(**metadata):
    layer = linear()
    layer.kernel.set_metadata(**metadata)
    return layer


def quick_dot(*args, **kwargs):
    return jax.lax.dot_general(*args, **kwargs)


REFUSED = {
    "LoRALinear": (lambda r: nnx.LoRALinear(16, 16, lora_rank=2, rngs=r), "nnx.LoRA"),
    "Scaled": (lambda r: Scaled(16, 16, rngs=r), "of Scaled"),
    "LinearGeneral": (lambda r: nnx.LinearGeneral(16, (4, 4), rngs=r), "LinearGeneral"),
    "Einsum": (lambda r: nnx.Einsum("ab,bc->ac", (16, 16), rngs=r), "Einsum"),
    "Conv": (lambda r: nnx.Conv(16, 16, (3, 3), rngs=r), "Conv"),
    "dot_general": (lambda r: linear(dot_general=quick_dot), "dot_general=.*quick_dot"),
    "precision": (lambda r: linear(precision="highest"), "precision='highest'"),
    "attribute": (lambda r: with_attribute(), "Param 'gain'"),
    "sharding": (
        lambda r: with_metadata(out_sharding=(None, "model")),
        r"out_sharding=\(None, 'model'\)",
    ),
    "hook": (lambda r: with_metadata(on_get_value=lambda variable, x: 2 * x), "on_get_value"),
}


@pytest.mark.parametrize(
    "name",
    [
        "LoRALinear",
        *(pytest.param(n, marks=pytest.mark.slow) for n in REFUSED if n != "LoRALinear"),
    ],
)
def test_layers_that_do_more_are_refused_by_their_path(name):
    make, reason = REFUSED[name]
    model = nnx.Sequential(make(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=rf"'layers/0/kernel'.*{reason}.*") as error:
        js.nn.replace(model, [js.Rule("layers/0/kernel", *HALF, in_axis=-2, out_axis=-1)])
    assert "pack_params and sparsify" in str(error.value)


@pytest.mark.slow
def test_the_cure_for_a_refusal_works():
    model, x = nnx.Sequential(Scaled(16, 16, rngs=nnx.Rngs(0))), jnp.ones((2, 16))
    rules = [js.Rule("layers/0/kernel", *HALF)]
    graph, params = nnx.split(model)
    packed = js.pack_params(params, js.compute_masks(params, rules), rules)
    y = js.sparsify(lambda params, x: nnx.merge(graph, params)(x), on_dense="error")(packed, x)
    np.testing.assert_allclose(y, masked(model, rules)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_other_holders_and_axes_are_refused():
    rules = [js.Rule(".*kernel", *HALF)]
    with pytest.raises(ValueError, match=r"'layers/0/kernel'.*held by a tuple at 'layers/0'"):
        js.nn.replace(Held(linear()), rules)
    normed = nnx.WeightNorm(linear(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="held by a WeightNorm"):
        js.nn.replace(normed, [js.Rule("layer_instance/kernel", *HALF)])
    turned = [js.Rule("kernel", js.NM(2, 4), in_axis=1, out_axis=0)]
    with pytest.raises(ValueError, match=r"'kernel' of shape \(16, 16\) was packed as"):
        js.nn.replace(linear(), turned)
    stack = nnx.vmap(lambda r: nnx.Linear(16, 16, rngs=r))(nnx.Rngs(0).split(3))
    with pytest.raises(ValueError, match=r"'kernel' of shape \(3, 16, 16\) was packed as"):
        js.nn.replace(stack, [js.Rule("kernel", *HALF, batch_axis=0)])


class Shared(nnx.Module):
    """One layer in three places, a kernel in two layers, and one tied to an embedding."""

    def __init__(self, rngs, tied=False):
        self.b = linear()
        self.a = self.b
        self.list = nnx.List([self.b])
        self.other = linear()
        self.other.kernel = self.b.kernel
        self.embed = nnx.Embed(16, 16, rngs=rngs)
        if tied:
            self.embed.embedding = self.b.kernel

    def __call__(self, x):
        return self.other(self.list[0](self.b(self.a(x)))) @ self.embed.embedding[...]


def test_what_is_shared_stays_shared():
    model, x = Shared(nnx.Rngs(0)), jnp.ones((2, 16))
    rules = [js.Rule("a/kernel", *HALF)]
    new, surgery = js.nn.replace(model, rules, inputs=[x])
    assert isinstance(new.a, SparseLinear)
    assert new.a is new.b is new.list[0] and new.other is not new.a
    assert new.other.kernel is new.a.kernel and new.other.structure is new.a.structure
    assert new.other.bias is not new.a.bias
    assert surgery.before == counted(model) == 256 + 256 + 32
    assert surgery.after == counted(new) == 128 + 256 + 32
    np.testing.assert_allclose(new(x), masked(model, rules)(x), rtol=1e-4, atol=1e-4)

    optimizer = nnx.Optimizer(new, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(new, nnx.grad(lambda m: jnp.sum(m(x) ** 2))(new))
    assert new.other.kernel is new.a.kernel and new.a is new.b


@pytest.mark.slow
def test_other_names_of_what_is_shared():
    with pytest.raises(ValueError, match=r"'list/0/kernel', which is shared.*'a/kernel'"):
        js.nn.replace(Shared(nnx.Rngs(0)), [js.Rule("list/0/kernel", *HALF)])
    with pytest.raises(ValueError, match=r"'a/kernel \(shared with embed/embedding\)'.*Embed"):
        js.nn.replace(Shared(nnx.Rngs(0), tied=True), [js.Rule("a/kernel", *HALF)])


class Busy(nnx.Module):
    """Dropout, running statistics, keys and containers."""

    def __init__(self, rngs):
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.Dict(one=nnx.Linear(32, 16, rngs=rngs), two=nnx.Linear(32, 8, rngs=rngs))

    def __call__(self, x):
        y = self.drop(nnx.relu(self.norm(self.up(x))))
        return {name: head(y) for name, head in self.heads.items()}


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_models_with_dropout_and_running_means_survive(training):
    model, x = Busy(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (8, 16))
    model.train() if training else model.eval()
    rules = [js.Rule("up/kernel", js.Block(4, 16), 0.5), js.Rule("heads/.*/kernel", js.NM(2, 4))]
    new, surgery = js.nn.replace(model, rules, inputs=[x])
    assert surgery.after == counted(new)
    others = nnx.Not(nnx.Any(nnx.Param, nnx.PathContains("structure")))
    before, after = (js.leaves_by_path(nnx.state(m, others)) for m in (model, new))
    assert set(before) == set(after)  # and comparing has not moved them
    for path, leaf in before.items():
        pair = [leaf, after[path]]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            pair = [jax.random.key_data(key) for key in pair]
        np.testing.assert_array_equal(*pair)
    right = masked(model, rules)(x)
    for name, y in new(x).items():
        np.testing.assert_allclose(y, right[name], rtol=1e-4, atol=1e-4)


class Reads(nnx.Module):
    """A model whose own code reads the kernel of a layer."""

    def __init__(self, penalty):
        self.layer, self.penalty = linear(), penalty

    def __call__(self, x):
        if self.penalty:
            return self.layer(x) + jnp.sum(self.layer.kernel[...])
        return x @ self.layer.kernel[...]


class Means(Reads):
    def __call__(self, x):
        return self.layer(x) + jnp.mean(self.layer.kernel[...])


@pytest.mark.slow
def test_models_that_read_a_kernel_are_found_by_inputs():
    rules, x = [js.Rule("layer/kernel", js.Block(4, 16), 0.5)], jnp.ones((2, 16))
    with pytest.raises(ValueError, match="does not run"):
        js.nn.replace(Reads(False), rules, inputs=[x])
    with pytest.raises(ValueError, match="does not run"):
        js.nn.replace(Reads(False), rules, inputs=[jax.ShapeDtypeStruct((2, 16), jnp.float32)])
    new, _ = js.nn.replace(Reads(True), rules, inputs=[x])  # the sum of what is kept is the same
    assert isinstance(new.layer, SparseLinear)
    mean = Means(True)
    with pytest.raises(ValueError, match="computes something else than the masked one"):
        js.nn.replace(mean, rules, inputs=[x])


@pytest.mark.slow
def test_leaves_that_are_one_array_stay_one():
    w = jax.random.normal(jax.random.key(0), (16, 16))
    params = {"in": {"kernel": w}, "out": {"kernel": w, "bias": jnp.zeros(16)}}
    new, surgery = js.nn.replace(params, [js.Rule(".*/kernel", *HALF)])
    assert new["in"]["kernel"] is new["out"]["kernel"]
    assert (surgery.before, surgery.after) == (256 + 16, 128 + 16)
    for rules in (
        [js.Rule("in/kernel", *HALF)],
        [js.Rule("in/.*", *HALF), js.Rule("out/k.*", js.NM(2, 4))],
    ):
        with pytest.raises(ValueError, match="'in/kernel' is the same array as 'out/kernel'"):
            js.nn.replace(params, rules)
    with pytest.raises(ValueError, match=r"inputs are for an nnx\.Module"):
        js.nn.replace(params, [js.Rule(".*/kernel", *HALF)], inputs=[w])
