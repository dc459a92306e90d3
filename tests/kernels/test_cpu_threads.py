"""Many sparse products at once on one thread pool: none waits for ever, none differs."""

import concurrent.futures
import functools

import jax
import numpy as np
import pytest
from cpu_cases import bitmap_case, block_case, csc_case, nm_case

from jaxsparse.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


@functools.cache
def ten_products():
    rng = np.random.default_rng(0)
    shape = 256, 256
    cases = [
        block_case(rng, shape, (32, 32), 0.3),
        block_case(rng, shape, (4, 16), 0.3),
        csc_case(rng, shape, 0.2),
        bitmap_case(rng, shape, 0.4),
        nm_case(rng, shape, 2, 4),
    ]

    @jax.jit
    def run(x):
        outs = [case.dot(x) for case in cases]  # all at once: none depends on another
        outs += [case.dot_transposed(x) for case in cases]
        return outs

    return run, rng.standard_normal((100, 256)).astype(np.float32)


def test_ten_products_under_six_threads():
    run, x = ten_products()
    expected = [np.asarray(y) for y in run(x)]

    def work(_):
        for _ in range(5):
            for y, same in zip(run(x), expected, strict=True):
                np.testing.assert_array_equal(np.asarray(y), same)
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        done = [pool.submit(work, i) for i in range(6)]
        assert all(future.result(timeout=120) for future in done)
