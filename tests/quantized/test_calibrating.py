"""Codes from batches: against ranges of the same values by numpy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.quantized import calibrate, dynamic, of_range, saturation

RULES = [js.Rule(".*", js.Block(4, 4))]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"up": jnp.asarray(numbers(8, 12)), "down": jnp.asarray(numbers(12, 4, seed=1))}
BATCHES = [(numbers(5, 8, seed=2),), (3 * numbers(5, 8, seed=3),)]


def model(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(-1.0, 1.55, 100), (0.5, 2.0, 0), (-3.0, -1.0, 255), (0.0, 0.0, 0)]
)
def test_a_range_holds_zero_exactly(low, high, zero):
    codes = of_range(low, high)
    assert int(codes.zero_point) == zero
    assert float(codes.dequantize(codes.quantize(jnp.zeros(())))) == 0.0
    assert float(codes.scale) == pytest.approx((max(high, 0) - min(low, 0)) / 255 or 1.0)


def test_a_range_of_subnormal_numbers_has_a_scale():
    assert float(of_range(0.0, 1e-40).scale) == 1.0


@pytest.mark.parametrize("ends", [(1.0, -1.0), (0.0, np.nan), (-np.inf, 0.0)])
def test_what_is_no_range_is_refused(ends):
    with pytest.raises(ValueError, match=r"of_range: from .* is no finite range; low <= high"):
        of_range(*ends)


def test_codes_of_a_model():
    codes = calibrate(model, PARAMS, BATCHES, RULES)
    assert set(codes) == {"up", "down"}
    xs = np.concatenate([x for (x,) in BATCHES])
    hidden = np.maximum(xs @ np.asarray(PARAMS["up"]), 0)
    for path, low, high in (("up", xs.min(), xs.max()), ("down", 0.0, hidden.max())):
        np.testing.assert_allclose(codes[path].scale, (high - low) / 255, rtol=1e-5)
        assert int(codes[path].zero_point) == round(-low / float(codes[path].scale))
    assert saturation(model, PARAMS, BATCHES, codes)["up"] == (0, 80)


def test_a_stack_and_several_products_share_one_range():
    params = {"stack": jnp.asarray(numbers(2, 4, 4))}

    def loop(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0] @ params["stack"][0]

    x = numbers(3, 4)
    met = [x, x @ params["stack"][0]]
    met.append(met[1] @ params["stack"][1])
    rules = [js.Rule("stack", js.Block(2, 2), batch_axis=0)]
    codes = calibrate(loop, params, [(x,)], rules)["stack"]
    low, high = (f([f(m) for m in met]) for f in (np.min, np.max))
    np.testing.assert_allclose(codes.scale, (high - low) / 255, rtol=1e-5)


def test_dynamic_codes_are_those_of_one_array():
    x = numbers(3, 5)
    found, expected = jax.jit(lambda x: dynamic(x).quantize(x))(x), of_range(x.min(), x.max())
    np.testing.assert_array_equal(found, expected.quantize(x))


def test_what_is_out_of_range_is_counted_and_named():
    codes = calibrate(model, PARAMS, BATCHES[:1], RULES)
    x = BATCHES[1][0].copy()
    x[0, 0] = np.nan
    with pytest.warns(UserWarning, match=r"more than 1.0% is out of range: .*'up' \d+"):
        counts = saturation(model, PARAMS, [(x,), (x,)], codes)
    up = codes["up"]
    inside = np.asarray(up.dequantize(up.quantize(x)))
    wrong = ~(np.abs(x - inside) <= 0.501 * float(up.scale))
    assert counts["up"] == (2 * wrong.sum(), 2 * x.size) and 0 < counts["up"].share < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saturation(model, PARAMS, [(x,)], codes, most=1.0)


@pytest.mark.parametrize(
    ("batches", "rules", "words"),
    [
        ([], RULES, "calibrate: there are no batches"),
        ([(np.full((1, 8), np.nan, np.float32),)], RULES, "meets values from nan to nan"),
        ([(np.full((1, 8), np.inf, np.float32),)], RULES, "which no codes hold"),
        (BATCHES, [js.Rule("unused", js.Block(2, 2))], "no product of the program meets 'unused'"),
    ],
)
def test_what_cannot_be_calibrated_is_named(batches, rules, words):
    params = PARAMS | {"unused": jnp.ones((4, 4))}
    if rules is RULES:
        rules = [js.Rule("up|down", js.Block(4, 4))]
    with pytest.raises(ValueError, match=words):
        calibrate(model, params, batches, rules)


def test_a_range_wider_than_float32_is_named():
    x = np.array([[-3e38, 3e38, 0, 0]], np.float32)
    with pytest.raises(ValueError, match=r"of what 'w' meets, .* is too wide for float32"):
        calibrate(
            lambda params, x: x @ params["w"],
            {"w": jnp.eye(4)},
            [(x,)],
            [js.Rule("w", js.Block(2, 2))],
        )


def test_saturation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="saturation: there are no batches"):
        saturation(model, PARAMS, [], {"up": of_range(0, 1)})
    with pytest.raises(ValueError, match="'upp', which is no leaf; did you mean 'up'"):
        saturation(model, PARAMS, BATCHES, {"upp": of_range(0, 1)})
    with pytest.raises(ValueError, match="saturation: there are no codes"):
        saturation(model, PARAMS, BATCHES, {})
    packed = js.pack_params(PARAMS, {}, RULES, dtype=jnp.int8)
    with pytest.raises(ValueError, match=r"'up' is packed, .* js\.unpack_params\(params\) would"):
        saturation(model, packed, BATCHES, {"up": of_range(0, 1)})
