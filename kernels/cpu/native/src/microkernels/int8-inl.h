// Integer products of one instruction set. The including file defines LANES, INT8_TABLE,
// INT8_NAME and INT8_ROWS, and INT8_DOT where it has an instruction that adds up four products
// of 8 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "int8.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::Int8Finish;
using jaxsparse::kStripColumns;
using jaxsparse::StripColumns;

constexpr int kVectors = kStripColumns / LANES;
#ifdef INT8_DOT
constexpr int kWords = 1;
using Code = uint8_t;
#else
constexpr int kWords = 2;
using Code = int16_t;
#endif
constexpr int kPerWord = 4 / kWords;       // inputs that share a word
constexpr long kOperand = 4 * kStripColumns;  // bytes of weights that one word multiplies

// sum[c] += the products of a word's codes and LANES outputs' weights.
#if defined(INT8_DOT) && LANES == 16
INLINE IVec multiply(IVec sum, uint32_t word, const char* w) {
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32((int)word),
                                   _mm512_loadu_si512(w));
}
#elif defined(INT8_DOT)
INLINE IVec multiply(IVec sum, uint32_t word, const char* w) {
  return (IVec)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32((int)word),
                                       _mm256_loadu_si256((const __m256i*)w));
}
#elif LANES == 16
INLINE IVec multiply(IVec sum, uint32_t word, const char* w) {
  return sum + (IVec)_mm512_madd_epi16(_mm512_set1_epi32((int)word), _mm512_loadu_si512(w));
}
#elif LANES == 8
INLINE IVec multiply(IVec sum, uint32_t word, const char* w) {
  return sum + (IVec)_mm256_madd_epi16(_mm256_set1_epi32((int)word),
                                       _mm256_loadu_si256((const __m256i*)w));
}
#else
INLINE IVec multiply(IVec sum, uint32_t word, const char* w) {
  int16_t x[2], pairs[2 * LANES];
  memcpy(x, &word, sizeof x);
  memcpy(pairs, w, sizeof pairs);
  UNROLL for (int c = 0; c < LANES; c++) sum[c] += x[0] * pairs[2 * c] + x[1] * pairs[2 * c + 1];
  return sum;
}
#endif

// --- what becomes of sums -------------------------------------------------------------------

INLINE void narrow(IVec v, bool with_sign, char* to) {
#if LANES == 16
  (void)with_sign;
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#elif LANES == 8
  const __m128i half =
      _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64((__m128i*)to,
                   with_sign ? _mm_packs_epi16(half, half) : _mm_packus_epi16(half, half));
#else
  (void)with_sign;
  UNROLL for (int c = 0; c < LANES; c++) to[c] = (char)v[c];
#endif
}

// Rounds to bfloat16, ties to even.
INLINE void halve(Vec y, char* to) {
  IVec bits = (IVec)y;
  const IVec quiet = y != y;
  bits = bits + 0x7fff + ((bits >> 16) & 1);
  bits = (quiet & ((IVec)y | 0x400000)) | (~quiet & bits);
  uint16_t half[LANES];
  UNROLL for (int c = 0; c < LANES; c++) half[c] = (uint16_t)((uint32_t)bits[c] >> 16);
  memcpy(to, half, sizeof half);
}

// Numbers that fit an int16, rounded with ties to even.
INLINE IVec rounded(Vec v) {
  const float magic = 12582912.f;  // 1.5 * 2^23: beyond it floats are whole
  return (IVec)(v + magic) - (IVec)splat(magic);
}

