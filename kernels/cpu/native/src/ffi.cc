// XLA FFI handlers: check what is cheap to check, then call the products.
#include <new>
#include <optional>
#include <string>

#include "products.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxsparse {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Words = ffi::Buffer<ffi::U32>;
using Scales = std::optional<Floats>;
using Out = ffi::Result<Floats>;

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int threads() const override { return (int)std::max<int64_t>(1, pool_.num_threads()); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

template <class B>
long rank(const B& b) {
  return (long)b.dimensions().size();
}
template <class B>
long dim(const B& b, int i) {
  return (long)b.dimensions()[i];
}

ffi::Error fault(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxsparse cpu kernel: " + what);
}

// The first thing wrong.
struct Checks {
  std::string message;
  Checks& that(bool ok, const char* what) {
    if (!ok && message.empty()) message = what;
    return *this;
  }
  bool failed() const { return !message.empty(); }
};

int dtype_of(const ffi::AnyBuffer& b) {
  switch (b.element_type()) {
    case ffi::DataType::F32: return kF32;
    case ffi::DataType::BF16: return kBf16;
    case ffi::DataType::S8: return kI8;
    default: return -1;
  }
}

Matrix matrix(const Floats& b) { return {b.typed_data(), dim(b, 0), dim(b, 1)}; }

// Runs a product that returns a message or null, and says so when memory runs out.
template <class F>
ffi::Error run(ffi::ThreadPool& threads, const F& product) {
  XlaPool pool(threads);
  try {
    const char* message = product(pool);
    return message ? fault(message) : ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxsparse cpu kernel: out of memory");
  }
}

// As run does, then y's columns times their scales, where there are any. Left to XLA, that
// multiplication makes it start the whole program on another thread, and few rows wait longer
// for that than the product takes.
template <class F>
ffi::Error run_scaled(ffi::ThreadPool& threads, const Scales& scales, Floats& y,
                      const F& product) {
  const long rows = dim(y, 0), columns = dim(y, 1);
  if (scales && (rank(*scales) != 1 || dim(*scales, 0) != columns))
    return fault("scales must have one entry for every column of y");
  return run(threads, [&](Pool& pool) {
    const char* message = product(pool);
    if (message || !scales) return message;
    const long at_once = std::max<long>(1, 16384 / std::max<long>(1, columns));
    const float* scale = scales->typed_data();
    parallel_for(pool, (rows + at_once - 1) / at_once, [&](long i) {
      for (long r = i * at_once; r < std::min(rows, (i + 1) * at_once); r++) {
        float* __restrict row = y.typed_data() + r * columns;
        for (long c = 0; c < columns; c++) row[c] *= scale[c];
      }
    });
    return message;
  });
}

// `blocks` is (nnz, bk, bn): the weights, or the sampled product's result.
template <class Blocks>
ffi::Error block_weights(const Blocks& blocks, int dtype, const void* values, const Ints& indptr,
                         const Ints& indices, long k, long n, BlockWeights* w) {
  Checks c;
  c.that(rank(blocks) == 3, "values must be (nnz, bk, bn)")
      .that(dtype >= 0, "values must be float32, bfloat16 or int8")
      .that(rank(indptr) == 1 && rank(indices) == 1, "indptr and indices must have one axis");
  if (c.failed()) return fault(c.message);
  const long bk = dim(blocks, 1), bn = dim(blocks, 2), nnz = dim(blocks, 0);
  c.that(bk >= 1 && bk <= 32768, "a block needs between 1 and 32768 rows")
      .that(bn >= 16 && bn % 16 == 0 && bn <= 32768, "a block's columns must be a multiple of 16");
  if (c.failed()) return fault(c.message);
  *w = {k, n, (int)bk, (int)bn, dtype, values, indptr.typed_data(), indices.typed_data(),
        nnz};
  c.that(dim(indices, 0) == nnz, "indices and values differ in length")
      .that(dim(indptr, 0) == w->block_columns() + 1,
            "indptr must have one entry more than there are block columns");
  if (c.failed()) return fault(c.message);
  if (const char* m = check_pointers(w->indptr, w->block_columns(), nnz)) return fault(m);
  if (const char* m = check_indices(*w)) return fault(m);
  return ffi::Error::Success();
}

ffi::Error csc_weights(long nnz, int dtype, const void* values, const Ints& indptr,
                       const ffi::AnyBuffer& indices, long k, long n, CscWeights* w) {
  const bool wide = indices.element_type() == ffi::DataType::S32;
  Checks c;
  c.that(dtype >= 0, "values must be float32, bfloat16 or int8")
      .that(rank(indptr) == 1 && rank(indices) == 1, "indptr and indices must have one axis")
      .that(wide || indices.element_type() == ffi::DataType::U16,
            "indices must be int32 or uint16");
  if (c.failed()) return fault(c.message);
  c.that(dim(indices, 0) == nnz, "indices and values differ in length")
      .that(dim(indptr, 0) == n + 1, "indptr must have one entry more than there are columns");
  if (c.failed()) return fault(c.message);
  *w = {k, n, dtype, values, indptr.typed_data(), indices.untyped_data(), wide, nnz};
  if (const char* m = check_pointers(w->indptr, n, nnz)) return fault(m);
  if (k == 0 && w->indptr[n] > 0) return fault("a kernel without rows stores no entries");
  return ffi::Error::Success();
}

ffi::Error bitmap_weights(long nnz, int dtype, const void* values, const Ints& starts,
                          const Words& bits, long k, long n, BitmapWeights* w) {
  Checks c;
  c.that(dtype >= 0, "values must be float32, bfloat16 or int8")
      .that(rank(starts) == 1 && rank(bits) == 3, "starts must have one axis, bits three");
  if (c.failed()) return fault(c.message);
  const long words = dim(bits, 2);
  c.that(words == std::max<long>(1, std::min<long>(8, (k + 31) / 32)),
         "a strip's bits must be 8 words, or ceil(K / 32) where that is less");
  if (c.failed()) return fault(c.message);
  *w = {k, n, dtype, values, starts.typed_data(), bits.typed_data(), (int)words, nnz};
  c.that(dim(bits, 0) == w->strips() && dim(bits, 1) == n, "bits must be (strips, N, words)")
      .that(dim(starts, 0) == w->strips() * w->chunks() + 1,
            "starts must have one entry more than strips times chunks of 64 columns");
  if (c.failed()) return fault(c.message);
  if (const char* m = check_pointers(w->starts, w->strips() * w->chunks(), nnz)) return fault(m);
  return ffi::Error::Success();
}

template <class Values>
ffi::Error nm_weights(const Values& stored, int dtype, const void* values, const Words& positions,
                      long k, long columns, int64_t n, int64_t m, NmWeights* w) {
  Checks c;
  c.that(dtype >= 0, "values must be float32, bfloat16 or int8")
      .that(m == 2 || m == 4 || m == 8 || m == 16, "m must be 2, 4, 8 or 16")
      .that(n >= 1 && n <= m, "n must be between 1 and m")
      .that(rank(stored) == 2 && rank(positions) == 2, "values and positions must have two axes");
  if (c.failed()) return fault(c.message);
  *w = {k, columns, (int)n, (int)m, dtype, values, positions.typed_data()};
  const long rows = w->groups() * n;
  c.that(dim(stored, 0) == rows && dim(stored, 1) == columns,
         "values must be (ceil(K / m) * n, N)")
      .that(dim(positions, 0) == (rows + w->per_word() - 1) / w->per_word() &&
                dim(positions, 1) == columns,
            "positions must be (ceil(rows / positions in a word), N)");
  return c.failed() ? fault(c.message) : ffi::Error::Success();
}

#define RETURN_IF_FAILED(expression) \
  if (ffi::Error error = (expression); error.failure()) return error

ffi::Error same_batch(const Floats& a, const Floats& b) {
  if (rank(a) != 2 || rank(b) != 2) return fault("x, y and dy must have two axes");
  if (dim(a, 0) != dim(b, 0)) return fault("the batches differ");
  return ffi::Error::Success();
}

ffi::Error block_dot_handler(ffi::ThreadPool threads, Floats x, ffi::AnyBuffer values, Ints indptr,
                             Ints indices, Scales scales, Out y) {
  RETURN_IF_FAILED(same_batch(x, *y));
  BlockWeights w;
  RETURN_IF_FAILED(block_weights(values, dtype_of(values), values.untyped_data(), indptr, indices,
                                 dim(x, 1), dim(*y, 1), &w));
  return run_scaled(threads, scales, *y, [&](Pool& pool) -> const char* {
    block_dot(pool, matrix(x), w, y->typed_data());
    return nullptr;
  });
}

ffi::Error block_dot_transposed_handler(ffi::ThreadPool threads, Floats dy, ffi::AnyBuffer values,
                                        Ints indptr, Ints indices, Out dx) {
  RETURN_IF_FAILED(same_batch(dy, *dx));
  BlockWeights w;
  RETURN_IF_FAILED(block_weights(values, dtype_of(values), values.untyped_data(), indptr, indices,
                                 dim(*dx, 1), dim(dy, 1), &w));
  return run(threads, [&](Pool& pool) {
    block_dot_transposed(pool, matrix(dy), w, dx->typed_data());
    return nullptr;
  });
}

ffi::Error block_sampled_handler(ffi::ThreadPool threads, Floats x, Floats dy, Ints indptr,
                                 Ints indices, Out out) {
  RETURN_IF_FAILED(same_batch(x, dy));
  BlockWeights w;
  RETURN_IF_FAILED(
      block_weights(*out, kF32, nullptr, indptr, indices, dim(x, 1), dim(dy, 1), &w));
  return run(threads, [&](Pool& pool) {
    block_sampled(pool, matrix(x), matrix(dy), w, out->typed_data());
    return nullptr;
  });
}

ffi::Error csc_dot_handler(ffi::ThreadPool threads, Floats x, ffi::AnyBuffer values, Ints indptr,
                           ffi::AnyBuffer indices, Scales scales, Out y) {
  RETURN_IF_FAILED(same_batch(x, *y));
  CscWeights w;
  RETURN_IF_FAILED(csc_weights((long)values.element_count(), dtype_of(values),
                               values.untyped_data(), indptr, indices, dim(x, 1), dim(*y, 1), &w));
  return run_scaled(threads, scales, *y,
                    [&](Pool& pool) { return csc_dot(pool, matrix(x), w, y->typed_data()); });
}

ffi::Error csc_dot_transposed_handler(ffi::ThreadPool threads, Floats dy, ffi::AnyBuffer values,
                                      Ints indptr, ffi::AnyBuffer indices, Out dx) {
  RETURN_IF_FAILED(same_batch(dy, *dx));
  CscWeights w;
  RETURN_IF_FAILED(csc_weights((long)values.element_count(), dtype_of(values),
                               values.untyped_data(), indptr, indices, dim(*dx, 1), dim(dy, 1),
                               &w));
  return run(threads, [&](Pool& pool) {
    return csc_dot_transposed(pool, matrix(dy), w, dx->typed_data());
  });
}

ffi::Error csc_sampled_handler(ffi::ThreadPool threads, Floats x, Floats dy, Ints indptr,
                               ffi::AnyBuffer indices, Out out) {
  RETURN_IF_FAILED(same_batch(x, dy));
  CscWeights w;
  RETURN_IF_FAILED(csc_weights((long)out->element_count(), kF32, nullptr, indptr, indices,
                               dim(x, 1), dim(dy, 1), &w));
  return run(threads, [&](Pool& pool) {
    return csc_sampled(pool, matrix(x), matrix(dy), w, out->typed_data());
  });
}

ffi::Error bitmap_dot_handler(ffi::ThreadPool threads, Floats x, ffi::AnyBuffer values,
                              Ints starts, Words bits, Scales scales, Out y) {
  RETURN_IF_FAILED(same_batch(x, *y));
  BitmapWeights w;
  RETURN_IF_FAILED(bitmap_weights((long)values.element_count(), dtype_of(values),
                                  values.untyped_data(), starts, bits, dim(x, 1), dim(*y, 1), &w));
  return run_scaled(threads, scales, *y,
                    [&](Pool& pool) { return bitmap_dot(pool, matrix(x), w, y->typed_data()); });
}

ffi::Error bitmap_dot_transposed_handler(ffi::ThreadPool threads, Floats dy, ffi::AnyBuffer values,
                                         Ints starts, Words bits, Out dx) {
  RETURN_IF_FAILED(same_batch(dy, *dx));
  BitmapWeights w;
  RETURN_IF_FAILED(bitmap_weights((long)values.element_count(), dtype_of(values),
                                  values.untyped_data(), starts, bits, dim(*dx, 1), dim(dy, 1),
                                  &w));
  return run(threads, [&](Pool& pool) {
    return bitmap_dot_transposed(pool, matrix(dy), w, dx->typed_data());
  });
}

ffi::Error bitmap_sampled_handler(ffi::ThreadPool threads, Floats x, Floats dy, Ints starts,
                                  Words bits, Out out) {
  RETURN_IF_FAILED(same_batch(x, dy));
  BitmapWeights w;
  RETURN_IF_FAILED(bitmap_weights((long)out->element_count(), kF32, nullptr, starts, bits,
                                  dim(x, 1), dim(dy, 1), &w));
  return run(threads, [&](Pool& pool) {
    return bitmap_sampled(pool, matrix(x), matrix(dy), w, out->typed_data());
  });
}

ffi::Error nm_dot_handler(ffi::ThreadPool threads, Floats x, ffi::AnyBuffer values,
                          Words positions, Scales scales, Out y, int64_t n, int64_t m) {
  RETURN_IF_FAILED(same_batch(x, *y));
  NmWeights w;
  RETURN_IF_FAILED(nm_weights(values, dtype_of(values), values.untyped_data(), positions,
                              dim(x, 1), dim(*y, 1), n, m, &w));
  return run_scaled(threads, scales, *y, [&](Pool& pool) -> const char* {
    nm_dot(pool, matrix(x), w, y->typed_data());
    return nullptr;
  });
}

ffi::Error nm_dot_transposed_handler(ffi::ThreadPool threads, Floats dy, ffi::AnyBuffer values,
                                     Words positions, Out dx, int64_t n, int64_t m) {
  RETURN_IF_FAILED(same_batch(dy, *dx));
  NmWeights w;
  RETURN_IF_FAILED(nm_weights(values, dtype_of(values), values.untyped_data(), positions,
                              dim(*dx, 1), dim(dy, 1), n, m, &w));
  return run(threads, [&](Pool& pool) {
    nm_dot_transposed(pool, matrix(dy), w, dx->typed_data());
    return nullptr;
  });
}

ffi::Error nm_sampled_handler(ffi::ThreadPool threads, Floats x, Floats dy, Words positions,
                              Out out, int64_t n, int64_t m) {
  RETURN_IF_FAILED(same_batch(x, dy));
  NmWeights w;
  RETURN_IF_FAILED(
      nm_weights(*out, kF32, nullptr, positions, dim(x, 1), dim(dy, 1), n, m, &w));
  return run(threads, [&](Pool& pool) {
    nm_sampled(pool, matrix(x), matrix(dy), w, out->typed_data());
    return nullptr;
  });
}

}  // namespace
}  // namespace jaxsparse

