// From a network and a profile to the text that stands for an engine.

#pragma once

#include "network.h"

namespace stand_in {

struct Bytes : Object<Bytes> {
  static constexpr const char *kName = "IHostMemory";
  std::string text;

  static const void *data(Bytes *self) { return self->text.data(); }
  static std::size_t size(Bytes *self) { return self->text.size(); }
  static Answers answers() { return {{2, slot(&data)}, {3, slot(&size)}}; }
};

inline Face *bytes(std::string text) {
  auto *made = new Bytes;
  made->text = std::move(text);
  return &made->face;
}

struct TimingCache : Object<TimingCache> {
  static constexpr const char *kName = "ITimingCache";
  std::string text;

  static Face *serialize(TimingCache *self) { return bytes(self->text + "timed\n"); }
  static Answers answers() { return {{2, slot(&serialize)}}; }
};

struct Config : Object<Config> {
  static constexpr const char *kName = "IBuilderConfig";
  std::vector<Profile *> profiles;
  Face *cache = nullptr;

  static void set_flag(Config *, int flag) { tell("flag %d", flag); }
  static int add_profile(Config *self, Face *profile) {
    self->profiles.push_back(behind<Profile>(profile));
    return self->profiles.size() - 1;
  }
  static Face *create_cache(Config *, const char *data, std::size_t size) {
    auto *made = new TimingCache;
    made->text.assign(data, size);
    tell("timing cache of %zu bytes", size);
    return &made->face;
  }
  static bool set_cache(Config *self, Face *cache, bool) {
    self->cache = cache;
    return true;
  }
  static Face *get_cache(Config *self) { return self->cache; }
  static Answers answers() {
    return {{11, slot(&set_flag)},
            {25, slot(&add_profile)},
            {40, slot(&create_cache)},
            {41, slot(&set_cache)},
            {42, slot(&get_cache)}};
  }
};

struct Builder : Object<Builder> {
  static constexpr const char *kName = "IBuilder";

  static Face *create_config(Builder *) { return &(new Config)->face; }
  static Face *create_network(Builder *, std::uint32_t flags) {
    tell("network %u", flags);
    return &(new Network)->face;
  }
  static Face *create_profile(Builder *) { return &(new Profile)->face; }
  static Face *build(Builder *, Face *network, Face *config) {
    const auto *made = behind<Network>(network);
    std::string text = "stand-in\n";
    for (const auto *side : {&made->inputs, &made->outputs}) {
      for (const Tensor *tensor : *side) {
        text += (side == &made->inputs ? "input " : "output ") + tensor->name + ' ' +
                std::to_string(tensor->type);
        for (const std::string &size : tensor->shape) text += ' ' + size;
        text += '\n';
      }
    }
    for (const Profile *profile : behind<Config>(config)->profiles) {
      for (const auto &[name, shapes] : profile->shapes) {
        text += "profile " + name;
        for (const Dims &sizes : shapes) text += ' ' + said(sizes);
        text += '\n';
      }
    }
    tell("built");
    return bytes(text);
  }
  static Answers answers() {
    return {{2, slot(&yes)},  // fast in 16 bits
            {7, slot(&create_config)},
            {8, slot(&create_network)},
            {9, slot(&create_profile)},
            {14, slot(&build)}};
  }
};

}  // namespace stand_in
