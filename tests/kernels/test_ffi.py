"""Libraries that this jaxlib's FFI would refuse."""

import types

import jax
import pytest

from jaxsparse.kernels import cpu, ffi
from jaxsparse.kernels.cpu import library


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        ((0, 2), None),
        ((0, 3), None),
        ((0, 4), "it was built with XLA FFI 0.4, this jaxlib has 0.3: install jaxsparse again"),
        ((1, 3), "it was built with XLA FFI 1.3, this jaxlib has 0.3: install jaxsparse again"),
    ],
)
def test_a_library_built_with_a_newer_version_is_refused(built, reason, monkeypatch, tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 3\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    library = types.SimpleNamespace(
        jaxsparse_ffi_major=lambda: built[0], jaxsparse_ffi_minor=lambda: built[1]
    )
    found = ffi.version_reason(library)
    assert found is None if reason is None else found.startswith(reason)
    header.write_text("of another form")
    assert ffi.version_reason(library) is None


@pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))
def test_the_library_here_was_built_with_a_version_that_this_jaxlib_reads(monkeypatch, tmp_path):
    built = library.load().jaxsparse_ffi_major(), library.load().jaxsparse_ffi_minor()
    assert built >= (0, 3)  # of jaxlib 0.10
    assert ffi.version_reason(library.load()) is None
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        f"#define XLA_FFI_API_MAJOR {built[0]}\n#define XLA_FFI_API_MINOR {built[1] - 1}\n"
    )
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    found = ffi.load(cpu.__name__, "libjaxsparse_cpu.so", "the kernels", "not built")
    assert found[0] is None and f"it was built with XLA FFI {built[0]}.{built[1]}" in found[1]


def test_kernels_that_are_missing_from_a_source_folder_are_no_matter_of_compilers(tmp_path):
    assert "installed without a C++17 compiler" in library._absent(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert library._absent(tmp_path).startswith(
        f"jaxsparse is imported from the source folder {tmp_path}, which has no built kernels; "
    )
