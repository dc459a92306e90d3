"""`asp`: a trained model ready for n:m fine-tuning, in one call.

The workflow of NVIDIA's ASP: permute the channels, fix the masks by magnitude, fine-tune
with the masks as they are.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool

from jaxsparse.graph.permutation.permute import PermutationReport, permute
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import Rule, resolve
from jaxsparse.patterns.views import View
from jaxsparse.products.reading import products
from jaxsparse.products.traced_axes import with_axes
from jaxsparse.pruning.prune import compute_masks
from jaxsparse.trees import Tree, leaves_by_path

INPUTS, OUTPUTS = 16, 8  # what the sparse tensor cores' kernels want sizes to be multiples of


@dataclasses.dataclass(frozen=True)
class ASP:
    """What n:m fine-tuning starts from.

    Attributes:
      params: parameters of the same function, channels permuted; not masked.
      rules: one for each eligible kernel.
      masks: by path.
      report: of the permutation; None without one.
    """

    params: Tree
    rules: list[Rule]
    masks: Mapping[str, Bool[Array, "..."]]
    report: PermutationReport | None


KERNELS = r"(.*/)?(kernel|w|weight)"  # Flax, Haiku, Equinox


def asp_rules(
    params: Tree,
    n: int = 2,
    m: int = 4,
    *,
    padding: bool = False,
    path: str = KERNELS,
    fn: Callable[..., Any] | None = None,
    inputs: Sequence[Any] = (),
) -> list[Rule]:
    """Rules for the kernels whose sizes n:m tensor cores take.

    A kernel with I input and O output channels is eligible if 16 divides I and 8
    divides O; I is the last input axis, of a convolution the channels.

    Args:
      params: the parameters, arrays or shapes.
      n, m: the pattern.
      padding: take other I too: they are padded with zeros to a multiple of m, masked
        and sliced back. Convolutions with several taps only where m divides I, for
        groups must not reach from one tap to the next.
      path: regular expression of the leaves that are kernels.
      fn, inputs: the model, called as fn(params, *inputs), whose trace says which axes of
        each kernel are inputs. Without it their names do, or do not.

    Returns:
      A rule for every eligible kernel.

    Raises:
      ValueError: if none is, with their sizes; or as `read_axes` does, and `view_of`
        without a model.

    >>> import jax.numpy as jnp
    >>> params = {"up": {"kernel": jnp.ones((20, 64))}, "down": {"kernel": jnp.ones((64, 16))}}
    >>> [rule.path for rule in asp_rules(params)]
    ['down/kernel']
    >>> [rule.path for rule in asp_rules(params, padding=True)]
    ['down/kernel', 'up/kernel']
    """
    found = None if fn is None else products(fn, params, *inputs)
    summed = {product.path for product in found or () if product.sums}
    rules = {
        name: Rule(re.escape(name), NM(n, m, pad=True))
        for name, leaf in leaves_by_path(params).items()
        if re.fullmatch(path, name) and np.ndim(leaf) > 1 and (fn is None or name in summed)
    }
    if found is not None:
        filled = with_axes(list(rules.values()), params, found)
        rules = dict(zip(sorted(rules), filled, strict=True))
    views = {name: spec.view for name, spec in resolve(list(rules.values()), params).items()}
    eligible = [
        dataclasses.replace(rules[name], pattern=NM(n, m, pad=padding))
        for name, view in views.items()
        if _eligible(view, m, padding)
    ]
    if not eligible:
        sizes = ", ".join(f"{name} {view}" for name, view in views.items()) or "no leaf matches"
        raise ValueError(
            f"no kernel is eligible for {n}:{m}: {INPUTS} must divide the inputs and {OUTPUTS} "
            f"the outputs ({sizes}); rules of your own would work, or padding=True"
        )
    return eligible


def asp(
    fn: Callable[..., Any],
    params: Tree,
    *inputs: Any,
    n: int = 2,
    m: int = 4,
    padding: bool = False,
    path: str = KERNELS,
    permutation: bool = True,
    **options: Any,
) -> ASP:
    """Permutes the channels of a trained model and fixes its n:m masks.

    The groups of m lie along the axes that the model's products sum over, whatever its
    layers are called.

    Fine-tuning then takes two lines and trains from `sparse.params`:

        sparse = js.graph.asp(model.apply, variables, images)
        tx = js.pruned(optax.sgd(1e-3), js.prune(sparse.rules, masks=sparse.masks))

    The masks are chosen here, once, on the host, from the seed of the search, and lie in
    the optimizer's state: replicas cannot diverge. Where `params` are linen variables,
    with "params" beside other collections, rules and masks are for the "params" alone,
    as an optimizer is given.

    Args:
      fn, params, inputs: the model in evaluation mode, as in `channels`.
      n, m, padding, path: see `asp_rules`.
      permutation: False masks the channels in the order that they have.
      options: for the search, such as `escapes=` and `seed=`.

    Returns:
      The parameters, the rules, the masks and the report of the permutation.

    Raises:
      ValueError: if no kernel is eligible, or one is summed over in several ways.

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378.
    """
    rules = asp_rules(params, n, m, padding=padding, path=path, fn=fn, inputs=inputs)
    report = None
    if permutation:
        params, report = permute(fn, params, *inputs, rules=rules, **options)
    masks = compute_masks(params, rules)
    if all(path.startswith("params/") for path in masks):
        rules = [dataclasses.replace(r, path=r.path.removeprefix("params/")) for r in rules]
        masks = {path.removeprefix("params/"): mask for path, mask in masks.items()}
    return ASP(params, rules, masks, report)


def _eligible(view: View, m: int, padding: bool) -> bool:
    if not view.inputs:
        return False
    channels, (_, outputs) = view.shape[view.inputs[-1]], view.matrix_shape
    if outputs % OUTPUTS:
        return False
    return channels % INPUTS == 0 or (padding and (len(view.inputs) == 1 or channels % m == 0))
