// Linear layers of 4-bit and 8-bit weights in blocks over rows that are rounded to 8 bits.
//
// One task is a panel of columns for all rows, as in linear.cpp. Weights are the unsigned operand of
// the products, so nothing is subtracted but zero points: a block's is taken times the sum of the
// row's integers there, which is counted once a row.
#include "rounded.h"

namespace appliance {
namespace {

constexpr std::size_t kMostRows = 12;  // of a tile: with two panels they fill the registers
constexpr std::size_t kPanelsOfTask = 2;
constexpr std::size_t kRowsOfGroup = 4 * kMostRows;  // share what is unpacked
constexpr std::size_t kWorthGroups = 2 * kMostRows;  // fewer rows are as fast without
constexpr std::size_t kUnpacked = 1024;              // weights of a row; longer blocks: no groups
constexpr std::size_t kVector = kLanes * kDepth;  // bytes

// Weights of a row in one vector of sixteen rows.
constexpr std::size_t depth(int bits) { return 32 / static_cast<std::size_t>(bits); }

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
    __m512i sum = _mm512_setzero_si512();
    for (std::size_t k = 0; k < to.block; k += kLanes) {
      const auto *bytes = reinterpret_cast<const __m128i *>(to.x.integers + i * to.block + k);
      sum = _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
    }
    to.sums[i] = static_cast<float>(_mm512_reduce_add_epi32(sum));
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

// Sixteen columns of a matrix.
struct Panel {
  Panel(const BlockMatrix &matrix, std::size_t index, std::size_t runs, int bits)
      : begin(index * kLanes),
        integers(matrix.integers + begin * runs * matrix.block * bits / 8),
        scales(matrix.scales + begin * runs),
        zeros(matrix.zeros == nullptr ? nullptr : matrix.zeros + begin * runs),
        middle(_mm512_set1_ps(static_cast<float>(1 << (bits - 1)))),
        bias(matrix.bias == nullptr ? _mm512_setzero_ps()
                                    : _mm512_loadu_ps(matrix.bias + begin)) {}

  __m512 scale(std::size_t run) const { return _mm512_loadu_ps(scales + run * kLanes); }

  __m512 zero(std::size_t run) const {
    if (zeros == nullptr) return middle;
    const auto *bytes = reinterpret_cast<const __m128i *>(zeros + run * kLanes);
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)));
  }

  std::size_t begin;
  const std::uint8_t *integers;
  const float *scales;
  const std::uint8_t *zeros;
  __m512 middle, bias;
};

inline __m512i four(const std::int8_t *row) {
  std::int32_t bytes;
  __builtin_memcpy(&bytes, row, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}

inline __m512i lower(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }

inline __m512i upper(__m512i bytes) { return lower(_mm512_srli_epi16(bytes, 4)); }

// What one row and one panel's block give, with sums apart so that none waits for the one before.
template <int Bits>
inline __m512i product(const std::int8_t *row, const std::uint8_t *packed, std::size_t block) {
  constexpr int kApart = 4;
  __m512i sums[kApart];
  for (int i = 0; i < kApart; ++i) sums[i] = _mm512_setzero_si512();
  for (std::size_t k = 0; k < block; k += kApart * kDepth) {
    for (int i = 0; i < kApart; i += Bits == 4 ? 2 : 1) {
      const std::int8_t *at = row + k + i * kDepth;
      const std::uint8_t *next = packed + (k + i * kDepth) / depth(Bits) * kVector;
      const __m512i bytes = _mm512_loadu_si512(next);
      _mm_prefetch(reinterpret_cast<const char *>(next + 4096), _MM_HINT_T0);
      if constexpr (Bits == 4) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], lower(bytes), four(at));
        sums[i + 1] = _mm512_dpbusd_epi32(sums[i + 1], upper(bytes), four(at + kDepth));
      } else {
        sums[i] = _mm512_dpbusd_epi32(sums[i], bytes, four(at));
      }
    }
  }
  return _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]),
                          _mm512_add_epi32(sums[2], sums[3]));
}

