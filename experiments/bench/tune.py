"""How the Hopper kernels should cut their work, measured. Under ten minutes.

    make tune PYTHON=python3      # a Python that has jax with CUDA

For every class of calls (op, block, bytes of a factor, rows) the candidates that fit
shared memory are compiled in parallel, since compiling is most of the time, and timed in
turn. The fastest is kept, unless the reasoned configuration is as fast within `MARGIN`.
Writes kernels/mosaic_gpu/tuned/DEVICE_KIND.json, which `configs` reads; classes that
there was no time for keep what that file said. Without a GPU: exits 2 and writes nothing.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxsparse as js
from experiments.bench import accelerator, accelerator_inputs, gpu
from experiments.bench.sparse_dot import seconds
from jaxsparse.kernels import walks
from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.kernels.mosaic_gpu import configs

TUNED = pathlib.Path(__file__).parents[2] / "kernels" / "mosaic_gpu" / "tuned"
BLOCKS = [(128, 128), (64, 64), (32, 32), (64, 128), (128, 64)]
ROWS = [4096, 256, 32]  # an entry serves calls with so many rows or more
SHAPE = (4096, 4096)
DENSITY = 0.15
MARGIN = 0.02  # by which a candidate must beat the reasoned configuration: noise is less
STRIPS = (1, 4, 16)
OUT_BYTES = {"product": 2, "sampled": 4}  # parts of a split batch are summed in float32


class Class(NamedTuple):
    """Calls that share a configuration; the keys of an entry."""

    op: str
    block: tuple[int, int]
    bytes: int
    rows: int


def classes() -> list[Class]:
    """What is tuned, the most used first."""
    found = [
        Class(op, block, 2, rows)
        for rows in ROWS
        for block in BLOCKS
        for op in (("product", "sampled") if rows == max(ROWS) else ("product",))
    ]
    return [*found, Class("product", (128, 128), 1, max(ROWS))]


def candidates(kind: Class) -> list[configs.Config]:
    """Configurations worth a measurement, the reasoned one first; all fit shared memory."""
    op, block, in_bytes, rows = kind
    out_bytes = OUT_BYTES[op]
    first = configs.heuristic(op, block, rows, out_bytes, in_bytes)
    found = [first]
    for wg_rows in (64, 128) if op == "product" else (first.wg_rows,):
        for warpgroups in (1, 2) if op == "product" else (1, 2, first.warpgroups):
            tile = configs.Config(wg_rows, warpgroups, 2)
            if op == "product" and tile.tile_rows > max(64, 2 * rows):
                continue  # most of it would be padding
            most = max(
                (
                    stages
                    for stages in range(2, configs.MOST_STAGES + 1)
                    if _fits(kind, dataclasses.replace(tile, stages=stages), out_bytes)
                ),
                default=0,
            )
            strips = STRIPS if op == "product" and rows > tile.tile_rows else (first.strip,)
            for stages in {most, max(2, most // 2)} if most else ():
                found += [dataclasses.replace(tile, stages=stages, strip=s) for s in strips]
    return list(dict.fromkeys(found))


def _fits(kind: Class, config: configs.Config, out_bytes: int) -> bool:
    used = configs.shared_memory(kind.op, kind.block, config, out_bytes, kind.bytes)
    return used <= configs.SHARED_MEMORY


def best(times: Mapping[configs.Config, float], reasoned: configs.Config) -> configs.Config:
    """The fastest; the reasoned one where it was measured to be as fast within `MARGIN`."""
    fastest = min(times, key=lambda config: times[config])
    close = times.get(reasoned, float("inf")) <= times[fastest] * (1 + MARGIN)
    return reasoned if close else fastest


def entries(
    found: Mapping[Class, configs.Config], before: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The file's list: what was found, and what it held of other classes; most rows first."""
    held = {
        Class(e["op"], tuple(e["block"]), e["bytes"], e["rows"]): configs.Config(**e["config"])
        for e in before
    } | dict(found)
    order = sorted(held, key=lambda kind: (kind.op, kind.block, kind.bytes, -kind.rows))
    return [kind._asdict() | {"config": dataclasses.asdict(held[kind])} for kind in order]


