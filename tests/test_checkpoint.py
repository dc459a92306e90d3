"""The training state comes back from disk bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import END, small_params, step_of, transform_for

from jaxsparse.checkpoint import Checkpointer

MEMBERS = [
    ("magnitude", "block", "none"),
    ("movement", "block", "straight_through"),
    ("saliency_momentum", "unstructured", "gradient"),
]


@pytest.mark.parametrize("member", MEMBERS, ids="-".join)
def test_resumed_training_is_bit_identical(member, tmp_path):
    tx = transform_for(*member)
    params = small_params()
    state, step = tx.init(params), jax.jit(step_of(tx))
    with Checkpointer(tmp_path, every=3) as checkpointer:
        for t in range(1, END + 3):
            params, state = step(params, state)
            assert checkpointer.save(t, (params, state)) == (t % 3 == 0)
    fresh = (small_params(), tx.init(small_params()))
    with Checkpointer(tmp_path) as checkpointer:
        found, (again, again_state) = checkpointer.restore_latest(fresh)
    assert found == 6
    for _ in range(found, END + 2):
        again, again_state = step(again, again_state)
    jax.tree.map(np.testing.assert_array_equal, (again, again_state), (params, state))


def test_nothing_saved_and_bad_arguments(tmp_path):
    with Checkpointer(tmp_path / "new") as checkpointer:
        assert checkpointer.restore_latest({"w": jnp.zeros(2)}) is None
    with pytest.raises(ValueError, match="every=0"):
        Checkpointer(tmp_path, every=0)


def test_only_the_latest_are_kept_and_force_saves_any_step(tmp_path):
    with Checkpointer(tmp_path, every=2, keep=2) as checkpointer:
        for t in range(1, 8):
            checkpointer.save(t, {"w": jnp.full(2, float(t))})
        assert checkpointer.save(7, {"w": jnp.full(2, 7.0)}, force=True)
        assert not checkpointer.save(7, {"w": jnp.zeros(2)}, force=True), "saved twice"
        step, state = checkpointer.restore_latest({"w": jnp.zeros(2)})
    assert step == 7 and state["w"].tolist() == [7.0, 7.0]
    kept = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == [6, 7]


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_that_loads(tmp_path):
    """kill -9 between and during saves: the latest complete step is what is found."""
    code = textwrap.dedent("""
        import sys, jax, jax.numpy as jnp
        from jaxsparse.checkpoint import Checkpointer
        checkpointer = Checkpointer(sys.argv[1], every=1)
        found = checkpointer.restore_latest({"w": jnp.zeros(200_000)})
        start = found[0] if found else 0
        if found:
            assert (found[1]["w"] == start).all()
        for t in range(start + 1, 10_000):
            checkpointer.save(t, {"w": jnp.full(200_000, float(t))})
            print(t, flush=True)
    """)
    reached = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        lines = [int(child.stdout.readline()) for _ in range(5)]
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert lines == list(range(lines[0], lines[0] + 5))
        assert lines[0] > max(reached - 2, 0), "the second process must go on, not begin anew"
        reached = lines[-1]
    with Checkpointer(tmp_path) as checkpointer:
        step, state = checkpointer.restore_latest({"w": jnp.zeros(200_000)})
    assert reached - 2 <= step <= reached + 1 and (state["w"] == step).all()
