// Whether this processor has the instructions that the kernels are compiled to.
#pragma once

namespace appliance {

// The first set of instructions that it, or the operating system for it, lacks; null: it has all.
const char *processor_lacks();

}  // namespace appliance
