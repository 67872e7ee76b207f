#include "models/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "graph/builder.h"
#include "models/llama.h"

namespace pinion {
namespace {

constexpr std::array kFamilies{llama::kFamily, mistral::kFamily, qwen2::kFamily, qwen3::kFamily};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t next = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = std::exchange(row[j], next);
    }
  }
  return row[b.size()];
}

Result<std::string> architecture(const ConfigReader& reader) {
  PINION_TRY(auto list, reader.find_strings("architectures"));
  if (list && !list->empty()) return list->front();
  return reader.error("architectures", "the model's architecture is not named",
                      "add \"architectures\": [\"LlamaForCausalLM\"] or the like to config.json");
}

}  // namespace

std::span<const ModelFamily> model_families() {
  return kFamilies;
}

Result<Model> build_model(const Json& json, std::string_view where, const ModelOverrides& overrides) {
  if (!json.is_object()) return fail(Errc::corrupt, "the configuration is no JSON object", where);
  const ConfigReader reader(json, std::string(where));
  PINION_TRY(std::string wanted, architecture(reader));
  const auto family = std::ranges::find(kFamilies, wanted, &ModelFamily::architecture);
  if (family == kFamilies.end()) {
    const auto near = std::ranges::min_element(
        kFamilies, {}, [&](const ModelFamily& f) { return edit_distance(wanted, f.architecture); });
    std::string known;
    for (const ModelFamily& f : kFamilies) known += fmt::format("{}{}", known.empty() ? "" : ", ", f.architecture);
    return fail(Errc::unsupported, fmt::format("the architecture \"{}\" is not supported", wanted), where,
                fmt::format("the nearest family is {}; supported: {}", near->architecture, known));
  }
  Model model;
  PINION_TRY(model.config, family->config(reader, overrides));
  model.config.architecture = wanted;
  Builder builder(model.graph);
  family->build(builder, model.config);
  PINION_OK(verify(model.graph));
  return model;
}

}  // namespace pinion
