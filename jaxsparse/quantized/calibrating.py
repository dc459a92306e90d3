"""Codes for what weights meet: found from a few batches, and checked on others."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.calibration.observe import observe
from jaxsparse.calibration.ranges import ends, minmax
from jaxsparse.calibration.reducers import Reducer, widened
from jaxsparse.calibration.site import Site
from jaxsparse.packed.base import is_packed
from jaxsparse.patterns.rules import Rule, check_rules, resolve
from jaxsparse.quantized.affine import Affine
from jaxsparse.trees import Tree, any_of, flatten, leaves_by_path, near_misses


def of_range(low: Any, high: Any) -> Affine:
    """The u8 codes of a range, widened to hold 0.

        scale = (high - low) / 255,    zero point = round(-low / scale)

    A range of nothing but 0 has scale 1. The arguments may be traced, and then are not checked.

    Raises:
      ValueError: the ends are not finite, or in the other order.

    Example:
      >>> codes = of_range(-1.0, 1.55)
      >>> round(float(codes.scale), 4), int(codes.zero_point)
      (0.01, 100)
    """
    if not any(isinstance(end, Tracer) for end in (low, high)):
        each = [float(end) for end in (low, high)]
        if not (each[0] <= each[1] and np.isfinite(each).all()):
            raise ValueError(
                f"of_range: from {each[0]} to {each[1]} is no finite range; low <= high would work"
            )
    low, high = jnp.minimum(jnp.float32(low), 0), jnp.maximum(jnp.float32(high), 0)
    scale = (high - low) / 255
    # Below the normal numbers a quotient by it is none.
    scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, jnp.float32(1), scale)
    return Affine(scale, jnp.round(-low / scale).astype(jnp.int32), "uint8")


def dynamic(x: Any) -> Affine:
    """The codes of the range of one array as it comes, which costs a pass over it.

    Example:
      >>> int(dynamic(jnp.array([-1.0, 2.0])).zero_point)
      85
    """
    return of_range(*ends(x))


def calibrate(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, ...]],
    rules: Sequence[Rule],
    *,
    reducer: Reducer | None = None,
) -> dict[str, Affine]:
    """The u8 codes of what every weight that a rule names meets, from a few batches.

    The traced program is observed, so any framework will do, and nothing is put into the
    model. One weight has one range: over all of its products, and over all kernels of a stack.
    The weights are those given; calibrate with the pruned ones.

    Args:
      fn: called as fn(params, *batch).
      params: its weights.
      batches: tuples of arrays.
      rules: which leaves; those that the model was pruned by will do.
      reducer: `calibration.minmax()` by default; `moving_average()` and `percentile()` leave
        outliers out, and `saturation` counts these. One of your own has `low` and `high` in
        its state.

    Returns:
      By path the codes: for `linear`, and for `sparsify` of a whole model.

    Raises:
      ValueError: no batches, a weight that no product meets, a range that is not finite; the
        path is quoted.

    Example:
      >>> import jaxsparse as js
      >>> params = {"up": jnp.eye(8)}
      >>> batches = [(jnp.linspace(-1.0, 1.55, 8),)]
      >>> rules = [js.Rule("up", js.Block(4, 4))]
      >>> codes = calibrate(lambda params, x: x @ params["up"], params, batches, rules)
      >>> int(codes["up"].zero_point)
      100
    """
    reducer = minmax() if reducer is None else reducer
    paths = list(resolve(check_rules(rules), params))
    step, states = _observing("calibrate", fn, params, reducer, paths), None
    for batch in batches:
        states = step(batch, states)
    if states is None:
        raise ValueError("calibrate: there are no batches; [(x,)] would work")
    found: dict[str, list[Any]] = {}
    for site, state in states.items():
        low, high = (np.asarray(state[name]) for name in ("low", "high"))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(
                f"calibrate: {site.path!r} of shape {site.shape} meets values from {low.min()} to "
                f"{high.max()}, which no codes hold; batches of finite activations would work"
            )
        found.setdefault(site.path, []).append((low.min(), high.max()))
    ranges = {path: tuple(zip(*each, strict=True)) for path, each in found.items()}
    for path, (low, high) in ranges.items():
        if max(map(float, high)) - min(map(float, low)) > float(np.finfo("float32").max):
            raise ValueError(
                f"calibrate: the range of what {path!r} meets, {ranges[path]}, is too wide for "
                "float32; scaling the activations would work"
            )
    return {path: of_range(min(low), max(high)) for path, (low, high) in ranges.items()}


class Saturation(NamedTuple):
    """How much of what a weight meets has no code of its own.

    Attributes:
      saturated: numbers below or above the range, and NaN.
      size: all numbers.
    """

    saturated: int
    size: int

    @property
    def share(self) -> float:
        """The share of them; 0 of none."""
        return self.saturated / self.size if self.size else 0.0


def saturation(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, ...]],
    codes: Mapping[str, Affine],
    *,
    most: float = 0.01,
) -> dict[str, Saturation]:
    """Counts the activations that lie outside of the codes' ranges, layer by layer.

    They become the nearest code. Values are those of the program as given: float ones, of which
    later layers see no rounding of earlier ones.

    Args:
      fn, params, batches: as in `calibrate`.
      codes: by path, what `calibrate` returned.
      most: the share of a layer above which it is named in a warning.

    Raises:
      ValueError: no batches, no codes, a packed weight, or a path that is no weight of the program.

    Warns:
      UserWarning: layers of which more than `most` saturates.

    Example:
      >>> from jaxsparse.quantized import of_range
      >>> model = lambda params, x: x @ params["up"]
      >>> batches = [(jnp.arange(8.0),)]
      >>> saturation(model, {"up": jnp.eye(8)}, batches, {"up": of_range(0, 6)}, most=0.2)
      {'up': Saturation(saturated=1, size=8)}
    """

    def update(state, met, site):
        inside = codes[site.path].covers(widened(met.array))
        return {
            "saturated": state["saturated"] + jnp.sum(~inside, dtype=jnp.int32),
            "size": state["size"] + met.array.size,
        }

    zeros = {"saturated": jnp.zeros((), jnp.int32), "size": jnp.zeros((), jnp.int32)}
    counting = Reducer(lambda site: zeros, update)
    if not codes:
        raise ValueError("saturation: there are no codes; what calibrate returns would work")
    known = leaves_by_path(params)
    packed = {path for path, leaf in flatten(params, is_packed) if is_packed(leaf)}
    for path in codes:
        if path in packed:
            raise ValueError(
                f"saturation: {path!r} is packed, and values are those of the float program; "
                "js.unpack_params(params) would work"
            )
        if path not in known:
            raise ValueError(
                f"saturation: codes for {path!r}, which is no leaf; {near_misses(path, known)}"
            )
    step = _observing("saturation", fn, params, counting, list(codes))
    counts = {path: Saturation(0, 0) for path in codes}
    for batch in batches:  # counts of one batch fit into int32, those of many need not
        for site, state in step(batch, None).items():
            new = (int(np.asarray(state[name], np.int64).sum()) for name in ("saturated", "size"))
            old = counts[site.path]
            counts[site.path] = Saturation(*(a + b for a, b in zip(old, new, strict=True)))
    if not any(count.size for count in counts.values()):
        raise ValueError("saturation: there are no batches, or no rows in them; [(x,)] would work")
    many = {path: count for path, count in counts.items() if count.share > most}
    if many:
        listed = ", ".join(f"{path!r} {count.share:.1%}" for path, count in many.items())
        warnings.warn(
            f"saturation: of what these meet more than {most:.1%} is out of range: {listed}; a "
            "wider range, or batches that are more like these, would work",
            stacklevel=2,
        )
    return counts


def _observing(
    caller: str, fn: Callable[..., Any], params: Tree, reducer: Reducer, paths: Sequence[str]
) -> Callable[[tuple[Any, ...], Any], dict[Site, Any]]:
    """The states of weights after a batch, from those before it; compiled once for a shape."""
    leaves = leaves_by_path(params)

    @jax.jit
    def step(params, batch, states):
        return observe(fn, params, *batch, reducer=reducer, paths=any_of(paths), states=states)[1]

    def checked(batch, states):
        states = step(params, tuple(batch), states)
        met = {site.path for site in states}
        for path in paths:
            if path not in met:
                raise ValueError(
                    f"{caller}: no product of the program meets {path!r} of shape "
                    f"{np.shape(leaves[path])}; without it in the rules it would work"
                )
        return states

    return checked
