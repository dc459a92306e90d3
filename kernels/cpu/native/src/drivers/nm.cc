// N:M products: few rows by the permuting kernel, many through tiles.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/products.h"
#include "drivers/scratch.h"
#include "drivers/tiles.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

// Beyond, a panel's worth of work is worth less than the panels' own cost.
constexpr long kFewRows = 40;

struct NmTiles : Scattered {
  const NmWeights& w;
  explicit NmTiles(const NmWeights& w) : Scattered{w.k, w.n_columns, 64}, w(w) {}

  int tile_entries() const { return tile_rows / w.m * w.n; }  // of one column of a whole tile
  long stored_rows() const { return w.groups() * w.n; }

  bool prepare(long n0, long n1, long t0, long t1, Chunk* out) const override {
    const int columns = (int)(n1 - n0), whole = tile_entries();
    *out = chunk_scratch(t1 - t0, (t1 - t0) * (long)whole * columns);
    for (long t = t0; t < t1; t++) {
      Tile& tile = out->tiles[t - t0];
      const long r0 = t * whole;
      const int count = (int)std::min<long>(whole, stored_rows() - r0);
      tile.begin = (t - t0) * (long)whole * columns;
      for (int c = 0; c < columns; c++) {
        tile.order[c] = (uint8_t)c;
        tile.counts[c] = (uint16_t)count;
      }
      fill(n0, columns, r0, count, out->rows + tile.begin, out->values + tile.begin);
    }
    return true;
  }

  // Entries of a column side by side, a row of the stored values at a time.
  void fill(long n0, int columns, long r0, int count, uint8_t* rows, float* values) const {
    const int per_word = w.per_word(), bits = w.bits();
    const uint32_t mask = (1u << bits) - 1;
    kernels().widen_transposed(w.dtype, from_value(w.values, w.dtype, r0 * n + n0), n, count,
                               columns, values, count);
    int base = 0, in_group = 0;
    for (int i = 0; i < count; i++) {
      const uint32_t* words = w.positions + (r0 + i) / per_word * n + n0;
      const int shift = bits * (int)((r0 + i) % per_word);
      for (int c = 0; c < columns; c++)
        rows[c * count + i] = (uint8_t)(base + ((words[c] >> shift) & mask));
      if (++in_group == w.n) in_group = 0, base += w.m;
    }
  }

  bool sample(long n0, long n1, long t, const float* c, float* out, long*) const override {
    const int per_word = w.per_word(), bits = w.bits(), whole = tile_entries();
    const uint32_t mask = (1u << bits) - 1;
    const long r0 = t * whole, r1 = std::min(stored_rows(), r0 + whole);
    int base = 0, in_group = 0;
    for (long r = r0; r < r1; r++) {
      const uint32_t* words = w.positions + r / per_word * n;
      const int shift = bits * (int)(r % per_word);
      for (long col = n0; col < n1; col++)
        out[r * n + col] = c[(base + (words[col] >> shift & mask)) * kTileColumns + (col - n0)];
      if (++in_group == w.n) in_group = 0, base += w.m;
    }
    return true;
  }

  bool empty(long, long) const override { return w.groups() == 0; }
};

void few_rows(Pool& pool, const Matrix& x, const NmWeights& w, float* y) {
  const Kernels& k = kernels();
  const long depth = w.groups() * w.m;
  Matrix in = x;
  if (depth != x.columns) {  // the last group reaches beyond x: read zeros there
    float* padded = scratch().get<float>(kInput, x.rows * depth);
    copy_columns(x, 0, (int)depth, padded);
    in = {padded, x.rows, depth};
  }
  const long n = w.n_columns;
  // A strip the kernel takes at once, or two: a helper wakes late and must find work left.
  const long even = n / pool.threads() / 16 * 16, fine = n / (pool.threads() * 8) / 128 * 128;
  const long strip = std::max<long>(16, std::max(std::min(128L, even), std::min(256L, fine)));
  parallel_for(pool, (n + strip - 1) / strip, [&](long i) {
    k.nm_rows(w.from(), {(int)x.rows, in.at, depth, y, n}, i * strip,
              std::min(n, (i + 1) * strip));
  });
}

