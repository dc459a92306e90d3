// yᵀ = Wᵀ xᵀ with a 2:4 Wᵀ by cuSPARSELt; nothing of XLA here.
#pragma once

#include <cusparseLt.h>

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>

namespace jaxsparse {

enum class Type { kBf16, kF16, kInt8 };

// y (rows, outputs) = x (rows, inputs) @ W (inputs, outputs), all row-major.
struct Problem {
  Type type;
  int64_t rows, inputs, outputs;
  int64_t algorithm;  // one of cuSPARSELt's, or -1 for its own choice

  auto key() const { return std::tie(type, rows, inputs, outputs, algorithm); }
  bool operator==(const Problem& other) const { return key() == other.key(); }
};

// Scratch on the device, in the order of the stream; null where there is none left.
using Allocate = std::function<void*(size_t)>;

// Both return what went wrong, or nothing.

// Compresses Wᵀ (outputs, inputs) into `bytes` bytes.
std::string compress(int device, cudaStream_t stream, Type type, int64_t inputs, int64_t outputs,
                     const void* transposed, void* compressed, size_t bytes,
                     const Allocate& scratch);

std::string multiply(int device, cudaStream_t stream, const Problem& problem, const void* x,
                     const void* compressed, size_t bytes, void* y, const Allocate& scratch);

}  // namespace jaxsparse
