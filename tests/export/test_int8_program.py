"""Programs in INT8: what `quantized.sparsify` made is exported as it is, kernels or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import quantized

RNG = np.random.default_rng(0)
PARAMS = {
    "up": js.pack(RNG.normal(size=(8, 32)).astype(np.float32), js.Block(4, 16), dtype=jnp.int8),
    "down": js.pack(RNG.normal(size=(32, 4)).astype(np.float32), js.Block(4, 4), dtype=jnp.int8),
}
CODES = {"up": quantized.of_range(-2, 2), "down": quantized.of_range(0, 6)}
X = jnp.asarray(RNG.normal(size=(3, 8)).astype(np.float32))


def mlp(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_a_program_multiplies_in_integers(weights, tmp_path):
    run, path = quantized.sparsify(mlp, CODES), tmp_path / "model.stablehlo"
    js.export_stablehlo(run, X, path=path, params=PARAMS, weights=weights)
    program = js.load_stablehlo(path)
    text = program.exported.mlir_module()
    assert "xi8>" in text and "-> tensor<?x32xi32>" in text
    assert "custom_call @jaxsparse" not in text
    for x in (X, X[:1]):
        np.testing.assert_array_equal(program(x), jax.jit(run)(PARAMS, x))


def test_kernels_stay_where_they_are_asked_for(tmp_path):
    if js.implementations()["cpu"] != "available":
        pytest.skip(f"no native kernels: {js.implementations()['cpu']}")
    run, path = quantized.sparsify(mlp, CODES, implementation="cpu"), tmp_path / "model.stablehlo"
    with pytest.raises(js.ExportError, match=r"asks for the kernel 'cpu'.*and native=True where"):
        js.export_stablehlo(run, X, path=path, params=PARAMS, weights="beside")
    js.export_stablehlo(run, X, path=path, params=PARAMS, weights="beside", native=True)
    program = js.load_stablehlo(path)
    assert "jaxsparse_block_int8" in program.exported.mlir_module()
    for x in (X, X[:1]):
        np.testing.assert_array_equal(program(x), jax.jit(run)(PARAMS, x))


def test_kernels_that_are_missing_are_named(tmp_path, monkeypatch):
    if js.implementations()["cpu"] != "available":
        with pytest.raises(ValueError, match="implementation='cpu' cannot be used"):
            js.export_stablehlo(mlp, X, path=tmp_path / "m", params=PARAMS, native=True)
        return
    path = tmp_path / "model.stablehlo"
    run = quantized.sparsify(mlp, CODES, implementation="cpu")
    js.export_stablehlo(run, X, path=path, params=PARAMS, native=True)
    monkeypatch.setattr("jaxsparse.export.stablehlo.library.missing", lambda: "no compiler")
    with pytest.raises(ValueError, match="cannot be used here: no compiler; a program that was"):
        js.load_stablehlo(path)
