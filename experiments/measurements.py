"""What a figure must be read with, and where benchmarks write their results."""

import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from typing import Any

import jax

from jaxsparse.allocation.costs.fingerprint import threads

RESULTS = pathlib.Path(__file__).parent / "bench" / "results"


def machine() -> dict[str, Any]:
    """Returns what a figure must be read with: device, cores, versions, date, commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": threads(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write(name: str, result: Mapping[str, Any]) -> pathlib.Path:
    """Writes results/NAME.json together with the machine's description, a line a row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(_lines(dict(result) | {"machine": machine()}))
    return path


def _lines(result: Mapping[str, Any]) -> str:
    """JSON whose long lists are a line an item, so that one row changed is one line changed."""
    fields = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        fields.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
