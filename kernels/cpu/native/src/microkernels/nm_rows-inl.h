// N:M for few rows. Every lane is a column; it picks its x out of the group's m by one
// shuffle. The group is repeated across the vector, so that a shuffle, which reads an
// index modulo LANES, ignores the bits of the positions still to come.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::FewRows;
using jaxsparse::NmGroups;

// Intrinsics, because from the vector extensions compilers make a detour through the
// stack of both. Below AVX2 there is no shuffle by a variable, and no strip kernel.
#if LANES == 16
template <int M>
INLINE Vec repeat_group(const float* x) {
  if constexpr (M == 16) return load(x);
  if constexpr (M == 8) return (Vec)_mm512_broadcast_f32x8(_mm256_loadu_ps(x));
  if constexpr (M == 4) return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(x));
  double pair;
  memcpy(&pair, x, sizeof pair);
  return (Vec)_mm512_set1_pd(pair);
}
INLINE Vec pick(Vec x, IVec at) { return (Vec)_mm512_permutexvar_ps((__m512i)at, (__m512)x); }
#elif LANES == 8
template <int M>
INLINE Vec repeat_group(const float* x) {
  if constexpr (M == 8) return load(x);
  if constexpr (M == 4) return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
  double pair;
  memcpy(&pair, x, sizeof pair);
  return (Vec)_mm256_set1_pd(pair);
}
INLINE Vec pick(Vec x, IVec at) { return (Vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)at); }
#endif

#if LANES >= 8
// Groups that follow one another, from where a word of positions begins, by some rows.
struct NmBand {
  NmGroups from;
  FewRows rows;
  bool first;  // else what it gives is added to y
};

// Columns [at_column, at_column + NV * LANES) of a band. N: entries kept of a group where
// that divides the positions in a word, else 0, and then the groups say it.
template <class W, int M, int BITS, int N, int ROWS, int NV>
KERNEL void nm_strip(const NmBand& band, long at_column) {
  constexpr int kPerWord = 32 / BITS;
  const NmGroups& from = band.from;
  const int n = N ? N : from.n;
  const long columns = from.columns;
  // The next band's: no hardware prefetcher guesses a stream so wide, nor walks its pages.
  const long ahead = from.groups * n * columns;
  const W* values = static_cast<const W*>(from.values) + at_column;
  const uint32_t* positions = from.positions + at_column;
  const float* x = band.rows.x;
  float* y = band.rows.y + at_column;
  Vec sum[ROWS][NV];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++)
      sum[r][v] = band.first ? Vec{} : load(y + r * band.rows.ld_y + v * LANES);
  VecOf<LANES>::U at[NV];
  int left = 0;  // positions left in `at`
  const auto step = [&](const Vec* group) __attribute__((always_inline)) {
    UNROLL for (int v = 0; v < NV * LANES * (int)sizeof(W); v += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(values + ahead) + v, 0, 2);
    UNROLL for (int v = 0; v < NV; v++) {
      const Vec w = load_wide(values + v * LANES);
      UNROLL for (int r = 0; r < ROWS; r++) sum[r][v] += w * pick(group[r], (IVec)at[v]);
      at[v] >>= BITS;
    }
    values += columns;
    left--;
  };
  const auto refill = [&]() __attribute__((always_inline)) {
    UNROLL for (int v = 0; v < NV; v++) memcpy(&at[v], positions + v * LANES, sizeof at[v]);
    UNROLL for (int v = 0; v < NV * LANES; v += 16)
      __builtin_prefetch(positions + columns + v, 0, 2);
    positions += columns;
    left = kPerWord;
  };
  for (long g = 0; g < from.groups; g++, x += M) {
    if (N && left == 0) refill();
    Vec group[ROWS];
    UNROLL for (int r = 0; r < ROWS; r++) group[r] = repeat_group<M>(x + r * band.rows.ld_x);
    UNROLL for (int z = 0; z < n; z++) {
      if (!N && left == 0) refill();
      step(group);
    }
  }
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) store(y + r * band.rows.ld_y + v * LANES, sum[r][v]);
}
#endif

