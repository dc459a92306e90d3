// Rows of images, turned so that one channel's pixels lie side by side, and panels copied from them.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

template <class W>
KERNEL void turn_as(const W* from, long step, int pixels, long channels, float* to, long ld) {
  for (int p = 0; p < pixels; p += LANES) {
    const W* square = from + p * step;
    const int there = (int)smaller(LANES, pixels - p);
    long c = 0;
    for (; c + LANES <= channels; c += LANES) {
      Vec v[LANES];
      if (there == LANES) {
        UNROLL for (int i = 0; i < LANES; i++) v[i] = load_wide(square + i * step + c);
      } else {
        for (int i = 0; i < LANES; i++) v[i] = i < there ? load_wide(square + i * step + c) : Vec{};
      }
      transpose(v);
      UNROLL for (int i = 0; i < LANES; i++) store(to + (c + i) * ld + p, v[i]);
    }
    for (; c < channels; c++)
      for (int i = 0; i < LANES; i++)
        to[c * ld + p + i] = i < there ? widen(square[i * step + c]) : 0.f;
  }
}

void turn(int dtype, const void* from, long step, int pixels, long channels, float* to, long ld) {
  with_values(dtype, from, [&](auto* from) { turn_as(from, step, pixels, channels, to, ld); });
}

// Vectors of which some lanes are meant.
#if LANES == 16
using Lanes = __mmask16;
INLINE Lanes lanes_of(uint32_t bits) { return (__mmask16)bits; }
INLINE Vec take(Vec v, Lanes lanes, const float* p) {
  return (Vec)_mm512_mask_loadu_ps((__m512)v, lanes, p);
}
INLINE void store_first(float* p, Vec v, int count) {
  _mm512_mask_storeu_ps(p, lanes_of((1u << count) - 1), (__m512)v);
}
#elif LANES == 8
using Lanes = __m256i;
INLINE Lanes lanes_of(uint32_t bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), each), each);
}
INLINE Vec take(Vec v, Lanes lanes, const float* p) {
  return (Vec)_mm256_or_ps((__m256)v, _mm256_maskload_ps(p, lanes));
}
// In parts: some processors store under a mask in dozens of steps.
INLINE void store_first(float* p, Vec v, int count) {
  if (count == LANES) return store(p, v);
  __m128 part = _mm256_castps256_ps128((__m256)v);
  if (count & 4) _mm_storeu_ps(p, part), p += 4, part = _mm256_extractf128_ps((__m256)v, 1);
  if (count & 2) _mm_storel_pi((__m64*)p, part), p += 2, part = _mm_movehl_ps(part, part);
  if (count & 1) _mm_store_ss(p, part);
}
#else
using Lanes = uint32_t;
INLINE Lanes lanes_of(uint32_t bits) { return bits; }
INLINE Vec take(Vec v, Lanes lanes, const float* p) {
  for (int i = 0; i < LANES; i++)
    if (lanes >> i & 1) v[i] = p[i];
  return v;
}
INLINE void store_first(float* p, Vec v, int count) {
  for (int i = 0; i < count; i++) p[i] = v[i];
}
#endif

// A vector of every row, of PIECES, or as many as `count`.
template <int PIECES>
KERNEL void copy_pieces_of(const jaxsparse::Piece* pieces, int count, int lanes, long step,
                           long depth, int width, float* panel) {
  const int n = PIECES ? PIECES : count;
  Lanes taken[PIECES ? PIECES : LANES];
  for (int i = 0; i < n; i++) taken[i] = lanes_of(pieces[i].lanes);
  for (long k = 0; k < depth; k++, panel += width) {
    Vec v = Vec{};
    UNROLL for (int i = 0; i < n; i++) v = take(v, taken[i], pieces[i].from + k * step);
    store_first(panel, v, lanes);
  }
}

void copy_pieces(const jaxsparse::Piece* pieces, int count, int lanes, long step, long depth,
                 int width, float* panel) {
  const auto copy = count == 1   ? copy_pieces_of<1>
                    : count == 2 ? copy_pieces_of<2>
                    : count == 3 ? copy_pieces_of<3>
                                 : copy_pieces_of<0>;
  copy(pieces, count, lanes, step, depth, width, panel);
}

}  // namespace
