"""A program in StableHLO, with `jax.export`: it runs without the code of the model.

An artefact holds XLA's products and no call of ours, so it runs wherever XLA does, and
what compiles StableHLO reads it. Its weights are constants of the program, or a
safetensors file beside it whose tensors are the program's arguments, by name.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import jaxsparse.kernels as kernels
from jaxsparse import jaxprs
from jaxsparse.export import programfile, tensorfile
from jaxsparse.export.program import (
    ExportError,
    closed_over,
    function_of,
    of_any_batch,
    shapes_of,
)
from jaxsparse.export.safetensors import load_safetensors, plan
from jaxsparse.files import replacing
from jaxsparse.kernels.cpu import library
from jaxsparse.kernels.cpu.library import TARGETS
from jaxsparse.packed.base import is_packed
from jaxsparse.trees import leaves_by_path, near_misses, replace_by_path

Tree = Any
WEIGHTS = "weights"  # the argument of a program whose weights are beside it
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
NATIVE = "cpu"  # the implementation that programs may call by name


def export_stablehlo(
    model: Callable[..., Any],
    *inputs: Any,
    path: str | pathlib.Path,
    params: Tree = None,
    batch: str | None = "b",
    platforms: Sequence[str] | None = None,
    weights: Literal["inside", "beside"] = "inside",
    native: bool = False,
) -> None:
    """Writes a model as a program of `jax.export`.

    Packed weights stay packed: their products are XLA's own, and their arrays are
    constants or arguments. What `graph.shrink` and `graph.shrink_model` return goes the
    same way, and so do functions that `sparsify` or `quantized.sparsify` made, whose products
    are then what these were told.

    Args:
      model: a function of (params, *inputs), or of the inputs if `params` is None, or an
        `nnx.Module` in evaluation mode. It returns arrays, in lists, tuples and dicts.
      inputs: arrays or `jax.ShapeDtypeStruct`, in lists, tuples and dicts with strings as
        keys.
      path: the file.
      params: any tree, packed weights among its leaves; of a Flax module as
        `nnx.to_pure_dict` gives it, with integers as keys, too.
      batch: a name for the first axis of every input, so that the program takes batches of
        any size from 1 on; None for the sizes given, some of which may be symbolic.
      platforms: of "cpu", "cuda", "rocm", "tpu", those it is to run on; None for the one that
        JAX runs on now.
      weights: "inside" makes them constants. "beside" leaves them out and writes
        `save_safetensors` of params to the file's whole name and .safetensors; the program
        takes the inputs, and a dict of that file's tensors as `weights=`. Numbers of Python
        and keys are constants.
      native: whether products that were given `implementation="cpu"` may stay calls of that
        kernel. The program is then for this library with its kernels, which another machine may
        lack: a second program without them, and the same weights, would serve that.

    Both files take the place of old ones when they are whole. Of a pair that a kill left
    half new `load_stablehlo` says so.

    Raises:
      ExportError: something cannot be exported; says what, and what would work.
      TypeError: `model` is not callable, or a module with parameters.
      ValueError: for another `weights`, "beside" without params, and other platforms; `native`
        where there are no kernels.
      OSError: a file cannot be written, or the one for weights is there and is no program's.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxsparse as js
      >>> params = {"kernel": js.pack(jnp.eye(8), js.Block(4, 4))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "model.stablehlo")
      ...     x = jnp.ones((2, 8))
      ...     js.export_stablehlo(lambda p, x: x @ p["kernel"], x, path=file, params=params)
      ...     js.load_stablehlo(file)(jnp.ones((5, 8))).shape
      (5, 8)
    """
    if weights not in ("inside", "beside"):
        raise ValueError(f"weights={weights!r} is neither 'inside' nor 'beside'")
    if weights == "beside" and params is None:
        raise ValueError("weights='beside' needs params=, the weights that are arguments")
    _check_platforms(platforms)
    if native:
        kernels.check(NATIVE)
    path, function = pathlib.Path(path), function_of(model, params)
    programfile.check_targets(path, weights == "beside")
    shapes = shapes_of(inputs, batch)
    if weights == "inside":
        program = _program(closed_over(function, params), shapes, {}, platforms, native)
        data = programfile.join(program, {})
    else:
        beside = plan(params)

        def of_tensors(*inputs, weights):
            return function(_with_tensors(params, weights), *inputs)

        program = _program(of_tensors, shapes, {WEIGHTS: _tensors(params)}, platforms, native)
        data = programfile.join(program, programfile.structure(beside))
        metadata = beside.metadata | {programfile.PROGRAM: programfile.digest(data)}
        tensorfile.write(programfile.beside(path), beside.tensors, metadata)
    with replacing(path) as file:
        file.write(data)


@dataclasses.dataclass(frozen=True)
class StableHLO:
    """A program that was read; called with the inputs of the model.

    Attributes:
      exported: what `jax.export` has of it: platforms, shapes, the module itself.
      tensors: the weights that it takes, by name; None if they are constants.
    """

    exported: export.Exported
    tensors: Mapping[str, jax.Array] | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Runs the program."""
        weights = {} if self.tensors is None else {WEIGHTS: dict(self.tensors)}
        return self._call(*inputs, **weights)

    @functools.cached_property
    def _call(self):
        return jax.jit(self.exported.call)


