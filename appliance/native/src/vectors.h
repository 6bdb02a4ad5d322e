// Sixteen floats at a time: the few functions that the kernels need besides arithmetic.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace appliance {

// 2^x, relative error below 2e-7; 0 below 2^-150. A Taylor polynomial around the nearest integer.
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-150.0f));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5403530e-4f);
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.3333558e-3f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.6181291e-3f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.5504109e-2f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.4022651e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9314718e-1f));
  y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, whole);
}

constexpr float kLog2E = 1.44269504f;

// x / (1 + e^-(2 * half))
inline __m512 times_sigmoid(__m512 x, __m512 half) {
  const __m512 power = exp2(_mm512_mul_ps(half, _mm512_set1_ps(-2.0f * kLog2E)));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

inline __m512 activate(Activation activation, __m512 x) {
  if (activation == Activation::kSilu) {
    return times_sigmoid(x, _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
  }
  // gelu by tanh(u) is x * sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3)
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
  return times_sigmoid(x, _mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(0.79788456f)));
}

// cap * tanh(x / cap)
inline __m512 softcap(__m512 x, float cap) {
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(1.0f / cap));
  const __m512 twice = times_sigmoid(_mm512_set1_ps(2.0f * cap), half);
  return _mm512_sub_ps(twice, _mm512_set1_ps(cap));
}

// The first `count` of sixteen.
inline __mmask16 first(std::size_t count) {
  return count >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << count) - 1u);
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

}  // namespace appliance
