#include "products.h"

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
  // One pass without branches: negative numbers are large when unsigned.
  const uint32_t rows = (uint32_t)w.block_rows();
  uint32_t bad = 0;
  for (long e = 0; e < w.nnz; e++) bad |= (uint32_t)w.indices[e] >= rows;
  return bad ? "a block row is outside the kernel" : nullptr;
}

}  // namespace jaxsparse