INLINE void finish_vector(IVec sum, int v, const StripColumns& columns, const Int8Finish& finish,
                          char* y) {
  IVec offset;
  memcpy(&offset, columns.offset + v * LANES, sizeof offset);
  sum += offset;
  if (finish.out == jaxsparse::kOutI32) {
    memcpy(y, &sum, sizeof sum);
    return;
  }
  Vec f = __builtin_convertvector(sum, Vec) * load(columns.scale + v * LANES) +
          load(columns.bias + v * LANES);
  if (finish.relu) f = f < 0.f ? Vec{} : f;
  if (finish.out == jaxsparse::kOutF32) {
    store(reinterpret_cast<float*>(y), f);
  } else if (finish.out == jaxsparse::kOutBf16) {
    halve(f, y);
  } else {
    const bool with_sign = finish.out == jaxsparse::kOutI8;
    const int least = with_sign ? -128 : 0;
    const Vec low = splat((float)(least - finish.zero)), high = low + 255.f;
    f = f * finish.inverse;
    f = f > low ? f : low;  // also for NaN
    f = f < high ? f : high;
    narrow(rounded(f) + finish.zero, with_sign, y);
  }
}

// --- products -------------------------------------------------------------------------------

// CHAINS independent sums hide the latency where there are few rows.
template <int R>
KERNEL void product_of(long quads, const int32_t* at, const char* w, const uint32_t* panel,
                       const StripColumns& columns, const Int8Finish& finish, char* y, long ld) {
  constexpr int CHAINS = R * kVectors >= 8 ? 1 : R * kVectors >= 4 ? 2 : 4;
  IVec sum[CHAINS][R][kVectors];
  UNROLL for (int u = 0; u < CHAINS; u++)
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int v = 0; v < kVectors; v++) sum[u][r][v] = IVec{};
  const auto quad = [&](long i, IVec(&to)[R][kVectors]) __attribute__((always_inline)) {
    const uint32_t* x = panel + (at ? at[i] : i) * (kWords * R);
    UNROLL for (int s = 0; s < kWords; s++) {
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < kVectors; v++)
          to[r][v] = multiply(to[r][v], x[s * R + r], w + s * kOperand + v * (4 * LANES));
    }
    w += kWords * kOperand;
  };
  long i = 0;
  for (; i + CHAINS <= quads; i += CHAINS)
    UNROLL for (int u = 0; u < CHAINS; u++) quad(i + u, sum[u]);
  for (; i < quads; i++) quad(i, sum[0]);
  const long size = jaxsparse::out_bytes(finish.out);
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < kVectors; v++) {
      UNROLL for (int u = 1; u < CHAINS; u++) sum[0][r][v] += sum[u][r][v];
      finish_vector(sum[0][r][v], v, columns, finish, y + (r * ld + v * LANES) * size);
    }
}

template <int R>
void product_rows(int rows, long quads, const int32_t* at, const char* w, const uint32_t* panel,
                  const StripColumns& columns, const Int8Finish& finish, char* y, long ld) {
  if (rows == R) return product_of<R>(quads, at, w, panel, columns, finish, y, ld);
  if constexpr (R > 1) product_rows<R - 1>(rows, quads, at, w, panel, columns, finish, y, ld);
}

void int8_product(int rows, long quads, const int32_t* at, const void* weights,
                  const uint32_t* panel, const StripColumns& columns, const Int8Finish& finish,
                  void* y, long ld) {
  product_rows<INT8_ROWS>(rows, quads, at, (const char*)weights, panel, columns, finish, (char*)y,
                          ld);
}

// --- operands -------------------------------------------------------------------------------

void widen_row(const void* codes, bool with_sign, long count, long depth, int zero, void* to) {
  const uint8_t* from = (const uint8_t*)codes;
  Code* out = (Code*)to;
#ifdef INT8_DOT
  const uint8_t turn = with_sign ? 128 : 0;
  for (long i = 0; i < count; i++) out[i] = from[i] ^ turn;
  memset(out + count, (uint8_t)(zero + turn), depth - count);
#else
  if (with_sign) {
    for (long i = 0; i < count; i++) out[i] = (int16_t)((int8_t)from[i] - zero);
  } else {
    for (long i = 0; i < count; i++) out[i] = (int16_t)(from[i] - zero);
  }
  memset(out + count, 0, (depth - count) * sizeof(Code));
#endif
}

