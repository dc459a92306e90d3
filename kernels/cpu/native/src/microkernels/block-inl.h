// Block kernels: a whole block column is summed in registers and written once.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

using jaxsparse::BlockColumn;

// T vectors of the batch times COUNT outs. DEPTH: rows of a block where known at
// compile time, else 0. CHAINS independent sums hide the latency of narrow tiles.
template <int T, int COUNT, int DEPTH>
KERNEL void block_panel_of(const BlockColumn column, const float* w, const float* panel,
                           float* outs) {
  constexpr int CHAINS = T * COUNT >= 8 ? 1 : 8 / (T * COUNT);
  const int depth = DEPTH ? DEPTH : column.depth;
  const long step = column.step, ahead = DEPTH ? 0 : 8 * step;
  Vec sum[CHAINS][COUNT][T];
  UNROLL for (int u = 0; u < CHAINS; u++)
    UNROLL for (int c = 0; c < COUNT; c++)
      UNROLL for (int t = 0; t < T; t++) sum[u][c][t] = Vec{};
  for (long b = 0; b < column.blocks; b++, w += column.size) {
    const float* x = panel + (long)column.index[b] * depth * (T * LANES);
    const float* wr = w;
    if constexpr (DEPTH != 0) __builtin_prefetch(w + 8 * column.size, 0, 3);
    int r = 0;
    for (; r + CHAINS <= depth; r += CHAINS) {
      UNROLL for (int u = 0; u < CHAINS; u++) {
        if constexpr (DEPTH == 0) __builtin_prefetch(wr + ahead, 0, 3);
        Vec xv[T];
        UNROLL for (int t = 0; t < T; t++) xv[t] = load(x + t * LANES);
        UNROLL for (int c = 0; c < COUNT; c++) {
          const Vec wv = splat(wr[c]);
          UNROLL for (int t = 0; t < T; t++) sum[u][c][t] += wv * xv[t];
        }
        wr += step;
        x += T * LANES;
      }
    }
    if constexpr (CHAINS > 1) {
      for (; r < depth; r++) {
        UNROLL for (int c = 0; c < COUNT; c++) {
          const Vec wv = splat(wr[c]);
          UNROLL for (int t = 0; t < T; t++) sum[0][c][t] += wv * load(x + t * LANES);
        }
        wr += step;
        x += T * LANES;
      }
    }
  }
  UNROLL for (int u = 1; u < CHAINS; u++)
    UNROLL for (int c = 0; c < COUNT; c++)
      UNROLL for (int t = 0; t < T; t++) sum[0][c][t] += sum[u][c][t];
  UNROLL for (int c = 0; c < COUNT; c++)
    UNROLL for (int t = 0; t < T; t++) store(outs + ((long)c * T + t) * LANES, sum[0][c][t]);
}

template <int T, int COUNT>
void block_panel_depth(const BlockColumn& column, const float* w, const float* panel,
                       float* outs) {
  if (COUNT >= 4 && column.depth == 1) return block_panel_of<T, COUNT, 1>(column, w, panel, outs);
  if (COUNT >= 4 && column.depth == 4) return block_panel_of<T, COUNT, 4>(column, w, panel, outs);
  block_panel_of<T, COUNT, 0>(column, w, panel, outs);
}

template <int T>
int block_panel_count(int count, const BlockColumn& column, const float* w, const float* panel,
                      float* outs) {
  // As many outs as the register file holds beside T vectors of x and one weight.
  constexpr int kMost = LANES == 16 ? (T == 1 ? 16 : T <= 3 ? 8 : 4) : (T == 1 ? 8 : T <= 3 ? 4 : 2);
#define COUNT_CASE(C)                                                   \
  if (C <= kMost && count >= C) {                                       \
    block_panel_depth<T, C <= kMost ? C : 1>(column, w, panel, outs);   \
    return C;                                                           \
  }
  COUNT_CASE(16) COUNT_CASE(8) COUNT_CASE(4) COUNT_CASE(2)
#undef COUNT_CASE
  block_panel_depth<T, 1>(column, w, panel, outs);
  return 1;
}

void block_panel(int vectors, int count, const BlockColumn& column, const float* w,
                 const float* panel, float* outs) {
  const auto some = vectors == 1   ? block_panel_count<1>
                    : vectors == 2 ? block_panel_count<2>
                                   : block_panel_count<3>;
  while (count > 0) {
    const int done = some(count, column, w, panel, outs);
    count -= done;
    w += done;
    outs += (long)done * vectors * LANES;
  }
}

