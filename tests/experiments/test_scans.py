"""Scans that are read and scans that are simulated."""

import numpy as np
import pytest

from experiments.data import scans
from experiments.data.download import DownloadError

HEAD = "ply\nformat binary_little_endian 1.0\nelement vertex 2\n"
AXES = "".join(f"property float {name}\n" for name in "xyzw")


def write(path, head, points):
    path.write_bytes(head.encode() + b"end_header\n" + np.asarray(points, "<f4").tobytes())
    return path


def test_vertices_are_read(tmp_path):
    points = [[1, 2, 3, 0], [-4, 5.5, 6, 1]]
    path = write(tmp_path / "own.ply", HEAD + AXES, points)
    np.testing.assert_array_equal(scans.read_ply(path), points)
    np.testing.assert_array_equal(scans.street(str(path)), np.array(points)[:, :3])


@pytest.mark.parametrize(
    ("head", "quoted"),
    [
        ("obj\n", "no PLY file"),
        (HEAD.replace("binary_little_endian", "ascii") + AXES, "no PLY file"),
        (HEAD + AXES + "property uchar red\n", "no PLY file"),
        (HEAD.replace("2", "3") + AXES, "32 bytes behind its header; 3 vertices of 4 floats take"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, head, quoted):
    with pytest.raises(ValueError, match=quoted):
        scans.read_ply(write(tmp_path / "own.ply", head, np.zeros((2, 4))))


def test_a_simulated_street_is_ground_and_what_stands_on_it():
    points = scans.simulated_street(1, beams=16, turns=200)
    np.testing.assert_array_equal(points, scans.simulated_street(1, beams=16, turns=200))
    ranges = np.linalg.norm(points - (0, 0, 1.73), axis=1)
    assert 1000 < len(points) < 16 * 200 and ranges.max() < 70.2
    assert np.mean(np.abs(points[:, 2]) < 0.1) > 0.3 and points[:, 2].max() > 2
    cells = scans.voxels(points, 0.5)
    assert len(cells) == len(np.unique(cells, axis=0)) < len(points)


@pytest.mark.slow
def test_the_street_scan_is_the_one_that_was_pinned():
    try:
        points = scans.street()
    except DownloadError as error:
        pytest.skip(f"no package index within reach: {error}")
    assert points.shape == (69_792, 3) and len(scans.voxels(points, 0.05)) == 28_464
