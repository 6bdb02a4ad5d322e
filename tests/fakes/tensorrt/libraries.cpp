// What the two libraries export.

#include "engine.h"
#include "parser.h"

using namespace stand_in;

namespace {

struct Registry {
  static constexpr const char *kName = "IPluginRegistry";
  Slot *slots = table<Registry>();

  static void *all(Registry *, std::int32_t *count) {
    *count = 0;
    return nullptr;
  }
  static Answers answers() { return {{13, slot(&all)}}; }
};

}  // namespace

extern "C" {
std::int32_t getInferLibVersion() { return 101601; }
void *createInferBuilder_INTERNAL(void *, std::int32_t version) {
  tell("builder for %d", version);
  return &(new Builder)->face;
}
void *createInferRuntime_INTERNAL(void *, std::int32_t) { return &(new Runtime)->face; }
void *createInferRefitter_INTERNAL(void *, void *, std::int32_t) { return nullptr; }
void *getPluginRegistry() {
  static Registry registry;
  return &registry;
}
void *createNvOnnxParser_INTERNAL(void *network, void *, std::int32_t) {
  auto *made = new Parser;
  made->network = behind<Network>(network);
  return made;
}
void *createNvOnnxParserRefitter_INTERNAL(void *, void *, std::int32_t) { return nullptr; }
}
