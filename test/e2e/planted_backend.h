// For the tests of this folder: a backend with one kernel added or replaced, over another backend's devices. What a
// test plants is found by name, built into engines and launched exactly as a kernel that belongs there.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "backend/backend.h"

namespace pinion {

class PlantedBackend final : public Backend {
 public:
  explicit PlantedBackend(const Backend& base) : base_(base) {}

  // In front of the others of its kind; a kernel of the same name is replaced.
  void plant(const Kernel& kernel) {
    std::vector<Kernel>& list = of(kernel.op);
    const auto same = std::ranges::find(list, kernel.name, &Kernel::name);
    if (same != list.end()) {
      *same = kernel;
    } else {
      list.insert(list.begin(), kernel);
    }
  }

  std::string_view name() const override { return base_.name(); }
  std::vector<DeviceInfo> probe() const override { return base_.probe(); }
  Result<std::unique_ptr<Device>> open(const DeviceOptions& options) const override { return base_.open(options); }
  std::span<const Kernel> kernels(OpKind kind) const override {
    const auto list = lists_.find(kind);
    return list == lists_.end() ? base_.kernels(kind) : std::span<const Kernel>(list->second);
  }
  DType value_dtype(DType weights) const override { return base_.value_dtype(weights); }

 private:
  std::vector<Kernel>& of(OpKind kind) {
    const auto [list, fresh] = lists_.try_emplace(kind);
    if (fresh) list->second.assign(base_.kernels(kind).begin(), base_.kernels(kind).end());
    return list->second;
  }

  const Backend& base_;
  std::map<OpKind, std::vector<Kernel>> lists_;
};

}  // namespace pinion
