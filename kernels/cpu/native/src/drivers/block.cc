// Block products: x @ W, dy @ W^T and the sampled x^T @ dy.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/patches.h"
#include "drivers/products.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

// Bytes of weights that the whole batch passes over before the next ones, and of a panel:
// together they leave room in a second cache of 1 MiB. Bytes of weights that few rows take
// at a time: a helper wakes late and must find work left. Bytes prepared at a time.
constexpr long kGroupBytes = 320 * 1024;
constexpr long kPanelBytes = 450 * 1024;
constexpr long kFewRowsBytes = 128 * 1024;
constexpr long kPreparedBytes = 8 * 1024 * 1024;
constexpr int kStrip = 64;                // columns of y written at a time

// Vectors a panel is wide: the least padding, and among equals the wider. A panel shares
// the second cache with the weights that stream past it.
int panel_vectors(long batch, long depth, int lanes) {
  int best = 1;
  long least = -1;
  for (int vectors = 3; vectors >= 1; vectors--) {
    const long width = vectors * lanes;
    if (vectors == 3 && width * depth * 4 > kPanelBytes) continue;
    const long padded = (batch + width - 1) / width * width;
    // A narrow panel reads every weight more often.
    const long cost = padded * (vectors == 3 ? 16 : vectors == 2 ? 17 : 24);
    if (least < 0 || cost < least) least = cost, best = vectors;
  }
  return best;
}

// Column j of the outputs is the sum of blocks ptr[j] .. ptr[j + 1], block e at row
// index[e] of the input; a block is depth x outs. Forward and transposed products differ
// in these alone.
struct Sums {
  long columns;  // of blocks
  const int32_t* ptr;
  const int32_t* index;
  int depth, outs;
  long total;  // logical outputs
};

long blocks_in(const Sums& s, long j) { return s.ptr[j + 1] - s.ptr[j]; }
BlockColumn column_of(const Sums& s, long j) {
  return {blocks_in(s, j), s.index + s.ptr[j], (long)s.depth * s.outs, s.depth, s.outs};
}

// begins of groups of block columns, few enough bytes for the cache and enough groups
// for `shares` shares.
std::vector<long> group_columns(const Sums& s, long shares, long most_bytes) {
  const long block = (long)s.depth * s.outs * 4;
  const long all = s.ptr[s.columns] * block;
  const long limit = std::max<long>(std::min(most_bytes, all / shares + 1), 16 * 1024);
  std::vector<long> begins;
  cut_by_cost(s.columns, limit, [&](long j) { return blocks_in(s, j) * block + s.outs * 16; },
              begins);
  return begins;
}

// One panel times the block columns [j0, j1) whose weights, as floats, begin at `w`.
void panel_columns(const Kernels& k, const Sums& s, long j0, long j1, const float* w,
                   const float* panel, int rows, int vectors, float* y) {
  const int width = vectors * k.lanes;
  float* outs = scratch().get<float>(kOuts, (size_t)2 * kStrip * width);
  long first = j0 * s.outs;  // the strip's first output
  int held = 0;
  const auto flush = [&] {
    k.store_panel(outs, (int)std::min<long>(held, s.total - first), width, rows, y + first,
                  s.total);
    first += held;
    held = 0;
  };
  for (long j = j0; j < j1; j++) {
    const BlockColumn column = column_of(s, j);
    for (int c = 0; c < s.outs; c += kStrip) {
      const int count = std::min(kStrip, s.outs - c);
      k.block_panel(vectors, count, column, w + c, panel, outs + (long)held * width);
      held += count;
      if (held >= kStrip) flush();
    }
    w += column.blocks * column.size;
  }
  if (held) flush();
}

// The same row-wise, where a block is one vector or pairs of them wide: every weight is loaded
// as part of a vector and the results need no transposing.
void row_columns(const Kernels& k, const Sums& s, long j0, long j1, int dtype, const void* w,
                 const float* packed, int width, int rows, float* y) {
  for (long j = j0; j < j1; j++) {
    const long kept = std::min<long>(s.outs, s.total - j * s.outs);
    const bool direct = kept == s.outs && rows == width;
    float* to = direct ? y + j * s.outs : scratch().get<float>(kOuts, (size_t)width * s.outs);
    const BlockColumn column = column_of(s, j);
    k.block_rows(dtype, width, s.outs / k.lanes, column, w, packed, to,
                 direct ? s.total : s.outs);
    w = from_value(w, dtype, column.blocks * column.size);
    if (direct) continue;
    for (int r = 0; r < rows; r++)
      std::copy(to + (long)r * s.outs, to + (long)r * s.outs + kept, y + r * s.total + j * s.outs);
  }
}

