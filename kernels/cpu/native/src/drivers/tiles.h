// Scattered weights (CSC, bitmaps, N:M) cut into tiles of tile_rows x kTileColumns, the form in
// which the tile kernels read them. Tiles are made on the fly, a chunk of columns at a
// time, and serve every panel of the batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/patches.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {

struct Tile {
  uint8_t order[kTileColumns];    // of columns; best fullest first: the loops' lengths repeat
  uint16_t counts[kTileColumns];  // in that order
  long begin;                     // of its entries
};

// Tiles [t0, t1) of up to kTileColumns columns.
struct Chunk {
  Tile* tiles;
  uint8_t* rows;
  float* values;
};

// With what csc_copy and bitmap_rows write past the last entry.
inline Chunk chunk_scratch(long tiles, long entries) {
  return {scratch().get<Tile>(kTile, tiles), scratch().get<uint8_t>(kRows, entries, kVectorBytes),
          scratch().get<float>(kWeights, entries, kVectorBytes)};
}

// Panels that share what is cut of a chunk of columns: as many as hold their sums in
// cache, fewer where threads would go idle, as with the few columns of a convolution.
inline long panels_together(const Pool& pool, long panels, long chunks) {
  return std::max<long>(1, std::min<long>(16, panels * chunks / (4L * pool.threads())));
}

// Rows of a panel: no more vectors of them than a batch fills.
inline int tile_width(long batch) {
  const Kernels& k = kernels();
  if (k.lanes == 16 && batch <= 8) return 8;
  if (batch <= k.lanes) return k.lanes;
  return batch <= 2 * k.lanes ? 2 * k.lanes : k.tile_vectors * k.lanes;
}

// Columns, or rows, up to 256 by falling count; equal counts keep their order. A sum that
// leaves the byte is where a class would begin that has no members.
inline void order_by_count(const uint16_t* counts, int columns, uint8_t* order,
                           uint16_t* ordered) {
  int most = 0;
  for (int c = 0; c < columns; c++) most = std::max<int>(most, counts[c]);
  uint8_t begins[kMostTileRows + 2] = {};
  for (int c = 0; c < columns; c++) begins[most - counts[c] + 1]++;
  for (int i = 1; i <= most; i++) begins[i] += begins[i - 1];
  for (int c = 0; c < columns; c++) {
    const int at = begins[most - counts[c]]++;
    order[at] = (uint8_t)c;
    ordered[at] = counts[c];
  }
}

// A kind of scattered weights. `prepare` cuts tiles [t0, t1) of columns [n0, n1) and
// returns false where an index is out of order or out of range.
struct Scattered {
  const long k, n;
  const int tile_rows;
  Scattered(long k, long n, int tile_rows) : k(k), n(n), tile_rows(tile_rows) {}
  virtual ~Scattered() = default;
  virtual bool prepare(long n0, long n1, long t0, long t1, Chunk* chunk) const = 0;
  // out[entry] = c[row within tile t][column], for the entries of columns [n0, n1). Called for
  // one tile after another; `at` keeps a number for every column from one to the next.
  virtual bool sample(long n0, long n1, long t, const float* c, float* out, long* at) const = 0;
  virtual bool empty(long n0, long n1) const = 0;
  long tiles() const { return (k + tile_rows - 1) / tile_rows; }
};

// What will be read soon, and how much of it.
struct Soon {
  const void* at = nullptr;
  long bytes = 0;
};

// y = x @ W by tiles of tile_rows rows. begin(n0, n1) returns what cuts the tiles of some
// columns, from the top down: cut(t, &tile, &soon) gives tile t, and perhaps what the next one
// will read; done() follows the last. Both are false where an index is at fault.
template <class Begin>
bool tiled_dot(Pool& pool, const Matrix& x, int width, long n, int tile_rows, const Begin& begin,
               float* y) {
  const Kernels& k = kernels();
  const long tiles = (x.columns + tile_rows - 1) / tile_rows, part = (long)tile_rows * width;
  const long chunks = (n + kTileColumns - 1) / kTileColumns;
  const Panels panels(pool, x, tiles * tile_rows, width);
  const long together = panels_together(pool, panels.count, chunks);
  const long shares = (panels.count + together - 1) / together;
  std::atomic<bool> good{true};
  parallel_for(pool, chunks * shares, [&](long i) {
    const long n0 = i / shares * kTileColumns, n1 = std::min(n, n0 + kTileColumns);
    const long p0 = i % shares * together, p1 = std::min(panels.count, p0 + together);
    const size_t size = (size_t)kTileColumns * width;
    float* outs = scratch().get<float>(kOuts, (p1 - p0) * size, kVectorBytes);
    std::fill(outs, outs + (p1 - p0) * size, 0.f);
    auto cutter = begin(n0, n1);
    bool fine = true;
    for (long t = 0; t < tiles && fine; t++) {
      TileColumns tile;
      Soon soon;
      fine = cutter.cut(t, &tile, &soon);
      for (long p = p0; p < p1 && fine; p++) {
        const bool last = p + 1 == p1;
        const float* next = panels[last ? p0 : p + 1] + (t + last) * part;
        const bool weights = last && soon.at;
        k.tile_dot(width, tile, panels[p] + t * part,
                   weights ? static_cast<const float*>(soon.at) : next,
                   weights ? soon.bytes / (long)sizeof(float) : part, outs + (p - p0) * size);
      }
    }
    if (!fine || !cutter.done()) good = false;
    for (long p = p0; p < p1; p++)
      k.store_panel(outs + (p - p0) * size, (int)(n1 - n0), width, panels.rows(p),
                    y + p * width * n + n0, n);
  });
  return good;
}

bool tiled_dot_transposed(Pool& pool, const Matrix& dy, const Scattered& w, float* dx);
bool tiled_sampled(Pool& pool, const Matrix& x, const Matrix& dy, const Scattered& w, float* out);
// `entries`: how many there are at most, of all tiles together.
bool tiled_convolve(Pool& pool, const Image& x, const Scattered& w, long entries, float* y);

}  // namespace jaxsparse
