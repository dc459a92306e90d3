"""The training state comes back from disk bit for bit."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import meta
from flax.training.train_state import TrainState
from members import END, small_params, step_of, transform_for

import jaxsparse as js
from jaxsparse import checkpoint, checksums
from jaxsparse.checkpoint import Checkpointer
from jaxsparse.patterns.base import GroupMask
from jaxsparse.patterns.views import view_of

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


def saved(folder, *trees, keep=None):
    """A folder with a step for every tree, from 1 on."""
    with Checkpointer(folder, keep=keep) as checkpointer:
        for step, tree in enumerate(trees, 1):
            checkpointer.save(step, tree)


def restored(folder, like):
    with Checkpointer(folder) as checkpointer:
        return checkpointer.restore_latest(like)


def weights(step):
    return {"w": jnp.asarray(np.random.default_rng(step).standard_normal((300, 300)), jnp.float32)}


def data_file(folder):
    """The largest file of a step: its numbers."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "empty metadata": lambda f: (f / "default/_METADATA").write_text(""),
    "truncated data": lambda f: os.truncate(data_file(f), 10),
    "one bit of the data": lambda f: flip(data_file(f)),
    "one bit of the metadata": lambda f: flip(f / "default/_METADATA"),
    "a file that is gone": lambda f: data_file(f).unlink(),
    "torn checksums": lambda f: (f / checksums.NAME).write_text('{"default/_META'),
    "an empty folder": empty,
}


# What the first version wrote carries nothing that tells of other damage.
CASES = [(name, False) for name in DAMAGE]
CASES += [(name, True) for name in ("empty metadata", "truncated data", "an empty folder")]


@pytest.mark.parametrize(("damage", "old"), CASES)
def test_a_damaged_step_is_passed_over(damage, old, tmp_path):
    saved(tmp_path, weights(1), weights(2))
    if old:
        (tmp_path / "2" / checksums.NAME).unlink()
    DAMAGE[damage](tmp_path / "2")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match=rf"step 2 .* step 1 is taken: .*{tmp_path / '2'}"):
            step, state = checkpointer.restore_latest(weights(0))
        assert step == 1
        np.testing.assert_array_equal(state["w"], weights(1)["w"])
        # The step comes again, and what was damaged is kept for whoever wants to look.
        assert checkpointer.save(2, weights(3)), "the damaged step must not be in the way"
        step, state = checkpointer.restore_latest(weights(0))
        assert step == 2
        np.testing.assert_array_equal(state["w"], weights(3)["w"])
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "2.damaged"}


def test_whole_steps_are_restored_without_a_warning(tmp_path):
    saved(tmp_path, weights(1), weights(2))
    assert checksums.verify(tmp_path / "2")
    for name in ("1", "2"):
        (tmp_path / name / checksums.NAME).unlink()  # as the first version left them
    assert restored(tmp_path, weights(0))[0] == 2


def test_an_empty_folder_is_skipped_and_never_counted(tmp_path):
    saved(tmp_path, weights(1), weights(2))
    (tmp_path / "999").mkdir()
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match=r"step 999 .*step 2 is taken.*/999 is an empty"):
            assert checkpointer.restore_latest(weights(0))[0] == 2
        for step in (3, 4):
            checkpointer.save(step, weights(step))
    assert {p.name for p in tmp_path.iterdir()} == {"3", "4", "999.damaged"}
    (tmp_path / "only" / "7").mkdir(parents=True)
    with pytest.warns(UserWarning, match="step 7 is passed over, there is no step before it"):
        assert restored(tmp_path / "only", weights(0)) is None


def test_all_steps_damaged_is_one_error_that_names_every_file(tmp_path):
    saved(tmp_path, weights(1), weights(2))
    flip(data_file(tmp_path / "1"))
    (tmp_path / "2/default/_METADATA").write_text("")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged") as caught:
        restored(tmp_path, weights(0))
    for name in ("1/default/", "2/default/_METADATA"):
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.ones(4, jnp.bfloat16)}, r"'w' is float32\[4\] in the .*, bfloat16\[4\] asked"),
        ({"w": jnp.ones(4, jnp.int32)}, r"'w' is float32\[4\] in the checkpoint, int32\[4\]"),
        ({"w": jnp.ones(3)}, r"'w' is float32\[4\] in the checkpoint, float32\[3\] asked for"),
        ({"w": jnp.ones(4, bool)}, r"'w' is float32\[4\] in the checkpoint, bool\[4\]"),
        ({"w": 1.0}, r"'w' is float32\[4\] in the checkpoint, a Python float"),
        ({"v": jnp.ones(4)}, r"(?s)'v' is not in the checkpoint.*'w' is in the checkpoint only"),
        ({"w": jnp.ones(4), "n": jnp.ones(1)}, r"'n' is not in the checkpoint"),
        ({"w": {"x": jnp.ones(4)}}, r"'w/x' is not in the checkpoint; did you mean 'w'"),
    ],
    ids=range(8),
)
def test_another_dtype_or_shape_is_an_error(like, message, tmp_path):
    saved(tmp_path, {"w": jnp.ones(4)}, {"w": jnp.zeros(4)})
    with pytest.raises(ValueError, match=message):
        restored(tmp_path, like)


