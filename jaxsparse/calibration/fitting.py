"""The last stage: pieces of a pruned model, each fitted to the dense one by gradient descent.

A layer that is reconstructed on its own makes up for its own mask. A piece, such as the attention
or the feed-forward part of one block, also makes up for what its layers do to one another, and
for what the pruned pieces before it did to its inputs. arXiv 2510.14444 finds attention and
feed-forward apart the best pieces.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxsparse.pruning.masking import mask_params
from jaxsparse.trees import (
    Tree,
    apart,
    floats_of,
    leaves_by_path,
    near_misses,
    replace_by_path,
    together,
)


class Part(NamedTuple):
    """A piece of a model.

    Attributes:
      run: called as run(params, x): what the piece makes of the value before it, a tree of
        arrays, with residual connections; what it returns is the x of the next.
      paths: regular expression of the leaves to train; masked ones stay masked, and gains and
        biases may be among them.
    """

    run: Callable[[Tree, Any], Any]
    paths: str


class Fitted(NamedTuple):
    """What `fit` found.

    Attributes:
      params: with the trained leaves exchanged, +0 where masks are.
      before, after: |f(params, x) - y|² / |y|² over all batches, float32.
    """

    params: Tree
    before: Float[Array, ""]
    after: Float[Array, ""]


def fit(
    run: Callable[[Tree, Any], Any],
    params: Tree,
    masks: Mapping[str, Any],
    inputs: Sequence[Any],
    targets: Sequence[Any],
    *,
    paths: str = ".*",
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
) -> Fitted:
    """Trains some weights under their masks until a function gives what it should.

        min over the weights kept of sum |run(params, x) - y|² / |y|²

    Weights and optimizer are in float32 and go back to the dtype of the leaf. The weights before
    the first step are returned where no step leaves less.

    Args:
      run: called as run(params, x) with one of the inputs.
      params: the weights, masked or not; those that masks name are masked first.
      masks: by path, True is kept, in the shapes of the weights.
      inputs, targets: trees of arrays by batch, taken in turn.
      paths: regular expression of the leaves to train, of floats.
      optimizer: default `optax.adam(1e-3)`.
      steps: of the optimizer, one batch each.

    Returns:
      The parameters, and the errors before and after.

    Raises:
      ValueError: an expression that names no leaf of floats, a mask of a leaf that is not there
        or of another shape, inputs and targets of different numbers, none, or not finite, and
        outputs that do not look like the targets. Before the first step.

    Example:
      >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> run = lambda params, x: x @ params["w"]
      >>> x = jax.random.normal(jax.random.key(0), (32, 2)) @ jnp.array([[1.0, 0.9], [0.0, 0.1]])
      >>> masks = {"w": jnp.array([[False, True], [True, False]])}
      >>> found = fit(run, params, masks, [x], [run(params, x)], optimizer=optax.adam(0.1))
      >>> bool(found.after < found.before / 10), float(found.params["w"][0, 0])
      (True, 0.0)
    """
    leaves = _checked(params, masks)
    trained = floats_of(leaves, paths, "fit")
    if len(inputs) != len(targets) or not inputs:
        raise ValueError(
            f"fit: {len(inputs)} inputs, {len(targets)} targets; as many, at least one, would work"
        )
    params = mask_params(params, dict(masks))
    optimizer = optax.adam(1e-3) if optimizer is None else optimizer
    kept = {path: jnp.asarray(masks[path], bool) for path in trained if path in masks}

    def error(weights, params, x, y):
        cast = {path: weights[path].astype(trained[path].dtype) for path in weights}
        found = run(replace_by_path(params, leaves_by_path(params) | cast), x)
        return _distance(found, y)

    def masked(weights):
        return weights | {p: jnp.where(m, weights[p], 0) for p, m in kept.items()}

    numbers, *form = apart(params)

    def step(weights, state, numbers, x, y):
        slopes = jax.grad(error)(weights, together(numbers, *form), x, y)
        updates, state = optimizer.update(masked(slopes), state, weights)
        return masked(optax.apply_updates(weights, updates)), state

    jitted = jax.jit(step)
    measure = jax.jit(lambda w, numbers, x, y: (error(w, together(numbers, *form), x, y), _size(y)))

    def total(weights):
        parts = [measure(weights, numbers, x, y) for x, y in zip(inputs, targets, strict=True)]
        # Zero outputs on both sides are no error.
        return sum(e for e, _ in parts) / jnp.maximum(sum(s for _, s in parts), 1e-30)

    weights = masked({path: leaf.astype(jnp.float32) for path, leaf in trained.items()})
    for number, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        _check_alike(number, jax.eval_shape(lambda n, x: run(together(n, *form), x), numbers, x), y)
    first, before = weights, total(weights)
    if not jnp.isfinite(before):
        raise ValueError(
            "fit: what the function makes of the inputs, or a target, is not finite; look at "
            "the batches and at the weights"
        )
    state = optimizer.init(weights)
    for turn in range(steps):
        x, y = inputs[turn % len(inputs)], targets[turn % len(targets)]
        weights, state = jitted(weights, state, numbers, x, y)
    after = total(weights)
    if not after < before:  # nor NaN: a rate that is too large loses nothing
        weights, after = first, before
    new = {path: weights[path].astype(trained[path].dtype) for path in trained}
    return Fitted(replace_by_path(params, leaves_by_path(params) | new), before, after)


def fit_parts(
    parts: Sequence[Part],
    params: Tree,
    dense: Tree,
    masks: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
    on_part: Callable[[int, Fitted], Any] | None = None,
) -> Tree:
    """Fits one piece of a pruned model after another to the dense one: arXiv 2510.14444.

    A piece is trained to make of what the pruned pieces before it give what the dense one would
    make of the same, and the next gets what it makes. Values between two pieces are kept for all
    batches, those of one place at a time.

    Args:
      parts: in order; the first one's x is a batch, with embeddings in its `run`. Every leaf
        that a mask names is trained by one at most.
      params: of the pruned model, such as `prune_oneshot` returns.
      dense: of the model before, a tree like it.
      masks: by path, as `prune_oneshot` returns them.
      batches: arrays, or trees of them.
      optimizer, steps: as in `fit`, of every piece.
      on_part: called with the number of each piece and its `Fitted` as it is done.

    Returns:
      The parameters, +0 where masks are.

    Raises:
      ValueError: as `fit`, and on batches that are none, no parts, a masked leaf in two of them,
        and trees of different structure.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> dense = {f"layer{i}": jax.random.normal(keys[i], (8, 8)) / 3 for i in range(2)}
      >>> def layer(name):
      ...     return lambda params, x: x + jnp.tanh(x @ params[name])
      >>> parts = [Part(layer(name), name) for name in dense]
      >>> masks = {name: abs(kernel) > 0.2 for name, kernel in dense.items()}
      >>> pruned = fit_parts(
      ...     parts, dense, dense, masks, [jax.random.normal(keys[2], (32, 8))], steps=20
      ... )
      >>> bool((pruned["layer1"][~masks["layer1"]] == 0).all())
      True
    """
    if not parts:
        raise ValueError("fit_parts: no parts; Part(run, paths), ... would work")
    values = list(batches)
    if not values:
        raise ValueError("fit_parts: no batches; one array would work")
    _checked(params, masks)
    if jax.tree.structure(params) != jax.tree.structure(dense):
        raise ValueError(
            "fit_parts: params and dense are trees of different structure; what prune_oneshot "
            "returned and what it was given would work"
        )
    for path in masks:
        places = [number for number, part in enumerate(parts) if re.fullmatch(part.paths, path)]
        if len(places) > 1:
            raise ValueError(
                f"fit_parts: the parts {places} all train {path!r}; paths of one of them that "
                "leave it out would work, as for a weight that is used twice"
            )
    params = mask_params(params, dict(masks))
    teacher, *form = apart(dense)
    for number, part in enumerate(parts):
        run = jax.jit(lambda numbers, x, run=part.run: run(together(numbers, *form), x))
        wanted = [run(teacher, x) for x in values]
        found = fit(
            part.run, params, masks, values, wanted,
            paths=part.paths, optimizer=optimizer, steps=steps,
        )  # fmt: skip
        params = found.params
        if on_part is not None:
            on_part(number, found)
        values = [run(apart(params)[0], x) for x in values]
    return params


def _checked(params: Tree, masks: Mapping[str, Any]) -> dict[str, Any]:
    leaves = leaves_by_path(params)
    for path, mask in masks.items():
        if path not in leaves:
            raise ValueError(f"fit: a mask for {path!r}; {near_misses(path, leaves)}")
        if np.shape(mask) != np.shape(leaves[path]):
            raise ValueError(
                f"fit: the mask of {path!r} has shape {np.shape(mask)}, the leaf "
                f"{np.shape(leaves[path])}"
            )
    return leaves


def _check_alike(number: int, found: Any, target: Any) -> None:
    ours, theirs = jax.tree.leaves(found), jax.tree.leaves(target)
    shapes = [a.shape for a in ours], [jnp.shape(a) for a in theirs]
    if jax.tree.structure(found) != jax.tree.structure(target) or shapes[0] != shapes[1]:
        raise ValueError(
            f"fit: of input {number} the function makes shapes {shapes[0]}, the target has "
            f"{shapes[1]}; targets that look like outputs would work"
        )


def _real(tree: Any) -> list[Array]:
    return [
        leaf.astype(jnp.float32)
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
        if jnp.issubdtype(leaf.dtype, jnp.floating)  # positions are passed on as they are
    ]


def _size(tree: Any) -> Float[Array, ""]:
    return sum((jnp.sum(a * a) for a in _real(tree)), jnp.zeros(()))


def _distance(found: Any, target: Any) -> Float[Array, ""]:
    pairs = zip(_real(found), _real(target), strict=True)
    return sum((jnp.sum((a - b) ** 2) for a, b in pairs), jnp.zeros(()))
