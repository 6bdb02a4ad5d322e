// Shapes, and the network that a parser fills.

#pragma once

#include "tables.h"

#include <cctype>
#include <map>
#include <sstream>
#include <string>

namespace stand_in {

struct Dims {
  std::int32_t count;
  std::int64_t sizes[8];
};

// A dimension is a number, or a name where it is open.
using Shape = std::vector<std::string>;

inline bool open(const std::string &size) { return !isdigit(size[0]); }

inline Dims dims(const Shape &shape) {
  Dims out{static_cast<std::int32_t>(shape.size()), {}};
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out.sizes[i] = open(shape[i]) ? -1 : std::stoll(shape[i]);
  }
  return out;
}

inline std::string said(const Dims &sizes) {
  std::string out;
  for (int i = 0; i < sizes.count; ++i) {
    out += (i ? "x" : "") + std::to_string(sizes.sizes[i]);
  }
  return out.empty() ? "-" : out;
}

inline Dims read(const std::string &text) {
  Dims out{};
  std::stringstream parts(text);
  for (std::string part; text != "-" && std::getline(parts, part, 'x');) {
    out.sizes[out.count++] = std::stoll(part);
  }
  return out;
}

// DataType of TensorRT for TensorProto.DataType of ONNX.
inline int type_of(std::uint64_t onnx) {
  static const std::map<std::uint64_t, int> types{{1, 0}, {3, 2},  {6, 3},  {7, 8}, {9, 4},
                                                  {2, 5}, {10, 1}, {16, 7}, {17, 6}};
  return types.at(onnx);
}

struct Tensor : Object<Tensor> {
  static constexpr const char *kName = "ITensor";
  std::string name;
  int type = 0;
  Shape shape;

  static const char *get_name(Tensor *self) { return self->name.c_str(); }
  static Dims get_dimensions(Tensor *self) { return dims(self->shape); }
  static Answers answers() {
    // No value of an input becomes a shape: the test looks for that in the graph.
    return {{3, slot(&get_name)}, {5, slot(&get_dimensions)}, {21, slot(&no)}};
  }
};

struct Network : Object<Network> {
  static constexpr const char *kName = "INetworkDefinition";
  std::vector<Tensor *> inputs, outputs;

  static int input_count(Network *self) { return self->inputs.size(); }
  static Face *input(Network *self, int i) { return &self->inputs[i]->face; }
  static int output_count(Network *self) { return self->outputs.size(); }
  static Face *output(Network *self, int i) { return &self->outputs[i]->face; }
  static Answers answers() {
    return {{14, slot(&input_count)},
            {15, slot(&input)},
            {16, slot(&output_count)},
            {17, slot(&output)}};
  }
};

struct Profile : Object<Profile> {
  static constexpr const char *kName = "IOptimizationProfile";
  std::map<std::string, Dims[3]> shapes;

  static bool set(Profile *self, const char *name, int which, const Dims &sizes) {
    self->shapes[name][which] = sizes;
    return true;
  }
  static Answers answers() { return {{2, slot(&set)}}; }
};

}  // namespace stand_in
