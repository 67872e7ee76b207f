// The tuning cache: one JSON file per device and kernel set, problem → the kernel that was fastest. A damaged or
// foreign file is ignored and written anew: it only costs the timing again.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "engine/engine.h"

namespace pinion {

class TuningCache {
 public:
  TuningCache(const std::filesystem::path& directory, const DeviceInfo& device);  // empty: nothing is kept
  std::optional<KernelChoice> find(const std::string& problem) const;
  void put(const std::string& problem, KernelChoice choice);
  Status save() const;

 private:
  std::filesystem::path file_;
  std::map<std::string, KernelChoice> entries_;
  bool changed_ = false;
};

}  // namespace pinion
