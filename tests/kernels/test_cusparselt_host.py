"""What runs on the host around cuSPARSELt, on a stand-in that computes there."""

import concurrent.futures
import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.kernels import cusparselt, xla
from jaxsparse.kernels.cusparselt import products
from tests.kernels.cusparselt_cases import draw, weight

TYPES = {"bfloat16": 0, "float16": 1, "int8": 2}


class StandIn:
    """cuSPARSELt's part played on the host."""

    def __init__(self, folder):
        self.library = ctypes.CDLL(str(folder / "libjaxsparse_cusparselt_test.so"))
        long, size, pointer = ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
        for name, arguments in {
            "compress": [ctypes.c_int] * 2 + [long] * 2 + [pointer] * 2 + [size] * 2,
            "multiply": [ctypes.c_int] * 2 + [long] * 4 + [pointer] * 2 + [size, pointer, size],
        }.items():
            function = getattr(self.library, f"stand_in_{name}")
            function.argtypes, function.restype = arguments, ctypes.c_char_p

    def count(self, what):
        return getattr(self.library, f"stand_in_{what}")()

    def compress(self, transposed, bytes, device=0, memory=2**20):
        out = np.zeros(bytes, np.uint8)
        rows, cols = transposed.shape
        dtype = TYPES[transposed.dtype.name]
        self._check(
            self.library.stand_in_compress,
            *(device, dtype, cols, rows, transposed.ctypes.data, out.ctypes.data, bytes, memory),
        )
        return out

    def multiply(self, x, compressed, y, device=0, algorithm=-1, memory=2**20):
        shape = x.shape[0], x.shape[1], y.shape[1]
        pointers = x.ctypes.data, compressed.ctypes.data, compressed.nbytes, y.ctypes.data
        dtype = TYPES[x.dtype.name]
        self._check(
            self.library.stand_in_multiply, device, dtype, *shape, algorithm, *pointers, memory
        )
        return y

    @staticmethod
    def _check(function, *arguments):
        error = function(*arguments)
        if error:
            raise RuntimeError(error.decode())


@pytest.fixture
def stand_in(cusparselt_build, monkeypatch):
    """The backend with the stand-in called back from the program."""
    found = StandIn(cusparselt_build)

    def call(name, shape, dtype, *operands, algorithm=-1):
        result = jax.ShapeDtypeStruct(shape, dtype)

        def run(*arrays):
            first, *rest = (np.ascontiguousarray(a) for a in arrays)
            if name == "compress":
                return found.compress(first, result.shape[0])
            # Begins as ones: every entry must be written.
            y = np.ones(result.shape, jnp.dtype(result.dtype))
            return found.multiply(first, rest[0], y, algorithm=int(algorithm))

        return jax.pure_callback(run, result, *operands)

    monkeypatch.setattr(products, "_call", call)
    return found


@pytest.mark.parametrize("n", [2, 1])
@pytest.mark.parametrize("rows", [16, 37])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_product_is_right(dtype, rows, n, stand_in):
    packed = weight((64, 48), dtype, n)
    x = draw((rows, 64), dtype)
    found = jax.jit(
        lambda x, values, *index: cusparselt.product(
            x, values, *index, layout=packed.layout, transpose=False, out_dtype=x.dtype
        )
    )(x, packed.values, *packed.index)
    assert (found.dtype, found.shape) == (dtype, (rows, 48))
    expected = np.asarray(x, np.float64) @ np.asarray(packed.todense(), np.float64)
    np.testing.assert_array_equal(np.asarray(found, np.float64), expected)


