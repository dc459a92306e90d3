"""What is saved comes back; what comes from elsewhere is checked before it is believed."""

import dataclasses
import json
import os
import pathlib
import struct
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.core import meta

import jaxsparse as js

BLOCK = js.Block(4, 4)
WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def pack(**options):
    return js.pack(WEIGHT, BLOCK, np.kron(np.eye(2), np.ones((4, 4))) > 0, **options)


def through(tmp_path, tree, **options):
    js.save_safetensors(tmp_path / "model.safetensors", tree)
    return js.load_safetensors(tmp_path / "model.safetensors", **options)


def assert_same(found, expected):
    if js.is_packed(expected):
        assert type(found) is type(expected) and found.view == expected.view
        found, expected = js.unpack(found), js.unpack(expected)
    if isinstance(expected, jax.Array) and jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
        assert found.dtype == expected.dtype
        found, expected = jax.random.key_data(found), jax.random.key_data(expected)
    if isinstance(expected, bool | int | float) or expected is None:
        assert type(found) is type(expected)
        assert repr(found) == repr(expected)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    expected = expected.astype(expected.dtype.newbyteorder("="))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


BITS = np.arange(8, dtype=np.uint8)
LEAVES = {
    "scalar": jnp.float32(3),
    "numpy scalar": np.float16(0.1),
    "empty": jnp.zeros((0, 3)),
    "bool": jnp.array([[True, False]]),
    "packed": pack(),
    "packed scalar beside": pack(dtype=jnp.int8),
    "packed bfloat16": pack(dtype=jnp.bfloat16),
    "packed fp8": pack(dtype=jnp.float8_e4m3fn),
    "packed complex": js.pack(WEIGHT + 1j * WEIGHT, BLOCK),
    "packed stack": js.pack(np.stack([WEIGHT, WEIGHT.T]), js.Unstructured(), batch_axis=0),
    "key": jax.random.key(3),
    "keys of another kind": jax.random.split(jax.random.key(3, impl="rbg"), 2),
    "raw key": jax.random.PRNGKey(3),
    "int": 2**80,
    "float": 0.1,
    "infinite": float("-inf"),
    "True": True,
    "none": None,
    "swapped bytes": np.arange(3, dtype=">f4"),
    "strided": WEIGHT.T[::2],
    "negative int4": jnp.arange(-8, 8).astype(jnp.int4),  # JAX clears the upper half of a byte
    **{
        dtype: BITS.astype(dtype)
        for dtype in ("uint8", "int16", "uint32", "float64", "int64", "complex64", "complex128")
    },
    **{
        dtype: jnp.asarray(BITS.astype(getattr(ml_dtypes, dtype)))
        for dtype in (
            *("int4", "uint4", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
            *("float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        )
    },
}


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_comes_back(name, tmp_path):
    tree = {"a": {"leaf": LEAVES[name], "beside": jnp.ones(2)}}
    found = through(tmp_path, tree)
    assert found.keys() == {"a"} and found["a"].keys() == {"leaf", "beside"}
    expected = LEAVES[name]
    assert_same(found["a"]["leaf"], expected)
    assert_same(through(tmp_path, tree, like=tree)["a"]["leaf"], expected)
    assert_same(through(tmp_path, LEAVES[name]), expected)  # a tree of one leaf


@pytest.mark.parametrize("pattern", [js.NM(2, 4), js.Block(4, 4)])
def test_places_that_stay_zero_come_back(pattern, tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[::4] = True
    packed = js.pack(jnp.ones((8, 8)), pattern, mask)
    js.save_safetensors(tmp_path / "held.safetensors", {"w": packed})
    loaded = js.load_safetensors(tmp_path / "held.safetensors")["w"]
    values = jnp.ones_like(loaded.values)
    np.testing.assert_array_equal(js.unpack(loaded.with_values(values)), mask)


def test_other_readers_read_it(tmp_path):
    reader = pytest.importorskip("safetensors", reason="another reader of the format")
    tree = {"up": {"kernel": pack(), "scale": jnp.float32(2), "low": jnp.ones(3, jnp.int4)}}
    js.save_safetensors(tmp_path / "f", tree | {"half": jnp.ones((2, 2), jnp.float8_e5m2)})
    with reader.safe_open(tmp_path / "f", "numpy") as file:
        names = set(file.keys())
        assert file.get_tensor("up/scale").shape == ()
        np.testing.assert_array_equal(file.get_tensor("up/kernel.values"), pack().values)
    parts = {f"up/kernel.{part}" for part in ("values", "indptr", "rows")}
    assert names == parts | {"up/scale", "up/low", "half"}


@pytest.mark.parametrize(
    "tree",
    [
        {"w": pack(), "w/x": jnp.ones(2)},
        {"a": jnp.ones(1), "a/b": jnp.zeros(1)},
        {"mlp/~/linear_0": {"w": jnp.ones(2), "b": pack()}, "mlp": {"w": jnp.zeros(1)}},
        {"a": {"": jnp.ones(1)}, "": jnp.zeros(2), "/": jnp.ones(3)},
    ],
)
def test_keys_with_slashes_stay_keys(tree, tmp_path):
    found = through(tmp_path, tree)
    assert jax.tree.structure(found, is_leaf=js.is_packed) == jax.tree.structure(
        tree, is_leaf=js.is_packed
    )
    jax.tree.map(assert_same, found, tree, is_leaf=js.is_packed)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, ValueError, "share the path 'a/b'"),
        ({"w": pack(), "w.values": jnp.ones(1)}, ValueError, r"called 'w\.values'; rename"),
        ({"__metadata__": jnp.ones(1)}, ValueError, "called '__metadata__'"),
        ({"up": {"name": "relu"}}, TypeError, "'up/name' is a str, 'relu'; arrays, packed"),
        ({"z": 1j}, TypeError, "'z' is a complex"),
        ({"o": np.array(["x"])}, TypeError, "'o' is of dtype <U1"),
        ({"w": pack().structure}, ValueError, "'w', .* field 'values': there is no such array"),
        (
            {"w": dataclasses.replace(pack(), rows=np.arange(2))},
            ValueError,
            "'w', .* field 'rows': an array of int64; it must be int32 or uint16",
        ),
    ],
    ids=str,
)
def test_what_cannot_come_back_is_refused_before_anything_is_written(
    tree, error, message, tmp_path
):
    (tmp_path / "f").write_text("old")
    with pytest.raises(error, match=message):
        js.save_safetensors(tmp_path / "f", tree)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "old")]


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """A layer as Equinox has them: attributes, a function among the leaves."""

    def __init__(self, weight, bias, activation):
        self.weight, self.bias, self.activation = weight, bias, activation

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return [(key(name), value) for name, value in vars(self).items()], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def nnx_state():
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1)))
    return nnx.state(model, nnx.Param)


