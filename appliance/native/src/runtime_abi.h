// What this library uses of ONNX Runtime's C interface, declared anew.
//
// The runtime's wheel has no headers. Its interface is stable by design: the table of functions
// only ever grows at its end, and a library states the version of the table that it was written
// for. Source: onnxruntime_c_api.h, structures OrtApiBase, OrtApi, OrtAllocator and OrtCustomOp.
// Version 18 (ONNX Runtime 1.18) is the oldest that has all of this; the last function that it
// brought is KernelInfoGetAllocator. Each entry's place is checked below when this is compiled, and
// by the operators' tests, which come by all of them.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr std::uint32_t kApiVersion = 18;

extern "C" {

struct OrtStatus;  // null: all is well
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtMemoryInfo;

enum OrtErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum OrtElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
};

enum OrtMemoryType : int { kDefaultMemory = 0 };

enum OrtCharacteristic : int { kRequired = 0, kOptional = 1 };

struct OrtAllocator {
  std::uint32_t version;
  void *(*Alloc)(OrtAllocator *self, std::size_t bytes);
  void (*Free)(OrtAllocator *self, void *memory);
  const OrtMemoryInfo *(*Info)(const OrtAllocator *self);
};

struct OrtApi {
  OrtStatus *(*CreateStatus)(OrtErrorCode code, const char *message);
  void *unused_1[25];
  OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **domain);
  OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const struct OrtCustomOp *op);
  OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
  void *unused_29[22];
  OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);
  void *unused_52[8];
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, OrtElementType *type);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, std::size_t *count);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, std::int64_t *dimensions,
                              std::size_t count);
  void *unused_63[2];
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info);
  void *unused_66[19];
  OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name,
                                             float *value);
  OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name,
                                             std::int64_t *value);
  OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *info, const char *name,
                                              char *value, std::size_t *size);
  void *unused_88[2];
  OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, std::size_t index,
                                       const OrtValue **value);
  OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, std::size_t index,
                                        const std::int64_t *dimensions, std::size_t count,
                                        OrtValue **value);
  void *unused_92[1];
  void (*ReleaseStatus)(OrtStatus *status);
  void *unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);
  void *unused_100[1];
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain *domain);
  void *unused_102[30];
  void (*ReleaseAllocator)(OrtAllocator *allocator);
  void *unused_133[97];
  OrtStatus *(*KernelInfo_GetInputCount)(const OrtKernelInfo *info, std::size_t *count);
  OrtStatus *(*KernelInfo_GetOutputCount)(const OrtKernelInfo *info, std::size_t *count);
  void *unused_232[17];
  OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, std::size_t index,
                                                  int *constant, const OrtValue **value);
  void *unused_250[24];
  OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context,
                                          void (*task)(void *data, std::size_t index),
                                          std::size_t count, std::size_t batches, void *data);
  void *unused_275[3];
  OrtStatus *(*KernelInfoGetAllocator)(const OrtKernelInfo *info, OrtMemoryType type,
                                       OrtAllocator **allocator);
};

struct OrtApiBase {
  const OrtApi *(*GetApi)(std::uint32_t version);  // null: the runtime is older
  const char *(*GetVersionString)();
};

// One operator, as a table of functions; those that may be null are not used here.
struct OrtCustomOp {
  std::uint32_t version;  // of the interface: says which of the fields below there are
  void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
  const char *(*GetName)(const OrtCustomOp *op);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *op);  // null: the CPU's
  OrtElementType (*GetInputType)(const OrtCustomOp *op, std::size_t index);
  std::size_t (*GetInputTypeCount)(const OrtCustomOp *op);
  OrtElementType (*GetOutputType)(const OrtCustomOp *op, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
  void (*KernelCompute)(void *kernel, OrtKernelContext *context);
  void (*KernelDestroy)(void *kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp *op, std::size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp *op, std::size_t index);
  OrtMemoryType (*GetInputMemoryType)(const OrtCustomOp *op, std::size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api,
                               const OrtKernelInfo *info, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
  void *InferOutputShapeFn;
  int (*GetStartVersion)(const OrtCustomOp *op);
  int (*GetEndVersion)(const OrtCustomOp *op);
  void *GetMayInplace;
  void *ReleaseMayInplace;
  void *GetAliasMap;
  void *ReleaseAliasMap;
};

}  // extern "C"

#define AT(index, entry)                                          \
  static_assert(offsetof(OrtApi, entry) == (index) * sizeof(void *), #entry " is elsewhere")
AT(26, CreateCustomOpDomain);
AT(28, AddCustomOpDomain);
AT(51, GetTensorMutableData);
AT(60, GetTensorElementType);
AT(62, GetDimensions);
AT(65, GetTensorTypeAndShape);
AT(85, KernelInfoGetAttribute_float);
AT(90, KernelContext_GetInput);
AT(91, KernelContext_GetOutput);
AT(93, ReleaseStatus);
AT(99, ReleaseTensorTypeAndShapeInfo);
AT(101, ReleaseCustomOpDomain);
AT(132, ReleaseAllocator);
AT(230, KernelInfo_GetInputCount);
AT(249, KernelInfoGetConstantInput_tensor);
AT(274, KernelContext_ParallelFor);
AT(278, KernelInfoGetAllocator);
#undef AT
