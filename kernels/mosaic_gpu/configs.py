"""How a product is cut into tiles: a measured configuration, or a reasoned one.

Measured ones lie in tuned/DEVICE_KIND.json, one list of entries per device, in the
order in which they are tried:

    {"op": "product", "block": [128, 128], "bytes": 2, "rows": 4096,
     "config": {"wg_rows": 128, ...}}

An entry serves calls of its op and block, on factors of so many bytes, with at least
so many rows. experiments/bench/tune.py writes them. No device has such a file yet;
`heuristic` serves them all.
"""

import dataclasses
import functools
import json
import math
import pathlib

from jaxsparse.kernels.devices import SHARED_MEMORY

RESERVED = 1024  # for barriers and alignment
EPILOGUE = 64  # the result leaves in squares of this side
MOST_STAGES = 6
LEAST = 64  # rows of a wgmma
PART = 4  # steps that a part of a split sum costs besides its own: written, read and added
MOST_PARTS = 64
DEPTH = 128  # bytes of one step's product in every row: the widest swizzle


@dataclasses.dataclass(frozen=True)
class Config:
    """One way to cut a product.

    Attributes:
      wg_rows: rows of the tile that one warpgroup multiplies, 64 or 128; in a sampled
        product the block decides.
      warpgroups: how many of them share the second factor, 1 or 2; one more loads. In a
        sampled product, how many blocks share g, one for each, up to 4.
      stages: steps that may be loaded ahead, at least 2.
      strip: tiles of rows whose columns are gone through together, so that the rows
        stay in the L2 cache.
    """

    wg_rows: int
    warpgroups: int
    stages: int
    strip: int = 4

    @property
    def tile_rows(self) -> int:
        return self.wg_rows * self.warpgroups


def depth(inputs: int, in_bytes: int) -> int:
    """How many of so many inputs, of so many bytes each, one step multiplies."""
    return min(DEPTH // in_bytes, inputs)


def heuristic(
    op: str, block: tuple[int, int], rows: int, out_bytes: int, in_bytes: int = 2
) -> Config:
    """The configuration for a product of `rows` rows whose tiles are `block[1]` wide.

    The largest tile that the rows fill, since the rate is bounded by how often a
    loaded number is used; then as many stages as shared memory has room for.

    Args:
      op: "product", or "sampled", whose tiles are blocks of a column, `warpgroups` each.
      block: (inputs, outputs) of a block; of its transpose for a transposed product.
      rows: of x.
      out_bytes: size of one result.
      in_bytes: size of one entry of a factor.
    """
    if op == "sampled":
        wg_rows = sampled_tile(block)[0]
        warpgroups = 4 if math.prod(block) <= LEAST**2 else 2
    else:
        wg_rows = 64 if rows <= 128 else 128
        warpgroups = 1 if rows <= 64 else 2

    def used(stages):
        config = Config(wg_rows, warpgroups, stages)
        return shared_memory(op, block, config, out_bytes, in_bytes)

    stages = (SHARED_MEMORY - used(0)) // (used(1) - used(0))
    return Config(wg_rows, warpgroups, min(stages, MOST_STAGES))


def shared_memory(
    op: str, block: tuple[int, int], config: Config, out_bytes: int, in_bytes: int = 2
) -> int:
    """Bytes of shared memory that a configuration takes."""
    if op == "sampled":
        tile = sampled_tile(block)
        step = depth(DEPTH, in_bytes)
        wide = tile[0] if block[0] < LEAST else block[1]
        loaded = in_bytes * step * (config.warpgroups * block[0] + wide)
    else:
        tile = (config.wg_rows, block[1])
        loaded = in_bytes * depth(block[0], in_bytes) * (config.tile_rows + block[1])
    held = config.warpgroups * slots(tile) * math.prod(square(tile)) * out_bytes
    return RESERVED + config.stages * loaded + held


def sampled_tile(block: tuple[int, int]) -> tuple[int, int]:
    """What one warpgroup computes of a sampled product: a block, or a turned one."""
    return block if block[0] >= LEAST else (max(LEAST, block[1]), block[0])


def square(tile: tuple[int, int]) -> tuple[int, int]:
    """The part of a warpgroup's result that is written at a time."""
    return min(tile[0], EPILOGUE), min(tile[1], EPILOGUE)


def slots(tile: tuple[int, int]) -> int:
    """Squares of a warpgroup's result that wait in shared memory to be written."""
    return min(2, math.prod(tile) // math.prod(square(tile)))


def splits(blocks: int, depth: int, sms: int) -> int:
    """Parts of the batch that a sampled product is summed in.

    So many that the fullest multiprocessor has the fewest steps to do, the writing and
    the adding up of the parts counted as steps: more than one where blocks are few
    beside the multiprocessors and the batch is large.

    Args:
      blocks: stored.
      depth: steps over the whole batch.
      sms: multiprocessors.
    """

    def cost(parts):
        return -(-blocks * parts // sms) * (-(-depth // parts) + PART * (parts > 1))

    # Parts of equal length: the longest decides, and none is empty.
    lengths = {-(-depth // parts) for parts in range(1, min(depth, MOST_PARTS) + 1)}
    return min((-(-depth // length) for length in lengths), key=lambda n: (cost(n), n))


def configure(
    op: str,
    block: tuple[int, int],
    rows: int,
    out_bytes: int,
    device_kind: str,
    in_bytes: int = 2,
) -> Config:
    """The configuration measured on this kind of device if there is one, else `heuristic`'s."""
    for entry in tuned(device_kind):
        same = (entry["op"], tuple(entry["block"]), entry["bytes"]) == (op, block, in_bytes)
        if same and rows >= entry["rows"]:
            config = Config(**entry["config"])
            # Measured for results of 16 bits: wider ones may leave room for fewer stages.
            while shared_memory(op, block, config, out_bytes, in_bytes) > SHARED_MEMORY:
                config = dataclasses.replace(config, stages=config.stages - 1)
            return config
    return heuristic(op, block, rows, out_bytes, in_bytes)


@functools.cache
def tuned(device_kind: str) -> list:
    """The committed configurations of a kind of device; none for most."""
    path = pathlib.Path(__file__).parent / "tuned" / file_name(device_kind)
    return json.loads(path.read_text()) if path.exists() else []


def file_name(device_kind: str) -> str:
    """Of the configurations of a kind of device."""
    return device_kind.replace(" ", "_") + ".json"
