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

namespace appliance {
namespace {

constexpr std::size_t kMostRows = 24;
constexpr std::size_t kGroup = 6;  // rows of one tile of products; each is two rows of bytes
constexpr std::size_t kKeys = 64;  // of a block
constexpr std::size_t kMostHead = 256;
constexpr std::size_t kTokensOfTask = 4;
constexpr int kFine = 128;                 // what the coarse part of a query counts
constexpr float kFinest = 127.0f * kFine;  // steps of a query's peak
constexpr float kNever = -1e30f;

// Queries, each as two rows of bytes: 128 * coarse + fine. The sums are of the integers.
struct Queries {
  std::int8_t *bytes;  // [tokens, heads, 2, head_dim]
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
    __m512 squares = _mm512_setzero_ps();
    for (std::size_t d = 0; d < size; d += kLanes) {
      const __m512 v = _mm512_loadu_ps(x + d);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
    const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + task.shape.epsilon));
    for (std::size_t d = 0; d < size; d += kLanes) {
      const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + d), factor);
      _mm512_storeu_ps(y + d, _mm512_mul_ps(scaled, _mm512_loadu_ps(gain + d)));
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
inline __m128i rounded(const float *y, const float *scales) {
  const __m512 steps = _mm512_div_ps(_mm512_loadu_ps(y), _mm512_loadu_ps(scales));
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(steps));
}

void store_key(const Task &task, const float *y, std::size_t slot, std::size_t head,
               std::size_t position) {
  const AttentionShape &shape = task.shape;
  std::uint8_t *block = task.keys + ((slot * shape.kv_heads + head) * shape.capacity +
                                     position / kLanes * kLanes) * shape.head_dim;
  block += position % kLanes * kDepth;
  for (std::size_t d = 0; d < shape.head_dim; d += kLanes) {
    alignas(16) std::uint8_t bytes[kLanes];
    const __m128i raised = _mm_xor_si128(
        rounded(y + d, task.in.key_scales + head * shape.head_dim + d), _mm_set1_epi8(-128));
    _mm_store_si128(reinterpret_cast<__m128i *>(bytes), raised);
    for (std::size_t i = 0; i < kLanes; i += kDepth) {
      __builtin_memcpy(block + (d + i) * kLanes, bytes + i, kDepth);
    }
  }
}

void store_value(const Task &task, const float *x, std::size_t slot, std::size_t head,
                 std::size_t position) {
  const AttentionShape &shape = task.shape;
  std::int8_t *row = task.values +
      ((slot * shape.kv_heads + head) * shape.capacity + position) * shape.head_dim;
  for (std::size_t d = 0; d < shape.head_dim; d += kLanes) {
    const __m128i bytes = rounded(x + d, task.in.value_scales + head * shape.head_dim + d);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(row + d), bytes);
  }
}

// The query times the keys' scales, in steps of its own peak / 16256.
void store_query(const Task &task, float *y, std::size_t kv_head, std::size_t at) {
  const std::size_t size = task.shape.head_dim;
  const float *scales = task.in.key_scales + kv_head * size;
  __m512 peaks = _mm512_setzero_ps();
  for (std::size_t d = 0; d < size; d += kLanes) {
    const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(y + d), _mm512_loadu_ps(scales + d));
    _mm512_storeu_ps(y + d, v);
    peaks = _mm512_max_ps(peaks, _mm512_abs_ps(v));
  }
  const float largest = _mm512_reduce_max_ps(peaks);
  const float peak = largest > 1e-30f ? largest : 1e-30f;
  const __m512 factor = _mm512_set1_ps(kFinest / peak);
  __m512i coarse_sum = _mm512_setzero_si512(), fine_sum = _mm512_setzero_si512();
  std::int8_t *bytes = task.queries.bytes + at * 2 * size;
  for (std::size_t d = 0; d < size; d += kLanes) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(y + d), factor));
    const __m512i coarse =
        _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(kFine / 2)), 7);
    const __m512i fine = _mm512_sub_epi32(whole, _mm512_slli_epi32(coarse, 7));
    coarse_sum = _mm512_add_epi32(coarse_sum, coarse);
    fine_sum = _mm512_add_epi32(fine_sum, fine);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(bytes + d), _mm512_cvtepi32_epi8(coarse));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(bytes + size + d), _mm512_cvtepi32_epi8(fine));
  }
  task.queries.steps[at] = peak / kFinest;
  task.queries.sums[2 * at] = _mm512_reduce_add_epi32(coarse_sum);
  task.queries.sums[2 * at + 1] = _mm512_reduce_add_epi32(fine_sum);
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
  __m512 weights[kMostRows];                     // sums of weights, in sixteen parts
  float peaks[kMostRows];
  alignas(64) std::int8_t queries[kMostRows * 2 * kMostHead];
};

