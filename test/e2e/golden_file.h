// Tensors of a golden.safetensors as vectors.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace pinion {

// Empty, and a failure of the test, when there is no such tensor.
template <class T>
std::vector<T> read(const SafetensorsFile& f, const std::string& name) {
  const auto it = f.tensors().find(name);
  if (it == f.tensors().end()) {
    ADD_FAILURE() << "no tensor " << name;
    return {};
  }
  const auto bytes = f.data(it->second);
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

}  // namespace pinion
