"""Sparse convolution against what there is: `python -m experiments.bench.sparse_conv`.

Clouds of a street that a lidar scanned and of one that is simulated, 3^3 submanifold, float32,
on one core and on two: the native product, its gradients and its map beside XLA's dataflows and
the CPU product of spconv, where that is installed; shares of the measured peak of multiply-adds
count the multiplications that are needed. Then a small network forwards and backwards, and
grids of rising occupancy beside dense convolutions. Times are of this process's processors, the
least of some calls in turn; those of the product on one core and on two are wall times. Writes
results/sparse_conv.json and results/sparse_conv.md.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.bench import sparse_conv_peers as peers

CHANNELS = ((16, 16), (32, 64), (64, 64), (128, 128))
MAIN = (32, 64)
OCCUPANCIES = (0.03, 0.1, 0.3, 0.6, 1.0)
SIDE = 40
Row = dict[str, Any]


def clouds() -> tuple[dict[str, np.ndarray], list[str]]:
    """Voxels (n, 3) by name, in rising order, and why some cannot be had."""
    from experiments.data import scans
    from experiments.data.download import DownloadError

    drive = scans.simulated_street(turns=2600)
    found = {f"simulated street, {size:g} m": scans.voxels(drive, size) for size in (0.1, 0.05)}
    shuffled = np.random.default_rng(0).permutation(found["simulated street, 0.1 m"])
    found["the same, shuffled"] = shuffled
    try:
        found["street scan, 0.05 m"] = scans.voxels(scans.street(), 0.05)
    except DownloadError as error:
        return found, [f"street scan: {error}"]
    return found, []


def least(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of this process's processors, the least over calls in turn."""
    from jaxsparse.timing import interleave

    times = interleave(runs, rounds, clock=time.process_time)
    return {name: min(seconds) for name, seconds in times.items()}


def multiply_adds() -> tuple[Callable[[], Any], float]:
    """A run of nothing but multiply-adds in registers, and its GFLOP."""
    from jaxsparse.kernels.cpu import library

    work = library.load().jaxsparse_fma
    return lambda: (work(1 << 22), ())[1], work(1 << 22) / 1e9


def tensor(voxels: np.ndarray, channels: int) -> Any:
    """A sparse tensor of normal features."""
    from jaxsparse import activations as act

    rows = np.pad(voxels, ((0, 0), (1, 0)))
    features = np.random.default_rng(0).normal(size=(len(rows), channels))
    return act.sparse_tensor(rows, features.astype(np.float32))


def products(name: str, voxels: np.ndarray, channels: tuple[int, int], rounds: int) -> Row:
    """One convolution by every dataflow, its gradients, and by spconv."""
    import jax
    import jax.numpy as jnp

    from jaxsparse import activations as act

    x = tensor(voxels, channels[0])
    maps = jax.jit(functools.partial(act.kernel_map, size=3))(x)
    w = np.random.default_rng(1).normal(size=(3, 3, 3, *channels)).astype(np.float32) / 30
    w = jnp.asarray(w)

    # Maps are operands: of constants XLA would compute for minutes while it compiles.
    @functools.partial(jax.jit, static_argnums=3)
    def forward(x, w, maps, dataflow):
        return act.sparse_conv(x, w, maps, dataflow=dataflow).features

    @functools.partial(jax.jit, static_argnums=3)
    def backward(x, w, maps, dataflow):
        def total(f, w):
            y = act.sparse_conv(x.with_features(f), w, maps, dataflow=dataflow)
            return jnp.sum(y.features)

        return jax.grad(total, argnums=(0, 1))(x.features, w)

    runs: dict[str, Callable[[], Any]] = {}
    flows = ("native", "implicit", "fetch_on_demand", "gather_scatter")
    # XLA takes minutes to compile the lists of a cloud: one shows what they do.
    for dataflow in flows if channels == MAIN and "scan" in name else flows[:2]:
        given = act.group_pairs(maps) if dataflow == "gather_scatter" else maps
        runs[dataflow] = functools.partial(forward, x, w, given, dataflow)
        if dataflow in ("native", "implicit"):
            runs[f"{dataflow}, gradients"] = functools.partial(backward, x, w, given, dataflow)
    peer, _ = peers.spconv()
    if peer:
        runs["spconv"] = peers.spconv_run(peer, voxels, x, channels, w, runs["native"]())
    runs["peak"], gflop = multiply_adds()
    pairs = int(jnp.sum(maps.sizes))
    seconds = least(runs, rounds)
    peak = gflop / seconds.pop("peak")
    return {
        "cloud": name,
        "voxels": len(voxels),
        "pairs a voxel": round(pairs / len(voxels), 2),
        "channels": list(channels),
        "GFLOP": round(2e-9 * pairs * channels[0] * channels[1], 4),
        "peak GFLOP/s": round(peak, 1),
        "ms": {flow: round(1e3 * taken, 3) for flow, taken in seconds.items()},
    }


