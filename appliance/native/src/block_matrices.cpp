#include "block_matrices.h"

namespace appliance {
namespace {

OrtStatus *read_bits(const OrtKernelInfo *info, int *bits) {
  std::int64_t value = 0;
  RETURN_IF_BAD(attribute(info, "bits", &value));
  if (value != 4 && value != 8) {
    return refuse("integers have 4 or 8 bits, not %lld", static_cast<long long>(value));
  }
  *bits = static_cast<int>(value);
  return nullptr;
}

// Whether it has just these sizes, one for each axis.
template <typename... Sizes>
bool shaped(const Tensor &tensor, Sizes... sizes) {
  const std::size_t wanted[] = {sizes...};
  if (tensor.rank != sizeof...(sizes)) return false;
  for (std::size_t axis = 0; axis < tensor.rank; ++axis) {
    if (tensor.size(axis) != wanted[axis]) return false;
  }
  return true;
}

OrtStatus *check_sizes(const BlockMatrix &matrix, std::size_t inner) {
  if (matrix.outer == 0 || matrix.outer % kLanes != 0) {
    return refuse("a matrix has %zu rows; a multiple of %zu is allowed", matrix.outer, kLanes);
  }
  if (matrix.block == 0 || matrix.block % kLanes != 0) {
    return refuse("blocks have %zu numbers; a multiple of %zu is allowed", matrix.block, kLanes);
  }
  if (inner == 0 || inner > kMostInner) {
    return refuse("a matrix's rows have %zu numbers; up to %zu are allowed", inner, kMostInner);
  }
  return nullptr;
}

}  // namespace

OrtStatus *PackedBlocks::read(OrtKernelContext *context, int bits, BlockMatrix *matrix,
                              std::size_t *inner) {
  Tensor integers, scales, zeros;
  RETURN_IF_BAD(node_.required(context, index_, "a matrix", kUint8, &integers));
  RETURN_IF_BAD(node_.required(context, index_ + 1, "a matrix's scale", kFloat, &scales));
  RETURN_IF_BAD(node_.input(context, index_ + 2, &zeros));
  if (zeros.there() && zeros.type != kUint8) return refuse("zero points are bytes");
  RETURN_IF_BAD(check(integers, scales, zeros, bits, matrix, inner));
  matrix->integers = integers.bytes();
  matrix->scales = scales.floats();
  matrix->zeros = zeros.there() ? zeros.bytes() : nullptr;
  return integers.rank == 4 ? nullptr : pack(bits, matrix, *inner);
}

OrtStatus *PackedBlocks::check(const Tensor &integers, const Tensor &scales, const Tensor &zeros,
                               int bits, BlockMatrix *matrix, std::size_t *inner) const {
  if (integers.rank != 3 && integers.rank != 4) {
    return refuse("a matrix in blocks has %zu axes, not 3, or 4 if it is packed", integers.rank);
  }
  const std::size_t first = integers.size(0), runs = integers.size(1), bit = bits;
  const bool packed = integers.rank == 4;
  matrix->outer = packed ? first * kLanes : first;
  matrix->block = packed ? integers.size(2) * 32 / bit : integers.size(2) * 8 / bit;
  *inner = matrix->block * runs;
  RETURN_IF_BAD(check_sizes(*matrix, *inner));
  const bool scaled = packed ? shaped(scales, first, runs, kLanes) : shaped(scales, first, runs);
  const bool zeroed = packed ? shaped(zeros, first, runs, kLanes)
                             : shaped(zeros, first, (runs * bit + 7) / 8);
  if (!scaled || (zeros.there() && !zeroed) || (packed && integers.size(3) != kLanes * kDepth)) {
    return refuse("a matrix's integers, scales and zero points are not of one shape");
  }
  return nullptr;
}

OrtStatus *PackedBlocks::pack(int bits, BlockMatrix *matrix, std::size_t inner) {
  const std::size_t runs = matrix->outer * (inner / matrix->block);
  RETURN_IF_BAD(integers_.take(packed_block_bytes(matrix->outer, inner, bits)));
  RETURN_IF_BAD(scales_.take(runs * sizeof(float)));
  if (matrix->zeros != nullptr) RETURN_IF_BAD(zeros_.take(runs));
  const PlainBlocks plain{matrix->integers, matrix->zeros, matrix->scales, matrix->outer,
                          inner, matrix->block, bits};
  auto *integers = static_cast<std::uint8_t *>(integers_.get());
  auto *scales = static_cast<float *>(scales_.get());
  auto *zeros = static_cast<std::uint8_t *>(zeros_.get());
  pack_blocks(plain, integers, scales, zeros);
  matrix->integers = integers;
  matrix->scales = scales;
  matrix->zeros = zeros;
  return nullptr;
}

OrtElementType BlockLinear::input_type(std::size_t index) {
  return index % 4 == 1 || index % 4 == 3 ? kUint8 : kFloat;
}

OrtStatus *BlockLinear::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  count_ = node_.outputs();
  return read_bits(info, &bits_);
}

