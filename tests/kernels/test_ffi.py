"""Libraries that this jaxlib's FFI would refuse."""

import types

import jax
import pytest

from jaxsparse.kernels import ffi


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
