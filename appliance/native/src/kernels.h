// The arithmetic of the native operators, free of any runtime.
//
// All arrays are row-major and contiguous; sizes are counts of elements unless they say bytes.
// Nothing here allocates, throws or keeps state: scratch memory comes from the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace appliance {

// Runs task(context, i) for i in 0..count-1, in any order, on any threads, and returns when all
// are done.
struct Parallel {
  using Task = void (*)(void *context, std::size_t index);
  void (*run)(void *handle, Task task, std::size_t count, void *context);
  void *handle;
};

// Rows that one block of packed weights, or of cached keys, holds side by side.
constexpr std::size_t kLanes = 16;
// Bytes of one row that are multiplied at once.
constexpr std::size_t kDepth = 4;

// Bytes of a packed matrix [outer, inner]: whole blocks of 16 rows; inner is a multiple of 4.
std::size_t packed_bytes(std::size_t outer, std::size_t inner);

// weight int8 [outer, inner] -> packed uint8 [ceil(outer/16), inner/4, 16, 4], each plus 128;
// rows that do not exist are 128, which stands for 0.
void pack(const std::int8_t *weight, std::size_t outer, std::size_t inner, std::uint8_t *packed);

// One of the matrices that the same rows are multiplied with.
struct Matrix {
  const std::uint8_t *packed;
  const float *scales;  // [outer]
  const float *bias;    // [outer], or null
  std::size_t outer;
  float *result;  // [rows, outer]
};

enum class Activation { kSilu, kGeluTanh };

// result [count, inner]: rows `ids` of a packed matrix, times their scales. Ids are in range.
void lookup(const std::uint8_t *packed, const float *scales, std::size_t outer, std::size_t inner,
            const std::int64_t *ids, std::size_t count, float *result);

// A matrix [outer, inner] of unsigned integers in blocks of `block` neighbours of a row, each with a
// scale and a zero point: weight = (integer - zero) * scale. Packed, sixteen rows side by side:
//   integers uint8 [outer/16, blocks, block / (32/bits), 16, 4]; of 4 bits a byte's lower half is one
//            of the first four of eight neighbours, its upper half the one four further on
//   scales   [outer/16, blocks, 16]
//   zeros    uint8 [outer/16, blocks, 16], or null: half of the range
// outer is a multiple of 16, block one of 16, and a row has whole blocks.
struct BlockMatrix {
  const std::uint8_t *integers;
  const float *scales;
  const std::uint8_t *zeros;
  const float *bias;  // [outer], or null
  std::size_t outer, block;
  float *result;  // [rows, outer]
};

// Bytes of the packed integers.
std::size_t packed_block_bytes(std::size_t outer, std::size_t inner, int bits);

// A matrix as bundles have it: integers [outer, inner * bits/8] and zeros [outer, ceil(blocks * bits/8)]
// (or null), the lower half of a byte first, and scales [outer, blocks].
struct PlainBlocks {
  const std::uint8_t *integers, *zeros;
  const float *scales;
  std::size_t outer, inner, block;
  int bits;
};
void pack_blocks(const PlainBlocks &plain, std::uint8_t *integers, float *scales,
                 std::uint8_t *zeros);

// As lookup().
void block_lookup(const BlockMatrix &matrix, std::size_t inner, int bits, const std::int64_t *ids,
                  std::size_t count, float *result);

// One sequence of a step: `count` new tokens that follow `start` cached ones in `slot`.
struct Span {
  std::int32_t slot, start, count;
};

struct AttentionShape {
  std::size_t heads, kv_heads, head_dim;  // head_dim is a multiple of 16
  std::size_t turned;                     // how many of a head's numbers turn
  bool interleaved;                       // neighbours turn together, not one of each half
  float scale;                            // of products of queries and keys
  float softcap;                          // 0: none
  float epsilon;                          // of the norms
  std::size_t window;                     // tokens that each sees, itself included; 0: all
  std::size_t slots, capacity;            // capacity is a multiple of 16
};

struct AttentionInputs {
  const float *query, *key, *value;      // [tokens, heads * head_dim], kv_heads for the others
  const Span *spans;                     // [sequences]; their counts add up to tokens
  std::size_t sequences, tokens;
  const float *key_scales, *value_scales;  // [kv_heads * head_dim]: what 1 stands for
  const float *cosines, *sines;            // [positions, turned / 2]
  const float *query_norm, *key_norm;      // [head_dim] or null
  const float *sinks;                      // [heads] or null
};

// keys   uint8 [slots, kv_heads, capacity/16, head_dim/4, 16, 4], each plus 128
// values int8 [slots, kv_heads, capacity, head_dim]

// What is compiled to several sets of instructions: docs/decisions/0310-native-operators-by-avx2.md.
struct Kernels {
  const char *instructions;

  // What linear() and gated() need for so many rows.
  std::size_t (*linear_scratch_bytes)(std::size_t rows, std::size_t inner);

  // result = x . matrix^T (+ bias) for each matrix. x [rows, inner]; each row is rounded to 8 bits
  // by its own peak, so no row depends on another.
  void (*linear)(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                 const Matrix *matrices, std::size_t count, void *scratch);

  // result [rows, outer] = activation(x . gate^T) * (x . up^T); gate and up have the same outer.
  void (*gated)(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                const Matrix &gate, const Matrix &up, Activation activation, float *result,
                void *scratch);

  std::size_t (*block_scratch_bytes)(std::size_t rows, std::size_t inner, std::size_t block);

  // As linear(); all matrices have the same bits and the same block. A block's sum of products is
  // exact and blocks are added in their order, so no row depends on another here either.
  void (*block_linear)(const Parallel &parallel, const float *x, std::size_t rows,
                       std::size_t inner, int bits, const BlockMatrix *matrices,
                       std::size_t count, void *scratch);

  // As gated().
  void (*block_gated)(const Parallel &parallel, const float *x, std::size_t rows,
                      std::size_t inner, int bits, const BlockMatrix &gate, const BlockMatrix &up,
                      Activation activation, float *result, void *scratch);

  std::size_t (*attention_scratch_bytes)(const AttentionShape &shape, std::size_t tokens);

  // Writes the new tokens' keys and values into the slots, then result [tokens, heads * head_dim].
  // What a token gets depends on its sequence's tokens only: not on the other sequences, nor on how
  // many of its own are computed in this call.
  void (*attention)(const Parallel &parallel, const AttentionShape &shape,
                    const AttentionInputs &inputs, std::uint8_t *keys, std::int8_t *values,
                    float *result, void *scratch);
};

// The best that this processor has the instructions for; null where it has none of them.
const Kernels *kernels();

}  // namespace appliance
