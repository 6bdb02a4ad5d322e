// Linear layers of 8-bit weights over rows that are rounded to 8 bits.
//
// One task is a panel of columns for all rows: its weights are read from memory once and stay in
// the core's cache while the rows pass by, twelve at a time.
#include "rounded.h"
#include "tile.h"

namespace appliance {
namespace {

constexpr std::size_t kMostRows = 12;  // of a tile: with two blocks they fill the registers
constexpr std::size_t kBlocksOfTask = 2;

// 16 sums of one row as floats: results of columns whose scales are `scales`.
inline __m512 scaled(__m512i sums, const Rounded &x, std::size_t row, __m512 scales) {
  const __m512i exact = _mm512_sub_epi32(sums, _mm512_set1_epi32(x.offsets[row]));
  const __m512 steps = _mm512_set1_ps(x.steps[row]);
  return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), steps), scales);
}

// Columns of one matrix that a block has.
struct Columns {
  Columns(const Matrix &matrix, std::size_t block)
      : begin(block * kLanes), mask(first(matrix.outer - begin)),
        scales(_mm512_maskz_loadu_ps(mask, matrix.scales + begin)),
        bias(matrix.bias == nullptr ? _mm512_setzero_ps()
                                    : _mm512_maskz_loadu_ps(mask, matrix.bias + begin)) {}

  std::size_t begin;
  __mmask16 mask;
  __m512 scales, bias;
};

// The tiles of a panel: `finish(row, c, sums)` gets 16 sums of each row and block.
template <int R, int C, typename Finish>
inline void tile(const Rounded &x, std::size_t row, const std::uint8_t *packed,
                 std::size_t distance, const Finish &finish) {
  if constexpr (R == 1) {
    for (int c = 0; c < C; ++c) {
      finish(row, c, product(x.integers + row * x.inner, packed + c * distance, x.inner));
    }
  } else {
    __m512i sums[R][C];
    products<R, C>(x.integers + row * x.inner, x.inner, packed, distance, x.inner, sums);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) finish(row + r, c, sums[r][c]);
    }
  }
}

// `rows` of the panel, as one tile.
template <int C, typename Finish>
void tile_of(std::size_t rows, const Rounded &x, std::size_t row, const std::uint8_t *packed,
             std::size_t distance, const Finish &finish) {
  switch (rows) {
    case 1: return tile<1, C>(x, row, packed, distance, finish);
    case 2: return tile<2, C>(x, row, packed, distance, finish);
    case 3: return tile<3, C>(x, row, packed, distance, finish);
    case 4: return tile<4, C>(x, row, packed, distance, finish);
    case 5: return tile<5, C>(x, row, packed, distance, finish);
    case 6: return tile<6, C>(x, row, packed, distance, finish);
    case 7: return tile<7, C>(x, row, packed, distance, finish);
    case 8: return tile<8, C>(x, row, packed, distance, finish);
    case 9: return tile<9, C>(x, row, packed, distance, finish);
    case 10: return tile<10, C>(x, row, packed, distance, finish);
    case 11: return tile<11, C>(x, row, packed, distance, finish);
    default: return tile<12, C>(x, row, packed, distance, finish);
  }
}

// All rows of a panel, in tiles about as high as each other.
template <int C, typename Finish>
void panel(const Rounded &x, const std::uint8_t *packed, std::size_t distance,
           const Finish &finish) {
  const std::size_t tiles = blocks(x.rows, kMostRows);
  for (std::size_t i = 0, row = 0; i < tiles; ++i) {
    const std::size_t rows = blocks(x.rows - row, tiles - i);
    tile_of<C>(rows, x, row, packed, distance, finish);
    row += rows;
  }
}

struct LinearTask {
  Rounded x;
  const Matrix *matrices;
};

template <int C>
void linear_panel(const Rounded &x, const Matrix &matrix, std::size_t block) {
  const std::size_t distance = x.inner * kLanes;
  const Columns columns[2] = {Columns(matrix, block), Columns(matrix, block + C - 1)};
  panel<C>(x, matrix.packed + block * distance, distance,
           [&](std::size_t row, int c, __m512i sums) {
             const Columns &at = columns[c];
             const __m512 y = _mm512_add_ps(scaled(sums, x, row, at.scales), at.bias);
             _mm512_mask_storeu_ps(matrix.result + row * matrix.outer + at.begin, at.mask, y);
           });
}

