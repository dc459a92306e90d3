// XLA FFI handlers: check what is cheap to check, then call the products.
//
//     product   x, values, index..., [scales] -> y      attribute transpose, and n, m of N:M
//     sampled   x, dy, index...               -> values     n, m of N:M
//     int8      see int8_ffi-inl.h
//     convolution   x, values, index... -> y    attribute window, and n, m of N:M
#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "drivers/clouds.h"
#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/patches.h"
#include "drivers/products.h"
#include "kernels.h"

namespace ffi = xla::ffi;

namespace jaxsparse {
namespace {

using Buffer = ffi::AnyBuffer;
using Type = ffi::DataType;

class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int threads() const override { return (int)std::max<int64_t>(1, pool_.num_threads()); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

// The first thing wrong ends a call.
struct Refused {
  const char* what;
};
void require(bool ok, const char* what) {
  if (!ok) throw Refused{what};
}
void require_none(const char* fault) { require(fault == nullptr, fault); }

size_t rank(const Buffer& b) { return b.dimensions().size(); }
long dim(const Buffer& b, int i) { return (long)b.dimensions()[i]; }

template <class T>
const T* data(const Buffer& b, Type type, size_t axes, const char* what) {
  require(b.element_type() == type && rank(b) == axes, what);
  return static_cast<const T*>(b.untyped_data());
}

Matrix matrix(const Buffer& b) {
  return {data<float>(b, Type::F32, 2, "x, y and dy must be float32 with two axes"), dim(b, 0),
          dim(b, 1)};
}

// A weight of shape (k, n) as the operands say it; of a sampled product, what will hold its values.
struct Operands {
  long k, n;
  const Buffer& values;
  bool stored;  // else they are yet to be computed
  const ffi::RemainingArgs& rest;
  const ffi::Dictionary& attributes;

