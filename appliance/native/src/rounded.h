// Rows of floats as rows of 8-bit integers, each by its own peak.
#pragma once

#include "vectors.h"

namespace appliance::APPLIANCE_VECTORS {

constexpr float kSmallestPeak = 1e-30f;
constexpr std::size_t kRowsOfTask = 16;
constexpr std::size_t kWorthTasks = 1 << 15;  // elements; fewer are rounded where we are

// Rows as integers: x[r][k] is about integers[r][k] * steps[r].
struct Rounded {
  Byte *integers;
  float *steps;
  std::int32_t *offsets;  // 128 * the sum of the row's integers
  std::size_t rows, inner;
};

inline void round_row(const float *x, std::size_t inner, Byte *integers, float *step,
                      std::int32_t *offset) {
  Floats peaks = zeros();
  for (std::size_t k = 0; k < inner; k += kWidth) {
    peaks = larger(peaks, magnitude(load(first(inner - k), x + k)));
  }
  const float most = largest(peaks);
  const float peak = most > kSmallestPeak ? most : kSmallestPeak;
  const Floats factor = all(127.0f / peak);
  Wholes sum = nothing();
  for (std::size_t k = 0; k < inner; k += kWidth) {
    const Mask mask = first(inner - k);
    const Wholes whole = rounded(load(mask, x + k) * factor);
    sum = plus(sum, whole);
    store_row(integers + k, mask, whole);
  }
  *step = peak / 127.0f;
  *offset = 128 * total(sum);
}

struct RoundTask {
  const float *x;
  Rounded rounded;
};

inline void round_rows(void *context, std::size_t index) {
  const auto &task = *static_cast<RoundTask *>(context);
  const Rounded &to = task.rounded;
  const std::size_t begin = index * kRowsOfTask;
  const std::size_t end = begin + kRowsOfTask < to.rows ? begin + kRowsOfTask : to.rows;
  for (std::size_t r = begin; r < end; ++r) {
    round_row(task.x + r * to.inner, to.inner, to.integers + r * to.inner, to.steps + r,
              to.offsets + r);
  }
}

inline Rounded round_all(const Parallel &parallel, const float *x, std::size_t rows, std::size_t inner,
                  void *scratch) {
  Scratch memory(scratch);
  RoundTask task{x, {memory.take<Byte>(rows * inner), memory.take<float>(rows),
                     memory.take<std::int32_t>(rows), rows, inner}};
  const std::size_t tasks = blocks(rows, kRowsOfTask);
  if (rows * inner >= kWorthTasks) {
    parallel.run(parallel.handle, round_rows, tasks, &task);
  } else {
    for (std::size_t index = 0; index < tasks; ++index) round_rows(&task, index);
  }
  return task.rounded;
}

// The rows after `index` tasks that one task has.
inline std::size_t last_row(std::size_t index, std::size_t rows) {
  const std::size_t end = (index + 1) * kRowsOfTask;
  return end < rows ? end : rows;
}

}  // namespace appliance::APPLIANCE_VECTORS
