// Sparse convolution: a row of x for every row of sums that a tap joins it with.
#pragma once

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

// As many sums as registers hold beside a row of weights; six pointers to rows of x fit what an
// x86 has for addresses.
constexpr int kPairRows = 6;
constexpr int kPairVectors = LANES == 16 ? 4 : 2;

template <int ROWS, int NV>
KERNEL void pairs_dot_of(const int32_t* from, const uint16_t* to, long depth, const float* x,
                         long ld, const float* w, float* sums) {
  const float* rows[ROWS];
  Vec sum[ROWS][NV];
  UNROLL for (int r = 0; r < ROWS; r++) {
    rows[r] = x + from[r] * ld;
    UNROLL for (int v = 0; v < NV; v++) sum[r][v] = load(sums + (to[r] * NV + v) * LANES);
  }
  for (long k = 0; k < depth; k++, w += NV * LANES) {
    Vec wv[NV];
    UNROLL for (int v = 0; v < NV; v++) wv[v] = load(w + v * LANES);
    UNROLL for (int r = 0; r < ROWS; r++) {
      const Vec xv = splat(rows[r][k]);
      UNROLL for (int v = 0; v < NV; v++) sum[r][v] += xv * wv[v];
    }
  }
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) store(sums + (to[r] * NV + v) * LANES, sum[r][v]);
}

template <int NV>
void pairs_dot_strip(const jaxsparse::TapPairs& pairs, long depth, const float* x, long ld,
                     const float* w, float* sums) {
  const int32_t* from = pairs.from;
  const uint16_t* to = pairs.to;
  int left = pairs.count;
  for (; left >= kPairRows; left -= kPairRows, from += kPairRows, to += kPairRows) {
    // Rows lie where no prefetcher would look for them.
    const int soon = left - kPairRows < kPairRows ? left - kPairRows : kPairRows;
    for (int r = 0; r < soon; r++)
      for (long k = 0; k < depth; k += 16)
        __builtin_prefetch(x + from[kPairRows + r] * ld + k, 0, 3);
    pairs_dot_of<kPairRows, NV>(from, to, depth, x, ld, w, sums);
  }
  switch (left) {
    case 5: return pairs_dot_of<5, NV>(from, to, depth, x, ld, w, sums);
    case 4: return pairs_dot_of<4, NV>(from, to, depth, x, ld, w, sums);
    case 3: return pairs_dot_of<3, NV>(from, to, depth, x, ld, w, sums);
    case 2: return pairs_dot_of<2, NV>(from, to, depth, x, ld, w, sums);
    case 1: return pairs_dot_of<1, NV>(from, to, depth, x, ld, w, sums);
  }
}

template <int ROWS, int NV>
KERNEL void pairs_outer_of(const jaxsparse::TapPairs& pairs, const float* x, long ld,
                           const float* g, float* c) {
  Vec sum[ROWS][NV];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) sum[r][v] = load(c + (r * NV + v) * LANES);
  for (int i = 0; i < pairs.count; i++) {
    const float* row = x + pairs.from[i] * ld;
    const float* other = g + pairs.to[i] * NV * LANES;
    Vec gv[NV];
    UNROLL for (int v = 0; v < NV; v++) gv[v] = load(other + v * LANES);
    UNROLL for (int r = 0; r < ROWS; r++) {
      const Vec xv = splat(row[r]);
      UNROLL for (int v = 0; v < NV; v++) sum[r][v] += xv * gv[v];
    }
  }
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) store(c + (r * NV + v) * LANES, sum[r][v]);
}

template <int NV>
void pairs_outer_strip(const jaxsparse::TapPairs& pairs, long rows, const float* x, long ld,
                       const float* g, float* c) {
  constexpr int kStep = kPairRows * NV * LANES;
  for (; rows >= kPairRows; rows -= kPairRows, x += kPairRows, c += kStep)
    pairs_outer_of<kPairRows, NV>(pairs, x, ld, g, c);
  switch (rows) {
    case 5: return pairs_outer_of<5, NV>(pairs, x, ld, g, c);
    case 4: return pairs_outer_of<4, NV>(pairs, x, ld, g, c);
    case 3: return pairs_outer_of<3, NV>(pairs, x, ld, g, c);
    case 2: return pairs_outer_of<2, NV>(pairs, x, ld, g, c);
    case 1: return pairs_outer_of<1, NV>(pairs, x, ld, g, c);
  }
}

#if LANES == 16
#define BY_VECTORS(function, ...)                \
  switch (vectors) {                             \
    case 1: return function<1>(__VA_ARGS__);     \
    case 2: return function<2>(__VA_ARGS__);     \
    case 3: return function<3>(__VA_ARGS__);     \
    default: return function<4>(__VA_ARGS__);    \
  }
#else
#define BY_VECTORS(function, ...)                \
  switch (vectors) {                             \
    case 1: return function<1>(__VA_ARGS__);     \
    default: return function<2>(__VA_ARGS__);    \
  }
#endif

void pairs_dot(int vectors, const jaxsparse::TapPairs& pairs, long depth, const float* x, long ld,
               const float* w, float* sums) {
  BY_VECTORS(pairs_dot_strip, pairs, depth, x, ld, w, sums)
}

void pairs_outer(int vectors, const jaxsparse::TapPairs& pairs, long rows, const float* x, long ld,
                 const float* g, float* c) {
  BY_VECTORS(pairs_outer_strip, pairs, rows, x, ld, g, c)
}

#undef BY_VECTORS

}  // namespace
