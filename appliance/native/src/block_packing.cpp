// Where each weight of a matrix in blocks lies: packing, and reading single rows.
#include "kernels.h"

namespace appliance {
namespace {

constexpr std::size_t kVector = kLanes * kDepth;  // bytes

// Weights of a row in one vector of sixteen rows.
constexpr std::size_t depth(int bits) { return 32 / static_cast<std::size_t>(bits); }

// The integer at `index` of `packed`, the lower half of a byte first.
inline std::uint8_t integer(const std::uint8_t *packed, std::size_t index, int bits) {
  if (bits == 8) return packed[index];
  return static_cast<std::uint8_t>(packed[index / 2] >> index % 2 * 4 & 15);
}

// Where the weight k of row n lies among the packed bytes of an `inner` wide matrix, and how far to
// shift what is there.
struct Place {
  std::size_t byte;
  int shift;
};

inline Place place(std::size_t n, std::size_t k, std::size_t inner, int bits) {
  const std::size_t panel = n / kLanes * kLanes * inner * bits / 8;
  const std::size_t vector = k / depth(bits), within = k % depth(bits);
  return {panel + vector * kVector + n % kLanes * kDepth + within % kDepth,
          within >= kDepth ? 4 : 0};
}

}  // namespace

std::size_t packed_block_bytes(std::size_t outer, std::size_t inner, int bits) {
  return outer * inner * bits / 8;
}

void pack_blocks(const PlainBlocks &plain, std::uint8_t *integers, float *scales,
                 std::uint8_t *zeros) {
  const std::size_t inner = plain.inner, runs = inner / plain.block;
  const int bits = plain.bits;
  const std::size_t row_bytes = inner * bits / 8, zeros_bytes = (runs * bits + 7) / 8;
  __builtin_memset(integers, 0, packed_block_bytes(plain.outer, inner, bits));
  for (std::size_t n = 0; n < plain.outer; ++n) {
    for (std::size_t k = 0; k < inner; ++k) {
      const Place at = place(n, k, inner, bits);
      const int value = integer(plain.integers + n * row_bytes, k, bits);
      integers[at.byte] = static_cast<std::uint8_t>(integers[at.byte] | value << at.shift);
    }
    for (std::size_t run = 0; run < runs; ++run) {
      const std::size_t at = (n / kLanes * runs + run) * kLanes + n % kLanes;
      scales[at] = plain.scales[n * runs + run];
      if (zeros != nullptr) zeros[at] = integer(plain.zeros + n * zeros_bytes, run, bits);
    }
  }
}

void block_lookup(const BlockMatrix &matrix, std::size_t inner, int bits, const std::int64_t *ids,
                  std::size_t count, float *result) {
  const std::size_t runs = inner / matrix.block;
  for (std::size_t i = 0; i < count; ++i) {
    const auto id = static_cast<std::size_t>(ids[i]);
    for (std::size_t k = 0; k < inner; ++k) {
      const std::size_t run = k / matrix.block;
      const std::size_t own = (id / kLanes * runs + run) * kLanes + id % kLanes;
      const int zero = matrix.zeros == nullptr ? 1 << (bits - 1) : matrix.zeros[own];
      const Place at = place(id, k, inner, bits);
      const int mask = bits == 4 ? 15 : 255;
      const int value = matrix.integers[at.byte] >> at.shift & mask;
      result[i * inner + k] = static_cast<float>(value - zero) * matrix.scales[own];
    }
  }
}

}  // namespace appliance
