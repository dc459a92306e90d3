"""Files of ONNX, in ONNX Runtime and OpenVINO: `make test-onnx` has both, and jax2onnx."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxsparse as js
from jaxsparse.export.program import ExportError

NEEDED = ("jax2onnx", "onnxruntime", "openvino")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
converted = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} missing: make test-onnx has an environment"
)
# Of a runtime's own processes.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

X = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
STORAGES = {
    "blocks": (js.Block(4, 16), 0.5, None),
    "int8 blocks": (js.Block(4, 16), 0.5, jnp.int8),
    "2:4": (js.NM(2, 4), None, None),
    "bitmap": (js.Unstructured(), 0.5, None),
    "csc": (js.Unstructured(), 0.9, None),
}


class Attention(nnx.Module):
    """What runtimes fuse, and whose heads `shrink_model` removes."""

    def __init__(self, rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(32, 32, rngs=rngs) for _ in "qkvo")
        self.norm = nnx.LayerNorm(32, rngs=rngs)

    def __call__(self, x, mask):
        def heads(y):
            return y.reshape(*y.shape[:-1], -1, 8)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -1e9))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return {"hidden": self.norm(x + self.out(y.reshape(*y.shape[:2], -1)))}


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


def weights():
    up, down = jax.random.split(jax.random.key(1))
    return {
        "up": jax.random.normal(up, (32, 48)),
        "bias": jnp.ones(48),
        "down": jax.random.normal(down, (48, 4)),
    }


def packed(name):
    pattern, sparsity, dtype = STORAGES[name]
    rules = [js.Rule("up", pattern, sparsity)]
    return js.pack_params(weights(), js.compute_masks(weights(), rules), rules, dtype=dtype)


def assert_runs(path, expected, **inputs):
    """Both runtimes give these outputs, for all rows and for the first two."""
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(path)
    single = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert {value.name for value in session.get_inputs()} == set(inputs)
    names = [value.name for value in session.get_outputs()]
    assert set(names) == set(expected)
    for rows in (slice(None), slice(2)):
        given = {name: value[rows] for name, value in inputs.items()}
        for results in (session.run(None, given), [single(given)[name] for name in names]):
            for name, result in zip(names, results, strict=True):
                np.testing.assert_allclose(result, expected[name][rows], rtol=1e-4, atol=1e-4)


def operators(path):
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


@converted
@pytest.mark.parametrize("name", STORAGES)
def test_packed_weights_leave_as_dense_products(name, tmp_path):
    params, path = packed(name), tmp_path / "model.onnx"
    expected = {"output": mlp(js.unpack_params(params), X)}
    js.export_onnx(mlp, X, path=path, params=params)
    assert_runs(path, expected, x=X)
    js.export_onnx(lambda x: js.sparsify(mlp)(params, x), X, path=path)
    assert_runs(path, expected, x=X)
    assert set(operators(path)) <= {"MatMul", "Gemm", "Add", "Tanh", "Reshape"}


@converted
def test_products_of_integers_by_floats_are_of_floats(tmp_path):
    """Contracted: of axes that are kept alone the converter makes an einsum that is none."""
    heads = jnp.array([1, 0, 1, 2])

    def model(x):
        return jnp.einsum("bhd,h->bd", x.reshape(-1, 4, 8), heads)

    js.export_onnx(model, X, path=tmp_path / "model.onnx")
    assert_runs(tmp_path / "model.onnx", {"output": model(X)}, x=X)


@converted
def test_modules_leave_whole_and_shrunk_ones_smaller(tmp_path):
    model, x = Attention(nnx.Rngs(0)), X.reshape(3, 2, 32).repeat(2, 0)
    x, mask = x[:6], np.array([[True, True], [True, False]] * 3)
    keep = np.arange(32) % 16 < 8  # two heads of four
    masks = {
        f"{name}/kernel": np.broadcast_to(keep, (32, 32)) for name in ("query", "key", "value")
    }
    masks |= {f"{name}/bias": keep for name in ("query", "key", "value")}
    small, _ = js.graph.shrink_model(model, masks, x, mask)
    assert small.query.out_features == 16
    for each in (model, small):
        js.export_onnx(each, x, mask, path=tmp_path / "model.onnx")
        assert_runs(tmp_path / "model.onnx", {"hidden": each(x, mask)["hidden"]}, x=x, mask=mask)


@converted
def test_what_shrink_returns(tmp_path):
    gone = np.arange(48) < 20
    masks = {"up": np.broadcast_to(gone, (32, 48)), "bias": gone}
    small, run, _ = js.graph.shrink(mlp, weights(), masks, X)
    js.export_onnx(run, X, path=tmp_path / "model.onnx", params=small)
    expected = mlp(js.mask_params(weights(), masks), X)
    assert_runs(tmp_path / "model.onnx", {"output": expected}, input0=X)


@converted
def test_layers_that_surgery_packed(tmp_path):
    model = nnx.Sequential(nnx.Linear(32, 16, rngs=nnx.Rngs(0)), nnx.relu)
    rules = [js.Rule("layers/0/kernel", js.Block(4, 16), 0.5)]
    sparse, _ = js.nn.replace(model, rules)
    js.export_onnx(sparse, X, path=tmp_path / "model.onnx")
    assert_runs(tmp_path / "model.onnx", {"output": sparse(X)}, input0=X)


@converted
def test_results_that_are_inputs_or_each_other(tmp_path):
    def model(x, scale):
        y = x * scale
        return {"x": x, "y": y, "again": [y]}

    js.export_onnx(model, X, X, path=tmp_path / "model.onnx")
    expected = {"output.x": X, "y": 2 * X, "again.0": 2 * X}
    assert_runs(tmp_path / "model.onnx", expected, x=X, scale=np.full_like(X, 2))


@converted
def test_jax_is_left_as_it_was(tmp_path):
    transposed = jax.jit(lambda x: jnp.transpose(x) @ x)
    before = transposed(X)
    js.export_onnx(transposed, X, path=tmp_path / "model.onnx")
    np.testing.assert_array_equal(transposed(X), before)


def attributes():
    """What modules of JAX and Flax, and classes of Flax, show; but no modules in them."""
    owners = [jnp, jax.lax, jax.nn, jax.random, jnp.linalg, nnx, linen, jax]
    owners += [value for module in (nnx, linen) for value in vars(module).values()]
    return {
        (id(owner), name): value
        for owner in owners
        if isinstance(owner, type | types.ModuleType)
        for name, value in vars(owner).items()
        if not isinstance(value, types.ModuleType)
        and (name == "__call__" or not name.startswith("_"))
    }


@converted
def test_no_function_of_jax_or_flax_stays_exchanged(tmp_path):
    # In another process, since this one may have exported before.
    code = (
        "import tests.export.test_onnx as here, jaxsparse as js, jax.numpy as jnp\n"
        "before = here.attributes()\n"
        "js.export_onnx(lambda x: 2 * x, here.X, path='model.onnx')\n"
        "after = here.attributes()\n"
        "changed = {k[1] for k in before.keys() | after.keys() "
        "if before.get(k, here) is not after.get(k, here)}\n"
        "assert not changed, changed\n"
        "js.export_onnx(lambda x: jnp.cumsum(x, 1), here.X, path='model.onnx')\n"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_runs(tmp_path / "model.onnx", {"output": X.cumsum(1)}, x=X)


@converted
@pytest.mark.parametrize(
    "model",
    [
        nnx.Conv(4, 8, (3,), rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=nnx.Rngs(0)),
    ],
    ids=["conv", "relu", "attention"],
)
def test_a_second_export_is_as_the_first(model, tmp_path):
    x = X.reshape(6, 8, 4)
    for _ in range(2):
        js.export_onnx(model, x, path=tmp_path / "model.onnx")


@converted
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda x: jax.pure_callback(np.sin, x, x),
            r"pure_callback, in .*test_onnx\.py.* has no form.*export_stablehlo",
        ),
        (lambda x: jnp.fft.fft(x).real, r"ONNX Runtime refuses .* export_stablehlo, would work"),
        (
            nnx.Sequential(lambda x: nnx.max_pool(x[..., None], (2,), strides=(2,))),
            r"jax2onnx fails with TypeError: .* as a function, lambda \*inputs",
        ),
        (lambda x: x if x.shape[0] > 4 else -x, r"'b' > '4' is inconclusive.*batch=None"),
        (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), r"dropout '' is active"),
        (lambda x: x % 3, r"^jax2onnx needs to know .* 'b' used in .*; batch=None.* may work$"),
        (lambda x: {"a": {"b": x + 1}, "a.b": x}, r"two outputs .* 'a\.b'.* without dots"),
        (lambda x: x.astype(jnp.bfloat16), r"little for bfloat16 on CPUs; float32"),
    ],
    ids=["callback", "fft", "module", "size", "dropout", "remainder", "names", "bfloat16"],
)
def test_what_cannot_leave_is_named_with_a_cure(model, message, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=message):
        js.export_onnx(model, X, path=path)
    assert path.read_bytes() == b"old"


@converted
@pytest.mark.parametrize(
    ("opset", "message"),
    [(99, "opset=99 may be .*; opset=23 may work"), ("23", "opset='23' is no version")],
)
def test_versions_of_operators_that_are_not_there(opset, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        js.export_onnx(lambda x: 2 * x, X, path=tmp_path / "model.onnx", opset=opset)


@converted
def test_inputs_of_one_name(tmp_path):
    with pytest.raises(ExportError, match=r"two inputs would be called 'd\.a\.b'.*without dots"):
        js.export_onnx(
            lambda d: d["a"]["b"] + d["a.b"],
            {"a": {"b": X}, "a.b": X},
            path=tmp_path / "model.onnx",
        )


def most(x):
    return jnp.argmax(jnp.where(x > 2, jnp.nan, x), 1)


@converted
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: (x * 100).astype(jnp.uint8), r"of 192 outputs of uint8 differ"),
        (lambda x: (x * 1e10).astype(jnp.int32), r"of 192 outputs of int32 differ"),
        (most, r"of 6 outputs of int32 differ"),
        (lambda x: jnp.where(x > 2, -1e30, jnp.expm1(x * 1e-6)), r"differ by .*e-0[78] where"),
    ],
    ids=["wrap", "range", "nan", "mask"],
)
def test_what_the_runtime_computes_otherwise_is_refused(model, message, tmp_path):
    with pytest.raises(ExportError, match=f"the file computes .*: .*{message}"):
        js.export_onnx(model, X, path=tmp_path / "model.onnx")


@converted
def test_integers_and_truths_leave_as_they_are(tmp_path):
    def model(x):
        return {"index": jnp.argmax(x, 1), "true": x > 0, "count": jnp.sum(x > 0, 1)}

    js.export_onnx(model, X, path=tmp_path / "model.onnx")
    assert_runs(tmp_path / "model.onnx", jax.tree.map(np.asarray, model(X)), x=X)


@pytest.mark.parametrize("name", ["jax2onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, monkeypatch):
    if name == "onnxruntime" and MISSING:
        monkeypatch.setitem(sys.modules, "jax2onnx", pytest)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxsparse\[onnx\]'"):
        js.export_onnx(jnp.tanh, X, path=tmp_path / "model.onnx")


@converted
def test_the_command_line_exports_a_directory(tmp_path, capsys):
    from experiments import export, huggingface

    folder, path = pathlib.Path(__file__).parents[1] / "cases/huggingface/bert", tmp_path / "m.onnx"
    export.main([str(folder), "--to=onnx", f"--out={path}", "--tokens=6"])
    assert "inputs: int32[batch, 6], bool[batch, 6]" in capsys.readouterr().out
    model = huggingface.load(folder)
    ids, mask = map(np.asarray, export.example(model, 3, 6))
    assert_runs(path, {"output": model(ids, mask)}, ids=ids, mask=mask)
