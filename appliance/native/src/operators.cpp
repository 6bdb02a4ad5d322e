// The door of the library: says which operators there are, in the runtime's words.
#include <new>

#include <stdlib.h>

#include "attend.h"
#include "block_matrices.h"
#include "matrices.h"
#include "processor.h"

namespace appliance {
namespace {

template <typename Operator>
OrtStatus *create(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *info, void **kernel) {
  void *memory = malloc(sizeof(Operator));
  if (memory == nullptr) return refuse("no memory for an operator");
  auto *made = new (memory) Operator();
  if (OrtStatus *status = made->open(info)) {
    made->close();
    free(made);
    return status;
  }
  *kernel = made;
  return nullptr;
}

template <typename Operator>
OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  return static_cast<const Operator *>(kernel)->compute(context);
}

template <typename Operator>
void destroy(void *kernel) {
  static_cast<Operator *>(kernel)->close();
  free(kernel);
}

OrtMemoryType default_memory(const OrtCustomOp *, std::size_t) { return kDefaultMemory; }

int one(const OrtCustomOp *) { return 1; }

int last_version(const OrtCustomOp *) { return 0x7fffffff; }

template <typename Operator>
constexpr OrtCustomOp table() {
  OrtCustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp *) { return Operator::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
  op.GetInputType = [](const OrtCustomOp *, std::size_t i) { return Operator::input_type(i); };
  op.GetInputTypeCount = [](const OrtCustomOp *) { return Operator::kInputs; };
  op.GetOutputType = [](const OrtCustomOp *, std::size_t i) { return Operator::output_type(i); };
  op.GetOutputTypeCount = [](const OrtCustomOp *) { return Operator::kOutputs; };
  op.KernelDestroy = destroy<Operator>;
  op.GetInputCharacteristic = [](const OrtCustomOp *, std::size_t i) {
    return i < Operator::kNeeded ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp *, std::size_t i) {
    return i < Operator::kNeededOutputs ? kRequired : kOptional;
  };
  op.GetInputMemoryType = default_memory;
  op.GetVariadicInputMinArity = one;
  op.GetVariadicInputHomogeneity = one;
  op.GetVariadicOutputMinArity = one;
  op.GetVariadicOutputHomogeneity = one;
  op.CreateKernelV2 = create<Operator>;
  op.KernelComputeV2 = compute<Operator>;
  op.GetStartVersion = one;
  op.GetEndVersion = last_version;
  return op;
}

constexpr OrtCustomOp kOperators[] = {table<Linear>(), table<GatedLinear>(), table<Lookup>(),
                                      table<BlockLinear>(), table<BlockGatedLinear>(),
                                      table<BlockLookup>(), table<Attention>()};

OrtStatus *fill(OrtCustomOpDomain *domain) {
  for (const OrtCustomOp &op : kOperators) RETURN_IF_BAD(api->CustomOpDomain_Add(domain, &op));
  return nullptr;
}

// The runtime never gives a domain back: one serves all sessions of the process.
OrtStatus *domain(OrtCustomOpDomain **made) {
  static OrtCustomOpDomain *kept = nullptr;
  *made = __atomic_load_n(&kept, __ATOMIC_ACQUIRE);
  if (*made != nullptr) return nullptr;
  OrtCustomOpDomain *fresh = nullptr;
  RETURN_IF_BAD(api->CreateCustomOpDomain("appliance", &fresh));
  OrtStatus *status = fill(fresh);
  const bool first = status == nullptr &&
                     __atomic_compare_exchange_n(&kept, made, fresh, false, __ATOMIC_ACQ_REL,
                                                 __ATOMIC_ACQUIRE);
  if (!first) api->ReleaseCustomOpDomain(fresh);
  if (first) *made = fresh;
  return status;
}

}  // namespace
}  // namespace appliance

extern "C" __attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(
    OrtSessionOptions *options, const OrtApiBase *base) {
  using namespace appliance;
  const OrtApi *found = base->GetApi(kApiVersion);
  if (found == nullptr) {
    // Every version since the first has this table's first entry.
    return base->GetApi(1)->CreateStatus(kNotImplemented, "ONNX Runtime is older than 1.18");
  }
  api = found;
  if (const char *lacking = processor_lacks()) {
    return refuse("the native operators need a processor with %s", lacking);
  }
  OrtCustomOpDomain *operators = nullptr;
  RETURN_IF_BAD(domain(&operators));
  return api->AddCustomOpDomain(options, operators);
}

extern "C" __attribute__((visibility("default"))) const char *appliance_native_lacks() {
  return appliance::processor_lacks();
}

// The instructions in use; null where the processor lacks all.
extern "C" __attribute__((visibility("default"))) const char *appliance_native_instructions() {
  const appliance::Kernels *found = appliance::kernels();
  return found == nullptr ? nullptr : found->instructions;
}

extern "C" __attribute__((visibility("default"))) int appliance_native_choose(
    const char *instructions) {
  return appliance::choose(instructions);
}