// The same of R rows, `stride` bytes from one to the next, and C panels: integers are unpacked once.
template <int Bits, int R, int C>
inline void products(const std::int8_t *rows, std::size_t stride,
                     const std::uint8_t *const (&packed)[C], std::size_t block,
                     __m512i (&sums)[R][C]) {
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_setzero_si512();
  }
  for (std::size_t k = 0; k < block; k += depth(Bits)) {
    __m512i bytes[C], columns[C];
    for (int c = 0; c < C; ++c) {
      bytes[c] = _mm512_loadu_si512(packed[c] + k / depth(Bits) * kVector);
      columns[c] = Bits == 4 ? lower(bytes[c]) : bytes[c];
    }
    for (int r = 0; r < R; ++r) {
      const __m512i spread = four(rows + r * stride + k);
      for (int c = 0; c < C; ++c) {
        sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], columns[c], spread);
      }
    }
    if constexpr (Bits == 4) {
      for (int c = 0; c < C; ++c) columns[c] = upper(bytes[c]);
      for (int r = 0; r < R; ++r) {
        const __m512i spread = four(rows + r * stride + k + kDepth);
        for (int c = 0; c < C; ++c) {
          sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], columns[c], spread);
        }
      }
    }
  }
}

// total + scale * (sums - zero * the row's own sum): the same operations however many rows there are.
inline __m512 added(__m512 total, __m512i sums, float own, __m512 zero, __m512 scale) {
  const __m512 exact = _mm512_fnmadd_ps(zero, _mm512_set1_ps(own), _mm512_cvtepi32_ps(sums));
  return _mm512_fmadd_ps(exact, scale, total);
}

// `finish(row, c, y)` gets 16 results of each row and panel, but for their bias.
template <int Bits, int R, int C, typename Finish>
inline void tile(const Rows &of, std::size_t row, const Panel *const (&panels)[C],
                 const Finish &finish) {
  const std::size_t bytes = of.block * Bits / 8 * kLanes;
  const std::int8_t *x = of.x.integers + row * of.x.inner;
  const float *own = of.sums + row * of.runs;
  __m512 totals[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) totals[r][c] = _mm512_setzero_ps();
  }
  for (std::size_t run = 0; run < of.runs; ++run) {
    __m512i sums[R][C];
    if constexpr (R == 1 && C == 1) {
      sums[0][0] = product<Bits>(x + run * of.block, panels[0]->integers + run * bytes, of.block);
    } else {
      const std::uint8_t *packed[C];
      for (int c = 0; c < C; ++c) packed[c] = panels[c]->integers + run * bytes;
      products<Bits, R, C>(x + run * of.block, of.x.inner, packed, of.block, sums);
    }
    for (int c = 0; c < C; ++c) {
      const __m512 zero = panels[c]->zero(run), scale = panels[c]->scale(run);
      for (int r = 0; r < R; ++r) {
        totals[r][c] = added(totals[r][c], sums[r][c], own[r * of.runs + run], zero, scale);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const __m512 step = _mm512_set1_ps(of.x.steps[row + r]);
    for (int c = 0; c < C; ++c) finish(row + r, c, _mm512_mul_ps(totals[r][c], step));
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
      tile<Bits, 1, 1>(of, row, one, [&](std::size_t at, int, __m512 y) { finish(at, c, y); });
    }
  }
}

// Some rows' sums so far, and some blocks of each panel as bytes.
template <int C>
struct Group {
  __m512 totals[kRowsOfGroup][C];
  alignas(64) std::uint8_t columns[C][kUnpacked * kLanes];
};

// Integers of 4 bits as bytes; `count` is of weights of a row.
inline void unpack(const std::uint8_t *packed, std::size_t count, std::uint8_t *columns) {
  for (std::size_t at = 0; at < count * kLanes; at += 2 * kVector, packed += kVector) {
    const __m512i bytes = _mm512_loadu_si512(packed);
    _mm512_store_si512(columns + at, lower(bytes));
    _mm512_store_si512(columns + at + kVector, upper(bytes));
  }
}

// Blocks from `begin` to `end`, which the group has as bytes.
struct Runs {
  std::size_t begin, end;
};

