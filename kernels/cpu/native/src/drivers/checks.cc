#include <cstdint>

#include "drivers/products.h"

namespace jaxsparse {

const char* check_pointers(const int32_t* indptr, long count, long nnz) {
  if (indptr[0] != 0) return "pointers do not begin with 0";
  if (indptr[count] > nnz) return "pointers end beyond the stored entries";
  for (long i = 0; i < count; i++) {
    if (indptr[i] > indptr[i + 1]) return "pointers decrease";
  }
  return nullptr;
}

const char* check_indices(const BlockWeights& w) {
  // Negative numbers are large when unsigned.
  const auto at = [&](long e) { return (uint32_t)w.indices[e]; };
  for (long j = 0; j < w.block_columns(); j++) {
    const long begin = w.indptr[j], end = w.indptr[j + 1];
    uint32_t falls = 0;
    for (long e = begin + 1; e < end; e++) falls |= at(e) <= at(e - 1);
    if (falls) return "block rows do not ascend in their column";
    if (begin < end && (uint64_t)at(end - 1) >= (uint64_t)w.block_rows())
      return "a block row is outside the kernel";
  }
  return nullptr;
}

}  // namespace jaxsparse
