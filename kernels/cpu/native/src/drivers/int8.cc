// Products of codes by int8 blocks: weights are brought into the kernels' order strip by strip,
// once a call, and rows into panels.
#include "int8.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "drivers/scratch.h"

namespace jaxsparse {
namespace {

// Bytes of weights that stay in the second cache while panels pass over them, and bytes prepared
// at a time. Rows whose panels are at hand at a time.
constexpr long kGroupBytes = 256 * 1024;
constexpr long kPreparedBytes = 8 * 1024 * 1024;
constexpr long kRowsAtOnce = 1024;

class Product {
 public:
  Product(Pool& pool, const Codes& x, const BlockWeights& w, const float* scales,
          const float* bias, const Int8Finish& finish, void* y)
      : k_(int8_kernels()),
        pool_(pool),
        x_(x),
        w_(w),
        scales_(scales),
        bias_(bias),
        finish_(finish),
        y_(static_cast<char*>(y)),
        across_((w.bn + kStripColumns - 1) / kStripColumns),
        scattered_(w.bk % 4 != 0),
        depth_((w.block_rows() * w.bk + 3) / 4 * 4) {}

  void run() {
    if (x_.rows <= k_.rows) return few_rows();
    for (long s0 = 0, s1; s0 < strips(); s0 = s1) {
      for (s1 = s0 + 1; s1 < strips() && bytes(s0, s1 + 1) <= kPreparedBytes;) s1++;
      many_rows(s0, s1);
    }
  }

 private:
  // A strip's weights in the kernels' order.
  struct Prepared {
    char* weights;
    int32_t* at;
    StripColumns* columns;
  };

  long strips() const { return w_.block_columns() * across_; }
  long column(long s) const { return s / across_; }
  long blocks(long s) const { return w_.indptr[column(s) + 1] - w_.indptr[column(s)]; }
  long entries(long s) const { return blocks(s) * w_.bk; }
  long quads(long s) const { return (entries(s) + 3) / 4; }
  long quad_bytes() const { return 4L * kStripColumns * k_.words; }
  // Where strip s begins among quads: where some are filled up, every strip has one to spare.
  long begin(long s) const {
    const long before = w_.indptr[column(s)] * across_ + s % across_ * blocks_at(s);
    return before * w_.bk / 4 + (scattered_ ? s : 0);
  }
  long blocks_at(long s) const { return s < strips() ? blocks(s) : 0; }
  long bytes(long s0, long s1) const { return (begin(s1) - begin(s0)) * quad_bytes(); }
  // Numbers that a strip keeps of where its quads lie; blocks of four rows are quads themselves.
  long places(long count) const { return w_.bk == 4 ? 0 : scattered_ ? 4 * count : count; }

  void prepare(long s, const Prepared& to) const {
    const long j = column(s), c0 = s % across_ * kStripColumns, count = entries(s);
    const int wide = (int)std::min<long>(kStripColumns, w_.bn - c0);
    const int8_t* rows = static_cast<const int8_t*>(w_.from(w_.indptr[j])) + c0;
    long step = w_.bn;
    if (wide < kStripColumns) {
      int8_t* filled = scratch().get<int8_t>(kTile, count * kStripColumns);
      std::memset(filled, 0, count * kStripColumns);
      for (long e = 0; e < count; e++)
        std::memcpy(filled + e * kStripColumns, rows + e * step, wide);
      rows = filled;
      step = kStripColumns;
    }
    // Of codes that are multiplied as they are the zero point is taken off afterwards.
    const int zero = k_.words == 1 ? x_.zero + (x_.with_sign ? 128 : 0) : 0;
    int32_t sums[kStripColumns] = {};
    k_.arrange(rows, step, count, to.weights, zero ? sums : nullptr);
    const long n0 = j * w_.bn + c0, n1 = std::min<long>(w_.n, n0 + wide);
    for (int c = 0; c < kStripColumns; c++) {
      const bool there = n0 + c < n1;
      // Sums wrap around, and come out right whatever they passed through.
      to.columns->offset[c] = (int32_t)(0u - (uint32_t)zero * (uint32_t)sums[c]);
      to.columns->scale[c] = there ? x_.scale * scales_[n0 + c] : 0.f;
      to.columns->bias[c] = there && bias_ ? bias_[n0 + c] : 0.f;
    }
    const int32_t* index = w_.indices + w_.indptr[j];
    if (scattered_) {
      long e = 0;
      for (long b = 0; b < blocks(s); b++)
        for (int r = 0; r < w_.bk; r++) to.at[e++] = index[b] * w_.bk + r;
      for (; e % 4; e++) to.at[e] = 0;
    } else if (w_.bk != 4) {
      const int deep = w_.bk / 4;
      for (long b = 0; b < blocks(s); b++)
        for (int q = 0; q < deep; q++) to.at[b * deep + q] = index[b] * deep + q;
    }
  }

