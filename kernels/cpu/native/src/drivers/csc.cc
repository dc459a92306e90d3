// Unstructured products from CSC.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/products.h"
#include "drivers/scratch.h"
#include "drivers/tiles.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

const char kBadRow[] = "a row index is outside the kernel, or rows do not ascend in their column";

// A batch of few rows, or one that the second cache holds, is multiplied straight from CSC;
// any other in tiles, whose part of x stays in the first cache.
constexpr long kPlainRows = 32, kPlainBytes = 1 << 20;
// A group is checked, then multiplied: few enough entries for their rows to stay in the
// first cache between, unless several panels share them.
constexpr long kGroupEntries = 4 * 1024, kSharedEntries = 32 * 1024;
constexpr long kSideBySide = 8;  // columns that the kernels take together

double density_of(const CscWeights& w) {
  return w.indptr[w.n] / std::max(1.0, (double)w.k * w.n);
}

// The next entries of a few columns, those of kMostTileRows rows, to rows and values.
// `at` says where a column goes on, `end` where it ends. False where rows are out of order.
bool cut_tile(const CscWeights& w, int columns, long low, long* at, const long* end, Tile* tile,
              uint8_t* rows, float* values) {
  const Kernels& k = kernels();
  const long high = std::min(w.k, low + kMostTileRows);
  const long bytes = dtype_bytes(w.dtype), row_bytes = w.wide_index ? 4 : 2;
  const long usual = (long)(kMostTileRows * density_of(w));
  uint16_t counts[kTileColumns];
  k.csc_cut(w.entries(), columns, high, at, end, counts);
  for (int c = 0; c < columns; c++) {
    // A column goes on where it ends here; the columns lie far apart.
    const long p = at[c] + counts[c];
    const char* v = static_cast<const char*>(w.values) + p * bytes;
    const char* r = static_cast<const char*>(w.indices) + p * row_bytes;
    for (long b = 0; b <= usual * bytes; b += 64) __builtin_prefetch(v + b, 0, 2);
    for (long b = 0; b <= usual * row_bytes; b += 64) __builtin_prefetch(r + b, 0, 2);
  }
  order_by_count(counts, columns, tile->order, tile->counts);
  const bool good =
      k.csc_copy(w.entries(), columns, tile->order, tile->counts, at, low, rows, values);
  for (int c = 0; c < columns; c++) at[c] += counts[c];
  return good;
}

template <class Row>
struct CscTiles : Scattered {
  const CscWeights& w;
  const Row* index;

  explicit CscTiles(const CscWeights& w)
      : Scattered{w.k, w.n, kMostTileRows}, w(w), index(static_cast<const Row*>(w.indices)) {}

  // Column c's first entry of tile t, were the column sorted. What is out of range belongs
  // to the first tile or the last, where it is found out.
  long find(long c, long t) const {
    if (t == 0) return w.indptr[c];
    if (t == tiles()) return w.indptr[c + 1];
    return std::lower_bound(index + w.indptr[c], index + w.indptr[c + 1], t * tile_rows,
                            [](Row a, long b) { return (long)a < b; }) - index;
  }

  bool prepare(long n0, long n1, long t0, long t1, Chunk* out) const override {
    const int columns = (int)(n1 - n0);
    long at[kTileColumns], end[kTileColumns], entries = 0;
    for (int c = 0; c < columns; c++) {
      at[c] = find(n0 + c, t0);
      end[c] = find(n0 + c, t1);
      if (at[c] > end[c]) return false;
      entries += end[c] - at[c];
    }
    *out = chunk_scratch(t1 - t0, entries);
    long written = 0;
    for (long t = t0; t < t1; t++) {
      Tile& tile = out->tiles[t - t0];
      tile.begin = written;
      const long low = t * tile_rows;
      if (!cut_tile(w, columns, low, at, end, &tile, out->rows + written, out->values + written))
        return false;
      for (int c = 0; c < columns; c++) written += tile.counts[c];
    }
    return std::equal(at, at + columns, end);
  }

  bool sample(long n0, long n1, long t, const float* c, float* out, long* at) const override {
    const long low = t * tile_rows, high = std::min(k, low + tile_rows);
    if (t == 0) std::copy(w.indptr + n0, w.indptr + n1, at);
    for (long n = n0; n < n1; n++) {
      const long end = w.indptr[n + 1];
      long last = low - 1, p = at[n - n0];
      for (long row; p < end && (row = (long)index[p]) < high; p++) {
        if (row <= last) return false;
        out[p] = c[(row - low) * kTileColumns + (n - n0)];
        last = row;
      }
      at[n - n0] = p;
    }
    // What is left over lies below the last row.
    return t + 1 < tiles() || std::equal(at, at + (n1 - n0), w.indptr + n0 + 1);
  }

  bool empty(long n0, long n1) const override { return w.indptr[n0] == w.indptr[n1]; }
};

// Whether the rows of columns [n0, n1) ascend to the last one: then a row may only be below the
// one before where a column begins, and no column's last is beyond the kernel.
template <class Row>
bool rows_ascend(const CscWeights& w, const Row* index, long n0, long n1) {
  const long p0 = w.indptr[n0], p1 = w.indptr[n1];
  long expected = 0;
  for (long n = n0; n < n1; n++) {
    const long begin = w.indptr[n], end = w.indptr[n + 1];
    if (begin == end) continue;
    if ((uint64_t)(uint32_t)index[end - 1] >= (uint64_t)w.k) return false;
    expected += begin > p0 && (uint32_t)index[begin] <= (uint32_t)index[begin - 1];
  }
  return kernels().descents(w.wide_index, index + p0, p1 - p0) == expected;
}

