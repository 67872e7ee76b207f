#include "quant/quantized_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "checkpoint/hf_cache.h"
#include "quant/sources/sources.h"

namespace pinion {
namespace {

struct Method {
  std::string_view name;  // quant_method
  SourceResult (*open)(const Checkpoint&, const ConfigReader&);
};
constexpr std::array kMethods{Method{"awq", open_awq},
                              Method{"gptq", open_gptq},
                              Method{"compressed-tensors", open_compressed_tensors},
                              Method{"fp8", open_hf_fp8},
                              Method{"fbgemm_fp8", open_fbgemm_fp8},
                              Method{"modelopt", open_modelopt},
                              Method{"modelopt_fp4", open_modelopt},
                              Method{"mxfp4", open_mxfp4}};

// What may lie beside a linear's weight without changing its result: read by the sources, or about the inputs' and the
// cache's ranges.
constexpr std::array<std::string_view, 24> kKnownParts{"weight",
                                                       "bias",
                                                       "qweight",
                                                       "qzeros",
                                                       "scales",
                                                       "g_idx",
                                                       "weight_scale",
                                                       "weight_scale_inv",
                                                       "weight_scale_2",
                                                       "weight_packed",
                                                       "weight_shape",
                                                       "weight_g_idx",
                                                       "weight_zero_point",
                                                       "weight_global_scale",
                                                       "input_scale",
                                                       "input_global_scale",
                                                       "pre_quant_scale",
                                                       "k_scale",
                                                       "v_scale",
                                                       "output_scale",
                                                       "input_zero_point",
                                                       "kv_scale",
                                                       "q_scale",
                                                       "input_scale_ub"};

// Older files beside config.json, with the method that each implies.
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kSideFiles{
    {{"hf_quant_config.json", "modelopt"}, {"quantize_config.json", "gptq"}, {"quant_config.json", "awq"}}};

Result<std::unique_ptr<QuantSource>> open_source(const Checkpoint& checkpoint, const ConfigReader& description,
                                                 std::string_view implied) {
  PINION_TRY(const std::string method, description.string_or("quant_method", implied));
  const auto it = std::ranges::find(kMethods, method, &Method::name);
  if (it != kMethods.end()) return it->open(checkpoint, description);
  std::string known;
  for (const Method& m : kMethods) known += fmt::format("{}{}", known.empty() ? "" : ", ", m.name);
  return description.error("quant_method", fmt::format("\"{}\" is not supported", method), "supported: " + known);
}

}  // namespace

Result<QuantizedCheckpoint> QuantizedCheckpoint::open(const Checkpoint& checkpoint) {
  QuantizedCheckpoint out;
  out.checkpoint_ = &checkpoint;
  if (checkpoint.gguf() != nullptr) {
    out.source_ = open_gguf(checkpoint);
    out.names_ = checkpoint.names();
    return out;
  }
  if (checkpoint.is_dummy() && !checkpoint.config().contains("quantization_config")) return out;
  const ConfigReader config(checkpoint.config(), checkpoint.config_path().string());
  PINION_TRY(const auto section, config.find_section("quantization_config"));
  if (section) {
    PINION_TRY(out.source_, open_source(checkpoint, *section, ""));
  } else if (!checkpoint.is_dummy()) {
    for (const auto& [file, method] : kSideFiles) {
      const auto path = file_inside(checkpoint.dir(), file);
      if (!path) {
        if (path.error().code == Errc::not_found) continue;
        return path.error();
      }
      PINION_TRY(const Json json, read_json_file(*path, {.bytes = size_t{16} << 20, .depth = 64}));
      if (!json.is_object()) return fail(Errc::corrupt, "must hold a JSON object", path->string());
      PINION_TRY(out.source_, open_source(checkpoint, ConfigReader(json, path->string()), method));
      break;
    }
  }
  if (out.source_) out.names_ = checkpoint.names();
  return out;
}

Result<std::optional<QuantizedMatrix>> QuantizedCheckpoint::read(std::string_view prefix) const {
  if (!source_) return std::optional<QuantizedMatrix>();
  PINION_TRY(std::optional<QuantizedMatrix> m, source_->read(prefix));
  if (!m) return m;
  PINION_OK(validate(*m, fmt::format("{}, {}", prefix, checkpoint_->dir().string())));
  const std::string begin = std::string(prefix) + ".";
  for (auto it = std::ranges::lower_bound(names_, begin); it != names_.end() && it->starts_with(begin); ++it) {
    const std::string_view part = std::string_view(*it).substr(begin.size());
    if (part.find('.') == std::string_view::npos && std::ranges::find(kKnownParts, part) == kKnownParts.end()) {
      return fail(Errc::unsupported, fmt::format("the tensor \"{}\" is not known to {}", *it, source_->name()),
                  checkpoint_->dir().string(), "it may change the weights' meaning");
    }
  }
  return m;
}

}  // namespace pinion
