// A few rows of x times weights under bitmaps: the values of 64 places are spread out over whole
// vectors, to where they belong, with zeros between.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::BitmapColumns;

#if LANES >= 8
constexpr int kSpread = jaxsparse::kBitmapPlaces / LANES;  // vectors

#if LANES == 16
// On Zen 5 the instruction waits for its target, zeroed or not: what it spreads, lest that be a
// register that a sum is still to leave. Masks are shifted outside of theirs.
INLINE Vec spread(Vec packed, uint32_t there) {
  OPAQUE(there);
  asm("vexpandps %0, %0%{%1%}%{z%}" : "+v"(packed) : "Yk"((__mmask16)there));
  return packed;
}
#else
// For every byte of bits the value that each of its eight places takes, counted from the byte's
// first; places without one have the sign bit set, which a permutation does not look at.
struct Places {
  alignas(32) int32_t of[256][8];
  constexpr Places() : of() {
    for (int byte = 0; byte < 256; byte++)
      for (int bit = 0, value = 0; bit < 8; bit++)
        of[byte][bit] = byte >> bit & 1 ? value++ : INT32_MIN;
  }
};
constexpr Places kPlaces;

INLINE Vec spread(Vec packed, uint32_t there) {
  const __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i*>(kPlaces.of[there]));
  const __m256 moved = _mm256_permutevar8x32_ps((__m256)packed, at);
  return (Vec)_mm256_blendv_ps(moved, _mm256_setzero_ps(), (__m256)at);
}
#endif

// 64 places from word i on. The last word of a strip may be alone.
INLINE uint64_t places_at(const uint32_t* bits, int i, int words) {
  uint64_t there = bits[i];
  if (i + 1 < words) memcpy(&there, bits + i, sizeof there);
  return there;
}

// WORDS = 0: as many as `from` says.
template <int WORDS, int ROWS, class W>
KERNEL bool bitmap_dot_of(const W* values, const BitmapColumns from, const float* x, long ld,
                          float* sums) {
  constexpr int CHAINS = ROWS == 1 ? 4 : ROWS <= 4 ? 2 : 1;
  const int words = WORDS > 0 ? WORDS : from.words;
  const uint32_t* bits = from.bits;
  const W* end = values + from.count;
  for (int c = 0; c < from.columns; c++, bits += from.stride, sums += ROWS * LANES) {
    long count = 0;
    for (int i = 0; i < words; i += 2) count += __builtin_popcountll(places_at(bits, i, words));
    if (count > end - values) return false;
    // The values that come next lie behind these, a page boundary in between.
    UNROLL for (int b = 0; b < 128 * (int)sizeof(W); b += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(values) + 1024 + b, 0, 2);
    Vec sum[ROWS][CHAINS] = {};
    UNROLL for (int r = 0; r < ROWS; r++) sum[r][0] = load(sums + r * LANES);
    for (int i = 0; i < words; i += 2) {
      const uint64_t there = places_at(bits, i, words);
      UNROLL for (int q = 0; q < kSpread; q++) {
        const uint64_t below = there & ((1ull << (q * LANES)) - 1);
        const Vec w = spread(load_wide(values + __builtin_popcountll(below)),
                             there >> (q * LANES) & ((1u << LANES) - 1));
        UNROLL for (int r = 0; r < ROWS; r++)
          sum[r][q % CHAINS] += w * load(x + r * ld + 32 * i + q * LANES);
      }
      values += __builtin_popcountll(there);
    }
    UNROLL for (int r = 0; r < ROWS; r++) {
      UNROLL for (int u = 1; u < CHAINS; u++) sum[r][0] += sum[r][u];
      store(sums + r * LANES, sum[r][0]);
    }
  }
  return values == end;
}

bool bitmap_dot_any(const BitmapColumns& from, int rows, const float* x, long ld, float* sums) {
  return with_values(from.dtype, from.values, [&](auto* values) {
    if (rows == 1 && from.words == 8) return bitmap_dot_of<8, 1>(values, from, x, ld, sums);
    switch (rows) {
      case 1: return bitmap_dot_of<0, 1>(values, from, x, ld, sums);
      case 2: return bitmap_dot_of<0, 2>(values, from, x, ld, sums);
      case 3: return bitmap_dot_of<0, 3>(values, from, x, ld, sums);
      case 4: return bitmap_dot_of<0, 4>(values, from, x, ld, sums);
      case 5: return bitmap_dot_of<0, 5>(values, from, x, ld, sums);
      case 6: return bitmap_dot_of<0, 6>(values, from, x, ld, sums);
      case 7: return bitmap_dot_of<0, 7>(values, from, x, ld, sums);
      default: return bitmap_dot_of<0, 8>(values, from, x, ld, sums);
    }
  });
}

void bitmap_sums(int columns, int rows, const float* sums, float* y, long ld) {
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < columns; c += LANES) {
      Vec lanes[LANES];
      UNROLL for (int i = 0; i < LANES; i++)
        lanes[i] = c + i < columns ? load(sums + ((long)(c + i) * rows + r) * LANES) : Vec{};
      transpose(lanes);
      UNROLL for (int i = 1; i < LANES; i++) lanes[0] += lanes[i];
      memcpy(y + r * ld + c, &lanes[0], smaller(LANES, columns - c) * sizeof(float));
    }
  }
}

constexpr auto bitmap_dot = &bitmap_dot_any;
#else
constexpr decltype(jaxsparse::Kernels::bitmap_dot) bitmap_dot = nullptr;
constexpr decltype(jaxsparse::Kernels::bitmap_sums) bitmap_sums = nullptr;
#endif

}  // namespace
