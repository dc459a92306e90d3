#include "tiles.h"

#include <cstring>

namespace jaxsparse {
namespace {

constexpr long kSlabTiles = 4;  // of dx that one tile of the transposed loop sums

}  // namespace

bool tiled_dot_transposed(Pool& pool, const Matrix& dy, const Scattered& w, float* dx) {
  const Kernels& k = kernels();
  const int width = k.tile_vectors * k.lanes;
  const long tiles = w.tiles(), chunks = (w.n + kTileColumns - 1) / kTileColumns;
  const Panels panels(pool, dy, w.n, width);
  const long slab = std::max<long>(1, std::min(kSlabTiles, tiles / (pool.threads() * 2)));
  std::atomic<bool> good{true};
  // A tile of this loop owns some rows of W, so some columns of dx, for the whole batch.
  parallel_for(pool, (tiles + slab - 1) / slab, [&](long i) {
    const long t0 = i * slab, t1 = std::min(tiles, t0 + slab);
    const long size = (t1 - t0) * w.tile_rows * width;
    float* outs = scratch().get<float>(kOuts, panels.count * size);
    std::memset(outs, 0, panels.count * size * sizeof(float));
    for (long c = 0; c < chunks; c++) {
      const long n0 = c * kTileColumns, n1 = std::min(w.n, n0 + kTileColumns);
      Chunk chunk;
      if (!w.prepare(n0, n1, t0, t1, &chunk)) {
        good = false;
        return;
      }
      for (long p = 0; p < panels.count; p++) {
        for (long t = 0; t < t1 - t0; t++) {
          const Tile& tile = chunk.tiles[t];
          k.tile_dot_transposed((int)(n1 - n0), tile.order, tile.counts, chunk.rows + tile.begin,
                                chunk.values + tile.begin, panels[p] + n0 * width,
                                outs + p * size + t * w.tile_rows * width);
        }
      }
    }
    const long k0 = t0 * w.tile_rows;
    for (long p = 0; p < panels.count; p++)
      k.store_panel(outs + p * size, (int)(std::min(w.k, t1 * w.tile_rows) - k0), width,
                    panels.rows(p), dx + p * width * w.k + k0, w.k);
  });
  return good;
}

// The dense product of a tile, in scratch, then what is kept of it: at the densities of
// unstructured pruning this beats a dot product for every entry.
bool tiled_sampled(Pool& pool, const Matrix& x, const Matrix& dy, const Scattered& w, float* out) {
  const Kernels& k = kernels();
  const long batch = x.rows, tiles = w.tiles();
  const long chunks = (w.n + kTileColumns - 1) / kTileColumns;
  float* xs = scratch().get<float>(kInput, (size_t)tiles * w.tile_rows * batch);
  parallel_for(pool, tiles, [&](long t) {
    copy_columns(x, t * w.tile_rows, w.tile_rows, xs + t * w.tile_rows * batch);
  });
  constexpr long kStep = 48;  // of the batch: both operands fit the first cache
  std::atomic<bool> good{true};
  parallel_for(pool, chunks, [&](long i) {
    const long n0 = i * kTileColumns, n1 = std::min(w.n, n0 + kTileColumns);
    if (w.empty(n0, n1)) return;
    float* dys = scratch().get<float>(kWeights, batch * kTileColumns);
    float* c = scratch().get<float>(kOuts, w.tile_rows * kTileColumns);
    copy_columns(dy, n0, kTileColumns, dys);
    for (long t = 0; t < tiles; t++) {
      for (long m = 0; m == 0 || m < batch; m += kStep)
        k.outer(std::min(kStep, batch - m), w.tile_rows, kTileColumns,
                xs + (t * batch + m) * w.tile_rows, w.tile_rows, dys + m * kTileColumns,
                kTileColumns, c, m > 0);
      if (!w.sample(n0, n1, t, c, out)) good = false;
    }
  });
  return good;
}

}  // namespace jaxsparse
