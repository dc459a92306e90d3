// N:M for many rows: four entries of a column side by side, so that one load brings four
// weights and another their rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"
#include "microkernels/tile_dot-inl.h"

namespace {

// Broadcasts one of the four values that every 128 bits of `four` hold.
#if LANES == 16
INLINE Vec load_four(const float* p) { return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
template <int U>
INLINE Vec splat_of_four(Vec four) {
  return (Vec)_mm512_permute_ps((__m512)four, U * 0x55);
}
#elif LANES == 8
INLINE Vec load_four(const float* p) {
  return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
template <int U>
INLINE Vec splat_of_four(Vec four) {
  return (Vec)_mm256_permute_ps((__m256)four, U * 0x55);
}
#else
INLINE Vec load_four(const float* p) { return load(p); }
template <int U>
INLINE Vec splat_of_four(Vec four) {
  return splat(four[U]);
}
#endif

// Where column c of a quad lies: transposing four by four leaves them in this order.
INLINE int slot_of(int c) {
  constexpr int kAcross = LANES / 4;
  const int in = c & (LANES - 1);
  return c - in + (in & 3) * kAcross + (in >> 2);
}

template <class W>
KERNEL void nm_quads_as(const jaxsparse::NmGroups& groups, const jaxsparse::NmTile& tile,
                 const W* values, int width, float* to, uint32_t* rows) {
  const uint32_t* positions = groups.positions;
  const long columns = groups.columns;
  constexpr int kWidth = jaxsparse::kTileColumns;
  const uint32_t mask = (1u << tile.bits) - 1;
  for (long r = 0; r < tile.count; r += tile.per_word) {
    const uint32_t* word = positions + ((tile.begin + tile.count + r) / tile.per_word) * columns;
    for (int c = 0; c < width; c += 16) __builtin_prefetch(word + c, 0, 2);
  }
  for (int q = 0; q < tile.quads; q++, to += 4 * kWidth, rows += kWidth) {
    for (int c = 0; c < width; c += LANES) {
      const int kept = width - c;
      Vec v[LANES];
      VecOf<LANES>::U at = {};
      UNROLL for (int i = 0; i < 4; i++) {
        const int e = 4 * q + i;
        if (e >= tile.count) {  // past the last group: zero times a row of zeros
          v[i] = Vec{};
          at |= (VecOf<LANES>::U{} + (uint32_t)tile.last) << (8 * i);
          continue;
        }
        const long r = tile.begin + e;
        const W* from = values + r * columns + c;
        const uint32_t* word = positions + r / tile.per_word * columns + c;
        // Rows lie pages apart: ask for the next tile's while this one is cut and used.
        __builtin_prefetch(from + tile.count * columns, 0, 2);
        VecOf<LANES>::U bits = {};
        if (kept >= LANES) {
          v[i] = load_wide(from);
          memcpy(&bits, word, sizeof bits);
        } else {
          W part[LANES] = {};
          memcpy(part, from, kept * sizeof(W));
          memcpy(&bits, word, kept * sizeof(uint32_t));
          v[i] = load_wide(part);
        }
        at |= ((bits >> (tile.bits * (int)(r % tile.per_word)) & mask) + tile.base[e]) << (8 * i);
      }
      exchange<1, 4>(v);
      exchange<2, 4>(v);
      UNROLL for (int i = 0; i < 4; i++) store(to + 4 * c + i * LANES, v[i]);
      memcpy(rows + c, &at, sizeof at);
    }
  }
}

void nm_quads(const jaxsparse::NmGroups& from, const jaxsparse::NmTile& tile, int width,
              float* to, uint32_t* rows) {
  with_values(from.dtype, from.values,
              [&](auto* values) { nm_quads_as(from, tile, values, width, to, rows); });
}

KERNEL void quads_dot(int columns, int quads, const float* values, const uint32_t* rows,
                      const float* panel, const float* next, float* outs) {
  constexpr int T = kTileVectors, WIDTH = T * LANES, kWidth = jaxsparse::kTileColumns;
  for (int c = 0; c < columns; c++, rows++, outs += WIDTH) {
    // The tile that comes next is read in no order a prefetcher could guess.
    UNROLL for (int i = 0; i < WIDTH; i += 16) __builtin_prefetch(next + c * WIDTH + i, 0, 2);
    const float* w = values + 4 * slot_of(c);
    const uint32_t* at = rows;
    Vec even[T], odd[T];
    UNROLL for (int t = 0; t < T; t++) even[t] = load(outs + t * LANES), odd[t] = Vec{};
    for (int q = quads; q > 0; q--, w += 4 * kWidth, at += kWidth) {
      const uint32_t four = *at;
      const Vec values4 = load_four(w);
      const float* x[4];
      UNROLL for (int u = 0; u < 4; u++) {
        x[u] = panel + (long)((four >> (8 * u)) & 255) * WIDTH;
        OPAQUE(x[u]);
      }
      const Vec w0 = splat_of_four<0>(values4), w1 = splat_of_four<1>(values4);
      const Vec w2 = splat_of_four<2>(values4), w3 = splat_of_four<3>(values4);
      UNROLL for (int t = 0; t < T; t++) even[t] += w0 * load(x[0] + t * LANES);
      UNROLL for (int t = 0; t < T; t++) odd[t] += w1 * load(x[1] + t * LANES);
      UNROLL for (int t = 0; t < T; t++) even[t] += w2 * load(x[2] + t * LANES);
      UNROLL for (int t = 0; t < T; t++) odd[t] += w3 * load(x[3] + t * LANES);
    }
    UNROLL for (int t = 0; t < T; t++) store(outs + t * LANES, even[t] + odd[t]);
  }
}

}  // namespace
