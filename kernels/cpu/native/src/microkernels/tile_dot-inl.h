// The product of a tile of single weights: its rows of x stay in the first cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

constexpr int kTileVectors = 4;

// Panels of T vectors of L rows. CHAINS sums of a column hide the latency.
template <int L, int T>
KERNEL void tile_dot_of(const jaxsparse::TileColumns& tile, const float* panel, const float* next,
                        long next_floats, float* outs) {
  constexpr int WIDTH = T * L, CHAINS = T >= 4 ? 2 : 4;
  using V = typename VecOf<L>::F;
  const long share = tile.columns > 0 ? next_floats / tile.columns : 0;
  const uint8_t* rows = tile.rows;
  const float* from = tile.values;
  for (int i = 0; i < tile.columns; i++) {
    // What comes next is read in no order a prefetcher could guess.
    for (long f = 0; f < share; f += 16) __builtin_prefetch(next + i * share + f, 0, 2);
    float* out = outs + (long)tile.order[i] * WIDTH;
    V sum[CHAINS][T];
    UNROLL for (int t = 0; t < T; t++) {
      sum[0][t] = load<L>(out + t * L);
      UNROLL for (int u = 1; u < CHAINS; u++) sum[u][t] = V{};
    }
    const float* values = from;
    int left = tile.counts[i];
    for (; left >= 4; left -= 4, rows += 4, values += 4) {
      uint32_t four;
      memcpy(&four, rows, 4);
      UNROLL for (int u = 0; u < 4; u++) {
        long row = (four >> (8 * u) & 255) * WIDTH;
        OPAQUE(row);
        const float* x = panel + row;
        const V w = splat<L>(values[u]);
        UNROLL for (int t = 0; t < T; t++) sum[u % CHAINS][t] += w * load<L>(x + t * L);
      }
    }
    for (; left > 0; left--) {
      const float* x = panel + (long)*rows++ * WIDTH;
      OPAQUE(x);
      const V w = splat<L>(*values++);
      UNROLL for (int t = 0; t < T; t++) sum[0][t] += w * load<L>(x + t * L);
    }
    UNROLL for (int u = 1; u < CHAINS; u++)
      UNROLL for (int t = 0; t < T; t++) sum[0][t] += sum[u][t];
    UNROLL for (int t = 0; t < T; t++) store<L>(out + t * L, sum[0][t]);
    from += tile.steps[i];
  }
}

void tile_dot(int width, const jaxsparse::TileColumns& tile, const float* panel, const float* next,
              long next_floats, float* outs) {
#define WIDTH_CASE(L, T) \
  if (width == L * T) return tile_dot_of<L, T>(tile, panel, next, next_floats, outs);
#if LANES > 8
  WIDTH_CASE(8, 1)
#endif
  WIDTH_CASE(LANES, 1) WIDTH_CASE(LANES, 2) WIDTH_CASE(LANES, kTileVectors)
#undef WIDTH_CASE
}

}  // namespace
