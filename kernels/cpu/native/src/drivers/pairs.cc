// Sparse convolution, fetched on demand: a tile of outputs stays in the second cache while every
// tap adds to it, a tap's weights and the sums in registers in the first. What is multiplied is
// what the table names, so no pair costs more than its own multiplications.
//
// The outputs of a tile, in the order of their places, see nearly the same inputs.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "drivers/clouds.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

constexpr long kTileOutputs = 256;
// Floats of a tap's weights that are multiplied at a time: a third of the first cache.
constexpr long kWeightFloats = 4096;
// Sums of a gradient of weights that are taken apart, and the fewest outputs that each is of.
constexpr long kMostParts = 8, kPartOutputs = 4096;

// Columns cut into strips, as wide as the kernels' registers allow.
struct Strips {
  explicit Strips(long columns)
      : columns(columns), width((long)kernels().pair_vectors * kernels().lanes),
        count((columns + width - 1) / width) {}
  long begin(long s) const { return s * width; }
  long used(long s) const { return std::min(width, columns - s * width); }
  int vectors(long s) const { return (int)((used(s) + kernels().lanes - 1) / kernels().lanes); }
  long padded(long s) const { return (long)vectors(s) * kernels().lanes; }

  const long columns, width, count;
};

// Some columns of a row, zeros beyond them.
void copy_padded(const float* from, long used, long padded, float* to) {
  std::memcpy(to, from, used * sizeof(float));
  std::fill(to + used, to + padded, 0.f);
}

// The pairs of a tile's outputs, tap after tap.
class TileLists {
 public:
  explicit TileLists(const PairTable& table)
      : table_(table), from_(scratch().get<int32_t>(kRows, table.taps * kTileOutputs)),
        to_(scratch().get<uint16_t>(kTile, table.taps * kTileOutputs)),
        counts_(scratch().get<int>(kFlippedColumns, table.taps)) {}

  void list(long begin, long end) {
    const int32_t* rows = table_.order + begin;
    const int count = (int)(end - begin);
    for (long t = 0; t < table_.taps; t++) {
      const int32_t* at = table_.at + t * table_.outputs;
      int32_t* from = from_ + t * kTileOutputs;
      uint16_t* to = to_ + t * kTileOutputs;
      int found = 0;
      for (int i = 0; i < count; i++) {
        const int32_t row = at[rows[i]];
        from[found] = row;
        to[found] = (uint16_t)i;
        found += (uint64_t)(uint32_t)row < (uint64_t)table_.inputs;
      }
      counts_[t] = found;
    }
  }

  TapPairs operator[](long t) const {
    return {counts_[t], from_ + t * kTileOutputs, to_ + t * kTileOutputs};
  }

 private:
  const PairTable& table_;
  int32_t* from_;
  uint16_t* to_;
  int* counts_;
};

// w as strip after strip of (taps, depth, padded).
const float* packed_weights(Pool& pool, const float* w, long taps, long depth,
                            const Strips& strips) {
  const long rows = taps * depth;
  float* to = scratch().get<float>(kInput, rows * strips.count * strips.width);
  parallel_for(pool, strips.count * taps, [&](long i) {
    const long s = i / taps, t = i % taps, padded = strips.padded(s);
    float* strip = to + s * rows * strips.width;
    for (long r = t * depth; r < (t + 1) * depth; r++)
      copy_padded(w + r * strips.columns + strips.begin(s), strips.used(s), padded,
                  strip + r * padded);
  });
  return to;
}

}  // namespace

void pairs_product(Pool& pool, const Matrix& x, const float* w, long columns,
                   const PairTable& table, float* y) {
  const Kernels& k = kernels();
  const Strips strips(columns);
  const long depth = x.columns, rows = table.taps * depth;
  const float* packed = packed_weights(pool, w, table.taps, depth, strips);
  const long tiles = (table.outputs + kTileOutputs - 1) / kTileOutputs;
  parallel_for(pool, tiles, [&](long i) {
    const long begin = i * kTileOutputs, end = std::min(table.outputs, begin + kTileOutputs);
    TileLists lists(table);
    lists.list(begin, end);
    float* sums = scratch().get<float>(kOuts, kTileOutputs * strips.width);
    for (long s = 0; s < strips.count; s++) {
      const long padded = strips.padded(s), at_once = kWeightFloats / padded;
      const float* strip = packed + s * rows * strips.width;
      std::fill(sums, sums + (end - begin) * padded, 0.f);
      for (long t = 0; t < table.taps; t++)
        for (long d = 0; d < depth; d += at_once)
          k.pairs_dot(strips.vectors(s), lists[t], std::min(at_once, depth - d), x.at + d, depth,
                      strip + (t * depth + d) * padded, sums);
      for (long j = begin; j < end; j++)
        std::memcpy(y + table.order[j] * columns + strips.begin(s), sums + (j - begin) * padded,
                    strips.used(s) * sizeof(float));
    }
  });
}

void pairs_sampled(Pool& pool, const Matrix& x, const Matrix& g, const PairTable& table,
                   float* dw) {
  const Kernels& k = kernels();
  const Strips strips(g.columns);
  const long depth = x.columns, rows = table.taps * depth;
  // By the outputs alone, so that the order of a sum is the same on any number of threads.
  const long parts = std::max<long>(1, std::min(kMostParts, table.outputs / kPartOutputs));
  const long size = rows * strips.width;  // of a strip's sums
  float* all = scratch().get<float>(kInput, parts * strips.count * size);
  parallel_for(pool, parts * strips.count, [&](long i) {
    const long part = i / strips.count, s = i % strips.count, padded = strips.padded(s);
    float* sums = all + i * size;
    std::fill(sums, sums + rows * padded, 0.f);
    TileLists lists(table);
    float* tile = scratch().get<float>(kOuts, kTileOutputs * strips.width);
    const long last = table.outputs * (part + 1) / parts;
    for (long begin = table.outputs * part / parts; begin < last; begin += kTileOutputs) {
      const long end = std::min(last, begin + kTileOutputs);
      lists.list(begin, end);
      for (long j = begin; j < end; j++)
        copy_padded(g.at + table.order[j] * g.columns + strips.begin(s), strips.used(s), padded,
                    tile + (j - begin) * padded);
      for (long t = 0; t < table.taps; t++)
        k.pairs_outer(strips.vectors(s), lists[t], depth, x.at, depth, tile,
                      sums + t * depth * padded);
    }
  });
  parallel_for(pool, table.taps * strips.count, [&](long i) {
    const long t = i / strips.count, s = i % strips.count, padded = strips.padded(s);
    for (long r = t * depth; r < (t + 1) * depth; r++) {
      float* to = dw + r * g.columns + strips.begin(s);
      const float* from = all + s * size + r * padded;
      std::copy(from, from + strips.used(s), to);
      for (long part = 1; part < parts; part++) {
        from += strips.count * size;
        for (long c = 0; c < strips.used(s); c++) to[c] += from[c];
      }
    }
  });
}

}  // namespace jaxsparse
