// N:M products: few rows by the permuting kernel, many through tiles.

#include "tiles.h"

namespace jaxsparse {
namespace {

constexpr long kFewRows = 16;

struct NmTiles : Scattered {
  const NmWeights& w;
  explicit NmTiles(const NmWeights& w) : w(w) {
    k = w.k;
    n = w.n_columns;
    tile_rows = 64;
  }

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
    const long bytes = dtype_bytes(w.dtype);
    kernels().widen_transposed(
        w.dtype, static_cast<const char*>(w.values) + (r0 * n + n0) * bytes, n, count, columns,
        values, count);
    int base = 0, in_group = 0;
    for (int i = 0; i < count; i++) {
      const uint32_t* words = w.positions + (r0 + i) / per_word * n + n0;
      const int shift = bits * (int)((r0 + i) % per_word);
      for (int c = 0; c < columns; c++)
        rows[c * count + i] = (uint8_t)(base + ((words[c] >> shift) & mask));
      if (++in_group == w.n) in_group = 0, base += w.m;
    }
  }

  bool sample(long n0, long n1, long t, const float* c, float* out) const override {
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
  // Wide strips keep a stored row's cache lines together; whole lines keep writers apart.
  const long strip = std::max<long>(16, std::min<long>(128, n / (pool.threads() * 4) / 16 * 16));
  parallel_for(pool, (n + strip - 1) / strip, [&](long i) {
    k.nm_rows(w.dtype, w.n, w.m, (int)x.rows, w.groups(), n, i * strip,
              std::min(n, (i + 1) * strip), w.values, w.positions, in.at, depth, y, n);
  });
}

}  // namespace

void nm_dot(Pool& pool, const Matrix& x, const NmWeights& w, float* y) {
  if (x.rows <= kFewRows) return few_rows(pool, x, w, y);
  tiled_dot(pool, x, NmTiles(w), y);
}

void nm_dot_transposed(Pool& pool, const Matrix& dy, const NmWeights& w, float* dx) {
  tiled_dot_transposed(pool, dy, NmTiles(w), dx);
}

void nm_sampled(Pool& pool, const Matrix& x, const Matrix& dy, const NmWeights& w, float* out) {
  tiled_sampled(pool, x, dy, NmTiles(w), out);
}

}  // namespace jaxsparse