  Buffer index(size_t i) const {
    const auto found = rest.get<Buffer>(i);
    require(found.has_value(), "an operand of the index is missing");
    return *found;
  }
  const int32_t* pointers(long count, const char* what) const {
    const Buffer found = index(0);
    const auto at = data<int32_t>(found, Type::S32, 1, "pointers must be int32 with one axis");
    require(dim(found, 0) == count + 1, what);
    require_none(check_pointers(at, count, dim(values, 0)));
    return at;
  }
  int attribute(const char* name) const {
    const auto found = attributes.get<int64_t>(name);
    require(found.has_value(), "n and m must be given");
    return (int)*found;
  }
  const void* at() const { return stored ? values.untyped_data() : nullptr; }
  int dtype() const {
    switch (stored ? values.element_type() : Type::F32) {
      case Type::F32: return kF32;
      case Type::BF16: return kBf16;
      case Type::S8: return kI8;
      default: throw Refused{"values must be float32, bfloat16 or int8"};
    }
  }
};

// What each storage is made of. Indices is how many operands its index has.
template <class Weights>
constexpr size_t kIndices = 2;
template <>
constexpr size_t kIndices<NmWeights> = 1;

// Multiplications below which the calling thread works alone, some ten microseconds of them on a
// Zen 5 core: to wake a helper takes about as long, and half the processor time of the product
// besides. Single weights take several times as long as those in vectors.
template <class Weights>
constexpr long kAlone = 32 * 1024;
template <>
constexpr long kAlone<NmWeights> = 256 * 1024;
template <>
constexpr long kAlone<BlockWeights> = 256 * 1024;

void read_blocks(const Operands& o, BlockWeights* w) {
  require(rank(o.values) == 3, "values must be (nnz, bk, bn)");
  const long nnz = dim(o.values, 0), bk = dim(o.values, 1), bn = dim(o.values, 2);
  require(bk >= 1 && bk <= 32768, "a block needs between 1 and 32768 rows");
  require(bn >= 1 && bn <= 32768, "a block needs between 1 and 32768 columns");
  const Buffer rows = o.index(1);
  *w = {o.k, o.n, (int)bk, (int)bn, o.dtype(), o.at(), nullptr, nullptr, nnz};
  w->indices = data<int32_t>(rows, Type::S32, 1, "indices must be int32 with one axis");
  require(dim(rows, 0) == nnz, "indices and values differ in length");
  w->indptr = o.pointers(w->block_columns(),
                         "indptr must have one entry more than there are block columns");
  require_none(check_indices(*w));
}

void read(const Operands& o, BlockWeights* w) {
  read_blocks(o, w);
  require(w->bn % 16 == 0, "a block's columns must be a multiple of 16");
}

void read(const Operands& o, CscWeights* w) {
  const Buffer rows = o.index(1);
  const bool wide = rows.element_type() == Type::S32;
  require(rank(o.values) == 1, "values must have one axis");
  *w = {o.k, o.n, o.dtype(), o.at(), nullptr, nullptr, wide, dim(o.values, 0)};
  w->indices = data<void>(rows, wide ? Type::S32 : Type::U16, 1,
                          "indices must be int32 or uint16 with one axis");
  require(dim(rows, 0) == w->nnz, "indices and values differ in length");
  w->indptr = o.pointers(o.n, "indptr must have one entry more than there are columns");
  require(o.k > 0 || w->indptr[o.n] == 0, "a kernel without rows stores no entries");
}

void read(const Operands& o, BitmapWeights* w) {
  const Buffer bits = o.index(1);
  require(rank(o.values) == 1, "values must have one axis");
  *w = {o.k, o.n, o.dtype(), o.at(), nullptr, nullptr, 0, dim(o.values, 0)};
  w->bits = data<uint32_t>(bits, Type::U32, 3, "bits must be uint32 with three axes");
  w->words = (int)dim(bits, 2);
  require(w->words == std::max<long>(1, std::min<long>(8, (o.k + 31) / 32)),
          "a strip's bits must be 8 words, or ceil(K / 32) where that is less");
  require(dim(bits, 0) == w->strips() && dim(bits, 1) == o.n, "bits must be (strips, N, words)");
  w->starts = o.pointers(w->strips() * w->chunks(),
                         "starts must have one entry more than strips times chunks of 64 columns");
}

void read(const Operands& o, NmWeights* w) {
  const Buffer positions = o.index(0);
  const int n = o.attribute("n"), m = o.attribute("m");
  require(m == 2 || m == 4 || m == 8 || m == 16, "m must be 2, 4, 8 or 16");
  require(n >= 1 && n <= m, "n must be between 1 and m");
  *w = {o.k, o.n, n, m, o.dtype(), o.at(), nullptr};
  w->positions = data<uint32_t>(positions, Type::U32, 2, "positions must be uint32 with two axes");
  const long rows = w->groups() * n, words = (rows + w->per_word() - 1) / w->per_word();
  require(rank(o.values) == 2 && dim(o.values, 0) == rows && dim(o.values, 1) == o.n,
          "values must be (ceil(K / m) * n, N)");
  require(dim(positions, 0) == words && dim(positions, 1) == o.n,
          "positions must be (ceil(rows / positions in a word), N)");
}

// y's columns times their scales. Left to XLA, that multiplication makes it start the whole
// program on another thread, and few rows wait longer for that than the product takes.
void scale(Pool& pool, const Buffer& scales, const Matrix& y, float* to) {
  const char* const what = "scales must have one entry for every column of y";
  const float* factors = data<float>(scales, Type::F32, 1, what);
  require(dim(scales, 0) == y.columns, what);
  const long at_once = std::max<long>(1, 16384 / std::max<long>(1, y.columns));
  parallel_for(pool, (y.rows + at_once - 1) / at_once, [&](long i) {
    for (long r = i * at_once; r < std::min(y.rows, (i + 1) * at_once); r++) {
      float* __restrict row = to + r * y.columns;
      for (long c = 0; c < y.columns; c++) row[c] *= factors[c];
    }
  });
}

// Runs what may refuse, and says so when memory runs out.
template <class F>
ffi::Error run(ffi::ThreadPool& threads, const F& body) {
  XlaPool pool(threads);
  try {
    body(pool);
    return ffi::Error::Success();
  } catch (const Refused& refused) {
    return ffi::Error::InvalidArgument(std::string("jaxsparse cpu kernel: ") + refused.what);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxsparse cpu kernel: out of memory");
  }
}

template <class Weights>
ffi::Error product(ffi::ThreadPool threads, ffi::Dictionary attributes, Buffer x, Buffer values,
                   ffi::RemainingArgs rest, ffi::Result<Buffer> y) {
  return run(threads, [&](Pool& all) {
    const Matrix in = matrix(x), out = matrix(*y);
    OneThread one;
    const bool alone = in.rows * (long)values.element_count() <= kAlone<Weights>;
    Pool& pool = alone ? static_cast<Pool&>(one) : all;
    require(in.rows == out.rows, "the batches differ");
    const auto found = attributes.get<bool>("transpose");
    const bool transpose = found.has_value() && *found;
    Weights w;
    read({transpose ? out.columns : in.columns, transpose ? in.columns : out.columns, values, true,
          rest, attributes}, &w);
    float* to = static_cast<float*>(y->untyped_data());
    require_none(transpose ? dot_transposed(pool, in, w, to) : dot(pool, in, w, to));
    if (rest.size() > kIndices<Weights>)
      scale(pool, *rest.get<Buffer>(kIndices<Weights>), out, to);
  });
}

template <class Weights>
ffi::Error sampled_product(ffi::ThreadPool threads, ffi::Dictionary attributes, Buffer x,
                           Buffer dy, ffi::RemainingArgs rest, ffi::Result<Buffer> values) {
  return run(threads, [&](Pool& pool) {
    const Matrix left = matrix(x), right = matrix(dy);
    require(left.rows == right.rows, "the batches differ");
    require(values->element_type() == Type::F32, "what is sampled is float32");
    Weights w;
    read({left.columns, right.columns, *values, false, rest, attributes}, &w);
    require_none(sampled(pool, left, right, w, static_cast<float*>(values->untyped_data())));
  });
}

// What windows see in x where it gives y. `window` holds size, strides, dilation and padding before
// the first row and column, each of both axes.
Image image(const Buffer& x, const Buffer& y, const ffi::Dictionary& attributes) {
  const auto found = attributes.get<ffi::Span<const int64_t>>("window");
  require(found.has_value() && found->size() == 8, "window must be eight numbers");
  require(rank(x) == 4 && rank(y) == 4, "x and y must have four axes");
  require(dim(x, 0) == dim(y, 0), "the batches differ");
  require(y.element_type() == Type::F32, "y must be float32");
  const bool wide = x.element_type() == Type::F32;
  require(wide || x.element_type() == Type::BF16, "x must be float32 or bfloat16");
  Image all{x.untyped_data(), wide ? kF32 : kBf16, dim(x, 0), dim(x, 1), dim(x, 2), dim(x, 3),
            {}, {dim(y, 1), dim(y, 2)}};
  Window& w = all.window;
  long* const parts[] = {w.size, w.strides, w.dilation, w.low};
  for (int i = 0; i < 8; i++) {
    const long value = (*found)[i], least = i < 6 ? 1 : 0;
    require(value >= least && value < 1L << 30, "a number of the window is out of range");
    parts[i / 2][i % 2] = value;
  }
  return all;
}

template <class Weights>
ffi::Error convolution(ffi::ThreadPool threads, ffi::Dictionary attributes, Buffer x, Buffer values,
                       ffi::RemainingArgs rest, ffi::Result<Buffer> y) {
  return run(threads, [&](Pool& pool) {
    const Image in = image(x, *y, attributes);
    Weights w;
    read({in.columns(), dim(*y, 3), values, true, rest, attributes}, &w);
    if (y->element_count() == 0) return;
    require_none(convolve(pool, in, w, static_cast<float*>(y->untyped_data())));
  });
}

#include "drivers/clouds_ffi.h"

}  // namespace
}  // namespace jaxsparse

#include "drivers/int8_ffi-inl.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define HANDLER(name, function)                           \
  EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame*);         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,           \
                                ffi::Ffi::Bind()          \
                                    .Ctx<ffi::ThreadPool>() \
                                    .Attrs()              \
                                    .Arg<ffi::AnyBuffer>() \
                                    .Arg<ffi::AnyBuffer>() \
                                    .RemainingArgs()      \
                                    .Ret<ffi::AnyBuffer>());