// Adds those blocks of `rows` rows, R or fewer, from `row` on; `totals` are these rows'.
template <int C, int R>
void add_runs(std::size_t rows, const Rows &of, std::size_t row, const Panel *const (&panels)[C],
              Runs runs, const Group<C> &group, __m512 (*totals)[C]) {
  if constexpr (R > 1) {
    if (rows < R) return add_runs<C, R - 1>(rows, of, row, panels, runs, group, totals);
  }
  for (std::size_t run = runs.begin; run < runs.end; ++run) {
    const std::uint8_t *columns[C];
    for (int c = 0; c < C; ++c) {
      columns[c] = group.columns[c] + (run - runs.begin) * of.block * kLanes;
    }
    __m512i sums[R][C];
    const std::int8_t *x = of.x.integers + row * of.x.inner + run * of.block;
    products<8, R, C>(x, of.x.inner, columns, of.block, sums);
    const float *own = of.sums + row * of.runs + run;
    for (int c = 0; c < C; ++c) {
      const __m512 zero = panels[c]->zero(run), scale = panels[c]->scale(run);
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
    for (int c = 0; c < C; ++c) group.totals[row][c] = _mm512_setzero_ps();
  }
  const std::size_t together = kUnpacked / of.block, tiles = blocks(rows, kMostRows);
  Runs runs{0, 0};
  while ((runs.begin = runs.end) < of.runs) {
    runs.end = runs.begin + together < of.runs ? runs.begin + together : of.runs;
    const std::size_t first = runs.begin * of.block, count = (runs.end - runs.begin) * of.block;
    for (int c = 0; c < C; ++c) {
      unpack(panels[c]->integers + first / 2 * kLanes, count, group.columns[c]);
    }
    for (std::size_t i = 0, row = 0; i < tiles; ++i) {
      const std::size_t high = blocks(rows - row, tiles - i);
      add_runs<C, kMostRows>(high, of, begin + row, panels, runs, group, group.totals + row);
      row += high;
    }
  }
  for (std::size_t row = 0; row < rows; ++row) {
    const __m512 step = _mm512_set1_ps(of.x.steps[begin + row]);
    for (int c = 0; c < C; ++c) finish(begin + row, c, _mm512_mul_ps(group.totals[row][c], step));
  }
}

// All rows, in tiles or groups about as high as each other.
template <int Bits, int C, typename Finish>
void all_rows(const Rows &of, const Panel *const (&panels)[C], const Finish &finish) {
  const bool grouped = Bits == 4 && of.x.rows > kWorthGroups && of.block <= kUnpacked;
  const std::size_t parts = blocks(of.x.rows, grouped ? kRowsOfGroup : kMostRows);
  for (std::size_t i = 0, row = 0; i < parts; ++i) {
    const std::size_t rows = blocks(of.x.rows - row, parts - i);
    if (grouped) {
      group_of<C>(rows, of, row, panels, finish);
    } else {
      tile_of<Bits, C, kMostRows>(rows, of, row, panels, finish);
    }
    row += rows;
  }
}

struct LinearTask {
  Rows of;
  const BlockMatrix *matrices;
};

template <int Bits, int C>
void linear_panels(const Rows &of, const BlockMatrix &matrix, std::size_t index) {
  const Panel first(matrix, index, of.runs, Bits), last(matrix, index + C - 1, of.runs, Bits);
  const Panel *panels[C];
  panels[0] = &first;
  panels[C - 1] = &last;
  const Panel *const(&fixed)[C] = panels;
  all_rows<Bits, C>(of, fixed, [&](std::size_t row, int c, __m512 y) {
    const Panel &at = *panels[c];
    _mm512_storeu_ps(matrix.result + row * matrix.outer + at.begin, _mm512_add_ps(y, at.bias));
  });
}

template <int Bits>
void linear_task(void *context, std::size_t index) {
  const auto &task = *static_cast<LinearTask *>(context);
  const BlockMatrix *matrix = task.matrices;
  for (std::size_t tasks; index >= (tasks = blocks(matrix->outer / kLanes, kPanelsOfTask));
       ++matrix) {
    index -= tasks;
  }
  const std::size_t panel = index * kPanelsOfTask;
  if (panel + 1 < matrix->outer / kLanes) {
    linear_panels<Bits, 2>(task.of, *matrix, panel);
  } else {
    linear_panels<Bits, 1>(task.of, *matrix, panel);
  }
}

struct GatedTask {
  Rows of;
  const BlockMatrix *gate, *up;
  Activation activation;
  float *result;
};

template <int Bits>
void gated_task(void *context, std::size_t index) {
  const auto &task = *static_cast<GatedTask *>(context);
  const Panel gate(*task.gate, index, task.of.runs, Bits);
  const Panel up(*task.up, index, task.of.runs, Bits);
  const Panel *const panels[2] = {&gate, &up};
  __m512 open = _mm512_setzero_ps();
  all_rows<Bits, 2>(task.of, panels, [&](std::size_t row, int c, __m512 y) {
    if (c == 0) {
      open = activate(task.activation, y);
      return;
    }
    _mm512_storeu_ps(task.result + row * task.gate->outer + gate.begin, _mm512_mul_ps(open, y));
  });
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
    tasks += blocks(matrices[i].outer / kLanes, kPanelsOfTask);
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

}  // namespace appliance
