// Unstructured products from bitmaps.
#include <algorithm>
#include <atomic>
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

const char kBadBits[] = "a bitmap has other bits than its starts say, or bits below the kernel";

// A strip is multiplied in two parts where a panel's share of it leaves the first cache.
constexpr int kMostParts = 2;

// Strip s of chunk c: its bits and values.
struct StripChunk {
  int columns;
  const uint32_t* bits;
  const char* values;
  long begin, count;  // of the values

  StripChunk(const BitmapWeights& w, long s, long c)
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
  uint32_t beyond[8], outside = 0;
  for (int i = 0; i < w.words; i++) {
    const long kept = std::min<long>(32, std::max<long>(0, rows - 32 * i));
    beyond[i] = kept == 32 ? 0 : ~0u << kept;
  }
  const uint32_t* bits = w.bits + s * w.n * w.words;
  for (long n = 0; n < w.n; n++, bits += w.words)
    for (int i = 0; i < w.words; i++) outside |= bits[i] & beyond[i];
  return outside == 0;
}

// The row-wise kernel multiplies x by zeros, too.
bool finite(const Matrix& x) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t found = 0;
  for (long i = 0; i < x.rows * x.columns; i++) {
    uint32_t bits;
    std::memcpy(&bits, x.at + i, sizeof bits);
    found |= (bits & kExponent) == kExponent;
  }
  return found == 0;
}

