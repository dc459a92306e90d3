// Buffers that outlive a call, one set a thread: fresh memory would cost a page fault
// every 4 KiB, and the FFI's own scratch allocator gives nothing on the CPU.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#ifdef JAXSPARSE_SANITIZE
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

namespace jaxsparse {

// kInput, kTurned and what is cut for a whole call are filled by the calling thread and read by
// its helpers; the others belong to the tile in hand.
enum Slot {
  kInput,
  kWeights,
  kOuts,
  kRows,
  kTile,
  kFlippedColumns,
  kFlippedWeights,
  kTurned,
  kCutTiles,
  kCutRows,
  kCutValues,
  kSlots
};

class Scratch {
 public:
  ~Scratch() {
    for (void* p : at_) std::free(p);
  }
  // `count` elements, aligned to a cache line, and `past` bytes behind them for kernels that
  // touch whole vectors. What lies behind those belongs to nobody: an AddressSanitizer that
  // watches is told so, although an earlier call may have left a larger buffer.
  template <class T>
  T* get(Slot slot, size_t count, size_t past = 0) {
    const size_t wanted = count * sizeof(T) + past, bytes = (wanted + 64) / 64 * 64;
    ASAN_UNPOISON_MEMORY_REGION(at_[slot], size_[slot]);
    if (bytes > size_[slot]) {
      std::free(at_[slot]);
      size_[slot] = 0;
      at_[slot] = std::aligned_alloc(64, bytes);
      if (at_[slot] == nullptr) throw std::bad_alloc();
      size_[slot] = bytes;
    }
    ASAN_POISON_MEMORY_REGION(static_cast<char*>(at_[slot]) + wanted, size_[slot] - wanted);
    return static_cast<T*>(at_[slot]);
  }

 private:
  void* at_[kSlots] = {};
  size_t size_[kSlots] = {};
};

inline Scratch& scratch() {
  static thread_local Scratch s;
  return s;
}

}  // namespace jaxsparse
