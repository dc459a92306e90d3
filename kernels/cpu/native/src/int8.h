// Products of 8-bit codes by int8 weights, summed in integers: their own table of functions,
// for they know instruction sets that the other kernels have no use for.
//
// Words used throughout: a *strip* is 16 columns of y, a *quad* four inputs by the 16 outputs of
// a strip. Panels hold the codes of a few rows as words of 32 bits: panel[word][rows]. How many
// inputs share a word is the kernels' own: four codes of 8 bits, or two of 16, zero point taken
// off, where nothing multiplies 8 bits without saturating.
#pragma once

#include <cstdint>

#include "drivers/parallel.h"
#include "drivers/products.h"

namespace jaxsparse {

constexpr int kStripColumns = 16;

// What becomes of sums: y = relu(sum * scale + bias), as it is or in codes; or the sums.
enum Int8Out { kOutF32, kOutBf16, kOutI32, kOutU8, kOutI8 };
constexpr long out_bytes(int out) { return out <= kOutI32 ? (out == kOutBf16 ? 2 : 4) : 1; }
struct Int8Finish {
  int out;
  bool relu;
  float inverse;  // of the scale of y's codes
  int zero;       // their zero point
};

// What a strip's columns need besides weights.
struct StripColumns {
  int32_t offset[kStripColumns];  // added to the sums
  float scale[kStripColumns], bias[kStripColumns];
};

struct Int8Kernels {
  const char* name;
  int rows;   // of a panel, at most
  int words;  // of a panel that a quad takes: 1, or 2 where codes have 16 bits

  // A row of codes as a panel takes them, `depth` of them of which the last ones are the code of
  // zero: u8, int8 codes raised by 128; or int16 less the zero point.
  void (*widen_row)(const void* codes, bool with_sign, long count, long depth, int zero, void* to);
  // Rows of 16 weights, `step` apart, in the order of the kernels, four to a quad of
  // 64 * words bytes; rows that fill the last quad are zero. Adds up the columns into `sums`
  // where they are needed, which is with words of four codes.
  void (*arrange)(const int8_t* rows, long step, long count, void* to, int32_t* sums);
  // The words of a panel for quads whose inputs lie anywhere: of quad i the inputs at[4 * i + ...].
  void (*gather)(int rows, long quads, const int32_t* at, const uint32_t* panel, uint32_t* to);
  // y[rows][16] of a strip; quad i multiplies the words from at[i] * words on, or from i * words
  // on where there is no `at`. ld counts entries of y.
  void (*product)(int rows, long quads, const int32_t* at, const void* weights,
                  const uint32_t* panel, const StripColumns& columns, const Int8Finish& finish,
                  void* y, long ld);
};

// The best table for this processor, or the one that JAXSPARSE_CPU_ISA names.
const Int8Kernels& int8_kernels();

extern const Int8Kernels kInt8Portable;
#if defined(__x86_64__) || defined(__i386__)
extern const Int8Kernels kInt8Avx2, kInt8Avx512;
#ifdef JAXSPARSE_AVXVNNI
extern const Int8Kernels kInt8AvxVnni;
#endif
#ifdef JAXSPARSE_AVX512VNNI
extern const Int8Kernels kInt8Avx512Vnni;
#endif
#endif

// Codes x (rows, w.k) of 8 bits.
struct Codes {
  const void* at;
  bool with_sign;
  long rows, columns;
  float scale;
  int zero;
};

// y = what `finish` makes of (x - zero) @ w * scale * scales + bias; bias may be null.
void int8_dot(Pool& pool, const Codes& x, const BlockWeights& w, const float* scales,
                     const float* bias, const Int8Finish& finish, void* y);

}  // namespace jaxsparse
