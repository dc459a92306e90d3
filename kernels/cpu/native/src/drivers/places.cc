// Kernel maps by sorting and merging, as PointAcc builds them: along the places in rising order
// what a tap looks for rises too, so that a pass over both finds everything.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "drivers/clouds.h"
#include "drivers/scratch.h"

namespace jaxsparse {
namespace {

constexpr int kDigitBits = 11, kDigits = 3;  // 33 bits: more than a key has
constexpr long kBuckets = 1 << kDigitBits;

int digit(int32_t key, int d) { return (int)((uint32_t)key >> d * kDigitBits) & (kBuckets - 1); }

// From the lowest digit up; move(i, to) puts what is i-th to where it belongs. Digits that all
// keys share are passed over.
class Radix {
 public:
  Radix(const int32_t* keys, long count) : count_(count) {
    for (long i = 0; i < count; i++)
      for (int d = 0; d < kDigits; d++) begins_[d][digit(keys[i], d)]++;
    for (int d = 0; d < kDigits; d++) {
      long sum = 0;
      shared_[d] = count == 0 || begins_[d][digit(keys[0], d)] == count;
      for (int32_t& begin : begins_[d]) {
        const int32_t here = begin;
        begin = (int32_t)sum;
        sum += here;
      }
    }
  }
  bool shared(int d) const { return shared_[d]; }
  template <class Move>
  void pass(const int32_t* keys, int d, const Move& move) {
    for (long i = 0; i < count_; i++) move(i, begins_[d][digit(keys[i], d)]++);
  }

