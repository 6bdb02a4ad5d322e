// The inner loop of all integer products: a few rows by vectors of packed rows of a matrix.
#pragma once

#include "vectors.h"

namespace appliance::APPLIANCE_VECTORS {

// Sums stay in registers only where a loop stands in its caller.
#define APPLIANCE_INLINE inline __attribute__((always_inline))

// Numbers of a row that one step of packed bytes has.
constexpr std::size_t depth(int bits) { return 32 / static_cast<std::size_t>(bits); }

template <int N>
struct Number {
  static constexpr int value = N;
};

// function(Number<0>{}), .. for each of the parts that a step's numbers are multiplied in.
template <int Bits, int Phase = 0, typename Function>
APPLIANCE_INLINE void each_phase(const Function &function) {
  if constexpr (Phase * kAtOnce < depth(Bits)) {
    function(Number<Phase>{});
    each_phase<Bits, Phase + 1>(function);
  }
}

// Sums of products of R rows with C vectors of packed ones, of 4 or 8 bits.
//   rows   `stride` from one to the next
//   packed each a step's first byte of its rows; kStep bytes from one step to the next
// Packed bytes that have 128 added: whoever reads the sums subtracts 128 * the row's own sum.
template <int Bits, int R, int C>
APPLIANCE_INLINE void products(const Byte *rows, std::size_t stride,
                     const std::uint8_t *const (&packed)[C], std::size_t inner,
                     Wholes (&sums)[R][C]) {
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = nothing();
  }
  for (std::size_t k = 0; k < inner; k += depth(Bits)) {
    each_phase<Bits>([&](auto phase) __attribute__((always_inline)) {
      constexpr int kPhase = decltype(phase)::value;
      Column columns[C];
      for (int c = 0; c < C; ++c) {
        columns[c] = column<Bits, kPhase>(packed[c] + k / depth(Bits) * kStep);
      }
      for (int r = 0; r < R; ++r) {
        const Spread own = spread(rows + r * stride + k + kPhase * kAtOnce);
        for (int c = 0; c < C; ++c) sums[r][c] = multiplied(sums[r][c], columns[c], own);
      }
    });
  }
}

// One row and one vector, with sums apart so that none waits for the one before. `packed` as above;
// rows of 4 bits have a multiple of 16 numbers.
template <int Bits>
APPLIANCE_INLINE Wholes product(const Byte *row, const std::uint8_t *packed, std::size_t inner) {
  constexpr std::size_t kApart = 4, kNumbers = kApart * kDepth;
  Wholes sums[kApart];
  for (std::size_t i = 0; i < kApart; ++i) sums[i] = nothing();
  const auto add = [&](std::size_t k, std::size_t to) __attribute__((always_inline)) {
    const std::uint8_t *step = packed + k / depth(Bits) * kStep;
    each_phase<Bits>([&](auto phase) __attribute__((always_inline)) {
      constexpr int kPhase = decltype(phase)::value;
      Wholes &sum = sums[(to + kPhase) % kApart];
      sum = multiplied(sum, column<Bits, kPhase>(step), spread(row + k + kPhase * kAtOnce));
    });
  };
  std::size_t k = 0;
  for (; k + kNumbers <= inner; k += kNumbers) {
    for (std::size_t i = 0; i < kNumbers; i += depth(Bits)) {
      add(k + i, i / kAtOnce);
      const std::uint8_t *next = packed + (k + i) / depth(Bits) * kStep;
      _mm_prefetch(reinterpret_cast<const char *>(next + 4096), _MM_HINT_T0);
    }
  }
  for (; k < inner; k += depth(Bits)) add(k, 0);
  return plus(plus(sums[0], sums[1]), plus(sums[2], sums[3]));
}

}  // namespace appliance::APPLIANCE_VECTORS