def test_every_kind_of_leaf_comes_back(tmp_path):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    state = {
        "nnx": nnx.state(model),
        "box": {"kernel": meta.Partitioned(jnp.arange(3.0), ("a",))},
        "packed": js.pack(jnp.eye(8), js.Block(4, 4)),
        "a/b": [jnp.bfloat16(1.5), np.arange(3), None, 2.5, 3, True],
        "keys": (jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"))),
        "masks": [np.arange(17) % 3 == 0, jnp.eye(5, dtype=bool), jnp.bool_(True)],
    }
    saved(tmp_path, state)
    _, found = restored(tmp_path, state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert type(a) is type(b) or isinstance(b, jax.Array)
        if isinstance(b, jax.Array):
            assert a.dtype == b.dtype and a.sharding == b.sharding
            if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_a_new_train_state_takes_the_step_that_jit_made_an_array_of(tmp_path):
    params = {"w": jnp.arange(8.0)}
    tx = js.pruned(optax.adam(0.1), js.prune([js.Rule("w", js.Unstructured())], schedule=0.5))
    step = jax.jit(lambda state: state.apply_gradients(grads=state.params))
    new = TrainState.create(apply_fn=None, params=params, tx=tx)
    state = step(step(new))
    saved(tmp_path / "run", state)
    js.save_safetensors(tmp_path / "state", state)
    found = restored(tmp_path / "run", new)[1], js.load_safetensors(tmp_path / "state", like=new)
    for resumed in found:
        assert resumed.step.dtype == jnp.int32 and resumed.step == 2
        jax.tree.map(np.testing.assert_array_equal, step(resumed), step(state))
    saved(tmp_path / "numbers", {"a": jnp.bfloat16(1.5), "b": jnp.bool_(True)})
    _, numbers = restored(tmp_path / "numbers", {"a": 0.0, "b": False})
    assert numbers["a"].dtype == jnp.bfloat16 and numbers["a"] == 1.5 and numbers["b"]
    with pytest.raises(ValueError, match=r"'a' is bfloat16\[\] in the .*, a Python int asked for"):
        restored(tmp_path / "numbers", {"a": 0, "b": False})


def test_masks_take_a_bit_an_entry_and_old_checkpoints_load(tmp_path, monkeypatch):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    groups = jax.device_put(jnp.asarray(np.random.default_rng(0).random((64, 33)) < 0.5), sharding)
    mask = {"kernel": GroupMask(groups, js.Unstructured(), view_of("kernel", (64, 33)))}
    like = jax.tree.map(jnp.zeros_like, mask)
    saved(tmp_path / "new", mask)
    with Checkpointer(tmp_path / "new") as checkpointer:
        stored = checkpointer._manager.item_metadata(1).tree["kernel"]["groups"]
    assert stored.dtype == np.uint8 and stored.shape == (64 * 33 // 8,)
    monkeypatch.setattr(checkpoint, "_with_bits", lambda state: state)
    saved(tmp_path / "old", mask)
    for name in ("new", "old"):
        _, found = restored(tmp_path / name, like)
        np.testing.assert_array_equal(found["kernel"].groups, groups)
        assert found["kernel"].groups.sharding == like["kernel"].groups.sharding


def test_a_disk_that_fills_up_is_an_error_that_names_the_step(tmp_path, monkeypatch):
    saved(tmp_path, weights(1))

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checksums, "write", full)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(2, weights(2))
    with pytest.raises(OSError, match=rf"No space left .* are whole: '{tmp_path / '2'}'") as caught:
        checkpointer.wait()
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    checkpointer.close()
    assert restored(tmp_path, weights(0))[0] == 1


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


@pytest.mark.slow
def test_orbax_is_imported_when_it_is_asked_for():
    program = (
        "import sys, jaxsparse; before = 'orbax.checkpoint' in sys.modules; "
        "print(before, jaxsparse.checkpoint.__name__, 'orbax.checkpoint' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.split() == ["False", "jaxsparse.checkpoint", "True"], shown.stderr