def maps(name: str, voxels: np.ndarray, rounds: int) -> Row:
    """Milliseconds for 1,000 voxels, coordinates to pairs: native, XLA's, and spconv's."""
    import jax
    import jax.export
    import jax.numpy as jnp

    from jaxsparse import activations as act

    rows = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
    bounds = act.sites(rows).bounds

    def build(rows):
        found = act.kernel_map(act.sites(rows, bounds), 3)
        return found.index, found.reverse

    native = jax.jit(build)
    xla = jax.jit(jax.export.export(native)(rows).call)  # an export has XLA's alone
    runs = {"native": lambda: native(rows), "XLA": lambda: xla(rows)}
    peer, _ = peers.spconv()
    if peer:
        runs["spconv, with a product of 1 channel"] = peers.spconv_map(peer, voxels)
    found = least(runs, rounds)
    per_thousand = {k: round(1e6 * seconds / len(voxels), 4) for k, seconds in found.items()}
    return {"cloud": name, "voxels": len(voxels), "ms for 1,000 voxels": per_thousand}


def network(name: str, voxels: np.ndarray, rounds: int) -> Row:
    """Two residual levels, maps included: forward, and gradients of everything."""
    import jax
    import jax.numpy as jnp

    from jaxsparse import activations as act

    rng = np.random.default_rng(0)
    sizes = [(3, 3, 3, 4, 32), (3, 3, 3, 32, 32), (2, 2, 2, 32, 64), (3, 3, 3, 64, 64)]
    sizes += [(2, 2, 2, 64, 32), (3, 3, 3, 32, 16)]
    weights = [jnp.asarray(rng.normal(size=s) / np.prod(s[:4]) ** 0.5, jnp.float32) for s in sizes]
    x = tensor(voxels, 4)

    def loss(weights, x, dataflow):
        same = act.kernel_map(x, 3)
        down = act.kernel_map(x, 2, stride=2, outputs="floor")
        conv = functools.partial(act.sparse_conv, dataflow=dataflow)
        y = conv(x, weights[0], same).map(jax.nn.relu)
        y = conv(y, weights[1], same).map(jax.nn.relu)
        z = conv(y, weights[2], down).map(jax.nn.relu)
        z = conv(z, weights[3], act.kernel_map(z, 3)).map(jax.nn.relu)
        y = (conv(z, weights[4], down.inverse) + y).map(jax.nn.relu)
        return jnp.mean(conv(y, weights[5], same).features ** 2)

    forward = jax.jit(loss, static_argnums=2)
    slopes = jax.jit(jax.grad(loss), static_argnums=2)
    runs: dict[str, Callable[[], Any]] = {}
    for dataflow in ("native", "implicit"):
        runs[f"{dataflow}, forward"] = functools.partial(forward, weights, x, dataflow)
        runs[f"{dataflow}, gradients"] = functools.partial(slopes, weights, x, dataflow)
    peer, _ = peers.spconv()
    if peer:
        runs |= peers.spconv_network(peer, voxels, np.array(x.features))
    found = least(runs, rounds)
    ms = {name: round(1e3 * seconds, 2) for name, seconds in found.items()}
    return {"cloud": name, "voxels": len(voxels), "ms": ms}


