"""What sparse convolutions are measured beside: spconv's product for CPUs, torch's dense one.

Neither is a dependency: where they are not installed, `spconv` and `torch_conv3d` say so by None.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


def spconv() -> tuple[Any, str]:
    """The module, or None and why it cannot be had."""
    try:
        import torch  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)
        return importlib.import_module("spconv.pytorch"), ""
    except ImportError as error:
        return None, f"spconv: it is not installed ({error})"


def spconv_run(peer, voxels, x, channels, w, expected) -> Callable[[], Any]:
    """spconv's product on a map that it has, checked against ours."""
    import torch  # pyright: ignore[reportMissingImports]

    layer = peer.SubMConv3d(*channels, 3, bias=False, indice_key="map")
    with torch.no_grad():
        # Outputs, window, inputs.
        layer.weight.copy_(torch.from_numpy(np.array(w).transpose(4, 0, 1, 2, 3).copy()))
    given = spconv_tensor(peer, voxels, np.array(x.features))
    with torch.no_grad():
        first = layer(given)
    found = first.features.numpy()
    # A wrong row in some hundred runs is its own.
    wrong = np.mean(np.abs(found - np.asarray(expected)).max(1) > 1e-3)
    if wrong > 1e-3:
        raise AssertionError(f"{wrong:.1%} of the rows of spconv differ from ours")
    ready = first.replace_feature(given.features)

    def run():
        with torch.no_grad():
            layer(ready)
        return ()

    return run


def spconv_tensor(peer, voxels: np.ndarray, features: np.ndarray) -> Any:
    """Voxels as spconv has them: int32 with the batch first, from 0 on."""
    import torch  # pyright: ignore[reportMissingImports]

    low = voxels.min(0)
    rows = torch.from_numpy(np.pad(voxels - low, ((0, 0), (1, 0))).astype(np.int32))
    shape = (voxels.max(0) - low + 1).tolist()
    return peer.SparseConvTensor(torch.from_numpy(features), rows, shape, 1)


def spconv_map(peer, voxels: np.ndarray) -> Callable[[], Any]:
    """A map and a product of one channel, of which spconv makes none alone."""
    import torch  # pyright: ignore[reportMissingImports]

    layer = peer.SubMConv3d(1, 1, 3, bias=False, indice_key="map")
    features = np.zeros((len(voxels), 1), np.float32)

    def run():
        with torch.no_grad():
            layer(spconv_tensor(peer, voxels, features))
        return ()

    return run


def spconv_network(peer, voxels, features) -> dict[str, Callable[[], Any]]:
    """The same network by spconv, whose wheel for CPUs has no gradients: it asks for CUDA there."""
    import torch  # pyright: ignore[reportMissingImports]

    make = functools.partial(peer.SubMConv3d, bias=False)
    fine = [make(a, b, 3, indice_key="fine") for a, b in ((4, 32), (32, 32), (32, 16))]
    down = peer.SparseConv3d(32, 64, 2, stride=2, bias=False, indice_key="down")
    coarse = make(64, 64, 3, indice_key="coarse")
    up = peer.SparseInverseConv3d(64, 32, 2, bias=False, indice_key="down")

    def relu(x):
        return x.replace_feature(torch.relu(x.features))

    def loss():
        x = spconv_tensor(peer, voxels, features)
        y = relu(fine[1](relu(fine[0](x))))
        z = up(relu(coarse(relu(down(y)))))
        y = relu(y.replace_feature(z.features + y.features))
        return (fine[2](y).features ** 2).mean()

    def forward():
        with torch.no_grad():
            loss()
        return ()

    return {"spconv, forward": forward}


def torch_conv3d(x: Any, w: Any) -> Callable[[], Any] | None:
    """The dense convolution of a grid (1, *sides, channels), padded by 1, on one thread."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    torch.set_num_threads(1)
    grid = torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3)
    kernel = torch.from_numpy(np.array(w)).permute(4, 3, 0, 1, 2).contiguous()
    convolve = functools.partial(torch.nn.functional.conv3d, grid, kernel, padding=1)
    return lambda: (convolve(), ())[1]
