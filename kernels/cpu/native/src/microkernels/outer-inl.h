// The sampled product's kernel: sums of outer products over the batch.
#pragma once

#include "microkernels/simd.h"

namespace {

template <int ROWS, int NV>
KERNEL void outer_of(long depth, const float* x, long ld_x, const float* dy, long ld_dy, float* c,
                     long ld_c, bool accumulate) {
  constexpr int CHAINS = ROWS * NV >= 8 ? 1 : 8 / (ROWS * NV);
  Vec sum[CHAINS][ROWS][NV];
  UNROLL for (int u = 0; u < CHAINS; u++)
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int v = 0; v < NV; v++) sum[u][r][v] = Vec{};
  long m = 0;
  for (; m + CHAINS <= depth; m += CHAINS) {
    UNROLL for (int u = 0; u < CHAINS; u++) {
      Vec dv[NV];
      UNROLL for (int v = 0; v < NV; v++) dv[v] = load(dy + v * LANES);
      UNROLL for (int r = 0; r < ROWS; r++) {
        const Vec xv = splat(x[r]);
        UNROLL for (int v = 0; v < NV; v++) sum[u][r][v] += xv * dv[v];
      }
      x += ld_x;
      dy += ld_dy;
    }
  }
  for (; m < depth; m++, x += ld_x, dy += ld_dy) {
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int v = 0; v < NV; v++) sum[0][r][v] += splat(x[r]) * load(dy + v * LANES);
  }
  UNROLL for (int u = 1; u < CHAINS; u++)
    UNROLL for (int r = 0; r < ROWS; r++)
      UNROLL for (int v = 0; v < NV; v++) sum[0][r][v] += sum[u][r][v];
  UNROLL for (int r = 0; r < ROWS; r++)
    UNROLL for (int v = 0; v < NV; v++) {
      float* to = c + r * ld_c + v * LANES;
      store(to, accumulate ? load(to) + sum[0][r][v] : sum[0][r][v]);
    }
}

template <int NV>
void outer_rows(long depth, int rows, const float* x, long ld_x, const float* dy, long ld_dy,
                float* c, long ld_c, bool accumulate) {
  constexpr int kMost = LANES == 16 ? 8 : 4;
  while (rows > 0) {
    int done;
    if (rows >= kMost) {
      done = kMost;
      outer_of<kMost, NV>(depth, x, ld_x, dy, ld_dy, c, ld_c, accumulate);
    } else if (rows >= 4) {
      done = 4;
      outer_of<4, NV>(depth, x, ld_x, dy, ld_dy, c, ld_c, accumulate);
    } else if (rows >= 2) {
      done = 2;
      outer_of<2, NV>(depth, x, ld_x, dy, ld_dy, c, ld_c, accumulate);
    } else {
      done = 1;
      outer_of<1, NV>(depth, x, ld_x, dy, ld_dy, c, ld_c, accumulate);
    }
    rows -= done;
    x += done;
    c += done * ld_c;
  }
}

void outer(long depth, int rows, int columns, const float* x, long ld_x, const float* dy,
           long ld_dy, float* c, bool accumulate) {
  int n = 0;
  for (; n + 2 * LANES <= columns; n += 2 * LANES)
    outer_rows<2>(depth, rows, x, ld_x, dy + n, ld_dy, c + n, columns, accumulate);
  for (; n < columns; n += LANES)
    outer_rows<1>(depth, rows, x, ld_x, dy + n, ld_dy, c + n, columns, accumulate);
}

}  // namespace
