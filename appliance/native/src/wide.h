// Sixteen numbers at a time, by AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace appliance::APPLIANCE_VECTORS {

constexpr const char *kInstructions = "AVX-512 VNNI";
constexpr std::size_t kWidth = 16;

using Floats = __m512;
using Wholes = __m512i;
using Mask = __mmask16;  // a bit for each number
using Byte = std::int8_t;  // a row's rounded number, kept as its products are taken
using Column = __m512i;    // kAtOnce unsigned numbers of each of kWidth packed rows
using Spread = __m512i;    // as many signed ones of one row, for all of them
constexpr int kAtOnce = 4;

constexpr int kTogether = 2;        // vectors of columns that share what is read of a row
constexpr int kValuesTogether = 4;  // the same of attention's values
constexpr bool kUnpacksOnce = true; // integers of 4 bits are worth being kept as bytes for many rows

// Rows of a tile that, with so many vectors of columns, fill the registers.
constexpr int most_rows(int) { return 12; }

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Wholes nothing() { return _mm512_setzero_si512(); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Wholes all(std::int32_t x) { return _mm512_set1_epi32(x); }

inline Floats load(const float *at) { return _mm512_loadu_ps(at); }
inline Floats load(Mask mask, const float *at) { return _mm512_maskz_loadu_ps(mask, at); }
inline void store(float *at, Floats x) { _mm512_storeu_ps(at, x); }
inline void store(float *at, Mask mask, Floats x) { _mm512_mask_storeu_ps(at, mask, x); }

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// c - a * b
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
// The larger one where `mask` is set, else a.
inline Floats larger(Mask mask, Floats a, Floats b) { return _mm512_mask_max_ps(a, mask, a, b); }
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Floats only(Mask mask, Floats x) { return _mm512_maskz_mov_ps(mask, x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline float total(Floats x) { return _mm512_reduce_add_ps(x); }
inline Floats nearest(Floats x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// y * 2^whole
inline Floats raised(Floats y, Floats whole) { return _mm512_scalef_ps(y, whole); }

inline Wholes rounded(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats real(Wholes x) { return _mm512_cvtepi32_ps(x); }
inline Wholes plus(Wholes a, Wholes b) { return _mm512_add_epi32(a, b); }
inline Wholes minus(Wholes a, Wholes b) { return _mm512_sub_epi32(a, b); }
template <int Bits>
inline Wholes shifted_left(Wholes x) { return _mm512_slli_epi32(x, Bits); }
template <int Bits>
inline Wholes shifted_right(Wholes x) { return _mm512_srai_epi32(x, Bits); }
inline std::int32_t total(Wholes x) { return _mm512_reduce_add_epi32(x); }

// kWidth numbers, cut off at -128 and 127.
inline void store_bytes(std::int8_t *at, Wholes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(at), _mm512_cvtsepi32_epi8(x));
}
// The same as a row's; `mask` has whole groups of four.
inline void store_row(Byte *at, Mask mask, Wholes x) {
  _mm_mask_storeu_epi8(at, mask, _mm512_cvtsepi32_epi8(x));
}

inline __m128i sixteen(const void *at) {
  return _mm_loadu_si128(static_cast<const __m128i *>(at));
}
inline Wholes wholes_of_row(const Byte *at) { return _mm512_cvtepi8_epi32(sixteen(at)); }
inline Floats reals(const std::int8_t *at) { return real(_mm512_cvtepi8_epi32(sixteen(at))); }
inline Floats reals(const std::uint8_t *at) { return real(_mm512_cvtepu8_epi32(sixteen(at))); }
inline Floats reals(const float *at) { return load(at); }

inline __m512i lower(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i upper(__m512i bytes) { return lower(_mm512_srli_epi16(bytes, 4)); }

// Of the kStep bytes at `at`, which stand for depth(Bits) numbers of each row, those from
// Phase * kAtOnce on.
template <int Bits, int Phase>
inline Column column(const std::uint8_t *at) {
  const __m512i bytes = _mm512_loadu_si512(at);
  if constexpr (Bits == 8) return bytes;
  return Phase == 0 ? lower(bytes) : upper(bytes);
}
// Integers of 4 bits as bytes: kWidth rows' first four of eight, and their others.
inline void unpack(const std::uint8_t *at, std::uint8_t *first, std::uint8_t *others) {
  const __m512i bytes = _mm512_loadu_si512(at);
  _mm512_storeu_si512(first, lower(bytes));
  _mm512_storeu_si512(others, upper(bytes));
}

inline Spread spread(const Byte *row) {
  std::int32_t four;
  __builtin_memcpy(&four, row, sizeof four);
  return _mm512_set1_epi32(four);
}
// sums + the products of each row's numbers with the spread ones. Exact.
inline Wholes multiplied(Wholes sums, Column column, Spread four) {
  return _mm512_dpbusd_epi32(sums, column, four);
}

}  // namespace appliance::APPLIANCE_VECTORS
