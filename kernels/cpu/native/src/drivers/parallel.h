// Loops over tiles on a borrowed thread pool.
//
// Tiles are claimed from a counter. The caller claims them too, so a loop finishes even
// if the pool never runs a helper, and it waits only for tiles some thread has already
// claimed: loops inside loops, or many at once on one pool, cannot lock each other out.
// Which thread runs a tile never changes what the tile computes, so results have the
// same bits whatever the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <new>
#include <thread>

namespace jaxsparse {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int threads() const = 0;
  virtual void schedule(std::function<void()> task) = 0;
};

// The calling thread and no other.
class OneThread : public Pool {
 public:
  int threads() const override { return 1; }
  void schedule(std::function<void()> task) override { task(); }
};

namespace internal {

struct Loop {
  std::atomic<long> next{0}, done{0};
  std::atomic<bool> failed{false};  // out of memory: nothing may be thrown on a pool's thread
  long tiles = 0;
  const void* body = nullptr;  // the caller's; only touched while a claimed tile runs
  void (*call)(const void*, long) = nullptr;

  void work() {
    for (;;) {
      const long i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= tiles) return;
      try {
        call(body, i);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

}  // namespace internal

template <class F>
void parallel_for(Pool& pool, long tiles, const F& body) {
  const long helpers = std::min<long>(pool.threads(), tiles) - 1;
  if (helpers <= 0) {
    for (long i = 0; i < tiles; i++) body(i);
    return;
  }
  auto loop = std::make_shared<internal::Loop>();
  loop->tiles = tiles;
  loop->body = &body;
  loop->call = [](const void* f, long i) { (*static_cast<const F*>(f))(i); };
  // A helper that starts late finds no tile left and touches only the shared counter.
  for (long h = 0; h < helpers; h++) pool.schedule([loop] { loop->work(); });
  loop->work();
  for (int spins = 0; loop->done.load(std::memory_order_acquire) < tiles; spins++) {
    if (spins > 2000) std::this_thread::yield();
  }
  if (loop->failed) throw std::bad_alloc();
}

// Cuts [0, count) where the running cost passes a limit: begins[i] .. begins[i + 1] is
// one piece. `cost(i)` must be positive.
template <class Cost, class Begins>
void cut_by_cost(long count, long limit, const Cost& cost, Begins& begins) {
  begins.clear();
  begins.push_back(0);
  long sum = 0;
  for (long i = 0; i < count; i++) {
    sum += cost(i);
    if (sum >= limit && i + 1 < count) {
      begins.push_back(i + 1);
      sum = 0;
    }
  }
  if (count > 0) begins.push_back(count);
}

}  // namespace jaxsparse
