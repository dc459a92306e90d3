"""A model in ONNX, by jax2onnx: for ONNX Runtime, OpenVINO and whatever reads the format.

ONNX has no sparse products that runtimes are fast at, so packed weights leave as dense ones
that hold zeros. What is smaller there is a model without the channels that masks leave
empty: `graph.shrink_model` first.

jax2onnx exchanges functions of JAX and Flax by its own while it traces. Modules are
therefore called by it, since it then finds whole layers, which runtimes fuse; functions are
traced beforehand, and it converts the trace.
"""

import logging
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from jaxsparse import jaxprs
from jaxsparse.comparing import compare
from jaxsparse.export.densify import densified
from jaxsparse.export.plain_products import plain_products
from jaxsparse.export.program import (
    ExportError,
    closed_over,
    function_of,
    input_names,
    of_any_batch,
    output_names,
    shapes_of,
)
from jaxsparse.export.restoring import restoring
from jaxsparse.files import replacing
from jaxsparse.packed.packing import unpack_params

Tree = Any
LIMIT = 2**31  # bytes of a message of protocol buffers
OPSET = 23
_EXTRA = "export_onnx needs jax2onnx and onnxruntime: pip install 'jaxsparse[onnx]'"
_AS_FUNCTION = "the module as a function, lambda *inputs: model(*inputs),"
_PATCHED = ("jax", "flax", "equinox", "dm_pix")  # what the converter assigns to
_UNKNOWN = re.compile(r"primitive '([\w.]+)'")


def export_onnx(
    model: Callable[..., Any],
    *inputs: Any,
    path: str | pathlib.Path,
    params: Tree = None,
    batch: str | None = "b",
    opset: int = OPSET,
) -> None:
    """Writes a model as an ONNX file, its weights inside.

    Inputs are named after the model's arguments, outputs after their place in what it
    returns: "logits", "hidden.0", "output" where it returns one array, "output.x" where an
    input is called "x". `jax.clear_caches()` is called, since
    functions that the converter traced are compiled for it: what was compiled before is
    compiled again.

    Args:
      model: a function of (params, *inputs), or of the inputs if `params` is None, or an
        `nnx.Module` in evaluation mode, whose layers become operators of ONNX where the
        converter knows them. What `graph.shrink_model` returns is such a module.
      inputs: arrays or `jax.ShapeDtypeStruct`, in any tree.
      path: the file.
      params: any tree. Packed weights in it, and those that the function or the module
        holds, become dense: `MatMul` with zeros.
      batch: a symbol for the first axis of every input, so that the file takes batches of
        any size; None for the sizes given, some of which may be symbolic.
      opset: version of the operators.

    ONNX Runtime reads what was made before it is written, and where the inputs are arrays
    its results are compared with the model's. The file takes the place of an old one when
    it is whole.

    Raises:
      ImportError: jax2onnx or onnxruntime is not installed; names the extra.
      ExportError: something has no form in ONNX; names the operation, where it is, and
        what would work.
      TypeError: `model` is not callable, or a module with parameters.
      OSError: the file cannot be written.

    Example (with the extra jaxsparse[onnx]):

        model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        js.export_onnx(model, jnp.ones((2, 8)), path="model.onnx")
        session = onnxruntime.InferenceSession("model.onnx")
        session.run(None, {"inputs": np.ones((5, 8), np.float32)})
    """
    if type(opset) is not int or opset < 1:
        raise ExportError(f"opset={opset!r} is no version of operators; opset={OPSET} would work")
    convert, load = _converter(), _runtime()
    dense = None if params is None else unpack_params(params)
    function = closed_over(function_of(model, dense), dense)
    shapes = shapes_of(inputs, batch)
    with of_any_batch():
        jaxpr, outputs = jax.make_jaxpr(function, return_shape=True)(*shapes)
    program = plain_products(densified(jaxpr))
    leaves, tree = jax.tree.flatten(shapes)
    called, whole = core.jaxpr_as_fun(program), False
    if isinstance(model, nnx.Module) and program is jaxpr:
        called, whole = _flat(model, tree), True
    names = input_names(model, inputs, 0 if params is None else 1)
    results = [f"output.{n}" if n in names else n for n in output_names(outputs)]
    _check_names("inputs", names)
    _check_names("outputs", results)
    try:
        message = convert(
            _apart(called),
            leaves,
            input_names=names,
            output_names=results,
            opset=opset,
        )
    except Exception as error:  # of any kind: operators are converted one by one
        raise ExportError(_reason(error, program, whole)) from error
    if (size := message.ByteSize()) >= LIMIT:
        raise ExportError(
            f"{path}: the model takes {size} bytes, one file of ONNX less than {LIMIT}; "
            "weights of 16 bits, or export_stablehlo, would work"
        )
    data = message.SerializeToString()
    _check(load, data, names, outputs, function, inputs, _advice(program, whole, opset))
    with replacing(path) as file:
        file.write(data)


