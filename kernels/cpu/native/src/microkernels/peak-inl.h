// What a machine can do at most: sums that keep every multiplier busy, and plain reading.
#pragma once

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

// rounds * fma_flops operations; the result keeps them from being left out.
KERNEL float fma_rounds(long rounds, float scale, float add) {
  constexpr int CHAINS = jaxsparse::kFmaChains;  // more than an addition takes cycles
  const Vec a = splat(scale), b = splat(add);
  Vec sum[CHAINS];
  UNROLL for (int c = 0; c < CHAINS; c++) sum[c] = splat((float)c);
  for (long r = 0; r < rounds; r++) {
    UNROLL for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * a + b;
  }
  UNROLL for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
  float all = 0;
  for (int i = 0; i < LANES; i++) all += sum[0][i];
  return all;
}

KERNEL float read_all(const float* from, long count) {
  constexpr int CHAINS = 8;
  Vec sum[CHAINS] = {};
  long i = 0;
  for (; i + CHAINS * LANES <= count; i += CHAINS * LANES) {
    for (int f = 0; f < CHAINS * LANES; f += 16) __builtin_prefetch(from + i + f + 1024, 0, 3);
    UNROLL for (int c = 0; c < CHAINS; c++) sum[c] += load(from + i + c * LANES);
  }
  UNROLL for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
  float all = 0;
  for (int l = 0; l < LANES; l++) all += sum[0][l];
  for (; i < count; i++) all += from[i];
  return all;
}

}  // namespace
