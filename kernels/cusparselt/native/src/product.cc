#include "product.h"

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace jaxsparse {
namespace {

constexpr uint32_t kAlignment = 16;  // bytes; XLA's buffers are aligned to more
constexpr size_t kPlans = 64;        // kept, over all devices

// What the library made, until it is taken apart again.
template <class T, cusparseStatus_t (*Destroy)(const T*)>
struct Owned {
  T raw{};
  bool live = false;
  Owned() = default;
  Owned(const Owned&) = delete;
  ~Owned() {
    if (live) Destroy(&raw);
  }
};
using Matrix = Owned<cusparseLtMatDescriptor_t, cusparseLtMatDescriptorDestroy>;
using Selection = Owned<cusparseLtMatmulAlgSelection_t, cusparseLtMatmulAlgSelectionDestroy>;
using Executable = Owned<cusparseLtMatmulPlan_t, cusparseLtMatmulPlanDestroy>;

std::string fault(const char* call, cusparseStatus_t status) {
  return std::string(call) + ": " + cusparseLtGetErrorString(status);
}

#define TRY(call, ...)                                                   \
  if (cusparseStatus_t status = call(__VA_ARGS__); status != CUSPARSE_STATUS_SUCCESS) \
  return fault(#call, status)

cudaDataType factor(Type type) {
  switch (type) {
    case Type::kBf16: return CUDA_R_16BF;
    case Type::kF16: return CUDA_R_16F;
    default: return CUDA_R_8I;
  }
}

// A handle belongs to the device that was current when it was made. It lives as long
// as the process: at exit the driver may be gone before we are.
std::string handle_of(int device, const cusparseLtHandle_t** handle) {
  static std::mutex mutex;
  static auto* handles = new std::map<int, std::unique_ptr<cusparseLtHandle_t>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& found = (*handles)[device];
  if (!found) {
    auto made = std::make_unique<cusparseLtHandle_t>();
    TRY(cusparseLtInit, made.get());
    found = std::move(made);
  }
  *handle = found.get();
  return {};
}

// Wᵀ (outputs, inputs), row-major.
std::string describe_weight(const cusparseLtHandle_t* handle, Type type, int64_t inputs,
                            int64_t outputs, Matrix* weight) {
  TRY(cusparseLtStructuredDescriptorInit, handle, &weight->raw, outputs, inputs, inputs,
      kAlignment, factor(type), CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT);
  weight->live = true;
  return {};
}

// A row-major array read as its transpose, (rows, columns) with the columns contiguous.
std::string describe_transpose(const cusparseLtHandle_t* handle, cudaDataType type, int64_t rows,
                               int64_t columns, Matrix* matrix) {
  TRY(cusparseLtDenseDescriptorInit, handle, &matrix->raw, rows, columns, rows, kAlignment, type,
      CUSPARSE_ORDER_COL);
  matrix->live = true;
  return {};
}

// Members refer to one another by address: a plan stays where it was made.
struct Plan {
  Matrix weight, x, y;
  cusparseLtMatmulDescriptor_t product;
  Selection selection;
  Executable executable;
  size_t workspace = 0, compressed = 0;

  std::string make(const cusparseLtHandle_t* handle, const Problem& p) {
    const bool whole = p.type == Type::kInt8;
    const cudaDataType result = whole ? CUDA_R_32I : factor(p.type);
    for (std::string error : {
             describe_weight(handle, p.type, p.inputs, p.outputs, &weight),
             describe_transpose(handle, factor(p.type), p.inputs, p.rows, &x),
             describe_transpose(handle, result, p.outputs, p.rows, &y),
         })
      if (!error.empty()) return error;
    TRY(cusparseLtMatmulDescriptorInit, handle, &product, CUSPARSE_OPERATION_NON_TRANSPOSE,
        CUSPARSE_OPERATION_NON_TRANSPOSE, &weight.raw, &x.raw, &y.raw, &y.raw,
        whole ? CUSPARSE_COMPUTE_32I : CUSPARSE_COMPUTE_32F);
    TRY(cusparseLtMatmulAlgSelectionInit, handle, &selection.raw, &product,
        CUSPARSELT_MATMUL_ALG_DEFAULT);
    selection.live = true;
    if (p.algorithm >= 0) {
      const int id = static_cast<int>(p.algorithm);
      TRY(cusparseLtMatmulAlgSetAttribute, handle, &selection.raw,
          CUSPARSELT_MATMUL_ALG_CONFIG_ID, &id, sizeof(id));
    }
    TRY(cusparseLtMatmulPlanInit, handle, &executable.raw, &product, &selection.raw);
    executable.live = true;
    TRY(cusparseLtMatmulGetWorkspace, handle, &executable.raw, &workspace);
    size_t scratch = 0;
    TRY(cusparseLtSpMMACompressedSize, handle, &executable.raw, &compressed, &scratch);
    return {};
  }
};

// The plan for a problem: the one made before, or a new one in the place of that which
// was longest unused. Who runs a plan shares it, so that nobody else ends it meanwhile.
std::string plan_of(int device, const cusparseLtHandle_t* handle, const Problem& problem,
                    std::shared_ptr<Plan>* plan) {
  struct Entry {
    int device;
    Problem problem;
    std::shared_ptr<Plan> plan;
  };
  static std::mutex mutex;
  static auto* latest_first = new std::list<Entry>;
  std::lock_guard<std::mutex> lock(mutex);
  for (auto entry = latest_first->begin(); entry != latest_first->end(); ++entry) {
    if (entry->device == device && entry->problem == problem) {
      latest_first->splice(latest_first->begin(), *latest_first, entry);
      *plan = entry->plan;
      return {};
    }
  }
  auto made = std::make_shared<Plan>();
  if (std::string error = made->make(handle, problem); !error.empty()) return error;
  latest_first->push_front({device, problem, made});
  if (latest_first->size() > kPlans) latest_first->pop_back();
  *plan = std::move(made);
  return {};
}

std::string wrong_size(size_t needed, size_t given) {
  return "cuSPARSELt's compressed form takes " + std::to_string(needed) + " bytes, " +
         std::to_string(given) + " were given";
}

std::string no_memory(size_t bytes) {
  return "no memory is left for " + std::to_string(bytes) + " bytes of scratch";
}

}  // namespace

std::string compress(int device, cudaStream_t stream, Type type, int64_t inputs, int64_t outputs,
                     const void* transposed, void* compressed, size_t bytes,
                     const Allocate& scratch) {
  const cusparseLtHandle_t* handle;
  if (std::string error = handle_of(device, &handle); !error.empty()) return error;
  Matrix weight;
  if (std::string error = describe_weight(handle, type, inputs, outputs, &weight); !error.empty())
    return error;
  size_t needed = 0, buffer = 0;
  TRY(cusparseLtSpMMACompressedSize2, handle, &weight.raw, &needed, &buffer);
  if (needed > bytes) return wrong_size(needed, bytes);
  void* room = buffer ? scratch(buffer) : nullptr;
  if (buffer && !room) return no_memory(buffer);
  TRY(cusparseLtSpMMACompress2, handle, &weight.raw, /*isSparseA=*/1,
      CUSPARSE_OPERATION_NON_TRANSPOSE, transposed, compressed, room, stream);
  return {};
}

std::string multiply(int device, cudaStream_t stream, const Problem& problem, const void* x,
                     const void* compressed, size_t bytes, void* y, const Allocate& scratch) {
  const cusparseLtHandle_t* handle;
  if (std::string error = handle_of(device, &handle); !error.empty()) return error;
  std::shared_ptr<Plan> plan;
  if (std::string error = plan_of(device, handle, problem, &plan); !error.empty()) return error;
  if (plan->compressed > bytes) return wrong_size(plan->compressed, bytes);
  void* room = plan->workspace ? scratch(plan->workspace) : nullptr;
  if (plan->workspace && !room) return no_memory(plan->workspace);
  const float one = 1, none = 0;
  TRY(cusparseLtMatmul, handle, &plan->executable.raw, &one, compressed, x, &none, y, y, room,
      &stream, 1);
  return {};
}

}  // namespace jaxsparse
