// Transposing rows of x into panels and panels of results back into rows of y.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "microkernels/simd.h"

namespace {

void pack_panel(const float* x, long ld, int rows, long depth, int width, float* panel) {
  for (int r0 = 0; r0 < width; r0 += LANES) {
    long k = 0;
    for (; k + LANES <= depth; k += LANES) {
      Vec v[LANES];
      if (r0 + LANES <= rows) {
        UNROLL for (int r = 0; r < LANES; r++) v[r] = load(x + (r0 + r) * ld + k);
      } else {
        for (int r = 0; r < LANES; r++) v[r] = r0 + r < rows ? load(x + (r0 + r) * ld + k) : Vec{};
      }
      transpose(v);
      UNROLL for (int i = 0; i < LANES; i++) store(panel + (k + i) * width + r0, v[i]);
    }
    for (; k < depth; k++) {
      for (int r = r0; r < r0 + LANES; r++) panel[k * width + r] = r < rows ? x[r * ld + k] : 0.f;
    }
  }
}

// For widths that are no multiple of LANES. Whole vectors are stored in the order of
// k, so that what spills over one k's end is overwritten by the next.
void pack_rows(const float* x, long ld, int rows, long depth, int width, float* panel) {
  constexpr int kTiles = (jaxsparse::kMostRows + LANES - 1) / LANES;
  const int tiles = (width + LANES - 1) / LANES;
  long k = 0;
  for (; k + LANES <= depth; k += LANES) {
    Vec v[kTiles][LANES];
    for (int t = 0; t < tiles; t++) {
      for (int r = 0; r < LANES; r++) {
        const int row = t * LANES + r;
        v[t][r] = row < rows ? load(x + row * ld + k) : Vec{};
      }
      transpose(v[t]);
    }
    for (int i = 0; i < LANES; i++) {
      for (int t = 0; t < tiles; t++) store(panel + (k + i) * width + t * LANES, v[t][i]);
    }
  }
  for (; k < depth; k++) {
    for (int r = 0; r < width; r++) panel[k * width + r] = r < rows ? x[r * ld + k] : 0.f;
  }
}

void store_panel(const float* outs, int columns, int width, int rows, float* y, long ld) {
  int n = 0;
  for (; n + LANES <= columns; n += LANES) {
    for (int r0 = 0; r0 < rows; r0 += LANES) {
      Vec v[LANES];
      UNROLL for (int i = 0; i < LANES; i++) v[i] = load(outs + (long)(n + i) * width + r0);
      transpose(v);
      if (r0 + LANES <= rows) {
        UNROLL for (int r = 0; r < LANES; r++) store(y + (r0 + r) * ld + n, v[r]);
      } else {
        for (int r = 0; r0 + r < rows; r++) store(y + (r0 + r) * ld + n, v[r]);
      }
    }
  }
  for (; n < columns; n++) {
    for (int r = 0; r < rows; r++) y[r * ld + n] = outs[(long)n * width + r];
  }
}

template <class W>
KERNEL void widen_as(const W* from, long count, float* to) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load_wide(from + i));
  for (; i < count; i++) to[i] = widen(from[i]);
}

template <class W>
KERNEL void widen_transposed_as(const W* from, long step_from, int rows, int columns, float* to,
                                long step_to) {
  int r = 0;
  for (; r + LANES <= rows; r += LANES) {
    int c = 0;
    for (; c + LANES <= columns; c += LANES) {
      Vec v[LANES];
      UNROLL for (int i = 0; i < LANES; i++) v[i] = load_wide(from + (r + i) * step_from + c);
      transpose(v);
      UNROLL for (int i = 0; i < LANES; i++) store(to + (c + i) * step_to + r, v[i]);
    }
    for (; c < columns; c++) {
      for (int i = r; i < r + LANES; i++) to[c * step_to + i] = widen(from[i * step_from + c]);
    }
  }
  for (; r < rows; r++) {
    for (int c = 0; c < columns; c++) to[c * step_to + r] = widen(from[r * step_from + c]);
  }
}

void widen_any(int dtype, const void* from, long count, float* to) {
  with_values(dtype, from, [&](auto* from) { widen_as(from, count, to); });
}

void widen_transposed(int dtype, const void* from, long step_from, int rows, int columns, float* to,
                      long step_to) {
  with_values(dtype, from, [&](auto* from) {
    widen_transposed_as(from, step_from, rows, columns, to, step_to);
  });
}

}  // namespace
