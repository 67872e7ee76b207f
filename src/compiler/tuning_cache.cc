#include "compiler/tuning_cache.h"

#include <fmt/format.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"

namespace pinion {

TuningCache::TuningCache(const std::filesystem::path& directory, const DeviceInfo& d) {
  if (directory.empty()) return;
  const std::string device = fmt::format("{} {} {} {} {}", d.backend, d.name, d.isa, d.threads, kKernelSetVersion);
  file_ = directory / fmt::format("tuning-{}.json", hash128(device).hex());
  auto json = read_json_file(file_);
  if (!json) return;
  try {
    for (const auto& [problem, c] : json->at("problems").items()) {
      entries_[problem] = {
          c.at("kernel"), {c.at("tuning").get<std::array<int32_t, 4>>()}, c.at("estimate_us"), c.at("measured_us")};
    }
  } catch (const Json::exception&) {
    entries_.clear();
  }
}

std::optional<KernelChoice> TuningCache::find(const std::string& problem) const {
  const auto it = entries_.find(problem);
  return it == entries_.end() ? std::nullopt : std::optional(it->second);
}

void TuningCache::put(const std::string& problem, KernelChoice choice) {
  entries_[problem] = std::move(choice);
  changed_ = true;
}

Status TuningCache::save() const {
  if (file_.empty() || !changed_) return {};
  Json problems = Json::object();
  for (const auto& [problem, c] : entries_) {
    problems[problem] = {{"kernel", c.kernel},
                         {"tuning", c.tuning.value},
                         {"estimate_us", c.estimate_us},
                         {"measured_us", c.measured_us}};
  }
  std::error_code code;
  std::filesystem::create_directories(file_.parent_path(), code);
  return write_file(file_, Json{{"problems", problems}}.dump(1));
}

}  // namespace pinion
