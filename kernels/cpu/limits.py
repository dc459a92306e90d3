"""What this processor can do at most, measured: arithmetic and reading memory."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxsparse.kernels.cpu import library

_ROUNDS = 32  # the best is kept: anything else on the machine only slows it down


def fma_peak(threads: int | None = None) -> float:
    """Measures float32 multiply-adds in the kernels' instruction set.

    Args:
      threads: How many work at once; every processor we may use, where None.

    Returns:
      GFLOP/s of all threads together, the best of a few rounds.

    Raises:
      RuntimeError: There are no native kernels here; the message says why.
    """
    work = library.load().jaxsparse_fma
    return _best(lambda _: work(1 << 22), threads or _processors())


def read_bandwidth(threads: int | None = None, megabytes: int = 256) -> float:
    """Measures reading an array that no cache holds, each thread its own part.

    Args:
      threads: How many read at once; every processor we may use, where None.
      megabytes: The array's size.

    Returns:
      GB/s of all threads together, the best of a few rounds.

    Raises:
      RuntimeError: There are no native kernels here; the message says why.
    """
    work = library.load().jaxsparse_read
    threads = threads or _processors()
    parts = np.array_split(np.ones(megabytes << 18, np.float32), threads)
    return _best(lambda i: work(parts[i].ctypes.data, parts[i].size), threads)


def _best(work: Callable[[int], float], threads: int) -> float:
    """Units of 10^9 a second, from the first thread's start to the last one's end."""
    barrier = threading.Barrier(threads)

    def timed(i):
        barrier.wait()
        start = time.perf_counter()
        return work(i), start, time.perf_counter()

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            done, starts, ends = zip(*pool.map(timed, range(threads)), strict=True)
            rates.append(sum(done) / (max(ends) - min(starts)) / 1e9)
    return max(rates)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
