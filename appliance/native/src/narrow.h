// Eight numbers at a time, by AVX2 with FMA.
//
// Its one product of unsigned with signed bytes adds two of them in 16 bits, where they do not fit.
// So bytes are widened: even and odd ones of a column apart, those of a row when it is rounded.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace appliance::APPLIANCE_VECTORS {

constexpr const char *kInstructions = "AVX2";
constexpr std::size_t kWidth = 8;

using Floats = __m256;
using Wholes = __m256i;
using Mask = std::uint8_t;  // a bit for each number
// A row's rounded number, kept as its products are taken: of each four the second and third are
// exchanged, so that even ones stand together.
using Byte = std::int16_t;
using Column = __m256i;  // kAtOnce unsigned numbers of each of kWidth packed rows, in 16 bits
using Spread = __m256i;  // as many signed ones of one row, for all of them
constexpr int kAtOnce = 2;

constexpr int kTogether = 2;         // vectors of columns that share what is read of a row
constexpr int kValuesTogether = 2;   // the same of attention's values
constexpr bool kUnpacksOnce = false; // integers of 4 bits are widened as fast as bytes

// Rows of a tile that, with so many vectors of columns, fill the registers.
constexpr int most_rows(int vectors) { return vectors == 1 ? 8 : 5; }

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Wholes nothing() { return _mm256_setzero_si256(); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Wholes all(std::int32_t x) { return _mm256_set1_epi32(x); }

// All bits of each number whose bit is set.
inline __m256i lanes(Mask mask) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
}

inline Floats load(const float *at) { return _mm256_loadu_ps(at); }
inline Floats load(Mask mask, const float *at) { return _mm256_maskload_ps(at, lanes(mask)); }
inline void store(float *at, Floats x) { _mm256_storeu_ps(at, x); }
inline void store(float *at, Mask mask, Floats x) { _mm256_maskstore_ps(at, lanes(mask), x); }

inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
// c - a * b
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
// The larger one where `mask` is set, else a.
inline Floats larger(Mask mask, Floats a, Floats b) {
  return _mm256_blendv_ps(a, larger(a, b), _mm256_castsi256_ps(lanes(mask)));
}
inline Floats magnitude(Floats x) { return _mm256_andnot_ps(all(-0.0f), x); }
inline Floats only(Mask mask, Floats x) {
  return _mm256_and_ps(_mm256_castsi256_ps(lanes(mask)), x);
}
inline float largest(Floats x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float total(Floats x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline Floats nearest(Floats x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Wholes rounded(Floats x) { return _mm256_cvtps_epi32(x); }
inline Floats real(Wholes x) { return _mm256_cvtepi32_ps(x); }
inline Wholes plus(Wholes a, Wholes b) { return _mm256_add_epi32(a, b); }
inline Wholes minus(Wholes a, Wholes b) { return _mm256_sub_epi32(a, b); }
template <int Bits>
inline Wholes shifted_left(Wholes x) { return _mm256_slli_epi32(x, Bits); }
template <int Bits>
inline Wholes shifted_right(Wholes x) { return _mm256_srai_epi32(x, Bits); }
inline std::int32_t total(Wholes x) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

// 2^whole, for whole in -126..127.
inline Floats power(Wholes whole) {
  return _mm256_castsi256_ps(shifted_left<23>(plus(whole, all(127))));
}
// y * 2^whole, in two halves, for what is too large or small for one.
inline Floats raised(Floats y, Floats whole) {
  const Wholes all_of_it = rounded(_mm256_min_ps(whole, all(254.0f)));
  const Wholes half = shifted_right<1>(all_of_it);
  return y * power(half) * power(minus(all_of_it, half));
}

// kWidth numbers in 16 bits, cut off at -128 and 127.
inline __m128i cut(Wholes x) {
  const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  return _mm_min_epi16(_mm_max_epi16(narrow, _mm_set1_epi16(-128)), _mm_set1_epi16(127));
}
// The same as bytes.
inline void store_bytes(std::int8_t *at, Wholes x) {
  const __m128i bytes = _mm_packs_epi16(cut(x), _mm_setzero_si128());
  _mm_storel_epi64(reinterpret_cast<__m128i *>(at), bytes);
}
// The same as a row's; `mask` has whole groups of four.
inline void store_row(Byte *at, Mask mask, Wholes x) {
  const __m128i order =
      _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m128i row = _mm_shuffle_epi8(cut(x), order);
  if (mask == 0xFF) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(at), row);
  } else {
    _mm_storel_epi64(reinterpret_cast<__m128i *>(at), row);
  }
}

inline __m128i eight(const void *at) {
  return _mm_loadl_epi64(static_cast<const __m128i *>(at));
}
// In the order of the row.
inline Wholes wholes_of_row(const Byte *at) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at)));
}
inline Floats reals(const std::int8_t *at) { return real(_mm256_cvtepi8_epi32(eight(at))); }
inline Floats reals(const std::uint8_t *at) { return real(_mm256_cvtepu8_epi32(eight(at))); }
inline Floats reals(const float *at) { return load(at); }

// Of the kStep bytes at `at`, which stand for depth(Bits) numbers of each row, two of every four: the
// even ones, the odd ones, and of 4 bits the same of the upper halves.
template <int Bits, int Phase>
inline Column column(const std::uint8_t *at) {
  constexpr int kShift = Bits == 8 ? 8 * Phase : Phase % 2 * 8 + Phase / 2 * 4;
  __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
  if constexpr (kShift != 0) bytes = _mm256_srli_epi16(bytes, kShift);
  if constexpr (kShift + Bits == 16) return bytes;
  return _mm256_and_si256(bytes, _mm256_set1_epi16((1 << Bits) - 1));
}
// Integers of 4 bits as bytes: kWidth rows' first four of eight, and their others.
inline void unpack(const std::uint8_t *at, std::uint8_t *first, std::uint8_t *others) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(at));
  const __m256i half = _mm256_set1_epi8(15);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(first), _mm256_and_si256(bytes, half));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(others),
                      _mm256_and_si256(_mm256_srli_epi16(bytes, 4), half));
}

inline Spread spread(const Byte *row) {
  std::int32_t two;
  __builtin_memcpy(&two, row, sizeof two);
  return _mm256_set1_epi32(two);
}
// sums + the products of each row's numbers with the spread ones. Exact.
inline Wholes multiplied(Wholes sums, Column column, Spread two) {
  return plus(sums, _mm256_madd_epi16(column, two));
}

}  // namespace appliance::APPLIANCE_VECTORS
