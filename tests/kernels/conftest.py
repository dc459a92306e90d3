"""What the tests of cuSPARSELt's caller run on."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cusparselt_build(tmp_path_factory):
    """The folder with the shared objects, built here where CUDA's headers are."""
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs cmake and a C++ compiler")
    folder = tmp_path_factory.mktemp("build")

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run(
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-DJAXSPARSE_CPU=OFF"),
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    for line in said.splitlines():
        if line.endswith("installed without cuSPARSELt"):
            pytest.skip(line.removeprefix("-- "))
    names = "jaxsparse_cusparselt", "jaxsparse_cusparselt_test"
    run("cmake", "--build", str(folder), "--target", *names)
    return folder / "jaxsparse" / "kernels" / "cusparselt" / "native"