template <int R>
KERNEL void gather_of(long quads, const int32_t* at, const uint32_t* panel, uint32_t* to) {
  constexpr int BITS = 32 / kPerWord;
  constexpr uint32_t MASK = (uint32_t)((1ull << BITS) - 1);
  for (long word = 0; word < quads * kWords; word++, at += kPerWord, to += R) {
    uint32_t found[R] = {};
    UNROLL for (int i = 0; i < kPerWord; i++) {
      const uint32_t* from = panel + (long)(at[i] / kPerWord) * R;
      const int shift = at[i] % kPerWord * BITS;
      UNROLL for (int r = 0; r < R; r++) found[r] |= (from[r] >> shift & MASK) << (i * BITS);
    }
    memcpy(to, found, sizeof found);
  }
}

template <int R>
void gather_rows(int rows, long quads, const int32_t* at, const uint32_t* panel, uint32_t* to) {
  if (rows == R) return gather_of<R>(quads, at, panel, to);
  if constexpr (R > 1) gather_rows<R - 1>(rows, quads, at, panel, to);
}

void int8_gather(int rows, long quads, const int32_t* at, const uint32_t* panel, uint32_t* to) {
  gather_rows<INT8_ROWS>(rows, quads, at, panel, to);
}

// The quad of four rows of 16 weights.
INLINE void arrange_quad(const int8_t* const (&row)[4], char* to) {
#if LANES >= 8
  __m128i r[4];
  UNROLL for (int i = 0; i < 4; i++) r[i] = _mm_loadu_si128((const __m128i*)row[i]);
  const __m128i low[2] = {_mm_unpacklo_epi8(r[0], r[1]), _mm_unpacklo_epi8(r[2], r[3])};
  const __m128i high[2] = {_mm_unpackhi_epi8(r[0], r[1]), _mm_unpackhi_epi8(r[2], r[3])};
#ifdef INT8_DOT
  __m128i* out = (__m128i*)to;
  _mm_storeu_si128(out, _mm_unpacklo_epi16(low[0], low[1]));
  _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(low[0], low[1]));
  _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(high[0], high[1]));
  _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(high[0], high[1]));
#else
  __m256i* out = (__m256i*)to;
  UNROLL for (int s = 0; s < 2; s++) {
    _mm256_storeu_si256(out + 2 * s, _mm256_cvtepi8_epi16(low[s]));
    _mm256_storeu_si256(out + 2 * s + 1, _mm256_cvtepi8_epi16(high[s]));
  }
#endif
#else
  for (int c = 0; c < kStripColumns; c++)
    for (int i = 0; i < 4; i++) {
      const int16_t w = row[i][c];
      memcpy(to + (i / kPerWord) * kOperand + (c * kPerWord + i % kPerWord) * sizeof w, &w,
             sizeof w);
    }
#endif
}

KERNEL void arrange(const int8_t* rows, long step, long count, void* to, int32_t* sums) {
  static const int8_t zeros[kStripColumns] = {};
  char* out = (char*)to;
  for (long i = 0; i < count; i += 4, out += kWords * kOperand) {
    const int8_t* row[4];
    UNROLL for (int q = 0; q < 4; q++) row[q] = i + q < count ? rows + (i + q) * step : zeros;
    arrange_quad(row, out);
  }
#ifdef INT8_DOT
  IVec sum[kVectors] = {};
  for (const char* w = (const char*)to; w < out; w += kOperand)
    UNROLL for (int v = 0; v < kVectors; v++)
      sum[v] = multiply(sum[v], 0x01010101u, w + v * (4 * LANES));
  memcpy(sums, sum, sizeof sum);
#else
  (void)sums;
#endif
}

}  // namespace

namespace jaxsparse {

extern const Int8Kernels INT8_TABLE = {
    INT8_NAME, INT8_ROWS, kWords, widen_row, arrange, int8_gather, int8_product,
};

}  // namespace jaxsparse
