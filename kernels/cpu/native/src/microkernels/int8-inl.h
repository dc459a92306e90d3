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

// A vector of LANES words of 32 bits: the codes of one word in each, or LANES outputs' weights.
#if LANES == 16
using Words = __m512i;
INLINE Words load_words(const void* from) { return _mm512_loadu_si512(from); }
INLINE Words splat_word(uint32_t word) { return _mm512_set1_epi32((int)word); }
#elif LANES == 8
using Words = __m256i;
INLINE Words load_words(const void* from) { return _mm256_loadu_si256((const __m256i*)from); }
INLINE Words splat_word(uint32_t word) { return _mm256_set1_epi32((int)word); }
#else
struct Words {
  int16_t at[2 * LANES];
};
INLINE Words load_words(const void* from) {
  Words found;
  memcpy(&found, from, sizeof found);
  return found;
}
INLINE Words splat_word(uint32_t word) {
  Words found;
  UNROLL for (int c = 0; c < LANES; c++) memcpy(found.at + 2 * c, &word, sizeof word);
  return found;
}
#endif

// sum[c] += the products of a word's codes and an output's weights.
INLINE IVec multiply(IVec sum, Words x, Words w) {
#if defined(INT8_DOT) && LANES == 16
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, x, w);
#elif defined(INT8_DOT)
  return (IVec)_mm256_dpbusd_avx_epi32((__m256i)sum, x, w);
#elif LANES == 16
  return sum + (IVec)_mm512_madd_epi16(x, w);
#elif LANES == 8
  return sum + (IVec)_mm256_madd_epi16(x, w);
#else
  UNROLL for (int c = 0; c < LANES; c++)
    sum[c] += x.at[2 * c] * w.at[2 * c] + x.at[2 * c + 1] * w.at[2 * c + 1];
  return sum;
#endif
}

// Keeps 16 registers enough: weights are not loaded again for every row, and products are not
// all made before any is added.
#if LANES == 8
#define IN_ORDER(v) asm volatile("" : "+x"(v))
#else
#define IN_ORDER(v) ((void)(v))
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

// What is made of LANES sums; `finish` is constant where this is called.
template <int OUT>
INLINE void finish_vector(IVec sum, Vec scale, Vec bias, const Int8Finish& finish, char* y) {
  if constexpr (OUT == jaxsparse::kOutI32) {
    memcpy(y, &sum, sizeof sum);
    return;
  }
  Vec f = __builtin_convertvector(sum, Vec) * scale + bias;
  if (finish.relu) f = f < 0.f ? Vec{} : f;
  if constexpr (OUT == jaxsparse::kOutF32) {
    store(reinterpret_cast<float*>(y), f);
  } else if constexpr (OUT == jaxsparse::kOutBf16) {
    halve(f, y);
  } else {
    constexpr bool WITH_SIGN = OUT == jaxsparse::kOutI8;
    const Vec low = splat((float)((WITH_SIGN ? -128 : 0) - finish.zero)), high = low + 255.f;
    f = f * finish.inverse;
    f = f > low ? f : low;  // also for NaN
    f = f < high ? f : high;
    narrow(rounded(f) + finish.zero, WITH_SIGN, y);
  }
}

template <int OUT>
KERNEL void finish_as(int rows, const int32_t* sums, const StripColumns& columns,
                      const Int8Finish finish, char* y, long ld) {
  constexpr long SIZE = jaxsparse::out_bytes(OUT);
  IVec offset[kVectors];
  Vec scale[kVectors], bias[kVectors];
  UNROLL for (int v = 0; v < kVectors; v++) {
    memcpy(&offset[v], columns.offset + v * LANES, sizeof offset[v]);
    scale[v] = load(columns.scale + v * LANES);
    bias[v] = load(columns.bias + v * LANES);
  }
  for (int r = 0; r < rows; r++, sums += kStripColumns, y += ld * SIZE)
    UNROLL for (int v = 0; v < kVectors; v++) {
      IVec sum;
      memcpy(&sum, sums + v * LANES, sizeof sum);
      finish_vector<OUT>(sum + offset[v], scale[v], bias[v], finish, y + v * LANES * SIZE);
    }
}

void finish_rows(int rows, const int32_t* sums, const StripColumns& columns,
                 const Int8Finish& finish, char* y, long ld) {
#define OUT_CASE(OUT) \
  case jaxsparse::OUT: return finish_as<jaxsparse::OUT>(rows, sums, columns, finish, y, ld);
  switch (finish.out) {
    OUT_CASE(kOutF32) OUT_CASE(kOutBf16) OUT_CASE(kOutI32) OUT_CASE(kOutU8) OUT_CASE(kOutI8)
  }
#undef OUT_CASE
}

// --- products -------------------------------------------------------------------------------