OrtStatus *BlockLinear::matrix(OrtKernelContext *context, const Tensor &x, std::size_t at,
                               PackedBlocks *packed, BlockMatrix *matrix) const {
  std::size_t inner = 0;
  RETURN_IF_BAD(packed->read(context, bits_, matrix, &inner));
  RETURN_IF_BAD(check_row(x, inner));
  Tensor bias;
  RETURN_IF_BAD(node_.input(context, 4 + 4 * at, &bias));
  if (bias.there()) RETURN_IF_BAD(check_vector(bias, "a bias", matrix->outer));
  matrix->bias = bias.there() ? bias.floats() : nullptr;
  void *result = nullptr;
  RETURN_IF_BAD(output(context, at, with_last(x, matrix->outer), &result));
  matrix->result = static_cast<float *>(result);
  return nullptr;
}

OrtStatus *BlockLinear::compute(OrtKernelContext *context) const {
  Tensor x;
  RETURN_IF_BAD(node_.required(context, 0, "x", kFloat, &x));
  PackedBlocks packed[kMost] = {{node_, 1}, {node_, 5}, {node_, 9}};
  BlockMatrix wanted[kMost];
  std::size_t count = 0;
  for (std::size_t at = 0; at < kMost; ++at) {
    Tensor integers;
    RETURN_IF_BAD(node_.input(context, 1 + 4 * at, &integers));
    if (at >= count_) {
      if (integers.there()) return refuse("matrix %zu has no output", at);
      continue;
    }
    RETURN_IF_BAD(matrix(context, x, at, &packed[at], &wanted[count]));
    if (wanted[count].block != wanted[0].block) return refuse("matrices have other blocks");
    if (wanted[count].result != nullptr) ++count;
  }
  const std::size_t rows = x.rows();
  if (rows == 0 || count == 0) return nullptr;
  Memory scratch(node_.allocator());
  RETURN_IF_BAD(scratch.take(kernels()->block_scratch_bytes(rows, x.last(), wanted[0].block)));
  Threads threads(context);
  kernels()->block_linear(threads.parallel(), x.floats(), rows, x.last(), bits_, wanted, count,
               scratch.get());
  return threads.failure();
}

OrtElementType BlockGatedLinear::input_type(std::size_t index) {
  return index == 0 || index == 2 || index == 5 ? kFloat : kUint8;
}

OrtStatus *BlockGatedLinear::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  RETURN_IF_BAD(read_bits(info, &bits_));
  return read_activation(info, &activation_);
}

OrtStatus *BlockGatedLinear::compute(OrtKernelContext *context) const {
  Tensor x;
  RETURN_IF_BAD(node_.required(context, 0, "x", kFloat, &x));
  PackedBlocks packed_gate(node_, 1), packed_up(node_, 4);
  BlockMatrix gate{}, up{};
  std::size_t inner = 0, up_inner = 0;
  RETURN_IF_BAD(packed_gate.read(context, bits_, &gate, &inner));
  RETURN_IF_BAD(packed_up.read(context, bits_, &up, &up_inner));
  RETURN_IF_BAD(check_row(x, inner));
  RETURN_IF_BAD(check_row(x, up_inner));
  if (gate.outer != up.outer || gate.block != up.block) {
    return refuse("the gate has %zu rows in blocks of %zu and the other matrix %zu of %zu",
                  gate.outer, gate.block, up.outer, up.block);
  }
  void *result = nullptr;
  RETURN_IF_BAD(output(context, 0, with_last(x, gate.outer), &result));
  const std::size_t rows = x.rows();
  if (rows == 0 || result == nullptr) return nullptr;
  Memory scratch(node_.allocator());
  RETURN_IF_BAD(scratch.take(kernels()->block_scratch_bytes(rows, inner, gate.block)));
  Threads threads(context);
  kernels()->block_gated(threads.parallel(), x.floats(), rows, inner, bits_, gate, up, activation_,
              static_cast<float *>(result), scratch.get());
  return threads.failure();
}

OrtElementType BlockLookup::input_type(std::size_t index) {
  return index == 0 ? kInt64 : index == 2 ? kFloat : kUint8;
}

OrtStatus *BlockLookup::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  return read_bits(info, &bits_);
}

OrtStatus *BlockLookup::compute(OrtKernelContext *context) const {
  PackedBlocks packed(node_, 1);
  BlockMatrix matrix{};
  std::size_t inner = 0;
  RETURN_IF_BAD(packed.read(context, bits_, &matrix, &inner));
  WantedRows rows;
  RETURN_IF_BAD(rows.read(node_, context, 0, matrix.outer, inner));
  if (rows.count == 0 || rows.result == nullptr) return nullptr;
  block_lookup(matrix, inner, bits_, rows.ids, rows.count, rows.result);
  return nullptr;
}

}  // namespace appliance
