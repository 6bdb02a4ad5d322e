// The kernels, as each set of instructions has them: every file that includes this is compiled to
// each set, in a namespace of its own, which APPLIANCE_VECTORS names.
//
// Inline functions of these files belong into that namespace, too: else the linker keeps one of them
// for all sets, and a processor may meet instructions that it lacks.
#pragma once

#ifdef __AVX512VNNI__
#include "wide.h"
#else
#include "narrow.h"
#endif

namespace appliance::APPLIANCE_VECTORS {

std::size_t linear_scratch_bytes(std::size_t rows, std::size_t inner);
void linear(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
            const Matrix *matrices, std::size_t count, void *scratch);
void gated(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
           const Matrix &gate, const Matrix &up, Activation activation, float *result,
           void *scratch);
std::size_t block_scratch_bytes(std::size_t rows, std::size_t inner, std::size_t block);
void block_linear(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                  int bits, const BlockMatrix *matrices, std::size_t count, void *scratch);
void block_gated(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                 int bits, const BlockMatrix &gate, const BlockMatrix &up, Activation activation,
                 float *result, void *scratch);
std::size_t attention_scratch_bytes(const AttentionShape &shape, std::size_t tokens);
void attention(const Parallel &parallel, const AttentionShape &shape,
               const AttentionInputs &inputs, std::uint8_t *keys, std::int8_t *values,
               float *result, void *scratch);

extern const Kernels kKernels;

}  // namespace appliance::APPLIANCE_VECTORS
