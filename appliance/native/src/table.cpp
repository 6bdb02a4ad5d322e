// One set's kernels as a table.
#include "compiled.h"

namespace appliance::APPLIANCE_VECTORS {

const Kernels kKernels{kInstructions, linear_scratch_bytes, linear,
                       gated,         block_scratch_bytes,  block_linear,
                       block_gated,   attention_scratch_bytes, attention};

}  // namespace appliance::APPLIANCE_VECTORS
