// Sparse convolution and its kernel maps, free of XLA. Arguments are already checked.
#pragma once

#include <cstdint>
#include <vector>

#include "drivers/panels.h"
#include "drivers/parallel.h"

namespace jaxsparse {

// at[tap][j]: the row of x that output j meets at a tap, none where it is not below `inputs`.
// `order` is a permutation of the outputs by which those near each other are near in it.
struct PairTable {
  long taps, outputs, inputs;
  const int32_t *at, *order;
};

// y[j] = sum over taps of x[at[tap][j]] @ w[tap], for w (taps, x.columns, columns).
void pairs_product(Pool& pool, const Matrix& x, const float* w, long columns,
                   const PairTable& table, float* y);
// dw[tap] = sum over j of the outer products of x[at[tap][j]] and g[j].
void pairs_sampled(Pool& pool, const Matrix& x, const Matrix& g, const PairTable& table, float* dw);

// The largest int32, behind every place.
constexpr int32_t kNowhere = 0x7fffffff;

// Keys, none negative, in rising order, and where each was; equal ones keep their order.
void sort_places(const int32_t* keys, long count, int32_t* sorted, int32_t* order);
// The first `room` of the different keys in rising order, but for kNowhere, which fills the rest.
// Returns how many there are.
long distinct_places(const int32_t* keys, long count, long room, int32_t* kept);

// Places in rising order and the row of each; from the first kNowhere on, nothing.
struct Places {
  long capacity;
  const int32_t *keys, *rows;
};

// An axis of a window: fine place p and coarse place q meet at tap t where
// p + shift = stride * q + t * dilation, both counted from the lower ends of their boxes.
struct WindowAxis {
  long size, stride, dilation, shift, fine, coarse;
};

// index[tap][coarse row] and reverse[tap][fine row]: the other's row, its capacity where none.
// `mirrors`: both are the same places, and tap t of one is tap -1 - t of the other.
void place_pairs(Pool& pool, const Places& fine, const Places& coarse,
                 const std::vector<WindowAxis>& axes, bool mirrors, int32_t* index,
                 int32_t* reverse);

}  // namespace jaxsparse
