// A batch packed into panels: panel p holds rows [p * width, ...) transposed.
#pragma once

#include <algorithm>
#include <cstddef>

#include "drivers/parallel.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {

struct Matrix {
  const float* at;
  long rows, columns;  // row-major, contiguous
};

// Columns [k0, k1) of rows of x to panel[k1 - k0][width].
inline void pack(const Matrix& x, long r0, int rows, long k0, long k1, int width, float* panel) {
  const Kernels& k = kernels();
  const auto pack = width % k.lanes == 0 ? k.pack_panel : k.pack_rows;
  pack(x.at + r0 * x.columns + k0, x.columns, rows, k1 - k0, width, panel);
}

class Panels {
 public:
  // x: a Matrix, or anything else that `pack` takes.
  // depth >= x.columns: the rest of a panel is zero. width: a multiple of the lanes, or
  // at most kMostRows.
  template <class Rows>
  Panels(Pool& pool, const Rows& x, long depth, int width)
      : width(width),
        count((x.rows + width - 1) / width),
        stride_(width * depth + kSpill),
        rows_(x.rows) {
    const Kernels& k = kernels();
    float* to = scratch().get<float>(kInput, (size_t)count * stride_);
    at_ = to;
    // pack_rows spills past its end: pieces of one panel cannot be packed side by side.
    const long piece = width % k.lanes == 0 ? std::max<long>(kPiece / width / 16 * 16, 16) : depth;
    const long pieces = piece > 0 ? (depth + piece - 1) / piece : 0;
    parallel_for(pool, count * pieces, [&](long i) {
      const long p = i / pieces, k0 = i % pieces * piece, k1 = std::min(depth, k0 + piece);
      const long filled = std::max(k0, std::min(k1, x.columns));
      float* panel = to + p * stride_;
      pack(x, p * width, rows(p), k0, filled, width, panel + k0 * width);
      std::fill(panel + filled * width, panel + k1 * width, 0.f);
    });
  }

  const float* operator[](long p) const { return at_ + p * stride_; }
  int rows(long p) const { return (int)std::min<long>(width, rows_ - p * width); }

  const int width;
  const long count;

 private:
  static constexpr long kSpill = 32;  // floats pack_rows may write past a panel
  static constexpr long kPiece = 64 * 1024;  // floats a tile packs
  const float* at_;
  const long stride_, rows_;
};

// Columns [c0, c0 + width) of every row of x side by side; beyond the last, zeros.
inline void copy_columns(const Matrix& x, long c0, int width, float* to) {
  const long kept = std::max<long>(0, std::min<long>(width, x.columns - c0));
  for (long m = 0; m < x.rows; m++, to += width) {
    const float* from = x.at + m * x.columns + c0;
    for (long c = 0; c < kept; c++) to[c] = from[c];
    for (long c = kept; c < width; c++) to[c] = 0.f;
  }
}

}  // namespace jaxsparse