 private:
  const long count_;
  int32_t begins_[kDigits][kBuckets] = {};
  bool shared_[kDigits];
};

}  // namespace

void sort_places(const int32_t* keys, long count, int32_t* sorted, int32_t* order) {
  if (std::is_sorted(keys, keys + count)) {
    std::copy(keys, keys + count, sorted);
    for (long i = 0; i < count; i++) order[i] = (int32_t)i;
    return;
  }
  Radix radix(keys, count);
  int32_t* other_keys = scratch().get<int32_t>(kRows, count);
  int32_t* other_order = scratch().get<int32_t>(kTile, count);
  const int32_t *from = keys, *from_order = nullptr;
  for (int d = 0; d < kDigits; d++) {
    if (radix.shared(d)) continue;
    int32_t* to = from == sorted ? other_keys : sorted;
    int32_t* to_order = from == sorted ? other_order : order;
    radix.pass(from, d, [&](long i, long at) {
      to[at] = from[i];
      to_order[at] = from_order ? from_order[i] : (int32_t)i;
    });
    from = to;
    from_order = to_order;
  }
  if (from == other_keys) {
    std::copy(from, from + count, sorted);
    std::copy(from_order, from_order + count, order);
  }
}

long distinct_places(const int32_t* keys, long count, long room, int32_t* kept) {
  int32_t* one = scratch().get<int32_t>(kRows, count);
  int32_t* two = scratch().get<int32_t>(kTile, count);
  const int32_t* from = keys;
  if (!std::is_sorted(keys, keys + count)) {
    Radix radix(keys, count);
    for (int d = 0; d < kDigits; d++) {
      if (radix.shared(d)) continue;
      int32_t* to = from == one ? two : one;
      radix.pass(from, d, [&](long i, long at) { to[at] = from[i]; });
      from = to;
    }
  }
  long found = 0;
  int32_t last = -1;
  for (long i = 0; i < count && from[i] != kNowhere; i++) {
    if (from[i] == last) continue;
    last = from[i];
    if (found < room) kept[found] = last;
    found++;
  }
  std::fill(kept + std::min(found, room), kept + room, kNowhere);
  return found;
}

namespace {

// For each tap of an axis and each fine place, what its coarse place adds to a key; negative where
// there is none.
void axis_terms(const WindowAxis& axis, long weight, const int32_t* columns, long count,
                int32_t* terms) {
  for (long t = 0; t < axis.size; t++, terms += count)
    for (long i = 0; i < count; i++) {
      const int64_t moved = columns[i] + axis.shift - t * axis.dilation;
      const int64_t place = axis.stride == 1 ? moved : moved / axis.stride;
      const bool there = moved >= 0 && place < axis.coarse && place * axis.stride == moved;
      terms[i] = there ? (int32_t)(place * weight) : -1;
    }
}

long used(const Places& places) {
  return std::lower_bound(places.keys, places.keys + places.capacity, kNowhere) - places.keys;
}

}  // namespace

void place_pairs(Pool& pool, const Places& fine, const Places& coarse,
                 const std::vector<WindowAxis>& axes, bool mirrors, int32_t* index,
                 int32_t* reverse) {
  const long n = used(fine), m = used(coarse), rank = (long)axes.size();
  long taps = 1, slots = 1;
  for (const WindowAxis& axis : axes) taps *= axis.size, slots += axis.size;
  // One key more than there are ends every search.
  int32_t* ends = scratch().get<int32_t>(kInput, m + 1 + n * slots + n);
  std::copy(coarse.keys, coarse.keys + m, ends);
  ends[m] = kNowhere;
  int32_t* const terms = ends + m + 1;
  int32_t* const column = terms + n * slots;
  // The last axis first: what is left of a key then are the axes before, the batch at the end.
  int32_t* rest = terms;
  std::copy(fine.keys, fine.keys + n, rest);
  long weight = 1, slot = slots;
  for (long a = rank - 1; a >= 0; a--) {
    const uint32_t size = (uint32_t)axes[a].fine;
    for (long i = 0; i < n; i++) {
      const uint32_t key = (uint32_t)rest[i], above = key / size;
      column[i] = (int32_t)(key - above * size);
      rest[i] = (int32_t)above;
    }
    slot -= axes[a].size;
    axis_terms(axes[a], weight, column, n, terms + slot * n);
    weight *= axes[a].coarse;
  }
  for (long i = 0; i < n; i++) rest[i] = (int32_t)(rest[i] * weight);

  const long searched = mirrors ? taps / 2 : taps;
  const int32_t no_fine = (int32_t)fine.capacity, no_coarse = (int32_t)coarse.capacity;
  parallel_for(pool, taps, [&](long t) {
    // Taps that are not searched are filled by those that mirror them.
    if (mirrors && t > searched) return;
    int32_t* index_of = index + t * coarse.capacity;
    int32_t* reverse_of = reverse + t * fine.capacity;
    std::fill(index_of, index_of + coarse.capacity, no_fine);
    std::fill(reverse_of, reverse_of + fine.capacity, no_coarse);
    if (mirrors && t == searched) {
      for (long i = 0; i < n; i++) index_of[fine.rows[i]] = reverse_of[fine.rows[i]] = fine.rows[i];
      return;
    }
    const int32_t* parts[16];
    long left = t, first = slots;
    for (long a = rank - 1; a >= 0; a--) {
      first -= axes[a].size;
      parts[a] = terms + (first + left % axes[a].size) * n;
      left /= axes[a].size;
    }
    const int32_t* at = ends;
    for (long i = 0; i < n; i++) {
      int32_t key = rest[i], none = 0;
      for (long a = 0; a < rank; a++) {
        key += parts[a][i];
        none |= parts[a][i];
      }
      if (none < 0) continue;
      while (*at < key) at++;
      if (*at != key) continue;
      const int32_t row = fine.rows[i], other = coarse.rows[at - ends];
      index_of[other] = row;
      reverse_of[row] = other;
    }
    if (!mirrors) return;
    std::copy(reverse_of, reverse_of + fine.capacity, index + (taps - 1 - t) * coarse.capacity);
    std::copy(index_of, index_of + coarse.capacity, reverse + (taps - 1 - t) * fine.capacity);
  });
}

}  // namespace jaxsparse
