"""Readers of pretrained weights: right values, and no code of the file's choosing."""

import collections
import io
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from experiments import weight_files


class Storage:
    def __init__(self, key, data):
        self.key, self.data = key, data


class Tensor:
    def __init__(self, storage, offset, shape, steps):
        self.arguments = storage, offset, shape, steps, False, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = sys.modules["torch"].FloatStorage
            return ("storage", kind, obj.key, "cpu", obj.data.size, None)
        return None


@pytest.fixture
def torch_names(monkeypatch):
    """What pickles of tensors refer to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise NotImplementedError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def test_tensors_of_an_old_torch_file(tmp_path, torch_names):
    first = Storage("7", np.arange(12, dtype=np.float32))
    second = Storage("9", np.arange(3, dtype=np.float32) + 100)
    state = collections.OrderedDict(
        {
            "layer.weight": Tensor(first, 0, (3, 4), (1, 3)),  # stored by columns
            "layer.bias": Tensor(second, 1, (2,), (1,)),
        }
    )
    stream = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, ["9", "7"]):
        Pickler(stream, 2).dump(part)
    for storage in (second, first):
        stream.write(struct.pack("<q", storage.data.size) + storage.data.tobytes())
    file = tmp_path / "model.pth"
    file.write_bytes(stream.getvalue())
    tensors = weight_files.read_torch(file)
    assert np.array_equal(tensors["layer.weight"], np.arange(12).reshape(4, 3).T)
    assert tensors["layer.bias"].tolist() == [101, 102]


def test_a_pickle_that_is_a_program_is_refused(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"print is no part"):
        weight_files.read_torch(file)


def test_kernels_have_the_output_last_and_go_back():
    kernel = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
    turned = weight_files.from_torch(kernel)
    assert turned.shape == (5, 7, 3, 2)
    assert turned[4, 6, 1, 0] == kernel[0, 1, 4, 6]
    assert np.array_equal(weight_files.to_torch(turned), kernel)
    linear = kernel[:, :, 0, 0]
    assert weight_files.from_torch(linear).shape == (3, 2)
    assert np.array_equal(weight_files.to_torch(weight_files.from_torch(linear)), linear)
