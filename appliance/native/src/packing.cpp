// Where each weight of a packed matrix lies: packing, and reading single rows.
#include "kernels.h"

namespace appliance {
namespace {

// `outer` rows and those that fill the last block.
inline std::size_t whole(std::size_t outer) { return (outer + kLanes - 1) / kLanes * kLanes; }

}  // namespace

std::size_t packed_bytes(std::size_t outer, std::size_t inner) {
  return whole(outer) * inner;
}

void pack(const std::int8_t *weight, std::size_t outer, std::size_t inner, std::uint8_t *packed) {
  for (std::size_t n = 0; n < whole(outer); ++n) {
    std::uint8_t *block = packed + n / kLanes * kLanes * inner;
    for (std::size_t k = 0; k < inner; ++k) {
      const std::uint8_t byte =
          n < outer ? static_cast<std::uint8_t>(weight[n * inner + k] + 128) : 128;
      block[(k / kDepth * kLanes + n % kLanes) * kDepth + k % kDepth] = byte;
    }
  }
}

void lookup(const std::uint8_t *packed, const float *scales, std::size_t outer, std::size_t inner,
            const std::int64_t *ids, std::size_t count, float *result) {
  static_cast<void>(outer);
  for (std::size_t i = 0; i < count; ++i) {
    const auto id = static_cast<std::size_t>(ids[i]);
    const std::uint8_t *bytes = packed + id / kLanes * kLanes * inner + id % kLanes * kDepth;
    const float scale = scales[id];
    float *row = result + i * inner;
    for (std::size_t k = 0; k < inner; ++k) {
      const int byte = bytes[k / kDepth * kLanes * kDepth + k % kDepth];
      row[k] = static_cast<float>(byte - 128) * scale;
    }
  }
}

}  // namespace appliance