// Scores of C blocks of 16 keys from `column` on, for R rows from `row` on.
template <int R, int C>
void score(const Task &task, Rows &rows, std::size_t row, const std::uint8_t *keys,
           std::size_t column) {
  const std::size_t size = task.shape.head_dim, block = size * kLanes;
  __m512i sums[2 * R][C];
  products<2 * R, C>(rows.queries + row * 2 * size, size, keys, block, size, sums);
  for (int r = 0; r < R; ++r) {
    const std::size_t at = rows.at[row + r];
    const std::int32_t *own = task.queries.sums + 2 * at;
    const __m512 factor = _mm512_set1_ps(task.queries.steps[at] * task.shape.scale);
    for (int c = 0; c < C; ++c) {
      const __m512i coarse = _mm512_sub_epi32(sums[2 * r][c], _mm512_set1_epi32(128 * own[0]));
      const __m512i fine = _mm512_sub_epi32(sums[2 * r + 1][c], _mm512_set1_epi32(128 * own[1]));
      const __m512 whole = _mm512_fmadd_ps(_mm512_cvtepi32_ps(coarse), _mm512_set1_ps(kFine),
                                           _mm512_cvtepi32_ps(fine));
      _mm512_store_ps(&rows.scores[row + r][column + c * kLanes], _mm512_mul_ps(whole, factor));
    }
  }
}

template <int C>
void score_rows(const Task &task, Rows &rows, const std::uint8_t *keys, std::size_t column) {
  for (std::size_t row = 0; row < rows.count; row += kGroup) {
    switch (rows.count - row) {
      case 1: score<1, C>(task, rows, row, keys, column); break;
      case 2: score<2, C>(task, rows, row, keys, column); break;
      case 3: score<3, C>(task, rows, row, keys, column); break;
      case 4: score<4, C>(task, rows, row, keys, column); break;
      case 5: score<5, C>(task, rows, row, keys, column); break;
      default: score<6, C>(task, rows, row, keys, column); break;
    }
  }
}

// Scores of a block of keys become weights; what was summed so far is rescaled to the new peak.
void weigh(const Task &task, Rows &rows, std::size_t row, std::size_t key, std::size_t held) {
  const AttentionShape &shape = task.shape;
  float *scores = rows.scores[row];
  __m512 parts[kKeys / kLanes];
  __mmask16 seen[kKeys / kLanes];
  __m512 peaks = _mm512_set1_ps(kNever);
  const __m512 base = _mm512_set1_ps(kLog2E);
  for (std::size_t c = 0; c < kKeys / kLanes; ++c) {
    const std::size_t at = key + c * kLanes;
    const std::size_t end = rows.position[row] + 1, begin = rows.begin[row];
    seen[c] = end <= at || c * kLanes >= held ? __mmask16(0) : first(end - at);
    if (begin > at) seen[c] &= static_cast<__mmask16>(~first(begin - at));
    if (seen[c] == 0) continue;
    __m512 x = _mm512_load_ps(scores + c * kLanes);
    if (shape.softcap > 0) x = softcap(x, shape.softcap);
    parts[c] = _mm512_mul_ps(x, base);
    peaks = _mm512_mask_max_ps(peaks, seen[c], peaks, parts[c]);
  }
  const float before = rows.peaks[row], block = _mm512_reduce_max_ps(peaks);
  const float peak = block > before ? block : before;
  __m512 sum = rows.weights[row];
  if (peak != before) {
    const __m512 factor = exp2(_mm512_set1_ps(before - peak));
    sum = _mm512_mul_ps(sum, factor);
    for (std::size_t d = 0; d < shape.head_dim; d += kLanes) {
      float *at = &rows.sums[row][d];
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
    }
    rows.peaks[row] = peak;
  }
  for (std::size_t c = 0; c < kKeys / kLanes; ++c) {
    __m512 weight = _mm512_setzero_ps();
    if (seen[c] != 0) {
      weight = _mm512_maskz_mov_ps(seen[c],
                                   exp2(_mm512_sub_ps(parts[c], _mm512_set1_ps(peak))));
      sum = _mm512_add_ps(sum, weight);
    }
    _mm512_store_ps(scores + c * kLanes, weight);
  }
  rows.weights[row] = sum;
}

inline __m512 wide(const std::int8_t *value) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(value));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

inline __m512 wide(const float *value) { return _mm512_load_ps(value); }

