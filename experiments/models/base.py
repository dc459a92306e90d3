"""A model as two pure functions, whichever Flax it is written in."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen, nnx

from experiments.data import Dataset
from experiments.registry import Registry

Params = Any
Extra = Any


class Model(NamedTuple):
    """A model without state of its own.

    Attributes:
      init: ``key -> (params, extra)``; ``extra`` is what training changes besides
        the parameters, such as running means.
      apply: ``(params, extra, inputs, key) -> (outputs, extra)``. With a key it is
        in training mode (dropout, batch statistics), with None in evaluation mode.
        Outputs are (n, classes), or (n,) where the data set wants one number.
      pretrained: by slash path, the parameters and entries of ``extra`` that do not start
        as ``init`` says.
      states: ``(params, extra, inputs) -> (outputs, states)`` in evaluation mode, the last
        hidden states of (n, length, width) a sequence; None where there are none to learn
        from.
    """

    init: Callable[[jax.Array], tuple[Params, Extra]]
    apply: Callable[[Params, Extra, Any, jax.Array | None], tuple[jax.Array, Extra]]
    pretrained: Mapping[str, Any] = {}
    states: Callable[[Params, Extra, Any], tuple[jax.Array, jax.Array]] | None = None


MODELS: Registry[Model] = Registry("model", given=1)


def create(name: str, dataset: Dataset, **options: Any) -> Model:
    """The registered model, sized for a data set.

    Raises:
      ValueError: unknown name or option, a size below 1, or a data set that it cannot read.
    """
    for option, value in options.items():
        sizes = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(size, int) and size < 1 for size in sizes):
            raise ValueError(f"model.{option} = {value!r}: every size must be at least 1")
    return MODELS.create(name, dataset, **options)


def from_nnx(
    build: Callable[[nnx.Rngs], nnx.Module],
    *,
    call: Callable[..., jax.Array] | None = None,
    states: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
    frozen: str = "",
    pretrained: Mapping[str, Any] | None = None,
) -> Model:
    """Splits an nnx module into a graph definition, parameters and the rest.

    Args:
      build: makes the module from its random streams.
      call: ``(module, inputs, rngs) -> outputs``, by default ``module(inputs, rngs=rngs)``;
        ``rngs`` is given in training only.
      states: ``(module, inputs) -> (outputs, states)``, see ``Model``.
      frozen: expression of the slash paths of parameters that do not train: they are with
        the rest.
      pretrained: see ``Model``.

    Raises:
      ValueError: an expression that matches no parameter.
    """
    whole = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef = nnx.graphdef(whole)

    def is_frozen(path):
        return re.fullmatch(frozen, "/".join(map(str, path))) is not None

    def trains(path, variable):
        return isinstance(variable, nnx.Param) and not is_frozen(path)

    if frozen and not any(is_frozen(path) for path, _ in nnx.to_flat_state(nnx.state(whole))):
        raise ValueError(f"model.frozen = {frozen!r} matches no parameter; '' freezes none")

    def init(key):
        _, params, extra = nnx.split(build(nnx.Rngs(key)), trains, ...)
        return params, extra

    def apply(params, extra, inputs, key):
        # Copied, because a module may write to its variables (running means) only at
        # the trace level that made them.
        module: Any = nnx.merge(graphdef, params, extra, copy=True)
        rngs = None if key is None else nnx.Rngs(key)
        outputs = module(inputs, rngs=rngs) if call is None else call(module, inputs, rngs)
        return outputs, nnx.state(module, nnx.Not(trains))

    def with_states(params, extra, inputs):
        assert states is not None
        return states(nnx.merge(graphdef, params, extra, copy=True), inputs)

    return Model(init, apply, pretrained or {}, None if states is None else with_states)


def from_linen(module: linen.Module, example: Any) -> Model:
    """The same for a linen module; ``params`` is its collection of that name.

    Args:
      module: called as ``module(inputs, train=bool)``.
      example: inputs of the right shapes, for the initialisation.
    """

    def init(key):
        variables = dict(module.init(key, example, train=False))
        return variables.pop("params"), variables

    def apply(params, extra, inputs, key) -> Any:
        variables = {"params": params, **extra}
        if key is None:
            return module.apply(variables, inputs, train=False), extra
        return module.apply(
            variables, inputs, train=True, rngs={"dropout": key}, mutable=list(extra)
        )

    return Model(init, apply)
