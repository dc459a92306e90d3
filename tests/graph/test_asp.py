"""ASP: which kernels, and a model that is ready for fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse as js
from jaxsparse.graph import asp, asp_rules


def kernels(**shapes):
    return {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}


def test_eligible_kernels():
    params = kernels(
        dense=(32, 8),
        odd_inputs=(20, 8),
        odd_outputs=(32, 10),
        conv=(3, 3, 16, 24),
        conv_stem=(3, 3, 3, 16),
        conv_narrow=(3, 3, 20, 16),
    ) | {"norm": {"scale": jnp.zeros(16)}}
    assert {r.path for r in asp_rules(params)} == {"dense/kernel", "conv/kernel"}
    padded = asp_rules(params, padding=True)
    # Padding puts zeros behind all taps: groups of the stem would reach over them.
    assert {r.path for r in padded} == {
        "dense/kernel",
        r"odd_inputs/kernel",
        "conv/kernel",
        "conv_narrow/kernel",
    }
    masks = js.compute_masks(kernels(odd=(18, 8)), asp_rules(kernels(odd=(18, 8)), padding=True))
    assert masks["odd/kernel"].shape == (18, 8)
    with pytest.raises(ValueError, match=r"no kernel is eligible for 2:4.*head/kernel \(16, 3\)"):
        asp_rules(kernels(head=(16, 3)))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(32, (3, 3))(x)))
        return nn.Dense(8)(nn.relu(nn.Dense(64)(x.mean((1, 2)))))


@pytest.mark.slow
def test_two_lines_of_linen():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = Net().init(jax.random.key(1), x)
    sparse = asp(Net().apply, variables, x, escapes=5)
    tx = js.pruned(optax.sgd(1e-2), js.prune(sparse.rules, masks=sparse.masks))

    before, after = Net().apply(variables, x), Net().apply(sparse.params, x)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert sorted(sparse.masks) == ["Conv_1/kernel", "Dense_0/kernel", "Dense_1/kernel"]
    assert all(row.retained > row.plain for row in sparse.report.groups)

    params, state = sparse.params["params"], tx.init(sparse.params["params"])
    for _ in range(3):
        masks = js.masks(state)
        grads = jax.grad(lambda p: jnp.sum(Net().apply({**sparse.params, "params": p}, x) ** 2))(
            js.mask_params(params, masks)
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for path, mask in js.masks(state).items():
        assert np.array_equal(mask, sparse.masks[path])
        groups = np.moveaxis(np.asarray(mask), -2, -1).reshape(-1, 4)
        assert (groups.sum(axis=1) == 2).all()
    kernel = params["Dense_0"]["kernel"]
    assert np.array_equal(kernel != 0, sparse.masks["Dense_0/kernel"])


@pytest.mark.slow
def test_an_nnx_state():
    model = nnx.Sequential(
        nnx.Linear(16, 32, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(32, 8, rngs=nnx.Rngs(1))
    )
    graphdef, state = nnx.split(model)
    x = jnp.ones((2, 16))
    sparse = asp(lambda s, x: nnx.merge(graphdef, s)(x), state, x, escapes=0)
    assert sorted(sparse.masks) == ["layers/0/kernel", "layers/2/kernel"]
    np.testing.assert_allclose(nnx.merge(graphdef, sparse.params)(x), model(x), rtol=1e-5)
    plain = asp(lambda s, x: nnx.merge(graphdef, s)(x), state, x, permutation=False)
    assert plain.report is None
    kept = [
        sum(float(jnp.abs(jnp.where(mask, leaf, 0)).sum()) for mask, leaf in zip(m, w, strict=True))
        for m, w in (
            (run.masks.values(), (run.params["layers"][i]["kernel"][...] for i in (0, 2)))
            for run in (plain, sparse)
        )
    ]
    assert kept[1] > kept[0]


class Named(nnx.Module):
    """Layers whose kernels' axes no name tells."""

    def __init__(self, rngs):
        self.q_proj = nnx.LinearGeneral(32, (16, 8), rngs=rngs)
        self.query = nnx.LinearGeneral(32, (16, 8), rngs=rngs)
        self.o = nnx.Einsum("bnh,nhd->bd", (16, 16, 32), rngs=rngs)
        self.up = nnx.ConvTranspose(32, 16, (2, 2), transpose_kernel=True, rngs=rngs)
        self.plain = nnx.ConvTranspose(16, 32, (2, 2), rngs=rngs)
        self.table = nnx.Embed(16, 32, rngs=rngs)

    def __call__(self, image, ids):
        x = self.plain(self.up(image)).mean((1, 2)) + self.table(ids)
        heads = jnp.concatenate([self.q_proj(x), self.query(x)], -1)
        return self.o(heads)


@pytest.mark.slow
def test_groups_lie_along_what_the_products_sum_over():
    model = Named(nnx.Rngs(0))
    inputs = jnp.ones((1, 4, 4, 32)), jnp.ones(1, int)
    sparse = asp(lambda m, *inputs: m(*inputs), model, *inputs, permutation=False)
    inner = {"q_proj": 0, "query": 0, "o": 1, "up": 3, "plain": 2}
    assert sorted(sparse.masks) == sorted(f"{name}/kernel" for name in inner)
    for name, axis in inner.items():
        mask = np.moveaxis(np.asarray(sparse.masks[f"{name}/kernel"]), axis, -1)
        assert (mask.reshape(-1, 4).sum(1) == 2).all(), name
    with pytest.raises(ValueError, match=r"'o/kernel' of shape \(16, 16, 32\).*does not tell"):
        asp_rules(model)


@pytest.mark.slow
def test_weights_of_other_frameworks():
    params = {
        "conv": {"weight": jax.random.normal(jax.random.key(0), (8, 16, 3, 3))},
        "linear": {"weight": jax.random.normal(jax.random.key(1), (24, 16))},
    }

    def model(p, x, y):
        image = jax.lax.conv_general_dilated(x, p["conv"]["weight"], (1, 1), "SAME")
        return image, y @ p["linear"]["weight"].T

    inputs = jnp.ones((1, 16, 4, 4)), jnp.ones((2, 16))
    masks = asp(model, params, *inputs, permutation=False).masks
    for name in ("conv/weight", "linear/weight"):
        groups = np.moveaxis(np.asarray(masks[name]), 1, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all(), name
