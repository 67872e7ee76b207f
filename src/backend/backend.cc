#include "backend/backend.h"

#include <cstring>

namespace pinion {

std::string_view name(Layout layout) {
  switch (layout) {
    case Layout::row_major:
      return "row_major";
    case Layout::packed:
      return "packed";
  }
  return "?";
}

std::string str(const WeightSpec& spec) {
  if (spec.layout != Layout::packed) return std::string(name(spec.dtype));
  const Packing& p = spec.packing;
  std::string text(name(p.kind));
  if (p.group) text += " group " + std::to_string(p.group);
  if (p.zeros) text += " zeros";
  if (p.offsets) text += " offsets";
  if (p.ordered) text += " ordered";
  if (p.inputs != InputRounding::none) text += " inputs " + std::string(name(p.inputs));
  return text;
}

void Stream::copy_to_device(void* to, const void* host, size_t bytes) {
  std::memcpy(to, host, bytes);
}
void Stream::copy_to_host(void* host, const void* from, size_t bytes) {
  std::memcpy(host, from, bytes);
}
void Stream::copy_on_device(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
void Stream::fill(void* to, uint8_t value, size_t bytes) {
  std::memset(to, value, bytes);
}

std::string why_not_f32_values(const Call& call) {
  for (const auto* types : {&call.values.in, &call.values.out}) {
    for (DType t : *types) {
      if (is_float(t) && t != DType::f32) return "computes on float32 values, not " + std::string(name(t));
    }
  }
  return {};
}

const Kernel* find_kernel(const Backend& backend, std::string_view name) {
  for (int kind = 0; kind < kOpKinds; ++kind) {
    for (const Kernel& k : backend.kernels(static_cast<OpKind>(kind))) {
      if (k.name == name) return &k;
    }
  }
  return nullptr;
}

}  // namespace pinion
