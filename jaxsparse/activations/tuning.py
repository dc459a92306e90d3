"""Which dataflow is fastest: a table that was measured, and the measurement."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.activations.convolution import Dataflow, no_native, sparse_conv
from jaxsparse.activations.faults import is_known
from jaxsparse.activations.grouping import Grouping, group_pairs
from jaxsparse.activations.maps import KernelMap
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.timing import interleave

EPSILONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
THRESHOLDS = (0, *range(5000, 25001, 2500))


class Timing(NamedTuple):
    """One way to convolve, and the least time it took.

    Attributes:
      seconds: of one call, wall time, compiled before.
      dataflow: for `sparse_conv`.
      grouping: for `group_pairs`, of "gather_scatter" alone.
    """

    seconds: float
    dataflow: Dataflow
    grouping: Grouping | None


def tune_dataflow(
    x: SparseTensor,
    weights: Float[Array, "*size inputs outputs"],
    kernel_map: KernelMap,
    *,
    epsilons: Sequence[float] = EPSILONS,
    thresholds: Sequence[int] = THRESHOLDS,
    backward: bool = False,
    rounds: int = 5,
) -> tuple[Timing, ...]:
    """Times every dataflow that can be had, "gather_scatter" with every grouping, on this device.

    Settings that plan the same grouping are timed once. What takes most of the tuner's time is
    compiling; tune for one cloud that stands for the data set.

    Args:
      x, weights, kernel_map: the convolution, with values that are known.
      epsilons, thresholds: of `plan_groups`; TorchSparse's sixty settings.
      backward: time the gradients of features and weights instead.
      rounds: calls of each, in turn, of which the least counts.

    Returns:
      The timings, the fastest first.

    Raises:
      ValueError: a traced map.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 1)))
      >>> few = dict(epsilons=[0.3], thresholds=[5000], rounds=1)
      >>> timings = act.tune_dataflow(x, jnp.ones((3, 3, 1, 1)), act.kernel_map(x, 3), **few)
      >>> sorted(timing.dataflow for timing in timings if timing.dataflow != "native")
      ['fetch_on_demand', 'gather_scatter', 'implicit']
    """
    if not is_known(kernel_map.index):
        raise ValueError("a traced map cannot be timed; call tune_dataflow outside of jit.")
    settings = itertools.product(epsilons, thresholds)
    maps = [group_pairs(kernel_map, epsilon=e, threshold=t) for e, t in settings]
    distinct = {listed.lists.grouping: listed for listed in maps}
    dtype = jnp.promote_types(x.features.dtype, weights.dtype)
    here = jax.default_backend() == "cpu" and no_native(dtype) is None
    ways: list[tuple[Dataflow, Grouping | None, KernelMap]] = [
        *([("native", None, kernel_map)] if here else []),
        ("implicit", None, kernel_map),
        ("fetch_on_demand", None, kernel_map),
        *(("gather_scatter", grouping, listed) for grouping, listed in distinct.items()),
    ]

    def convolve(features, weights, maps, dataflow):
        return sparse_conv(x.with_features(features), weights, maps, dataflow=dataflow).features

    def slopes(features, weights, maps, dataflow):
        def total(features, weights):
            return jnp.sum(convolve(features, weights, maps, dataflow))

        return jax.grad(total, argnums=(0, 1))(features, weights)

    run = jax.jit(slopes if backward else convolve, static_argnums=3)
    runs = {
        number: functools.partial(run, x.features, weights, maps_, dataflow)
        for number, (dataflow, _, maps_) in enumerate(ways)
    }
    seconds = interleave(runs, rounds)
    timings = (Timing(min(seconds[number]), *way[:2]) for number, way in enumerate(ways))
    return tuple(sorted(timings, key=lambda timing: timing.seconds))
