"""`shrink`: what masks leave empty is removed, and the model is really smaller."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.graph.analysis.channels import summarize
from jaxsparse.graph.analysis.trace import Analysis, arrays_by_path
from jaxsparse.graph.hosts import placed_as
from jaxsparse.graph.shrinking.choice import Choice, Resolve
from jaxsparse.graph.shrinking.rewrite import Kept, run
from jaxsparse.graph.shrinking.shrink_report import ShrinkReport, report_of
from jaxsparse.pruning.masking import mask_params
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path


def shrink(
    fn: Callable[..., Any],
    params: Tree,
    masks: Tree,
    *inputs: Any,
    resolve: Resolve = "union",
    blocks: Mapping[str, tuple[int, int]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Tree, Callable[..., Any], ShrinkReport]:
    """Removes the channels, neurons and heads that masks leave empty, with all tied to them.

    A channel is in question if the mask of some leaf keeps no entry of it.

    - `resolve="union"` keeps the union of what the leaves need: a channel goes if wherever
      its axis is summed over it surely adds nothing, because one factor is zero there, or
      a constant that a bias can take over. Where only products sum over it, that is so if
      the masks leave it empty in all its leaves; or in all consumers; or in its producers,
      while the function between maps 0 to 0. Where it is empty in its producers but for
      a bias b, it is the constant activation(b), and the leaf that is added next to the
      product (or subtracted, as a running mean is) takes over what that adds, if nothing
      else reads that leaf. What the smaller model computes is what the masked one does,
      up to rounding. A constant that no bias can take over is kept, and so is one that a
      convolution pads, and a channel in a softmax or a maximum; the report says which.
    - `resolve="intersection"` keeps a channel if the mask of every leaf keeps some of
      it, so one empty leaf is enough to remove it. What it still added (a bias through
      an activation, a consumer's row) is lost: the function changes by that, and the
      report counts these channels.

    Zeros are followed through the program, with infinities and NaN left out of account.
    Removing one channel may empty others: it is repeated until nothing is left to
    remove. One channel of a group always stays. Counts that the model divides by (a
    mean over channels) stay those of the whole model, as in the masked one.

    Args:
      fn, params, inputs: the model, as in `channels`; params are arrays.
      masks: by path or as a tree like params, True is kept.
      resolve: "union" or "intersection".
      blocks: channels that go together, as in `channels`: a head that the trace does
        not show is declared here, and goes as a whole or not at all.
      keep: regular expressions of the paths of leaves that keep their shape, whatever masks
        leave of them: `(r".*position/embedding",)` keeps the rows beyond the length that was
        traced, which this program does not read.

    Returns:
      - the masked parameters without what was removed, a tree as before;
      - a function of (smaller params, *inputs) that runs the same program on them. It
        is traced anew for inputs of other shapes, and can be jitted, differentiated
        and exported, with symbolic sizes too;
      - a report: what went, what stays, why, and what would let it go. Its masks keep
        what took over a constant.

    Raises:
      ValueError: for another `resolve`, masks of other shapes, and an expression of `keep`
        or `blocks` that no leaf has or that is none.
      TypeError: for parameters of which only the shapes are given, and a `keep` that is no
        list of expressions.
      KeyError: for masks of leaves that are not there.

    Example:
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 3))}
      >>> masks = {"up": jnp.arange(8) < jnp.full((2, 1), 5)}
      >>> small, fn, report = shrink(mlp, params, masks, jnp.ones((4, 2)))
      >>> small["up"].shape, small["down"].shape, fn(small, jnp.ones((4, 2))).shape
      ((2, 5), (5, 3), (4, 3))

    References:
      Lagunas et al. 2021, arXiv 2109.04838 (intersection).
    """
    if resolve not in ("union", "intersection"):
        raise ValueError(f"resolve={resolve!r} is neither 'union' nor 'intersection'")
    for path, leaf in arrays_by_path(params).items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"{path!r} is {leaf}, a shape: what is zero is asked of the numbers, so arrays "
                "would work; channels(...) takes shapes"
            )
    masked = mask_params(params, masks)
    if isinstance(keep, str):
        raise TypeError(f"keep={keep!r} is no list; keep=({keep!r},) would work")
    if not isinstance(keep, Sequence) or not all(isinstance(each, str) for each in keep):
        raise TypeError(
            f"keep={keep!r} is no list of regular expressions; keep=(r'.*position.*',) would work, "
            "and keep=() keeps nothing"
        )
    analyse = functools.partial(Analysis, fn, blocks=blocks, removal=True, keep=tuple(keep))
    analysis = analyse(params, inputs)
    choice = Choice(analysis, masked, leaves_by_path(masks))
    choice.resolve(resolve)
    report = report_of(choice, summarize(analysis))
    folded = {path for paths in choice.folded.values() for path in paths}
    small = {}
    for path, leaf in arrays_by_path(masked).items():
        if path in folded:
            leaf = placed_as(jnp.asarray(choice.leaves[path]), leaf)
        small[path] = choice.kept.cut(leaf, analysis.leaves[path])
    kept = report.kept
    shapes = replace_by_path(params, _shapes(arrays_by_path(params)))
    first = _signature(inputs)

    def shrunk(params: Tree, *inputs: Any) -> Any:
        """Runs the smaller model."""
        known = _signature(inputs) == first
        program = analysis if known else analyse(shapes, _shapes(inputs))
        left = choice.kept if known else _kept_of(program, kept)
        leaves = arrays_by_path(params)
        _check(leaves, kept)
        operands = [*(leaves[path] for path in program.leaves), *jax.tree.leaves(inputs)]
        return jax.tree.unflatten(program.output_tree, run(program, left, operands))

    return replace_by_path(params, small), shrunk, report


def _kept_of(analysis: Analysis, kept: Mapping[str, tuple[np.ndarray, ...]]) -> Kept:
    """The same channels in another analysis of the model, of inputs of another shape."""
    atoms: dict[int, np.ndarray] = {}
    for path, value in analysis.leaves.items():
        for term, left in zip(value.axes, kept[path], strict=True):
            vector = np.zeros(analysis.terms.size(term), bool)
            vector[left] = True
            for atom, stays in analysis.terms.channels(term, vector):
                atoms[atom] = atoms.get(atom, np.zeros(stays.size, bool)) | stays
    found = Kept(analysis.terms, atoms)
    for path, value in analysis.leaves.items():
        for axis, (term, left) in enumerate(zip(value.axes, kept[path], strict=True)):
            if not np.array_equal(np.flatnonzero(found.vector(term)), left):
                raise ValueError(
                    f"with inputs of these shapes other channels are tied to axis {axis} of "
                    f"{path!r}; shrink(..., *inputs) with these inputs would work"
                )
    return found


def _check(leaves: Mapping[str, Any], kept: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    for path, axes in kept.items():
        if path not in leaves:
            raise KeyError(f"the parameters have no leaf {path!r}; {near_misses(path, leaves)}")
        shape = tuple(map(len, axes))
        if np.shape(leaves[path]) != shape:
            raise ValueError(
                f"{path!r} has shape {np.shape(leaves[path])}; the smaller model has {shape} there"
            )


def _shapes(arrays: Any) -> Any:
    return jax.eval_shape(lambda arrays: arrays, arrays)


def _signature(inputs: tuple[Any, ...]):
    leaves, tree = jax.tree.flatten(_shapes(inputs))
    return tree, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]
