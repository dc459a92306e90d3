// The transposed product of a few rows, by the columns whose factor is not zero.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "drivers/panels.h"
#include "drivers/parallel.h"
#include "drivers/products.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

// Columns are shared out in pieces, each with a sum of its own: of so many entries or more, and
// of so many for each number of the sum, which all have to be cleared and added up.
constexpr long kPieceEntries = 64 * 1024, kEntriesPerSum = 16, kMostPieces = 16;
constexpr long kAddedAtOnce = 4096;  // numbers of the result

}  // namespace

bool scatter_transposed(Pool& pool, const Matrix& dy, const CscWeights& w, float* dx) {
  const Kernels& k = kernels();
  int32_t* active = scratch().get<int32_t>(kInput, w.n + 1);
  const long step = (w.k + 15) / 16 * 16;
  std::atomic<bool> good{true};
  for (long r = 0; r < dy.rows; r++) {
    const float* factors = dy.at + r * w.n;
    float* out = dx + r * w.k;
    long count = 0;
    for (long n = 0; n < w.n; n++) {
      active[count] = (int32_t)n;
      count += factors[n] != 0;  // NaN is something, too
    }
    // No thread's share: the sums have the same bits on any number of them.
    const long entries = (long)((double)w.indptr[w.n] * count / std::max(1L, w.n));
    const long pieces = std::max<long>(
        1, std::min({kMostPieces, entries / kPieceEntries,
                     entries / (kEntriesPerSum * std::max(1L, w.k))}));
    float* sums = scratch().get<float>(kOuts, (pieces - 1) * step);
    const auto sum = [&](long p) { return p == 0 ? out : sums + (p - 1) * step; };
    parallel_for(pool, pieces, [&](long p) {
      const long from = count * p / pieces, to = count * (p + 1) / pieces;
      std::fill(sum(p), sum(p) + w.k, 0.f);
      if (!k.csc_scatter(w.entries(), w.indptr, w.k, active + from, to - from, factors, sum(p)))
        good = false;
    });
    if (pieces == 1) continue;
    parallel_for(pool, (w.k + kAddedAtOnce - 1) / kAddedAtOnce, [&](long i) {
      const long end = std::min(w.k, (i + 1) * kAddedAtOnce);
      for (long p = 1; p < pieces; p++) {
        const float* part = sum(p);
        for (long j = i * kAddedAtOnce; j < end; j++) out[j] += part[j];
      }
    });
  }
  return good;
}

}  // namespace jaxsparse