#define STORAGE(name, Weights)                                                \
  HANDLER(jaxsparse_##name##_product, jaxsparse::product<jaxsparse::Weights>) \
  HANDLER(jaxsparse_##name##_convolution, jaxsparse::convolution<jaxsparse::Weights>) \
  HANDLER(jaxsparse_##name##_sampled, jaxsparse::sampled_product<jaxsparse::Weights>)

STORAGE(block, BlockWeights)
STORAGE(csc, CscWeights)
STORAGE(bitmap, BitmapWeights)
STORAGE(nm, NmWeights)
HANDLER(jaxsparse_block_int8, jaxsparse::int8_product)

#define CLOUD(name, binding)                 \
  EXPORT XLA_FFI_Error* jaxsparse_cloud_##name(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_cloud_##name, jaxsparse::cloud_##name, binding);
#define ARG Arg<ffi::AnyBuffer>()
#define RET Ret<ffi::AnyBuffer>()
CLOUD(pairs, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().ARG.ARG.ARG.ARG.RET)
CLOUD(outer, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().ARG.ARG.ARG.ARG.RET)
CLOUD(sort, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().ARG.RET.RET)
CLOUD(distinct, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().ARG.RET.RET)
CLOUD(map, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attrs().ARG.ARG.ARG.ARG.RET.RET)

// What Python asks before it registers anything.
EXPORT const char* jaxsparse_isa() { return jaxsparse::kernels().name; }
EXPORT const char* jaxsparse_int8_isa() { return jaxsparse::int8_kernels().name; }
EXPORT const char* jaxsparse_isa_error() { return jaxsparse::isa_error(); }
EXPORT int jaxsparse_ffi_major() { return XLA_FFI_API_MAJOR; }
EXPORT int jaxsparse_ffi_minor() { return XLA_FFI_API_MINOR; }
