"""The native kernels of sparse convolution against XLA's."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_cases import SHAPES, check, drawn, results

from jaxsparse import activations as act
from jaxsparse.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_products_and_gradients_are_those_of_xla(shape):
    check(np.random.default_rng(1), *shape)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_on_every_instruction_set(isa):
    environment = os.environ | {"JAXSPARSE_CPU_ISA": isa, "JAX_PLATFORMS": "cpu"}
    probe = [sys.executable, "-c", "from jaxsparse.kernels import cpu; print(cpu.missing() or '')"]
    if subprocess.run(probe, env=environment, capture_output=True).stdout.strip():
        pytest.skip(f"this processor has no {isa}")
    program = [sys.executable, os.path.join(os.path.dirname(__file__), "native_cases.py")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


@pytest.fixture
def small():
    rng = np.random.default_rng(2)
    x = drawn(rng, 60, 4)
    return x, act.kernel_map(x, 3), jnp.asarray(rng.normal(size=(3, 3, 3, 4, 6)), jnp.float32)


def test_a_cpu_takes_them_unasked(small):
    x, maps, w = small

    def lowered(dataflow, x=x, w=w):
        run = jax.jit(lambda f, w: act.sparse_conv(x, w, maps, dataflow=dataflow).features)
        return run.lower(x.features, w).as_text()

    assert "jaxsparse_cloud_pairs" in lowered(None) and "dot_general" not in lowered(None)
    assert "jaxsparse_cloud_pairs" not in lowered("implicit")
    half = x.map(lambda f: f.astype(jnp.bfloat16))
    assert "jaxsparse_cloud_pairs" in lowered(None, half, w.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_halves_are_summed_in_float32(small, dtype):
    x, maps, w = small
    x, w = x.map(lambda f: f.astype(dtype)), w.astype(dtype)
    g = jnp.ones((65, 6), dtype)
    found, expected = (results(x, w, g, maps, d) for d in ("native", "implicit"))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        one, other = (np.asarray(v, np.float32) for v in (one, other))
        # Sums in another order may round to the neighbour, no further.
        np.testing.assert_allclose(one, other, rtol=2.0 ** -(7 if dtype == jnp.bfloat16 else 10))


def test_clouds_and_weights_are_mapped_over(small):
    x, maps, w = small
    rng = np.random.default_rng(3)
    stacked = jnp.asarray(rng.normal(size=(3, *x.features.shape)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, *w.shape)), jnp.float32)

    def loss(features, w):
        y = act.sparse_conv(x.with_features(features), w, maps, dataflow="native")
        return jnp.sum(y.features**2)

    slopes = jax.grad(loss, argnums=(0, 1))
    for axes in ((0, 0), (0, None), (None, 0)):
        picked = [
            many if a == 0 else many[0] for many, a in zip((stacked, weights), axes, strict=True)
        ]
        found = jax.jit(jax.vmap(slopes, axes))(*picked)
        for i in range(3):
            one = slopes(*(p if a is None else p[i] for p, a in zip(picked, axes, strict=True)))
            for a, b in zip(found, one, strict=True):
                np.testing.assert_allclose(a[i], b, atol=1e-3)


def test_gradients_have_gradients(small):
    x, maps, w = small
    x = x.map(lambda f: jnp.where(x.valid[:, None], f, 0))

    def loss(features, w, dataflow):
        y = act.sparse_conv(x.with_features(features), w, maps, dataflow=dataflow)
        return jnp.mean(jnp.sin(y.features))

    def steepness(features, w, dataflow):
        dx, dw = jax.grad(loss, argnums=(0, 1))(features, w, dataflow)
        return jnp.sum(dx**2) + jnp.sum(dw**2)

    slopes = jax.jit(jax.grad(steepness, argnums=(0, 1)), static_argnums=2)
    found, expected = (slopes(x.features, w, dataflow) for dataflow in ("native", "implicit"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_where_they_cannot_run_another_is_taken_or_the_name_refused(small):
    x, maps, w = small

    def run(features, w, dataflow=None):
        return act.sparse_conv(x.with_features(features), w, maps, dataflow=dataflow).features

    exported = jax.export.export(jax.jit(run))(x.features, w)
    assert "jaxsparse_cloud" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(x.features, w), run(x.features, w), atol=1e-5)
    with pytest.raises(
        ValueError, match="native cloud_product cannot be used: it cannot be exported"
    ):
        jax.export.export(jax.jit(lambda f, w: run(f, w, "native")))(x.features, w)
    with jax.enable_x64(True):
        wide = x.map(lambda f: f.astype(jnp.float64))
        with pytest.raises(ValueError, match="sums in float32, x and w are float64"):
            act.sparse_conv(wide, w, maps, dataflow="native")
        assert act.sparse_conv(wide, w, maps).features.dtype == jnp.float64
