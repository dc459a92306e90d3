// Convolutions of scattered weights. All are cut into tiles once, for places are many and weights
// few; then every panel of places is gathered a tile at a time, so that its part of x, like the
// tile's weights, stays in the first cache.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>

#include "drivers/parallel.h"
#include "drivers/patches.h"
#include "drivers/scratch.h"
#include "drivers/tiles.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

// Chunks of columns that share what is gathered, at most: their sums stay in the second cache.
constexpr long kMostChunks = 8;

// Bytes of a panel's share of a tile: what a first cache holds beside weights and sums.
constexpr long kTileBytes = 32 * 1024;

// All tiles of a weight, chunk after chunk, each in as many parts as make its share of x small.
class Cut {
 public:
  Cut(Pool& pool, const Scattered& w, long entries, int width)
      : tile_rows(std::min<int>(w.tile_rows, kTileBytes / width / (int)sizeof(float))),
        tiles((w.k + tile_rows - 1) / tile_rows),
        chunks((w.n + kTileColumns - 1) / kTileColumns),
        at_(scratch().get<Tile>(kCutTiles, whole(w) * chunks)),
        rows_(scratch().get<uint8_t>(kCutRows, entries)),
        values_(scratch().get<float>(kCutValues, entries)) {
    std::atomic<long> used{0};
    std::atomic<bool> fine{true};
    parallel_for(pool, chunks, [&](long c) {
      const long n0 = c * kTileColumns, n1 = std::min(w.n, n0 + kTileColumns);
      Chunk chunk;
      if (!w.prepare(n0, n1, 0, w.tiles(), &chunk)) {
        fine = false;
        return;
      }
      const int columns = (int)(n1 - n0);
      const Tile& last = chunk.tiles[w.tiles() - 1];
      long at = used.fetch_add(std::accumulate(last.counts, last.counts + columns, last.begin));
      for (long t = 0; t < whole(w); t++) {
        const Tile& from = chunk.tiles[t / parts(w)];
        at = copy(from, chunk.rows + from.begin, chunk.values + from.begin,
                  (int)(t % parts(w)) * tile_rows, columns, at, &at_[c * whole(w) + t]);
      }
    });
    good = fine;
  }

  TileColumns tile(const Scattered& w, long t, long c) const {
    const Tile& tile = at_[c * whole(w) + t];
    const int columns = (int)std::min<long>(kTileColumns, w.n - c * kTileColumns);
    return {columns, tile.order, tile.counts, tile.counts, rows_ + tile.begin,
            values_ + tile.begin};
  }

  const int tile_rows;
  const long tiles, chunks;
  bool good;

 private:
  // Of several tiles each is a multiple of a part: only a tile that is alone leaves a rest.
  int parts(const Scattered& w) const { return (w.tile_rows + tile_rows - 1) / tile_rows; }
  long whole(const Scattered& w) const { return w.tiles() * parts(w); }

  // The entries from row `low` of a tile on that belong to the part; returns where they end.
  long copy(const Tile& from, const uint8_t* rows, const float* values, int low, int columns,
            long at, Tile* to) {
    to->begin = at;
    for (int i = 0; i < columns; i++) {
      to->order[i] = from.order[i];
      const long begin = at;
      for (int left = from.counts[i]; left > 0; left--, rows++, values++) {
        if (*rows < low || *rows >= low + tile_rows) continue;
        rows_[at] = (uint8_t)(*rows - low);
        values_[at++] = *values;
      }
      to->counts[i] = (uint16_t)(at - begin);
    }
    return at;
  }

  Tile* const at_;
  uint8_t* const rows_;
  float* const values_;
};

void multiply(Pool& pool, const Patches& x, const Scattered& w, const Cut& cut, float* y) {
  const Kernels& k = kernels();
  const int full = k.tile_vectors * k.lanes;
  const long panels = (x.rows + full - 1) / full, wanted = 4L * pool.threads();
  const long shares = std::max((cut.chunks + kMostChunks - 1) / kMostChunks,
                               std::min(cut.chunks, (wanted + panels - 1) / panels));
  parallel_for(pool, panels * shares, [&](long i) {
    const long p = i / shares, s = i % shares;
    const long c0 = cut.chunks * s / shares, c1 = cut.chunks * (s + 1) / shares;
    const int rows = (int)std::min<long>(full, x.rows - p * full), width = tile_width(rows);
    const size_t size = (size_t)kTileColumns * width;
    float* outs = scratch().get<float>(kOuts, (c1 - c0) * size, kVectorBytes);
    std::memset(outs, 0, (c1 - c0) * size * sizeof(float));
    float* panel = scratch().get<float>(kWeights, (size_t)cut.tile_rows * width);
    for (long t = 0; t < cut.tiles; t++) {
      const long k0 = t * cut.tile_rows, k1 = std::min(x.columns, k0 + cut.tile_rows);
      x.pack(p * full, rows, k0, k1, width, panel);
      // The last of N:M's groups may reach beyond.
      std::fill(panel + (k1 - k0) * width, panel + cut.tile_rows * width, 0.f);
      for (long c = c0; c < c1; c++) {
        k.tile_dot(width, cut.tile(w, t, c), panel, panel, 0, outs + (c - c0) * size);
      }
    }
    for (long c = c0; c < c1; c++) {
      const long n0 = c * kTileColumns;
      k.store_panel(outs + (c - c0) * size, (int)std::min<long>(kTileColumns, w.n - n0), width,
                    rows, y + p * full * w.n + n0, w.n);
    }
  });
}

}  // namespace

bool tiled_convolve(Pool& pool, const Image& image, const Scattered& w, long entries, float* y) {
  if (w.tiles() == 0) {
    std::fill(y, y + image.rows() * image.places[1] * w.n, 0.f);
    return true;
  }
  const Cut cut(pool, w, entries, kernels().tile_vectors * kernels().lanes);
  if (!cut.good) return false;
  by_rows_of_places(pool, image, w.n, y, [&](Pool& pool, const Patches& x, float* y) {
    multiply(pool, x, w, cut, y);
  });
  return true;
}

}  // namespace jaxsparse
