"""Adaptive grouping: taps with about as many pairs share one batched product.

Tang et al., 2022, "TorchSparse: Efficient Point Cloud Inference Engine",
https://arxiv.org/abs/2204.10319. Taps t and -1 - t of a submanifold map have as many pairs as
each other, so they come as twins; twins join a group as long as its smallest tap wastes no
more than a fraction epsilon of the rows that the largest needs.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxsparse.activations.faults import is_known, require
from jaxsparse.activations.maps import KernelMap
from jaxsparse.registration import pytree


@dataclasses.dataclass(frozen=True)
class Group:
    """Taps that are multiplied together.

    Attributes:
      taps: their numbers.
      sizes: pairs of each, when this was planned.
      batched: as one product, each padded to the largest; else one by one, without padding.
    """

    taps: tuple[int, ...]
    sizes: tuple[int, ...]
    batched: bool

    @property
    def computed(self) -> int:
        """Rows that are multiplied, those of padding too."""
        return max(self.sizes) * len(self.sizes) if self.batched else self.useful

    @property
    def useful(self) -> int:
        """Rows that are pairs."""
        return sum(self.sizes)


def plan_groups(
    sizes: Sequence[int], epsilon: float = 0.3, threshold: int = 5000, *, middle_apart: bool = True
) -> tuple[Group, ...]:
    """Groups the taps of a map by how many pairs they have.

    A tap that would make 1 - min/max of a group exceed epsilon opens the next, so rows
    computed are at most useful rows / (1 - epsilon).

    Args:
      sizes: pairs of each tap: `KernelMap.sizes`; the largest over a data set's clouds, where
        one plan is to serve them all.
      epsilon: in [0, 1).
      threshold: groups are batched where the largest tap has fewer pairs.
      middle_apart: leave out the middle tap of an odd number, which in a submanifold map is a
        plain product of all rows.

    Raises:
      ValueError: an epsilon outside [0, 1).

    Example:
      >>> from jaxsparse.activations import plan_groups
      >>> [group.taps for group in plan_groups([100, 90, 20, 500, 20, 90, 100])]
      [(0, 6, 1, 5), (2, 4)]
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon={epsilon} must lie in [0, 1).")
    last = len(sizes) - 1
    order = [tap for i in range(len(sizes) // 2) for tap in (i, last - i)]
    if len(sizes) % 2 and not middle_apart:
        order.append(last // 2)
    groups: list[list[int]] = []
    for tap in order:
        together = [sizes[t] for t in (*groups[-1], tap)] if groups else []
        if together and max(together) - min(together) <= epsilon * max(together):
            groups[-1].append(tap)
        else:
            groups.append([tap])
    return tuple(
        Group(tuple(taps), own, max(own) < threshold)
        for taps in groups
        for own in [tuple(int(sizes[t]) for t in taps)]
    )


@dataclasses.dataclass(frozen=True)
class Grouping:
    """What the programs of a grouped convolution are compiled for.

    Attributes:
      products: (taps, rows) of each product; rows are the room for pairs of a tap.
      middle: the tap that is a plain product of all rows; None where there is none.
    """

    products: tuple[tuple[tuple[int, ...], int], ...]
    middle: int | None

    @classmethod
    def of(cls, groups: Sequence[Group], middle: int | None, slack: float = 1.0) -> "Grouping":
        """From a plan, with `slack` times the planned room, for clouds that have more pairs."""
        products = []
        for group in groups:
            room = [max(1, math.ceil(size * slack)) for size in group.sizes]
            if group.batched:
                products.append((group.taps, max(room)))
            else:
                products += [((tap,), rows) for tap, rows in zip(group.taps, room, strict=True)]
        return cls(tuple(products), middle)


@pytree(grouping=lambda fields: Grouping(**fields))
@dataclasses.dataclass(frozen=True, eq=False)
class PairLists:
    """The pairs of a kernel map as lists, for the dataflow "gather_scatter".

    Attributes:
      inputs, outputs: for each product (taps, rows) of row numbers; beyond a tap's pairs the
        capacities, where nothing is.
      ok: whether all pairs fit.
      grouping: what the lists are laid out for.
    """

    inputs: tuple[Int32[Array, "taps rows"], ...]
    outputs: tuple[Int32[Array, "taps rows"], ...]
    ok: Array
    grouping: Grouping

    @property
    def inverse(self) -> "PairLists":
        """The lists of the inverse map."""
        return PairLists(self.outputs, self.inputs, self.ok, self.grouping)


def group_pairs(
    kernel_map: KernelMap,
    grouping: Grouping | None = None,
    *,
    epsilon: float = 0.3,
    threshold: int = 5000,
) -> KernelMap:
    """The same map with its pairs listed, so that "gather_scatter" can use it.

    Args:
      kernel_map: as it was built.
      grouping: the room for pairs; None plans it from the map's sizes, where they are known.
      epsilon, threshold: as in `plan_groups`.

    Raises:
      ValueError: more pairs of a tap than the grouping has room for (flagged under `jit`), a
        grouping of other taps, or none where the sizes are traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 1)))
      >>> listed = act.group_pairs(act.kernel_map(x, 3))
      >>> act.sparse_conv(x, jnp.ones((3, 3, 1, 1)), listed, dataflow="gather_scatter").features
      Array([[2.],
             [2.]], dtype=float32)
    """
    window, sizes = kernel_map.window, kernel_map.sizes
    middle = window.taps // 2 if kernel_map.elsewhere is None and window.mirrors else None
    if grouping is None:
        if not is_known(sizes):
            raise ValueError("a map whose sizes are traced needs grouping=Grouping.of(...).")
        plan = plan_groups(
            np.asarray(sizes).tolist(), epsilon, threshold, middle_apart=middle is not None
        )
        grouping = Grouping.of(plan, middle)
    listed = sorted(tap for taps, _ in grouping.products for tap in taps)
    expected = [tap for tap in range(window.taps) if tap != middle]
    if listed != expected or grouping.middle != middle:
        raise ValueError(
            f"{grouping} lists {len(listed)} taps with middle {grouping.middle}; this map has "
            f"{len(expected)} with middle {middle}. Plan one from this map's sizes."
        )
    room = np.full(window.taps, np.iinfo(np.int32).max, np.int32)
    for taps, rows in grouping.products:
        room[list(taps)] = rows
    over = jnp.max(sizes - room)
    require(
        over <= 0,
        "a tap has {over} pairs more than the grouping has room for; plan one from this map's "
        "sizes {sizes}, or with more slack.",
        over=over,
        sizes=sizes,
    )
    inputs, outputs = _lists(kernel_map.index, kernel_map.inputs.capacity, grouping)
    lists = PairLists(inputs, outputs, over <= 0, grouping)
    return dataclasses.replace(kernel_map, lists=lists)


@partial(jax.jit, static_argnums=(1, 2))
def _lists(index, capacity, grouping):
    width = index.shape[1]

    def of_tap(room, row):
        out = jnp.nonzero(row < capacity, size=room, fill_value=width)[0].astype(jnp.int32)
        into = jnp.where(out < width, jnp.take(row, out, mode="clip"), capacity)
        return into, out

    inputs, outputs = [], []
    for taps, room in grouping.products:
        into, out = jax.lax.map(partial(of_tap, room), index[jnp.array(taps)])
        inputs.append(into)
        outputs.append(out)
    return tuple(inputs), tuple(outputs)
