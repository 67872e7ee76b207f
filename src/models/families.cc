#include "models/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "graph/builder.h"
#include "models/family_list.h"

namespace pinion {
namespace {

#define PINION_FAMILY(space, architecture, options) ModelFamily{architecture, space::config, space::build, options},
constexpr std::array kFamilies{PINION_FAMILIES(PINION_FAMILY)};
#undef PINION_FAMILY

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

Json example_config(std::string_view architecture) {
  return {{"architectures", {architecture}},
          {"vocab_size", 96},
          {"hidden_size", 64},
          {"intermediate_size", 48},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 4},
          {"head_dim", 8},
          {"sliding_window", 16},
          {"use_sliding_window", true},
          {"max_position_embeddings", 64},
          // what families with experts and latent attention need
          {"num_experts", 4},
          {"num_local_experts", 4},
          {"n_routed_experts", 4},
          {"num_experts_per_tok", 2},
          {"moe_intermediate_size", 16},
          {"shared_expert_intermediate_size", 16},
          {"kv_lora_rank", 8},
          {"qk_nope_head_dim", 4},
          {"qk_rope_head_dim", 4},
          {"v_head_dim", 4}};
}

Result<Model> build_model(const Json& json, std::string_view where, const ModelOverrides& overrides) {
  if (!json.is_object()) return fail(Errc::corrupt, "the configuration is no JSON object", where);
  const ConfigReader reader(json, std::string(where));
  PINION_TRY(std::string wanted, architecture(reader));
  const auto family = std::ranges::find(kFamilies, wanted, &ModelFamily::architecture);
  if (family == kFamilies.end()) {
    if (reader.has("auto_map")) {
      return fail(Errc::unsupported,
                  fmt::format("the architecture \"{}\" is Python code in the checkpoint (auto_map), which is never run",
                              wanted),
                  where, "use a checkpoint of a family that Pinion knows");
    }
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