TREES: dict[str, tuple[Any, str]] = {
    "nnx": (nnx_state(), "layers/0/kernel"),
    "linen boxes": ({"up": {"kernel": meta.Partitioned(jnp.eye(8), ("a", "b"))}}, "up/kernel"),
    "haiku": ({"mlp/~/linear_0": {"w": jnp.eye(8)}}, "mlp/~/linear_0/w"),
    "module": ([Module(jnp.eye(8), None, jax.nn.relu)], "0/weight"),
    "lists": ({"layers": [{"w": jnp.eye(8)}, (jnp.ones(1), 3)]}, "layers/0/w"),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("packed_like", [False, True])
def test_like_gives_back_the_tree(name, packed_like, tmp_path):
    tree, path = TREES[name]
    packed = (
        js.pack_params(tree, {}, [js.Rule(path, BLOCK, 0.5)])
        if name != "module"
        else [Module(js.pack(tree[0].weight, BLOCK), None, jax.nn.relu)]
    )
    found = through(tmp_path, packed, like=packed if packed_like else tree)
    assert jax.tree.structure(found) == jax.tree.structure(packed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(packed), strict=True):
        if callable(b) and not hasattr(b, "dtype"):
            assert a is b
        else:
            assert_same(a, b)
    dense = through(tmp_path, tree, like=jax.eval_shape(lambda: tree) if name == "nnx" else packed)
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(tree), strict=True):
        if hasattr(b, "dtype"):
            assert_same(a, b)


