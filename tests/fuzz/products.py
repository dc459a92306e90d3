"""Random products of packed weights, held to float64 NumPy.

    python -m tests.fuzz.products --cases 10000 --seed 0
    python -m tests.fuzz.products --minutes 5 --isa avx2
    python -m tests.fuzz.products --cases 2000 --sanitize

A case is one product: y = x @ W, dx = g @ Wᵀ, or the gradient of W's values (of the scales
of int8 values). Cases come by programs: storage, shape, density, dtypes, batch axes and
implementation are drawn by (seed, number), compiled once, and run on a few weights. What a
weight stores where is read from its arrays by NumPy alone. A program that fails prints the
command that runs it alone.

--isa runs the native kernels of one instruction set: avx512, avx2 or portable. It sets
JAXSPARSE_CPU_ISA, which works for any program.

--sanitize builds the native library with AddressSanitizer and UndefinedBehaviorSanitizer
into build/sanitize (cmake and a C++ compiler needed, a minute) and runs the same cases with
it and with the sanitizers' runtime preloaded. A stray access ends the run with a report;
the line before it names the program. The C++ test next to the kernels draws cases of its
own, without JAX and much faster: kernels/cpu/native/test/products_test.cc.
"""

import argparse
import math
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

if "jax" not in sys.modules:  # compiling is most of the work
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
        ]
    )

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse.kernels import cpu
from jaxsparse.packed.base import Packed
from jaxsparse.packed.held import WORD

REPOSITORY = Path(__file__).parents[2]
DRAWS = 8  # weights that run through a program
ERROR = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 3e-2}  # of the sum of magnitudes


class Program(NamedTuple):
    """What is compiled once."""

    pattern: Any
    columns: int  # of an N:M weight, that share positions
    shape: tuple[int, int]
    kept: int  # groups of the pattern that survive, of every kernel
    stack: int | None  # kernels that are mapped over
    batch: tuple[int, ...]  # axes of x before the inputs
    mapped: bool  # over the last of them by jax.vmap
    x_dtype: str
    dtype: str
    implementation: str | None


def draw(seed: int, number: int) -> Program:
    """The program of a number."""
    rng = np.random.default_rng([seed, number])
    most = 1500 if rng.random() < 0.1 else 200
    k, n = (_size(rng, size) for size in (most, 200))
    pattern: Any = js.Unstructured()
    columns = 1
    which = rng.integers(4)
    if which == 0:
        pattern = js.Block(int(rng.integers(1, 40)), int(rng.choice([5, 16, 32, 48, 64])))
    elif which == 1:
        m = int(rng.choice([2, 4, 5, 8, 16]))
        pattern = js.NM(int(rng.integers(1, m)), m)
        columns = int(rng.choice([1, 1, 1, 4, max(1, n)]))
    density = float(rng.choice([0, 1, rng.random(), 0.2 * rng.random()], p=[0.05, 0.1, 0.4, 0.45]))
    stack = int(rng.integers(1, 4)) if rng.random() < 0.2 else None
    axes = 1 if stack else int(rng.integers(0, 4))
    rows = _size(rng, 300 if rng.random() < 0.1 else 70)
    batch = tuple([rows, *rng.integers(1, 3, 2)][:axes])
    down, across = _grid(pattern, k, n)
    return Program(
        pattern,
        columns,
        (k, n),
        round(density * down * across),
        stack,
        tuple(int(size) for size in batch),
        bool(axes > 1 and rng.random() < 0.5),
        str(rng.choice(["float32", "float32", "bfloat16", "float16"])),
        str(rng.choice(["float32", "float32", "bfloat16", "float16", "int8"])),
        [None, "cpu", "xla"][rng.choice(3, p=[0.1, 0.6, 0.3])],
    )


