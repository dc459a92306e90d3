"""INT8 dense products of other libraries, and how wrong those are that saturate.

Instructions without VNNI add pairs of products in 16 bits: 255 * 127 + 255 * 127 is 64,770, of
which 32,767 is left. `shortfall` is what a library loses where all codes are the largest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Bind = Callable[[np.ndarray], Callable[[], Any]]
Peer = Callable[[np.ndarray], Bind]
PROBE = 1024  # inputs


def onnx_runtime(unsigned: bool, threads: int) -> Peer:
    """ONNX Runtime's MatMulInteger of u8 activations by s8 or u8 weights: int32 sums.

    Args:
      unsigned: whether weights are stored as u8 around 128: exact everywhere, and slower.
      threads: of a session.
    """
    import onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from onnx import (  # pyright: ignore[reportMissingImports]
        TensorProto,
        helper,
        numpy_helper,
    )

    def load(weight: np.ndarray) -> Bind:
        zero = np.array(128 if unsigned else 0, np.uint8 if unsigned else np.int8)
        stored = (weight.astype(np.int16) + zero).astype(zero.dtype)
        arrays = {"w": stored, "x_zero": np.array(0, np.uint8), "w_zero": zero}
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", "w", "x_zero", "w_zero"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, weight.shape[0]])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, [None, weight.shape[1]])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins for work takes what its neighbours would need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda x: lambda: session.run(None, {"x": x})[0]

    return load


def installed(threads: int) -> dict[str, Peer]:
    """By name the peers that can be imported here."""
    try:
        return {
            f"ONNX Runtime {kind}": onnx_runtime(unsigned, threads)
            for kind, unsigned in (("u8s8", False), ("u8u8", True))
        }
    except ImportError:
        return {}


def shortfalls(peers: Mapping[str, Peer]) -> dict[str, float]:
    """By name the share of a sum that is lost where all activations are 255 and weights 127."""
    x, weight = np.full((1, PROBE), 255, np.uint8), np.full((PROBE, 16), 127, np.int8)
    truth = 255 * 127 * PROBE
    return {
        name: float(1 - np.asarray(peer(weight)(x)()).min() / truth) for name, peer in peers.items()
    }
