// Linear layers of 4-bit and 8-bit weights in blocks over rows that are rounded to 8 bits.
//
// One task is a panel of columns for all rows, as in linear.cpp. Weights are the unsigned operand of
// the products, so nothing is subtracted but zero points: a block's is taken times the sum of the
// row's integers there, which is counted once a row.
#include "rounded.h"
#include "tile.h"

namespace appliance::APPLIANCE_VECTORS {
namespace {

constexpr std::size_t kVectorsOfTask = 2 * kParts;
constexpr std::size_t kUnpacked = 1024;  // weights of a row that are kept as bytes; longer blocks: none

// Rows that share what is unpacked, and fewer, which are as fast without.
constexpr std::size_t rows_of_group(int vectors) { return 4 * most_rows(vectors); }
constexpr std::size_t worth_groups(int vectors) { return 2 * most_rows(vectors); }

struct Rows {
  Rounded x;
  float *sums;  // [rows, runs], of the integers of each block; exact
  std::size_t block, runs;
};

void sum_rows(void *context, std::size_t index) {
  const Rows &to = *static_cast<Rows *>(context);
  const std::size_t begin = index * kRowsOfTask * to.runs;
  const std::size_t end = last_row(index, to.x.rows) * to.runs;
  for (std::size_t i = begin; i < end; ++i) {
    Wholes sum = nothing();
    for (std::size_t k = 0; k < to.block; k += kWidth) {
      sum = plus(sum, wholes_of_row(to.x.integers + i * to.block + k));
    }
    to.sums[i] = static_cast<float>(total(sum));
  }
}

Rows round_blocks(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                  std::size_t block, void *scratch) {
  Scratch memory(scratch);
  const std::size_t runs = inner / block;
  Rows made{{}, memory.take<float>(rows * runs), block, runs};
  made.x = round_all(parallel, x, rows, inner, memory.take<char>(0));
  const std::size_t tasks = blocks(rows, kRowsOfTask);
  if (rows * inner >= kWorthTasks) {
    parallel.run(parallel.handle, sum_rows, tasks, &made);
  } else {
    for (std::size_t index = 0; index < tasks; ++index) sum_rows(&made, index);
  }
  return made;
}

// A vector's columns of a matrix.
struct Panel {
  Panel(const BlockMatrix &matrix, std::size_t vector, std::size_t runs, int bits)
      : begin(vector * kWidth),
        middle(all(static_cast<float>(1 << (bits - 1)))),
        bias(matrix.bias == nullptr ? zeros() : load(matrix.bias + begin)) {
    const std::size_t block = vector / kParts * kLanes, within = vector % kParts * kWidth;
    integers = matrix.integers + block * runs * matrix.block * bits / 8 + within * kDepth;
    scales = matrix.scales + block * runs + within;
    zero_points = matrix.zeros == nullptr ? nullptr : matrix.zeros + block * runs + within;
  }

  Floats scale(std::size_t run) const { return load(scales + run * kLanes); }

  Floats zero(std::size_t run) const {
    return zero_points == nullptr ? middle : reals(zero_points + run * kLanes);
  }

