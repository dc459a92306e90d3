// The handler of integer products, a part of ffi.cc:
//
//     x, values, indptr, rows, scales, bias or none, scale and zero point of x, of y -> y
//
// with the attribute relu. y is floats, codes of 8 bits, or int32 sums.
#pragma once

#include <cmath>

#include "int8.h"

namespace jaxsparse {
namespace {

template <class T>
T scalar(const ffi::RemainingArgs& rest, size_t i, Type type, const char* what) {
  const auto found = rest.get<Buffer>(i);
  require(found.has_value(), what);
  return *data<T>(*found, type, 0, what);
}

float scale_of(const ffi::RemainingArgs& rest, size_t i) {
  const float scale = scalar<float>(rest, i, Type::F32, "a scale of codes must be float32");
  require(std::isnormal(scale) && scale > 0, "a scale of codes must be positive and finite");
  return scale;
}

int zero_of(const ffi::RemainingArgs& rest, size_t i, bool with_sign) {
  const int zero = scalar<int32_t>(rest, i, Type::S32, "a zero point must be int32");
  const int least = with_sign ? -128 : 0;
  require(zero >= least && zero <= least + 255, "a zero point must be a code");
  return zero;
}

const float* columns_of(const ffi::RemainingArgs& rest, size_t i, long n, bool needed) {
  constexpr const char* what = "scales and bias must be float32 with an entry for every column";
  const auto found = rest.get<Buffer>(i);
  require(found.has_value(), what);
  const float* at = data<float>(*found, Type::F32, 1, what);
  if (!needed && dim(*found, 0) == 0) return nullptr;
  require(dim(*found, 0) == n, what);
  return at;
}

int int8_out(Type type) {
  switch (type) {
    case Type::F32: return kOutF32;
    case Type::BF16: return kOutBf16;
    case Type::S32: return kOutI32;
    case Type::U8: return kOutU8;
    case Type::S8: return kOutI8;
    default: throw Refused{"y must be float32, bfloat16, int32, uint8 or int8"};
  }
}

ffi::Error int8_product(ffi::ThreadPool threads, ffi::Dictionary attributes, Buffer x,
                        Buffer values, ffi::RemainingArgs rest, ffi::Result<Buffer> y) {
  return run(threads, [&](Pool& all) {
    // Of floats a call as small is done alone: integers are four times as fast.
    constexpr long kAloneInt8 = 4 * kAlone<BlockWeights>;
    const bool with_sign = x.element_type() == Type::S8;
    require(with_sign || x.element_type() == Type::U8, "x must be uint8 or int8");
    require(rank(x) == 2 && rank(*y) == 2, "x and y must have two axes");
    require(dim(x, 0) == dim(*y, 0), "the batches differ");
    require(values.element_type() == Type::S8, "weights must be int8");
    const long n = dim(*y, 1);
    BlockWeights w;
    read_blocks({dim(x, 1), n, values, true, rest, attributes}, &w);
    const float* scales = columns_of(rest, 2, n, true);
    const float* bias = columns_of(rest, 3, n, false);
    const Codes codes{x.untyped_data(), with_sign,         dim(x, 0), dim(x, 1),
                      scale_of(rest, 4), zero_of(rest, 5, with_sign)};
    const auto relu = attributes.get<bool>("relu");
    Int8Finish finish{int8_out(y->element_type()), relu.has_value() && *relu, 1.f, 0};
    if (out_bytes(finish.out) == 1) {
      finish.inverse = 1.f / scale_of(rest, 6);
      finish.zero = zero_of(rest, 7, finish.out == kOutI8);
    }
    OneThread one;
    const bool alone = codes.rows * (long)values.element_count() <= kAloneInt8;
    int8_dot(alone ? static_cast<Pool&>(one) : all, codes, w, scales, bias, finish,
             y->untyped_data());
  });
}

}  // namespace
}  // namespace jaxsparse
