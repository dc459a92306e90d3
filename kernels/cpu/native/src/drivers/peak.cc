// Work that only the machine limits, for Python to time.
#include "kernels.h"

namespace {

volatile float kept;  // so that none of it can be left out

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Multiply-adds in the instruction set in use; returns how many operations they were.
EXPORT double jaxsparse_fma(long rounds) {
  const jaxsparse::Kernels& k = jaxsparse::kernels();
  kept = k.fma_rounds(rounds, 0.999f, 0.001f);
  return 2. * rounds * jaxsparse::kFmaChains * k.lanes;
}

// Reads `count` floats once; returns how many bytes they were.
EXPORT double jaxsparse_read(const float* from, long count) {
  kept = jaxsparse::kernels().read_all(from, count);
  return 4. * count;
}
