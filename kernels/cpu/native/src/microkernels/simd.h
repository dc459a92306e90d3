// Vectors of LANES floats by the compilers' vector extensions, so that one source
// serves every instruction set. Included by the microkernels only: everything
// here has internal linkage, because a function compiled for AVX-512 must never be
// the copy the linker keeps for a machine without it. For the same reason nothing
// from the standard library's templates is used below this file.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#ifndef LANES
#error "an isa_*.cc file defines LANES before including this"
#endif

#if LANES >= 8
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define KERNEL static __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 32")

namespace {

template <int L>
struct VecOf {
  typedef float F __attribute__((vector_size(L * 4)));
  typedef float Unaligned __attribute__((vector_size(L * 4), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(L * 4)));
  typedef uint32_t U __attribute__((vector_size(L * 4)));
  typedef uint16_t Half __attribute__((vector_size(L * 2)));
  typedef int8_t Byte __attribute__((vector_size(L)));
};
template <>
struct VecOf<1> {
  typedef float F;
  typedef float Unaligned __attribute__((may_alias));
  typedef int32_t I;
};
using Vec = VecOf<LANES>::F;
using IVec = VecOf<LANES>::I;

template <int L = LANES>
INLINE typename VecOf<L>::F load(const float* p) {
  return *reinterpret_cast<const typename VecOf<L>::Unaligned*>(p);
}
template <int L = LANES>
INLINE void store(float* p, typename VecOf<L>::F v) {
  *reinterpret_cast<typename VecOf<L>::Unaligned*>(p) = v;
}
template <int L = LANES>
INLINE typename VecOf<L>::F splat(float s) {
  return s - typename VecOf<L>::F{};
}

// Without this the compiler turns neighbouring addresses into one long dependent chain.
#define OPAQUE(p) asm("" : "+r"(p))

INLINE long smaller(long a, long b) { return a < b ? a : b; }

// How weights are stored. Wide is what one weight becomes before it is multiplied.
struct Bf16 {
  uint16_t bits;
};
INLINE float widen(float w) { return w; }
INLINE float widen(int8_t w) { return static_cast<float>(w); }
INLINE float widen(Bf16 w) {
  uint32_t u = static_cast<uint32_t>(w.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// Calls visit with the stored values as what they are. What visit calls had better be a KERNEL:
// what it captures lies in memory, where every store of a vector might change it.
template <class F>
INLINE auto with_values(int dtype, const void* values, const F& visit) {
  switch (dtype) {
    case jaxsparse::kF32: return visit(static_cast<const float*>(values));
    case jaxsparse::kBf16: return visit(static_cast<const Bf16*>(values));
    default: return visit(static_cast<const int8_t*>(values));
  }
}
// The same for rows, int32 where they are wide, else uint16.
template <class F>
INLINE auto with_rows(bool wide, const void* index, const F& visit) {
  return wide ? visit(static_cast<const int32_t*>(index))
              : visit(static_cast<const uint16_t*>(index));
}

INLINE Vec load_wide(const float* p) { return load(p); }
// The vector extensions' conversions cost GCC a dozen instructions where x86 has one.
INLINE Vec load_wide(const Bf16* p) {
#if LANES == 16
  return (Vec)_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p))), 16);
#elif LANES == 8
  return (Vec)_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p))), 16);
#else
  VecOf<LANES>::Half h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, VecOf<LANES>::U) << 16);
#endif
}
INLINE Vec load_wide(const int8_t* p) {
#if LANES == 16
  return (Vec)_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p))));
#elif LANES == 8
  return (Vec)_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(p))));
#else
  VecOf<LANES>::Byte b;
  memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, IVec), Vec);
#endif
}

// Transposes a LANES x LANES tile held in registers, in log2(LANES) exchanges; the first
// two exchanges of COUNT = 4 registers transpose every 4 x 4 part of them.
template <int D, int COUNT = LANES>
INLINE void exchange(Vec* r) {
  IVec low, high;
  UNROLL for (int i = 0; i < LANES; i++) {
    low[i] = (i & D) ? LANES + i - D : i;
    high[i] = (i & D) ? LANES + i : i + D;
  }
  UNROLL for (int i = 0; i < COUNT; i++) {
    if (!(i & D)) {
      Vec a = r[i], b = r[i + D];
#ifdef __clang__
      Vec lo, hi;
      UNROLL for (int j = 0; j < LANES; j++) {
        lo[j] = (j & D) ? b[j - D] : a[j];
        hi[j] = (j & D) ? b[j] : a[j + D];
      }
      r[i] = lo;
      r[i + D] = hi;
#else
      r[i] = __builtin_shuffle(a, b, low);
      r[i + D] = __builtin_shuffle(a, b, high);
#endif
    }
  }
}
INLINE void transpose(Vec* r) {
  exchange<1>(r);
  exchange<2>(r);
  if constexpr (LANES >= 8) exchange<4>(r);
  if constexpr (LANES >= 16) exchange<8>(r);
}

}  // namespace