// prepare(j, to): block column j's weights as floats; unused where the stored ones serve.
template <class Rows, class Prepare>
void dot_panels(Pool& pool, const Rows& x, const Sums& s, long depth, const float* stored,
                const Prepare& prepare, float* y) {
  const Kernels& k = kernels();
  const bool narrow = s.outs == k.lanes;
  const bool row_wise = narrow || s.outs % (2 * k.lanes) == 0;
  const long held = narrow ? k.narrow_rows : k.most_rows;
  const long passes = (x.rows + held - 1) / held;
  const int vectors = panel_vectors(x.rows, depth, k.lanes);
  const Panels panels(pool, x, depth,
                      row_wise ? (int)((x.rows + passes - 1) / passes) : vectors * k.lanes);
  // A wide panel stays in the second cache while weights stream past it; row-wise it is
  // the weights that stay. Groups are smaller where threads would go idle.
  const long block = (long)s.depth * s.outs;
  const long shares = std::max<long>(1, (4 * pool.threads() + panels.count - 1) / panels.count);
  const auto begins = group_columns(s, shares, kGroupBytes);
  const long groups = (long)begins.size() - 1;
  const auto multiply = [&](long g, long p, const float* w) {
    float* to = y + p * panels.width * s.total;
    if (row_wise)
      row_columns(k, s, begins[g], begins[g + 1], kF32, w, panels[p], panels.width,
                  panels.rows(p), to);
    else
      panel_columns(k, s, begins[g], begins[g + 1], w, panels[p], panels.rows(p), vectors, to);
  };
  if (stored != nullptr) {
    parallel_for(pool, groups * panels.count, [&](long i) {
      const long g = i / panels.count;
      multiply(g, i % panels.count, stored + s.ptr[begins[g]] * block);
    });
    return;
  }
  // Several groups are prepared together, then multiplied: each once for all panels.
  for (long g0 = 0, g1; g0 < groups; g0 = g1) {
    const auto offset = [&](long g) { return (s.ptr[begins[g]] - s.ptr[begins[g0]]) * block; };
    for (g1 = g0 + 1; g1 < groups && offset(g1 + 1) * 4 <= kPreparedBytes;) g1++;
    float* w = scratch().get<float>(kWeights, offset(g1));
    const long j0 = begins[g0], j1 = begins[g1];
    parallel_for(pool, j1 - j0, [&](long j) {
      prepare(j0 + j, w + (s.ptr[j0 + j] - s.ptr[j0]) * block);
    });
    parallel_for(pool, (g1 - g0) * panels.count, [&](long i) {
      const long g = g0 + i / panels.count;
      multiply(g, i % panels.count, w + offset(g));
    });
  }
}

// Few rows: a block column at a time straight from the stored weights.
void dot_rows(Pool& pool, const Matrix& x, const BlockWeights& w, const Sums& s, float* y) {
  const Kernels& k = kernels();
  const int rows = (int)x.rows;
  const long depth = w.block_rows() * w.bk;
  const bool as_is = rows == 1 && depth == x.columns;
  const float* packed = as_is ? x.at : Panels(pool, x, depth, rows)[0];
  const auto begins = group_columns(s, pool.threads() * 16, kFewRowsBytes);
  parallel_for(pool, (long)begins.size() - 1, [&](long g) {
    row_columns(k, s, begins[g], begins[g + 1], w.dtype, w.from(w.indptr[begins[g]]), packed, rows,
                rows, y);
  });
}

Sums sums_of(const BlockWeights& w) {
  return {w.block_columns(), w.indptr, w.indices, w.bk, w.bn, w.n};
}

template <class Rows>
void dot_many(Pool& pool, const Rows& x, const BlockWeights& w, float* y) {
  const Sums s = sums_of(w);
  const float* stored = w.dtype == kF32 ? static_cast<const float*>(w.values) : nullptr;
  const auto prepare = [&](long j, float* to) {
    kernels().widen(w.dtype, w.from(w.indptr[j]), blocks_in(s, j) * w.block(), to);
  };
  dot_panels(pool, x, s, w.block_rows() * w.bk, stored, prepare, y);
}

