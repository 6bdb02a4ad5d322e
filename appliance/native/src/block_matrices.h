// Operators that read matrices in blocks: BlockLinear, BlockGatedLinear and BlockLookup.
#pragma once

#include "matrices.h"

namespace appliance {

// A matrix of a node in blocks: integers, scales and zero points (which it may lack) are three inputs
// one after the other. Packed ones are read where they lie; those of bundles, integers uint8
// [outer, blocks, block * bits/8] and scales [outer, blocks], are packed for the run.
class PackedBlocks {
 public:
  // `index` is the integers'.
  PackedBlocks(const Node &node, std::size_t index)
      : node_(node), index_(index), integers_(node.allocator()), scales_(node.allocator()),
        zeros_(node.allocator()) {}
  OrtStatus *read(OrtKernelContext *context, int bits, BlockMatrix *matrix, std::size_t *inner);

 private:
  OrtStatus *check(const Tensor &integers, const Tensor &scales, const Tensor &zeros, int bits,
                   BlockMatrix *matrix, std::size_t *inner) const;
  OrtStatus *pack(int bits, BlockMatrix *matrix, std::size_t inner);

  const Node &node_;
  std::size_t index_;
  Memory integers_, scales_, zeros_;
};

class BlockLinear {
 public:
  static constexpr const char *kName = "BlockLinear";
  static constexpr std::size_t kInputs = 13, kNeeded = 3, kOutputs = 3, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  static constexpr std::size_t kMost = 3;
  OrtStatus *matrix(OrtKernelContext *context, const Tensor &x, std::size_t at,
                    PackedBlocks *packed, BlockMatrix *matrix) const;

  Node node_;
  std::size_t count_ = 0;
  int bits_ = 0;
};

class BlockGatedLinear {
 public:
  static constexpr const char *kName = "BlockGatedLinear";
  static constexpr std::size_t kInputs = 7, kNeeded = 3, kOutputs = 1, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  Node node_;
  Activation activation_ = Activation::kSilu;
  int bits_ = 0;
};

class BlockLookup {
 public:
  static constexpr const char *kName = "BlockLookup";
  static constexpr std::size_t kInputs = 4, kNeeded = 3, kOutputs = 1, kNeededOutputs = 1;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t) { return kFloat; }

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  Node node_;
  int bits_ = 0;
};

}  // namespace appliance
