// Linear layers of 8-bit weights over rows that are rounded to 8 bits.
//
// One task is a panel of columns for all rows: its weights are read from memory once and stay in
// the core's cache while the rows pass by, some at a time.
#include "rounded.h"
#include "tile.h"

namespace appliance::APPLIANCE_VECTORS {
namespace {

constexpr std::size_t kVectorsOfTask = 2 * kParts;

// A vector of sums of one row as floats: results of columns whose scales are `scales`.
inline Floats scaled(Wholes sums, const Rounded &x, std::size_t row, Floats scales) {
  return real(minus(sums, all(x.offsets[row]))) * all(x.steps[row]) * scales;
}

// Columns of one matrix that a vector has.
struct Columns {
  Columns(const Matrix &matrix, std::size_t vector, std::size_t inner)
      : begin(vector * kWidth), mask(begin < matrix.outer ? first(matrix.outer - begin) : Mask(0)),
        packed(matrix.packed + vector / kParts * kLanes * inner +
               vector % kParts * kWidth * kDepth),
        scales(load(mask, matrix.scales + begin)),
        bias(matrix.bias == nullptr ? zeros() : load(mask, matrix.bias + begin)) {}

  std::size_t begin;
  Mask mask;
  const std::uint8_t *packed;
  Floats scales, bias;
};

// One tile: `finish(row, c, sums)` gets the sums of each row and vector.
template <int R, int C, typename Finish>
inline void tile(const Rounded &x, std::size_t row, const std::uint8_t *const (&packed)[C],
                 const Finish &finish) {
  const Byte *integers = x.integers + row * x.inner;
  if constexpr (R == 1) {
    for (int c = 0; c < C; ++c) finish(row, c, product<8>(integers, packed[c], x.inner));
  } else {
    Wholes sums[R][C];
    products<8, R, C>(integers, x.inner, packed, x.inner, sums);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) finish(row + r, c, sums[r][c]);
    }
  }
}

// `rows` rows as one tile: of R, or of fewer.
template <int C, int R, typename Finish>
void tile_of(std::size_t rows, const Rounded &x, std::size_t row,
             const std::uint8_t *const (&packed)[C], const Finish &finish) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<C, R - 1>(rows, x, row, packed, finish);
  }
  tile<R, C>(x, row, packed, finish);
}

// All rows of a panel, in tiles about as high as each other.
template <int C, typename Finish>
void panel(const Rounded &x, const std::uint8_t *const (&packed)[C], const Finish &finish) {
  const std::size_t tiles = blocks(x.rows, most_rows(C));
  for (std::size_t i = 0, row = 0; i < tiles; ++i) {
    const std::size_t rows = blocks(x.rows - row, tiles - i);
    tile_of<C, most_rows(C)>(rows, x, row, packed, finish);
    row += rows;
  }
}

struct LinearTask {
  Rounded x;
  const Matrix *matrices;
};

template <int C>
void linear_panel(const Rounded &x, const Matrix &matrix, std::size_t vector) {
  const Columns one(matrix, vector, x.inner), last(matrix, vector + C - 1, x.inner);
  const Columns *columns[C];
  const std::uint8_t *packed[C];
  columns[0] = &one, columns[C - 1] = &last;
  for (int c = 0; c < C; ++c) packed[c] = columns[c]->packed;
  const std::uint8_t *const(&fixed)[C] = packed;
  panel<C>(x, fixed, [&](std::size_t row, int c, Wholes sums) {
    const Columns &at = *columns[c];
    const Floats y = scaled(sums, x, row, at.scales) + at.bias;
    store(matrix.result + row * matrix.outer + at.begin, at.mask, y);
  });
}

void linear_task(void *context, std::size_t index) {
  const auto &task = *static_cast<LinearTask *>(context);
  const Matrix *matrix = task.matrices;
  for (std::size_t tasks; index >= (tasks = blocks(matrix->outer, kVectorsOfTask * kWidth));
       ++matrix) {
    index -= tasks;
  }
  std::size_t vector = index * kVectorsOfTask;
  const std::size_t vectors = blocks(matrix->outer, kWidth);
  const std::size_t end = vector + kVectorsOfTask < vectors ? vector + kVectorsOfTask : vectors;
  for (; vector + kTogether <= end; vector += kTogether) {
    linear_panel<kTogether>(task.x, *matrix, vector);
  }
  if (vector < end) linear_panel<1>(task.x, *matrix, vector);
}

struct GatedTask {
  Rounded x;
  const Matrix *gate, *up;
  Activation activation;
  float *result;
};

// The gate's and the up matrix's vector of the same columns are the two of a tile.
void gated_vector(const GatedTask &task, std::size_t vector) {
  const Rounded &x = task.x;
  const Columns gate(*task.gate, vector, x.inner), up(*task.up, vector, x.inner);
  const std::uint8_t *const packed[2] = {gate.packed, up.packed};
  Floats open = zeros();
  panel<2>(x, packed, [&](std::size_t row, int c, Wholes sums) {
    if (c == 0) {
      open = activate(task.activation, scaled(sums, x, row, gate.scales));
      return;
    }
    const Floats y = open * scaled(sums, x, row, up.scales);
    store(task.result + row * task.gate->outer + up.begin, up.mask, y);
  });
}

void gated_task(void *context, std::size_t block) {
  const auto &task = *static_cast<GatedTask *>(context);
  for (std::size_t vector = block * kParts;
       vector < (block + 1) * kParts && vector * kWidth < task.gate->outer; ++vector) {
    gated_vector(task, vector);
  }
}

}  // namespace

std::size_t linear_scratch_bytes(std::size_t rows, std::size_t inner) {
  return aligned(rows * inner * sizeof(Byte)) + 2 * aligned(rows * sizeof(float)) + 64;
}

void linear(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
            const Matrix *matrices, std::size_t count, void *scratch) {
  LinearTask task{round_all(parallel, x, rows, inner, scratch), matrices};
  std::size_t tasks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    tasks += blocks(matrices[i].outer, kVectorsOfTask * kWidth);
  }
  parallel.run(parallel.handle, linear_task, tasks, &task);
}

void gated(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
           const Matrix &gate, const Matrix &up, Activation activation, float *result,
           void *scratch) {
  GatedTask task{round_all(parallel, x, rows, inner, scratch), &gate, &up, activation, result};
  parallel.run(parallel.handle, gated_task, blocks(gate.outer, kLanes), &task);
}

}  // namespace appliance::APPLIANCE_VECTORS
