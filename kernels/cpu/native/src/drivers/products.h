// The products, free of XLA: ffi.cc binds them, tests call them directly. Arguments are
// already checked (shapes, dtypes, pointers' ends).
#pragma once

#include <algorithm>
#include <cstdint>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/patches.h"
#include "kernels.h"

namespace jaxsparse {

struct BlockWeights {
  long k, n;   // the logical shape; edge blocks reach beyond it
  int bk, bn;  // bn a multiple of 16
  int dtype;
  const void* values;     // (nnz, bk, bn)
  const int32_t* indptr;  // (ceil(n / bn) + 1,)
  const int32_t* indices;
  long nnz;  // stored; those from indptr's end on are room to spare

  long block() const { return (long)bk * bn; }
  const void* from(long e) const { return from_value(values, dtype, e * block()); }
  long block_rows() const { return (k + bk - 1) / bk; }
  long block_columns() const { return (n + bn - 1) / bn; }
};

struct CscWeights {
  long k, n;
  int dtype;
  const void* values;
  const int32_t* indptr;  // (n + 1,)
  const void* indices;    // uint16, or int32 where wide_index
  bool wide_index;
  long nnz;  // as for blocks

  CscEntries entries() const { return {dtype, wide_index, indices, values}; }
};

// Values in strips of rows, by strip, then column, then row, under a bit for every place. The
// first word of a column's bits holds the strip's first 32 rows, lowest bit first.
struct BitmapWeights {
  long k, n;
  int dtype;
  const void* values;
  const int32_t* starts;  // (strips * chunks + 1,): where the values of a chunk's columns begin
  const uint32_t* bits;   // (strips, n, words)
  int words;              // 8, or fewer where there is one strip
  long nnz;               // as for blocks

  long strip() const { return 32L * words; }
  long strips() const { return std::max<long>(1, (k + strip() - 1) / strip()); }
  long chunks() const { return (n + kTileColumns - 1) / kTileColumns; }
};

struct NmWeights {
  long k, n_columns;
  int n, m;  // m = 2, 4, 8 or 16
  int dtype;
  const void* values;         // (groups * n, columns)
  const uint32_t* positions;  // (ceil(groups * n / per_word), columns)

  long groups() const { return (k + m - 1) / m; }
  NmGroups from() const { return {dtype, n, m, groups(), n_columns, values, positions}; }
  int bits() const { return m <= 2 ? 1 : m <= 4 ? 2 : m <= 8 ? 3 : 4; }
  int per_word() const { return 32 / bits(); }
};

// First fault in pointers or indices, so that no product reads outside its arrays.
const char* check_pointers(const int32_t* indptr, long count, long nnz);
const char* check_indices(const BlockWeights& w);

// y = x @ W, dx = dy @ W^T and the entries of x^T @ dy where W stores any: float32 throughout.
// Every one returns the first fault found in W, or null. convolve is y = x @ W for the x that
// windows see in an image.
#define PRODUCTS(Weights)                                                             \
  const char* dot(Pool& pool, const Matrix& x, const Weights& w, float* y);           \
  const char* dot_transposed(Pool& pool, const Matrix& dy, const Weights& w, float* dx); \
  const char* sampled(Pool& pool, const Matrix& x, const Matrix& dy, const Weights& w, float* out); \
  const char* convolve(Pool& pool, const Image& x, const Weights& w, float* y);
PRODUCTS(BlockWeights)
PRODUCTS(CscWeights)
PRODUCTS(BitmapWeights)
PRODUCTS(NmWeights)
#undef PRODUCTS

// dx for kScatterRows rows of dy at most. What a zero of dy would multiply is not read, so not
// checked either.
constexpr long kScatterRows = 8;
bool scatter_transposed(Pool& pool, const Matrix& dy, const CscWeights& w, float* dx);

}  // namespace jaxsparse
