// Unstructured products from bitmaps.
#include <cstring>

#include "tiles.h"

namespace jaxsparse {
namespace {

const char kBadBits[] = "a bitmap has other bits than its starts say, or bits below the kernel";

// Half a strip at a time where a panel's share of a whole one leaves the first cache and weights
// lie close enough to find enough of them in a half.
constexpr double kHalvingDensity = 0.3;

double density_of(const BitmapWeights& w) {
  return w.starts[w.strips() * w.chunks()] / std::max(1.0, (double)w.k * w.n);
}

// Strip s of chunk c: its bits and values.
struct Part {
  int columns;
  const uint32_t* bits;
  const char* values;
  long begin, count;  // of the values

  Part(const BitmapWeights& w, long s, long c)
      : columns((int)std::min<long>(kTileColumns, w.n - c * kTileColumns)),
        bits(w.bits + (s * w.n + c * kTileColumns) * w.words),
        values(static_cast<const char*>(w.values) +
               w.starts[s * w.chunks() + c] * dtype_bytes(w.dtype)),
        begin(w.starts[s * w.chunks() + c]),
        count(w.starts[s * w.chunks() + c + 1] - begin) {}
};

// Whether the bits below row k are all zero: only they could name rows that are not there.
bool inside(const BitmapWeights& w) {
  const long s = w.strips() - 1, rows = w.k - s * w.strip();
  uint32_t outside = 0;
  for (int i = 0; i < w.words; i++) {
    const long kept = std::min<long>(32, std::max<long>(0, rows - 32 * i));
    const uint32_t beyond = kept == 32 ? 0 : ~0u << kept;
    for (long n = 0; beyond && n < w.n; n++) outside |= w.bits[(s * w.n + n) * w.words + i] & beyond;
  }
  return outside == 0;
}

bool rows_dot(Pool& pool, const Matrix& x, const BitmapWeights& w, float* y) {
  const Kernels& k = kernels();
  const long rows = x.rows, strips = w.strips(), chunks = w.chunks(), ld = strips * w.strip();
  float* xs = scratch().get<float>(kInput, rows * ld);
  copy_columns(x, 0, (int)ld, xs);
  const long together = std::max<long>(1, std::min<long>(8, chunks / (pool.threads() * 4)));
  std::atomic<bool> good{true};
  parallel_for(pool, (chunks + together - 1) / together, [&](long i) {
    const long c0 = i * together, c1 = std::min(chunks, c0 + together);
    const long n0 = c0 * kTileColumns, n1 = std::min(w.n, c1 * kTileColumns);
    float* sums = scratch().get<float>(kOuts, (n1 - n0) * rows);
    std::fill(sums, sums + (n1 - n0) * rows, 0.f);
    for (long s = 0; s < strips; s++) {
      for (long c = c0; c < c1; c++) {
        const Part part(w, s, c);
        const void* values = part.values;
        if (part.begin + part.count + 16 > w.nnz) {  // the kernel would read past the end
          const long bytes = part.count * dtype_bytes(w.dtype);
          values = std::memcpy(scratch().get<char>(kWeights, bytes), values, bytes);
        }
        if (!k.bitmap_dot(w.dtype, (int)rows, part.columns, w.words, part.bits, values, part.count,
                          xs + s * w.strip(), ld, sums + (c * kTileColumns - n0) * rows)) {
          good = false;
          return;
        }
      }
    }
    for (long m = 0; m < rows; m++)
      for (long n = n0; n < n1; n++) y[m * w.n + n] = sums[(n - n0) * rows + m];
  });
  return good;
}

struct InOrder {
  uint8_t columns[kTileColumns];
  constexpr InOrder() : columns() {
    for (int c = 0; c < kTileColumns; c++) columns[c] = (uint8_t)c;
  }
};
constexpr InOrder kInOrder;

class BitmapCutter {
 public:
  BitmapCutter(const BitmapWeights& w, int halves, long chunk)
      : w_(w),
        halves_(halves),
        chunk_(chunk),
        rows_(scratch().get<uint8_t>(kRows, 2 * kTileColumns * kMostTileRows)),
        widened_(w.dtype == kF32 ? nullptr
                                 : scratch().get<float>(kWeights, kTileColumns * kMostTileRows)) {}

