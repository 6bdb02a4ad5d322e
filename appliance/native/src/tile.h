// The inner loop of all integer products: a few rows of signed bytes by 16-row blocks of packed ones.
#pragma once

#include "vectors.h"

namespace appliance {

// Sums of products of R rows with C blocks, each as [R][C] vectors of 16 integers.
//   rows   int8, `stride` bytes from one to the next
//   packed uint8, `block` bytes from one block to the next
// The packed bytes have 128 added: whoever reads the sums subtracts 128 * the row's own sum.
template <int R, int C>
inline void products(const std::int8_t *rows, std::size_t stride, const std::uint8_t *packed,
                     std::size_t block, std::size_t inner, __m512i (&sums)[R][C]) {
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_setzero_si512();
  }
  for (std::size_t k = 0; k < inner; k += kDepth) {
    __m512i columns[C];
    for (int c = 0; c < C; ++c) {
      columns[c] = _mm512_loadu_si512(packed + c * block + k * kLanes);
    }
    for (int r = 0; r < R; ++r) {
      std::int32_t four;
      __builtin_memcpy(&four, rows + r * stride + k, sizeof four);
      const __m512i spread = _mm512_set1_epi32(four);
      for (int c = 0; c < C; ++c) {
        sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], columns[c], spread);
      }
    }
  }
}

// One row and one block, with sums apart so that none waits for the one before.
inline __m512i product(const std::int8_t *row, const std::uint8_t *packed, std::size_t inner) {
  constexpr int kApart = 4;
  __m512i sums[kApart];
  for (int i = 0; i < kApart; ++i) sums[i] = _mm512_setzero_si512();
  std::size_t k = 0;
  for (; k + kApart * kDepth <= inner; k += kApart * kDepth) {
    for (int i = 0; i < kApart; ++i) {
      const std::size_t at = k + i * kDepth;
      std::int32_t four;
      __builtin_memcpy(&four, row + at, sizeof four);
      const __m512i column = _mm512_loadu_si512(packed + at * kLanes);
      sums[i] = _mm512_dpbusd_epi32(sums[i], column, _mm512_set1_epi32(four));
    }
    _mm_prefetch(reinterpret_cast<const char *>(packed + k * kLanes + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char *>(packed + k * kLanes + 4160), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char *>(packed + k * kLanes + 4224), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char *>(packed + k * kLanes + 4288), _MM_HINT_T0);
  }
  for (; k < inner; k += kDepth) {
    std::int32_t four;
    __builtin_memcpy(&four, row + k, sizeof four);
    const __m512i column = _mm512_loadu_si512(packed + k * kLanes);
    sums[0] = _mm512_dpbusd_epi32(sums[0], column, _mm512_set1_epi32(four));
  }
  return _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]),
                          _mm512_add_epi32(sums[2], sums[3]));
}

}  // namespace appliance