def test_what_was_loaded_goes_into_the_model(tmp_path):
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    expected = np.asarray(model.kernel[...])
    js.save_safetensors(tmp_path / "f", params)
    other = nnx.Linear(8, 8, rngs=nnx.Rngs(1))
    nnx.update(other, js.load_safetensors(tmp_path / "f", like=nnx.state(other, nnx.Param)))
    np.testing.assert_array_equal(other.kernel[...], expected)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"up": {"kernel": jnp.ones((8, 8))}}, r"has 'n', which `like` lacks; known: 'up/kernel'"),
        (
            {"up": {"kernal": jnp.ones((8, 8))}, "n": 1},
            "has no 'up/kernal', which `like` has; did you mean 'up/kernel'",
        ),
        (
            {"up": {"kernel": jnp.ones((8, 4))}, "n": 1},
            r"'up/kernel' is \(8, 8\) float32 there, \(8, 4\) float32 in `like`",
        ),
        (
            {"up": {"kernel": jnp.ones((8, 8), jnp.bfloat16)}, "n": 1},
            r"'up/kernel' is \(8, 8\) float32 there, \(8, 8\) bfloat16",
        ),
        ({"up": {"kernel": pack()}, "n": 1.0}, "'n' is int there, float in `like`"),
        ({"up": {"kernel": pack()}, "n": jnp.ones(())}, r"'n' is int there, \(\) float32"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_like_is_an_error(like, message, tmp_path):
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{message}"):
        through(tmp_path, {"up": {"kernel": pack()}, "n": 1}, like=like)


def test_int8_of_a_bfloat16_weight_fits_the_weight(tmp_path):
    like = {"w": jnp.zeros((8, 8), jnp.bfloat16)}
    found = through(tmp_path, {"w": pack(dtype=jnp.int8)}, like=like)["w"]
    assert found.values.dtype == jnp.int8


# A file that another version wrote, or nobody: the format by hand.

ARRAYS = {
    "values": np.ones((2, 4, 16), np.float32),
    "indptr": np.array([0, 1, 2], np.int32),
    "rows": np.array([0, 1], np.int32),
}
VIEW = {"shape": [8, 32], "batch": [], "inputs": [0], "outputs": [1]}
FIELDS = {"kind": "BlockSparse", "block": [4, 16], "view": VIEW}
NAMES = {"float32": "F32", "int32": "I32", "int64": "I64", "bool": "BOOL", "uint8": "U8"}


def file_of(path, tensors, metadata=None, header=None, data=None):
    """A safetensors file, right but for what is given as wrong."""
    made, body = {"__metadata__": metadata} if metadata is not None else {}, b""
    for name, array in tensors.items():
        offsets = [len(body), len(body) + array.nbytes]
        dtype = NAMES[array.dtype.name]
        made[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        body += array.tobytes()
    made = header(made) if header else made
    text = made if isinstance(made, bytes) else json.dumps(made).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + (body if data is None else data))
    return path


def packed_file(path, arrays=ARRAYS, fields=FIELDS, **options):
    metadata = {"jaxsparse": json.dumps({"w": fields})}
    return file_of(path, {f"w.{k}": a for k, a in arrays.items()}, metadata, **options)


def test_a_file_of_the_first_version_loads(tmp_path):
    found = js.load_safetensors(packed_file(tmp_path / "f"))["w"]
    expected = np.kron([[1, 0], [0, 1]], np.ones((4, 16)))
    np.testing.assert_array_equal(js.unpack(found), expected)


def view(**fields):
    return FIELDS | {"view": VIEW | fields}


HOSTILE = {
    "no values": ({"arrays": {k: ARRAYS[k] for k in ("indptr", "rows")}}, "'values'"),
    "no indptr": ({"arrays": {k: ARRAYS[k] for k in ("values", "rows")}}, "'indptr'"),
    "float rows": ({"arrays": ARRAYS | {"rows": np.ones(2, np.float32)}}, "'rows': .*float32"),
    "wide rows": (
        {"arrays": ARRAYS | {"rows": ARRAYS["rows"].astype(np.int64) + 2**32}},
        "'rows': .*int64",
    ),
    "rows without axes": (
        {"arrays": ARRAYS | {"rows": np.array(1, np.int32)}},
        "'rows': an array without axes",
    ),
    "rows out of range": (
        {"arrays": ARRAYS | {"rows": np.array([0, 2], np.int32)}},
        r"its index: rows\[1\] = 2 is outside",
    ),
    "another shape": (
        {"arrays": ARRAYS | {"values": np.ones((2, 4, 8), np.float32)}},
        r"values has shape \(2, 4, 8\), needs \(2, 4, 16\)",
    ),
    "scales of floats": (
        {"arrays": ARRAYS | {"scales": np.ones(32, np.float32)}},
        "'values': an array of float32; it must be int8",
    ),
    "another kind": ({"fields": FIELDS | {"kind": "Dense"}}, "'kind': 'Dense' is none of"),
    "a kind that is a list": ({"fields": FIELDS | {"kind": []}}, "'kind'"),
    "no fields": ({"fields": 3}, "the fields are 3"),
    "no block": ({"fields": {"kind": "BlockSparse", "view": VIEW}}, "'block': None"),
    "an empty block": ({"fields": FIELDS | {"block": [0, 16]}}, "'block': 0 is no whole"),
    "a block of three": ({"fields": FIELDS | {"block": [4, 16, 1]}}, r"'block': \[4, 16, 1\]"),
    "an unknown field": ({"fields": FIELDS | {"evil": 1}}, "'evil'"),
    "axes twice": ({"fields": view(inputs=[0, 0], outputs=[1, 1])}, "'view': inputs"),
    "an axis out of range": ({"fields": view(inputs=[5])}, r"'view\.inputs': 5"),
    "a negative axis": ({"fields": view(inputs=[-1])}, r"'view\.inputs': -1"),
    "a batch axis": ({"fields": view(batch=[0], inputs=[])}, r"batch \[0\] none"),
    "a huge shape": ({"fields": view(shape=[2**62, 32])}, r"'view\.shape': 4611686018427387904"),
    "many huge axes": ({"fields": view(shape=[10**300] * 9000)}, r"'view\.shape'"),
    "half an axis": ({"fields": view(shape=[8.0, 32])}, r"'view\.shape': 8\.0"),
    "a true axis": ({"fields": view(shape=[True, 32])}, r"'view\.shape': True"),
    "no view": ({"fields": FIELDS | {"view": [8, 32]}}, r"'view'"),
    "a tensor of the same name": (
        {"header": lambda h: h | {"w": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}},
        "same path",
    ),
    "two tensors in one place": (
        {"header": lambda h: h | {"x": h["w.rows"]}},
        "'data_offsets': begins at byte",
    ),
    "bytes of nobody": ({"data": b"\0" * 600}, "'?.* bytes after the last tensor belong to none"),
    "truncated": ({"data": b"\0" * 100}, "field 'data_offsets'"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_packed_weight_is_refused_by_name(name, tmp_path):
    options, message = HOSTILE[name]
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}"):
        js.load_safetensors(packed_file(tmp_path / "hostile.safetensors", **options))


def one(**fields):
    return lambda header: header | {"t": header["t"] | fields}


HEADERS = {
    "a list": (lambda h: b"[1]", r"its header is \[1\]"),
    "no JSON": (lambda h: b"{'a'}", "its header is not JSON"),
    "no text": (lambda h: b'{"\xff": 1}', "its header is not JSON"),
    "deep": (lambda h: b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}", "nested too deeply"),
    "long numbers": (lambda h: b'{"a":' + b"9" * 10**6 + b"}", "its header is not JSON"),
    "a key twice": (lambda h: b'{"t": 1, "t": 1}', "a key comes twice"),
    "an unknown dtype": (one(dtype="F128"), "tensor 't', field 'dtype': 'F128' is none of"),
    "a dtype of another sort": (one(dtype=[1]), r"tensor 't', field 'dtype': \[1\]"),
    "no shape": (lambda h: {"t": {"dtype": "F32", "data_offsets": [0, 8]}}, "'t', needs"),
    "a negative size": (one(shape=[-2, -1]), "'shape': -2"),
    "a size of zero and a huge one": (one(shape=[0, 2**47, 2], data_offsets=[0, 0]), "'shape'"),
    "a shape of another size": (one(shape=[3]), r"'data_offsets': \[0, 8\] must be two, 12 bytes"),
    "offsets past the end": (one(data_offsets=[0, 800]), "'data_offsets': 800 is no whole"),
    "offsets backwards": (one(data_offsets=[8, 0]), r"'data_offsets': \[8, 0\]"),
    "metadata that is no text": (lambda h: h | {"__metadata__": {"a": 1}}, "must hold strings"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_refused_by_name(name, tmp_path):
    header, message = HEADERS[name]
    file = file_of(tmp_path / "hostile.safetensors", {"t": np.ones(2, np.float32)}, header=header)
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}"):
        js.load_safetensors(file)


TREE_FIELDS = {
    "an unknown field": ({"x": {}}, "field 'x'"),
    "a field of another sort": ({"none": {}}, "field 'none'"),
    "None by number": ({"none": [1]}, "'none': 1 is no path"),
    "a number of another kind": ({"numbers": {"n": ["str", "x"]}}, "'n', field 'numbers'"),
    "a number that is none": ({"numbers": {"n": ["int", "x"]}}, "'n', field 'numbers'"),
    "half a number": ({"numbers": {"n": ["int"]}}, "'n', field 'numbers'"),
    "a number in place of a tensor": ({"numbers": {"t": ["int", "1"]}}, "same path"),
    "a key of nothing": ({"prng": {"k": "rbg"}}, "'k', field 'prng'"),
    "a key of another size": ({"prng": {"t": "threefry2x32"}}, "'t', field 'prng'"),
    "a dtype of nothing": ({"dtypes": {"k": "int4"}}, "'k', field 'dtypes'"),
    "bytes of another size": ({"dtypes": {"t": "complex64"}}, "'t', field 'shape'"),
    "bytes of no dtype": ({"dtypes": {"t": "object"}}, "'t', field 'dtypes'"),
    "five bits": ({"dtypes": {"t": "uint4"}}, "'t': a byte of it is out of uint4's range"),
    "keys of another path": ({"keys": {"t": ["u"]}}, "'t', field 'keys'"),
    "keys that are numbers": ({"keys": {"t": [1]}}, "'t', field 'keys'"),
}


@pytest.mark.parametrize("name", TREE_FIELDS)
def test_hostile_fields_of_the_tree_are_refused_by_name(name, tmp_path):
    fields, message = TREE_FIELDS[name]
    metadata = {"jaxsparse.tree": json.dumps(fields)}
    tensors = {"t": np.full((2, 1), 255, np.uint8)}
    file = file_of(tmp_path / "hostile.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}"):
        js.load_safetensors(file)


def test_paths_through_a_tensor_and_paths_without_end(tmp_path):
    one = np.ones(1, np.float32)
    for tensors in ({"a": one, "a/b": one}, {"a/b": one, "a": one}):
        file = file_of(tmp_path / "f", tensors)
        with pytest.raises(ValueError, match=r"goes through another tensor.*like="):
            js.load_safetensors(file)
    with pytest.raises(ValueError, match="is 100001 deep"):
        js.load_safetensors(file_of(tmp_path / "f", {"a" + "/a" * 100_000: one}))
    with pytest.raises(ValueError, match="a BOOL byte is 2"):
        js.load_safetensors(file_of(tmp_path / "f", {"t": np.array([True])}, data=b"\2"))


def test_damaged_files_are_refused_by_name(tmp_path):
    js.save_safetensors(tmp_path / "f", {"w": pack(), "b": jnp.ones(3)})
    whole = (tmp_path / "f").read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "f").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{tmp_path / 'f'}: "):
            js.load_safetensors(tmp_path / "f")
    for text in (b"not a model, but a text of some length", b"\x89HDF\r\n\x1a\n" + b"\0" * 64):
        (tmp_path / "f").write_bytes(text)
        with pytest.raises(ValueError, match="no safetensors file"):
            js.load_safetensors(tmp_path / "f")


def test_any_byte_of_a_header_may_be_wrong(tmp_path):
    """Another file or a ValueError that names it, never anything else."""
    js.save_safetensors(tmp_path / "f", {"w": pack(), "k": jax.random.key(0), "n": 1, "a/b": None})
    whole = bytearray((tmp_path / "f").read_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    rng, refused = np.random.default_rng(0), 0
    for place in rng.choice(8 + length, 150, replace=False):
        damaged = whole.copy()
        damaged[place] = rng.integers(256)
        (tmp_path / "f").write_bytes(damaged)
        try:
            js.load_safetensors(tmp_path / "f")
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / 'f'}: "), error
            refused += 1
    assert refused > 75


def test_work_is_linear_in_the_header(tmp_path):
    """Twice the tensors take twice the steps, counted rather than timed."""

    def steps(count):
        tensors = {f"a/{i}": np.ones(1, np.float32) for i in range(count)}
        file = file_of(tmp_path / "f", tensors, {"jaxsparse": "{}"})
        calls = 0

        def trace(frame, event, _):
            nonlocal calls
            calls += event == "call"

        sys.setprofile(trace)
        try:
            js.load_safetensors(file)
        finally:
            sys.setprofile(None)
        return calls

    steps(10)
    small, large = steps(200), steps(400)
    assert large < 2.2 * small


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(tmp_path):
    code = textwrap.dedent("""
        import sys, signal, resource, jax.numpy as jnp, jaxsparse as js
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            js.save_safetensors(sys.argv[1], {"w": jnp.ones(100_000)})
        except OSError as error:
            assert error.filename == sys.argv[1], error
            sys.exit(7)
    """)
    file = tmp_path / "model.safetensors"
    js.save_safetensors(file, {"w": jnp.zeros(3)})
    file.chmod(0o640)
    child = [sys.executable, "-c", code, str(file)]
    assert subprocess.run(child, env=os.environ, check=False).returncode == 7
    assert js.load_safetensors(file)["w"].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    js.save_safetensors(file, {"w": jnp.ones(3)})
    assert file.stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError, match="nowhere"):
        js.save_safetensors(tmp_path / "nowhere" / "f", {"w": jnp.ones(3)})


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("file")
    js.save_safetensors(tmp_path / "link", {"w": jnp.ones(3)})
    assert (tmp_path / "link").is_symlink() and pathlib.Path(tmp_path / "file").is_file()
