// Chooses the instruction set, once, at load.
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include "int8.h"
#include "kernels.h"

namespace jaxsparse {
namespace {

// What one name stands for: some instruction sets add to another what only integers need.
struct Set {
  const char* name;
  const Kernels* table;
  const Int8Kernels* int8;
  bool (*runs_here)();
};

struct Choice {
  const Kernels* table;
  const Int8Kernels* int8;
  const char* error;
};

#if defined(__x86_64__) || defined(__i386__)
bool avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd");
}
bool avx512vnni() { return avx512() && __builtin_cpu_supports("avx512vnni"); }
// Not every compiler that has the instruction knows its name.
bool avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

Choice choose() {
  const Set sets[] = {
#if defined(__x86_64__) || defined(__i386__)
#ifdef JAXSPARSE_AVX512VNNI
      {"avx512vnni", &kAvx512, &kInt8Avx512Vnni, avx512vnni},
#endif
      {"avx512", &kAvx512, &kInt8Avx512, avx512},
#ifdef JAXSPARSE_AVXVNNI
      {"avxvnni", &kAvx2, &kInt8AvxVnni, avxvnni},
#endif
      {"avx2", &kAvx2, &kInt8Avx2, avx2},
#endif
      {"portable", &kPortable, &kInt8Portable, [] { return true; }}};
  const char* asked = std::getenv("JAXSPARSE_CPU_ISA");
  for (const Set& set : sets) {
    if (asked && *asked && std::strcmp(asked, set.name) != 0) continue;
    if (set.runs_here()) return {set.table, set.int8, nullptr};
  }
  return {&kPortable, &kInt8Portable,
          "JAXSPARSE_CPU_ISA names an instruction set this processor lacks or that does not "
          "exist; known: avx512vnni, avx512, avxvnni, avx2, portable"};
}

const Choice choice = choose();

}  // namespace

const Kernels& kernels() { return *choice.table; }
const Int8Kernels& int8_kernels() { return *choice.int8; }
const char* isa_error() { return choice.error; }

}  // namespace jaxsparse