// Bytes of what the windows of some places see, that a second cache holds beside the weights.
constexpr long kPlacesBytes = 256 * 1024;

}  // namespace

const char* dot(Pool& pool, const Matrix& x, const BlockWeights& w, float* y) {
  if (x.rows == 0) return nullptr;
  if (x.rows <= kernels().most_rows) dot_rows(pool, x, w, sums_of(w), y);
  else dot_many(pool, x, w, y);
  return nullptr;
}

const char* convolve(Pool& pool, const Image& image, const BlockWeights& w, float* y) {
  const long bytes = image.columns() * (long)sizeof(float);
  const long count = std::max<long>(1, kPlacesBytes / bytes / kMostRows) * kMostRows;
  by_rows_of_places(pool, image, w.n, y, [&](Pool& pool, const Patches& x, float* y) {
    for (long begin = 0; begin < x.rows; begin += count)
      dot_many(pool, x.part(begin, std::min(count, x.rows - begin)), w, y + begin * w.n);
  });
  return nullptr;
}

const char* dot_transposed(Pool& pool, const Matrix& dy, const BlockWeights& w, float* dx) {
  if (dy.rows == 0) return nullptr;
  const Kernels& k = kernels();
  const long rows = w.block_rows(), columns = w.block_columns(), nnz = w.indptr[columns];
  // The index the other way, by counting: block rows' pointers, block columns, positions.
  std::vector<int32_t> ptr(rows + 2), index(nnz), position(nnz);
  for (long e = 0; e < nnz; e++) ptr[w.indices[e] + 2]++;
  for (long i = 0; i < rows; i++) ptr[i + 2] += ptr[i + 1];
  for (long j = 0; j < columns; j++) {
    for (int32_t e = w.indptr[j]; e < w.indptr[j + 1]; e++) {
      const int32_t at = ptr[w.indices[e] + 1]++;
      index[at] = (int32_t)j;
      position[at] = e;
    }
  }
  const Sums s{rows, ptr.data(), index.data(), w.bn, w.bk, w.k};
  const auto prepare = [&](long i, float* to) {
    for (long e = ptr[i]; e < ptr[i + 1]; e++, to += w.block())
      k.widen_transposed(w.dtype, w.from(position[e]), w.bn, w.bk, w.bn, to, w.bk);
  };
  dot_panels(pool, dy, s, columns * w.bn, nullptr, prepare, dx);
  return nullptr;
}

const char* sampled(Pool& pool, const Matrix& x, const Matrix& dy, const BlockWeights& w,
                    float* out) {
  const Kernels& k = kernels();
  const long batch = x.rows, rows = w.block_rows(), block = w.block();
  std::fill(out + w.indptr[w.block_columns()] * block, out + w.nnz * block, 0.f);
  // Every block row of x as one contiguous (batch, bk) array.
  float* xs = scratch().get<float>(kInput, (size_t)rows * w.bk * batch);
  const long pieces = std::min<long>(rows, pool.threads() * 4);
  parallel_for(pool, pieces, [&](long t) {
    for (long i = rows * t / pieces; i < rows * (t + 1) / pieces; i++)
      copy_columns(x, i * w.bk, w.bk, xs + i * w.bk * batch);
  });
  // Both operands of this many steps of the batch fit the first cache.
  const long step = std::max<long>(32, 5 * 1024 / (w.bk + w.bn) / 16 * 16);
  const Sums s = sums_of(w);
  const auto begins = group_columns(s, pool.threads() * 4, kGroupBytes);
  parallel_for(pool, (long)begins.size() - 1, [&](long g) {
    float* dys = scratch().get<float>(kWeights, batch * w.bn);
    for (long j = begins[g]; j < begins[g + 1]; j++) {
      if (blocks_in(s, j) == 0) continue;
      copy_columns(dy, j * w.bn, w.bn, dys);
      for (long m = 0; m == 0 || m < batch; m += step) {
        const long depth = std::min(step, batch - m);
        for (int32_t e = w.indptr[j]; e < w.indptr[j + 1]; e++)
          k.outer(depth, w.bk, w.bn, xs + (w.indices[e] * batch + m) * w.bk, w.bk, dys + m * w.bn,
                  w.bn, out + e * block, m > 0);
      }
    }
  });
  return nullptr;
}

}  // namespace jaxsparse
