// Attention of new tokens over slots of 8-bit keys and values.
//
// Two rounds of tasks. The first turns, rounds and stores what is new. In the second a task is up
// to 24 rows (tokens times the query heads of one key head) of one sequence; it goes through the
// keys in blocks of 64, with the softmax kept up to date as in Milakov and Gimelshein, Online
// normalizer calculation for softmax (2018).
//
// Blocks begin at multiples of 64 positions and a key that a row may not see contributes exactly
// nothing, so a row's result does not depend on which rows are computed with it.
#include "tile.h"

namespace appliance::APPLIANCE_VECTORS {
namespace {

constexpr std::size_t kMostRows = 24;
constexpr int kScored = most_rows(kTogether) / 2;  // rows of one tile; each is two rows of bytes
constexpr int kSummed = 6;                         // rows of one tile of weighted values
constexpr std::size_t kKeys = 64;  // of a block
constexpr std::size_t kVectors = kKeys / kWidth;
constexpr std::size_t kMostHead = 256;
constexpr std::size_t kTokensOfTask = 4;
constexpr int kFine = 128;                 // what the coarse part of a query counts
constexpr float kFinest = 127.0f * kFine;  // steps of a query's peak
constexpr float kNever = -1e30f;

// Queries, each as two rows of bytes: 128 * coarse + fine. The sums are of the integers.
struct Queries {
  Byte *bytes;         // [tokens, heads, 2, head_dim]
  float *steps;        // [tokens, heads]
  std::int32_t *sums;  // [tokens, heads, 2]
};

struct Task {
  const AttentionShape &shape;
  const AttentionInputs &in;
  std::uint8_t *keys;
  std::int8_t *values;
  float *result;
  Queries queries;
  std::size_t *first_token;  // [sequences + 1]
  std::size_t *first_tile;   // [sequences + 1], of one key head
};

// The sequence whose range of `firsts` holds `index`.
std::size_t find(const std::size_t *firsts, std::size_t sequences, std::size_t index) {
  std::size_t low = 0, high = sequences;
  while (high - low > 1) {
    const std::size_t middle = (low + high) / 2;
    (firsts[middle] <= index ? low : high) = middle;
  }
  return low;
}

// x [head_dim] normed if there is a gain, and turned by the angles of its position -> y.
void prepare(const Task &task, const float *x, const float *gain, std::size_t position, float *y) {
  const std::size_t size = task.shape.head_dim, half = task.shape.turned / 2;
  if (gain == nullptr) {
    __builtin_memcpy(y, x, size * sizeof(float));
  } else {
    Floats squares = zeros();
    for (std::size_t d = 0; d < size; d += kWidth) {
      const Floats v = load(x + d);
      squares = fma(v, v, squares);
    }
    const float mean = total(squares) / static_cast<float>(size);
    const Floats factor = all(1.0f / __builtin_sqrtf(mean + task.shape.epsilon));
    for (std::size_t d = 0; d < size; d += kWidth) {
      store(y + d, load(x + d) * factor * load(gain + d));
    }
  }
  const float *cosines = task.in.cosines + position * half;
  const float *sines = task.in.sines + position * half;
  const std::size_t apart = task.shape.interleaved ? 1 : half;
  const std::size_t step = task.shape.interleaved ? 2 : 1;
  for (std::size_t i = 0; i < half; ++i) {
    float &one = y[i * step], &other = y[i * step + apart];
    const float turned = one * cosines[i] - other * sines[i];
    other = one * sines[i] + other * cosines[i];
    one = turned;
  }
}

// y / scales rounded to -128..127.
inline void store_steps(const float *y, const float *scales, std::int8_t *bytes) {
  store_bytes(bytes, rounded(load(y) / load(scales)));
}

void store_key(const Task &task, const float *y, std::size_t slot, std::size_t head,
               std::size_t position) {
  const AttentionShape &shape = task.shape;
  std::uint8_t *block = task.keys + ((slot * shape.kv_heads + head) * shape.capacity +
                                     position / kLanes * kLanes) * shape.head_dim;
  block += position % kLanes * kDepth;
  for (std::size_t d = 0; d < shape.head_dim; d += kWidth) {
    alignas(kWidth) std::int8_t bytes[kWidth];
    store_steps(y + d, task.in.key_scales + head * shape.head_dim + d, bytes);
    for (std::size_t i = 0; i < kWidth; i += kDepth) {
      std::uint32_t four;
      __builtin_memcpy(&four, bytes + i, kDepth);
      four ^= 0x80808080u;  // each plus 128
      __builtin_memcpy(block + (d + i) * kLanes, &four, kDepth);
    }
  }
}

void store_value(const Task &task, const float *x, std::size_t slot, std::size_t head,
                 std::size_t position) {
  const AttentionShape &shape = task.shape;
  std::int8_t *row = task.values +
      ((slot * shape.kv_heads + head) * shape.capacity + position) * shape.head_dim;
  for (std::size_t d = 0; d < shape.head_dim; d += kWidth) {
    store_steps(x + d, task.in.value_scales + head * shape.head_dim + d, row + d);
  }
}

// The query times the keys' scales, in steps of its own peak / 16256.
void store_query(const Task &task, float *y, std::size_t kv_head, std::size_t at) {
  const std::size_t size = task.shape.head_dim;
  const float *scales = task.in.key_scales + kv_head * size;
  Floats peaks = zeros();
  for (std::size_t d = 0; d < size; d += kWidth) {
    const Floats v = load(y + d) * load(scales + d);
    store(y + d, v);
    peaks = larger(peaks, magnitude(v));
  }
  const float most = largest(peaks);
  const float peak = most > 1e-30f ? most : 1e-30f;
  const Floats factor = all(kFinest / peak);
  Wholes coarse_sum = nothing(), fine_sum = nothing();
  Byte *bytes = task.queries.bytes + at * 2 * size;
  for (std::size_t d = 0; d < size; d += kWidth) {
    const Wholes whole = rounded(load(y + d) * factor);
    const Wholes coarse = shifted_right<7>(plus(whole, all(kFine / 2)));
    const Wholes fine = minus(whole, shifted_left<7>(coarse));
    coarse_sum = plus(coarse_sum, coarse);
    fine_sum = plus(fine_sum, fine);
    store_row(bytes + d, first(kWidth), coarse);
    store_row(bytes + size + d, first(kWidth), fine);
  }
  task.queries.steps[at] = peak / kFinest;
  task.queries.sums[2 * at] = total(coarse_sum);
  task.queries.sums[2 * at + 1] = total(fine_sum);
}

void store_token(const Task &task, std::size_t token) {
  const AttentionShape &shape = task.shape;
  const AttentionInputs &in = task.in;
  const std::size_t sequence = find(task.first_token, in.sequences, token);
  const Span &span = in.spans[sequence];
  const std::size_t slot = static_cast<std::size_t>(span.slot);
  const std::size_t position =
      static_cast<std::size_t>(span.start) + token - task.first_token[sequence];
  const std::size_t size = shape.head_dim, group = shape.heads / shape.kv_heads;
  alignas(64) float turned[kMostHead];
  for (std::size_t head = 0; head < shape.kv_heads; ++head) {
    const std::size_t at = (token * shape.kv_heads + head) * size;
    prepare(task, in.key + at, in.key_norm, position, turned);
    store_key(task, turned, slot, head, position);
    store_value(task, in.value + at, slot, head, position);
  }
  for (std::size_t head = 0; head < shape.heads; ++head) {
    const std::size_t at = token * shape.heads + head;
    prepare(task, in.query + at * size, in.query_norm, position, turned);
    store_query(task, turned, head / group, at);
  }
}

void store_tokens(void *context, std::size_t index) {
  const auto &task = *static_cast<Task *>(context);
  const std::size_t begin = index * kTokensOfTask;
  for (std::size_t i = 0; i < kTokensOfTask && begin + i < task.in.tokens; ++i) {
    store_token(task, begin + i);
  }
}

// The rows of one tile: consecutive (token, query head) pairs of one sequence and key head.
struct Rows {
  std::size_t count;
  std::size_t at[kMostRows];        // token * heads + head
  std::size_t begin[kMostRows];     // the first key that it sees
  std::size_t position[kMostRows];  // its own, the last that it sees
  alignas(64) float scores[kMostRows][kKeys];
  alignas(64) float sums[kMostRows][kMostHead];  // of values, weighted
  Floats weights[kMostRows];                     // sums of weights, in parts
  float peaks[kMostRows];
  alignas(64) Byte queries[kMostRows * 2 * kMostHead];
};

// Scores of C vectors of keys from `column` on, for R rows from `row` on.
template <int R, int C>
void score(const Task &task, Rows &rows, std::size_t row, const std::uint8_t *keys,
           std::size_t column) {
  const std::size_t size = task.shape.head_dim;
  const std::uint8_t *packed[C];
  for (int c = 0; c < C; ++c) {
    const std::size_t key = column + c * kWidth;
    packed[c] = keys + key / kLanes * kLanes * size + key % kLanes * kDepth;
  }
  Wholes sums[2 * R][C];
  products<8, 2 * R, C>(rows.queries + row * 2 * size, size, packed, size, sums);
  for (int r = 0; r < R; ++r) {
    const std::size_t at = rows.at[row + r];
    const std::int32_t *own = task.queries.sums + 2 * at;
    const Floats factor = all(task.queries.steps[at] * task.shape.scale);
    for (int c = 0; c < C; ++c) {
      const Wholes coarse = minus(sums[2 * r][c], all(128 * own[0]));
      const Wholes fine = minus(sums[2 * r + 1][c], all(128 * own[1]));
      const Floats whole = fma(real(coarse), all(static_cast<float>(kFine)), real(fine));
      store(&rows.scores[row + r][column + c * kWidth], whole * factor);
    }
  }
}

// `count` rows as one tile: of R, or of fewer.
template <int C, int R>
void score_tile(std::size_t count, const Task &task, Rows &rows, std::size_t row,
                const std::uint8_t *keys, std::size_t column) {
  if constexpr (R > 1) {
    if (count < R) return score_tile<C, R - 1>(count, task, rows, row, keys, column);
  }
  score<R, C>(task, rows, row, keys, column);
}

// `keys` are those of the whole block.
template <int C>
void score_rows(const Task &task, Rows &rows, const std::uint8_t *keys, std::size_t column) {
  for (std::size_t row = 0; row < rows.count; row += kScored) {
    score_tile<C, kScored>(rows.count - row, task, rows, row, keys, column);
  }
}

// Scores of a block of keys become weights; what was summed so far is rescaled to the new peak.
void weigh(const Task &task, Rows &rows, std::size_t row, std::size_t key, std::size_t held) {
  const AttentionShape &shape = task.shape;
  float *scores = rows.scores[row];
  Floats parts[kVectors];
  Mask seen[kVectors];
  Floats peaks = all(kNever);
  for (std::size_t c = 0; c < kVectors; ++c) {
    const std::size_t at = key + c * kWidth;
    const std::size_t end = rows.position[row] + 1, begin = rows.begin[row];
    seen[c] = end <= at || c * kWidth >= held ? Mask(0) : first(end - at);
    if (begin > at) seen[c] &= static_cast<Mask>(~first(begin - at));
    if (seen[c] == 0) continue;
    Floats x = load(scores + c * kWidth);
    if (shape.softcap > 0) x = softcap(x, shape.softcap);
    parts[c] = x * all(kLog2E);
    peaks = larger(seen[c], peaks, parts[c]);
  }
  const float before = rows.peaks[row], block = largest(peaks);
  const float peak = block > before ? block : before;
  Floats sum = rows.weights[row];
  if (peak != before) {
    const Floats factor = exp2(all(before - peak));
    sum = sum * factor;
    for (std::size_t d = 0; d < shape.head_dim; d += kWidth) {
      float *at = &rows.sums[row][d];
      store(at, load(at) * factor);
    }
    rows.peaks[row] = peak;
  }
  for (std::size_t c = 0; c < kVectors; ++c) {
    Floats weight = zeros();
    if (seen[c] != 0) {
      weight = only(seen[c], exp2(parts[c] - all(peak)));
      sum = sum + weight;
    }
    store(scores + c * kWidth, weight);
  }
  rows.weights[row] = sum;
}

// Adds R rows' weighted values of `count` keys, C vectors of each from `column` on.
template <int R, int C, typename Value>
inline void add_values(Rows &rows, std::size_t row, const Value *values, std::size_t stride,
                       std::size_t count, std::size_t column) {
  Floats sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sums[r][c] = load(&rows.sums[row + r][column + c * kWidth]);
  }
  for (std::size_t key = 0; key < count; ++key) {
    Floats value[C];
    for (int c = 0; c < C; ++c) value[c] = reals(values + key * stride + column + c * kWidth);
    for (int r = 0; r < R; ++r) {
      const Floats weight = all(rows.scores[row + r][key]);
      for (int c = 0; c < C; ++c) sums[r][c] = fma(weight, value[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) store(&rows.sums[row + r][column + c * kWidth], sums[r][c]);
  }
}

template <int R, typename Value>
void add_columns(Rows &rows, std::size_t row, const Value *values, std::size_t size,
                 std::size_t count) {
  std::size_t column = 0;
  for (; column + kValuesTogether * kWidth <= size; column += kValuesTogether * kWidth) {
    add_values<R, kValuesTogether>(rows, row, values, size, count, column);
  }
  for (; column < size; column += kWidth) {
    add_values<R, 1>(rows, row, values, size, count, column);
  }
}

// `count` rows as one tile: of R, or of fewer.
template <int R, typename Value>
void add_tile(std::size_t count, Rows &rows, std::size_t row, const Value *values,
              std::size_t size, std::size_t keys) {
  if constexpr (R > 1) {
    if (count < R) return add_tile<R - 1>(count, rows, row, values, size, keys);
  }
  add_columns<R>(rows, row, values, size, keys);
}

template <typename Value>
void add_rows(Rows &rows, const Value *values, std::size_t size, std::size_t count) {
  for (std::size_t row = 0; row < rows.count; row += kSummed) {
    add_tile<kSummed>(rows.count - row, rows, row, values, size, count);
  }
}

void gather_rows(const Task &task, Rows &rows, std::size_t sequence, std::size_t head,
                 std::size_t tile) {
  const AttentionShape &shape = task.shape;
  const Span &span = task.in.spans[sequence];
  const std::size_t group = shape.heads / shape.kv_heads, size = shape.head_dim;
  const std::size_t every = static_cast<std::size_t>(span.count) * group;
  const std::size_t begin = tile * kMostRows;
  rows.count = every - begin < kMostRows ? every - begin : kMostRows;
  for (std::size_t r = 0; r < rows.count; ++r) {
    const std::size_t token = (begin + r) / group;
    const std::size_t query_head = head * group + (begin + r) % group;
    const std::size_t position = static_cast<std::size_t>(span.start) + token;
    rows.at[r] = (task.first_token[sequence] + token) * shape.heads + query_head;
    rows.position[r] = position;
    rows.begin[r] =
        shape.window != 0 && position >= shape.window ? position + 1 - shape.window : 0;
    __builtin_memcpy(rows.queries + r * 2 * size, task.queries.bytes + rows.at[r] * 2 * size,
                     2 * size * sizeof(Byte));
    rows.peaks[r] = kNever;
    rows.weights[r] = zeros();
    if (task.in.sinks != nullptr) {
      rows.peaks[r] = task.in.sinks[query_head] * kLog2E;
      rows.weights[r] = only(1, all(1.0f));
    }
    __builtin_memset(rows.sums[r], 0, size * sizeof(float));
  }
}

// Asks for `bytes` from `at` on, which are needed soon.
inline void prefetch(const void *at, std::size_t bytes) {
  const char *line = static_cast<const char *>(at);
  for (std::size_t i = 0; i < bytes; i += 64) _mm_prefetch(line + i, _MM_HINT_T1);
}

void attend(void *context, std::size_t index) {
  const auto &task = *static_cast<Task *>(context);
  const AttentionShape &shape = task.shape;
  const std::size_t tiles = task.first_tile[task.in.sequences];
  const std::size_t head = index / tiles;
  const std::size_t sequence = find(task.first_tile, task.in.sequences, index % tiles);
  Rows rows;
  gather_rows(task, rows, sequence, head, index % tiles - task.first_tile[sequence]);

  const std::size_t size = shape.head_dim;
  const std::size_t slot = static_cast<std::size_t>(task.in.spans[sequence].slot);
  const std::size_t base = (slot * shape.kv_heads + head) * shape.capacity;
  const std::size_t end = rows.position[rows.count - 1] + 1;
  alignas(64) float block[kKeys * kMostHead];
  for (std::size_t key = rows.begin[0] / kKeys * kKeys; key < end; key += kKeys) {
    const std::size_t count = end - key < kKeys ? end - key : kKeys;
    const std::uint8_t *keys = task.keys + (base + key) * size;
    const std::size_t held = blocks(count, kLanes) * kLanes;
    if (key + kKeys < end) {
      prefetch(keys + kKeys * size, kKeys * size);
      prefetch(task.values + (base + key + kKeys) * size, kKeys * size);
    }
    std::size_t column = 0;
    for (; column + kTogether * kWidth <= held; column += kTogether * kWidth) {
      score_rows<kTogether>(task, rows, keys, column);
    }
    if (column < held) score_rows<1>(task, rows, keys, column);
    for (std::size_t row = 0; row < rows.count; ++row) weigh(task, rows, row, key, held);
    const std::int8_t *values = task.values + (base + key) * size;
    if (rows.count <= kSummed) {
      add_rows(rows, values, size, count);
      continue;
    }
    for (std::size_t i = 0; i < count * size; i += kWidth) store(block + i, reals(values + i));
    add_rows(rows, static_cast<const float *>(block), size, count);
  }
  const float *scales = task.in.value_scales + head * size;
  for (std::size_t row = 0; row < rows.count; ++row) {
    const Floats share = all(1.0f / total(rows.weights[row]));
    float *result = task.result + rows.at[row] * size;
    for (std::size_t d = 0; d < size; d += kWidth) {
      store(result + d, load(&rows.sums[row][d]) * share * load(scales + d));
    }
  }
}

}  // namespace

std::size_t attention_scratch_bytes(const AttentionShape &shape, std::size_t tokens) {
  const std::size_t rows = tokens * shape.heads;
  return aligned(rows * 2 * shape.head_dim * sizeof(Byte)) + aligned(rows * sizeof(float)) +
         aligned(rows * 2 * sizeof(std::int32_t)) +
         2 * aligned((tokens + 1) * sizeof(std::size_t)) + 64;
}

void attention(const Parallel &parallel, const AttentionShape &shape,
               const AttentionInputs &inputs, std::uint8_t *keys, std::int8_t *values,
               float *result, void *scratch) {
  Scratch memory(scratch);
  const std::size_t rows = inputs.tokens * shape.heads;
  const Queries queries{memory.take<Byte>(rows * 2 * shape.head_dim),
                        memory.take<float>(rows), memory.take<std::int32_t>(rows * 2)};
  Task task{shape, inputs, keys, values, result, queries,
            memory.take<std::size_t>(inputs.sequences + 1),
            memory.take<std::size_t>(inputs.sequences + 1)};
  const std::size_t group = shape.heads / shape.kv_heads;
  std::size_t tokens = 0, tiles = 0;
  for (std::size_t i = 0; i < inputs.sequences; ++i) {
    task.first_token[i] = tokens;
    task.first_tile[i] = tiles;
    const std::size_t count = static_cast<std::size_t>(inputs.spans[i].count);
    tokens += count;
    tiles += blocks(count * group, kMostRows);
  }
  task.first_token[inputs.sequences] = tokens;
  task.first_tile[inputs.sequences] = tiles;
  parallel.run(parallel.handle, store_tokens, blocks(tokens, kTokensOfTask), &task);
  parallel.run(parallel.handle, attend, tiles * shape.kv_heads, &task);
}

}  // namespace appliance::APPLIANCE_VECTORS