// CHAINS independent sums hide the latency where there are few rows.
template <int R>
KERNEL void product_of(long quads, const int32_t* at, const char* w, const uint32_t* panel,
                       int32_t* sums) {
  constexpr int CHAINS = R * kVectors >= 8 ? 1 : R * kVectors >= 4 ? 2 : 4;
  IVec sum[CHAINS][R][kVectors];
  UNROLL for (int u = 0; u < CHAINS; u++)
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int v = 0; v < kVectors; v++) sum[u][r][v] = IVec{};
  const auto quad = [&](long i, IVec(&to)[R][kVectors]) __attribute__((always_inline)) {
    const uint32_t* x = panel + (at ? at[i] : i) * (kWords * R);
    UNROLL for (int s = 0; s < kWords; s++) {
      Words weights[kVectors];
      UNROLL for (int v = 0; v < kVectors; v++) {
        weights[v] = load_words(w + s * kOperand + v * (4 * LANES));
        IN_ORDER(weights[v]);
      }
      const auto row = [&](int r, Words codes) __attribute__((always_inline)) {
        UNROLL for (int v = 0; v < kVectors; v++) {
          to[r][v] = multiply(to[r][v], codes, weights[v]);
          IN_ORDER(to[r][v]);
        }
      };
      int r = 0;
#if defined(INT8_DOT) && LANES == 16
      // A load for every product is more than the load ports give: of four rows two are splat
      // from a register.
      UNROLL for (; r + 4 <= R; r += 4) {
        const Words four = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(x + r)));
        row(r, _mm512_shuffle_epi32(four, _MM_PERM_AAAA));
        row(r + 1, splat_word(x[r + 1]));
        row(r + 2, _mm512_shuffle_epi32(four, _MM_PERM_CCCC));
        row(r + 3, splat_word(x[r + 3]));
      }
#endif
      UNROLL for (; r < R; r++) row(r, splat_word(x[s * R + r]));
    }
    w += kWords * kOperand;
  };
  long i = 0;
  for (; i + CHAINS <= quads; i += CHAINS)
    UNROLL for (int u = 0; u < CHAINS; u++) quad(i + u, sum[u]);
  for (; i < quads; i++) quad(i, sum[0]);
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int v = 0; v < kVectors; v++) {
      UNROLL for (int u = 1; u < CHAINS; u++) sum[0][r][v] += sum[u][r][v];
      memcpy(sums + r * kStripColumns + v * LANES, &sum[0][r][v], sizeof(IVec));
    }
}

template <int R>
void product_rows(int rows, long quads, const int32_t* at, const char* w, const uint32_t* panel,
                  int32_t* sums) {
  if (rows == R) return product_of<R>(quads, at, w, panel, sums);
  if constexpr (R > 1) product_rows<R - 1>(rows, quads, at, w, panel, sums);
}

void int8_product(int rows, long quads, const int32_t* at, const void* weights,
                  const uint32_t* panel, const StripColumns& columns, const Int8Finish& finish,
                  void* y, long ld) {
  alignas(64) int32_t sums[INT8_ROWS * kStripColumns];
  product_rows<INT8_ROWS>(rows, quads, at, (const char*)weights, panel, sums);
  finish_rows(rows, sums, columns, finish, (char*)y, ld);
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
  if constexpr (R == 1) {  // a panel of one row is that row
    for (long i = 0; i < 4 * quads; i++) ((Code*)to)[i] = ((const Code*)panel)[at[i]];
    return;
  }
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
  long i = 0;
#if defined(INT8_DOT) && LANES == 16
  // Where rows lie side by side a quad is one vector: its words change places, then their bytes.
  const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (; step == kStripColumns && i + 4 <= count; i += 4, out += kOperand) {
    const __m512i quad = _mm512_loadu_si512(rows + i * step);
    _mm512_storeu_si512(out, _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, quad), bytes));
  }
#endif
  for (; i < count; i += 4, out += kWords * kOperand) {
    const int8_t* row[4];
    UNROLL for (int q = 0; q < 4; q++) row[q] = i + q < count ? rows + (i + q) * step : zeros;
    arrange_quad(row, out);
  }
#ifdef INT8_DOT
  if (sums == nullptr) return;
  constexpr int CHAINS = 4;
  const Words ones = splat_word(0x01010101u);
  IVec sum[CHAINS][kVectors] = {};
  const char* w = (const char*)to;
  for (; w + CHAINS * kOperand <= out; w += CHAINS * kOperand)
    UNROLL for (int u = 0; u < CHAINS; u++)
      UNROLL for (int v = 0; v < kVectors; v++)
        sum[u][v] = multiply(sum[u][v], ones, load_words(w + u * kOperand + v * (4 * LANES)));
  for (; w < out; w += kOperand)
    UNROLL for (int v = 0; v < kVectors; v++)
      sum[0][v] = multiply(sum[0][v], ones, load_words(w + v * (4 * LANES)));
  UNROLL for (int u = 1; u < CHAINS; u++)
    UNROLL for (int v = 0; v < kVectors; v++) sum[0][v] += sum[u][v];
  memcpy(sums, sum[0], sizeof sum[0]);
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