def load_stablehlo(path: str | pathlib.Path, params: Tree = None) -> StableHLO:
    """Reads what `export_stablehlo` wrote; neither the model nor its libraries are needed.

    Args:
      path: the file.
      params: weights for a program whose own are beside it, of the same structure: packed
        as those are, with as many entries stored, and the same constants. Without them the
        file beside it is read.

    Returns:
      The program, to be called with inputs; it has no gradients.

    Raises:
      ValueError: the file is no such program, or is damaged; it calls native kernels, which
        are not here; the weights are missing, have another shape, dtype or structure, or are
        another program's. Names the file and the tensor.

    Example: see `export_stablehlo`.
    """
    path = pathlib.Path(path)
    exported, structure, digest = programfile.read(path)
    if any(check.is_custom_call() in TARGETS for check in exported.disabled_safety_checks):
        _start_kernels(path)
    _, options = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    if (wanted := options.get(WEIGHTS)) is None:
        if params is not None:
            raise ValueError(f"the weights of {path} are its constants: it takes no params")
        return StableHLO(exported)
    if params is None:
        # Of this program, as its digest says, so nothing that is constant is another.
        source, found = str(programfile.beside(path)), _tensors(_read_beside(path, digest))
    else:
        source, found = f"{path}: params", _tensors(params)
    _check(source, wanted, found)
    if params is not None:
        programfile.check_structure(source, structure, programfile.structure(plan(params)))
    return StableHLO(exported, found)


def _start_kernels(path: pathlib.Path) -> None:
    """Makes the native kernels known to XLA, for a program that calls them."""
    reason = library.missing()
    if reason:
        raise ValueError(
            f"{path} calls native kernels, which cannot be used here: {reason}; a program that was "
            "exported without native=True would work"
        )
    library.register()


def _check_platforms(platforms: Sequence[str] | None) -> None:
    if platforms is None:
        return
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms={platforms!r} are not some of {', '.join(PLATFORMS)}; ['cpu', 'cuda'] "
            "would work, and None for the one that JAX runs on now"
        )


def _program(function, inputs, weights, platforms, native) -> bytes:
    """The bytes of a program."""
    jitted = jax.jit(function)
    try:
        with of_any_batch():
            _check_portable(jitted.trace(*inputs, **weights).jaxpr, native)
            calls = map(export.DisabledSafetyCheck.custom_call, TARGETS if native else ())
            exporting = export.export(jitted, platforms=platforms, disabled_checks=list(calls))
            exported = exporting(*inputs, **weights)
        return bytes(exported.serialize())
    except NotImplementedError as error:
        raise ExportError(
            f"jax.export cannot write the program: {error}; the model without what this names "
            "would work"
        ) from error
    except (TypeError, ValueError) as error:
        if "serializ" not in str(error).lower():
            raise
        raise ExportError(
            "inputs and results are to be arrays in lists, tuples and dicts with strings as keys: "
            f"{error} In the place of a dataclass its fields would work, as in return output.logits"
        ) from error


def _check_portable(jaxpr, native: bool) -> None:
    """Raises ExportError for what would call this process, or a library of ours."""
    for equation in jaxprs.equations(jaxpr):
        name, kernel = equation.primitive.name, equation.params.get("implementation")
        if name.endswith("_callback") or name == "debug_print":
            raise ExportError(
                f"{name} in {jaxprs.where(equation)} calls Python, which is not there when the "
                "program runs; the same in jax.numpy would work, or the model without it"
            )
        if name.startswith("sparse_") and kernel not in (None, "xla", *[NATIVE] * native):
            cure = ", and native=True where it is" if kernel == NATIVE else ""
            raise ExportError(
                f"{name} in {jaxprs.where(equation)} asks for the kernel {kernel!r}, a library "
                f"that is not there when the program runs; implementation=None would work{cure}"
            )


def _tensors(params: Tree) -> dict[str, jax.Array]:
    """The arrays of a tree, by the names that they have in a safetensors file."""
    found = {}
    for path, leaf in leaves_by_path(params, is_packed).items():
        if is_packed(leaf):
            arrays = {f"{path}.{part}": getattr(leaf, part) for part in leaf.array_names}
            found |= {name: jnp.asarray(a) for name, a in arrays.items() if a is not None}
        elif _is_argument(leaf):
            found[path] = jnp.asarray(leaf)
    return found


def _with_tensors(params: Tree, tensors: Mapping[str, jax.Array]) -> Tree:
    """The tree with other arrays."""
    new = {}
    for path, leaf in leaves_by_path(params, is_packed).items():
        if is_packed(leaf):
            parts = {part: tensors.get(f"{path}.{part}") for part in leaf.array_names}
            new[path] = leaf.replace(**parts)
        elif _is_argument(leaf):
            new[path] = tensors[path]
    return replace_by_path(params, new, is_packed)


def _is_argument(leaf: Any) -> bool:
    """Whether it is an array of numbers; keys, and Python's numbers, are constants."""
    arrays = jax.Array | np.ndarray | np.generic
    return isinstance(leaf, arrays) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _read_beside(path: pathlib.Path, digest: str) -> Tree:
    file = programfile.beside(path)
    if not file.exists():
        raise ValueError(f"{path} takes weights, and {file} is not there; params= would work")
    with file.open("rb") as opened:
        program = tensorfile.read_header(file, opened).metadata.get(programfile.PROGRAM)
    if program != digest:
        raise ValueError(
            f"{file} belongs to another program than {path}, as after an export that was cut off: "
            "export again, or name the weights as params=load_safetensors(...)"
        )
    return load_safetensors(file)


def _check(source: str, wanted: Mapping[str, Any], found: Mapping[str, jax.Array]) -> None:
    for name in wanted:
        if name not in found:
            raise ValueError(f"{source} has no {name!r}; {near_misses(name, found)}")
    for name, array in found.items():
        if name not in wanted:
            raise ValueError(f"{source} has {name!r} too many; {near_misses(name, wanted)}")
        here, there = (f"{a.dtype.name}{list(a.shape)}" for a in (array, wanted[name]))
        if here != there:
            raise ValueError(f"{source}: {name!r} is {here}, the program takes {there}")
