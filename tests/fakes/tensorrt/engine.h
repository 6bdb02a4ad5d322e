// The text that stands for an engine, opened, and contexts that bind to it.

#pragma once

#include "builder.h"

namespace stand_in {

struct Entry {
  bool input;
  int type;
  Shape shape;
};

struct Engine : Object<Engine> {
  static constexpr const char *kName = "ICudaEngine";
  std::vector<std::string> names;
  std::map<std::string, Entry> entries;
  std::map<std::string, std::vector<Dims>> profile;

  bool load(const std::string &given) {
    std::stringstream lines(given);
    std::string line, word, name, size;
    if (!std::getline(lines, line) || line != "stand-in") return false;
    while (std::getline(lines, line)) {
      std::stringstream words(line);
      words >> word >> name;
      if (word == "profile") {
        while (words >> size) profile[name].push_back(read(size));
        continue;
      }
      Entry entry{word == "input", 0, {}};
      words >> entry.type;
      while (words >> size) entry.shape.push_back(size);
      names.push_back(name);
      entries[name] = entry;
    }
    return true;
  }

  static Face *create_context(Engine *self, int);
  static int mode(Engine *self, const char *name) { return self->entries[name].input ? 1 : 2; }
  static int count(Engine *self) { return self->names.size(); }
  static const char *at(Engine *self, int i) { return self->names[i].c_str(); }
  static Answers answers() {
    return {{5, slot(&create_context)},
            {22, slot(&no)},  // used for shapes
            {23, slot(&mode)},
            {30, slot(&count)},
            {31, slot(&at)}};
  }
};

struct Context : Object<Context> {
  static constexpr const char *kName = "IExecutionContext";
  Engine *engine = nullptr;
  std::map<std::string, Dims> shapes;
  std::map<std::string, void *> addresses;

  // As the real one, which refuses what its profile does not hold.
  static bool set_shape(Context *self, const char *name, const Dims &sizes) {
    self->shapes[name] = sizes;
    const auto found = self->engine->profile.find(name);
    if (found == self->engine->profile.end()) return true;
    const Dims &least = found->second[0], &most = found->second[2];
    bool inside = sizes.count == least.count;
    for (int i = 0; inside && i < sizes.count; ++i) {
      inside = least.sizes[i] <= sizes.sizes[i] && sizes.sizes[i] <= most.sizes[i];
    }
    if (!inside) tell("outside %s %s", name, said(sizes).c_str());
    return inside;
  }
  static Dims shape(Context *self, const char *name) {
    std::map<std::string, std::int64_t> sizes;
    for (const auto &[input, given] : self->shapes) {
      const Shape &named = self->engine->entries[input].shape;
      for (std::size_t i = 0; i < named.size(); ++i) sizes[named[i]] = given.sizes[i];
    }
    const Shape &named = self->engine->entries[name].shape;
    Dims out = dims(named);
    for (std::size_t i = 0; i < named.size(); ++i) {
      if (open(named[i]) && sizes.count(named[i])) out.sizes[i] = sizes[named[i]];
    }
    return out;
  }
  static bool set_address(Context *self, const char *name, void *at) {
    self->addresses[name] = at;
    return true;
  }
  static bool enqueue(Context *self, void *) {
    std::string line = "run";
    for (const std::string &name : self->engine->names) {
      char at[32];
      snprintf(at, sizeof at, "%p", self->addresses[name]);
      line += ' ' + name + '=' + said(shape(self, name.c_str())) + '@' + at;
    }
    tell("%s", line.c_str());
    return true;
  }
  static Answers answers() {
    return {{21, slot(&set_shape)},
            {22, slot(&shape)},
            {24, slot(&set_address)},
            {37, slot(&enqueue)}};
  }
};

inline Face *Engine::create_context(Engine *self, int) {
  auto *made = new Context;
  made->engine = self;
  return &made->face;
}

struct Runtime : Object<Runtime> {
  static constexpr const char *kName = "IRuntime";

  static Face *deserialize(Runtime *, const char *data, std::size_t size) {
    auto *made = new Engine;
    if (!made->load(std::string(data, size))) {
      delete made;
      return nullptr;
    }
    tell("opened");
    return &made->face;
  }
  static Answers answers() { return {{3, slot(&deserialize)}}; }
};

}  // namespace stand_in
