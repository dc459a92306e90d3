// Columns of single weights, each times its factor, added up into one column of the result. What
// has the factor zero is not among the columns asked for, and costs nothing.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::CscEntries;

// As many rows as fill a vector.
template <class Row>
struct RowsOf {
  typedef Row V __attribute__((vector_size(LANES * 4)));
  typedef Row Unaligned __attribute__((vector_size(LANES * 4), aligned(sizeof(Row)), may_alias));
};

template <class V>
INLINE bool any(V lanes) {
#if LANES == 16
  return _mm512_test_epi64_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif LANES == 8
  return !_mm256_testz_si256((__m256i)lanes, (__m256i)lanes);
#else
  uint64_t halves[2];
  memcpy(halves, &lanes, 16);
  return (halves[0] | halves[1]) != 0;
#endif
}

// Whether each row is above the one before. A list is short, so that what a compiler makes of the
// plain loop spends its time before and after it.
template <class Row>
INLINE bool ascend(const Row* rows, long count) {
  constexpr long kAtOnce = LANES * 4 / (long)sizeof(Row);
  if (count <= kAtOnce) {
    bool falls = false;
    for (long i = 1; i < count; i++) falls |= rows[i] <= rows[i - 1];
    return !falls;
  }
  using V = typename RowsOf<Row>::V;
  using Unaligned = typename RowsOf<Row>::Unaligned;
  V falls{};
  const auto look = [&](long i) __attribute__((always_inline)) {
    const V next = *reinterpret_cast<const Unaligned*>(rows + i);
    const V before = *reinterpret_cast<const Unaligned*>(rows + i - 1);
    falls |= (V)(next <= before);
  };
  for (long i = 1; i + kAtOnce <= count; i += kAtOnce) look(i);
  look(count - kAtOnce);
  return !any(falls);
}

using Four = VecOf<4>::F;

INLINE Four four(const float* w) { return load<4>(w); }
#if LANES == 4
INLINE Four four(const Bf16* w) { return load_wide(w); }
INLINE Four four(const int8_t* w) { return load_wide(w); }
#else
INLINE Four four(const Bf16* w) {
  return (Four)_mm_slli_epi32(
      _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(w))), 16);
}
INLINE Four four(const int8_t* w) {
  int32_t bytes;
  memcpy(&bytes, w, 4);
  return (Four)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
}
#endif

// out[row] += x * weight for a list of eight weights or more. Of the last eight, those that the
// ones before had already add zero: one jump to guess wrong, not three.
template <class W, class Row>
INLINE void add_list(const Row* rows, const W* w, long entries, float x, float* out) {
  using Bits = VecOf<4>::I;
  static const int32_t kLast[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
  const auto add = [&](long e, Four low, Four high) __attribute__((always_inline)) {
    UNROLL for (int u = 0; u < 4; u++) out[(long)rows[e + u]] += low[u];
    UNROLL for (int u = 0; u < 4; u++) out[(long)rows[e + 4 + u]] += high[u];
  };
  long e = 0;
  for (; e + 8 <= entries; e += 8) add(e, x * four(w + e), x * four(w + e + 4));
  Bits low, high;
  memcpy(&low, kLast + (entries - e), 16);
  memcpy(&high, kLast + (entries - e) + 4, 16);
  e = entries - 8;
  add(e, (Four)((Bits)(x * four(w + e)) & low), (Four)((Bits)(x * four(w + e + 4)) & high));
}

template <class T>
INLINE void prefetch_list(const T* at, long count) {
  const char* p = reinterpret_cast<const char*>(at);
  for (long b = 0; b < count * (long)sizeof(T); b += 64) __builtin_prefetch(p + b, 0, 3);
}

template <class W, class Row>
KERNEL bool csc_scatter_of(const Row* index, const W* values, const int32_t* indptr, long k,
                           const int32_t* columns, long count, const float* factors, float* out) {
  constexpr long kAhead = 2;  // lists: where the next ones lie no processor guesses
  for (long i = 0; i < count; i++) {
    if (i + kAhead < count) {
      const long begin = indptr[columns[i + kAhead]], end = indptr[columns[i + kAhead] + 1];
      prefetch_list(index + begin, end - begin);
      prefetch_list(values + begin, end - begin);
    }
    const long column = columns[i], begin = indptr[column], entries = indptr[column + 1] - begin;
    if (entries == 0) continue;
    const Row* rows = index + begin;
    const W* w = values + begin;
    if ((long)rows[entries - 1] >= k || !ascend(rows, entries)) return false;
    const float x = factors[column];
    if (entries >= 8) {
      add_list(rows, w, entries, x, out);
    } else {
      for (long e = 0; e < entries; e++) out[(long)rows[e]] += x * widen(w[e]);
    }
  }
  return true;
}

bool csc_scatter(const CscEntries& entries, const int32_t* indptr, long k, const int32_t* columns,
                 long count, const float* factors, float* out) {
  return with_values(entries.dtype, entries.values, [&](auto* values) {
    // Negative rows are large when unsigned.
    if (!entries.wide_index)
      return csc_scatter_of(static_cast<const uint16_t*>(entries.index), values, indptr, k,
                            columns, count, factors, out);
    return csc_scatter_of(static_cast<const uint32_t*>(entries.index), values, indptr, k, columns,
                          count, factors, out);
  });
}

}  // namespace
