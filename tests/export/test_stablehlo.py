"""Programs in StableHLO: any batch, weights inside or beside, whole files, errors with a cure."""

import functools
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from safetensors.numpy import load_file

import jaxsparse as js
from jaxsparse.export import programfile, stablehlo
from jaxsparse.export.program import ExportError

X = jax.random.normal(jax.random.key(0), (6, 32))
STORAGES = {
    "blocks": (js.Block(4, 16), 0.5, None),
    "int8 blocks": (js.Block(4, 16), 0.5, jnp.int8),
    "2:4": (js.NM(2, 4), None, None),
    "bitmap": (js.Unstructured(), 0.5, None),
    "csc": (js.Unstructured(), 0.9, None),
}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"]) @ params["down"]


@functools.cache
def weights(seed=1):
    up, down = jax.random.split(jax.random.key(seed))
    kernel = jax.random.normal(up, (32, 48))
    return {
        "up": {"kernel": kernel, "bias": jnp.ones(48)},
        "down": jax.random.normal(down, (48, 4)),
    }


def packed(name, params=None, masks=None):
    pattern, sparsity, dtype = STORAGES[name]
    rules, params = [js.Rule("up/kernel", pattern, sparsity)], params or weights()
    return js.pack_params(params, masks or js.compute_masks(weights(), rules), rules, dtype=dtype)


def through(path, model, *inputs, **options):
    js.export_stablehlo(model, *inputs, path=path, **options)
    return js.load_stablehlo(path)