  void multiply(long s, const Prepared& from, const uint32_t* panel, long m0, int rows) const {
    const long count = quads(s), n0 = column(s) * w_.bn + s % across_ * kStripColumns;
    const long n1 = std::min(w_.n, std::min((column(s) + 1) * w_.bn, n0 + kStripColumns));
    if (n0 >= n1) return;
    const int32_t* at = w_.bk == 4 ? w_.indices + w_.indptr[column(s)] : from.at;
    if (scattered_) {
      uint32_t* found = scratch().get<uint32_t>(kTile, count * k_.words * rows);
      k_.gather(rows, count, at, panel, found);
      panel = found;
      at = nullptr;
    }
    const long size = out_bytes(finish_.out);
    char* to = y_ + (m0 * w_.n + n0) * size;
    if (n1 - n0 == kStripColumns) {
      k_.product(rows, count, at, from.weights, panel, *from.columns, finish_, to, w_.n);
      return;
    }
    alignas(64) char strip[kMostRows * kStripColumns * 4];
    k_.product(rows, count, at, from.weights, panel, *from.columns, finish_, strip, kStripColumns);
    for (int r = 0; r < rows; r++)
      std::memcpy(to + r * w_.n * size, strip + r * kStripColumns * size, (n1 - n0) * size);
  }

  // Rows [m0, m0 + rows) as a panel; what pack_rows spills lies behind it.
  static constexpr long kSpill = 32;
  long panel_words() const { return depth_ / 4 * k_.words; }
  void pack(long m0, int rows, uint32_t* panel) const {
    const long words = panel_words();
    const char* from = static_cast<const char*>(x_.at) + m0 * x_.columns;
    if (rows == 1) return k_.widen_row(from, x_.with_sign, x_.columns, depth_, x_.zero, panel);
    uint32_t* wide = scratch().get<uint32_t>(kRows, rows * words);
    for (int r = 0; r < rows; r++)
      k_.widen_row(from + r * x_.columns, x_.with_sign, x_.columns, depth_, x_.zero,
                   wide + r * words);
    kernels().pack_rows(reinterpret_cast<const float*>(wide), words, rows, words, rows,
                        reinterpret_cast<float*>(panel));
  }

  void few_rows() const {
    const int rows = (int)x_.rows;
    uint32_t* panel = scratch().get<uint32_t>(kInput, rows * panel_words() + kSpill);
    pack(0, rows, panel);
    const long pieces = std::min(strips(), pool_.threads() * 8L);
    parallel_for(pool_, pieces, [&](long i) {
      for (long s = strips() * i / pieces; s < strips() * (i + 1) / pieces; s++) {
        StripColumns columns;
        const Prepared strip{scratch().get<char>(kWeights, quads(s) * quad_bytes()),
                             scratch().get<int32_t>(kOuts, places(quads(s))), &columns};
        prepare(s, strip);
        multiply(s, strip, panel, 0, rows);
      }
    });
  }

  void many_rows(long s0, long s1) const {
    const long count = begin(s1) - begin(s0);
    StripColumns* columns = scratch().get<StripColumns>(kFlippedColumns, s1 - s0);
    char* weights = scratch().get<char>(kWeights, count * quad_bytes());
    int32_t* at = scratch().get<int32_t>(kFlippedWeights, places(count));
    const auto prepared = [&](long s) {
      const long before = begin(s) - begin(s0);
      return Prepared{weights + before * quad_bytes(), at + places(before), columns + (s - s0)};
    };
    parallel_for(pool_, s1 - s0, [&](long i) { prepare(s0 + i, prepared(s0 + i)); });
    std::vector<long> begins;
    const long panels = (x_.rows + k_.rows - 1) / k_.rows;
    const long shares = std::max<long>(1, (4 * pool_.threads() + panels - 1) / panels);
    const long limit = std::min(kGroupBytes, count * quad_bytes() / shares + 1);
    cut_by_cost(s1 - s0, limit, [&](long i) { return bytes(s0 + i, s0 + i + 1) + 64; }, begins);
    const long groups = (long)begins.size() - 1;
    for (long m0 = 0; m0 < x_.rows; m0 += kRowsAtOnce) {
      const long rows = std::min(kRowsAtOnce, x_.rows - m0);
      const long here = (rows + k_.rows - 1) / k_.rows;
      const long stride = k_.rows * panel_words() + kSpill;
      uint32_t* all = scratch().get<uint32_t>(kInput, here * stride);
      const auto first = [&](long p) { return m0 + rows * p / here; };
      parallel_for(pool_, here, [&](long p) {
        pack(first(p), (int)(first(p + 1) - first(p)), all + p * stride);
      });
      parallel_for(pool_, groups * here, [&](long i) {
        const long g = i / here, p = i % here;
        for (long s = s0 + begins[g]; s < s0 + begins[g + 1]; s++)
          multiply(s, prepared(s), all + p * stride, first(p), (int)(first(p + 1) - first(p)));
      });
    }
  }

  const Int8Kernels& k_;
  Pool& pool_;
  const Codes& x_;
  const BlockWeights& w_;
  const float *scales_, *bias_;
  const Int8Finish& finish_;
  char* const y_;
  const long across_;     // strips of a block
  const bool scattered_;  // quads of inputs that do not lie side by side
  const long depth_;      // inputs of a panel
};

}  // namespace

void int8_dot(Pool& pool, const Codes& x, const BlockWeights& w, const float* scales,
              const float* bias, const Int8Finish& finish, void* y) {
  if (x.rows > 0) Product(pool, x, w, scales, bias, finish, y).run();
}

}  // namespace jaxsparse
