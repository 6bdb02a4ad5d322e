// What the kernels need besides arithmetic, whatever the width of a vector.
#pragma once

#include "compiled.h"

namespace appliance::APPLIANCE_VECTORS {

// Vectors of a block's rows that lie side by side.
constexpr std::size_t kParts = kLanes / kWidth;
// Bytes of a block that are multiplied at once.
constexpr std::size_t kStep = kLanes * kDepth;

// 2^x, relative error below 2e-7; 0 below 2^-150. A Taylor polynomial around the nearest integer.
inline Floats exp2(Floats x) {
  x = larger(x, all(-150.0f));
  const Floats whole = nearest(x), rest = x - whole;
  Floats y = all(1.5403530e-4f);
  y = fma(y, rest, all(1.3333558e-3f));
  y = fma(y, rest, all(9.6181291e-3f));
  y = fma(y, rest, all(5.5504109e-2f));
  y = fma(y, rest, all(2.4022651e-1f));
  y = fma(y, rest, all(6.9314718e-1f));
  y = fma(y, rest, all(1.0f));
  return raised(y, whole);
}

constexpr float kLog2E = 1.44269504f;

// x / (1 + e^-(2 * half))
inline Floats times_sigmoid(Floats x, Floats half) {
  return x / (all(1.0f) + exp2(half * all(-2.0f * kLog2E)));
}

inline Floats activate(Activation activation, Floats x) {
  if (activation == Activation::kSilu) return times_sigmoid(x, x * all(0.5f));
  // gelu by tanh(u) is x * sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3)
  const Floats inner = fma(x * x, all(0.044715f), all(1.0f));
  return times_sigmoid(x, x * inner * all(0.79788456f));
}

// cap * tanh(x / cap)
inline Floats softcap(Floats x, float cap) {
  return times_sigmoid(all(2.0f * cap), x * all(1.0f / cap)) - all(cap);
}

// The first `count` of a vector.
inline Mask first(std::size_t count) {
  const unsigned every = (1u << kWidth) - 1u;
  return static_cast<Mask>(count >= kWidth ? every : (1u << count) - 1u);
}

// A multiple of 64 bytes.
inline std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

inline std::size_t blocks(std::size_t count, std::size_t size) { return (count + size - 1) / size; }

// Hands out pieces of one run of scratch memory, each on a cache line of its own.
class Scratch {
 public:
  explicit Scratch(void *memory)
      : next_(reinterpret_cast<char *>(aligned(reinterpret_cast<std::size_t>(memory)))) {}

  template <typename T>
  T *take(std::size_t count) {
    char *piece = next_;
    next_ += aligned(count * sizeof(T));
    return reinterpret_cast<T *>(piece);
  }

 private:
  char *next_;
};

}  // namespace appliance::APPLIANCE_VECTORS
