// Which of the sets of instructions that the kernels are compiled to this processor has.
#pragma once

#include "kernels.h"

namespace appliance {

// The first feature of the smallest set that it, or the operating system for it, lacks; null: none.
const char *processor_lacks();

// Lets kernels() be those for `instructions`, as Kernels names them. False if it lacks them. For tests
// of the smaller sets, between runs.
bool choose(const char *instructions);

}  // namespace appliance
