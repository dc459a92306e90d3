// Chooses the instruction set, once, at load.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace jaxsparse {
namespace {

struct Choice {
  const Kernels* table;
  const char* error;
};

bool runs_here(const Kernels& table) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  if (&table == &kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd");
  if (&table == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &table == &kPortable;
}

Choice choose() {
  const Kernels* const tables[] = {
#if defined(__x86_64__) || defined(__i386__)
      &kAvx512, &kAvx2,
#endif
      &kPortable};
  const char* asked = std::getenv("JAXSPARSE_CPU_ISA");
  for (const Kernels* table : tables) {
    if (asked && *asked && std::strcmp(asked, table->name) != 0) continue;
    if (runs_here(*table)) return {table, nullptr};
  }
  return {&kPortable, "JAXSPARSE_CPU_ISA names an instruction set this processor lacks or that "
                      "does not exist; known: avx512, avx2, portable"};
}

const Choice choice = choose();

}  // namespace

const Kernels& kernels() { return *choice.table; }
const char* isa_error() { return choice.error; }

}  // namespace jaxsparse