bool rows_dot(Pool& pool, const Matrix& x, const BitmapWeights& w, float* y) {
  const Kernels& k = kernels();
  const long rows = x.rows, strips = w.strips(), chunks = w.chunks();
  const long ld = (w.k + kBitmapPlaces - 1) / kBitmapPlaces * kBitmapPlaces;
  const long bytes = dtype_bytes(w.dtype), column = rows * k.lanes;
  const float* xs = x.at;
  if (ld != x.columns) {  // the last places lie beyond x: read zeros there
    float* padded = scratch().get<float>(kInput, rows * ld);
    copy_columns(x, 0, (int)ld, padded);
    xs = padded;
  }
  const long together = std::max<long>(1, std::min<long>(8, chunks / (pool.threads() * 4)));
  std::atomic<bool> good{true};
  parallel_for(pool, (chunks + together - 1) / together, [&](long i) {
    const long c0 = i * together, c1 = std::min(chunks, c0 + together);
    const long n0 = c0 * kTileColumns, n1 = std::min(w.n, c1 * kTileColumns);
    float* sums = scratch().get<float>(kOuts, (n1 - n0) * column);
    std::fill(sums, sums + (n1 - n0) * column, 0.f);
    for (long s = 0; s < strips; s++) {
      // Of the last strip nothing below the last row.
      const int words = (int)std::min<long>(w.words, (w.k - s * w.strip() + 31) / 32);
      for (long c = c0; c < c1; c++) {
        const StripChunk here(w, s, c);
        const void* values = here.values;
        // The kernel would read past the end.
        if ((here.begin + here.count) * bytes + kVectorBytes > w.nnz * bytes) {
          const long size = here.count * bytes;
          values = std::memcpy(scratch().get<char>(kWeights, size, kVectorBytes), values, size);
        }
        const BitmapColumns from{here.columns, words,  w.words,   here.bits,
                                 w.dtype,      values, here.count};
        if (!k.bitmap_dot(from, (int)rows, xs + s * w.strip(), ld,
                          sums + (c * kTileColumns - n0) * column)) {
          good = false;
          return;
        }
      }
    }
    k.bitmap_sums((int)(n1 - n0), (int)rows, sums, y + n0, w.n);
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

// Cuts the strips of a chunk, each into as many tiles as `parts`.
class BitmapCutter {
 public:
  BitmapCutter(const BitmapWeights& w, int parts, long chunk)
      : w_(w),
        parts_(parts),
        chunk_(chunk),
        rows_(scratch().get<uint8_t>(kRows, parts * kEntries, kVectorBytes)),
        widened_(w.dtype == kF32 ? nullptr : scratch().get<float>(kWeights, kEntries)) {}

  bool cut(long t, TileColumns* tile, Soon* soon) {
    const long s = t / parts_;
    const int at = (int)(t % parts_);
    const StripChunk here(w_, s, chunk_);
    if (at == 0 && !decode(here)) return false;
    // From a column's values in this tile to the next column's.
    long before = 0;
    for (int p = 0; p < at; p++) before += counts_[p][0];
    for (int c = 0; c < here.columns; c++) {
      int step = 0;
      for (int p = 0; p < parts_; p++)
        step += p >= at ? counts_[p][c] : c + 1 < here.columns ? counts_[p][c + 1] : 0;
      steps_[c] = (uint16_t)step;
    }
    *tile = {here.columns, kInOrder.columns, counts_[at], steps_, rows_ + at * kEntries,
             values_ + before};
    if (at + 1 == parts_ && s + 1 < w_.strips()) {
      const StripChunk next(w_, s + 1, chunk_);
      *soon = {next.values, next.count * dtype_bytes(w_.dtype)};
    }
    return true;
  }
  bool done() const { return true; }

 private:
  static constexpr long kEntries = (long)kTileColumns * kMostTileRows;

  bool decode(const StripChunk& here) {
    const Kernels& k = kernels();
    const int words = w_.words / parts_;
    long found = 0;
    for (int p = 0; p < parts_; p++)
      found += k.bitmap_rows(here.columns, w_.words, words, here.bits + p * words, counts_[p],
                             rows_ + p * kEntries);
    if (found != here.count) return false;
    values_ = reinterpret_cast<const float*>(here.values);
    if (widened_) {
      k.widen(w_.dtype, here.values, here.count, widened_);
      values_ = widened_;
    }
    return true;
  }

  const BitmapWeights& w_;
  const int parts_;
  const long chunk_;
  uint8_t* rows_;
  float* widened_;
  const float* values_ = nullptr;
  uint16_t counts_[kMostParts][kTileColumns], steps_[kTileColumns];
};

struct BitmapTiles : Scattered {
  const BitmapWeights& w;

  explicit BitmapTiles(const BitmapWeights& w) : Scattered{w.k, w.n, (int)w.strip()}, w(w) {}

  bool prepare(long n0, long, long t0, long t1, Chunk* out) const override {
    const long chunk = n0 / kTileColumns;
    long entries = 0;
    for (long t = t0; t < t1; t++) entries += StripChunk(w, t, chunk).count;
    *out = chunk_scratch(t1 - t0, entries + kTileColumns * kMostTileRows);
    long written = 0;
    for (long t = t0; t < t1; t++) {
      const StripChunk here(w, t, chunk);
      Tile& tile = out->tiles[t - t0];
      tile.begin = written;
      std::copy(kInOrder.columns, kInOrder.columns + here.columns, tile.order);
      const long found = kernels().bitmap_rows(here.columns, w.words, w.words, here.bits,
                                               tile.counts, out->rows + written);
      if (found != here.count) return false;
      kernels().widen(w.dtype, here.values, here.count, out->values + written);
      written += here.count;
    }
    return true;
  }

  bool sample(long n0, long, long t, const float* c, float* out, long*) const override {
    const StripChunk here(w, t, n0 / kTileColumns);
    uint8_t* rows = scratch().get<uint8_t>(kRows, kTileColumns * kMostTileRows, kVectorBytes);
    uint16_t counts[kTileColumns];
    const long found =
        kernels().bitmap_rows(here.columns, w.words, w.words, here.bits, counts, rows);
    if (found != here.count) return false;
    out += here.begin;
    for (int column = 0; column < here.columns; column++)
      for (int left = counts[column]; left > 0; left--)
        *out++ = c[*rows++ * kTileColumns + column];
    return true;
  }

  // Bits are looked at, whatever the starts say.
  bool empty(long, long) const override { return false; }
};

}  // namespace

const char* dot(Pool& pool, const Matrix& x, const BitmapWeights& w, float* y) {
  if (!inside(w)) return kBadBits;
  const Kernels& k = kernels();
  if (x.rows == 0) return nullptr;
  if (k.bitmap_dot && x.rows <= kBitmapRows && finite(x))
    return rows_dot(pool, x, w, y) ? nullptr : kBadBits;
  const int width = tile_width(x.rows);
  const bool full = width == k.tile_vectors * k.lanes;
  const int parts = full && w.words == 8 ? kMostParts : 1;
  const auto begin = [&](long n0, long) { return BitmapCutter(w, parts, n0 / kTileColumns); };
  const bool good = tiled_dot(pool, x, width, w.n, (int)w.strip() / parts, begin, y);
  return good ? nullptr : kBadBits;
}

const char* convolve(Pool& pool, const Image& x, const BitmapWeights& w, float* y) {
  if (!inside(w)) return kBadBits;
  return tiled_convolve(pool, x, BitmapTiles(w), w.nnz, y) ? nullptr : kBadBits;
}

const char* dot_transposed(Pool& pool, const Matrix& dy, const BitmapWeights& w, float* dx) {
  if (!inside(w)) return kBadBits;
  return tiled_dot_transposed(pool, dy, BitmapTiles(w), dx) ? nullptr : kBadBits;
}

const char* sampled(Pool& pool, const Matrix& x, const Matrix& dy, const BitmapWeights& w,
                    float* out) {
  std::fill(out, out + w.nnz, 0.f);  // room to spare
  if (!inside(w)) return kBadBits;
  return tiled_sampled(pool, x, dy, BitmapTiles(w), out) ? nullptr : kBadBits;
}

}  // namespace jaxsparse
