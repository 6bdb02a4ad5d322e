#include "node.h"

#include <stdarg.h>
#include <stdio.h>

namespace appliance {

const OrtApi *api = nullptr;

OrtStatus *refuse(const char *format, ...) {
  char message[256];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return api->CreateStatus(kInvalidArgument, message);
}

std::size_t Tensor::rows() const {
  std::size_t count = 1;
  for (std::size_t axis = 0; axis + 1 < rank; ++axis) count *= size(axis);
  return count;
}

OrtStatus *check_vector(const Tensor &tensor, const char *name, std::size_t size, bool column) {
  const bool shaped = tensor.rank == 1 || (column && tensor.rank == 2 && tensor.size(1) == 1);
  if (tensor.type != kFloat || !shaped || tensor.size(0) != size) {
    return refuse("%s is not %zu floats", name, size);
  }
  return nullptr;
}

OrtStatus *Memory::take(std::size_t bytes) {
  memory_ = allocator_->Alloc(allocator_, bytes);
  return memory_ == nullptr ? refuse("no memory for %zu bytes", bytes) : nullptr;
}

namespace {

OrtStatus *read_shape(const OrtTensorTypeAndShapeInfo *info, Tensor *tensor) {
  RETURN_IF_BAD(api->GetTensorElementType(info, &tensor->type));
  RETURN_IF_BAD(api->GetDimensionsCount(info, &tensor->rank));
  if (tensor->rank == 0 || tensor->rank > kMostRank) {
    return refuse("an input has %zu axes; 1 to %zu are allowed", tensor->rank, kMostRank);
  }
  return api->GetDimensions(info, tensor->sizes, tensor->rank);
}

OrtStatus *read(const OrtValue *value, Tensor *tensor) {
  OrtTensorTypeAndShapeInfo *info = nullptr;
  RETURN_IF_BAD(api->GetTensorTypeAndShape(value, &info));
  OrtStatus *status = read_shape(info, tensor);
  api->ReleaseTensorTypeAndShapeInfo(info);
  RETURN_IF_BAD(status);
  void *data = nullptr;
  RETURN_IF_BAD(api->GetTensorMutableData(const_cast<OrtValue *>(value), &data));
  // An empty tensor may have no memory; it is there all the same.
  static const char nothing = 0;
  tensor->data = data == nullptr ? &nothing : data;
  return nullptr;
}

}  // namespace

OrtStatus *Node::open(const OrtKernelInfo *info) {
  RETURN_IF_BAD(api->KernelInfo_GetInputCount(info, &inputs_));
  RETURN_IF_BAD(api->KernelInfo_GetOutputCount(info, &outputs_));
  if (inputs_ > kMostInputs) return refuse("%zu inputs are too many", inputs_);
  for (std::size_t index = 0; index < inputs_; ++index) {
    int constant = 0;
    const OrtValue *value = nullptr;
    RETURN_IF_BAD(api->KernelInfoGetConstantInput_tensor(info, index, &constant, &value));
    if (constant != 0 && value != nullptr) RETURN_IF_BAD(read(value, &constants_[index]));
  }
  return api->KernelInfoGetAllocator(info, kDefaultMemory, &allocator_);
}

void Node::close() {
  if (allocator_ != nullptr) api->ReleaseAllocator(allocator_);
}

OrtStatus *Node::input(OrtKernelContext *context, std::size_t index, Tensor *tensor) const {
  *tensor = constants_[index];
  if (tensor->there() || index >= inputs_) return nullptr;
  const OrtValue *value = nullptr;
  RETURN_IF_BAD(api->KernelContext_GetInput(context, index, &value));
  return value == nullptr ? nullptr : read(value, tensor);
}

OrtStatus *Node::required(OrtKernelContext *context, std::size_t index, const char *name,
                          OrtElementType type, Tensor *tensor) const {
  RETURN_IF_BAD(input(context, index, tensor));
  if (!tensor->there()) return refuse("%s is missing", name);
  return tensor->type == type ? nullptr : refuse("%s has another type of numbers", name);
}

OrtStatus *output(OrtKernelContext *context, std::size_t index, const Tensor &shape, void **data) {
  OrtValue *value = nullptr;
  RETURN_IF_BAD(api->KernelContext_GetOutput(context, index, shape.sizes, shape.rank, &value));
  *data = nullptr;
  return value == nullptr ? nullptr : api->GetTensorMutableData(value, data);
}

OrtStatus *attribute(const OrtKernelInfo *info, const char *name, std::int64_t *value) {
  return api->KernelInfoGetAttribute_int64(info, name, value);
}

OrtStatus *attribute(const OrtKernelInfo *info, const char *name, float *value) {
  return api->KernelInfoGetAttribute_float(info, name, value);
}

namespace {

template <typename Number>
void read_or_keep(const OrtKernelInfo *info, const char *name, Number *value) {
  Number found = *value;
  if (OrtStatus *absent = attribute(info, name, &found)) {
    api->ReleaseStatus(absent);
  } else {
    *value = found;
  }
}

}  // namespace

void optional_attribute(const OrtKernelInfo *info, const char *name, std::int64_t *value) {
  read_or_keep(info, name, value);
}

void optional_attribute(const OrtKernelInfo *info, const char *name, float *value) {
  read_or_keep(info, name, value);
}

void Threads::run(void *handle, Parallel::Task task, std::size_t count, void *context) {
  auto *self = static_cast<Threads *>(handle);
  if (count == 0 || self->failure_ != nullptr) return;
  // Batches 0: each free thread takes the next task.
  self->failure_ = api->KernelContext_ParallelFor(self->context_, task, count, 0, context);
}

}  // namespace appliance
