#include "drivers/tiles.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

constexpr long kSlabTiles = 4;  // of dx that one tile of the transposed loop sums

// A tile the other way: its rows, fullest first, and the columns of each one's weights.
struct Flipped {
  uint8_t order[kMostTileRows];
  uint16_t counts[kMostTileRows];
  int rows;  // that hold anything
};

// rows and values of `tile` to columns and values of `to`. Summing by row writes a row of dx
// once a tile, where a sum by column would write it for every weight.
void flip(const Tile& tile, int columns, const uint8_t* rows, const float* values, int tile_rows,
          Flipped* to, uint8_t* to_columns, float* to_values) {
  uint16_t counts[kMostTileRows] = {};
  long entries = 0;
  for (int i = 0; i < columns; i++) entries += tile.counts[i];
  for (long e = 0; e < entries; e++) counts[rows[e]]++;
  order_by_count(counts, tile_rows, to->order, to->counts);
  uint32_t next[kMostTileRows], at = 0;
  to->rows = 0;
  for (int i = 0; i < tile_rows && to->counts[i] > 0; i++, to->rows++) {
    next[to->order[i]] = at;
    at += to->counts[i];
  }
  for (int i = 0; i < columns; i++) {
    for (int left = tile.counts[i]; left > 0; left--) {
      const uint32_t place = next[*rows++]++;
      to_columns[place] = tile.order[i];
      to_values[place] = *values++;
    }
  }
}

}  // namespace

bool tiled_dot_transposed(Pool& pool, const Matrix& dy, const Scattered& w, float* dx) {
  const Kernels& k = kernels();
  const int width = tile_width(dy.rows);
  const long tiles = w.tiles(), chunks = (w.n + kTileColumns - 1) / kTileColumns;
  const Panels panels(pool, dy, w.n, width);
  const long slab = std::max<long>(1, std::min(kSlabTiles, tiles / (pool.threads() * 2)));
  std::atomic<bool> good{true};
  // A tile of this loop owns some rows of W, so some columns of dx, for the whole batch.
  parallel_for(pool, (tiles + slab - 1) / slab, [&](long i) {
    const long t0 = i * slab, t1 = std::min(tiles, t0 + slab);
    const long size = (t1 - t0) * w.tile_rows * width;
    float* outs = scratch().get<float>(kOuts, panels.count * size, kVectorBytes);
    std::memset(outs, 0, panels.count * size * sizeof(float));
    for (long c = 0; c < chunks; c++) {
      const long n0 = c * kTileColumns, n1 = std::min(w.n, n0 + kTileColumns);
      const int columns = (int)(n1 - n0);
      Chunk chunk;
      if (!w.prepare(n0, n1, t0, t1, &chunk)) {
        good = false;
        return;
      }
      long entries = 0;
      for (long t = 0; t < t1 - t0; t++)
        entries = std::accumulate(chunk.tiles[t].counts, chunk.tiles[t].counts + columns, entries);
      Flipped flipped[kSlabTiles];
      uint8_t* at = scratch().get<uint8_t>(kFlippedColumns, entries);
      float* weights = scratch().get<float>(kFlippedWeights, entries);
      for (long t = 0; t < t1 - t0; t++) {
        const long begin = chunk.tiles[t].begin;
        flip(chunk.tiles[t], columns, chunk.rows + begin, chunk.values + begin, w.tile_rows,
             &flipped[t], at + begin, weights + begin);
      }
      for (long p = 0; p < panels.count; p++) {
        const float* next = panels[p + 1 < panels.count ? p + 1 : p] + n0 * width;
        for (long t = 0; t < t1 - t0; t++) {
          const long begin = chunk.tiles[t].begin;
          const TileColumns tile{flipped[t].rows,   flipped[t].order, flipped[t].counts,
                                 flipped[t].counts, at + begin,       weights + begin};
          k.tile_dot(width, tile, panels[p] + n0 * width, next, columns * width,
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
    long at[kTileColumns];
    for (long t = 0; t < tiles; t++) {
      for (long m = 0; m == 0 || m < batch; m += kStep)
        k.outer(std::min(kStep, batch - m), w.tile_rows, kTileColumns,
                xs + (t * batch + m) * w.tile_rows, w.tile_rows, dys + m * kTileColumns,
                kTileColumns, c, m > 0);
      if (!w.sample(n0, n1, t, c, out, at)) good = false;
    }
  });
  return good;
}

}  // namespace jaxsparse