def test_a_compressed_weight_is_kept_and_int8_gives_int32(stand_in):
    packed = weight((64, 96), "int8")
    compressed = products.compress(packed.values, *packed.index, layout=packed.layout)
    assert compressed.shape == (64 * 96 // 2 + 64 * 96 // 8,)
    for rows in (1, 32):
        x = draw((rows, 64), "int8")
        found = products.multiply(x, compressed, outputs=96, algorithm=1)
        assert found.dtype == "int32"
        expected = np.asarray(x, np.int32) @ np.asarray(packed.todense(), np.int32)
        np.testing.assert_array_equal(found, expected)


def test_backward_products_are_those_of_xla(stand_in):
    packed = weight((64, 48), "bfloat16")
    x, g = draw((8, 64), "bfloat16"), draw((8, 48), "bfloat16")
    options = {"layout": packed.layout, "out_dtype": jnp.dtype("bfloat16")}
    for found, expected in (
        (
            cusparselt.product(g, packed.values, *packed.index, transpose=True, **options),
            xla.product(g, packed.values, *packed.index, transpose=True, **options),
        ),
        (
            cusparselt.sampled(x, g, *packed.index, **options),
            xla.sampled(x, g, *packed.index, **options),
        ),
    ):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def a_problem(rows, dtype=np.float16):
    x = np.ones((rows, 32), dtype)
    return x, np.zeros((rows, 16), dtype)


def test_plans_are_made_once_and_the_oldest_give_way(cusparselt_build):
    found = StandIn(cusparselt_build)
    compressed = found.compress(np.asarray(weight((32, 16), "float16").todense().T, order="C"), 576)

    def used(rows, **options):
        before = found.count("plans_made")
        x, y = a_problem(rows)
        found.multiply(x, compressed, y, **options)
        return found.count("plans_made") - before

    assert [used(48), used(48), used(48, device=1), used(48, device=1)] == [1, 0, 1, 0]
    assert [used(48, algorithm=2), used(48, algorithm=2)] == [1, 0]
    for rows in range(1, 63):  # 62 others: the first of the three above falls out
        used(16 * rows + 1600)
    assert found.count("plans") == 64
    assert found.count("matrices") == 3 * 64
    assert [used(48, algorithm=2), used(48)] == [0, 1]
    # One handle for each device that was used, for good.
    assert found.count("handles") == 2


def test_threads_share_plans(cusparselt_build):
    found = StandIn(cusparselt_build)
    packed = weight((32, 16), "float16")
    dense = np.asarray(packed.todense(), np.float64)
    compressed = found.compress(np.asarray(packed.todense().T, order="C"), 576)
    before = found.count("plans_made")

    def work(number):
        rows = 16 * (number % 7 + 400)
        x, y = a_problem(rows)
        found.multiply(x, compressed, y)
        np.testing.assert_array_equal(y, x.astype(np.float64) @ dense)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(70)))
    assert found.count("plans_made") - before == 7


def test_what_goes_wrong_inside_is_told(cusparselt_build):
    found = StandIn(cusparselt_build)
    dense = np.asarray(weight((32, 16), "float16").todense().T, order="C")
    compressed = found.compress(dense, 576)
    x, y = a_problem(16)
    live = found.count("matrices")
    for error, function in {
        "cuSPARSELt's compressed form takes 576 bytes, 500 were given": lambda: found.compress(
            dense, 500
        ),
        "no memory is left for 256 bytes of scratch": lambda: found.compress(dense, 576, memory=0),
        "no memory is left for 128 bytes": lambda: found.multiply(
            x, compressed, y, algorithm=2, memory=64
        ),
        "takes 576 bytes, 575 were given": lambda: found.multiply(x, compressed[:575], y),
        "cusparseLtMatmulAlgSetAttribute: invalid value": lambda: found.multiply(
            x, compressed, y, algorithm=9
        ),
        "cusparseLtDenseDescriptorInit: not supported": lambda: found.multiply(
            x[:15], compressed, y[:15]
        ),
        "cusparseLtStructuredDescriptorInit: not supported": lambda: found.compress(
            dense[:15], 576
        ),
    }.items():
        with pytest.raises(RuntimeError, match=error):
            function()
    # Of the plans that failed nothing is left; two that were made stay.
    assert found.count("matrices") - live <= 3 * 2