bool rows_ascend(const CscWeights& w, long n0, long n1) {
  return w.wide_index ? rows_ascend(w, static_cast<const int32_t*>(w.indices), n0, n1)
                      : rows_ascend(w, static_cast<const uint16_t*>(w.indices), n0, n1);
}

// Cuts the tiles of columns [n0, n1) one after another.
class CscCutter {
 public:
  CscCutter(const CscWeights& w, long n0, long n1)
      : w_(w),
        columns_((int)(n1 - n0)),
        chunk_(chunk_scratch(1, (long)kTileColumns * kMostTileRows)) {
    std::copy(w.indptr + n0, w.indptr + n1, at_);
    std::copy(w.indptr + n0 + 1, w.indptr + n1 + 1, end_);
  }

  bool cut(long t, TileColumns* tile, Soon*) {
    Tile& cut = *chunk_.tiles;
    *tile = {columns_, cut.order, cut.counts, cut.counts, chunk_.rows, chunk_.values};
    return cut_tile(w_, columns_, t * kMostTileRows, at_, end_, &cut, chunk_.rows, chunk_.values);
  }
  // Rows out of order are left over.
  bool done() const { return std::equal(at_, at_ + columns_, end_); }

 private:
  const CscWeights& w_;
  const int columns_;
  Chunk chunk_;
  long at_[kTileColumns], end_[kTileColumns];
};

// Narrow widths waste no lanes on a handful of rows.
int plain_width(long batch, int lanes) {
  if (batch == 1) return 1;
  if (batch <= 4) return 4;
  if (batch <= 8) return 8;
  return (int)std::min<long>((batch + lanes - 1) / lanes, 2) * lanes;
}

bool plain_dot(Pool& pool, const Matrix& x, const CscWeights& w, int width, float* y) {
  const Kernels& k = kernels();
  std::optional<Panels> panels;  // one row needs no packing
  if (width > 1) panels.emplace(pool, x, w.k, width);
  std::vector<long> begins;
  const long most = x.rows <= width ? kGroupEntries : kSharedEntries;
  const long limit =
      std::max<long>(1024, std::min<long>(most, w.indptr[w.n] / (pool.threads() * 8) + 1));
  const auto first = [&](long set) { return std::min(w.n, set * kSideBySide); };
  cut_by_cost((w.n + kSideBySide - 1) / kSideBySide, limit, [&](long set) {
    return (long)w.indptr[first(set + 1)] - w.indptr[first(set)] + 64;
  }, begins);
  std::atomic<bool> good{true};
  parallel_for(pool, (long)begins.size() - 1, [&](long g) {
    const long n0 = first(begins[g]), n1 = first(begins[g + 1]);
    if (!rows_ascend(w, n0, n1)) {
      good = false;
      return;
    }
    if (!panels) {
      k.csc_panel(w.entries(), 1, n0, n1, w.indptr, x.at, y + n0);
      return;
    }
    for (long p = 0; p < panels->count; p++) {
      for (long n = n0; n < n1; n += kTileColumns) {
        const long stop = std::min(n1, n + kTileColumns);
        float* outs = scratch().get<float>(kOuts, (size_t)kTileColumns * width, kVectorBytes);
        k.csc_panel(w.entries(), width, n, stop, w.indptr, (*panels)[p], outs);
        k.store_panel(outs, (int)(stop - n), width, panels->rows(p), y + p * width * w.n + n, w.n);
      }
    }
  });
  return good;
}

template <class F>
const char* with_tiles(const CscWeights& w, const F& product) {
  const bool good = w.wide_index ? product(CscTiles<int32_t>(w)) : product(CscTiles<uint16_t>(w));
  return good ? nullptr : kBadRow;
}

}  // namespace

const char* dot(Pool& pool, const Matrix& x, const CscWeights& w, float* y) {
  const int lanes = kernels().lanes, width = plain_width(x.rows, lanes);
  if (x.rows <= kPlainRows || x.rows * w.k * (long)sizeof(float) <= kPlainBytes)
    return plain_dot(pool, x, w, width, y) ? nullptr : kBadRow;
  const auto begin = [&](long n0, long n1) { return CscCutter(w, n0, n1); };
  const int full = kernels().tile_vectors * lanes;
  const bool good = tiled_dot(pool, x, full, w.n, kMostTileRows, begin, y);
  return good ? nullptr : kBadRow;
}

const char* convolve(Pool& pool, const Image& x, const CscWeights& w, float* y) {
  return with_tiles(w, [&](const Scattered& tiles) {
    return tiled_convolve(pool, x, tiles, w.indptr[w.n], y);
  });
}

const char* dot_transposed(Pool& pool, const Matrix& dy, const CscWeights& w, float* dx) {
  if (dy.rows <= kScatterRows) return scatter_transposed(pool, dy, w, dx) ? nullptr : kBadRow;
  return with_tiles(
      w, [&](const Scattered& tiles) { return tiled_dot_transposed(pool, dy, tiles, dx); });
}

const char* sampled(Pool& pool, const Matrix& x, const Matrix& dy, const CscWeights& w,
                    float* out) {
  // Room to spare stays zero.
  std::fill(out, out + w.nnz, 0.f);
  return with_tiles(
      w, [&](const Scattered& tiles) { return tiled_sampled(pool, x, dy, tiles, out); });
}

}  // namespace jaxsparse
