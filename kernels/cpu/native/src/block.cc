// Block products: x @ W, dy @ W^T and the sampled x^T @ dy.
#include <vector>

#include "products.h"

namespace jaxsparse {
namespace {

constexpr long kGroupBytes = 384 * 1024;  // weights that stay in the second cache
constexpr int kStrip = 64;                // columns of y written at a time

// Vectors a panel is wide: the least padding, and among equals the wider.
int panel_vectors(long batch, int lanes) {
  int best = 1;
  long least = -1;
  for (int vectors = 3; vectors >= 1; vectors--) {
    const long width = vectors * lanes;
    const long padded = (batch + width - 1) / width * width;
    // A narrow panel reads every weight more often: worth one part in eight.
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

// begins of groups of block columns, few enough bytes for the cache and enough groups
// for the threads.
std::vector<long> group_columns(const Sums& s, int threads, long most_bytes) {
  const long block = (long)s.depth * s.outs * 4;
  const long all = s.ptr[s.columns] * block;
  const long limit = std::max<long>(std::min(most_bytes, all / (threads * 4) + 1), 16 * 1024);
  std::vector<long> begins;
  cut_by_cost(s.columns, limit, [&](long j) { return blocks_in(s, j) * block + s.outs * 16; },
              begins);
  return begins;
}

// One panel times the block columns [j0, j1) whose weights, as floats, begin at `w`.
void panel_columns(const Kernels& k, const Sums& s, long j0, long j1, const float* w,
                   const float* panel, int rows, int vectors, float* y) {
  const int width = vectors * k.lanes;
  const long block = (long)s.depth * s.outs;
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
    const long blocks = blocks_in(s, j);
    for (int c = 0; c < s.outs; c += kStrip) {
      const int count = std::min(kStrip, s.outs - c);
      k.block_panel(vectors, count, blocks, s.index + s.ptr[j], w + c, block, s.depth, s.outs,
                    panel, outs + (long)held * width);
      held += count;
      if (held >= kStrip) flush();
    }
    w += blocks * block;
  }
  if (held) flush();
}

// prepare(j0, j1): the weights of a group as floats, blocks in order.
template <class Prepare>
void dot_panels(Pool& pool, const Matrix& x, const Sums& s, long depth, const Prepare& prepare,
                float* y) {
  const Kernels& k = kernels();
  const int vectors = panel_vectors(x.rows, k.lanes);
  const Panels panels(pool, x, depth, vectors * k.lanes);
  const auto begins = group_columns(s, pool.threads(), kGroupBytes);
  const long groups = (long)begins.size() - 1;
  parallel_for(pool, groups, [&](long g) {
    const float* w = prepare(begins[g], begins[g + 1]);
    for (long p = 0; p < panels.count; p++)
      panel_columns(k, s, begins[g], begins[g + 1], w, panels[p], panels.rows(p), vectors,
                    y + p * panels.width * s.total);
  });
}

// Few rows: a block column at a time straight from the stored weights.
void dot_rows(Pool& pool, const Matrix& x, const BlockWeights& w, const Sums& s, float* y) {
  const Kernels& k = kernels();
  const int rows = (int)x.rows;
  const long depth = w.block_rows() * w.bk;
  const bool as_is = rows == 1 && depth == x.columns;
  const float* packed = as_is ? x.at : Panels(pool, x, depth, rows)[0];
  const auto begins = group_columns(s, pool.threads(), kGroupBytes);
  const long block = (long)w.bk * w.bn, bytes = dtype_bytes(w.dtype);
  parallel_for(pool, (long)begins.size() - 1, [&](long g) {
    for (long j = begins[g]; j < begins[g + 1]; j++) {
      const char* values = static_cast<const char*>(w.values) + w.indptr[j] * block * bytes;
      const long kept = std::min<long>(w.bn, w.n - j * w.bn);
      const bool whole = kept == w.bn;
      float* to = whole ? y + j * w.bn : scratch().get<float>(kOuts, (size_t)rows * w.bn);
      k.block_rows(w.dtype, rows, w.bn / k.lanes, blocks_in(s, j), w.indices + w.indptr[j], values,
                   block, w.bk, w.bn, packed, to, whole ? w.n : w.bn);
      if (whole) continue;
      for (int r = 0; r < rows; r++)
        std::copy(to + (long)r * w.bn, to + (long)r * w.bn + kept, y + r * w.n + j * w.bn);
    }
  });
}

}  // namespace

void block_dot(Pool& pool, const Matrix& x, const BlockWeights& w, float* y) {
  const Kernels& k = kernels();
  const Sums s{w.block_columns(), w.indptr, w.indices, w.bk, w.bn, w.n};
  if (x.rows <= k.most_rows) return dot_rows(pool, x, w, s, y);
  const long block = (long)w.bk * w.bn, bytes = dtype_bytes(w.dtype);
  dot_panels(
      pool, x, s, w.block_rows() * w.bk,
      [&](long j0, long j1) -> const float* {
        const char* from = static_cast<const char*>(w.values) + w.indptr[j0] * block * bytes;
        if (w.dtype == kF32) return reinterpret_cast<const float*>(from);
        const long count = (w.indptr[j1] - w.indptr[j0]) * block;
        float* to = scratch().get<float>(kWeights, count);
        k.widen(w.dtype, from, count, to);
        return to;
      },
      y);
}

void block_dot_transposed(Pool& pool, const Matrix& dy, const BlockWeights& w, float* dx) {
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
  const long block = (long)w.bk * w.bn, bytes = dtype_bytes(w.dtype);
  dot_panels(
      pool, dy, s, columns * w.bn,
      [&](long i0, long i1) -> const float* {
        float* to = scratch().get<float>(kWeights, (ptr[i1] - ptr[i0]) * block);
        float* at = to;
        for (long e = ptr[i0]; e < ptr[i1]; e++, at += block) {
          const char* from = static_cast<const char*>(w.values) + position[e] * block * bytes;
          k.widen_transposed(w.dtype, from, w.bn, w.bk, w.bn, at, w.bk);
        }
        return to;
      },
      dx);
}

void block_sampled(Pool& pool, const Matrix& x, const Matrix& dy, const BlockWeights& w,
                   float* out) {
  const Kernels& k = kernels();
  const long batch = x.rows, rows = w.block_rows(), block = (long)w.bk * w.bn;
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
  const Sums s{w.block_columns(), w.indptr, w.indices, w.bk, w.bn, w.n};
  const auto begins = group_columns(s, pool.threads(), kGroupBytes);
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
}

}  // namespace jaxsparse
