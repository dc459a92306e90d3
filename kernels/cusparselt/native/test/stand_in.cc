// cuSPARSELt's functions as far as product.cc calls them, on the host. Its compressed
// form is its own: the pairs kept, then four bits a group. What it cannot do it refuses,
// and it counts what is alive.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "product.h"

namespace {

struct Matrix {
  int64_t rows, cols, ld;
  cudaDataType type;
  cusparseOrder_t order;
  bool sparse;
  int64_t at(int64_t r, int64_t c) const {
    return order == CUSPARSE_ORDER_ROW ? r * ld + c : c * ld + r;
  }
};
struct Product {
  const Matrix *a, *b, *c;
  cusparseComputeType compute;
};
struct Selection {
  const Product* product;
  int algorithm;
};
struct Plan {
  const Product* product;
  int algorithm;
};

std::atomic<int> live_handles, live_matrices, live_plans, made_plans;

template <class T, class Raw>
const T* as(const Raw* raw) {
  static_assert(sizeof(T) <= sizeof(raw->data));
  return reinterpret_cast<const T*>(raw->data);
}
template <class T, class Raw>
void put(Raw* raw, const T& value) {
  new (raw->data) T(value);
}

size_t width(cudaDataType type) { return type == CUDA_R_8I ? 1 : type == CUDA_R_32I ? 4 : 2; }

double load(const void* p, int64_t i, cudaDataType type) {
  if (type == CUDA_R_8I) return static_cast<const int8_t*>(p)[i];
  const uint16_t half = static_cast<const uint16_t*>(p)[i];
  if (type == CUDA_R_16BF) {
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  double value = exponent ? (1024 + fraction) / 1024.0 : fraction / 512.0;
  for (int e = 15; e < exponent; ++e) value *= 2;
  for (int e = exponent; e < 15; ++e) value /= 2;
  return half >> 15 ? -value : value;
}

// Rounds towards zero: the tests multiply whole numbers that need no rounding.
void store(void* p, int64_t i, cudaDataType type, double value) {
  if (type == CUDA_R_32I) {
    static_cast<int32_t*>(p)[i] = static_cast<int32_t>(value);
    return;
  }
  const float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (type == CUDA_R_16F) {
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    half = exponent <= 0 ? 0 : static_cast<uint16_t>(exponent << 10 | (bits >> 13 & 1023));
    half |= static_cast<uint16_t>(bits >> 16 & 0x8000);
  }
  static_cast<uint16_t*>(p)[i] = half;
}

cusparseStatus_t describe(cusparseLtMatDescriptor_t* raw, const Matrix& m, int multiple) {
  if (m.rows % multiple || m.cols % multiple || m.ld % multiple) return CUSPARSE_STATUS_NOT_SUPPORTED;
  if (m.ld < (m.order == CUSPARSE_ORDER_ROW ? m.cols : m.rows)) return CUSPARSE_STATUS_INVALID_VALUE;
  put(raw, m);
  ++live_matrices;
  return CUSPARSE_STATUS_SUCCESS;
}

size_t values_bytes(const Matrix& m) { return m.rows * m.cols / 2 * width(m.type); }

const char* say(const std::string& error) {
  static thread_local std::string last;
  last = error;
  return last.empty() ? nullptr : last.c_str();
}

}  // namespace

using Handle = const cusparseLtHandle_t*;

extern "C" {

const char* cusparseLtGetErrorString(cusparseStatus_t status) {
  return status == CUSPARSE_STATUS_NOT_SUPPORTED ? "not supported" : "invalid value";
}
cusparseStatus_t cusparseLtInit(cusparseLtHandle_t*) {
  ++live_handles;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtDenseDescriptorInit(Handle, cusparseLtMatDescriptor_t* raw, int64_t rows,
                                               int64_t cols, int64_t ld, uint32_t, cudaDataType type,
                                               cusparseOrder_t order) {
  return describe(raw, {rows, cols, ld, type, order, false}, type == CUDA_R_8I ? 16 : 8);
}
cusparseStatus_t cusparseLtStructuredDescriptorInit(Handle, cusparseLtMatDescriptor_t* raw,
                                                    int64_t rows, int64_t cols, int64_t ld,
                                                    uint32_t, cudaDataType type,
                                                    cusparseOrder_t order, cusparseLtSparsity_t) {
  return describe(raw, {rows, cols, ld, type, order, true}, type == CUDA_R_8I ? 32 : 16);
}
cusparseStatus_t cusparseLtMatDescriptorDestroy(const cusparseLtMatDescriptor_t*) {
  --live_matrices;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulDescriptorInit(
    Handle, cusparseLtMatmulDescriptor_t* raw, cusparseOperation_t opA, cusparseOperation_t opB,
    const cusparseLtMatDescriptor_t* a, const cusparseLtMatDescriptor_t* b,
    const cusparseLtMatDescriptor_t* c, const cusparseLtMatDescriptor_t* d,
    cusparseComputeType compute) {
  const Product p{as<Matrix>(a), as<Matrix>(b), as<Matrix>(c), compute};
  const bool whole = p.a->type == CUDA_R_8I;
  const bool fits = p.a->sparse && !p.b->sparse && p.a->cols == p.b->rows &&
                    p.c->rows == p.a->rows && p.c->cols == p.b->cols && c == d;
  const bool types = p.b->type == p.a->type && p.c->type == (whole ? CUDA_R_32I : p.a->type) &&
                     compute == (whole ? CUSPARSE_COMPUTE_32I : CUSPARSE_COMPUTE_32F);
  if (opA != CUSPARSE_OPERATION_NON_TRANSPOSE || opB != opA || !fits || !types)
    return CUSPARSE_STATUS_INVALID_VALUE;
  put(raw, p);
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulAlgSelectionInit(Handle, cusparseLtMatmulAlgSelection_t* raw,
                                                  const cusparseLtMatmulDescriptor_t* product,
                                                  cusparseLtMatmulAlg_t) {
  put(raw, Selection{as<Product>(product), 0});
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulAlgSelectionDestroy(const cusparseLtMatmulAlgSelection_t*) {
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulAlgSetAttribute(Handle, cusparseLtMatmulAlgSelection_t* raw,
                                                 cusparseLtMatmulAlgAttribute_t attribute,
                                                 const void* data, size_t size) {
  int id;
  if (attribute != CUSPARSELT_MATMUL_ALG_CONFIG_ID || size != sizeof(id))
    return CUSPARSE_STATUS_INVALID_VALUE;
  std::memcpy(&id, data, size);
  if (id > 3) return CUSPARSE_STATUS_INVALID_VALUE;
  put(raw, Selection{as<Selection>(raw)->product, id});
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulPlanInit(Handle, cusparseLtMatmulPlan_t* raw,
                                          const cusparseLtMatmulDescriptor_t* product,
                                          const cusparseLtMatmulAlgSelection_t* selection) {
  put(raw, Plan{as<Product>(product), as<Selection>(selection)->algorithm});
  ++live_plans;
  ++made_plans;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulPlanDestroy(const cusparseLtMatmulPlan_t*) {
  --live_plans;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulGetWorkspace(Handle, const cusparseLtMatmulPlan_t* plan,
                                              size_t* bytes) {
  *bytes = 64 * as<Plan>(plan)->algorithm;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtSpMMACompressedSize2(Handle, const cusparseLtMatDescriptor_t* raw,
                                                size_t* bytes, size_t* buffer) {
  const Matrix& m = *as<Matrix>(raw);
  *bytes = values_bytes(m) + m.rows * m.cols / 8;
  *buffer = 256;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtSpMMACompressedSize(Handle handle, const cusparseLtMatmulPlan_t* plan,
                                               size_t* bytes, size_t* buffer) {
  cusparseLtMatDescriptor_t raw;
  put(&raw, *as<Plan>(plan)->product->a);
  return cusparseLtSpMMACompressedSize2(handle, &raw, bytes, buffer);
}
cusparseStatus_t cusparseLtSpMMACompress2(Handle, const cusparseLtMatDescriptor_t* raw, int sparse_a,
                                          cusparseOperation_t op, const void* dense,
                                          void* compressed, void* buffer, cudaStream_t) {
  const Matrix& m = *as<Matrix>(raw);
  if (!sparse_a || op != CUSPARSE_OPERATION_NON_TRANSPOSE || !m.sparse || !buffer)
    return CUSPARSE_STATUS_INVALID_VALUE;
  auto* values = static_cast<char*>(compressed);
  auto* codes = static_cast<uint8_t*>(compressed) + values_bytes(m);
  std::memset(codes, 0, m.rows * m.cols / 8);
  const size_t wide = width(m.type);
  for (int64_t g = 0; g < m.rows * m.cols / 4; ++g) {
    const int64_t row = 4 * g / m.cols, first = 4 * g % m.cols;
    int kept[4], count = 0;
    for (int i = 0; i < 4; ++i)
      if (load(dense, m.at(row, first + i), m.type) != 0) kept[count++] = i;
    if (count > 2) return CUSPARSE_STATUS_INVALID_VALUE;
    for (int i = 0; count < 2; ++i)
      if (!count || kept[0] != i) kept[count++] = i;
    for (int i = 0; i < 2; ++i)
      std::memcpy(values + (2 * g + i) * wide,
                  static_cast<const char*>(dense) + m.at(row, first + kept[i]) * wide, wide);
    codes[g / 2] |= (kept[0] | kept[1] << 2) << 4 * (g % 2);
  }
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmul(Handle, const cusparseLtMatmulPlan_t* plan, const void* alpha,
                                  const void* compressed, const void* x, const void* beta,
                                  const void* c, void* d, void* workspace, cudaStream_t*,
                                  int32_t streams) {
  const Product& p = *as<Plan>(plan)->product;
  const Matrix &a = *p.a, &b = *p.b, &y = *p.c;
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0 || c != d ||
      streams != 1 || !workspace != !as<Plan>(plan)->algorithm)
    return CUSPARSE_STATUS_INVALID_VALUE;
  const auto* codes = static_cast<const uint8_t*>(compressed) + values_bytes(a);
  for (int64_t r = 0; r < y.rows; ++r) {
    for (int64_t col = 0; col < y.cols; ++col) {
      double sum = 0;
      for (int64_t g = r * a.cols / 4; g < (r + 1) * a.cols / 4; ++g) {
        const int code = codes[g / 2] >> 4 * (g % 2) & 15;
        const int64_t first = 4 * g % a.cols;
        for (int i = 0; i < 2; ++i)
          sum += load(compressed, 2 * g + i, a.type) *
                 load(x, b.at(first + (code >> 2 * i & 3), col), b.type);
      }
      store(d, y.at(r, col), y.type, sum);
    }
  }
  return CUSPARSE_STATUS_SUCCESS;
}

// What the tests call.

#define EXPORT __attribute__((visibility("default")))

EXPORT int stand_in_handles() { return live_handles; }
EXPORT int stand_in_matrices() { return live_matrices; }
EXPORT int stand_in_plans() { return live_plans; }
EXPORT int stand_in_plans_made() { return made_plans; }

EXPORT const char* stand_in_compress(int device, int type, int64_t inputs, int64_t outputs,
                                     const void* transposed, void* compressed, size_t bytes,
                                     size_t memory) {
  void* scratch = nullptr;
  const auto error = jaxsparse::compress(
      device, nullptr, static_cast<jaxsparse::Type>(type), inputs, outputs, transposed, compressed,
      bytes, [&](size_t wanted) { return scratch = wanted <= memory ? std::malloc(wanted) : nullptr; });
  std::free(scratch);
  return say(error);
}
EXPORT const char* stand_in_multiply(int device, int type, int64_t rows, int64_t inputs,
                                     int64_t outputs, int64_t algorithm, const void* x,
                                     const void* compressed, size_t bytes, void* y, size_t memory) {
  void* scratch = nullptr;
  const auto error = jaxsparse::multiply(
      device, nullptr, {static_cast<jaxsparse::Type>(type), rows, inputs, outputs, algorithm}, x,
      compressed, bytes, y,
      [&](size_t wanted) { return scratch = wanted <= memory ? std::malloc(wanted) : nullptr; });
  std::free(scratch);
  return say(error);
}

}  // extern "C"