void linear_task(void *context, std::size_t index) {
  const auto &task = *static_cast<LinearTask *>(context);
  const Matrix *matrix = task.matrices;
  for (std::size_t tasks; index >= (tasks = blocks(blocks(matrix->outer, kLanes), kBlocksOfTask));
       ++matrix) {
    index -= tasks;
  }
  const std::size_t block = index * kBlocksOfTask;
  if (block + 1 < blocks(matrix->outer, kLanes)) {
    linear_panel<2>(task.x, *matrix, block);
  } else {
    linear_panel<1>(task.x, *matrix, block);
  }
}

struct GatedTask {
  Rounded x;
  const Matrix *gate, *up;
  Activation activation;
  float *result;
};

// The gate's and the up matrix's block of the same columns are the two blocks of a tile.
void gated_task(void *context, std::size_t block) {
  const auto &task = *static_cast<GatedTask *>(context);
  const Rounded &x = task.x;
  const Columns gate(*task.gate, block), up(*task.up, block);
  const std::size_t at = block * x.inner * kLanes;
  const std::uint8_t *packed = task.gate->packed + at;
  const std::size_t distance = static_cast<std::size_t>(task.up->packed + at - packed);
  __m512 open = _mm512_setzero_ps();
  panel<2>(x, packed, distance, [&](std::size_t row, int c, __m512i sums) {
    if (c == 0) {
      open = activate(task.activation, scaled(sums, x, row, gate.scales));
      return;
    }
    const __m512 y = _mm512_mul_ps(open, scaled(sums, x, row, up.scales));
    _mm512_mask_storeu_ps(task.result + row * task.gate->outer + up.begin, up.mask, y);
  });
}

}  // namespace

std::size_t packed_bytes(std::size_t outer, std::size_t inner) {
  return blocks(outer, kLanes) * kLanes * inner;
}

void pack(const std::int8_t *weight, std::size_t outer, std::size_t inner, std::uint8_t *packed) {
  for (std::size_t n = 0; n < blocks(outer, kLanes) * kLanes; ++n) {
    std::uint8_t *block = packed + n / kLanes * kLanes * inner;
    for (std::size_t k = 0; k < inner; ++k) {
      const std::uint8_t byte =
          n < outer ? static_cast<std::uint8_t>(weight[n * inner + k] + 128) : 128;
      block[(k / kDepth * kLanes + n % kLanes) * kDepth + k % kDepth] = byte;
    }
  }
}

std::size_t linear_scratch_bytes(std::size_t rows, std::size_t inner) {
  return aligned(rows * inner) + 2 * aligned(rows * sizeof(float)) + 64;
}

void linear(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
            const Matrix *matrices, std::size_t count, void *scratch) {
  LinearTask task{round_all(parallel, x, rows, inner, scratch), matrices};
  std::size_t tasks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    tasks += blocks(blocks(matrices[i].outer, kLanes), kBlocksOfTask);
  }
  parallel.run(parallel.handle, linear_task, tasks, &task);
}

void gated(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
           const Matrix &gate, const Matrix &up, Activation activation, float *result,
           void *scratch) {
  GatedTask task{round_all(parallel, x, rows, inner, scratch), &gate, &up, activation, result};
  parallel.run(parallel.handle, gated_task, blocks(gate.outer, kLanes), &task);
}

void lookup(const std::uint8_t *packed, const float *scales, std::size_t outer, std::size_t inner,
            const std::int64_t *ids, std::size_t count, float *result) {
  static_cast<void>(outer);
  for (std::size_t i = 0; i < count; ++i) {
    const auto id = static_cast<std::size_t>(ids[i]);
    const std::uint8_t *bytes = packed + id / kLanes * kLanes * inner + id % kLanes * kDepth;
    const float scale = scales[id];
    float *row = result + i * inner;
    for (std::size_t k = 0; k < inner; ++k) {
      const int byte = bytes[k / kDepth * kLanes * kDepth + k % kDepth];
      row[k] = static_cast<float>(byte - 128) * scale;
    }
  }
}

}  // namespace appliance
