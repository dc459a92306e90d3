"""OWL: blocks of a model with more outlying weights, by what these meet, keep more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.calibration.checks import meets_mixed_rows
from jaxsparse.calibration.observe import observe
from jaxsparse.calibration.reducers import square_norms
from jaxsparse.calibration.site import Site
from jaxsparse.patterns.rules import Rule, resolve
from jaxsparse.products.traced_axes import read_axes
from jaxsparse.pruning.depth import FIRST_NUMBER, MAXIMUM, ByBlock, blocks_of
from jaxsparse.pruning.distributions import Distribution, known_target
from jaxsparse.trees import Tree, apart, leaves_by_path, together


def owl(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[Any],
    rules: Sequence[Rule],
    *,
    multiple: float = 5.0,
    strength: float = 0.08,
    blocks: str = FIRST_NUMBER,
    maximum: float = MAXIMUM,
) -> Distribution:
    """Outlier weighed layerwise sparsity: Yin et al. 2024, arXiv 2310.05175.

    The outliers of a block are its scores |w_ij| |X_i|, those of all its leaves together, above
    `multiple` times their mean, o their share of the block, in the dense model:

        density_b = c + 2 strength (o_b - min o) / (max o - min o)

    with c so that the weights together end at the sparsity asked for. (The source has blocks of
    one size.) Where all blocks have the same share they get the same sparsity.

    Args:
      fn: called as fn(params, *batch), the model.
      params: its weights.
      batches: tuples of arrays, or arrays; gone through once.
      rules: what is to be pruned.
      multiple: M of the source, 3 to 10.
      strength: its lambda: blocks differ by twice that at most.
      blocks: as in `js.arithmetic_progression`.
      maximum: sparsity that no leaf ends above.

    Raises:
      ValueError: a leaf that no product meets or that is in no block, w of `x @ (v @ w)`, values
        that are not finite, batches that are none; and as `js.arithmetic_progression`.

    Example:
      >>> import jax, jaxsparse as js
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {f"layer{i}": jax.random.t(key, 3.0, (16, 16)) for i, key in enumerate(keys)}
      >>> def model(params, x):
      ...     for kernel in params.values():
      ...         x = jax.numpy.tanh(x @ kernel)
      ...     return x
      >>> batches = [(jax.random.normal(key, (32, 16)),) for key in keys]
      >>> rules = [js.Rule(".*", js.Unstructured())]
      >>> shares = owl(model, params, batches, rules)
      >>> found = js.calibration.prune_oneshot(
      ...     model, params, batches, rules, sparsity=0.5, distribution=shares
      ... )
      >>> round(sum(float(mask.mean()) for mask in found.masks.values()) / 3, 1)
      0.5
    """
    if not multiple > 0 or not 0 <= strength < 0.5:
        raise ValueError(
            f"owl: multiple={multiple}, strength={strength}: 5 and 0.08 would work, and anything "
            "above 0 and in [0, 0.5)"
        )
    if hasattr(batches, "shape"):
        raise TypeError("owl: batches is one array; [batch] would work")
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not batches:
        raise ValueError("owl: no batches; one tuple of arrays would work")
    specs = resolve(read_axes(rules, fn, params, *batches[0]), params)
    specs = {path: spec for path, spec in specs.items() if known_target(spec) is None}
    groups: dict[str, list[np.ndarray]] = {}
    places, leaves = blocks_of(blocks, list(specs)), leaves_by_path(params)
    squares = _squares(fn, params, batches)
    met = {(site.path, site.in_axis, site.batch_axis): site for site in squares}
    for path, spec in specs.items():
        key = path, spec.view.inputs, spec.view.batch
        if key not in met:
            raise ValueError(
                f"owl: no product meets {path!r} of shape {spec.view.shape} as {spec.view}; a rule "
                "with a sparsity of its own for it would work"
            )
        if met[key].mixed:
            raise meets_mixed_rows("owl", met[key])
        kernels = np.asarray(spec.view.matrix(leaves[path])).astype(np.float32)
        scores = np.abs(kernels) * np.sqrt(squares[met[key]])[..., None]
        if not np.isfinite(scores).all():
            raise ValueError(
                f"owl: {path!r} of shape {spec.view.shape}, or what it meets, is not finite; look "
                "at the batches and at the weights"
            )
        if kernels.any() and not scores.any():
            raise ValueError(
                f"owl: what {path!r} of shape {spec.view.shape} meets is nothing but zeros, or too "
                "small for squares in float32; values scaled up would work"
            )
        groups.setdefault(places[path], []).append(scores.ravel())
    shares = {block: _outlying(scores, multiple) for block, scores in groups.items()}
    return from_outliers(shares, strength=strength, blocks=blocks, maximum=maximum)


def from_outliers(
    shares: Mapping[str, float], *, strength: float, blocks: str, maximum: float
) -> ByBlock:
    """`owl` for shares of outliers by block that are there already, in any unit."""
    least, most = min(shares.values(), default=0.0), max(shares.values(), default=0.0)
    width = most - least or 1.0
    numbers = {b: -2 * strength * (share - least) / width for b, share in shares.items()}
    return ByBlock(blocks, maximum, tuple(numbers.items()))


def _outlying(scores: list[np.ndarray], multiple: float) -> float:
    size = sum(map(len, scores))
    mean = sum(float(np.sum(part, dtype=np.float64)) for part in scores) / max(size, 1)
    return sum(int(np.sum(part > multiple * mean)) for part in scores) / max(size, 1)


def _squares(fn, params: Tree, batches: Sequence[tuple]) -> dict[Site, np.ndarray]:
    """Squared norms of what every weight meets."""

    def look(numbers, states, rest, tree):
        params, batch = together(numbers, rest, tree)
        return observe(fn, params, *batch, reducer=square_norms(), states=states)[1]

    step, states = jax.jit(look, static_argnums=(2, 3)), None
    for batch in batches:
        numbers, rest, tree = apart((params, batch))
        states = step(numbers, states, rest, tree)
    return {site: np.asarray(state["squares"]) for site, state in (states or {}).items()}