  std::size_t begin;
  const std::uint8_t *integers;
  const float *scales;
  const std::uint8_t *zero_points;
  Floats middle, bias;
};

// total + scale * (sums - zero * the row's own sum): the same operations however many rows there are.
inline Floats added(Floats total, Wholes sums, float own, Floats zero, Floats scale) {
  return fma(fnma(zero, all(own), real(sums)), scale, total);
}

// `finish(row, c, y)` gets the results of each row and panel, but for their bias.
template <int Bits, int R, int C, typename Finish>
inline void tile(const Rows &of, std::size_t row, const Panel *const (&panels)[C],
                 const Finish &finish) {
  const std::size_t bytes = of.block * Bits / 8 * kLanes;
  const Byte *x = of.x.integers + row * of.x.inner;
  const float *own = of.sums + row * of.runs;
  Floats totals[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) totals[r][c] = zeros();
  }
  for (std::size_t run = 0; run < of.runs; ++run) {
    Wholes sums[R][C];
    if constexpr (R == 1 && C == 1) {
      sums[0][0] = product<Bits>(x + run * of.block, panels[0]->integers + run * bytes, of.block);
    } else {
      const std::uint8_t *packed[C];
      for (int c = 0; c < C; ++c) packed[c] = panels[c]->integers + run * bytes;
      products<Bits, R, C>(x + run * of.block, of.x.inner, packed, of.block, sums);
    }
    for (int c = 0; c < C; ++c) {
      const Floats zero = panels[c]->zero(run), scale = panels[c]->scale(run);
      for (int r = 0; r < R; ++r) {
        totals[r][c] = added(totals[r][c], sums[r][c], own[r * of.runs + run], zero, scale);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const Floats step = all(of.x.steps[row + r]);
    for (int c = 0; c < C; ++c) finish(row + r, c, totals[r][c] * step);
  }
}

// `rows` rows as one tile: of R, or of fewer.
template <int Bits, int C, int R, typename Finish>
void tile_of(std::size_t rows, const Rows &of, std::size_t row, const Panel *const (&panels)[C],
             const Finish &finish) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<Bits, C, R - 1>(rows, of, row, panels, finish);
    tile<Bits, R, C>(of, row, panels, finish);
  } else {
    // Panel by panel: one row waits for memory, which is read in its order.
    for (int c = 0; c < C; ++c) {
      const Panel *const one[1] = {panels[c]};
      tile<Bits, 1, 1>(of, row, one, [&](std::size_t at, int, Floats y) { finish(at, c, y); });
    }
  }
}

// Some rows' sums so far, and some blocks of each panel as bytes.
template <int C>
struct Group {
  Floats totals[rows_of_group(C)][C];
  alignas(64) std::uint8_t columns[C][kUnpacked * kLanes];
};

// Integers of 4 bits as bytes; `count` is of weights of a row.
inline void unpack_steps(const std::uint8_t *packed, std::size_t count, std::uint8_t *columns) {
  for (std::size_t at = 0; at < count * kLanes; at += 2 * kStep, packed += kStep) {
    unpack(packed, columns + at, columns + at + kStep);
  }
}

// Blocks from `begin` to `end`, which the group has as bytes.
struct Runs {
  std::size_t begin, end;
};

// Adds those blocks of `rows` rows, R or fewer, from `row` on; `totals` are these rows'.
template <int C, int R>
void add_runs(std::size_t rows, const Rows &of, std::size_t row, const Panel *const (&panels)[C],
              Runs runs, const Group<C> &group, Floats (*totals)[C]) {
  if constexpr (R > 1) {
    if (rows < R) return add_runs<C, R - 1>(rows, of, row, panels, runs, group, totals);
  }
  for (std::size_t run = runs.begin; run < runs.end; ++run) {
    const std::uint8_t *columns[C];
    for (int c = 0; c < C; ++c) {
      columns[c] = group.columns[c] + (run - runs.begin) * of.block * kLanes;
    }
    Wholes sums[R][C];
    const Byte *x = of.x.integers + row * of.x.inner + run * of.block;
    products<8, R, C>(x, of.x.inner, columns, of.block, sums);
    const float *own = of.sums + row * of.runs + run;
    for (int c = 0; c < C; ++c) {
      const Floats zero = panels[c]->zero(run), scale = panels[c]->scale(run);
      for (int r = 0; r < R; ++r) {
        totals[r][c] = added(totals[r][c], sums[r][c], own[r * of.runs], zero, scale);
      }
    }
  }
}

// `rows` rows from `begin` on, some blocks at a time.
template <int C, typename Finish>
void group_of(std::size_t rows, const Rows &of, std::size_t begin,
              const Panel *const (&panels)[C], const Finish &finish) {
  Group<C> group;
  for (std::size_t row = 0; row < rows; ++row) {
    for (int c = 0; c < C; ++c) group.totals[row][c] = zeros();
  }
  const std::size_t together = kUnpacked / of.block, tiles = blocks(rows, most_rows(C));
  Runs runs{0, 0};
  while ((runs.begin = runs.end) < of.runs) {
    runs.end = runs.begin + together < of.runs ? runs.begin + together : of.runs;
    const std::size_t first = runs.begin * of.block, count = (runs.end - runs.begin) * of.block;
    for (int c = 0; c < C; ++c) {
      unpack_steps(panels[c]->integers + first / 2 * kLanes, count, group.columns[c]);
    }
    for (std::size_t i = 0, row = 0; i < tiles; ++i) {
      const std::size_t high = blocks(rows - row, tiles - i);
      add_runs<C, most_rows(C)>(high, of, begin + row, panels, runs, group, group.totals + row);
      row += high;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const Floats step = all(of.x.steps[begin + row]);
    for (int c = 0; c < C; ++c) finish(begin + row, c, group.totals[row][c] * step);
  }
}

// All rows, in tiles or groups about as high as each other.
template <int Bits, int C, typename Finish>
void all_rows(const Rows &of, const Panel *const (&panels)[C], const Finish &finish) {
  const bool grouped = kUnpacksOnce && Bits == 4 && of.x.rows > worth_groups(C) &&
                       of.block <= kUnpacked;
  const std::size_t parts = blocks(of.x.rows, grouped ? rows_of_group(C) : most_rows(C));
  for (std::size_t i = 0, row = 0; i < parts; ++i) {
    const std::size_t rows = blocks(of.x.rows - row, parts - i);
    if (grouped) {
      group_of<C>(rows, of, row, panels, finish);
    } else {
      tile_of<Bits, C, most_rows(C)>(rows, of, row, panels, finish);
    }
    row += rows;
  }
}

struct LinearTask {
  Rows of;
  const BlockMatrix *matrices;
};

template <int Bits, int C>
void linear_panels(const Rows &of, const BlockMatrix &matrix, std::size_t vector) {
  const Panel one(matrix, vector, of.runs, Bits), last(matrix, vector + C - 1, of.runs, Bits);
  const Panel *panels[C];
  panels[0] = &one;
  panels[C - 1] = &last;
  const Panel *const(&fixed)[C] = panels;
  all_rows<Bits, C>(of, fixed, [&](std::size_t row, int c, Floats y) {
    const Panel &at = *panels[c];
    store(matrix.result + row * matrix.outer + at.begin, y + at.bias);
  });
}

template <int Bits>
void linear_task(void *context, std::size_t index) {
  const auto &task = *static_cast<LinearTask *>(context);
  const BlockMatrix *matrix = task.matrices;
  for (std::size_t tasks; index >= (tasks = blocks(matrix->outer, kVectorsOfTask * kWidth));
       ++matrix) {
    index -= tasks;
  }
  std::size_t vector = index * kVectorsOfTask;
  const std::size_t vectors = matrix->outer / kWidth;
  const std::size_t end = vector + kVectorsOfTask < vectors ? vector + kVectorsOfTask : vectors;
  for (; vector + kTogether <= end; vector += kTogether) {
    linear_panels<Bits, kTogether>(task.of, *matrix, vector);
  }
  if (vector < end) linear_panels<Bits, 1>(task.of, *matrix, vector);
}

struct GatedTask {
  Rows of;
  const BlockMatrix *gate, *up;
  Activation activation;
  float *result;
};

template <int Bits>
void gated_vector(const GatedTask &task, std::size_t vector) {
  const Panel gate(*task.gate, vector, task.of.runs, Bits);
  const Panel up(*task.up, vector, task.of.runs, Bits);
  const Panel *const panels[2] = {&gate, &up};
  Floats open = zeros();
  all_rows<Bits, 2>(task.of, panels, [&](std::size_t row, int c, Floats y) {
    if (c == 0) {
      open = activate(task.activation, y);
      return;
    }
    store(task.result + row * task.gate->outer + gate.begin, open * y);
  });
}

template <int Bits>
void gated_task(void *context, std::size_t block) {
  const auto &task = *static_cast<GatedTask *>(context);
  for (std::size_t part = 0; part < kParts; ++part) {
    gated_vector<Bits>(task, block * kParts + part);
  }
}

}  // namespace

std::size_t block_scratch_bytes(std::size_t rows, std::size_t inner, std::size_t block) {
  return linear_scratch_bytes(rows, inner) + aligned(rows * (inner / block) * sizeof(float)) + 64;
}

void block_linear(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                  int bits, const BlockMatrix *matrices, std::size_t count, void *scratch) {
  LinearTask task{round_blocks(parallel, x, rows, inner, matrices->block, scratch), matrices};
  std::size_t tasks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    tasks += blocks(matrices[i].outer, kVectorsOfTask * kWidth);
  }
  parallel.run(parallel.handle, bits == 4 ? linear_task<4> : linear_task<8>, tasks, &task);
}

void block_gated(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                 int bits, const BlockMatrix &gate, const BlockMatrix &up, Activation activation,
                 float *result, void *scratch) {
  GatedTask task{round_blocks(parallel, x, rows, inner, gate.block, scratch), &gate, &up,
                 activation, result};
  parallel.run(parallel.handle, bits == 4 ? gated_task<4> : gated_task<8>, gate.outer / kLanes,
               &task);
}

}  // namespace appliance::APPLIANCE_VECTORS
