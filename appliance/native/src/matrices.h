// Operators that read packed matrices: Linear, GatedLinear and Lookup.
#pragma once

#include "node.h"

namespace appliance {

// Products of several rows' inner numbers stay within 32 bits: 127 * 255 * 65,536 < 2^31.
constexpr std::size_t kMostInner = 65536;

// [..., inner] -> [..., outer]
Tensor with_last(Tensor shape, std::size_t last);

// Checks that x has rows of `inner` numbers.
OrtStatus *check_row(const Tensor &x, std::size_t inner);

OrtStatus *read_activation(const OrtKernelInfo *info, Activation *activation);

// What a lookup is asked for, in a matrix [outer, inner]: ids within it, and where their rows go.
struct WantedRows {
  // The ids are input `index`.
  OrtStatus *read(const Node &node, OrtKernelContext *context, std::size_t index,
                  std::size_t outer, std::size_t inner);

  const std::int64_t *ids = nullptr;
  std::size_t count = 0;
  float *result = nullptr;  // [count, inner]; null where the graph does not want it
};

// A matrix of a node, packed or int8 [outer, inner]. The first kind is read where it lies; the second,
// which bundles have, is packed for the run, so that a look at a graph takes no memory for long.
class PackedMatrix {
 public:
  // `index` is the weight's; the scales follow it.
  PackedMatrix(const Node &node, std::size_t index)
      : node_(node), index_(index), packed_(node.allocator()) {}
  OrtStatus *read(OrtKernelContext *context, Matrix *matrix, std::size_t *inner);

 private:
  const Node &node_;
  std::size_t index_;
  Memory packed_;
};

class Linear {
 public:
  static constexpr const char *kName = "Linear";
  static constexpr std::size_t kInputs = 10, kNeeded = 3, kOutputs = 3, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  static constexpr std::size_t kMost = 3;
  OrtStatus *matrix(OrtKernelContext *context, const Tensor &x, std::size_t at,
                    PackedMatrix *packed, Matrix *matrix) const;

  Node node_;
  std::size_t count_ = 0;
};

class GatedLinear {
 public:
  static constexpr const char *kName = "GatedLinear";
  static constexpr std::size_t kInputs = 5, kNeeded = 5, kOutputs = 1, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  Node node_;
  Activation activation_ = Activation::kSilu;
};

class Lookup {
 public:
  static constexpr const char *kName = "Lookup";
  static constexpr std::size_t kInputs = 3, kNeeded = 3, kOutputs = 1, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  Node node_;
};

}  // namespace appliance
