#include "attend.h"

#include <string.h>

namespace appliance {
namespace {

constexpr std::size_t kMostHeads = 4096;
constexpr std::size_t kMostHead = 256;
constexpr std::int64_t kMostWindow = std::int64_t{1} << 31;

OrtStatus *read_count(const OrtKernelInfo *info, const char *name, std::size_t *value) {
  std::int64_t number = 0;
  RETURN_IF_BAD(attribute(info, name, &number));
  if (number < 1 || number > static_cast<std::int64_t>(kMostHeads)) {
    return refuse("%s is %lld; 1 to %zu are allowed", name, static_cast<long long>(number),
                  kMostHeads);
  }
  *value = static_cast<std::size_t>(number);
  return nullptr;
}

// Each sequence lies within its slot and has it for itself; together they are all the tokens.
OrtStatus *check_spans(const AttentionInputs &in, const AttentionShape &shape,
                       std::size_t positions, std::uint8_t *taken) {
  memset(taken, 0, shape.slots);
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < in.sequences; ++i) {
    const Span &span = in.spans[i];
    if (span.slot < 0 || static_cast<std::size_t>(span.slot) >= shape.slots) {
      return refuse("sequence %zu is in slot %d of %zu", i, span.slot, shape.slots);
    }
    if (taken[span.slot]++ != 0) return refuse("two sequences are in slot %d", span.slot);
    const std::int64_t end = std::int64_t{span.start} + span.count;
    if (span.start < 0 || span.count < 1 || end > static_cast<std::int64_t>(shape.capacity)) {
      return refuse("sequence %zu has %d tokens behind %d; a slot holds %zu", i, span.count,
                    span.start, shape.capacity);
    }
    if (end > static_cast<std::int64_t>(positions)) {
      return refuse("sequence %zu ends at %lld and the angles at %zu", i,
                    static_cast<long long>(end), positions);
    }
    tokens += static_cast<std::size_t>(span.count);
  }
  if (tokens != in.tokens) return refuse("spans have %zu tokens of %zu", tokens, in.tokens);
  return nullptr;
}

// The present slots: the past ones where the runtime gives the same memory, else a copy of them.
OrtStatus *extend(OrtKernelContext *context, std::size_t index, const Tensor &past,
                  void **present) {
  RETURN_IF_BAD(output(context, index, past, present));
  const std::size_t bytes = past.rows() * past.last();
  if (*present == nullptr && bytes != 0) return refuse("output %zu is missing", index);
  if (*present != past.data && bytes != 0) memcpy(*present, past.data, bytes);
  return nullptr;
}

}  // namespace

struct Attention::Inputs {
  Tensor query, key, value, spans, past_key, past_value, key_scale, value_scale, cosines, sines;
  Tensor query_norm, key_norm, sinks;  // optional
};

OrtElementType Attention::input_type(std::size_t index) {
  return index == 3 ? kInt32 : index == 4 ? kUint8 : index == 5 ? kInt8 : kFloat;
}

OrtElementType Attention::output_type(std::size_t index) {
  return index == 0 ? kFloat : index == 1 ? kUint8 : kInt8;
}

OrtStatus *Attention::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(node_.open(info));
  RETURN_IF_BAD(read_count(info, "heads", &shape_.heads));
  RETURN_IF_BAD(read_count(info, "kv_heads", &shape_.kv_heads));
  if (shape_.heads % shape_.kv_heads != 0) {
    return refuse("%zu heads are not a multiple of %zu kv_heads", shape_.heads, shape_.kv_heads);
  }
  RETURN_IF_BAD(attribute(info, "scale", &shape_.scale));
  optional_attribute(info, "softcap", &shape_.softcap);
  optional_attribute(info, "epsilon", &shape_.epsilon);
  if (!(shape_.softcap >= 0)) return refuse("softcap is below 0");
  if (!(shape_.epsilon >= 0)) return refuse("epsilon is below 0");
  std::int64_t window = 0, interleaved = 0;
  optional_attribute(info, "window", &window);
  optional_attribute(info, "interleaved", &interleaved);
  if (window < 0 || window > kMostWindow) return refuse("window is out of range");
  if (interleaved != 0 && interleaved != 1) return refuse("interleaved is neither 0 nor 1");
  shape_.window = static_cast<std::size_t>(window);
  shape_.interleaved = interleaved == 1;
  return nullptr;
}

OrtStatus *Attention::read(OrtKernelContext *context, Inputs *in) const {
  RETURN_IF_BAD(node_.required(context, 0, "query", kFloat, &in->query));
  RETURN_IF_BAD(node_.required(context, 1, "key", kFloat, &in->key));
  RETURN_IF_BAD(node_.required(context, 2, "value", kFloat, &in->value));
  RETURN_IF_BAD(node_.required(context, 3, "spans", kInt32, &in->spans));
  RETURN_IF_BAD(node_.required(context, 4, "past_key", kUint8, &in->past_key));
  RETURN_IF_BAD(node_.required(context, 5, "past_value", kInt8, &in->past_value));
  RETURN_IF_BAD(node_.required(context, 6, "key_scale", kFloat, &in->key_scale));
  RETURN_IF_BAD(node_.required(context, 7, "value_scale", kFloat, &in->value_scale));
  RETURN_IF_BAD(node_.required(context, 8, "cosines", kFloat, &in->cosines));
  RETURN_IF_BAD(node_.required(context, 9, "sines", kFloat, &in->sines));
  RETURN_IF_BAD(node_.input(context, 10, &in->query_norm));
  RETURN_IF_BAD(node_.input(context, 11, &in->key_norm));
  return node_.input(context, 12, &in->sinks);
}