def write(device_kind: str, found: Mapping[Class, configs.Config]) -> pathlib.Path:
    """Writes what was found into the device's file."""
    path = TUNED / configs.file_name(device_kind)
    before = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries(found, before))
    path.write_text(f"[\n{lines}\n]\n")
    return path


@functools.cache
def operands(block: tuple[int, int], in_bytes: int, rows: int):
    """x, g and a packed weight that stands for all of its class."""
    dtype = "bfloat16" if in_bytes == 2 else accelerator_inputs.EIGHT
    packed = accelerator_inputs.weight(js.Block(*block), SHAPE, DENSITY, dtype)
    return packed, *accelerator_inputs.inputs(rows, SHAPE, dtype)


def call(kind: Class, config: configs.Config, sms: int):
    """One call of the kernel with this configuration, and its operands."""
    from jaxsparse.kernels.mosaic_gpu import products, sampling, schedule

    packed, x, g = operands(kind.block, kind.bytes, kind.rows)
    layout, (indptr, rows) = packed.layout, packed.index
    assert isinstance(layout, BlockLayout)
    options: dict[str, Any] = {"config": config, "sms": sms, "out_dtype": jnp.bfloat16}
    if kind.op == "sampled":
        tiles = -(-layout.nnz // config.warpgroups)
        options |= {"layout": layout, "splits": configs.splits(tiles, -(-kind.rows // 64), sms)}
        return functools.partial(sampling.sampled, **options), (x, g, indptr, rows)
    steps = layout.nnz * (kind.block[0] // configs.depth(kind.block[0], kind.bytes))
    down = -(-kind.rows // config.tile_rows)
    options["deal"] = schedule.pays(steps, down, layout.grid[1], sms)
    options["turned"] = kind.bytes == 1
    values = packed.values.swapaxes(1, 2) if options["turned"] else packed.values
    walk = walks.walk((indptr, rows), layout, False)

    def product(x, values, *walk):
        return products.product(x, values, walks.Walk(*walk), **options)

    return product, (x, values, *walk)


def compiled(kind: Class, config: configs.Config, sms: int):
    """A run of some calls, compiled; None for what the compiler refuses."""
    try:
        return accelerator.repeated(*call(kind, config, sms), ahead=True)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        print(f"{kind} {config}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def tune(sms: int, deadline: float) -> tuple[dict[Class, configs.Config], list[Class]]:
    """The best configuration of every class, and the classes there was no time for."""
    found: dict[Class, configs.Config] = {}
    wanted = classes()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for n, kind in enumerate(wanted):
            if time.monotonic() > deadline:
                return found, wanted[n:]
            options = candidates(kind)
            operands(kind.block, kind.bytes, kind.rows)  # once, not in every thread
            runs = pool.map(functools.partial(compiled, kind, sms=sms), options)
            runs = {config: run for config, run in zip(options, runs, strict=True) if run}
            if not runs:
                continue
            times: dict[configs.Config, float] = seconds(runs)
            found[kind] = best(times, options[0])
            print(
                f"{kind.op:>8} {kind.block!s:>10} {kind.bytes} bytes, rows {kind.rows:>5}: "
                f"{found[kind]}, {times.get(options[0], float('nan')) / times[found[kind]]:.2f}x "
                f"the reasoned one, of {len(runs)}",
                flush=True,
            )
    return found, []


def main():
    """Tunes and writes the device's file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="after which no class is begun")
    args = parser.parse_args()
    reason = gpu.absent()
    if reason:
        print(f"nothing was tuned: {reason}", file=sys.stderr)
        sys.exit(2)
    device = jax.devices()[0]
    found, left = tune(device.core_count, time.monotonic() + 60 * args.minutes)
    print(f"{len(found)} classes tuned: {write(device.device_kind, found)}")
    if left:
        print(f"no time was left for {', '.join(map(str, left))}")


if __name__ == "__main__":
    main()
