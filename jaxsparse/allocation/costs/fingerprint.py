"""What a measured time holds for: this device, these versions, so many threads."""

import importlib.metadata
import os
import pathlib
import platform
import re

import jax

# Extensions that products are compiled for; others do not change their time.
EXTENSIONS = re.compile(r"avx\w*|amx\w*|fma|sve\w*|asimd\w*|bf16|i8mm")


def fingerprint() -> dict[str, str | int]:
    """The fields by which a table of latency knows its machine.

    >>> sorted(fingerprint())  # doctest: +NORMALIZE_WHITESPACE
    ['device', 'flags', 'instructions', 'jax', 'jaxlib', 'jaxsparse', 'platform', 'processor',
     'threads']
    """
    device, processor, extensions = jax.devices()[0], *_processor()
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "processor": processor,
        "instructions": " ".join(sorted(extensions)),
        "threads": threads(),
        "flags": os.environ.get("XLA_FLAGS", ""),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jaxsparse")},
    }


def _processor() -> tuple[str, set[str]]:
    """Name and extensions; what the system tells where it is not Linux."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in text.splitlines())
    )
    words = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    name = fields.get("model name", platform.machine())
    models = [fields[key] for key in ("cpu family", "model") if key in fields]
    return " ".join([name, *models]), set(filter(EXTENSIONS.fullmatch, words))


def threads() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