def _converter() -> Callable[..., Any]:
    """`jax2onnx.to_onnx`, without a trace of it left in JAX, and quiet."""
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{_EXTRA} ({error})") from error

    def convert(function, leaves, **options):
        # It tells of every shape that it does not infer, and warns of its own calls.
        logger = logging.getLogger("onnx_ir.serde")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(action="ignore"), restoring(*_PATCHED):
                return jax2onnx.to_onnx(function, leaves, **options)
        finally:
            logger.setLevel(before)
            jax.clear_caches()

    return convert


def _runtime() -> Callable[[bytes], Any]:
    """Makes sessions of ONNX Runtime, of one thread, that leave it to errors to complain."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{_EXTRA} ({error})") from error

    def load(data):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    return load


def _check_names(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ExportError(
                f"two {what} would be called {name!r}, by the keys on their paths; keys without "
                "dots would work"
            )


def _advice(program: core.ClosedJaxpr, whole: bool, opset: int) -> str:
    """What may be the cause where ONNX Runtime refuses or mistakes a file, and what would work."""
    equations = list(jaxprs.equations(program))
    avals = [*program.in_avals, *program.out_avals, *(v.aval for e in equations for v in e.outvars)]
    if any(getattr(aval, "dtype", None) == jnp.bfloat16 for aval in avals):
        return (
            "it has little for bfloat16 on CPUs; float32 for inputs, weights and results, or "
            "export_stablehlo, would work"
        )
    if opset != OPSET:
        return f"opset={opset} may be older or newer than what it knows; opset={OPSET} may work"
    cures = _AS_FUNCTION if whole else "other operations in its place, or export_stablehlo,"
    return f"the converter mistakes an operation of it; {cures} would work"


def _check(load, data, names, outputs, function, inputs, advice) -> None:
    """Raises ExportError unless ONNX Runtime reads the file, and computes what JAX does."""

    def run(*inputs):
        values = map(np.asarray, jax.tree.leaves(inputs))
        results = session.run(None, dict(zip(names, values, strict=True)))
        return jax.tree.unflatten(jax.tree.structure(outputs), results)

    def of_jax(leaf, shape):
        # What is done to arrays of NumPy is not what was traced: a cast out of range, say.
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf, shape.dtype)

    try:
        session = load(data)
        inputs = jax.tree.map(of_jax, inputs, shapes_of(inputs, None))
        if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs)):
            compare(run, function, inputs, "the file", (advice, advice), other="the model")
    except ValueError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # ONNX Runtime has kinds of its own
        raise ExportError(f"ONNX Runtime refuses what was made: {error}; {advice}") from error


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with results none of which is an argument or another one: names differ."""

    def call(*leaves):
        known, results = {id(leaf) for leaf in leaves}, []
        for result in function(*leaves):
            results.append(jnp.copy(result) if id(result) in known else result)
            known.add(id(result))
        return results

    return call


def _flat(model: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    """The module with the leaves of its inputs for arguments, and those of its outputs."""

    def call(*leaves):
        return jax.tree.leaves(model(*jax.tree.unflatten(tree, leaves)))

    return call


def _reason(error: Exception, program: core.ClosedJaxpr, whole: bool) -> str:
    """What the converter failed at, where, and what would work."""
    cures = _AS_FUNCTION if whole else "batch=None, or export_stablehlo,"
    if isinstance(error, jax.errors.InconclusiveDimensionOperation):
        reason = str(error).strip().partition("\n")[0]
        return (
            f"jax2onnx needs to know a size that is open: {reason}, as for remainders and floor "
            "division; batch=None, for the sizes of these inputs, or export_stablehlo, may work"
        )
    found = _UNKNOWN.search(str(error))
    if found is None:
        return f"jax2onnx fails with {type(error).__name__}: {error}; {cures} may work"
    name = found[1]
    places = {jaxprs.where(e) for e in jaxprs.equations(program) if e.primitive.name == name}
    return (
        f"{name}, in {', '.join(sorted(places)) or 'the model'}, has no form in ONNX that jax2onnx "
        "knows; other operations in its place, or export_stablehlo, would work"
    )
