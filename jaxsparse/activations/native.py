"""Functions in two versions: native, where a program is for a CPU that has it, and XLA's.

Which of the two runs is known when a program is lowered for its platform, no sooner. An export
and a program that the compiler divides among devices take XLA's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import ManualAxisType, PartitionSpec

from jaxsparse import kernels
from jaxsparse.products.partitioning import sharded, without_mesh


class TwoFold(NamedTuple):
    """A function of arrays to arrays, the same by either way.

    Attributes:
      name: for errors.
      native: by the kernels for CPUs; both take the arrays, then the options by name.
      xla: on every platform.
    """

    name: str
    native: Callable
    xla: Callable

    def __call__(self, *operands: Any, only: bool = False, **options: Any) -> Any:
        """Calls whichever is better where the program will run.

        Args:
          operands: arrays.
          only: take the native one, or refuse when the program is compiled.
          options: hashable.
        """
        results = _p.bind(*operands, fold=self, only=only, options=tuple(options.items()), axes=())
        return results if len(results) > 1 else results[0]


def missing() -> str | None:
    """Why there are no native kernels here, or None."""
    return kernels.load("cpu")[1]


_p = Primitive("two_fold")
_p.multiple_results = True


def _function(fold, options, axes, native):
    function = functools.partial(fold.native if native else fold.xla, **dict(options))
    for one in axes:
        function = jax.vmap(function, in_axes=one)
    return lambda *operands: jax.tree.leaves(function(*operands))


@_p.def_abstract_eval
def _(*operands, fold, only, options, axes):
    del only
    plain = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    found = jax.eval_shape(_function(fold, options, axes, native=False), *plain)
    varying = frozenset().union(*(o.manual_axis_type.varying for o in operands))
    manual = {"manual_axis_type": ManualAxisType(varying=varying)} if varying else {}
    like = operands[0]
    return [
        like.update(
            shape=one.shape,
            dtype=one.dtype,
            sharding=like.sharding.update(spec=PartitionSpec(*[None] * one.ndim)),
            weak_type=False,
            **manual,
        )
        for one in found
    ]


@functools.cache
def _compiled(params):
    return jax.jit(functools.partial(_p.bind, **dict(params)))


@_p.def_impl
def _(*operands, **params):
    with jax.disable_jit(False):
        return _compiled(tuple(sorted(params.items())))(*operands)


def _batched(operands, dims, *, axes, **params):
    return (results := _p.bind(*operands, axes=(*axes, tuple(dims)), **params)), [0] * len(results)


batching.primitive_batchers[_p] = _batched


def _lowering(on_cpu):
    def lower(ctx, *operands, fold, only, options, axes):
        exporting = ctx.module_context.lowering_parameters.for_export
        reason = (
            (None if on_cpu else "this program is for another platform than a CPU")
            or missing()
            or ("it cannot be exported" if exporting else None)
            or ("the compiler cannot divide it among devices" if sharded(ctx) else None)
        )
        if reason and only:
            raise ValueError(f"the native {fold.name} cannot be used: {reason}.")
        function = _function(fold, options, axes, native=not reason)
        return mlir.lower_fun(function, multiple_results=True)(without_mesh(ctx), *operands)

    return lower


mlir.register_lowering(_p, _lowering(on_cpu=False))
mlir.register_lowering(_p, _lowering(on_cpu=True), platform="cpu")