def grid(occupancy: float, rounds: int) -> Row:
    """A grid with sites at random: native beside dense convolution, maps included."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jaxsparse import activations as act

    rng = np.random.default_rng(0)
    n = max(1, round(occupancy * SIDE**3))
    places = np.sort(rng.permutation(SIDE**3)[:n])
    voxels = np.stack(np.unravel_index(places, (SIDE,) * 3), 1).astype(np.int32)
    box = act.Bounds.of_shape(1, (SIDE,) * 3)
    rows = jnp.asarray(np.pad(voxels, ((0, 0), (1, 0))))
    features = jnp.asarray(rng.normal(size=(n, MAIN[0])), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, *MAIN)), jnp.float32)
    dense_x = jnp.zeros((1, SIDE, SIDE, SIDE, MAIN[0])).at[tuple(rows.T)].set(features)

    @jax.jit
    def sparse(rows, features, w):
        x = act.sparse_tensor(rows, features, box)
        return act.sparse_conv(x, w, act.kernel_map(x, 3)).features

    @jax.jit
    def dense(x, w):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=numbers)

    runs: dict[str, Callable[[], Any]] = {
        "native, with its map": lambda: sparse(rows, features, w),
        "lax.conv": lambda: dense(dense_x, w),
    }
    if other := peers.torch_conv3d(dense_x, w):
        runs["torch conv3d"] = other
    found = least(runs, rounds)
    return {"occupancy": occupancy, "ms": {k: round(1e3 * v, 2) for k, v in found.items()}}


def wall(name: str, voxels: np.ndarray, rounds: int) -> Row:
    """The main product by wall time, on the cores of this process."""
    import jax
    import jax.numpy as jnp

    from jaxsparse import activations as act
    from jaxsparse.timing import interleave

    x = tensor(voxels, MAIN[0])
    built = jax.jit(functools.partial(act.kernel_map, size=3))(x)
    w = jnp.ones((3, 3, 3, *MAIN), jnp.float32)
    run = jax.jit(lambda x, maps: act.sparse_conv(x, w, maps, dataflow="native").features)
    seconds = min(interleave({"native": lambda: run(x, built)}, 4 * rounds)["native"])
    return {"cloud": name, "ms": round(1e3 * seconds, 3)}


def measure(rounds: int, cores: int) -> Row:
    """Everything that is measured on so many cores."""
    from jaxsparse.kernels import cpu

    found, missing = clouds()
    result: Row = {"cores": cores, "instruction set": cpu.instruction_set()}
    result["wall"] = [wall(name, voxels, rounds) for name, voxels in found.items()]
    if cores > 1:
        return result
    result["products"] = [
        products(name, voxels, channels, rounds)
        for name, voxels in found.items()
        for channels in (CHANNELS if name == "simulated street, 0.1 m" else (MAIN,))
    ]
    result["maps"] = [maps(name, voxels, rounds) for name, voxels in found.items()]
    name = next(reversed(found))
    result["network"] = network(name, found[name], rounds)
    result["grids"] = [grid(occupancy, rounds) for occupancy in OCCUPANCIES]
    peer, reason = peers.spconv()
    result["skipped"] = missing + ([] if peer else [reason])
    return result


def on_cores(count: int, rounds: int) -> Row:
    """`measure` in a process that may use so many cores: XLA starts a thread for each."""
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "measured.json"
        command = [sys.executable, "-m", "experiments.bench.sparse_conv", "--into", str(path)]
        command += ["--rounds", str(rounds), "--cores", str(count)]
        try:
            os.sched_setaffinity(0, sorted(allowed)[:count])
            subprocess.run(command, check=True)
        finally:
            os.sched_setaffinity(0, allowed)
        return json.loads(path.read_text())


def markdown(one: Row, two: Row | None) -> str:
    """The tables that docs/numbers.md shows."""
    # What else the machine does only lowers a peak: the highest of the run is the processor's.
    peak = max(row["peak GFLOP/s"] for row in one["products"])
    flows = list(dict.fromkeys(flow for row in one["products"] for flow in row["ms"]))
    lines = [["cloud (voxels; pairs a voxel)", "channels", *flows, "share of the peak"]]
    for row in one["products"]:
        cells = [f"{row['ms'][name]:.1f}" if name in row["ms"] else "" for name in flows]
        title = f"{row['cloud']} ({row['voxels']:,}; {row['pairs a voxel']})"
        share = f"{row['GFLOP'] / row['ms']['native'] * 1e3 / peak:.0%}"
        lines.append([title, " -> ".join(map(str, row["channels"])), *cells, share])
    tables = [lines]
    names = list(one["maps"][0]["ms for 1,000 voxels"])
    lines = [["map, ms for 1,000 voxels", *names]]
    lines += [
        [r["cloud"], *(f"{r['ms for 1,000 voxels'][n]:.3f}" for n in names)] for r in one["maps"]
    ]
    tables.append(lines)
    names = list(one["grids"][0]["ms"])
    lines = [[f"{SIDE}^3, occupied", *names]]
    lines += [
        [f"{r['occupancy']:.0%}", *(f"{r['ms'][n]:.1f}" for n in names)] for r in one["grids"]
    ]
    tables.append(lines)
    if two:
        pairs = zip(one["wall"], two["wall"], strict=True)
        rows = [[a["cloud"], f"{a['ms']:.1f}", f"{b['ms']:.1f}"] for a, b in pairs]
        tables.append([["native, wall ms", "one core", "two"], *rows])
    lines = [["network", "ms"], *([k, f"{v:.1f}"] for k, v in one["network"]["ms"].items())]
    tables.append(lines)
    return "\n".join(
        "".join(
            f"| {' | '.join(cells)} |\n" + ("| --- " * len(cells) + "|\n" if i == 0 else "")
            for i, cells in enumerate(table)
        )
        for table in tables
    )


def main() -> None:
    """Measures in processes of one core and of two, prints the tables, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--into", type=pathlib.Path, help="measure here and write this file")
    parser.add_argument("--cores", type=int, default=1, help="what --into is told that it has")
    options = parser.parse_args()
    if options.into:
        options.into.write_text(json.dumps(measure(options.rounds, options.cores)))
        return
    from experiments.measurements import RESULTS, write

    one = on_cores(1, options.rounds)
    two = on_cores(2, options.rounds) if len(os.sched_getaffinity(0)) > 1 else None
    command = f"python -m experiments.bench.sparse_conv --rounds {options.rounds}"
    table = markdown(one, two)
    print(table)
    print("written:", write("sparse_conv", {"command": command, "one core": one, "two": two}))
    (RESULTS / "sparse_conv.md").write_text(table)


if __name__ == "__main__":
    main()
