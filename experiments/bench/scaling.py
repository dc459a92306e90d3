"""How the cost grows with the work: `python -m experiments.bench.scaling`.

Batch 1 to 4096 at a kernel of 1024 by 4096, and square kernels of width 256 to 8192
at batch 64, in float32, on one thread and on two: milliseconds of `jnp.dot` and of
packed products, in turns in one process for each number of threads. Writes
results/scaling.json and results/scaling.png.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

KERNEL, BATCHES = (1024, 4096), [4**i for i in range(7)]
BATCH, WIDTHS = 64, [256, 512, 1024, 2048, 4096, 8192]
STORAGES = (("block32x32", 0.25), ("block4x16", 0.25), ("unstructured", 0.25), ("1:4", 0.25))


def points() -> list[dict]:
    """Milliseconds of every product at every size, on the threads of this process."""
    import jax
    import jax.numpy as jnp

    import jaxsparse as js
    from experiments.bench import sparse_dot

    dense, found = jax.jit(jnp.dot), []
    packed_dot = jax.jit(js.sparse_dot)
    sizes = [("batch", batch, KERNEL, batch) for batch in BATCHES]
    sizes += [("width", width, (width, width), BATCH) for width in WIDTHS]
    for axis, at, shape, batch in sizes:
        x, runs = jnp.ones((batch, shape[0])) / shape[0], {}
        for storage, density in STORAGES:
            pattern = (sparse_dot.FREE | sparse_dot.FIXED)[storage]
            packed, weight = sparse_dot.draw(pattern, shape, density, None)
            name = f"{storage}, density {density}"
            runs[name] = lambda packed=packed, x=x: packed_dot(x, packed)
        weight = jnp.asarray(weight)
        runs["jnp.dot"] = lambda weight=weight, x=x: dense(x, weight)
        runs |= sparse_dot.all_kept(shape, x)
        for name, seconds in sparse_dot.seconds(runs).items():
            found.append({"axis": axis, "at": at, "product": name, "ms": 1e3 * seconds})
    return found


def on_threads(count: int) -> list[dict]:
    """The points of a process that may use so many cores: XLA starts a thread for each."""
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "points.json"
        try:
            os.sched_setaffinity(0, sorted(allowed)[:count])
            subprocess.run([sys.executable, "-m", __spec__.name, "--points", str(path)], check=True)
        finally:
            os.sched_setaffinity(0, allowed)
        return [{"threads": count, **point} for point in json.loads(path.read_text())]


def figure(rows: list[dict], path: pathlib.Path) -> None:
    """Milliseconds over batch (left) and width (right), a row of panels a thread count."""
    from matplotlib.figure import Figure

    counts = sorted({row["threads"] for row in rows})
    picture = Figure(figsize=(9, 3.4 * len(counts)), layout="constrained")
    panels = picture.subplots(len(counts), 2, squeeze=False)
    fixed = {"batch": f"kernel {KERNEL[0]} x {KERNEL[1]}", "width": f"batch {BATCH}"}
    for count, line in zip(counts, panels, strict=True):
        for axis, panel in zip(fixed, line, strict=True):
            chosen = [r for r in rows if r["threads"] == count and r["axis"] == axis]
            for product in dict.fromkeys(row["product"] for row in chosen):
                curve = [(r["at"], r["ms"]) for r in chosen if r["product"] == product]
                style = "k-" if product == "jnp.dot" else "o-"
                panel.plot(*zip(*curve, strict=True), style, label=product, markersize=3)
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms")
            ticks = sorted({row["at"] for row in chosen})
            panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
            panel.set_xticks([], minor=True)
            panel.set_title(f"{fixed[axis]}, {count} thread{'s' * (count > 1)}", fontsize=9)
    panels[0][0].legend(fontsize=6)
    picture.savefig(path, dpi=120)


def main() -> None:
    """Measures in a process for each number of threads, prints and writes the points."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", help="write this process's points to a file, and no more")
    target = parser.parse_args().points
    if target:
        pathlib.Path(target).write_text(json.dumps(points()))
        return
    cores = len(os.sched_getaffinity(0))
    rows = [row for count in sorted({1, cores}) for row in on_threads(count)]
    for row in rows:
        print("{threads} threads  {axis} {at:>5}  {product:<32}{ms:10.3f} ms".format(**row))
    from experiments import measurements

    path = measurements.write(
        "scaling", {"command": "python -m experiments.bench.scaling", "rows": rows}
    )
    figure(rows, path.with_suffix(".png"))
    print("written:", path)


if __name__ == "__main__":
    main()
