"""Permutation and masks are one plan, on eight devices and on two processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js

RULES = [js.Rule("down", js.NM(2, 4))]
SPECS = {"up": P(None, "d"), "down": P("d")}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def weights():
    rng = np.random.default_rng(0)
    return {"up": rng.random((8, 32), np.float32), "down": rng.random((32, 16), np.float32) ** 4}


@pytest.mark.slow
def test_sharded_weights_are_permuted_as_whole_ones(devices):
    x = jnp.ones((2, 8))
    one, report = js.graph.permute(mlp, jax.tree.map(jnp.asarray, weights()), x, rules=RULES)
    mesh = jax.make_mesh((len(devices),), ("d",), devices=devices)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    many, sharded = js.graph.permute(mlp, jax.device_put(weights(), shardings), x, rules=RULES)
    assert report.permutations and report.leaves == sharded.leaves
    masks = js.compute_masks(one, RULES), js.compute_masks(many, RULES)
    np.testing.assert_array_equal(*(m["down"] for m in masks))
    for name, spec in SPECS.items():
        np.testing.assert_array_equal(one[name], many[name])
        assert many[name].sharding == NamedSharding(mesh, spec)


@pytest.fixture
def devices():
    return jax.devices()


PROGRAM = """
    import json, sys
    import jax, numpy as np
    port, rank, folder = sys.argv[1:]
    sys.path.insert(0, folder)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    import jaxsparse as js
    from jax.experimental import multihost_utils
    from test_devices import RULES, SPECS, mlp, weights
    mesh = jax.make_mesh((2,), ("d",))
    def split(name, array):
        sharding = jax.sharding.NamedSharding(mesh, SPECS[name])
        return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])
    params = {name: split(name, array) for name, array in weights().items()}
    params, report = js.graph.permute(mlp, params, np.ones((2, 8), np.float32), rules=RULES)
    mask = jax.jit(lambda p: js.compute_masks(p, RULES))(params)["down"]
    whole = multihost_utils.process_allgather(mask, tiled=True)
    # What processes find may differ in a last bit: the first one's order is everybody's.
    from jaxsparse.graph.hosts import of_first_process
    own = np.roll(np.arange(4), int(rank) + 1)
    agreed = of_first_process({0: own} if rank == "0" else {}, {0: 4})
    print("RESULT", json.dumps({
        "orders": [order.tolist() for order in report.permutations.values()],
        "mask": np.packbits(np.asarray(whole)).tolist(),
        "agreed": [order.tolist() for order in agreed.values()],
    }))
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = str(pathlib.Path(__file__).parent)
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(port), str(rank), here],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    found = []
    for process in running:
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]
        found.append(json.loads(out.split("RESULT", 1)[1]))
    assert found[0] == found[1]
    assert found[0]["orders"] and found[0]["agreed"] == [[3, 0, 1, 2]]
    x = jnp.ones((2, 8))
    alone, _ = js.graph.permute(mlp, jax.tree.map(jnp.asarray, weights()), x, rules=RULES)
    mask = js.compute_masks(alone, RULES)["down"]
    assert found[0]["mask"] == np.packbits(np.asarray(mask)).tolist()
