"""`scan`: one compiled evaluation, asked what every leaf or group of units loses at every ratio."""

import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxsparse.allocation.narrowing import Score as UnitScore
from jaxsparse.allocation.sensitivity.cells import Cells, Stacked, check_ratios
from jaxsparse.allocation.sensitivity.changes import Change
from jaxsparse.allocation.sensitivity.records import Better, Over, Record, read, write
from jaxsparse.allocation.sensitivity.table import Sensitivity
from jaxsparse.calibration.resuming import fingerprint, of_program
from jaxsparse.files import naming
from jaxsparse.graph import Structure
from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.scores import Score
from jaxsparse.trees import Tree, apart, leaves_by_path, together

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
_SIGNS = {"higher": 1, "lower": -1}


class Cell(NamedTuple):
    """What `scan` tells its `on_cell` after every cell.

    Attributes:
      name: of the leaf, kernel or group that is pruned.
      ratio: of it that goes.
      number, total: how many cells are known, those of a scan gone on from among them, of all.
      change: what the model loses.
      seconds: that it took.
    """

    name: str
    ratio: float
    number: int
    total: int
    change: Change
    seconds: float


def scan(
    evaluate: Callable[[Any, Any], Any],
    params: Tree,
    rules: Sequence[Rule] | None = None,
    ratios: Sequence[float] = RATIOS,
    *,
    batches: Iterable[Any],
    better: Better,
    score: Score | Tree | None = None,
    structure: Structure | None = None,
    groups: Sequence[str] | None = None,
    unit_score: UnitScore = "l2",
    stacked: Stacked | None = None,
    path: str | os.PathLike[str] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
) -> Sensitivity:
    """What a model loses when one leaf, or one group of units, is pruned and the rest is dense.

    For every leaf l that the rules name and every ratio r exactly round(r n) of its n groups are
    pruned, those of the lowest score (of equal ones the last, as in `js.compute_masks`), and
    with m(x) the metric on example x

        drop(l, r) = mean over x of ±(m_dense(x) - m_{l, r}(x)),

    with + where higher is better, so that a drop is what is lost. Both models see the same
    examples, and from the differences, not from two means, comes the standard error

        std over x of (m_dense(x) - m_{l, r}(x)) / sqrt(number of x),

    which is much the smaller where few examples change sides. An `evaluate` that gives one
    number a batch has batches in the place of examples.

    All cells run one program, compiled once: what is pruned is an argument of it. With
    `structure`, groups of units are pruned, too, as whole units, by the norm of the weights
    that write them, as `js.allocation.narrow` does.

    Args:
      evaluate: (params, batch) -> the metric of every example, a vector, or of the batch, one
        number. It is traced, and sees `params` as they were given. Truths count as 0 and 1.
      params: the trained weights, any tree.
      rules: which leaves, of which pattern; may be None where `structure` is given.
      ratios: fractions to prune, rising, between 0 and 1; of n:m up to 1 - n/m, the fraction of
        m-groups being r / (1 - n/m).
      batches: what is evaluated, each a pytree of arrays. With one number a batch all must be of
        one shape; otherwise each new shape compiles once more.
      better: "higher" for an accuracy, "lower" for a loss.
      score: of leaves: one that looks at no gradients, default `js.magnitude()`, or scores by
        path, of the weights' shapes or one a group.
      structure: `js.graph.structure(fn, params, *inputs)`.
      groups: names of the groups that are meant, None for all.
      unit_score: of units, "l2", "l1" or a function, as in `narrow`.
      stacked: what a leaf that stacks kernels along batch axes is: "apart", a curve for each
        kernel, named `path[2]`; "together", one curve, all kernels as sparse. None refuses it.
      path: a JSON file that the scan is kept in after every cell, its folder made where there is
        none: the same call after a kill goes on, and returns at once what is whole. Dense is
        evaluated anew each time.
      on_cell: called after every cell.

    Returns:
      A `Sensitivity`: curves, tables, and the allocations that follow from them.

    Raises:
      ValueError: before anything runs, for rules and ratios that do not fit, an empty leaf, a
        stack, weights and scores that are not finite, groups that are none (residual streams,
        pinned channels), and a file of another model, program or data; and for metrics that are
        no vector of examples and no number, or not finite.
      TypeError: for arguments of the wrong kind.

    Example:
      >>> import jaxsparse as js
      >>> def loss(params, batch):
      ...     x, y = batch
      ...     return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2, axis=1)
      >>> params = {"up": jnp.eye(4), "down": jnp.arange(8.0).reshape(4, 2)}
      >>> x = jax.random.normal(jax.random.key(0), (3, 16, 4))
      >>> batches = [(each, jnp.tanh(each) @ params["down"]) for each in x]
      >>> rules = [js.Rule(".*", js.Unstructured())]
      >>> found = js.allocation.scan(loss, params, rules, (0.5, 0.75), batches=batches,
      ...     better="lower")
      >>> found.samples, found.tolerated(0.0)
      (48, {'down': 0.0, 'up': 0.75})

    References:
      Li et al. 2017, arXiv 1608.08710, and Han et al. 2015, arXiv 1506.02626, for such curves.
    """
    if not callable(evaluate):
        raise TypeError(
            f"scan: {type(evaluate).__name__} is no function; evaluate(params, batch), which "
            "gives the metric of every example, comes first"
        )
    if better not in _SIGNS:
        raise ValueError(
            f"scan: better={better!r}; 'higher' for an accuracy or 'lower' for a loss would work"
        )
    cells = Cells(params, rules, score, structure, groups, unit_score, stacked)
    ratios = check_ratios(ratios, cells.targets, cells.specs)
    file = None if path is None else pathlib.Path(path)
    if file is not None:
        with naming(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    measure = _Measure(evaluate, params, cells, batches, better)
    record = Record(
        better=better,
        ratios=ratios,
        targets=cells.targets,
        cells=dict.fromkeys(cells.targets, (None,) * len(ratios)),
        dense=measure.dense,
        samples=measure.samples,
        over=measure.over,
        run=measure.run(),
    )
    if file is not None and file.exists():
        held = read(file)
        record.check_same(held, file)
        record = held
    for name, target in cells.targets.items():
        known: dict[int, Change] = {}
        for at, ratio in enumerate(ratios):
            if record.cells[name][at] is not None:
                continue
            start, count = time.perf_counter(), target.units - target.kept(ratio)
            # Where units are few, several ratios prune the same.
            if count not in known:
                known[count] = measure({name: count}, f"{name!r} pruned by {ratio}")
            record = record.put(name, at, known[count])
            if file is not None:
                write(file, record.to_dict())
            if on_cell is not None:
                seconds = time.perf_counter() - start
                on_cell(Cell(name, ratio, record.known, record.total, known[count], seconds))
    return Sensitivity.of(record, measure)


class _Measure:
    """What models of which something is pruned lose; all run one program."""

    def __init__(
        self,
        evaluate: Callable[[Any, Any], Any],
        params: Tree,
        cells: Cells,
        batches: Iterable[Any],
        better: Better,
    ):
        self._cells, self._batches, self._sign = cells, list(batches), _SIGNS[better]
        if not self._batches:
            raise ValueError("scan: no batches; [(inputs, labels)] would work")
        self._leaves = leaves_by_path(params)
        arrays, rest, tree = apart(params)
        # On the device once: what NumPy holds would be copied there for every batch.
        self._arrays = [a if a is None else jnp.asarray(a) for a in arrays]

        def evaluate_pruned(arrays, batch):
            return evaluate(together(arrays, rest, tree), batch)

        self._program = jax.jit(evaluate_pruned)
        self.over: Over = self._kind()
        self._dense = self._evaluate({}, "the dense model")
        self.dense, self.samples = float(np.mean(self._dense)), self._dense.size

    def __call__(self, pruned: Mapping[str, int], what: str = "the joint model") -> Change:
        """What the model loses of which so many units of each named target go."""
        found = self._evaluate(pruned, what)
        lost, n = self._sign * (self._dense - found), self.samples
        drop = lost.sum() / n
        off = lost - drop
        error = math.sqrt(off @ off / (n - 1) / n) if n > 1 else math.nan
        return Change(float(found.sum() / n), float(drop), error)

    def run(self) -> dict[str, str]:
        """Fingerprints of what the numbers follow from."""
        cells = self._cells
        traced = self._program.trace(self._arrays, self._batches[0])
        return {
            "weights": fingerprint(self._arrays),
            "program": of_program((traced.jaxpr.jaxpr, traced.jaxpr.consts)),
            "rules": fingerprint([*map(repr, cells.specs.values()), repr(cells.structure)]),
            "order": fingerprint(cells.places),
            "batches": fingerprint([leaves_by_path(batch) for batch in self._batches]),
        }

    def _kind(self) -> Over:
        """What `evaluate` gives numbers of, asked of its trace: nothing runs."""
        kinds = set()
        shapes = [jax.tree.map(jnp.shape, batch) for batch in self._batches]
        for number, batch in enumerate(self._batches):
            try:
                found = self._program.trace(self._arrays, batch).out_info
            except Exception as error:
                error.add_note(
                    f"in evaluate(params, batch), which scan traces, of batch {number}: arrays of "
                    "shapes it is given, an array it returns"
                )
                raise
            shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
            real = dtype is not None and not jnp.issubdtype(dtype, jnp.complexfloating)
            if shape is None or not real or len(shape) > 1 or 0 in shape:
                raise ValueError(
                    f"scan: evaluate returns {found} of batch {number}, with arrays of shapes "
                    f"{shapes[number]}; the metric of every example, a vector, or one number, the "
                    "mean over the batch, would work"
                )
            kinds.add("batches" if shape == () else "examples")
        if len(kinds) > 1:
            raise ValueError(
                "scan: evaluate returns one number of some batches and vectors of others; the "
                "metric of every example would work"
            )
        (kind,) = kinds
        if kind == "batches" and any(each != shapes[0] for each in shapes):
            number = next(i for i, each in enumerate(shapes) if each != shapes[0])
            raise ValueError(
                f"scan: evaluate returns one number a batch, and batch {number} has shapes "
                f"{shapes[number]}, the first {shapes[0]}: their plain mean would be of no data "
                "set; the metric of every example, or batches of one size, would work"
            )
        return kind

    def _evaluate(self, pruned: Mapping[str, int], what: str) -> Float[np.ndarray, " samples"]:
        """The metric of every example, or of every batch."""
        new = self._cells.prune(self._leaves, pruned)
        pairs = zip(self._leaves, self._arrays, strict=True)
        arrays = [new.get(path, array) for path, array in pairs]
        # All of them first, since what runs need not be waited for.
        found = jax.device_get([self._program(arrays, batch) for batch in self._batches])
        for number, values in enumerate(found):
            if bad := np.count_nonzero(~np.isfinite(values)):
                raise ValueError(
                    f"scan: of {what}, evaluate returns {bad} of {values.size} numbers that are "
                    f"not finite for batch {number}; a metric that has a value for every model, "
                    "such as an accuracy, or lower ratios, would work"
                )
        return np.concatenate([np.ravel(values).astype(np.float64) for values in found])
