#include "backend/backend.h"

namespace pinion {

std::string_view name(Layout layout) {
  switch (layout) {
    case Layout::row_major:
      return "row_major";
  }
  return "?";
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
