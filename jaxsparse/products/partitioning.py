"""How a sparse product is divided among devices when the compiler shards a program.

    product: rows of x and of y stay where they are, the weight is replicated
    sampled: every device sums over its own rows, then all add up (one all-reduce)

Without this, XLA would gather every row on every device before a custom call.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import ShapedArray
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, use_abstract_mesh

try:
    from jax._src.dispatch import prim_requires_devices_during_lowering as _needs_devices
except ImportError:
    _needs_devices = set()


# Their compilers have no custom partitioning (jax issue 38196, open with jax 0.12).
WHOLE = ("tpu",)


def sharded(context) -> bool:
    """Whether a lowering is for a program that the compiler shards over known devices.

    An export is not: it could not hold the callback that divides.
    """
    axes = context.module_context.axis_context
    exporting = context.module_context.lowering_parameters.for_export
    return not exporting and len(getattr(axes, "device_assignment", None) or ()) > 1


def without_mesh(context):
    """A lowering context whose types name no mesh axis.

    What an implementation computes inside is the compiler's to shard, not typed.
    """
    plain = [ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]
    return context.replace(avals_in=plain)


def lower_with_devices(primitive: Primitive) -> None:
    """Has JAX lower programs with this primitive only when their devices are known.

    JAX finds `custom_partitioning` by itself in what is traced, but not in what a
    lowering rule adds, and offers no public name for this. Where a later version
    has moved the set, such programs run as before, on gathered rows.
    """
    _needs_devices.add(primitive)


def by_rows(function: Callable[..., jax.Array], op: str) -> Callable[..., jax.Array]:
    """The same function, each device computing its own rows.

    Args:
      function: of x (M, K), g (M, N) and the index arrays to values if `op` is "sampled", else
        of x (M, K) and the weight's arrays to (M, N).
      op: which of the two.
    """
    rowed = 2 if op == "sampled" else 1  # so many operands have rows

    def partition(mesh, operands, result):
        rows = operands[0].sharding.spec[0] if operands[0].sharding.spec else None
        # A sum under the caller's explicit axes would write a sharding into the all-reduce,
        # which the compiler of jax 0.12 refuses.
        auto = AbstractMesh(
            mesh.axis_sizes, mesh.axis_names, (AxisType.Auto,) * len(mesh.axis_names)
        )
        names = rows if isinstance(rows, tuple) else () if rows is None else (rows,)

        def local(*shards):
            with use_abstract_mesh(auto):
                found = function(*shards)
                return lax.psum(found, names) if op == "sampled" and names else found

        def sharding(shape, own_rows):
            spec = [rows if own_rows else None, *[None] * (len(shape) - 1)]
            return NamedSharding(mesh, PartitionSpec(*spec[: len(shape)]))

        inputs = tuple(sharding(o.shape, i < rowed) for i, o in enumerate(operands))
        return mesh, local, sharding(result.shape, op != "sampled"), inputs

    def rule(mesh, operands, results):
        del mesh
        ranks = [len(o.shape) for o in (*operands, *results)]
        factors: list[Any] = [
            tuple(f"axis_{i:02}_{d}" for d in range(rank)) for i, rank in enumerate(ranks)
        ]
        for i in (*range(rowed), *([] if op == "sampled" else [len(ranks) - 1])):
            factors[i] = ("rows", *factors[i][1:])
        fixed = sorted({f for one in factors for f in one} - {"rows"})
        reduced = ("rows",) if op == "sampled" else ()
        return SdyShardingRule(
            tuple(factors[: len(operands)]),
            tuple(factors[len(operands) :]),
            need_replication_factors=tuple(fixed),
            reduction_factors=reduced,
        )

    def whole(*operands):  # custom_partitioning knows positions only
        return function(*operands)

    divided = custom_partitioning(whole)
    divided.def_partition(partition=partition, sharding_rule=rule)
    return divided