// Completes the shape by what the tensors say, if they agree.
OrtStatus *Attention::check_sizes(const Inputs &in, AttentionShape *shape) const {
  const Tensor &keys = in.past_key, &values = in.past_value;
  if (values.rank != 4) return refuse("past_value has %zu axes, not 4", values.rank);
  shape->slots = values.size(0);
  shape->capacity = values.size(2);
  shape->head_dim = values.size(3);
  if (values.size(1) != shape->kv_heads) {
    return refuse("past_value has %zu heads, not %zu", values.size(1), shape->kv_heads);
  }
  const std::size_t size = shape->head_dim;
  if (size == 0 || size % kLanes != 0 || size > kMostHead) {
    return refuse("heads of %zu numbers; a multiple of %zu up to %zu is allowed", size, kLanes,
                  kMostHead);
  }
  if (shape->capacity % kLanes != 0) {
    return refuse("slots of %zu tokens; a multiple of %zu is allowed", shape->capacity, kLanes);
  }
  if (keys.rank != 5 || keys.size(0) != shape->slots || keys.size(1) != shape->kv_heads ||
      keys.size(2) != shape->capacity / kLanes || keys.size(3) != size / kDepth ||
      keys.size(4) != kLanes * kDepth) {
    return refuse("past_key is not [%zu, %zu, %zu, %zu, %zu]", shape->slots, shape->kv_heads,
                  shape->capacity / kLanes, size / kDepth, kLanes * kDepth);
  }
  const std::size_t tokens = in.query.rows();
  if (in.query.last() != shape->heads * size) {
    return refuse("query has rows of %zu numbers, not %zu", in.query.last(), shape->heads * size);
  }
  const Tensor *const pair[] = {&in.key, &in.value};
  for (const Tensor *tensor : pair) {
    if (tensor->last() != shape->kv_heads * size || tensor->rows() != tokens) {
      return refuse("key or value is not %zu rows of %zu numbers", tokens,
                    shape->kv_heads * size);
    }
  }
  if (in.spans.rank != 2 || in.spans.size(1) != 3) return refuse("spans are not [sequences, 3]");
  const Tensor &cosines = in.cosines, &sines = in.sines;
  if (cosines.rank != 2 || sines.rank != 2 || cosines.size(0) != sines.size(0) ||
      cosines.size(1) != sines.size(1) || 2 * cosines.size(1) > size) {
    return refuse("cosines and sines are not [positions, up to %zu]", size / 2);
  }
  shape->turned = 2 * cosines.size(1);
  return nullptr;
}

OrtStatus *Attention::check_norms(const Inputs &in, const AttentionShape &shape) const {
  const std::size_t width = shape.kv_heads * shape.head_dim;
  RETURN_IF_BAD(check_vector(in.key_scale, "key_scale", width));
  RETURN_IF_BAD(check_vector(in.value_scale, "value_scale", width));
  if (in.query_norm.there()) {
    RETURN_IF_BAD(check_vector(in.query_norm, "query_norm", shape.head_dim));
  }
  if (in.key_norm.there()) {
    RETURN_IF_BAD(check_vector(in.key_norm, "key_norm", shape.head_dim));
  }
  if (in.sinks.there()) RETURN_IF_BAD(check_vector(in.sinks, "sinks", shape.heads));
  return nullptr;
}

OrtStatus *Attention::compute(OrtKernelContext *context) const {
  Inputs in{};
  RETURN_IF_BAD(read(context, &in));
  AttentionShape shape = shape_;
  RETURN_IF_BAD(check_sizes(in, &shape));
  RETURN_IF_BAD(check_norms(in, shape));
  const auto optional = [](const Tensor &x) { return x.there() ? x.floats() : nullptr; };
  const AttentionInputs given{
      in.query.floats(), in.key.floats(), in.value.floats(),
      static_cast<const Span *>(in.spans.data), in.spans.size(0), in.query.rows(),
      in.key_scale.floats(), in.value_scale.floats(), in.cosines.floats(), in.sines.floats(),
      optional(in.query_norm), optional(in.key_norm), optional(in.sinks)};
  Memory scratch(node_.allocator());
  const std::size_t bytes = kernels()->attention_scratch_bytes(shape, given.tokens);
  RETURN_IF_BAD(scratch.take(bytes > shape.slots ? bytes : shape.slots));
  RETURN_IF_BAD(check_spans(given, shape, in.cosines.size(0),
                            static_cast<std::uint8_t *>(scratch.get())));

  void *result = nullptr, *keys = nullptr, *values = nullptr;
  RETURN_IF_BAD(output(context, 0, in.query, &result));
  RETURN_IF_BAD(extend(context, 1, in.past_key, &keys));
  RETURN_IF_BAD(extend(context, 2, in.past_value, &values));
  if (given.tokens == 0) return nullptr;
  if (result == nullptr) return refuse("output 0 is missing");
  Threads threads(context);
  kernels()->attention(threads.parallel(), shape, given, static_cast<std::uint8_t *>(keys),
            static_cast<std::int8_t *>(values), static_cast<float *>(result), scratch.get());
  return threads.failure();
}

}  // namespace appliance