// Adds R rows' weighted values of `count` keys, C * 16 numbers of each from `column` on.
template <int R, int C, typename Value>
inline void add_values(Rows &rows, std::size_t row, const Value *values, std::size_t stride,
                       std::size_t count, std::size_t column) {
  __m512 sums[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      sums[r][c] = _mm512_load_ps(&rows.sums[row + r][column + c * kLanes]);
    }
  }
  for (std::size_t key = 0; key < count; ++key) {
    __m512 value[C];
    for (int c = 0; c < C; ++c) value[c] = wide(values + key * stride + column + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const __m512 weight = _mm512_set1_ps(rows.scores[row + r][key]);
      for (int c = 0; c < C; ++c) sums[r][c] = _mm512_fmadd_ps(weight, value[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) {
      _mm512_store_ps(&rows.sums[row + r][column + c * kLanes], sums[r][c]);
    }
  }
}

template <int R, typename Value>
void add_columns(Rows &rows, std::size_t row, const Value *values, std::size_t size,
                 std::size_t count) {
  std::size_t column = 0;
  for (; column + 4 * kLanes <= size; column += 4 * kLanes) {
    add_values<R, 4>(rows, row, values, size, count, column);
  }
  for (; column < size; column += kLanes) {
    add_values<R, 1>(rows, row, values, size, count, column);
  }
}

template <typename Value>
void add_rows(Rows &rows, const Value *values, std::size_t size, std::size_t count) {
  for (std::size_t row = 0; row < rows.count; row += kGroup) {
    switch (rows.count - row) {
      case 1: add_columns<1>(rows, row, values, size, count); break;
      case 2: add_columns<2>(rows, row, values, size, count); break;
      case 3: add_columns<3>(rows, row, values, size, count); break;
      case 4: add_columns<4>(rows, row, values, size, count); break;
      case 5: add_columns<5>(rows, row, values, size, count); break;
      default: add_columns<6>(rows, row, values, size, count); break;
    }
  }
}

void gather_rows(const Task &task, Rows &rows, std::size_t sequence, std::size_t head,
                 std::size_t tile) {
  const AttentionShape &shape = task.shape;
  const Span &span = task.in.spans[sequence];
  const std::size_t group = shape.heads / shape.kv_heads, size = shape.head_dim;
  const std::size_t all = static_cast<std::size_t>(span.count) * group;
  const std::size_t begin = tile * kMostRows;
  rows.count = all - begin < kMostRows ? all - begin : kMostRows;
  for (std::size_t r = 0; r < rows.count; ++r) {
    const std::size_t token = (begin + r) / group;
    const std::size_t query_head = head * group + (begin + r) % group;
    const std::size_t position = static_cast<std::size_t>(span.start) + token;
    rows.at[r] = (task.first_token[sequence] + token) * shape.heads + query_head;
    rows.position[r] = position;
    rows.begin[r] =
        shape.window != 0 && position >= shape.window ? position + 1 - shape.window : 0;
    __builtin_memcpy(rows.queries + r * 2 * size, task.queries.bytes + rows.at[r] * 2 * size,
                     2 * size);
    rows.peaks[r] = kNever;
    rows.weights[r] = _mm512_setzero_ps();
    if (task.in.sinks != nullptr) {
      rows.peaks[r] = task.in.sinks[query_head] * kLog2E;
      rows.weights[r] = _mm512_maskz_mov_ps(1, _mm512_set1_ps(1.0f));
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
    for (; column + 2 * kLanes <= held; column += 2 * kLanes) {
      score_rows<2>(task, rows, keys + column * size, column);
    }
    if (column < held) score_rows<1>(task, rows, keys + column * size, column);
    for (std::size_t row = 0; row < rows.count; ++row) weigh(task, rows, row, key, held);
    const std::int8_t *values = task.values + (base + key) * size;
    if (rows.count <= kGroup) {
      add_rows(rows, values, size, count);
      continue;
    }
    for (std::size_t i = 0; i < count * size; i += kLanes) {
      _mm512_store_ps(block + i, wide(values + i));
    }
    add_rows(rows, static_cast<const float *>(block), size, count);
  }
  const float *scales = task.in.value_scales + head * size;
  for (std::size_t row = 0; row < rows.count; ++row) {
    const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(rows.weights[row]));
    float *result = task.result + rows.at[row] * size;
    for (std::size_t d = 0; d < size; d += kLanes) {
      const __m512 steps = _mm512_mul_ps(_mm512_load_ps(&rows.sums[row][d]), share);
      _mm512_storeu_ps(result + d, _mm512_mul_ps(steps, _mm512_loadu_ps(scales + d)));
    }
  }
}

}  // namespace

std::size_t attention_scratch_bytes(const AttentionShape &shape, std::size_t tokens) {
  const std::size_t rows = tokens * shape.heads;
  return aligned(rows * 2 * shape.head_dim) + aligned(rows * sizeof(float)) +
         aligned(rows * 2 * sizeof(std::int32_t)) +
         2 * aligned((tokens + 1) * sizeof(std::size_t)) + 64;
}

void attention(const Parallel &parallel, const AttentionShape &shape,
               const AttentionInputs &inputs, std::uint8_t *keys, std::int8_t *values,
               float *result, void *scratch) {
  Scratch memory(scratch);
  const std::size_t rows = inputs.tokens * shape.heads;
  const Queries queries{memory.take<std::int8_t>(rows * 2 * shape.head_dim),
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

}  // namespace appliance
