#include "matrices.h"

#include <string.h>

namespace appliance {
namespace {

OrtStatus *check_inner(std::size_t inner) {
  if (inner == 0 || inner % kDepth != 0 || inner > kMostInner) {
    return refuse("a matrix's rows have %zu numbers; a multiple of %zu up to %zu is allowed",
                  inner, kDepth, kMostInner);
  }
  return nullptr;
}

OrtStatus *check_packed(const Tensor &weight, std::size_t outer) {
  const std::size_t blocks = (outer + kLanes - 1) / kLanes;
  if (weight.rank != 3 || weight.size(0) != blocks || weight.size(2) != kLanes * kDepth) {
    return refuse("a packed matrix of %zu rows is [%zu, rows' numbers / %zu, %zu]", outer, blocks,
                  kDepth, kLanes * kDepth);
  }
  return nullptr;
}

}  // namespace

Tensor with_last(Tensor shape, std::size_t last) {
  shape.sizes[shape.rank - 1] = static_cast<std::int64_t>(last);
  return shape;
}

OrtStatus *check_row(const Tensor &x, std::size_t inner) {
  if (x.last() != inner) {
    return refuse("x has rows of %zu numbers and a matrix of %zu", x.last(), inner);
  }
  return nullptr;
}

OrtStatus *read_activation(const OrtKernelInfo *info, Activation *activation) {
  char name[16] = {};
  std::size_t size = sizeof name;
  RETURN_IF_BAD(api->KernelInfoGetAttribute_string(info, "activation", name, &size));
  if (strcmp(name, "silu") == 0) {
    *activation = Activation::kSilu;
  } else if (strcmp(name, "gelu_tanh") == 0) {
    *activation = Activation::kGeluTanh;
  } else {
    return refuse("activation '%s' is none of silu, gelu_tanh", name);
  }
  return nullptr;
}

OrtStatus *WantedRows::read(const Node &node, OrtKernelContext *context, std::size_t index,
                            std::size_t outer, std::size_t inner) {
  Tensor tensor;
  RETURN_IF_BAD(node.required(context, index, "ids", kInt64, &tensor));
  ids = static_cast<const std::int64_t *>(tensor.data);
  count = tensor.rows() * tensor.last();
  for (std::size_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || static_cast<std::size_t>(ids[i]) >= outer) {
      return refuse("id %lld is not below %zu", static_cast<long long>(ids[i]), outer);
    }
  }
  if (tensor.rank == kMostRank) return refuse("ids have too many axes");
  tensor.sizes[tensor.rank++] = static_cast<std::int64_t>(inner);
  void *made = nullptr;
  RETURN_IF_BAD(output(context, 0, tensor, &made));
  result = static_cast<float *>(made);
  return nullptr;
}

OrtStatus *PackedMatrix::read(OrtKernelContext *context, Matrix *matrix, std::size_t *inner) {
  Tensor weight, scales;
  RETURN_IF_BAD(node_.input(context, index_, &weight));
  RETURN_IF_BAD(node_.required(context, index_ + 1, "a matrix's scale", kFloat, &scales));
  if (!weight.there()) return refuse("a matrix is missing");
  matrix->scales = scales.floats();
  matrix->outer = scales.size(0);
  RETURN_IF_BAD(check_vector(scales, "a matrix's scale", matrix->outer, true));
  if (weight.type == kUint8) {
    RETURN_IF_BAD(check_packed(weight, matrix->outer));
    *inner = weight.size(1) * kDepth;
    matrix->packed = weight.bytes();
    return check_inner(*inner);
  }
  if (weight.type != kInt8) return refuse("a matrix is neither packed nor of int8");
  if (weight.rank != 2) return refuse("a matrix has %zu axes, not 2", weight.rank);
  *inner = weight.size(1);
  RETURN_IF_BAD(check_inner(*inner));
  if (weight.size(0) != matrix->outer) {
    return refuse("a matrix has %zu rows and %zu scales", weight.size(0), matrix->outer);
  }
  RETURN_IF_BAD(packed_.take(packed_bytes(matrix->outer, *inner) + 1));
  auto *packed = static_cast<std::uint8_t *>(packed_.get());
  pack(static_cast<const std::int8_t *>(weight.data), matrix->outer, *inner, packed);
  matrix->packed = packed;
  return nullptr;
}

OrtElementType Linear::input_type(std::size_t index) {
  return index % 3 == 1 ? kUndefined : kFloat;
}

OrtStatus *Linear::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  count_ = node_.outputs();
  return nullptr;
}

