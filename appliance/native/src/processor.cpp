// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID leaves 1 and 7 and
// section 15.2 (detection of AVX-512): the processor must have the instructions, and the operating
// system must save their registers.
#include "processor.h"

#include <cpuid.h>

namespace appliance {
namespace {

constexpr unsigned kSavesRegisters = 1u << 27;  // OSXSAVE, leaf 1, ECX
constexpr unsigned kFma = 1u << 12;             // leaf 1, ECX
// XCR0: xmm, ymm, masks, upper halves of zmm0-15, zmm16-31.
constexpr unsigned kWideRegisters = 0xE6;

struct Feature {
  const char *name;
  unsigned bit;
};

constexpr Feature kOfEbx[] = {{"AVX2", 5}, {"AVX-512 F", 16}, {"AVX-512 DQ", 17},
                              {"AVX-512 BW", 30}, {"AVX-512 VL", 31}};
constexpr Feature kVnni = {"AVX-512 VNNI", 11};  // leaf 7, ECX

unsigned enabled_registers() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

}  // namespace

const char *processor_lacks() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return "CPUID";
  if ((c & kFma) == 0) return "FMA";
  const bool saves = (c & kSavesRegisters) != 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return kOfEbx[0].name;
  for (const Feature &feature : kOfEbx) {
    if ((b >> feature.bit & 1) == 0) return feature.name;
  }
  if ((c >> kVnni.bit & 1) == 0) return kVnni.name;
  if (!saves || (enabled_registers() & kWideRegisters) != kWideRegisters) {
    return "an operating system that saves AVX-512 registers";
  }
  return nullptr;
}

}  // namespace appliance
