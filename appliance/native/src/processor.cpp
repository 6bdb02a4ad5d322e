// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID leaves 1 and 7 and
// sections 14.7 and 15.2 (detection of AVX2 and of AVX-512): the processor must have the
// instructions, and the operating system must save their registers.
#include "processor.h"

#include <cpuid.h>
#include <string.h>

namespace appliance {

// Of table.cpp, best first.
namespace wide {
extern const Kernels kKernels;
}
namespace narrow {
extern const Kernels kKernels;
}

namespace {

constexpr unsigned kSavesRegisters = 1u << 27;  // OSXSAVE, leaf 1, ECX
// XCR0: xmm, ymm; masks, upper halves of zmm0-15, zmm16-31.
constexpr unsigned kRegisters = 0x06, kWideRegisters = 0xE6;

struct Processor {
  unsigned one = 0, seven_b = 0, seven_c = 0;  // ECX of leaf 1, EBX and ECX of leaf 7
  unsigned saved = 0;                          // XCR0
};

Processor read() {
  Processor read;
  unsigned a, b, d;
  if (__get_cpuid(1, &a, &b, &read.one, &d) == 0) return read;
  __get_cpuid_count(7, 0, &a, &read.seven_b, &read.seven_c, &d);
  if ((read.one & kSavesRegisters) != 0) {
    __asm__("xgetbv" : "=a"(read.saved), "=d"(d) : "c"(0));
  }
  return read;
}

struct Feature {
  const char *name;
  unsigned Processor::*word;
  unsigned bits;
};

constexpr Feature kNarrow[] = {{"AVX2", &Processor::seven_b, 1u << 5},
                               {"FMA", &Processor::one, 1u << 12},
                               {"an operating system that saves AVX registers", &Processor::saved,
                                kRegisters}};
constexpr Feature kWide[] = {{"AVX-512 F", &Processor::seven_b, 1u << 16},
                             {"AVX-512 DQ", &Processor::seven_b, 1u << 17},
                             {"AVX-512 BW", &Processor::seven_b, 1u << 30},
                             {"AVX-512 VL", &Processor::seven_b, 1u << 31},
                             {"AVX-512 VNNI", &Processor::seven_c, 1u << 11},
                             {"an operating system that saves AVX-512 registers",
                              &Processor::saved, kWideRegisters}};

template <std::size_t Count>
const char *lacks(const Processor &processor, const Feature (&features)[Count]) {
  for (const Feature &feature : features) {
    if ((processor.*feature.word & feature.bits) != feature.bits) return feature.name;
  }
  return nullptr;
}

const Kernels *best() {
  const Processor processor = read();
  if (lacks(processor, kNarrow) != nullptr) return nullptr;
  return lacks(processor, kWide) == nullptr ? &wide::kKernels : &narrow::kKernels;
}

const Kernels *chosen = nullptr;

}  // namespace

const char *processor_lacks() { return lacks(read(), kNarrow); }

const Kernels *kernels() {
  const Kernels *found = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
  if (found != nullptr) return found;
  found = best();
  __atomic_store_n(&chosen, found, __ATOMIC_RELAXED);
  return found;
}

bool choose(const char *instructions) {
  const Kernels *const sets[] = {&wide::kKernels, &narrow::kKernels};
  for (const Kernels *set : sets) {
    if (strcmp(set->instructions, instructions) != 0) continue;
    if (best() != &wide::kKernels && set != best()) return false;
    __atomic_store_n(&chosen, set, __ATOMIC_RELAXED);
    return true;
  }
  return false;
}

}  // namespace appliance
