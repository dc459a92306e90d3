// The microkernels of one instruction set, as a table of functions. What is in drivers/ is
// compiled once, for the base architecture, and reaches what is in microkernels/, compiled for
// every instruction set, through this table only.
//
// Words used throughout: a *panel* holds a few rows of x transposed, panel[k][width],
// so that one weight multiplies `width` rows at once; an *out* is one column of y (of
// dx when transposed) and comes out transposed too, out[column][width].
#pragma once

#include <cstdint>

namespace jaxsparse {

enum Dtype { kF32 = 0, kBf16 = 1, kI8 = 2 };

inline long dtype_bytes(int dtype) { return dtype == kF32 ? 4 : dtype == kBf16 ? 2 : 1; }
inline const void* from_value(const void* values, int dtype, long i) {
  return static_cast<const char*>(values) + i * dtype_bytes(dtype);
}

// Rows of a batch that the row-wise block kernel holds in registers, at most.
constexpr int kMostRows = 28;

constexpr int kFmaChains = 12;

// Rows of x that the bitmap kernel takes, at most.
constexpr int kBitmapRows = 8;

// Pixels of a column that it takes at once.
constexpr int kBitmapPlaces = 64;

// Bytes of the widest vector: what a kernel may touch past the end of an array where its comment
// below says so.
constexpr long kVectorBytes = 64;

// Columns cut into tiles at a time.
constexpr int kTileColumns = 64;

// Rows of a tile, at most: a panel's share of them nearly fits the first cache, and a row's number
// fits a byte. A multiple of every m of N:M.
constexpr int kMostTileRows = 256;

// Blocks that add up to one column of blocks of the result: block b lies at w + b * size, its rows
// of outs `step` apart, and multiplies the `depth` rows of a panel from index[b] * depth on.
struct BlockColumn {
  long blocks;
  const int32_t* index;
  long size;
  int depth;
  long step;
};

// Single weights and their rows, int32 where wide_index, else uint16.
struct CscEntries {
  int dtype;
  bool wide_index;
  const void *index, *values;
};

// Columns of weights under bits and their `count` values. A column is `words` words, the next
// begins `stride` later.
struct BitmapColumns {
  int columns, words;
  long stride;
  const uint32_t* bits;
  int dtype;
  const void* values;
  long count;
};

// N:M weights: n rows of values for each group, and the words of positions, rows `columns` long.
struct NmGroups {
  int dtype, n, m;
  long groups, columns;
  const void* values;
  const uint32_t* positions;
};

// Rows of a panel that are copied from images, at most.
constexpr int kMostPixels = 64;

// Lanes of a vector that lie side by side, and where its first lane would lie.
struct Piece {
  const float* from;
  uint32_t lanes;
};

// A few rows of x and those of y that they give.
struct FewRows {
  int count;
  const float* x;
  long ld_x;
  float* y;
  long ld_y;
};

// Some groups of N:M weights: the stored rows [begin, begin + count), of which row
// begin + e belongs to the group that starts base[e] rows into the tile: `quads` times four
// entries of a column, the last ones perhaps beyond `count`. `last` is the
// tile's last row of x, a row of zeros where the tile is not full.
struct NmTile {
  long begin;
  int count, quads, bits, per_word, last;
  const uint8_t* base;
};

// A tile of single weights: columns in the order given, counts[i] weights each, a weight's row
// within the tile in a byte. The values of the next column begin steps[i] after those of this one.
struct TileColumns {
  int columns;
  const uint8_t* order;
  const uint16_t *counts, *steps;
  const uint8_t* rows;
  const float* values;
};

// Rows of x that a tap of a sparse convolution joins with rows of sums, no row of sums twice.
struct TapPairs {
  int count;
  const int32_t* from;
  const uint16_t* to;
};

struct Kernels {
  const char* name;
  int lanes;
  int most_rows;     // of the row-wise block kernel, where y is two vectors wide or more
  int narrow_rows;   // and where it is one vector wide and the weights are floats
  int tile_vectors;  // panel width of the tile kernels, in vectors

  // Panels. `rows` of x (leading dimension ld) to panel[depth][width]; rows beyond are
  // zero. width is a multiple of lanes for pack_panel, and <= kMostRows for pack_rows,
  // which may write up to 2 * lanes floats past the end.
  void (*pack_panel)(const float* x, long ld, int rows, long depth, int width, float* panel);
  void (*pack_rows)(const float* x, long ld, int rows, long depth, int width, float* panel);
  // to[channel * ld + pixel] = from[pixel * step + channel], widened; zeros up to a multiple of
  // lanes pixels.
  void (*turn)(int dtype, const void* from, long step, int pixels, long channels, float* to,
               long ld);
  // panel[row][width], the first `lanes` of it, = a vector of `count` pieces, of which row after
  // row lies `step` further.
  void (*copy_pieces)(const Piece* pieces, int count, int lanes, long step, long depth, int width,
                      float* panel);
  // Reads up to a vector past the end of outs where width is no multiple of lanes.
  void (*store_panel)(const float* outs, int columns, int width, int rows, float* y, long ld);

