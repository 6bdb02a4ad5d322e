// Stand-ins for TensorRT's objects, as the published provider of ONNX Runtime calls them.
//
// A class of NVIDIA's interface is a table of functions and a pointer to an implementation, which
// begins with a table of its own. A slot that a class here does not answer ends the
// process and says its number, so that a provider that asks for more is seen at once. The numbers are the
// order of virtual functions in the public headers of 10.16; a destructor takes two.
//
// Nothing is computed. An engine is the text that says which profile it was "built" for, and
// STAND_IN_LOG names the file where what was asked for is written down.

#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace stand_in {

using Slot = void *;
constexpr int kSlots = 100;

inline void tell(const char *format, ...) {
  const char *path = getenv("STAND_IN_LOG");
  FILE *log = path ? fopen(path, "a") : nullptr;
  if (!log) return;
  va_list values;
  va_start(values, format);
  vfprintf(log, format, values);
  va_end(values);
  fputc('\n', log);
  fclose(log);
}

template <class T, int N>
long unknown() {
  fprintf(stderr, "stand-in for TensorRT: slot %d of %s has no answer\n", N, T::kName);
  abort();
}

template <class T, int... N>
Slot *fresh(std::integer_sequence<int, N...>) {
  static Slot slots[] = {reinterpret_cast<Slot>(&unknown<T, N>)...};
  return slots;
}

template <class F>
Slot slot(F *function) {
  return reinterpret_cast<Slot>(function);
}

template <class T>
void ended(void *face) {
  delete *reinterpret_cast<T **>(static_cast<char *>(face) + sizeof(Slot *));
}

// The table of a class, filled once from its `answers`.
template <class T>
Slot *table() {
  static Slot *slots = [] {
    Slot *made = fresh<T>(std::make_integer_sequence<int, kSlots>());
    for (const auto &[number, function] : T::answers()) made[number] = function;
    return made;
  }();
  return slots;
}

template <class T>
struct Faces {
  static constexpr const char *kName = T::kName;
  static std::vector<std::pair<int, Slot>> answers() {
    return {{1, slot(&ended<T>)}};
  }
};

// What a caller holds: a table with the destructors, and where the implementation is.
struct Face {
  Slot *slots;
  void *implementation;
};

template <class T>
struct Object {
  Slot *slots = table<T>();
  Face face{table<Faces<T>>(), this};
};

template <class T>
T *behind(void *face) {
  return static_cast<T *>(static_cast<Face *>(face)->implementation);
}

using Answers = std::vector<std::pair<int, Slot>>;

inline bool yes(void *) { return true; }
inline bool no(void *) { return false; }

}  // namespace stand_in
