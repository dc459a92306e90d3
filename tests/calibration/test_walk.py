"""The one walk of `prune_oneshot`: as a loop written by hand, and each product once a batch."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from jaxsparse.calibration import (
    Target,
    alps,
    magnitude,
    observe,
    prune_oneshot,
    sparsegpt,
    square_norms,
    wanda,
)
from jaxsparse.calibration.pieces import cuts_of, units_of
from jaxsparse.calibration.straight import lines_of

RULES = [js.Rule(".*/w_.*", js.NM(2, 4))]
WIDTH, LAYERS = 8, 3


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def layer_weights(seed):
    sizes = {"w_q": (8, 8), "w_k": (8, 8), "w_v": (8, 8), "w_o": (8, 8), "w_up": (8, 16)}
    sizes |= {"w_down": (16, 8)}
    return {name: normal(10 * seed + i, *s) / 3 for i, (name, s) in enumerate(sizes.items())}


def attend(q, k, v):
    return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v


def norm(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def block(x, w):
    h = norm(x)
    x = x + attend(h @ w["w_q"], h @ w["w_k"], h @ w["w_v"]) @ w["w_o"]
    return x + jax.nn.relu(norm(x) @ w["w_up"]) @ w["w_down"]


@jax.jit
def called(x, w):
    return jax.checkpoint(block)(x, w)


def unrolled(params, x):
    for i in range(LAYERS):
        x = called(x, params[str(i)])
    return x


def scanned(params, x):
    return lax.scan(lambda x, w: (called(x, w), None), x, params["stack"])[0]


def indexed(params, x):
    return lax.fori_loop(
        0, LAYERS, lambda i, x: block(x, jax.tree.map(lambda w: w[i], params["stack"])), x
    )


SEPARATE = {str(i): layer_weights(i) for i in range(LAYERS)}
STACKED = {"stack": jax.tree.map(lambda *w: jnp.stack(w), *SEPARATE.values())}
BATCHES = [(normal(100 + i, 4, 5, WIDTH),) for i in range(2)]


def by_hand(criterion, batches=BATCHES):
    """Layer by layer, product by product."""
    xs, masks, left = [x for (x,) in batches], [], []
    solve = jax.jit(criterion.prune, static_argnums=2)

    def prune(w, name, inputs):
        rows = jnp.concatenate([h.reshape(-1, h.shape[-1]) for h in inputs])
        products = rows.T @ rows
        state = {"products": products, "squares": jnp.diagonal(products)}
        mask, new = solve(w[name], state, Target(js.NM(2, 4)))
        return mask, jnp.where(mask, w[name] if new is None else new, 0)

    for i in range(LAYERS):
        w, mask = dict(SEPARATE[str(i)]), {}

        def step(name, inputs, w=w, mask=mask):
            mask[name], w[name] = prune(w, name, inputs)

        hs = [norm(x) for x in xs]
        for name in ("w_q", "w_k", "w_v"):
            step(name, hs)
        heads = [attend(h @ w["w_q"], h @ w["w_k"], h @ w["w_v"]) for h in hs]
        step("w_o", heads)
        xs = [x + h @ w["w_o"] for x, h in zip(xs, heads, strict=True)]
        step("w_up", [norm(x) for x in xs])
        ups = [jax.nn.relu(norm(x) @ w["w_up"]) for x in xs]
        step("w_down", ups)
        xs = [x + up @ w["w_down"] for x, up in zip(xs, ups, strict=True)]
        masks.append(mask)
        left.append(w)
    return masks, left


# One of each, so that what they compile serves all tests.
CRITERIA = {"wanda": wanda(), "sparsegpt": sparsegpt()}
PROGRAMS = {
    "unrolled": (unrolled, SEPARATE),
    "scanned": (scanned, STACKED),
    "indexed": (indexed, STACKED),
}


@pytest.fixture(scope="module")
def expected():
    return {name: by_hand(criterion) for name, criterion in CRITERIA.items()}


def check(found, masks, left):
    for i in range(LAYERS):
        for name in masks[i]:
            if "stack" in found.params:
                mask = found.masks[f"stack/{name}"][i]
                weight = found.params["stack"][name][i]
            else:
                mask, weight = found.masks[f"{i}/{name}"], found.params[str(i)][name]
            np.testing.assert_array_equal(mask, masks[i][name])
            np.testing.assert_allclose(weight, left[i][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_is_a_loop_over_layers(program, expected):
    fn, params = PROGRAMS[program]
    for name, criterion in CRITERIA.items():
        check(prune_oneshot(fn, params, BATCHES, RULES, criterion=criterion), *expected[name])


@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_that_share_an_input_share_a_statistic_and_a_place(program):
    fn, params = PROGRAMS[program]
    paths = [path for path, _ in js.trees.flatten(params)]
    _, [line], _ = lines_of(fn, params, BATCHES, paths)
    units = units_of(line)
    served = [
        [unit.path.split("/")[-1] for unit in of]
        for cut in cuts_of(line, units)
        for of in cut.units.values()
    ]
    assert len(units) == 6 * LAYERS
    assert [sorted(names) for names in served] == [
        ["w_k", "w_q", "w_v"],
        ["w_o"],
        ["w_up"],
        ["w_down"],
    ] * LAYERS


def test_every_product_runs_once_a_batch():
    runs = []

    def counted(y, name):
        def note(y):
            runs.append(name)
            return y

        return jax.pure_callback(note, jax.ShapeDtypeStruct(y.shape, y.dtype), y)

    def model(params, x):
        for i in range(5):
            w = params[str(i)]
            up = counted(jax.nn.relu(x @ w["w_up"]), (i, "up"))
            x = x + counted(up @ w["w_down"], (i, "down"))
        return x

    params = {str(i): layer_weights(i) for i in range(5)}
    rules = [js.Rule(".*/w_(up|down)", js.NM(2, 4))]

    prune_oneshot(model, params, BATCHES, rules)
    jax.effects_barrier()
    # The last `down` is pruned by what it meets and need not run.
    once = [(i, name) for i in range(5) for name in ("up", "down")][:-1]
    assert sorted(runs) == sorted(once * len(BATCHES))


def pieces_compiled(layers, caplog):
    params = {str(i): layer_weights(i) for i in range(layers)}

    def model(params, x):
        for w in params.values():
            x = block(x, w)
        return x

    caplog.clear()
    jax.clear_caches()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        prune_oneshot(model, params, BATCHES, RULES)
    return sum("Finished XLA compilation of jit(run)" in r.getMessage() for r in caplog.records)


def test_equal_layers_are_compiled_once(caplog):
    # The first piece is its own, and so are two of the last layer, whose sum nobody needs.
    assert pieces_compiled(2, caplog) == pieces_compiled(4, caplog) == 4 + 3


def test_killed_runs_go_on_where_they_were(tmp_path):
    class Killed(Exception):
        pass

    told = []

    def kill(pruned):
        told.append(pruned)
        if len(told) == 8:  # in the midst of what shares one input
            raise Killed

    options = {"criterion": CRITERIA["sparsegpt"], "folder": tmp_path}
    with pytest.raises(Killed):
        prune_oneshot(scanned, STACKED, BATCHES, RULES, on_pruned=kill, **options)
    assert [p.number for p in told] == list(range(1, 9)) and told[0].total == 18
    assert all(0 < p.error < 1 and p.seconds >= 0 for p in told)
    rest = []
    found = prune_oneshot(scanned, STACKED, BATCHES, RULES, on_pruned=rest.append, **options)
    assert [p.number for p in rest] == list(range(9, 19))
    assert {(p.path, p.index) for p in told}.isdisjoint({(p.path, p.index) for p in rest})
    whole = prune_oneshot(scanned, STACKED, BATCHES, RULES, criterion=CRITERIA["sparsegpt"])
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(found.masks[path], mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found.params,
        whole.params,
    )


W = {"a": {"w_1": normal(0, 8, 8)}}


def one(params, x):
    return x @ params["a"]["w_1"]


def test_another_runs_folder_is_refused(tmp_path):
    options = {"folder": tmp_path}
    prune_oneshot(one, W, BATCHES, RULES, **options)
    changes = {
        "program": {"fn": lambda p, x: one(p, x * 2)},
        "weights": {"params": jax.tree.map(lambda w: w + 1, W)},
        "batches": {"batches": BATCHES[::-1]},
        "rules": {"rules": [js.Rule(".*/w_.*", js.NM(1, 4))]},
        "criterion": {"criterion": magnitude()},
    }
    for name, change in changes.items():
        call = {"fn": one, "params": W, "batches": BATCHES, "rules": RULES} | options | change
        args = [call.pop(k) for k in ("fn", "params", "batches", "rules")]
        with pytest.raises(ValueError, match=f"another run, with another {name}"):
            prune_oneshot(*args, **call)
    [file] = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{file.name} of 'a/w_1' cannot be read"):
        prune_oneshot(one, W, BATCHES, RULES, **options)
    (tmp_path / "oneshot.json").unlink()
    with pytest.raises(ValueError, match=r"has arrays, but no oneshot\.json"):
        prune_oneshot(one, W, BATCHES, RULES, **options)


def test_options_of_a_criterion_make_another_run(tmp_path):
    prune_oneshot(one, W, BATCHES, RULES, criterion=alps(steps=3), folder=tmp_path)
    prune_oneshot(one, W, BATCHES, RULES, criterion=alps(steps=3), folder=tmp_path)
    with pytest.raises(ValueError, match="with another criterion"):
        prune_oneshot(one, W, BATCHES, RULES, criterion=alps(steps=4), folder=tmp_path)


def test_values_in_files_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsparse.calibration.live._SMALL", 1)
    used = []

    def note(pruned):
        used.extend(f.name for f in tmp_path.rglob("*") if f.is_file())

    found = prune_oneshot(scanned, STACKED, BATCHES, RULES, spill=tmp_path, on_pruned=note)
    expected = prune_oneshot(scanned, STACKED, BATCHES, RULES)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert used and not any(tmp_path.iterdir())


def test_a_smaller_last_batch(expected):
    rows = jnp.concatenate([x for (x,) in BATCHES])
    batches = [(rows[:3],), (rows[3:6],), (rows[6:],)]
    check(prune_oneshot(unrolled, SEPARATE, batches, RULES), *expected["wanda"])

    def other(params, x):
        return one(params, x if len(x) == 3 else jnp.tanh(x))

    with pytest.raises(ValueError, match=r"batch 2 of shapes .*another program than for batch 0"):
        prune_oneshot(other, W, batches, RULES)


def test_a_kernel_used_twice_is_pruned_before_its_last_use():
    params = {"a": {"w_1": normal(0, 8, 8), "w_2": normal(1, 8, 8)}}

    def twice(params, x):
        x = jnp.tanh(x @ params["a"]["w_1"])
        x = jnp.tanh(x @ params["a"]["w_2"])
        return x @ params["a"]["w_1"]

    x = normal(2, 40, 8)
    found = prune_oneshot(twice, params, [x], RULES)
    w1, w2 = params["a"]["w_1"], params["a"]["w_2"]
    target = Target(js.NM(2, 4))
    # The first use ran with the dense kernel.
    h1 = jnp.tanh(x @ w1)
    mask = wanda().prune(w2, {"squares": jnp.sum(h1**2, 0)}, target)[0]
    np.testing.assert_array_equal(found.masks["a/w_2"], mask)
    h2 = jnp.tanh(h1 @ jnp.where(mask, w2, 0))
    both = jnp.sum(x**2, 0) + jnp.sum(h2**2, 0)
    mask = wanda().prune(w1, {"squares": both}, target)[0]
    np.testing.assert_array_equal(found.masks["a/w_1"], mask)


@pytest.mark.parametrize("loop", ["scan", "while", "cond"])
def test_kernels_of_a_loop_that_uses_them_again_are_pruned_together(loop):
    params = {"a": {"w_1": normal(0, 8, 8), "w_2": normal(1, 8, 8), "w_3": normal(2, 8, 8)}}

    def turn(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]["w_1"]) @ params["a"]["w_2"])

    def model(params, x):
        if loop == "scan":
            x = lax.scan(lambda x, _: (turn(params, x), None), x, length=3)[0]
        elif loop == "while":
            count = 3 + (x[0, 0] > 1e9)
            x = lax.while_loop(
                lambda s: s[0] < count, lambda s: (s[0] + 1, turn(params, s[1])), (0, x)
            )[1]
        else:
            x = lax.cond(x[0, 0] < 1e9, lambda x: turn(params, x), lambda x: x, x)
        return x @ params["a"]["w_3"]

    x = normal(3, 40, 8)
    found = prune_oneshot(model, params, [x], RULES)
    met, squares = x, {"w_1": 0, "w_2": 0}
    dense = params["a"]
    for _ in range(1 if loop == "cond" else 3):
        inner = jnp.tanh(met @ dense["w_1"])
        squares["w_1"] += jnp.sum(met**2, 0)
        squares["w_2"] += jnp.sum(inner**2, 0)
        met = jnp.tanh(inner @ dense["w_2"])
    for name, value in squares.items():
        mask = wanda().prune(dense[name], {"squares": value}, Target(js.NM(2, 4)))[0]
        np.testing.assert_array_equal(found.masks[f"a/{name}"], mask)
    # What comes after the loop sees what the pruned kernels make.
    for _ in range(1 if loop == "cond" else 3):
        x = turn(found.params, x)
    mask = wanda().prune(dense["w_3"], {"squares": jnp.sum(x**2, 0)}, Target(js.NM(2, 4)))[0]
    np.testing.assert_array_equal(found.masks["a/w_3"], mask)


def test_a_residual_network_of_nnx():
    class Residual(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(4, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.second = nnx.Conv(8, 8, (1, 1), rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.first(x)))
            x = x + self.second(x)
            return self.head(x.mean((1, 2)))

    graph, params, rest = nnx.split(Residual(nnx.Rngs(0)), nnx.Param, ...)

    def run(params, x):
        return nnx.merge(graph, params, rest)(x)

    rules = [js.Rule(".*kernel", js.Unstructured(), 0.5)]
    batches = [normal(i, 8, 4, 4, 4) for i in range(2)]
    found = prune_oneshot(run, params, batches, rules)
    kept = {path: int(mask.sum()) for path, mask in found.masks.items()}
    assert kept == {"first/kernel": 144, "second/kernel": 32, "head/kernel": 16}
    # The last kernel, by what the others make now.
    _, states = observe(run, found.params, jnp.concatenate(batches), reducer=square_norms())
    [squares] = [state["squares"] for site, state in states.items() if site.path == "head/kernel"]
    target = Target(js.Unstructured(), 0.5)
    mask = wanda().prune(params["head"]["kernel"][...], {"squares": squares}, target)[0]
    np.testing.assert_array_equal(found.masks["head/kernel"], mask)


def test_too_few_rows_are_told_of_before_the_work():
    told = []
    with pytest.warns(UserWarning, match="'a/w_1' meets 5 rows for 8 inputs"):
        prune_oneshot(one, W, [normal(0, 5, 8)], RULES, criterion=alps(), on_pruned=told.append)
    assert len(told) == 1
    prune_oneshot(one, W, [normal(0, 5, 8)], RULES)  # norms alone need no more


def mask_of(weight, *met):
    squares = sum(jnp.sum(jnp.float32(x) ** 2, 0) for x in met)
    return wanda().prune(jnp.asarray(weight), {"squares": squares}, Target(js.NM(2, 4)))[0]


ANY = [js.Rule(".*", js.NM(2, 4))]


def test_experts_of_a_stack_of_layers():
    kernels, x = normal(0, 2, 3, 8, 8), normal(1, 3, 20, 8)

    def layer(x, w):
        return x + jnp.tanh(jnp.einsum("ebd,edh->ebh", x, w)), None

    found = prune_oneshot(lambda p, x: lax.scan(layer, x, p["w"])[0], {"w": kernels}, [x], ANY)
    for i in range(2):
        masks = jnp.stack([mask_of(kernels[i, e], x[e]) for e in range(3)])
        np.testing.assert_array_equal(found.masks["w"][i], masks)
        x, _ = layer(x, jnp.where(masks, kernels[i], 0))


def test_a_scan_from_the_last_layer_on_in_bfloat16():
    kernels, x = np.asarray(normal(0, 3, 8, 8)), normal(1, 20, 8).astype(jnp.bfloat16)

    def model(p, x):
        def turn(x, w):
            return jnp.tanh(x @ w), x.sum()

        x, sums = lax.scan(turn, x, p["w"].astype(x.dtype), reverse=True)
        return x * sums.sum()

    found = prune_oneshot(model, {"w": kernels}, [np.asarray(x)], ANY)
    for i in (2, 1, 0):
        mask = mask_of(kernels[i], x)
        np.testing.assert_array_equal(found.masks["w"][i], mask)
        x = jnp.tanh(x @ jnp.where(mask, kernels[i], 0).astype(x.dtype))


def test_a_product_of_weights_alone_and_a_kernel_that_data_picks():
    params = {"w": normal(0, 2, 8, 8), "table": normal(1, 1, 8), "b": normal(2, 8, 8)}

    def model(p, x):
        which = (x[0, 0] > 0).astype(int)
        return x @ p["w"][which] + x @ p["w"][1 - which] + jnp.tanh(p["table"] @ p["b"])

    x = normal(3, 20, 8)
    found = prune_oneshot(model, params, [x], [js.Rule("[wb]", js.NM(2, 4))])
    np.testing.assert_array_equal(found.masks["b"], mask_of(params["b"], params["table"]))
    for i in range(2):
        np.testing.assert_array_equal(found.masks["w"][i], mask_of(params["w"][i], x))
