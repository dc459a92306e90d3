// XLA FFI handlers: check dtypes and shapes, then hand over to cuSPARSELt.
#include <optional>

#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxsparse {
namespace {

using Bytes = ffi::Buffer<ffi::U8>;

ffi::Error fault(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxsparse cusparselt: " + what);
}

ffi::Error outcome(const std::string& error) {
  return error.empty() ? ffi::Error::Success() : ffi::Error::Internal("jaxsparse: " + error);
}

std::optional<Type> type_of(const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::BF16: return Type::kBf16;
    case ffi::DataType::F16: return Type::kF16;
    case ffi::DataType::S8: return Type::kInt8;
    default: return std::nullopt;
  }
}

bool is_matrix(const ffi::AnyBuffer& buffer) { return buffer.dimensions().size() == 2; }

Allocate from(ffi::ScratchAllocator& scratch) {
  return [&scratch](size_t bytes) { return scratch.Allocate(bytes, 256).value_or(nullptr); };
}

ffi::Error compress_handler(cudaStream_t stream, int32_t device, ffi::ScratchAllocator scratch,
                            ffi::AnyBuffer transposed, ffi::Result<Bytes> compressed) {
  const auto type = type_of(transposed);
  if (!type) return fault("weights must be bfloat16, float16 or int8");
  if (!is_matrix(transposed)) return fault("weights must be (N, K)");
  const auto shape = transposed.dimensions();
  return outcome(compress(device, stream, *type, shape[1], shape[0], transposed.untyped_data(),
                          compressed->typed_data(), compressed->size_bytes(), from(scratch)));
}

ffi::Error multiply_handler(cudaStream_t stream, int32_t device, ffi::ScratchAllocator scratch,
                            ffi::AnyBuffer x, Bytes compressed, ffi::Result<ffi::AnyBuffer> y,
                            int64_t algorithm) {
  const auto type = type_of(x);
  if (!type) return fault("x must be bfloat16, float16 or int8");
  const auto result = *type == Type::kInt8 ? ffi::DataType::S32 : x.element_type();
  if (y->element_type() != result) return fault("y must be of x's dtype, or int32 for int8");
  if (!is_matrix(x) || !is_matrix(*y)) return fault("x and y must have two axes");
  const auto in = x.dimensions(), out = y->dimensions();
  if (in[0] != out[0]) return fault("the batches of x and y differ");
  return outcome(multiply(device, stream, {*type, in[0], in[1], out[1], algorithm},
                          x.untyped_data(), compressed.typed_data(), compressed.size_bytes(),
                          y->untyped_data(), from(scratch)));
}

}  // namespace
}  // namespace jaxsparse

#define EXPORT extern "C" __attribute__((visibility("default")))
#define CALL                                      \
  ffi::Ffi::Bind()                                \
      .Ctx<ffi::PlatformStream<cudaStream_t>>()   \
      .Ctx<ffi::DeviceOrdinal>()                  \
      .Ctx<ffi::ScratchAllocator>()

EXPORT XLA_FFI_Error* jaxsparse_cusparselt_compress(XLA_FFI_CallFrame*);
EXPORT XLA_FFI_Error* jaxsparse_cusparselt_multiply(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_cusparselt_compress, jaxsparse::compress_handler,
                              CALL.Arg<ffi::AnyBuffer>().Ret<jaxsparse::Bytes>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_cusparselt_multiply, jaxsparse::multiply_handler,
                              CALL.Arg<ffi::AnyBuffer>()
                                  .Arg<jaxsparse::Bytes>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("algorithm"));

// What Python asks before it registers anything.
EXPORT int jaxsparse_ffi_major() { return XLA_FFI_API_MAJOR; }
EXPORT int jaxsparse_ffi_minor() { return XLA_FFI_API_MINOR; }
// Between minor versions the sizes of cuSPARSELt's structures may change.
EXPORT int jaxsparse_cusparselt_built() {
  return 1000 * CUSPARSELT_VER_MAJOR + CUSPARSELT_VER_MINOR;
}
EXPORT int jaxsparse_cusparselt_running() {
  int major = -1, minor = -1;
  cusparseLtGetProperty(MAJOR_VERSION, &major);
  cusparseLtGetProperty(MINOR_VERSION, &minor);
  return 1000 * major + minor;
}
