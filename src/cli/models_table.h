// What the families are and where each of them runs, found out by asking: a small graph of the family is built, every
// op of it offered to the kernels of each compiled-in backend, and its weights divided over ranks.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion::cli {

struct FamilyRow {
  std::string architecture;
  std::vector<std::string> options;   // keys of config.json beyond what every decoder has
  std::vector<std::string> backends;  // that have a kernel for each of its ops
  std::vector<std::string> sharding;  // "tensor", "pipeline": how its weights divide
};

Result<std::vector<FamilyRow>> family_rows();

std::string models_text(const std::vector<FamilyRow>& rows);      // a family per line
std::string models_markdown(const std::vector<FamilyRow>& rows);  // docs/guide/models.md
Json models_json(const std::vector<FamilyRow>& rows);

}  // namespace pinion::cli
