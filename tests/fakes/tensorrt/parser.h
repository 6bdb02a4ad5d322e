// Reads of a model only what it takes and gives, how many nodes it has, and where its weights are.

#pragma once

#include "network.h"

#include <fstream>
#include <string_view>

namespace stand_in {

// One field of a message of Protocol Buffers: a number, or bytes.
struct Field {
  int number;
  std::uint64_t value;
  std::string_view bytes;
};

inline std::uint64_t varint(std::string_view &rest) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(rest.at(0));
    rest.remove_prefix(1);
    value |= std::uint64_t{byte & 127u} << shift;
    if (byte < 128) return value;
  }
}

inline std::vector<Field> fields(std::string_view rest) {
  std::vector<Field> out;
  while (!rest.empty()) {
    const std::uint64_t key = varint(rest);
    Field field{static_cast<int>(key >> 3), 0, {}};
    const int kind = key & 7;
    if (kind == 0) {
      field.value = varint(rest);
    } else {
      const std::uint64_t size = kind == 2 ? varint(rest) : kind == 1 ? 8 : 4;
      field.bytes = rest.substr(0, size);
      rest.remove_prefix(size);
    }
    out.push_back(field);
  }
  return out;
}

inline std::vector<Field> inside(const std::vector<Field> &message, int number) {
  for (const Field &field : message) {
    if (field.number == number) return fields(field.bytes);
  }
  return {};
}

// ValueInfoProto: its name, and in its type's tensor (1) the element type (1) and shape (2).
inline Tensor *tensor(std::string_view message) {
  auto *made = new Tensor;
  const auto value = fields(message);
  for (const Field &field : value) {
    if (field.number == 1) made->name = field.bytes;
  }
  const auto type = inside(inside(value, 2), 1);
  for (const Field &field : type) {
    if (field.number == 1) made->type = type_of(field.value);
  }
  for (const Field &dimension : inside(type, 2)) {
    std::string size = "?";
    for (const Field &field : fields(dimension.bytes)) {
      if (field.number == 1) size = std::to_string(field.value);
      if (field.number == 2) size = field.bytes;
    }
    made->shape.push_back(size);
  }
  return made;
}

// TensorProto: its name (8), its bytes (9), or where they are (13: keys and values). Whether
// those beside the model at `path` are there, as far as the size of their file says.
inline bool weights_are_there(std::string_view message, const std::string &path,
                              std::size_t &within) {
  std::map<std::string, std::string> said;
  for (const Field &field : fields(message)) {
    if (field.number == 9) within += field.bytes.size();
    if (field.number != 13) continue;
    const auto entry = fields(field.bytes);
    said[std::string(entry.at(0).bytes)] = entry.at(1).bytes;
  }
  if (said.empty()) return true;
  const std::string file = path.substr(0, path.rfind('/') + 1) + said["location"];
  std::ifstream weights(file, std::ios::binary | std::ios::ate);
  return weights && std::stoll(said["offset"]) + std::stoll(said["length"]) <= weights.tellg();
}

struct Parser {
  static constexpr const char *kName = "IParser";
  Slot *slots = table<Parser>();
  Network *network = nullptr;
  std::vector<std::int64_t> nodes;

  bool read_model(const char *how, const char *data, std::size_t size, const char *path) {
    bool complete = true;
    std::size_t within = 0;
    if (const char *folder = getenv("STAND_IN_MODELS")) {
      std::ofstream(std::string(folder) + '/' + how + ".onnx", std::ios::binary)
          .write(data, static_cast<std::streamsize>(size));
    }
    nodes.clear();
    for (const Field &field : inside(fields({data, size}), 7)) {
      if (field.number == 1) nodes.push_back(nodes.size());
      if (field.number == 5) complete &= weights_are_there(field.bytes, path, within);
      if (field.number == 11) network->inputs.push_back(tensor(field.bytes));
      if (field.number == 12) network->outputs.push_back(tensor(field.bytes));
    }
    tell("%s %zu nodes, %zu bytes of weights inside", how, nodes.size(), within);
    return complete;
  }

  static bool parse(Parser *self, const char *data, std::size_t size, const char *path) {
    return self->read_model("parsed", data, size, path ? path : "");
  }
  static bool supports(Parser *self, const char *data, std::size_t size, const char *path) {
    return self->read_model("asked", data, size, path ? path : "");
  }
  static std::int64_t parts(Parser *) { return 1; }
  static std::int64_t *part(Parser *self, std::int64_t, std::int64_t &count) {
    count = static_cast<std::int64_t>(self->nodes.size());
    return self->nodes.data();
  }
  static void end(Parser *self) { delete self; }
  static Answers answers() {
    return {{0, slot(&parse)},
            {9, slot(&end)},
            {17, slot(&supports)},
            {18, slot(&parts)},
            {20, slot(&part)}};
  }
};

}  // namespace stand_in