// A tile is cut, used by every panel and forgotten: its weights stay in the first cache.
void many_rows(Pool& pool, const Matrix& x, const NmWeights& w, float* y) {
  const Kernels& k = kernels();
  // Rows of x in a tile: a panel's share of them is half the first cache, or all of it
  // where a column's turn would be over too soon. A small kernel has one tile, no larger
  // than it and a row of zeros need.
  const long usual = w.n * 3 > w.m ? 64 : 128, all = (w.groups() * w.m + 16) / 16 * 16;
  const int tile_rows = (int)std::min(usual, all);
  const int width = k.tile_vectors * k.lanes, whole = tile_rows / w.m * w.n;
  const auto quads_of = [](int entries) { return (entries + 3) / 4; };
  const long n = w.n_columns, stored = w.groups() * w.n, tiles = (stored + whole - 1) / whole;
  const Panels panels(pool, x, tiles * tile_rows, width);
  uint8_t base[kMostTileRows];  // n of m rows are kept: no more entries than rows
  for (int e = 0; e < whole; e++) base[e] = (uint8_t)(e / w.n * w.m);
  const long chunks = (n + kTileColumns - 1) / kTileColumns;
  const long together = panels_together(pool, panels.count, chunks);
  const long shares = (panels.count + together - 1) / together;
  parallel_for(pool, chunks * shares, [&](long i) {
    const long n0 = i / shares * kTileColumns;
    const long p0 = i % shares * together, p1 = std::min(panels.count, p0 + together);
    const int columns = (int)std::min<long>(kTileColumns, n - n0);
    NmGroups from = w.from();
    from.values = from_value(w.values, w.dtype, n0);
    from.positions += n0;
    const size_t most = (size_t)kTileColumns * quads_of(whole);
    float* values = scratch().get<float>(kWeights, 4 * most);
    uint32_t* rows = scratch().get<uint32_t>(kRows, most);
    const size_t size = (size_t)kTileColumns * width;
    float* outs = scratch().get<float>(kOuts, (p1 - p0) * size);
    std::memset(outs, 0, (p1 - p0) * size * sizeof(float));
    for (long t = 0; t < tiles; t++) {
      const int count = (int)std::min<long>(whole, stored - t * whole);
      const NmTile tile{t * whole,    count,         quads_of(count), w.bits(),
                        w.per_word(), tile_rows - 1, base};
      k.nm_quads(from, tile, columns, values, rows);
      for (long p = p0; p < p1; p++) {
        const float* next = p + 1 < p1 ? panels[p + 1] + t * tile_rows * width
                                       : panels[p0] + (t + 1) * tile_rows * width;
        k.quads_dot(columns, tile.quads, values, rows,
                    panels[p] + t * tile_rows * width, next, outs + (p - p0) * size);
      }
    }
    for (long p = p0; p < p1; p++)
      k.store_panel(outs + (p - p0) * size, columns, width, panels.rows(p),
                    y + p * width * n + n0, n);
  });
}

}  // namespace

const char* dot(Pool& pool, const Matrix& x, const NmWeights& w, float* y) {
  if (w.groups() == 0) std::fill(y, y + x.rows * w.n_columns, 0.f);  // no band begins the sums
  else if (x.rows <= kFewRows) few_rows(pool, x, w, y);
  else many_rows(pool, x, w, y);
  return nullptr;
}

const char* convolve(Pool& pool, const Image& x, const NmWeights& w, float* y) {
  tiled_convolve(pool, x, NmTiles(w), w.groups() * w.n * w.n_columns, y);
  return nullptr;
}

const char* dot_transposed(Pool& pool, const Matrix& dy, const NmWeights& w, float* dx) {
  tiled_dot_transposed(pool, dy, NmTiles(w), dx);
  return nullptr;
}

const char* sampled(Pool& pool, const Matrix& x, const Matrix& dy, const NmWeights& w, float* out) {
  tiled_sampled(pool, x, dy, NmTiles(w), out);
  return nullptr;
}

}  // namespace jaxsparse
