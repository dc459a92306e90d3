// Weights under bitmaps: a few rows of x times columns whose values are spread out to where
// they belong, and the bits of a tile as the rows that tile_dot reads.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::BitmapColumns;

// The rows of the bits set in a column, ascending, and how many.
INLINE int rows_of_bits(const uint32_t* bits, int words, uint8_t* rows) {
  int count = 0;
  for (int i = 0; i < words; i++) {
    for (uint32_t left = bits[i]; left != 0; left &= left - 1)
      rows[count++] = (uint8_t)(32 * i + __builtin_ctz(left));
  }
  return count;
}

#if LANES == 16
// The same 64 bits at a time; writes up to a vector past the last row. Not every processor with
// AVX-512 has the instruction.
__attribute__((target("avx512vbmi2"))) INLINE int rows_of_bits_at_once(const uint32_t* bits,
                                                                       int words, uint8_t* rows) {
  alignas(64) uint8_t ascending[64];
  for (int i = 0; i < 64; i++) ascending[i] = (uint8_t)i;
  int count = 0;
  for (int i = 0; i < words; i += 2) {
    uint64_t both = bits[i];
    if (i + 1 < words) both |= (uint64_t)bits[i + 1] << 32;
    const __m512i row =
        _mm512_add_epi8(_mm512_load_si512(ascending), _mm512_set1_epi8((char)(32 * i)));
    _mm512_storeu_si512(rows + count, _mm512_maskz_compress_epi8(both, row));
    count += __builtin_popcountll(both);
  }
  return count;
}

__attribute__((target("avx512vbmi2"))) KERNEL long bitmap_rows_at_once(
    int columns, long stride, int words, const uint32_t* bits, uint16_t* counts, uint8_t* rows) {
  long total = 0;
  for (int c = 0; c < columns; c++, total += counts[c - 1])
    counts[c] = (uint16_t)rows_of_bits_at_once(bits + c * stride, words, rows + total);
  return total;
}
#endif

long bitmap_rows(int columns, long stride, int words, const uint32_t* bits, uint16_t* counts,
                 uint8_t* rows) {
#if LANES == 16
  if (__builtin_cpu_supports("avx512vbmi2"))
    return bitmap_rows_at_once(columns, stride, words, bits, counts, rows);
#endif
  long total = 0;
  for (int c = 0; c < columns; c++, total += counts[c - 1])
    counts[c] = (uint16_t)rows_of_bits(bits + c * stride, words, rows + total);
  return total;
}

#if LANES == 16
// WORDS = 0: as many as `some` says.
template <class W, int ROWS, int WORDS>
KERNEL bool bitmap_dot_of(const BitmapColumns from, const float* x, long ld, float* sums) {
  constexpr int CHAINS = ROWS == 1 ? 2 : 1;
  const int words = WORDS > 0 ? WORDS : from.words;
  const uint32_t* bits = from.bits;
  const W *values = static_cast<const W*>(from.values), *end = values + from.count;
  for (int c = 0; c < from.columns; c++, bits += words, sums += ROWS) {
    long count = 0;
    UNROLL for (int i = 0; i < words; i++) count += __builtin_popcount(bits[i]);
    if (count > end - values) return false;
    // The values that come next lie behind these, a page boundary in between.
    __builtin_prefetch(reinterpret_cast<const char*>(values) + 1024, 0, 2);
    __builtin_prefetch(reinterpret_cast<const char*>(values) + 1088, 0, 2);
    __m512 sum[ROWS][CHAINS];
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int u = 0; u < CHAINS; u++) sum[r][u] = _mm512_setzero_ps();
    const auto step = [&](int half, uint32_t there) __attribute__((always_inline)) {
      const __m512 w = _mm512_maskz_expand_ps((__mmask16)there, (__m512)load_wide(values));
      UNROLL for (int r = 0; r < ROWS; r++) {
        __m512& to = sum[r][half % CHAINS];
        to = _mm512_mask3_fmadd_ps(w, _mm512_loadu_ps(x + r * ld + 16 * half), to,
                                   (__mmask16)there);
      }
      values += __builtin_popcount(there);
    };
    UNROLL for (int i = 0; i < words; i++) {
      step(2 * i, bits[i] & 0xffff);
      step(2 * i + 1, bits[i] >> 16);
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
      UNROLL for (int u = 1; u < CHAINS; u++) sum[r][0] = _mm512_add_ps(sum[r][0], sum[r][u]);
      sums[r] += _mm512_reduce_add_ps(sum[r][0]);
    }
  }
  return values == end;
}

template <int WORDS, class W>
bool bitmap_dot_as(const W*, const BitmapColumns& from, int rows, const float* x, long ld,
                   float* sums) {
  switch (rows) {
    case 1: return bitmap_dot_of<W, 1, WORDS>(from, x, ld, sums);
    case 2: return bitmap_dot_of<W, 2, WORDS>(from, x, ld, sums);
    case 3: return bitmap_dot_of<W, 3, WORDS>(from, x, ld, sums);
    default: return bitmap_dot_of<W, 4, WORDS>(from, x, ld, sums);
  }
}

bool bitmap_dot_any(const BitmapColumns& from, int rows, const float* x, long ld, float* sums) {
  return with_values(from.dtype, from.values, [&](auto* values) {
    return from.words == 8 ? bitmap_dot_as<8>(values, from, rows, x, ld, sums)
                           : bitmap_dot_as<0>(values, from, rows, x, ld, sums);
  });
}
constexpr auto bitmap_dot = &bitmap_dot_any;
#else
constexpr decltype(jaxsparse::Kernels::bitmap_dot) bitmap_dot = nullptr;
#endif

}  // namespace