#define HANDLER(name, binding)                                                       \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* jaxsparse_##name( \
      XLA_FFI_CallFrame*);                                                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_##name, jaxsparse::name##_handler, binding)

#define CALL ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define SCALED OptionalArg<Floats>().Ret<Floats>()
#define NM_ATTRIBUTES Attr<int64_t>("n").Attr<int64_t>("m")
using jaxsparse::Floats;
using jaxsparse::Ints;
using jaxsparse::Words;
using ffi::AnyBuffer;

HANDLER(block_dot, CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<Ints>().SCALED);
HANDLER(block_dot_transposed,
        CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<Ints>().Ret<Floats>());
HANDLER(block_sampled, CALL.Arg<Floats>().Arg<Floats>().Arg<Ints>().Arg<Ints>().Ret<Floats>());
HANDLER(csc_dot, CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<AnyBuffer>().SCALED);
HANDLER(csc_dot_transposed,
        CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<AnyBuffer>().Ret<Floats>());
HANDLER(csc_sampled, CALL.Arg<Floats>().Arg<Floats>().Arg<Ints>().Arg<AnyBuffer>().Ret<Floats>());
HANDLER(bitmap_dot, CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<Words>().SCALED);
HANDLER(bitmap_dot_transposed,
        CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Ints>().Arg<Words>().Ret<Floats>());
HANDLER(bitmap_sampled, CALL.Arg<Floats>().Arg<Floats>().Arg<Ints>().Arg<Words>().Ret<Floats>());
HANDLER(nm_dot, CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Words>().SCALED.NM_ATTRIBUTES);
HANDLER(nm_dot_transposed,
        CALL.Arg<Floats>().Arg<AnyBuffer>().Arg<Words>().Ret<Floats>().NM_ATTRIBUTES);
HANDLER(nm_sampled, CALL.Arg<Floats>().Arg<Floats>().Arg<Words>().Ret<Floats>().NM_ATTRIBUTES);

// What Python asks before it registers anything.
extern "C" __attribute__((visibility("default"))) const char* jaxsparse_isa() {
  return jaxsparse::kernels().name;
}
extern "C" __attribute__((visibility("default"))) const char* jaxsparse_isa_error() {
  return jaxsparse::isa_error();
}
extern "C" __attribute__((visibility("default"))) int jaxsparse_ffi_major() {
  return XLA_FFI_API_MAJOR;
}
extern "C" __attribute__((visibility("default"))) int jaxsparse_ffi_minor() {
  return XLA_FFI_API_MINOR;
}
