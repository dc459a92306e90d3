// Unstructured weights straight from CSC, for a batch whose panels a cache holds.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::CscEntries;

// The u-th of a run of rows. Four of the narrow kind come by one load: loads are what
// these loops are short of.
INLINE long row_at(const int32_t* index, int u) { return index[u]; }
INLINE long row_at(const uint16_t* index, int u) {
  uint64_t four;
  memcpy(&four, index + u / 4 * 4, 8);
  OPAQUE(four);
  return (long)(four >> (16 * (u % 4)) & 0xffff);
}

template <class Row>
INLINE long descents_of(const Row* rows, long count) {
  constexpr long kAtOnce = 32768;  // a sum of these fits the narrowest lane
  long total = 0;
  for (long i = 1; i < count;) {
    const long end = smaller(count, i + kAtOnce);
    Row some = 0;
    for (; i < end; i++) some += rows[i] <= rows[i - 1];
    total += some;
  }
  return total;
}

long descents(bool wide_index, const void* index, long count) {
  return wide_index ? descents_of(static_cast<const uint32_t*>(index), count)
                    : descents_of(static_cast<const uint16_t*>(index), count);
}

// COLUMNS columns side by side: they go down the panel together, so that what one brings
// to the first cache serves the others. CHAINS sums of each hide the latency.
template <class W, class Row, int L, int T, int COLUMNS>
KERNEL void csc_columns_of(const int32_t* indptr, const Row* index, const W* values,
                           const float* panel, float* outs) {
  constexpr int CHAINS = COLUMNS * T >= 8 ? 1 : 8 / (COLUMNS * T);
  using V = typename VecOf<L>::F;
  V sum[COLUMNS][CHAINS][T];
  UNROLL for (int c = 0; c < COLUMNS; c++)
    UNROLL for (int u = 0; u < CHAINS; u++) UNROLL for (int t = 0; t < T; t++) sum[c][u][t] = V{};
  const auto add = [&](int c, int u, long at, long row) __attribute__((always_inline)) {
    const float* x = panel + row * (L * T);
    const V w = splat<L>(widen(values[at]));
    UNROLL for (int t = 0; t < T; t++) sum[c][u % CHAINS][t] += w * load<L>(x + t * L);
  };
  long least = indptr[1] - indptr[0];
  UNROLL for (int c = 1; c < COLUMNS; c++) least = smaller(least, indptr[c + 1] - indptr[c]);
  long p = 0;
  for (; p + 4 <= least; p += 4) {
    // The columns that come next follow these.
    const long soon = indptr[COLUMNS] + p * COLUMNS;
    UNROLL for (int b = 0; b < 4 * COLUMNS * (int)sizeof(W); b += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(values + soon) + b, 0, 2);
    __builtin_prefetch(index + soon, 0, 2);
    UNROLL for (int c = 0; c < COLUMNS; c++) {
      const long at = indptr[c] + p;
      UNROLL for (int u = 0; u < 4; u++) add(c, u, at + u, row_at(index + at, u));
    }
  }
  UNROLL for (int c = 0; c < COLUMNS; c++) {
    long at = indptr[c] + p;
    for (; at + 4 <= indptr[c + 1]; at += 4)
      UNROLL for (int u = 0; u < 4; u++) add(c, u, at + u, row_at(index + at, u));
    for (; at < indptr[c + 1]; at++) add(c, 0, at, (long)index[at]);
    UNROLL for (int u = 1; u < CHAINS; u++)
      UNROLL for (int t = 0; t < T; t++) sum[c][0][t] += sum[c][u][t];
    UNROLL for (int t = 0; t < T; t++) store<L>(outs + (c * T + t) * L, sum[c][0][t]);
  }
}

template <class W, class Row, int L, int T>
void csc_panel_of(long n0, long n1, const int32_t* indptr, const Row* index, const W* values,
                  const float* panel, float* outs) {
  constexpr int COLUMNS = T <= 2 ? 4 : 1;
  long n = n0;
  for (; n + COLUMNS <= n1; n += COLUMNS, outs += COLUMNS * L * T)
    csc_columns_of<W, Row, L, T, COLUMNS>(indptr + n, index, values, panel, outs);
  for (; n < n1; n++, outs += L * T)
    csc_columns_of<W, Row, L, T, 1>(indptr + n, index, values, panel, outs);
}

template <class W, class Row>
void csc_panel_as(int width, long n0, long n1, const int32_t* indptr, const Row* index,
                  const W* values, const float* panel, float* outs) {
#define WIDTH_CASE(L, T) \
  if (width == L * T) return csc_panel_of<W, Row, L, T>(n0, n1, indptr, index, values, panel, outs);
  WIDTH_CASE(1, 1)
  WIDTH_CASE(4, 1)
#if LANES > 8
  WIDTH_CASE(8, 1)
#endif
  WIDTH_CASE(LANES, 1) WIDTH_CASE(LANES, 2) WIDTH_CASE(LANES, 3) WIDTH_CASE(LANES, 4)
#undef WIDTH_CASE
}

void csc_panel(const CscEntries& entries, int width, long n0, long n1, const int32_t* indptr,
               const float* panel, float* outs) {
  with_values(entries.dtype, entries.values, [&](auto* values) {
    with_rows(entries.wide_index, entries.index, [&](auto* index) {
      csc_panel_as(width, n0, n1, indptr, index, values, panel, outs);
    });
  });
}

}  // namespace