OrtStatus *Linear::matrix(OrtKernelContext *context, const Tensor &x, std::size_t at,
                          PackedMatrix *packed, Matrix *matrix) const {
  std::size_t inner = 0;
  RETURN_IF_BAD(packed->read(context, matrix, &inner));
  RETURN_IF_BAD(check_row(x, inner));
  Tensor bias;
  RETURN_IF_BAD(node_.input(context, 3 + 3 * at, &bias));
  if (bias.there()) RETURN_IF_BAD(check_vector(bias, "a bias", matrix->outer));
  matrix->bias = bias.there() ? bias.floats() : nullptr;
  void *result = nullptr;
  RETURN_IF_BAD(output(context, at, with_last(x, matrix->outer), &result));
  matrix->result = static_cast<float *>(result);
  return nullptr;
}

OrtStatus *Linear::compute(OrtKernelContext *context) const {
  Tensor x;
  RETURN_IF_BAD(node_.required(context, 0, "x", kFloat, &x));
  PackedMatrix packed[kMost] = {{node_, 1}, {node_, 4}, {node_, 7}};
  Matrix wanted[kMost];
  std::size_t count = 0;
  for (std::size_t at = 0; at < kMost; ++at) {
    Tensor weight;
    RETURN_IF_BAD(node_.input(context, 1 + 3 * at, &weight));
    if (at >= count_) {
      if (weight.there()) return refuse("matrix %zu has no output", at);
      continue;
    }
    RETURN_IF_BAD(matrix(context, x, at, &packed[at], &wanted[count]));
    if (wanted[count].result != nullptr) ++count;
  }
  const std::size_t rows = x.rows();
  if (rows == 0 || count == 0) return nullptr;
  Memory scratch(node_.allocator());
  RETURN_IF_BAD(scratch.take(kernels()->linear_scratch_bytes(rows, x.last())));
  Threads threads(context);
  kernels()->linear(threads.parallel(), x.floats(), rows, x.last(), wanted, count, scratch.get());
  return threads.failure();
}

OrtElementType GatedLinear::input_type(std::size_t index) {
  return index == 1 || index == 3 ? kUndefined : kFloat;
}

OrtStatus *GatedLinear::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  return read_activation(info, &activation_);
}

OrtStatus *GatedLinear::compute(OrtKernelContext *context) const {
  Tensor x;
  RETURN_IF_BAD(node_.required(context, 0, "x", kFloat, &x));
  PackedMatrix packed_gate(node_, 1), packed_up(node_, 3);
  Matrix gate{}, up{};
  std::size_t inner = 0, up_inner = 0;
  RETURN_IF_BAD(packed_gate.read(context, &gate, &inner));
  RETURN_IF_BAD(packed_up.read(context, &up, &up_inner));
  RETURN_IF_BAD(check_row(x, inner));
  RETURN_IF_BAD(check_row(x, up_inner));
  if (gate.outer != up.outer) {
    return refuse("the gate has %zu rows and the other matrix %zu", gate.outer, up.outer);
  }
  void *result = nullptr;
  RETURN_IF_BAD(output(context, 0, with_last(x, gate.outer), &result));
  const std::size_t rows = x.rows();
  if (rows == 0 || result == nullptr) return nullptr;
  Memory scratch(node_.allocator());
  RETURN_IF_BAD(scratch.take(kernels()->linear_scratch_bytes(rows, inner)));
  Threads threads(context);
  kernels()->gated(threads.parallel(), x.floats(), rows, inner, gate, up, activation_,
        static_cast<float *>(result), scratch.get());
  return threads.failure();
}

OrtElementType Lookup::input_type(std::size_t index) {
  return index == 0 ? kUndefined : index == 1 ? kFloat : kInt64;
}

OrtStatus *Lookup::open(const OrtKernelInfo *info) {
  return node_.open(info);
}

OrtStatus *Lookup::compute(OrtKernelContext *context) const {
  PackedMatrix packed(node_, 0);
  Matrix matrix{};
  std::size_t inner = 0;
  RETURN_IF_BAD(packed.read(context, &matrix, &inner));
  WantedRows rows;
  RETURN_IF_BAD(rows.read(node_, context, 2, matrix.outer, inner));
  if (rows.count == 0 || rows.result == nullptr) return nullptr;
  lookup(matrix.packed, matrix.scales, matrix.outer, inner, rows.ids, rows.count, rows.result);
  return nullptr;
}

}  // namespace appliance
