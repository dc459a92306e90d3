// What windows see of an image, as the rows of a matrix that is never in memory. Rows of the image
// are turned, so that one channel's pixels lie side by side; then what one tap of the windows at
// neighbouring places sees does, too, and panels are copies of such runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "drivers/parallel.h"
#include "drivers/scratch.h"
#include "kernels.h"

namespace jaxsparse {

// Of the two axes of an image, its rows first.
struct Window {
  long size[2], strides[2], dilation[2], low[2];  // low: padding before the first row, column
};

struct Image {
  const void* at;  // (batch, height, width, channels)
  int dtype;
  long batch, height, width, channels;
  Window window;
  long places[2];  // of windows, along each axis

  long rows() const { return batch * places[0]; }  // of places
  long columns() const { return window.size[0] * window.size[1] * channels; }
};

// Some rows of places of an image, or some of those places.
class Patches {
 public:
  // Rows of places [r0, r1) of all images. Turns what they see, in this thread's scratch.
  Patches(const Image& image, long r0, long r1)
      : rows((r1 - r0) * image.places[1]),
        columns(image.columns()),
        image_(image),
        row_(r0),
        phase_(phase_floats(image)),
        channel_(phase_ * image.window.strides[1]),
        low_(first_seen(r0)) {
    const size_t line = line_floats(image);
    const long count = first_seen(r1 - 1) + reach() - low_;
    // A vector's first lane may lie before the first line.
    float* to = scratch().get<float>(kTurned, kernels().lanes + count * line) + kernels().lanes;
    std::memset(to, 0, count * line * sizeof(float));
    turned_ = to;
    for (long r = 0; r < count; r++) turn(low_ + r, to + r * line);
  }

  Patches part(long begin, long count) const {
    Patches found = *this;
    found.first_ += begin;
    found.rows = count;
    return found;
  }

  // Bytes that a row of places adds.
  static long row_bytes(const Image& image) {
    return line_floats(image) * image.window.strides[0] * (long)sizeof(float);
  }

  // Columns [k0, k1) of some places to panel[k1 - k0][width].
  void pack(long r0, int count, long k0, long k1, int width, float* panel) const {
    const Kernels& k = kernels();
    const long channels = image_.channels;
    Piece pieces[kMostPixels];
    for (long at = k0, depth; at < k1; at += depth, panel += depth * width) {
      const long tap = at / channels, c = at % channels;
      depth = std::min(k1 - at, channels - c);
      const int found = pieces_of(first_ + r0, count, tap, pieces);
      for (int i = 0, next, place = 0; i < found; i = next) {
        uint32_t seen = 0;
        for (next = i; next < found && !(seen & pieces[next].lanes); next++) {
          seen |= pieces[next].lanes;
          pieces[next].from += c * channel_;
        }
        k.copy_pieces(pieces + i, next - i, std::min(k.lanes, count - place), channel_, depth, width,
                      panel + place);
        place += k.lanes;
      }
    }
  }

  long rows, columns;

 private:
  // Lines of an image are numbered with the padding, one image's after another's.
  long lines() const { return std::max((image_.places[0] - 1) * image_.window.strides[0] + reach(), 1L); }
  long reach() const { return (image_.window.size[0] - 1) * image_.window.dilation[0] + 1; }
  long first_seen(long row) const {
    return row / image_.places[0] * lines() +
           row % image_.places[0] * image_.window.strides[0];
  }

  // A phase holds every so many pixels of a line as windows are apart, padding included.
  static long phase_floats(const Image& image) {
    const Window& w = image.window;
    const long stride = w.strides[1], lanes = kernels().lanes;
    const long held = (image.width + stride - 1) / stride;
    const long written = (w.low[1] + stride - 1) / stride + (held + lanes - 1) / lanes * lanes;
    return std::max(written, (w.size[1] - 1) * w.dilation[1] / stride + image.places[1]);
  }
  static long line_floats(const Image& image) {
    return phase_floats(image) * image.window.strides[1] * image.channels;
  }

  bool sees(long phase) const {
    const Window& w = image_.window;
    for (long x = 0; x < std::min(w.size[1], w.strides[1]); x++)
      if (x * w.dilation[1] % w.strides[1] == phase) return true;
    return false;
  }

  void turn(long line, float* to) const {
    const Window& w = image_.window;
    const long image = line / lines(), y = line % lines() - w.low[0];
    if (y < 0 || y >= image_.height) return;
    const long stride = w.strides[1], channels = image_.channels;
    for (long phase = 0; phase < stride; phase++) {
      // The first of the phase that is no padding.
      const long begin = std::max(0L, (w.low[1] - phase + stride - 1) / stride);
      const long x = begin * stride + phase - w.low[1];
      if (x >= image_.width || !sees(phase)) continue;
      const long at = ((image * image_.height + y) * image_.width + x) * channels;
      kernels().turn(image_.dtype, from_value(image_.at, image_.dtype, at), stride * channels,
                     (int)((image_.width - x + stride - 1) / stride), channels,
                     to + phase * phase_ + begin, channel_);
    }
  }

  // What a tap sees of channel 0, in the order of the lanes of one vector after another.
  int pieces_of(long place, int count, long tap, Piece* pieces) const {
    const Window& w = image_.window;
    const int lanes = kernels().lanes;
    const long column = tap % w.size[1] * w.dilation[1];
    const long within = column % w.strides[1] * phase_ + column / w.strides[1];
    const size_t line = line_floats(image_);
    long row = place / image_.places[1], x = place % image_.places[1];
    int found = 0;
    for (int at = 0; at < count; row++, x = 0) {
      const int end = (int)std::min<long>(count, at + image_.places[1] - x);
      const long seen = first_seen(row_ + row) + tap / w.size[1] * w.dilation[0] - low_;
      const float* from = turned_ + seen * line + within + x;
      while (at < end) {
        const int lane = at % lanes, taken = std::min(end - at, lanes - lane);
        pieces[found++] = {from - lane, ((1u << taken) - 1) << lane};
        at += taken, from += taken;
      }
    }
    return found;
  }

  const Image image_;
  const long row_, phase_, channel_, low_;
  long first_ = 0;
  const float* turned_;
};

inline void pack(const Patches& x, long r0, int rows, long k0, long k1, int width, float* panel) {
  x.pack(r0, rows, k0, k1, width, panel);
}

// product(pool, patches, y) of some rows of places at a time, which turned fit a second cache and
// which threads share; of all, where they are few, and then threads share the product.
template <class Product>
void by_rows_of_places(Pool& pool, const Image& image, long outputs, float* y,
                       const Product& product) {
  constexpr long kTurnedBytes = 256 * 1024, kPlaces = 256;
  const long rows = image.rows(), across = image.places[1], shares = 4L * pool.threads();
  if (rows * across < shares * kPlaces) return product(pool, Patches(image, 0, rows), y);
  const long fit = kTurnedBytes / std::max(1L, Patches::row_bytes(image));
  const long least = (kPlaces + across - 1) / across;
  const long count = std::max(least, std::min(fit, rows / shares));
  parallel_for(pool, (rows + count - 1) / count, [&](long i) {
    OneThread one;
    const long r0 = i * count, r1 = std::min(rows, r0 + count);
    product(one, Patches(image, r0, r1), y + r0 * across * outputs);
  });
}

}  // namespace jaxsparse