def _size(rng, most):
    """Now and then none; near the multiples of a vector, where edges lie."""
    if rng.random() < 0.04:
        return 0
    size = int(rng.integers(1, 20 if rng.random() < 0.3 else most))
    return max(1, size // 16 * 16 + int(rng.integers(-1, 2))) if rng.random() < 0.3 else size


def _grid(pattern, k, n):
    block = (pattern.rows, pattern.columns) if isinstance(pattern, js.Block) else (1, 1)
    return -(-k // block[0]), -(-n // block[1])


def draw_weight(program: Program, rng) -> tuple[Packed, np.ndarray]:
    """A packed weight, or a stack, and what it should unpack to, float64 (*stack, K, N)."""
    k, n = program.shape
    stack = () if program.stack is None else (program.stack,)
    masks = np.stack([_mask(program, rng) for _ in range(program.stack or 1)])
    weight = rng.standard_normal((*stack, k, n)).astype(np.float32)
    packed = js.pack(
        weight,
        program.pattern,
        masks.reshape(weight.shape),
        batch_axis=tuple(range(len(stack))),
        dtype=jnp.dtype(program.dtype),
        columns=program.columns,
    )
    if program.dtype == "int8":
        return packed, np.asarray(js.unpack(packed), np.float64)
    return packed, np.where(
        masks.reshape(weight.shape), weight.astype(jnp.dtype(program.dtype)), 0
    ).astype(np.float64)


def _mask(program, rng):
    (k, n), pattern = program.shape, program.pattern
    if isinstance(pattern, js.NM):
        down, across = -(-k // pattern.m), -(-n // program.columns)
        order = rng.random((down, pattern.m, across)).argsort(1).argsort(1)
        chosen = order < rng.integers(0, pattern.n + 1, (down, 1, across))
        return (
            np.repeat(chosen.reshape(-1, across), program.columns, 1)[:k, :n]
            if n
            else (np.zeros((k, 0), bool))
        )
    grid = _grid(pattern, k, n)
    kept = rng.permutation(grid[0] * grid[1]).reshape(grid) < program.kept
    if isinstance(pattern, js.Block):
        kept = np.kron(kept, np.ones((pattern.rows, pattern.columns), bool)).astype(bool)[:k, :n]
        kept &= rng.random((k, n)) < 0.9  # zeros inside a stored block
    return kept


def places(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every stored value; -1 for what stands for nothing."""
    (k, n), layout = packed.matrix_shape, packed.layout
    index = [np.asarray(array) for array in packed.index]
    if isinstance(packed, js.NMSparse):
        found = layout.decode(index[0])
        found = np.repeat(found, packed.columns, axis=1)[:, :n]
        rows = np.arange(len(found))[:, None] // packed.n * packed.m + found
        columns = np.broadcast_to(np.arange(n), rows.shape)
    elif isinstance(packed, js.Bitmap):
        bits = np.unpackbits(index[1].view(np.uint8), axis=2, bitorder="little")
        strip, kept, row = np.nonzero(bits)
        rows, columns = np.full((2, packed.nnz), -1)
        rows[: len(row)], columns[: len(row)] = strip * layout.strip + row, kept
    else:
        bk, bn = packed.block if isinstance(packed, js.BlockSparse) else (1, 1)
        column = np.full(len(index[1]), -1)
        column[: index[0][-1]] = np.repeat(np.arange(len(index[0]) - 1), np.diff(index[0]))
        rows = index[1].astype(np.int64)[:, None, None] * bk + np.arange(bk)[:, None]
        columns = column[:, None, None] * bn + np.arange(bn)
        spare = (column < 0)[:, None, None]
        rows, columns = (np.where(spare, -1, a) for a in np.broadcast_arrays(rows, columns))
        rows, columns = (a.reshape(layout.values_shape) for a in (rows, columns))
    outside = (rows < 0) | (rows >= k) | (columns < 0) | (columns >= n)
    return np.where(outside, -1, rows), np.where(outside, -1, columns)


def held(packed: Packed) -> np.ndarray:
    """Which values were masked within what is stored: they stay zero, so they have no gradient."""
    size = packed.layout.stored
    if packed.held is None:
        return np.zeros(packed.layout.values_shape, bool)
    bits = np.unpackbits(np.asarray(packed.held).view(np.uint8), bitorder="little")
    assert len(bits) == -(-size // WORD) * WORD
    return bits[:size].astype(bool).reshape(packed.layout.values_shape)


def compiled(program: Program):
    """y, dx and the gradient of the values, or of the scales."""

    def dot(x, packed):
        return js.sparse_dot(x, packed, implementation=program.implementation)

    if program.stack is not None:
        dot = jax.vmap(dot)
    elif program.mapped:
        axis = len(program.batch) - 1
        dot = jax.vmap(dot, (axis, None), axis)

    @jax.jit
    def products(x, g, packed):
        quantized = packed.scales is not None

        def y(x, learned):
            return dot(
                x, packed.replace(scales=learned) if quantized else packed.with_values(learned)
            )

        out, pullback = jax.vjp(y, x, packed.scales if quantized else packed.values)
        return out, *pullback(g.astype(out.dtype))

    return products


def run(program: Program, seed: int, number: int) -> int:
    """Runs the draws of a program; returns how many cases that were. Raises where one fails."""
    (k, n), products = program.shape, compiled(program)
    stack = () if program.stack is None else (program.stack,)
    for i in range(DRAWS):
        rng = np.random.default_rng([seed, number, i])
        packed, dense = draw_weight(program, rng)
        if i == 0:
            np.testing.assert_array_equal(np.asarray(js.unpack(packed), np.float64), dense)
        x = jnp.asarray(rng.standard_normal((*stack, *program.batch, k)), program.x_dtype)
        out = x.dtype if program.dtype == "int8" else jnp.result_type(x, packed.values)
        g = jnp.asarray(rng.standard_normal((*stack, *program.batch, n)), out)
        found = products(x, g, packed)
        kernels, rows = program.stack or 1, math.prod(program.batch)
        flat = [np.asarray(a, np.float64).reshape(kernels, rows, a.shape[-1]) for a in (x, g)]
        results = jax.device_get((packed, found))
        for s in range(kernels):
            one = _slice(results, s) if stack else results
            compare(program, *one, *(a[s] for a in flat), dense[s] if stack else dense)
    return 3 * DRAWS


def _slice(tree, number):
    return jax.tree.map(lambda a: a[number], tree)


def compare(program, packed, found, x, g, dense):
    """One kernel's products against float64."""
    error = max(ERROR[t] for t in (program.x_dtype, program.dtype.replace("int8", "float32")))

    def close(name, got, want, size):
        got = np.asarray(got, np.float64).reshape(want.shape)
        wrong = np.abs(got - want) > error * (size + 1e-3)
        wrong |= ~np.isfinite(got)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise AssertionError(
                f"{name}{list(at)} is {got[at]}, not {want[at]}; so are {wrong.sum()} of "
                f"{wrong.size}"
            )

    y, dx, learned = found
    close("y", y, x @ dense, abs(x) @ abs(dense))
    close("dx", dx, g @ dense.T, abs(g) @ abs(dense).T)
    rows, columns = places(packed)
    if packed.scales is not None:
        stored = np.zeros(program.shape)
        inside = rows >= 0
        stored[rows[inside], columns[inside]] = np.asarray(packed.values, np.float64)[inside]
        close(
            "dscales", learned, (g * (x @ stored)).sum(0), (abs(g) * (abs(x) @ abs(stored))).sum(0)
        )
        return
    nothing = (rows < 0) | held(packed)
    full, size = (np.pad(a, ((0, 1), (0, 1))) for a in (x.T @ g, abs(x).T @ abs(g)))
    want = np.where(nothing, 0, full[rows, columns])
    close("dvalues", learned, want, np.where(nothing, 0, size[rows, columns]))


def _supported(program: Program) -> Program:
    """The program, by any implementation where the one drawn does not take it."""
    packed, _ = draw_weight(program, np.random.default_rng(0))
    if program.implementation != "cpu":
        return program
    x = jax.ShapeDtypeStruct((1, 1), program.x_dtype)
    reason = cpu.missing() or cpu.unsupported(
        "product", packed.layout, x, packed.values, np.dtype("float32")
    )
    return program._replace(implementation=None) if reason else program


def sanitized(arguments: list[str]) -> int:
    """Builds the sanitized library and runs this program with it."""
    folder = REPOSITORY / "build" / "sanitize"
    options = ["-DJAXSPARSE_SANITIZE=ON", "-DJAXSPARSE_CUSPARSELT=OFF"]
    options.append(f"-DPython_EXECUTABLE={sys.executable}")
    subprocess.run(["cmake", "-S", REPOSITORY, "-B", folder, *options], check=True)
    build = ["cmake", "--build", folder, "--target", "jaxsparse_cpu", "--parallel", "2"]
    subprocess.run(build, check=True)
    compiler = os.environ.get("CXX", "c++")
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    library = next(folder.rglob("libjaxsparse_cpu.so")).parent
    # Python and XLA leak and mix allocators in their own ways.
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:abort_on_error=0",
    }
    command = [sys.executable, "-m", "tests.fuzz.products", *arguments, "--library", str(library)]
    return subprocess.run(command, env=environment, cwd=REPOSITORY).returncode


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases asked for; returns how many programs failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.products",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10000, help="how many, at least")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--isa", choices=["avx512", "avx2", "portable"], help="native kernels of")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    parser.add_argument("--library", help="folder of another libjaxsparse_cpu.so to load")
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = parser.parse_args(arguments)
    if asked.sanitize:
        return sanitized([a for a in arguments if a != "--sanitize"])
    if asked.isa:
        os.environ["JAXSPARSE_CPU_ISA"] = asked.isa
    if asked.library:
        cpu.__path__.insert(0, asked.library)
    runs_on = cpu.missing() or cpu.instruction_set()
    if asked.isa and runs_on != asked.isa:
        print(f"{asked.isa} was asked for: {runs_on}")
        return 1
    began, cases, failed, number = time.monotonic(), 0, 0, asked.first
    again = "python -m tests.fuzz.products --cases 1" + (f" --isa {asked.isa}" if asked.isa else "")
    again += " --sanitize" if asked.library else ""
    while cases < asked.cases:
        if asked.minutes is not None and time.monotonic() - began > 60 * asked.minutes:
            break
        program = draw(asked.seed, number)
        if asked.library:
            print(f"{again} --seed {asked.seed} --first {number}", flush=True)
        try:
            cases += run(_supported(program), asked.seed, number)
        except Exception:
            failed += 1
            cases += 3 * DRAWS
            print(traceback.format_exc(limit=-2), program)
            print(f"{again} --seed {asked.seed} --first {number}", flush=True)
        number += 1
        if number % 50 == 0:
            jax.clear_caches()
            print(f"{cases} cases, {failed} programs failed", flush=True)
    print(
        f"{cases} cases in {number - asked.first} programs, seed {asked.seed}, {runs_on}: "
        f"{failed} programs failed, {time.monotonic() - began:.0f} s"
    )
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
