// Buffers that outlive a call, one set a thread: fresh memory would cost a page fault
// every 4 KiB, and the FFI's own scratch allocator gives nothing on the CPU.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace jaxsparse {

// kInput is filled by the calling thread and read by its helpers; the others belong to
// the tile in hand.
enum Slot {
  kInput,
  kWeights,
  kOuts,
  kRows,
  kTile,
  kFlippedColumns,
  kFlippedWeights,
  kSlots
};

class Scratch {
 public:
  ~Scratch() {
    for (void* p : at_) std::free(p);
  }
  // At least `count` elements, aligned to a cache line, with room for two vectors to be
  // read or written past the end.
  template <class T>
  T* get(Slot slot, size_t count) {
    const size_t bytes = (count * sizeof(T) + kSlack + 63) / 64 * 64;
    if (bytes > size_[slot]) {
      std::free(at_[slot]);
      size_[slot] = 0;
      at_[slot] = std::aligned_alloc(64, bytes);
      if (at_[slot] == nullptr) throw std::bad_alloc();
      size_[slot] = bytes;
    }
    return static_cast<T*>(at_[slot]);
  }

 private:
  static constexpr size_t kSlack = 256;
  void* at_[kSlots] = {};
  size_t size_[kSlots] = {};
};

inline Scratch& scratch() {
  static thread_local Scratch s;
  return s;
}

}  // namespace jaxsparse
