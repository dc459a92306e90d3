// The bits of a tile as the rows that tile_dot reads.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

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

}  // namespace
