"""What `sparse_dot` costs against the dense product, on this machine, in one process.

    python -m experiments.bench.sparse_dot            # the whole grid, about half an hour
    python -m experiments.bench.sparse_dot --quick    # a few cells, in a minute
    python -m experiments.bench.sparse_dot --batches 1 8 --native    # the other rows are kept
    python -m experiments.bench.sparse_dot --storages unstructured   # and so are they here
    python -m experiments.bench.sparse_dot --quick --others --name others

For every implementation, storage, dtype, shape, batch and density: the median over
turns of a few milliseconds of calls in a row, as a server makes them, which leave in
the caches what fits; two ratios (to jitted `jnp.dot` in float32, which is what a user
leaves, and to the best dense product there is here); GFLOP/s on what is kept; and the
share of the nearer limit, arithmetic or memory, as both were measured in the same
process. Then both ratios once more of single calls in turn, each of which finds the
caches full of the others' weights (`..._in_turn`). Losing cells are written like the
winning ones.

Writes results/sparse_dot.json, the table of it and a figure.
"""

import argparse
import collections
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments import measurements
from experiments.bench import tables
from jaxsparse.kernels import cpu
from jaxsparse.products.sparse_dot import matrix_product, sampled_product
from jaxsparse.timing import interleave, medians, ratios

SHAPES = [(768, 3072), (1024, 4096), (4096, 4096)]
BATCHES = [1, 8, 64, 512]
DENSITIES = [0.5, 0.25, 0.1, 0.05]
FREE = {
    "block32x32": js.Block(32, 32),
    "block4x16": js.Block(4, 16),
    "block1x16": js.Block(1, 16),
    "unstructured": js.Unstructured(),
}
FIXED = {"2:4": js.NM(2, 4), "1:4": js.NM(1, 4)}
STORAGES = [*FREE, *FIXED]
DTYPES = ["float32", "bfloat16", "int8"]
TURN = 4e-3  # seconds of calls in a row
DENSE = ("jnp.dot", "our blocks, all kept", "torch dense")
CURVE = ("implementation", "storage", "dtype", "shape", "batch", "direction")


