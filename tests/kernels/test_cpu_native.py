"""The library as a whole: every instruction set, any number of threads, sanitizers."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxsparse.kernels import cpu

needs_library = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))
HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "kernels" / "cpu" / "native"

BATTERY = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from cpu_cases import *
rng = np.random.default_rng(0)
outputs = []
for batch in (1, 4, 8, 13, 16, 40, 150):
    for dtype in DTYPES:
        for case in [
            *(block_case(rng, (200, 144), b, 0.3, dtype) for b in ((1, 16), (4, 16), (32, 32))),
            csc_case(rng, (200, 150), 0.2, dtype),
            bitmap_case(rng, (300, 150), 0.4, dtype),
            bitmap_case(rng, (200, 150), 0.2, dtype),
            *(nm_case(rng, (200, 150), n, m, dtype) for n, m in ((2, 4), (1, 2), (4, 8), (3, 16))),
        ]:
            check_all(case, rng, batch, TOLERANCE[dtype])
            x = rng.standard_normal((batch, case.dense.shape[0])).astype(np.float32)
            outputs.append(np.asarray(case.dot(x)).tobytes())
for batch in (1, 4, 7):  # large enough for several threads
    for case in (
        block_case(rng, (1100, 608), (4, 16), 0.5),
        csc_case(rng, (1100, 600), 0.1),
        bitmap_case(rng, (1100, 600), 0.5),
        nm_case(rng, (1100, 600), 2, 4),
    ):
        x = rng.standard_normal((batch, 1100)).astype(np.float32)
        outputs.append(np.asarray(case.dot(x)).tobytes())
sys.stdout.buffer.write(cpu.instruction_set().encode() + b"\\n" + b"".join(outputs))
"""


def battery(**environment):
    """The instruction set that ran and a digest of every output's bits."""
    done = subprocess.run(
        [sys.executable, "-c", BATTERY, str(HERE)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    name, _, outputs = done.stdout.partition(b"\n")
    return name.decode(), hashlib.sha256(outputs).hexdigest()


def run(*command, **options):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa):
    probe = "from jaxsparse.kernels import cpu; print(cpu.missing() or '')"
    environment = os.environ | {"JAXSPARSE_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
    if done.stdout.strip():
        pytest.skip(f"this processor has no {isa}")
    assert battery(JAXSPARSE_CPU_ISA=isa)[0] == isa


@needs_library
@pytest.mark.slow
def test_the_same_bits_on_any_number_of_threads():
    threads = os.environ.get("XLA_FLAGS", "")
    one = battery(XLA_FLAGS=threads + " --xla_cpu_multi_thread_eigen=false", NPROC="1")
    assert one == battery(NPROC="2") == battery(NPROC="7")


@needs_library
def test_an_unknown_instruction_set_is_refused():
    probe = "from jaxsparse.kernels import cpu; print(cpu.missing())"
    environment = os.environ | {"JAXSPARSE_CPU_ISA": "avx1024"}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True)
    assert b"known: avx512vnni, avx512, avxvnni, avx2, portable" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler"
)
def test_under_address_and_undefined_behaviour_sanitizers(tmp_path):
    run("cmake", "-S", str(NATIVE.parents[2]), "-B", str(tmp_path), "-DJAXSPARSE_SANITIZE=ON")
    run("cmake", "--build", str(tmp_path), "--target", "products_test", "--parallel", "2")
    program = next(tmp_path.rglob("products_test"))
    for isa in ("portable", "avx2", "avxvnni", "avx512", "avx512vnni"):
        output = run(str(program), "1000", env=os.environ | {"JAXSPARSE_CPU_ISA": isa})
        assert output.strip().endswith("passed") or "lacks" in output


CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which(CROSS) and shutil.which(EMULATOR)), reason=f"needs {CROSS} and {EMULATOR}"
)
def test_on_another_processor(tmp_path):
    sources = [
        str(source)
        for source in (NATIVE / "src").rglob("*.cc")
        if source.name != "ffi.cc" and "_avx" not in source.name
    ]
    include = ["-std=gnu++17", "-O1", "-I", str(NATIVE / "src")]
    program = tmp_path / "products_test"
    test = str(NATIVE / "test" / "products_test.cc")
    run(CROSS, *include, "-static", test, *sources, "-o", str(program), "-lpthread")
    assert run(EMULATOR, str(program)).strip() == "portable: 300 cases passed"
    headers = ["-isystem", jax.ffi.include_dir()]
    binding = str(NATIVE / "src" / "drivers" / "ffi.cc")
    run(CROSS, *include, *headers, "-fPIC", "-c", binding, "-o", str(tmp_path / "ffi.o"))
