// The operator Attention: checks what it is given and hands it to the kernel.
#pragma once

#include "node.h"

namespace appliance {

class Attention {
 public:
  static constexpr const char *kName = "Attention";
  static constexpr std::size_t kInputs = 13, kNeeded = 10, kOutputs = 3, kNeededOutputs = 3;
  static OrtElementType input_type(std::size_t index);
  static OrtElementType output_type(std::size_t index);

  OrtStatus *open(const OrtKernelInfo *info);
  void close() { node_.close(); }
  OrtStatus *compute(OrtKernelContext *context) const;

 private:
  struct Inputs;
  OrtStatus *read(OrtKernelContext *context, Inputs *in) const;
  OrtStatus *check_sizes(const Inputs &in, AttentionShape *shape) const;
  OrtStatus *check_norms(const Inputs &in, const AttentionShape &shape) const;

  Node node_;
  AttentionShape shape_{};  // what the attributes say; the rest comes with each run
};

}  // namespace appliance
