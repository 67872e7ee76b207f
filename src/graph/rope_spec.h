// Rotary embeddings as checkpoints configure them: the scalings of transformers' modeling_rope_utils (default, linear,
// dynamic, yarn, llama3, longrope), reduced to inverse frequencies and one factor on cos and sin.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

enum class RopeType : uint8_t { plain, linear, dynamic, yarn, llama3, longrope };

struct RopeSpec {
  RopeType type = RopeType::plain;
  int32_t rotary_dim = 0;
  double theta = 10000, factor = 1;
  int64_t max_position = 0, original_max_position = 0;
  double low_freq_factor = 1, high_freq_factor = 4;                      // llama3
  double beta_fast = 32, beta_slow = 1, mscale = 0, mscale_all_dim = 0;  // yarn
  bool truncate = true;                                                  // yarn
  double attention_factor = 0;                                           // 0: by the type's rule
  std::vector<double> short_factor, long_factor;                         // longrope, rotary_dim / 2 each
  bool operator==(const RopeSpec&) const = default;
};

struct RopeFrequencies {
  std::vector<float> inverse;  // rotary_dim / 2
  float attention_factor = 1;  // multiplies cos and sin
};

// `prompt_length` picks the variant of the types that depend on length; the others ignore it.
RopeFrequencies rope_frequencies(const RopeSpec& spec, int64_t prompt_length);
// Equal for prompt lengths that give the same frequencies: part of the key under which cached KV is shared.
uint64_t rope_variant(const RopeSpec& spec, int64_t prompt_length);
// Checks the numbers a division or logarithm depends on. `where` names the file.
Status validate(const RopeSpec& spec, std::string_view where);

std::string_view name(RopeType type);
Json to_json(const RopeSpec& spec);
Result<RopeSpec> rope_from_json(const Json& json, std::string_view where);

}  // namespace pinion
