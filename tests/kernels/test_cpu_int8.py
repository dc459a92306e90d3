"""The native products of codes: every instruction set, any number of threads, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.kernels import cpu
from jaxsparse.quantized import Affine, int8_dot

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))
ISAS = ["portable", "avx2", "avxvnni", "avx512", "avx512vnni"]

BATTERY = """
import sys
sys.path.insert(0, sys.argv[1])
from test_cpu_int8 import battery, cpu
print(cpu.int8_instruction_set())
print(battery())
"""


def battery() -> str:
    """Compares sums with integers, and returns a digest of them and of codes made of them."""
    rng, digest = np.random.default_rng(0), []
    for block in ((4, 16), (1, 16), (16, 32), (3, 5)):
        k, n = 75, 51
        kept = np.kron(rng.random((-(-k // block[0]), -(-n // block[1]))) < 0.5, np.ones(block))
        weight = rng.standard_normal((k, n)).astype(np.float32)
        packed = js.pack(weight, js.Block(*block), kept[:k, :n] > 0, dtype=jnp.int8)
        for values in (packed.values, jnp.full_like(packed.values, -128)):
            packed = packed.replace(values=values)
            dense = np.asarray(packed.layout.todense(values, *packed.index)).astype(np.int64)
            for dtype, batch in (("uint8", 1), ("int8", 5), ("uint8", 39)):
                limits = np.iinfo(dtype)
                x = rng.integers(limits.min, limits.max + 1, (batch, k)).astype(dtype)
                x[-1] = limits.max
                zero = int(rng.integers(limits.min, limits.max + 1))
                asked = {"scale": 2.0**-10, "zero_point": zero, "implementation": "cpu"}
                sums = int8_dot(jnp.asarray(x), packed, preferred_element_type=jnp.int32, **asked)
                np.testing.assert_array_equal(sums, (x.astype(np.int64) - zero) @ dense)
                digest.append(np.asarray(sums).astype(np.int64).sum())
                codes = int8_dot(jnp.asarray(x), packed, out=Affine(0.25, 9), **asked)
                expected = sums * (2.0**-10 * np.asarray(packed.scales)) / 0.25 + 9
                assert np.abs(np.asarray(codes) - np.clip(expected, 0, 255)).max() < 0.501
                digest.append(np.asarray(codes).astype(np.int64).sum())
    return str(digest)


def ran(**environment: str) -> tuple[str, str]:
    """The instruction set of a process of its own, and what its battery returned."""
    done = subprocess.run(
        [sys.executable, "-c", BATTERY, str(Path(__file__).parent)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, digest = done.stdout.splitlines()
    return name, digest


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_finds_the_same_integers(isa):
    probe = "from jaxsparse.kernels import cpu; print(cpu.missing() or '')"
    environment = os.environ | {"JAXSPARSE_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
    if done.stdout.strip():
        pytest.skip(f"this processor has no {isa}")
    assert ran(JAXSPARSE_CPU_ISA=isa)[0] == isa


def test_the_instruction_set_in_use():
    assert battery()
    assert cpu.int8_instruction_set() in ISAS


PACKED = js.pack(np.eye(24, dtype=np.float32), js.Block(4, 16), dtype=jnp.int8)


@pytest.mark.parametrize(
    ("scale", "zero", "words"),
    [
        (np.nan, 0, "scale of codes must be positive and finite"),
        (0.0, 0, "scale of codes must be positive and finite"),
        (-1.0, 0, "scale of codes must be positive and finite"),
        (1.0, 256, "zero point must be a code"),
        (1.0, -1, "zero point must be a code"),
    ],
)
def test_numbers_that_were_traced_are_refused_when_the_program_runs(scale, zero, words):
    run = jax.jit(lambda x, s, z: int8_dot(x, PACKED, scale=s, zero_point=z, implementation="cpu"))
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        run(jnp.ones((2, 24), jnp.uint8), jnp.float32(scale), jnp.int32(zero)).block_until_ready()


def test_an_index_that_lies_is_refused():
    wrong = PACKED.replace(rows=PACKED.rows.at[0].set(99))
    with pytest.raises(jax.errors.JaxRuntimeError, match="block row"):
        int8_dot(jnp.ones((2, 24), jnp.uint8), wrong, scale=1.0, implementation="cpu")


@pytest.mark.parametrize(
    ("pattern", "storage"),
    [(js.NM(2, 4), None), (js.Unstructured(), js.CSC), (js.Unstructured(), js.Bitmap)],
)
def test_storages_without_blocks_are_spread_out(pattern, storage):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((30, 21)).astype(np.float32)
    mask = np.arange(30)[:, None] % 4 < [2] * 21
    packed = js.pack(weight, pattern, mask, dtype=jnp.int8, storage=storage)
    x = rng.integers(0, 256, (5, 30)).astype(np.uint8)
    asked = {"scale": 1.0, "zero_point": 17, "preferred_element_type": jnp.int32}
    sums = int8_dot(jnp.asarray(x), packed, implementation="cpu", **asked)
    dense = np.asarray(packed.layout.todense(packed.values, *packed.index)).astype(np.int64)
    np.testing.assert_array_equal(sums, (x.astype(np.int64) - 17) @ dense)


def test_sides_that_are_too_long_are_left_to_xla():
    packed = js.pack(
        np.ones((4, 40_000), np.float32),
        js.Unstructured(),
        np.arange(40_000) < [[1], [0], [2], [0]],
        dtype=jnp.int8,
    )
    x = jnp.ones((1, 4), jnp.uint8)
    with pytest.raises(ValueError, match="at most 32768, got"):
        int8_dot(x, packed, scale=1.0, implementation="cpu")
    np.testing.assert_allclose(int8_dot(x, packed, scale=1.0)[0, :3], [2, 1, 0], rtol=1e-6)


def test_many_rows_and_weights_beyond_a_cache():
    """Several groups of strips, and rows in more than one turn."""
    rng = np.random.default_rng(0)
    packed = js.pack(
        rng.standard_normal((512, 640)).astype(np.float32), js.Block(16, 16), dtype=jnp.int8
    )
    x = rng.integers(0, 256, (1100, 512)).astype(np.uint8)
    sums = int8_dot(
        jnp.asarray(x),
        packed,
        scale=1.0,
        zero_point=200,
        preferred_element_type=jnp.int32,
        implementation="cpu",
    )
    dense = np.asarray(packed.layout.todense(packed.values, *packed.index)).astype(np.float64)
    np.testing.assert_array_equal(sums, (x.astype(np.float64) - 200) @ dense)
