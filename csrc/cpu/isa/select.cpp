#include "cpu/isa/select.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pypeft {

static bool has(Isa isa) {
#if defined(__x86_64__)
  unsigned a, b, c, d;  // clang 14's __builtin_cpu_supports does not know f16c
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == Isa::baseline;
}

const char* isa_name(Isa isa) {
  constexpr const char* NAMES[] = {"avx512bf16", "avx512", "avx2", "baseline"};
  return NAMES[static_cast<int>(isa)];
}

static Isa choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const char* asked = std::getenv("PYPEFT_FAST_CPU");
  std::string have;
  for (Isa isa : {Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::baseline}) {
    if (!has(isa)) continue;
    if (asked == nullptr || *asked == '\0' || asked == std::string(isa_name(isa))) return isa;
    have += have.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::runtime_error("PYPEFT_FAST_CPU=" + std::string(asked) + " is not an instruction set of this CPU; it has " +
                           have + ". Set one of these, or unset the variable for the best.");
}

Isa selected_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace pypeft
