"""What is verified and measured on a GPU and on a TPU, and where there is none."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments import measurements
from experiments.bench import accelerator, accelerator_inputs, gpu, gpu_others, tpu
from jaxsparse import kernels
from jaxsparse.kernels import devices
from jaxsparse.kernels.layouts import BlockLayout, NMLayout


def like(rows, size, dtype):
    return np.broadcast_to(jnp.zeros((), dtype), (rows, size))


@pytest.mark.parametrize(
    ("implementation", "checks", "cells"),
    [
        (gpu.KERNEL, gpu.checks, gpu.cells),
        (tpu.KERNEL, tpu.checks, tpu.cells),
        (gpu_others.TRITON, gpu_others.block_checks, lambda: gpu_others.BLOCK_CELLS),
        (gpu_others.CUSPARSELT, gpu_others.group_checks, lambda: []),
    ],
)
def test_the_kernels_take_all_that_is_verified_and_measured(implementation, checks, cells):
    module, _ = kernels.load(implementation)
    wanted = [
        (case.pattern, case.dtype, case.shape, case.rows, direction)
        for case in checks()
        for direction in case.directions
    ]
    wanted += [(c.pattern, c.dtype, c.shape, c.rows, c.direction) for c in cells()]
    for pattern, dtype, shape, rows, direction in wanted:
        if isinstance(pattern, js.NM):
            layout = NMLayout(shape, 2, 4)
        else:
            layout = BlockLayout(shape, (pattern.rows, pattern.columns), 8)
        kind = accelerator_inputs.x_dtype(dtype)
        x, g = (like(rows, size, kind) for size in shape)
        values = like(1, 1, dtype)
        out_dtype = jnp.dtype("bfloat16" if kind == "float8_e4m3fn" else kind)
        call = {
            "forward": ("product", layout, x, values, out_dtype, False),
            "dx": ("product", layout, g, values, out_dtype, True),
            "dvalues": ("sampled", layout, x, g, out_dtype),
        }[direction]
        assert module.unsupported(*call) is None


@pytest.mark.parametrize("bench", [gpu, tpu])
def test_without_a_device_it_says_so_and_writes_nothing(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
    name = bench.__name__.rpartition(".")[2].upper()
    assert f"there is no {name} here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_gpu_before_hopper_has_the_others(monkeypatch, capsys, tmp_path):
    a100 = types.SimpleNamespace(device_kind="NVIDIA A100", compute_capability="8.0")
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "gpu", lambda: a100)
    monkeypatch.setattr(kernels, "load", lambda name, load=kernels.load: (load(name)[0], None))
    monkeypatch.setattr(gpu_others, "torch_missing", lambda: None)
    done = []

    def verify(implementation, checks, products=None):
        done.append(implementation)
        return []

    monkeypatch.setattr(accelerator, "verify", verify)
    monkeypatch.setattr(
        accelerator, "table", lambda implementation, *_: (done.append(implementation) or [], {})
    )
    monkeypatch.setattr(gpu_others, "SHAPES", [])
    monkeypatch.setattr(gpu_others, "torch_cells", dict)
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 0
    assert done == ["triton", "cusparselt", "cusparselt, compressed before", "triton"]
    printed = capsys.readouterr().out
    reason = "it needs compute capability 9.0 (Hopper), NVIDIA A100 has 8.0"
    assert printed.startswith(f"mosaic_gpu is left out: {reason}\n0 of 0 kernels wrong")