// Any m, one column at a time: the last columns, and groups wider than a vector.
template <class W>
void nm_column(const NmGroups& from, int bits, const FewRows& rows, long column) {
  const int per_word = 32 / bits;
  const uint32_t mask = (1u << bits) - 1;
  const W* values = static_cast<const W*>(from.values) + column;
  const uint32_t* positions = from.positions + column;
  float sum[8] = {};
  long r = 0;
  for (long g = 0; g < from.groups; g++) {
    for (int z = 0; z < from.n; z++, r++) {
      const uint32_t word = positions[r / per_word * from.columns];
      const uint32_t at = word >> (bits * (r % per_word)) & mask;
      const float w = widen(values[r * from.columns]);
      for (int i = 0; i < rows.count; i++)
        sum[i] += w * rows.x[i * rows.ld_x + g * from.m + at];
    }
  }
  for (int i = 0; i < rows.count; i++) rows.y[i * rows.ld_y + column] = sum[i];
}

#if LANES >= 8
template <class W, int M, int BITS, int N, int ROWS>
void nm_strips(const NmBand& band, long n0, long n1) {
  constexpr int kSums = LANES == 16 ? 16 : 8;
  constexpr int NV = ROWS >= kSums ? 1 : kSums / ROWS > 8 ? 8 : kSums / ROWS;
  for (; n0 + NV * LANES <= n1; n0 += NV * LANES) nm_strip<W, M, BITS, N, ROWS, NV>(band, n0);
  for (; n0 < n1; n0 += LANES) nm_strip<W, M, BITS, N, ROWS, 1>(band, n0);
}

// Columns [n0, n1), a multiple of LANES, a band at a time: its stored rows are read along,
// so that few pages are open at once, and serve all rows of x before the next band's.
template <class W, int M, int BITS, int N>
void nm_bands(const NmGroups& all, const FewRows& rows, long n0, long n1) {
  constexpr int kPerWord = 32 / BITS;
  const long most = N ? kPerWord / N : kPerWord, words = N ? 1 : all.n;
  NmBand band{all, rows, true};
  for (long g = 0; g < all.groups; g += most, band.first = false) {
    band.from.groups = smaller(most, all.groups - g);
    band.rows = rows;
    band.rows.x += g * M;
    for (int left = rows.count; left > 0;) {
      const int done = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      switch (done) {
#define ROWS_CASE(R) \
  case R: nm_strips<W, M, BITS, N, R>(band, n0, n1); break;
        ROWS_CASE(8) ROWS_CASE(4) ROWS_CASE(2) ROWS_CASE(1)
#undef ROWS_CASE
      }
      left -= done;
      band.rows.x += done * rows.ld_x;
      band.rows.y += done * rows.ld_y;
    }
    band.from.values = static_cast<const W*>(band.from.values) + most * all.n * all.columns;
    band.from.positions += words * all.columns;
  }
}
#endif

template <int M, int BITS, class W>
void nm_rows_of(const W*, const NmGroups& from, const FewRows& rows, long n0, long n1) {
#if LANES >= 8
  if constexpr (M <= LANES) {
    const long whole = n0 + (n1 - n0) / LANES * LANES;
    const auto bands = M == 4 && from.n == 2   ? nm_bands<W, M, BITS, M == 4 ? 2 : 0>
                       : M == 4 && from.n == 1 ? nm_bands<W, M, BITS, M == 4 ? 1 : 0>
                                               : nm_bands<W, M, BITS, 0>;
    bands(from, rows, n0, whole);
    n0 = whole;
  }
#endif
  for (; n0 < n1; n0++) {
    for (int r = 0; r < rows.count; r += 8)
      nm_column<W>(from, BITS,
                   {(int)smaller(8, rows.count - r), rows.x + r * rows.ld_x, rows.ld_x,
                    rows.y + r * rows.ld_y, rows.ld_y},
                   n0);
  }
}

void nm_rows(const NmGroups& from, const FewRows& rows, long n0, long n1) {
  with_values(from.dtype, from.values, [&](auto* values) {
    switch (from.m) {
      case 2: return nm_rows_of<2, 1>(values, from, rows, n0, n1);
      case 4: return nm_rows_of<4, 2>(values, from, rows, n0, n1);
      case 8: return nm_rows_of<8, 3>(values, from, rows, n0, n1);
      case 16: return nm_rows_of<16, 4>(values, from, rows, n0, n1);
    }
  });
}

}  // namespace
