#include "backend/all/backends.h"

#include "backend/cpu/cpu_backend.h"
#ifdef PINION_WITH_CUDA
#include "backend/cuda/cuda_backend.h"
#endif
#include "backend/reference/reference_backend.h"

namespace pinion {

std::span<const Backend* const> backends() {
  static const Backend* const list[] = {&cpu_backend(),
#ifdef PINION_WITH_CUDA
                                        &cuda_backend(),
#endif
                                        &reference_backend()};
  return list;
}

const Backend* find_backend(std::string_view name) {
  for (const Backend* backend : backends()) {
    if (backend->name() == name) return backend;
  }
  return nullptr;
}

}  // namespace pinion
