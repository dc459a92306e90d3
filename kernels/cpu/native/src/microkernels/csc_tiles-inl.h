// Tiles of single weights, cut from CSC.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::CscEntries;

#if LANES == 16
using LaneMask = __mmask16;

INLINE LaneMask first_lanes(long count) {
  return count >= 16 ? (LaneMask)0xffff : (LaneMask)((1u << count) - 1);
}
INLINE __m512i load_rows(LaneMask m, const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
}
INLINE __m512i load_rows(LaneMask m, const int32_t* p) { return _mm512_maskz_loadu_epi32(m, p); }
INLINE Vec load_some(LaneMask m, const float* p) { return (Vec)_mm512_maskz_loadu_ps(m, p); }
INLINE Vec load_some(LaneMask m, const Bf16* p) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16);
}
INLINE Vec load_some(LaneMask m, const int8_t* p) {
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, p)));
}
#endif

// How many of `left` ascending rows are at most `last`. The first few vectors nearly
// always hold the answer: comparing whole ones beats any search.
template <class Row>
INLINE long count_up_to(const Row* index, long left, long last) {
  long n = 0;
#if LANES == 16
  constexpr long kAtOnce = 64 / (long)sizeof(Row);
  for (; left > 0; left -= kAtOnce) {
    const uint32_t there = left >= kAtOnce ? (uint32_t)((1ull << kAtOnce) - 1) : (1u << left) - 1;
    uint32_t below;
    if constexpr (sizeof(Row) == 2) {
      below = _mm512_mask_cmple_epu16_mask(there, _mm512_maskz_loadu_epi16(there, index + n),
                                           _mm512_set1_epi16((short)last));
    } else {
      below = _mm512_mask_cmple_epu32_mask((__mmask16)there,
                                           _mm512_maskz_loadu_epi32((__mmask16)there, index + n),
                                           _mm512_set1_epi32((int)last));
    }
    const int found = __builtin_popcount(below);
    n += found;
    if (found < kAtOnce) break;
  }
#else
  // Bisection without branches: where a column ends is anybody's guess.
  const Row* low = index;
  for (; left > 1; left -= left / 2) low += left / 2 * ((long)low[left / 2 - 1] <= last);
  if (left == 1) low += (long)*low <= last;
  n = low - index;
#endif
  return n;
}

template <class Row>
KERNEL void csc_cut_of(const Row* index, int columns, long high, const long* at,
                       const long* end, uint16_t* counts) {
  for (int c = 0; c < columns; c++) {
    const long left = smaller(jaxsparse::kMostTileRows, end[c] - at[c]);
    counts[c] = (uint16_t)count_up_to(index + at[c], left, high - 1);
  }
}

void csc_cut(const CscEntries& entries, int columns, long high, const long* at, const long* end,
             uint16_t* counts) {
  with_rows(entries.wide_index, entries.index,
            [&](auto* index) { csc_cut_of(index, columns, high, at, end, counts); });
}

// Copies `count` entries; what lies past them is overwritten too. Returns the bits of rows
// that stick out of the tile, and some where a row is not above the one before.
template <class W, class Row>
INLINE uint32_t copy_entries(const Row* index, const W* values, int count, uint32_t low,
                             uint8_t* rows, float* to) {
  static_assert(jaxsparse::kMostTileRows == 256, "a row's number is a byte");
#if LANES == 16
  __m512i outside = _mm512_setzero_si512();
  uint32_t falls = 0;
  for (int e = 0; e < count; e += 16) {
    const LaneMask there = first_lanes(count - e);
    const __m512i row = _mm512_sub_epi32(load_rows(there, index + e), _mm512_set1_epi32((int)low));
    outside = _mm512_mask_or_epi32(outside, there, outside, row);
    const LaneMask followed = first_lanes(count - e - 1);
    falls |= _mm512_mask_cmple_epu32_mask(followed, load_rows(followed, index + e + 1),
                                          load_rows(there, index + e));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + e), _mm512_cvtepi32_epi8(row));
    store(to + e, load_some(there, values + e));
  }
  return ((uint32_t)_mm512_reduce_or_epi32(outside) & ~255u) | falls << 8;
#else
  uint32_t outside = 0;
  for (int e = 1; e < count; e++) outside |= (uint32_t)(index[e] <= index[e - 1]) << 8;
  for (int e = 0; e < count; e++) {
    const uint32_t row = (uint32_t)index[e] - low;
    rows[e] = (uint8_t)row;
    to[e] = widen(values[e]);
    outside |= row & ~255u;
  }
  return outside;
#endif
}

template <class W, class Row>
KERNEL bool csc_copy_of(const Row* index, const W* values, int columns, const uint8_t* order,
                        const uint16_t* counts, const long* at, long low, uint8_t* rows,
                        float* to) {
  uint32_t outside = 0;
  for (int i = 0; i < columns; i++) {
    const long from = at[order[i]];
    outside |= copy_entries(index + from, values + from, counts[i], (uint32_t)low, rows, to);
    rows += counts[i];
    to += counts[i];
  }
  return outside == 0;
}

bool csc_copy(const CscEntries& entries, int columns, const uint8_t* order,
              const uint16_t* counts, const long* at, long low, uint8_t* rows, float* to) {
  return with_values(entries.dtype, entries.values, [&](auto* values) {
    return with_rows(entries.wide_index, entries.index, [&](auto* index) {
      return csc_copy_of(index, values, columns, order, counts, at, low, rows, to);
    });
  });
}

}  // namespace