@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize("name", STORAGES)
def test_packed_weights_leave_for_any_batch(name, where, tmp_path):
    params = packed(name)
    run = through(tmp_path / "model.bin", mlp, X, params=params, weights=where)
    calls = re.findall(r"custom_call @(\w+)", run.exported.mlir_module())
    assert set(calls) == {"shape_assertion"}  # of the batch; nothing that a machine might lack
    expected = mlp(js.unpack_params(params), X)
    for rows in (1, 5):
        np.testing.assert_allclose(run(X[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)


def test_weights_beside_are_the_arguments_by_the_names_in_their_file(tmp_path):
    params = packed("blocks")
    path = tmp_path / "model.bin"
    js.export_stablehlo(mlp, X, path=path, params=params, weights="beside")
    tensors = load_file(tmp_path / "model.bin.safetensors")
    assert {"up/kernel.values", "up/kernel.indptr", "up/bias", "down"} <= set(tensors)
    program = export.deserialize(bytearray(path.read_bytes()))  # nothing of ours
    np.testing.assert_allclose(
        program.call(X, weights=tensors), mlp(js.unpack_params(params), X), rtol=1e-4, atol=1e-5
    )
    assert js.is_packed(js.load_safetensors(tmp_path / "model.bin.safetensors")["up"]["kernel"])


def test_a_program_serves_other_weights_of_the_same_structure(tmp_path):
    path = tmp_path / "model.bin"
    js.export_stablehlo(mlp, X, path=path, params=packed("2:4"), weights="beside")
    other = packed("2:4", weights(2))
    run = js.load_stablehlo(path, other)
    np.testing.assert_allclose(run(X), mlp(js.unpack_params(other), X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "down": p["down"][:, :2]}, r"'down' is float32\[48, 2\].*takes float32\["),
        (lambda p: {k: v for k, v in p.items() if k != "down"}, "has no 'down'"),
        (lambda p: {**p, "left": jnp.ones(2)}, "has 'left' too many"),
        (lambda p: weights(), r"has no 'up/kernel\.\w+'; did you mean 'up/kernel'"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message, tmp_path):
    path = tmp_path / "model.bin"
    js.export_stablehlo(mlp, X, path=path, params=packed("2:4"), weights="beside")
    with pytest.raises(ValueError, match=message):
        js.load_stablehlo(path, change(packed("2:4")))


def scaled(params, x):
    return params["s"] * (x[:, :8] @ params["w"]) + jax.random.uniform(params["key"])


EYE = jnp.eye(8)
CONSTANTS = {"s": 2.0, "w": js.pack(EYE, js.NM(2, 4)), "key": jax.random.key(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": 3.0}, r"'s' is float 3\.0, and float 2\.0 in the program, a constant"),
        ({"s": None}, "'s' is not there, and float 2"),
        ({"key": jax.random.key(2)}, "'key' is threefry2x32 key of digest .* a constant"),
        (
            {"w": js.pack(EYE, js.NM(2, 4), in_axis=1, out_axis=0)},
            r"'w' is packed otherwise .* view",
        ),
    ],
    ids=["number", "missing", "key", "axes"],
)
def test_weights_of_another_structure_are_refused(change, message, tmp_path):
    path = tmp_path / "model.bin"
    js.export_stablehlo(scaled, X, path=path, params=CONSTANTS, weights="beside")
    js.load_stablehlo(path, dict(CONSTANTS))
    with pytest.raises(ValueError, match=message):
        js.load_stablehlo(path, CONSTANTS | change)


def test_a_packed_weight_of_another_shape_is_refused(tmp_path):
    def column(rows):
        return {"w": js.pack(jnp.eye(rows, 64), js.Unstructured())}

    def model(params, x):
        return jnp.tile(x, 2) @ params["w"]

    path = tmp_path / "model.bin"
    js.export_stablehlo(model, X, path=path, params=column(64), weights="beside")
    with pytest.raises(ValueError, match=r"'w' is packed otherwise .*96, 64"):
        js.load_stablehlo(path, column(96))


def test_files_of_others_are_not_overwritten(tmp_path):
    foreign = tmp_path / "model.bin.safetensors"
    js.save_safetensors(foreign, weights())
    before = foreign.read_bytes()
    with pytest.raises(FileExistsError, match=r"not overwritten.*model\.bin\.safetensors"):
        js.export_stablehlo(mlp, X, path=tmp_path / "model.bin", params=weights(), weights="beside")
    assert foreign.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        js.export_stablehlo(mlp, X, path=tmp_path / "folder", params=weights(), weights="beside")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", foreign.name]


def test_weights_are_called_as_the_whole_name_of_their_program(tmp_path):
    for number in (1, 2):
        params = {"w": jnp.full((32, 2), float(number))}
        path = tmp_path / f"epoch.{number}"
        js.export_stablehlo(lambda p, x: x @ p["w"], X, path=path, params=params, weights="beside")
    for number in (1, 2):
        run = js.load_stablehlo(tmp_path / f"epoch.{number}")
        np.testing.assert_allclose(run(jnp.ones((1, 32))), 32 * number)


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_integers_for_keys(where, tmp_path):
    layers = [nnx.Linear(32, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 4, rngs=nnx.Rngs(1))]
    model = nnx.Sequential(*layers)
    graph, state = nnx.split(model)
    pure = nnx.to_pure_dict(state)
    assert set(pure["layers"]) == {0, 2}

    def forward(params, x):
        full = nnx.state(nnx.merge(graph, state))
        nnx.replace_by_pure_dict(full, params)
        return nnx.merge(graph, full)(x)

    for params in (pure, state):
        run = through(
            tmp_path / "m.bin",
            forward if params is pure else lambda p, x: nnx.merge(graph, p)(x),
            X,
            params=params,
            weights=where,
        )
        np.testing.assert_allclose(run(X), model(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(through(tmp_path / "m.bin", model, X)(X), model(X), atol=1e-5)


def test_what_shrink_returns(tmp_path):
    masks = {
        "up/kernel": np.broadcast_to(np.arange(48) < 20, (32, 48)),
        "up/bias": np.arange(48) < 20,
    }
    small, run, _ = js.graph.shrink(mlp, weights(), masks, X)
    smaller = through(tmp_path / "model.bin", run, X, params=small, weights="beside")
    assert smaller.tensors["down"].shape == (20, 4)
    expected = mlp(js.mask_params(weights(), masks), X)
    np.testing.assert_allclose(smaller(X[:2]), expected[:2], rtol=1e-4, atol=1e-4)


def test_platforms_and_sizes_of_ones_own(tmp_path):
    rows, columns = export.symbolic_shape("rows, columns")
    shape = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    platforms = ("cpu", "cuda", "tpu")
    run = through(tmp_path / "m.bin", lambda x: x.sum(0), shape, platforms=platforms)
    assert run.exported.platforms == platforms
    assert run(jnp.ones((3, 2))).tolist() == [3, 3]
    fixed = through(tmp_path / "m.bin", lambda x: {"twice": 2 * x}, X, batch=None)
    assert fixed(X)["twice"].shape == X.shape
    with pytest.raises(ValueError, match="Shape mismatch"):
        fixed(X[:2])


def test_an_export_that_is_cut_off_leaves_no_pair_that_runs(tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    js.export_stablehlo(mlp, X, path=path, params=weights(1), weights="beside")

    def killed(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(stablehlo, "replacing", killed)  # the weights are written by now
    with pytest.raises(OSError, match=r"model\.bin"):
        js.export_stablehlo(
            lambda p, x: -mlp(p, x), X, path=path, params=weights(2), weights="beside"
        )
    with pytest.raises(ValueError, match=r"model\.bin\.safetensors belongs to another program"):
        js.load_stablehlo(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.bin",
        "model.bin.safetensors",
    ]


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "model.bin"
    js.export_stablehlo(mlp, X, path=path, params=weights(), weights="beside")
    (tmp_path / "model.bin.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model\.bin\.safetensors is not there; params= would work"
    ):
        js.load_stablehlo(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.bin is no program that export_stablehlo"):
            js.load_stablehlo(path)
    garbage = programfile.join(b"garbage", {})  # whose checksum is right
    for other in (b"garbage" + hashlib.sha256(b"garbage").digest(), garbage):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"model\.bin is no program that export_stablehlo"):
            js.load_stablehlo(path)
    js.export_stablehlo(lambda x: x, X, path=path)
    with pytest.raises(ValueError, match="takes no params"):
        js.load_stablehlo(path, weights())


def callback(x):
    return jax.jit(lambda x: jax.pure_callback(np.sin, x, x))(x)


KERNEL = packed("blocks")["up"]["kernel"]


def native(x):
    return js.sparse_dot(x, KERNEL, implementation="cpu")


def attention(**options):
    return nnx.MultiHeadAttention(
        2, 32, 8, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0), **options
    )


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (callback, (X,), r"pure_callback in .*test_stablehlo\.py.*jax\.numpy would work"),
        (native, (X,), r"sparse_product in .* the kernel 'cpu'.*implementation=None would work"),
        (
            lambda x: x if x.shape[0] > 4 else -x,
            (X,),
            r"'b' > '4' is inconclusive, asked for in .*test_stablehlo\.py.*batch=None would work",
        ),
        (lambda x: {1: x}, (X,), "dicts with strings as keys.*key 1"),
        (lambda x: nnx.State({"x": nnx.Param(x)}), (X,), "dicts with strings as keys"),
        (
            lambda x, y: x,
            (X, X[:2]),
            "input 0 has 6, input 1 has 2; .* params=; batch=None",
        ),
        (
            lambda x, *y: x,
            (X, *[X[:1]] * 9),
            "input 7 has 1 and 2 more; weights are no inputs and go in params=",
        ),
        (lambda x: jax.tree_util.Partial(abs, x), (X,), r"as in return output\.logits"),
        (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), (X,), r"dropout '' is active; model\.eval\(\)"),
        (
            nnx.Sequential(nnx.BatchNorm(32, rngs=nnx.Rngs(0))),
            (X,),
            r"BatchNorm 'layers/0' takes the statistics of its inputs; model\.eval\(\)",
        ),
        (attention(deterministic=False), (X[:, None],), r"dropout of the Multi.* '' is active"),
    ],
    ids=[
        "callback",
        "native",
        "size",
        "key",
        "state",
        "axes",
        "many",
        "class",
        "dropout",
        "norm",
        "attention",
    ],
)
def test_what_cannot_leave_is_named_with_a_cure(model, inputs, message, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=message):
        js.export_stablehlo(model, *inputs, path=path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nnx.BatchNorm(32, rngs=nnx.Rngs(0)), X),
        (attention(deterministic=False), X[:, None]),
    ],
    ids=["norm", "attention"],
)
def test_models_in_evaluation_mode_leave(model, x, tmp_path):
    model.eval()
    run = through(tmp_path / "model.bin", model, x)
    np.testing.assert_allclose(run(x[:2]), model(x[:2]), rtol=1e-4, atol=1e-5)