// DEPTH: rows of a block where known at compile time, else 0. Few rows of x leave room for
// CHAINS sums of each, so that none waits for the one before; low blocks follow each other
// in them.
template <class W, int ROWS, int NV, int DEPTH>
KERNEL void block_rows_of(const BlockColumn column, const W* w, const float* x, float* y,
                          long ld) {
  constexpr int CHAINS = ROWS * NV >= 8 ? 1 : 8 / (ROWS * NV);
  constexpr int BLOCKS = DEPTH && CHAINS > DEPTH ? CHAINS / DEPTH : 1;
  const long blocks = column.blocks, block = column.size, step = column.step;
  const int32_t* index = column.index;
  const int depth = DEPTH ? DEPTH : column.depth;
  Vec sum[CHAINS][ROWS][NV];
  UNROLL for (int u = 0; u < CHAINS; u++)
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int v = 0; v < NV; v++) sum[u][r][v] = Vec{};
  // Few rows are bound by memory: ask for the weights well before they are needed.
  constexpr long kAhead = 1024;
  const auto add = [&](int u, const W* wr, const float* xr) __attribute__((always_inline)) {
    UNROLL for (int v = 0; v < NV * LANES * (int)sizeof(W); v += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(wr) + kAhead + v, 0, 3);
    Vec wv[NV];
    UNROLL for (int v = 0; v < NV; v++) wv[v] = load_wide(wr + v * LANES);
    UNROLL for (int r = 0; r < ROWS; r++) {
      const Vec xv = splat(xr[r]);
      UNROLL for (int v = 0; v < NV; v++) sum[u][r][v] += xv * wv[v];
    }
  };
  long b = 0;
  if constexpr (DEPTH != 0) {
    for (; b + BLOCKS <= blocks; b += BLOCKS, w += BLOCKS * block) {
      UNROLL for (int i = 0; i < BLOCKS; i++) {
        const float* xr = x + (long)index[b + i] * DEPTH * ROWS;
        UNROLL for (int k = 0; k < DEPTH; k++)
          add((i * DEPTH + k) % CHAINS, w + i * block + k * step, xr + k * ROWS);
      }
    }
  }
  for (; b < blocks; b++, w += block) {
    const float* xr = x + (long)index[b] * depth * ROWS;
    const W* wr = w;
    int k = 0;
    for (; k + CHAINS <= depth; k += CHAINS) {
      UNROLL for (int u = 0; u < CHAINS; u++, wr += step, xr += ROWS) add(u, wr, xr);
    }
    if constexpr (CHAINS > 1) {
      for (; k < depth; k++, wr += step, xr += ROWS) add(0, wr, xr);
    }
  }
  UNROLL for (int u = 1; u < CHAINS; u++)
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int v = 0; v < NV; v++) sum[0][r][v] += sum[u][r][v];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) store(y + r * ld + v * LANES, sum[0][r][v]);
}

constexpr int kRowsHeld = LANES == 16 ? 14 : 6;
constexpr int kNarrowRows = LANES == 16 ? 28 : kRowsHeld;

template <class W, int NV, int MOST>
void block_rows_rows(int rows, const BlockColumn& column, const W* w, const float* x, float* y,
                     long ld) {
  switch (rows) {
#define ROWS_CASE(R)                                                                     \
  case R: {                                                                              \
    constexpr int ROWS = R <= MOST ? R : 1;                                              \
    constexpr bool kFew = ROWS * NV < 8; /* or the rows alone hide the latency */        \
    const auto sum = kFew && column.depth == 1   ? block_rows_of<W, ROWS, NV, kFew ? 1 : 0> \
                     : kFew && column.depth == 4 ? block_rows_of<W, ROWS, NV, kFew ? 4 : 0> \
                                                 : block_rows_of<W, ROWS, NV, 0>;        \
    return sum(column, w, x, y, ld);                                                     \
  }
    ROWS_CASE(1) ROWS_CASE(2) ROWS_CASE(3) ROWS_CASE(4) ROWS_CASE(5) ROWS_CASE(6) ROWS_CASE(7)
    ROWS_CASE(8) ROWS_CASE(9) ROWS_CASE(10) ROWS_CASE(11) ROWS_CASE(12) ROWS_CASE(13) ROWS_CASE(14)
    ROWS_CASE(15) ROWS_CASE(16) ROWS_CASE(17) ROWS_CASE(18) ROWS_CASE(19) ROWS_CASE(20)
    ROWS_CASE(21) ROWS_CASE(22) ROWS_CASE(23) ROWS_CASE(24) ROWS_CASE(25) ROWS_CASE(26)
    ROWS_CASE(27) ROWS_CASE(28)
#undef ROWS_CASE
  }
}

template <class W>
void block_rows_as(int rows, int vectors, const BlockColumn& column, const W* w, const float* x,
                   float* y, long ld) {
  constexpr int kNarrow = sizeof(W) == sizeof(float) ? kNarrowRows : kRowsHeld;
  while (vectors > 0) {
    if (vectors >= 2) {
      block_rows_rows<W, 2, kRowsHeld>(rows, column, w, x, y, ld);
    } else {
      block_rows_rows<W, 1, kNarrow>(rows, column, w, x, y, ld);
    }
    vectors -= 2, w += 2 * LANES, y += 2 * LANES;
  }
}

void block_rows(int dtype, int rows, int vectors, const BlockColumn& column, const void* w,
                const float* x, float* y, long ld) {
  with_values(dtype, w, [&](auto* w) { block_rows_as(rows, vectors, column, w, x, y, ld); });
}

}  // namespace
