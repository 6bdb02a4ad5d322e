// A node of a graph as its operator sees it: what goes in and out, attributes, memory, threads.
//
// Nothing here throws. A function that can fail returns a status: null where all is well, else the
// runtime's error, which it hands to whoever loads or runs the graph.
#pragma once

#include "kernels.h"
#include "runtime_abi.h"

namespace appliance {

extern const OrtApi *api;  // of the runtime that loaded this library

#define RETURN_IF_BAD(call)                                     \
  do {                                                          \
    if (OrtStatus *status_ = (call)) return status_;            \
  } while (false)

// An error whose message is formatted as by printf.
__attribute__((format(printf, 1, 2))) OrtStatus *refuse(const char *format, ...);

constexpr std::size_t kMostRank = 8;
constexpr std::size_t kMostInputs = 14;

struct Tensor {
  const void *data;  // null where a node lacks this optional input
  OrtElementType type;
  std::size_t rank;
  std::int64_t sizes[kMostRank];

  bool there() const { return data != nullptr; }
  std::size_t size(std::size_t axis) const { return static_cast<std::size_t>(sizes[axis]); }
  std::size_t last() const { return size(rank - 1); }
  // How many numbers there are, the last axis left out.
  std::size_t rows() const;
  const float *floats() const { return static_cast<const float *>(data); }
  const std::uint8_t *bytes() const { return static_cast<const std::uint8_t *>(data); }
};

// Checks [size] floats (or [size, 1] where a column will do).
OrtStatus *check_vector(const Tensor &tensor, const char *name, std::size_t size,
                        bool column = false);

// Memory for one run of an operator, from the session's allocator.
class Memory {
 public:
  explicit Memory(OrtAllocator *allocator) : allocator_(allocator) {}
  ~Memory() {
    if (memory_ != nullptr) allocator_->Free(allocator_, memory_);
  }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;

  OrtStatus *take(std::size_t bytes);
  void *get() const { return memory_; }

 private:
  OrtAllocator *allocator_;
  void *memory_ = nullptr;
};

// What is known of a node when its graph is loaded. The constant inputs are read once: their
// memory is the session's and stays where it is.
class Node {
 public:
  OrtStatus *open(const OrtKernelInfo *info);
  void close();

  std::size_t outputs() const { return outputs_; }
  OrtAllocator *allocator() const { return allocator_; }
  OrtStatus *input(OrtKernelContext *context, std::size_t index, Tensor *tensor) const;
  OrtStatus *required(OrtKernelContext *context, std::size_t index, const char *name,
                      OrtElementType type, Tensor *tensor) const;

 private:
  std::size_t inputs_ = 0, outputs_ = 0;
  OrtAllocator *allocator_ = nullptr;
  Tensor constants_[kMostInputs] = {};
};

// The memory of an output of this shape; null where the graph does not want it.
OrtStatus *output(OrtKernelContext *context, std::size_t index, const Tensor &shape, void **data);

OrtStatus *attribute(const OrtKernelInfo *info, const char *name, std::int64_t *value);
OrtStatus *attribute(const OrtKernelInfo *info, const char *name, float *value);
// `value` stays what it is where the node lacks the attribute.
void optional_attribute(const OrtKernelInfo *info, const char *name, std::int64_t *value);
void optional_attribute(const OrtKernelInfo *info, const char *name, float *value);

// The session's threads, for as long as an operator runs. A failure to start a task is kept: ask
// for it when all is done.
class Threads {
 public:
  explicit Threads(const OrtKernelContext *context) : context_(context) {}
  Parallel parallel() { return {run, this}; }
  OrtStatus *failure() const { return failure_; }

 private:
  static void run(void *handle, Parallel::Task task, std::size_t count, void *context);

  const OrtKernelContext *context_;
  OrtStatus *failure_ = nullptr;
};

}  // namespace appliance