  bool cut(long t, TileColumns* tile, Soon* soon) {
    const Kernels& k = kernels();
    const long s = t / halves_;
    const Part part(w_, s, chunk_);
    const int half = (int)(t % halves_);
    if (half == 0) {
      const int words = w_.words / halves_;
      long found = 0;
      for (int h = 0; h < halves_; h++)
        found += k.bitmap_rows(part.columns, w_.words, words, part.bits + h * words, counts_[h],
                               rows_ + h * kTileColumns * kMostTileRows);
      if (found != part.count) return false;
      values_ = reinterpret_cast<const float*>(part.values);
      if (widened_) {
        k.widen(w_.dtype, part.values, part.count, widened_);
        values_ = widened_;
      }
    }
    // From a column's values in this half to the next column's.
    for (int c = 0; c < part.columns; c++) {
      if (halves_ == 1) steps_[c] = counts_[0][c];
      else if (half == 0) steps_[c] = counts_[0][c] + counts_[1][c];
      else steps_[c] = counts_[1][c] + (c + 1 < part.columns ? counts_[0][c + 1] : 0);
    }
    *tile = {part.columns, kInOrder.columns, counts_[half], steps_,
             rows_ + half * kTileColumns * kMostTileRows, values_ + (half ? counts_[0][0] : 0)};
    if (half + 1 == halves_ && s + 1 < w_.strips()) {
      const Part next(w_, s + 1, chunk_);
      *soon = {next.values, next.count * dtype_bytes(w_.dtype)};
    }
    return true;
  }
  bool done() const { return true; }

 private:
  const BitmapWeights& w_;
  const int halves_;
  const long chunk_;
  uint8_t* rows_;
  float* widened_;
  const float* values_ = nullptr;
  uint16_t counts_[2][kTileColumns], steps_[kTileColumns];
};

struct BitmapTiles : Scattered {
  const BitmapWeights& w;

  explicit BitmapTiles(const BitmapWeights& w) : w(w) {
    k = w.k;
    n = w.n;
    tile_rows = (int)w.strip();
  }

  bool prepare(long n0, long, long t0, long t1, Chunk* out) const override {
    const long chunk = n0 / kTileColumns;
    long entries = 0;
    for (long t = t0; t < t1; t++) entries += Part(w, t, chunk).count;
    *out = chunk_scratch(t1 - t0, entries + kTileColumns * kMostTileRows);
    long written = 0;
    for (long t = t0; t < t1; t++) {
      const Part part(w, t, chunk);
      Tile& tile = out->tiles[t - t0];
      tile.begin = written;
      std::copy(kInOrder.columns, kInOrder.columns + part.columns, tile.order);
      const long found = kernels().bitmap_rows(part.columns, w.words, w.words, part.bits,
                                               tile.counts, out->rows + written);
      if (found != part.count) return false;
      kernels().widen(w.dtype, part.values, part.count, out->values + written);
      written += part.count;
    }
    return true;
  }

  bool sample(long n0, long, long t, const float* c, float* out) const override {
    const Part part(w, t, n0 / kTileColumns);
    uint8_t* rows = scratch().get<uint8_t>(kRows, kTileColumns * kMostTileRows);
    uint16_t counts[kTileColumns];
    const long found =
        kernels().bitmap_rows(part.columns, w.words, w.words, part.bits, counts, rows);
    if (found != part.count) return false;
    out += part.begin;
    for (int column = 0; column < part.columns; column++)
      for (int left = counts[column]; left > 0; left--)
        *out++ = c[*rows++ * kTileColumns + column];
    return true;
  }

  bool empty(long n0, long) const override {
    const long chunk = n0 / kTileColumns;
    for (long s = 0; s < w.strips(); s++)
      if (Part(w, s, chunk).count > 0) return false;
    return true;
  }
};

}  // namespace

const char* bitmap_dot(Pool& pool, const Matrix& x, const BitmapWeights& w, float* y) {
  if (!inside(w)) return kBadBits;
  const Kernels& k = kernels();
  if (x.rows == 0) return nullptr;
  if (k.bitmap_dot && x.rows <= kBitmapRows) return rows_dot(pool, x, w, y) ? nullptr : kBadBits;
  const int width = tile_width(x.rows);
  const bool full = width == k.tile_vectors * k.lanes;
  const int halves = full && w.words == 8 && density_of(w) > kHalvingDensity ? 2 : 1;
  const auto begin = [&](long n0, long) { return BitmapCutter(w, halves, n0 / kTileColumns); };
  const bool good = tiled_dot(pool, x, width, w.n, (int)w.strip() / halves, begin, y);
  return good ? nullptr : kBadBits;
}

const char* bitmap_dot_transposed(Pool& pool, const Matrix& dy, const BitmapWeights& w, float* dx) {
  if (!inside(w)) return kBadBits;
  return tiled_dot_transposed(pool, dy, BitmapTiles(w), dx) ? nullptr : kBadBits;
}

const char* bitmap_sampled(Pool& pool, const Matrix& x, const Matrix& dy, const BitmapWeights& w,
                           float* out) {
  std::fill(out, out + w.nnz, 0.f);  // room to spare
  if (!inside(w)) return kBadBits;
  return tiled_sampled(pool, x, dy, BitmapTiles(w), out) ? nullptr : kBadBits;
}

}  // namespace jaxsparse
