"""How one kernel is pruned by what it meets: pairs of functions, and what follows them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsparse.calibration.admm import admm
from jaxsparse.calibration.brain_surgeon import brain_surgeon
from jaxsparse.calibration.layer_loss import (
    DAMPING,
    balanced,
    power_of_two,
    quadratic,
    reconstruct,
)
from jaxsparse.calibration.reducers import Reducer, both, gram, square_norms, statistics
from jaxsparse.calibration.site import Site
from jaxsparse.calibration.swaps import swap
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.pruning.state import pooled_mask
from jaxsparse.trees import Tree, leaves_by_path, near_misses

Found = tuple[Bool[Array, "k n"], Float[Array, "k n"] | None]


class Criterion(NamedTuple):
    """A one-shot method; write your own as a pair of functions.

    Attributes:
      reducer: what is kept of the values that a kernel meets.
      prune: called as prune(weight, state, target) with a kernel (K, N) in float32, the state
        of its reducer and a `Target`; returns the mask (K, N), True is kept, and weights
        (K, N), None where those that are kept stay as they are. What the mask leaves out is
        stored as +0 in any case. `jit` traces it.
      known: what is known of each weight beforehand, None where nothing is: called as
        known(spec) with the `LeafSpec` of every leaf before the model runs; returns an array of
        the weight's shape, which `prune` gets as a fourth argument, kernel by kernel (K, N).

    Example:
      >>> def prune(weight, state, target):
      ...     return target.mask(jnp.abs(weight) * state["squares"][:, None]), None
      >>> steeper = Criterion(square_norms(), prune)
    """

    reducer: Reducer
    prune: Callable[..., Found]
    known: Callable[[LeafSpec], Any] | None = None


NOTHING = Reducer(lambda site: (), lambda state, met, site: state)


def magnitude() -> Criterion:
    """|w|, which looks at no value; for comparison."""
    return Criterion(NOTHING, lambda weight, state, target: (target.mask(_size(weight)), None))


def given(masks: Tree) -> Criterion:
    """Masks from anywhere, for `reconstructed` and `swapped` to go on from.

    From training, `js.compute_masks` or a file. How many entries the rules ask for is not looked
    at: a mask keeps what it keeps.

    Args:
      masks: by path or as a tree like the parameters, in the shapes of the weights, True is
        kept; a mask for every leaf that a rule names.

    Raises:
      ValueError: in `prune_oneshot`, before the model runs: for a leaf without a mask, for a
        mask of another shape, for one that splits the groups of its rule's pattern, and for
        one that keeps more than n of m.

    Example:
      >>> import jax, jaxsparse as js
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> x = jax.random.normal(jax.random.key(1), (32, 8))
      >>> rules = [js.Rule("w", js.Unstructured(), 0.5)]
      >>> masks = js.compute_masks(params, rules)
      >>> found = js.calibration.prune_oneshot(
      ...     lambda params, x: x @ params["w"], params, [x], rules,
      ...     criterion=reconstructed(given(masks)),
      ... )
      >>> bool((found.masks["w"] == masks["w"]).all())
      True
    """
    by_path = leaves_by_path(masks)

    def known(spec: LeafSpec):
        if spec.path not in by_path:
            raise ValueError(f"given: no mask for {spec.path!r}; {near_misses(spec.path, by_path)}")
        mask = spec.expand(pooled_mask(spec.path, by_path[spec.path], spec))
        if isinstance(spec.pattern, NM):
            # Where every entry scores alike, the pattern takes back what is over its quota.
            groups = spec.pool(mask)
            everything = jnp.zeros(spec.pattern.unit_scores(groups, None, spec.view)[0].shape, bool)
            fits = spec.expand(spec.pattern.finish(everything, groups, None, spec.view))
            if (mask & ~fits).any():
                raise ValueError(
                    f"given: the mask of {spec.path!r} of shape {mask.shape} keeps more than "
                    f"{spec.pattern} does; a rule with js.Unstructured() would work"
                )
        return mask

    return Criterion(NOTHING, lambda weight, state, target, mask: (mask, None), known)


def optimal_brain_damage(information: Tree) -> Criterion:
    """F_ij w_ij² / 2, what the loss of the model gains without the weight: LeCun et al. 1989.

    With F the diagonal of the Fisher information in the place of the Hessian's: see `fisher`.
    What the weight meets is not looked at, the weights stay.

    Args:
      information: by path or as a tree like the parameters, in the shapes of the weights, at
        least zero; for every leaf that a rule names.

    Raises:
      ValueError: in `prune_oneshot`, before the model runs: for a leaf without information, of
        another shape, negative or not finite.

    Example:
      >>> import jax, jaxsparse as js
      >>> params = {"w": jnp.array([[1.0, 3.0], [2.0, 1.0]])}
      >>> def loss(params, x, y):
      ...     return jnp.mean((x @ params["w"] - y) ** 2)
      >>> batches = [(jax.random.normal(jax.random.key(i), (4, 2)), jnp.ones(2)) for i in range(3)]
      >>> found = js.calibration.prune_oneshot(
      ...     lambda params, x, y: x @ params["w"], params, batches,
      ...     [js.Rule("w", js.Unstructured(), 0.5)],
      ...     criterion=optimal_brain_damage(js.calibration.fisher(loss, params, batches)),
      ... )
      >>> int(found.masks["w"].sum())
      2
    """
    by_path = leaves_by_path(information)

    def known(spec: LeafSpec):
        path, shape = spec.path, spec.view.shape
        if path not in by_path:
            raise ValueError(
                f"optimal_brain_damage: no information on {path!r}; {near_misses(path, by_path)}"
            )
        found = jnp.asarray(by_path[path])
        if found.shape != shape:
            raise ValueError(
                f"optimal_brain_damage: the information on {path!r} has shape {found.shape}, the "
                f"leaf {shape}"
            )
        if not (jnp.isfinite(found) & (found >= 0)).all():
            raise ValueError(
                f"optimal_brain_damage: the information on {path!r} of shape {shape} is negative "
                "or not finite; what js.calibration.fisher returns would work"
            )
        return found

    def prune(weight, state, target, information):
        del state
        information = information.astype(jnp.float32)
        return target.mask(_size(information) * _size(weight) ** 2 / 2), None

    return Criterion(NOTHING, prune, known)


def wanda() -> Criterion:
    """|w_ij| |X_i|, the norm of what the weight meets: Sun et al. 2023, arXiv 2306.11695.

    The weights stay. The source lets the entries of one output compete: `per="output"`.
    """

    def prune(weight, state, target):
        return target.mask(_size(weight) * jnp.sqrt(state["squares"])[:, None]), None

    return Criterion(square_norms(), prune)


def sparsegpt(*, damping: float = DAMPING, block: int = 128) -> Criterion:
    """Prunes input by input and has later ones make up: Frantar & Alistarh 2023, arXiv 2301.00774.

    Args:
      damping: of the mean of G's diagonal, added to it.
      block: inputs whose entries compete.
    """

    def prune(weight, state, target):
        problem, size = balanced(quadratic(weight, state["products"], damping))
        mask, found = brain_surgeon(problem, target, block=block)
        return mask, found * size

    return Criterion(gram(), prune)


def alps(*, damping: float = DAMPING, iterations: int = 300, steps: int = 10) -> Criterion:
    """ADMM for the mask, conjugate gradients for the weights: Meng et al. 2024, arXiv 2406.07831.

    Args:
      damping: of the mean of G's diagonal, added to it.
      iterations: of ADMM, at most; some 20 to 30 are usual.
      steps: of conjugate gradients.
    """

    def prune(weight, state, target):
        problem, size = balanced(quadratic(weight, state["products"], damping))
        mask, found = admm(problem, target, iterations=iterations, steps=steps)
        return mask, found * size

    return Criterion(gram(), prune)


def swapped(criterion: Criterion, *, damping: float = DAMPING, limit: int = 1000) -> Criterion:
    """Another criterion's mask, improved by 1-swaps; the weights stay as they were.

    Args:
      criterion: magnitude, wanda, `given` masks or one of your own, whose mask is of single
        weights.
      damping: of the mean of G's diagonal, added to it.
      limit: exchanges in a column, at most.
    """

    def improve(weight, state, target, mask, found):
        del found
        group = target.span if isinstance(target.pattern, NM) else None
        if group is None and not target.single:
            raise ValueError(
                f"swapped: groups of {target.pattern} cannot be swapped one by one; Unstructured() "
                "or NM(n, m), or reconstructed(...) in its place, would work"
            )
        problem, _ = balanced(quadratic(weight, state["products"], damping))
        return swap(problem, mask, group=group, limit=limit), None

    return _then(criterion, improve)


def reconstructed(criterion: Criterion, *, damping: float = DAMPING, steps: int = 15) -> Criterion:
    """Another criterion's mask, with the weights under it that lose least.

    Args:
      criterion: any.
      damping: of the mean of G's diagonal, added to it.
      steps: of conjugate gradients: 5 come within some 2 % of least squares, 15 are exact.
    """

    def improve(weight, state, target, mask, found):
        del target
        problem, size = balanced(quadratic(weight, state["products"], damping))
        start = None if found is None else found / size
        return mask, reconstruct(problem, mask, steps=steps, start=start) * size

    return _then(criterion, improve)


def _size(array: Float[Array, "k n"]) -> Float[Array, "k n"]:
    """|a| by a power of two, which changes no order and no overflow is near."""
    return jnp.abs(array / power_of_two(array))


def with_products(criterion: Criterion) -> Criterion:
    """The criterion with XᵀX in its state, by which `Pruned.error` is exact.

    >>> measured_by(wanda()), measured_by(with_products(wanda()))
    ('squares', 'products')
    """
    if measured_by(criterion) == "products":
        return criterion

    def prune(weight, state, target, *known):
        return criterion.prune(weight, state["first"], target, *known)

    return Criterion(both(criterion.reducer, gram()), prune, criterion.known)


def measured_by(criterion: Criterion) -> Literal["products", "squares"] | None:
    """What `Pruned.error` goes by: XᵀX, the squared norms of columns, or None for neither."""
    kept = statistics(jax.eval_shape(lambda: criterion.reducer.init(Site("w", (1, 1), (0,), ()))))
    return "products" if "products" in kept else "squares" if "squares" in kept else None


def _then(criterion: Criterion, improve: Callable[..., Found]) -> Criterion:
    def prune(weight, state, target, *known):
        mask, found = criterion.prune(weight, state["first"], target, *known)
        return improve(weight, state["second"], target, mask, found)

    return Criterion(both(criterion.reducer, gram()), prune, criterion.known)
