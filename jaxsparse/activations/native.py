"""Functions in two versions: native, where a program is for a CPU that has it, and XLA's.

Which of the two runs is known when a program is lowered for its platform, no sooner. An export
and a program that the compiler divides among devices take XLA's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxsparse import kernels
from jaxsparse.products.partitioning import sharded, without_mesh
from jaxsparse.products.primitives import rows_result


class TwoFold:
    """A function of arrays to arrays, the same by either way.

    Args:
      name: of its primitive, and in errors.
      native: by the kernels for CPUs; both take the arrays, then the options by name.
      xla: on every platform.
    """

    def __init__(self, name: str, native: Callable, xla: Callable):
        self.name, self.native, self.xla = name, native, xla
        self._primitive = _primitive(self)

    def __call__(self, *operands: Any, only: bool = False, **options: Any) -> Any:
        """Calls whichever is better where the program will run.

        Args:
          operands: arrays.
          only: take the native one, or refuse when the program is compiled.
          options: hashable.
        """
        results = self._primitive.bind(
            *operands, only=only, options=tuple(options.items()), axes=()
        )
        return results if len(results) > 1 else results[0]


def missing() -> str | None:
    """Why there are no native kernels here, or None."""
    return kernels.load("cpu")[1]


def _primitive(fold: TwoFold) -> Primitive:
    primitive = Primitive(fold.name)
    primitive.multiple_results = True

    def function(options, axes, native):
        found = functools.partial(fold.native if native else fold.xla, **dict(options))
        for one in axes:
            found = jax.vmap(found, in_axes=one)
        return lambda *operands: jax.tree.leaves(found(*operands))

    def abstract(*operands, only, options, axes):
        del only
        plain = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
        found = jax.eval_shape(function(options, axes, native=False), *plain)
        return [rows_result(operands[0], one.shape, one.dtype, *operands) for one in found]

    @functools.cache
    def compiled(params):
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    def evaluate(*operands, **params):
        with jax.disable_jit(False):
            return compiled(tuple(sorted(params.items())))(*operands)

    def batched(operands, dims, *, axes, **params):
        results = primitive.bind(*operands, axes=(*axes, tuple(dims)), **params)
        return results, [0] * len(results)

    def lowering(on_cpu):
        def lower(ctx, *operands, only, options, axes):
            reason = _unsuited(ctx, on_cpu)
            if reason and only:
                raise ValueError(f"the native {fold.name} cannot be used: {reason}.")
            chosen = function(options, axes, native=not reason)
            return mlir.lower_fun(chosen, multiple_results=True)(without_mesh(ctx), *operands)

        return lower

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(evaluate)
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, lowering(on_cpu=False))
    mlir.register_lowering(primitive, lowering(on_cpu=True), platform="cpu")
    return primitive


def _unsuited(ctx, on_cpu: bool) -> str | None:
    """Why a program that is being lowered cannot have native kernels, or None."""
    if not on_cpu:
        return "this program is for another platform than a CPU"
    if ctx.module_context.lowering_parameters.for_export:
        return "it cannot be exported"
    if sharded(ctx):
        return "the compiler cannot divide it among devices"
    return missing()