def noisy(x):
    jax.debug.print("{x}", x=x)
    return x


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (noisy, (X,), {}, "debug_.* in .*test_stablehlo.* the model without it"),
        (lambda k, x: x, (jax.random.key(0), X), {}, "input 0 is a PRNG key.*key_data"),
        *((jnp.tanh, (X,), {"batch": b}, "no name for the") for b in ("", "b,c", "my b", 8, True)),
        (jnp.tanh, (X,), {"batch": "9"}, "batch='9' is no name .*batch='b' would work"),
        *((jnp.tanh, (X,), {"platforms": p}, "are not some of cpu") for p in ("cpu", ["foo"], [])),
    ],
)
def test_what_is_asked_for_is_checked(model, inputs, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        js.export_stablehlo(model, *inputs, path=tmp_path / "model.bin", **options)
    assert not any(tmp_path.iterdir())


def test_errors_of_the_model_are_its_own(tmp_path):
    with pytest.raises(TypeError, match="contracting dimensions"):
        js.export_stablehlo(lambda x: x @ x, X, path=tmp_path / "model.bin")
    model = lambda params, x: js.sparse_dot(x, params["up"]["kernel"])  # noqa: E731
    with pytest.raises(TypeError, match=r"shape \(32, 48\).*packed params=.* x @ w would work"):
        js.export_stablehlo(model, X, path=tmp_path / "model.bin", params=packed("blocks"))


def test_arguments_are_checked_first(tmp_path):
    path = tmp_path / "model.bin"
    with pytest.raises(ValueError, match="'within' is neither"):
        js.export_stablehlo(mlp, X, path=path, params=weights(), weights="within")
    with pytest.raises(ValueError, match="needs params="):
        js.export_stablehlo(mlp, X, path=path, weights="beside")
    with pytest.raises(TypeError, match="Linear has its own parameters"):
        js.export_stablehlo(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), X, path=path, params=weights())
    with pytest.raises(TypeError, match="dict is neither a function nor a module"):
        js.export_stablehlo(weights(), X, path=path)