  // outs[0..count)[vectors * lanes] = sum over blocks b, depths r of
  //   panel[index[b] * depth + r] * w[b * size + r * step + 0..count).
  void (*block_panel)(int vectors, int count, const BlockColumn& column, const float* w,
                      const float* panel, float* outs);
  // Row-wise, for few rows: y[rows][vectors * lanes] from x packed [k][rows].
  void (*block_rows)(int dtype, int rows, int vectors, const BlockColumn& column, const void* w,
                     const float* x, float* y, long ld);
  // To float: count values.
  void (*widen)(int dtype, const void* from, long count, float* to);
  // to[column][row] (step_to) = from[row][column] (step_from), widened.
  void (*widen_transposed)(int dtype, const void* from, long step_from, int rows, int columns,
                           float* to, long step_to);

  // c[rows][columns] (+)= sum over m of x[m][row] * dy[m][column]; columns a multiple of 16.
  void (*outer)(long depth, int rows, int columns, const float* x, long ld_x, const float* dy,
                long ld_dy, float* c, bool accumulate);

  // outs[column][width] += the tile's part, for panels that are 8 rows or 1, 2 or
  // tile_vectors vectors wide; next_floats at `next` will be read soon.
  void (*tile_dot)(int width, const TileColumns& tile, const float* panel, const float* next,
                   long next_floats, float* outs);

  // A tile of N:M weights of up to kTileColumns columns, four entries of a column side by
  // side: to[quad][kTileColumns][4], rows[quad][kTileColumns] with a byte an entry. The order
  // of columns within `to` is the kernels' own. Entries that fill the last four are zero, in
  // row tile.last.
  void (*nm_quads)(const NmGroups& from, const NmTile& tile, int width, float* to,
                   uint32_t* rows);
  // outs[column][tile_vectors * lanes] += what such a tile gives. `next` is the panel that
  // will be read next.
  void (*quads_dot)(int columns, int quads, const float* values, const uint32_t* rows,
                    const float* panel, const float* next, float* outs);

  // counts[c]: how many of the entries [at[c], end[c]) of a column lie above row `high`, of
  // ascending rows; at most kMostTileRows.
  void (*csc_cut)(const CscEntries& entries, int columns, long high, const long* at,
                  const long* end, uint16_t* counts);
  // Copies the entries of such a tile, counts[i] of column order[i] from at[order[i]] on:
  // rows less `low`, values as floats. False where a row is not within kMostTileRows, or rows do
  // not ascend. A vector past the end of both is written too.
  bool (*csc_copy)(const CscEntries& entries, int columns, const uint8_t* order,
                   const uint16_t* counts, const long* at, long low, uint8_t* rows, float* to);
  // How many of the rows, as unsigned numbers, are not above the one before.
  long (*descents)(bool wide_index, const void* index, long count);

  // Straight from CSC for one panel of `width` rows: 1, 4, 8 or up to 4 times the lanes.
  // outs[column][width], of columns [n0, n1).
  void (*csc_panel)(const CscEntries& entries, int width, long n0, long n1, const int32_t* indptr,
                    const float* panel, float* outs);
  // out[row] += factors[column] * the weight, for every weight of the `count` columns named.
  // False where rows do not ascend below k; what was added until then stays.
  bool (*csc_scatter)(const CscEntries& entries, const int32_t* indptr, long k,
                      const int32_t* columns, long count, const float* factors, float* out);

  // The rows of the bits set, column after column, and how many each column has; the sum of
  // these. A column is `words` words, the next begins `stride` later. A vector past the last row
  // is written too.
  long (*bitmap_rows)(int columns, long stride, int words, const uint32_t* bits, uint16_t* counts,
                      uint8_t* rows);
  // The next two are null where the instruction set has no such kernel.
  // sums[column][rows][lanes] += x times the columns, for up to kBitmapRows rows of x, finite and
  // read up to a multiple of kBitmapPlaces. False where there are not `count` bits. A vector past
  // the last value is read too.
  bool (*bitmap_dot)(const BitmapColumns& from, int rows, const float* x, long ld, float* sums);
  // y[row][column] = what the lanes of sums[column][row] add up to.
  void (*bitmap_sums)(int columns, int rows, const float* sums, float* y, long ld);

  // N:M on few rows of x, columns [n0, n1). A row of x is groups * m long.
  void (*nm_rows)(const NmGroups& from, const FewRows& rows, long n0, long n1);

  // For strips of 1 to pair_vectors vectors:
  // sums[to[i]] += x[from[i]][0..depth) @ w[depth], and c[row] += x[from[i]][row] * g[to[i]].
  int pair_vectors;
  void (*pairs_dot)(int vectors, const TapPairs& pairs, long depth, const float* x, long ld,
                    const float* w, float* sums);
  void (*pairs_outer)(int vectors, const TapPairs& pairs, long rows, const float* x, long ld,
                      const float* g, float* c);

  // rounds * kFmaChains * lanes multiply-adds, and a sum over an array: what peak.cc times.
  float (*fma_rounds)(long rounds, float scale, float add);
  float (*read_all)(const float* from, long count);
};

// The best table this processor can run, or the one JAXSPARSE_CPU_ISA names.
const Kernels& kernels();
// Why the table asked for by name is not to be had; null when kernels() is as asked.
const char* isa_error();

extern const Kernels kPortable;
#if defined(__x86_64__) || defined(__i386__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace jaxsparse