def draw(pattern, shape, density, dtype):
    """A packed weight of random values at random places, and the dense one."""
    rng = np.random.default_rng(0)
    k, n = shape
    if isinstance(pattern, js.NM):
        order = rng.random((k // pattern.m, pattern.m, n)).argsort(1).argsort(1)
        mask = (order < pattern.n).reshape(k, n)
    else:
        block = (getattr(pattern, "rows", 1), getattr(pattern, "columns", 1))
        groups = (k // block[0], n // block[1])
        kept = np.zeros(math.prod(groups), bool)
        kept[rng.permutation(kept.size)[: round(density * kept.size)]] = True
        mask = np.repeat(np.repeat(kept.reshape(groups), block[0], 0), block[1], 1)
    weight = rng.standard_normal(shape, np.float32)
    return js.pack(weight, pattern, mask, dtype=dtype), np.where(mask, weight, 0)


def turns(runs, turn=0.0):
    """Seconds of every run in every round; about half a second for all, seven rounds at least."""
    start = time.perf_counter()
    for run in runs.values():
        jax.block_until_ready(run())  # compiles
        jax.block_until_ready(run())
    once = max((time.perf_counter() - start) / 2, turn * len(runs))
    rounds = max(7, min(200, int(0.5 / max(once, 1e-4))))
    return interleave(runs, rounds, turn=turn)


def seconds(runs):
    """Median seconds of every run, single calls in turn."""
    return medians(turns(runs))


def speedup(times, dense, name):
    """How many times faster than a dense product of the same round, in the median."""
    return 1 / ratios({name: times[name], dense: times[dense]}, dense)[name]


def best_dense(times):
    """The name of the fastest dense product."""
    found = medians(times)
    return min((name for name in found if name in DENSE), key=found.__getitem__)


def limits():
    """GFLOP/s of float32 multiply-adds and GB/s of reading memory, both measured here.

    Without the native kernels: those of the dense product and of a sum. A weight that
    fits a cache is read faster than memory: shares above 1 are no error.
    """
    if cpu.missing() is None and jax.default_backend() == "cpu":
        return cpu.fma_peak(), cpu.read_bandwidth()
    a, large = jnp.ones((2048, 2048)), jnp.ones(1 << 26)
    dot, total = jax.jit(jnp.dot), jax.jit(jnp.sum)
    found = seconds({"jnp.dot": lambda: dot(a, a), "sum": lambda: total(large)})
    return 2 * 2048**3 / found["jnp.dot"] / 1e9, large.nbytes / found["sum"] / 1e9


def all_kept(shape, x):
    """Our block kernel with nothing pruned: often the best dense product on a CPU."""
    if js.implementations()["cpu"] != "available" or jax.default_backend() != "cpu":
        return {}
    packed, _ = draw(js.Block(32, 32), shape, 1.0, None)
    call = jax.jit(lambda x, p: js.sparse_dot(x, p, implementation="cpu"))
    return {"our blocks, all kept": lambda: call(x, packed)}


def others(x, dense):
    """The same product by other libraries, those that are installed."""
    found = {}
    if x.shape[0] * np.count_nonzero(dense) <= 2**28:  # beyond, they take seconds
        from jax.experimental import sparse

        for name, kind in (("jax BCOO", sparse.BCOO), ("jax BCSR", sparse.BCSR)):
            w = kind.fromdense(jnp.asarray(dense.T))
            product = jax.jit(lambda w, x: (w @ x.T).T)
            found[name] = lambda w=w, product=product: product(w, x)
    columns = np.ascontiguousarray(np.asarray(x).T)
    if importlib.util.find_spec("scipy"):
        from scipy.sparse import csr_matrix

        csr = csr_matrix(dense.T)
        found["scipy CSR"] = lambda: csr @ columns
    if importlib.util.find_spec("torch"):
        # Or its idle threads spin on the cores of whoever runs next.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import torch  # pyright: ignore[reportMissingImports]

        rows, full = torch.from_numpy(np.array(x)), torch.from_numpy(dense)
        columns = torch.from_numpy(columns)
        transposed = full.T.contiguous()
        by_row, by_block = transposed.to_sparse_csr(), transposed.to_sparse_bsr((32, 32))
        found["torch dense"] = lambda: rows @ full
        found["torch CSR"] = lambda: by_row @ columns
        found["torch BSR"] = lambda: by_block @ columns
    return found


def products(packed, dense, x, g, direction, native):
    """Runs of every implementation that takes this product, and of the dense one."""
    full = jnp.asarray(dense)
    if direction == "forward":
        plain, args, sparse = jax.jit(jnp.dot), (x, full), js.sparse_dot
        operands = (x, packed)
    elif direction == "dx":
        plain, args = jax.jit(lambda g, w: g @ w.T), (g, full)
        operands, sparse = (g, packed), functools.partial(matrix_product, transpose=True)
    else:
        plain, args, sparse = jax.jit(lambda x, g: x.T @ g), (x, g), sampled_product
        operands = (x, g, packed)
    runs = {"jnp.dot": lambda: plain(*args)}
    for name, state in js.implementations().items():
        if state != "available" or (native and name != "cpu"):
            continue
        call = jax.jit(lambda *o, name=name, sparse=sparse: sparse(*o, implementation=name))
        try:
            call(*operands)
        except ValueError:  # an implementation that does not take this storage
            continue
        runs[name] = lambda call=call: call(*operands)
    return runs


def rows_of(cell, peak, with_others=False, native=False):
    """The rows of one cell of the grid: one for everything that is not dense."""
    storage, pattern, dtype, shape, batch, density, direction = cell
    packed, dense = draw(pattern, shape, density, None if dtype == "float32" else dtype)
    rng = np.random.default_rng(1)
    x, g = (jnp.asarray(rng.standard_normal((batch, size), np.float32)) for size in shape)
    runs = products(packed, dense, x, g, direction, native)
    if direction == "forward":
        runs |= all_kept(shape, x)
        runs |= others(x, dense) if with_others and dtype == "float32" else {}
    in_a_row, in_turn = turns(runs, TURN), turns(runs)
    found, best, best_in_turn = medians(in_a_row), best_dense(in_a_row), best_dense(in_turn)
    flops, moved = 2 * batch * packed.layout.stored, packed.nbytes + x.nbytes + g.nbytes
    limit = max(flops / peak[0], moved / peak[1]) / 1e9
    for name, took in found.items():
        if name not in DENSE:
            yield {
                "implementation": name,
                "storage": storage,
                "dtype": dtype,
                "shape": list(shape),
                "batch": batch,
                "density": density,
                "direction": direction,
                "ms": took * 1e3,
                "dense_ms": found["jnp.dot"] * 1e3,
                "best_dense_ms": found[best] * 1e3,
                "speedup": speedup(in_a_row, "jnp.dot", name),
                "speedup_over_best": speedup(in_a_row, best, name),
                "gflops": flops / took / 1e9,
                "share_of_limit": limit / took,
                "ms_in_turn": statistics.median(in_turn[name]) * 1e3,
                "speedup_in_turn": speedup(in_turn, "jnp.dot", name),
                "speedup_over_best_in_turn": speedup(in_turn, best_in_turn, name),
                "bytes_of_dense": packed.nbytes / dense.nbytes,
            }


def grid(shapes, batches, densities, dtypes):
    """The cells: (storage, pattern, dtype, shape, batch, density, direction)."""
    for (name, pattern), *cell in itertools.product(
        FREE.items(), dtypes, shapes, batches, densities
    ):
        yield name, pattern, *cell, "forward"
    for (name, pattern), *cell in itertools.product(FIXED.items(), dtypes, shapes, batches):
        yield name, pattern, *cell, pattern.n / pattern.m, "forward"
    if BATCHES[-1] in batches:
        for way, shape, density in itertools.product(("dx", "dvalues"), shapes, densities):
            yield "block32x32", js.Block(32, 32), "float32", shape, BATCHES[-1], density, way


def break_even(rows, ratio="speedup"):
    """The density at which each kernel is as fast as dense.

    Interpolated between neighbouring densities, both axes logarithmic; None and a
    note where no pair of those tried encloses it.
    """
    curves = collections.defaultdict(dict)
    for row in rows:
        curves[tuple(str(row[k]) for k in CURVE)][row["density"]] = row[ratio]
    found = []
    for key, curve in curves.items():
        at = None
        for (low, fast), (high, slow) in itertools.pairwise(sorted(curve.items())):
            if fast >= 1 > slow:
                share = math.log(fast) / math.log(fast / slow)
                at = low * (high / low) ** share
        low, high = min(curve.values()), max(curve.values())
        ends = "always ahead" if low >= 1 else "always behind" if high < 1 else "ahead where denser"
        note = "" if at else ends
        found.append(dict(zip(CURVE, key, strict=True)) | {"density": at, "note": note})
    return found


def cell_of(row):
    """What a row is a measurement of."""
    return (*(str(row[k]) for k in CURVE), row["density"])


def earlier_rows(name):
    """The rows of results/NAME.json, to be completed by new ones of the same machine."""
    found = json.loads((measurements.RESULTS / f"{name}.json").read_text())
    here = measurements.machine()
    other = {k: found["machine"][k] for k in here if k not in ("date", "commit")}
    if other.items() - here.items():
        raise SystemExit(f"{name}.json is of another machine, measure all of it: {other}")
    return found["rows"]


def main():
    """Measures the grid, prints every row and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one shape, two batches, float32")
    parser.add_argument("--others", action="store_true", help="also scipy, torch, jax's own")
    parser.add_argument("--name", default="sparse_dot", help="of the files in results/")
    parser.add_argument("--batches", type=int, nargs="+", choices=BATCHES, default=BATCHES)
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--native", action="store_true", help="the native kernels alone")
    args = parser.parse_args()
    sizes = (SHAPES, args.batches, DENSITIES, DTYPES)
    if args.quick:
        sizes = (SHAPES[1:2], [1, 512], [0.5, 0.1], ["float32"])
    peak = limits()
    print(f"{peak[0]:.0f} GFLOP/s, {peak[1]:.1f} GB/s, {js.implementations()}")
    partly = args.batches != BATCHES or args.storages != STORAGES or args.native
    earlier = earlier_rows(args.name) if partly else []
    rows = []
    commit = measurements.machine()["commit"]
    for cell in grid(*sizes):
        if cell[0] not in args.storages:
            continue
        for row in rows_of(cell, peak, args.others, args.native):
            rows.append(row | {"commit": commit})
            print(
                "{implementation:>9} {storage:>12} {dtype:>8} {shape!s:>12} {direction:>7} "
                "batch {batch:>3} density {density:.2f}: {ms:8.3f} ms, {speedup:5.2f}x jnp.dot, "
                "{speedup_over_best:5.2f}x best dense, {share_of_limit:4.0%} of limit; "
                "in turn {speedup_in_turn:5.2f}x, {speedup_over_best_in_turn:5.2f}x".format(**row),
                flush=True,
            )
    measured = {cell_of(row) for row in rows}
    rows = [row for row in earlier if cell_of(row) not in measured] + rows
    result = {
        "limits": {"gflops": peak[0], "gb_per_s": peak[1]},
        "implementations": js.implementations(),
        "rows": rows,
        "break_even": break_even(rows),
        "break_even_over_best": break_even(rows, "speedup_over_best"),
    }
    path = measurements.write(args.name, result)
    tables.write(rows, peak[0], path, args.others)


if __name__ == "__main__":
    main()
