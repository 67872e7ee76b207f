#include "models/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "tensor/convert.h"

namespace pinion {
namespace {

// The families' names of one number, the most common first; the first that is present counts.
using Names = std::array<std::string_view, 5>;
constexpr Names kHidden{"hidden_size", "n_embd", "n_embed"};
constexpr Names kIntermediate{"intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"};
constexpr Names kLayers{"num_hidden_layers", "n_layer"};
constexpr Names kHeads{"num_attention_heads", "n_head"};
constexpr Names kKvHeads{"num_key_value_heads", "num_kv_heads", "n_head_kv"};
constexpr Names kPositions{"max_position_embeddings", "n_positions"};
constexpr Names kEps{"rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"};
constexpr Names kActivation{"hidden_activation", "hidden_act", "activation_function", "activation"};
constexpr Names kTheta{"rope_theta", "rotary_emb_base"};
constexpr Names kPartial{"partial_rotary_factor", "rotary_pct"};

std::string_view present(const ConfigReader& json, const Names& names) {
  for (std::string_view name : names) {
    if (!name.empty() && json.has(name)) return name;
  }
  return names[0];
}

// One rope section, over what `s` already says.
Status read_rope_section(const ConfigReader& r, RopeSpec& s, double& partial) {
  PINION_TRY(std::string type, r.string_or("type", name(s.type)));
  PINION_TRY(type, r.string_or("rope_type", type));
  if (type == "su") type = "longrope";
  constexpr std::array kTypes{RopeType::plain, RopeType::linear, RopeType::dynamic,
                              RopeType::yarn,  RopeType::llama3, RopeType::longrope};
  const auto known = std::ranges::find_if(kTypes, [&](RopeType t) { return name(t) == type; });
  if (known == kTypes.end()) {
    return r.error("rope_type", fmt::format("the rope scaling \"{}\" is not supported", type),
                   "supported: default, linear, dynamic, yarn, llama3, longrope");
  }
  s.type = *known;
  PINION_TRY(s.theta, r.float_or("rope_theta", s.theta, {1, 1e12}));
  PINION_TRY(partial, r.float_or("partial_rotary_factor", partial, {0.01, 1}));
  PINION_TRY(s.factor, r.float_or("factor", s.factor, {1e-3, 1e6}));
  PINION_TRY(s.original_max_position, r.int_or("original_max_position_embeddings", s.original_max_position));
  PINION_TRY(s.low_freq_factor, r.float_or("low_freq_factor", s.low_freq_factor, {1e-6, 1e6}));
  PINION_TRY(s.high_freq_factor, r.float_or("high_freq_factor", s.high_freq_factor, {1e-6, 1e6}));
  PINION_TRY(s.beta_fast, r.float_or("beta_fast", s.beta_fast, {1e-6, 1e6}));
  PINION_TRY(s.beta_slow, r.float_or("beta_slow", s.beta_slow, {1e-6, 1e6}));
  PINION_TRY(s.mscale, r.float_or("mscale", s.mscale));
  PINION_TRY(s.mscale_all_dim, r.float_or("mscale_all_dim", s.mscale_all_dim));
  PINION_TRY(s.truncate, r.bool_or("truncate", s.truncate));
  PINION_TRY(s.attention_factor, r.float_or("attention_factor", 0, {0, 1e3}));
  PINION_TRY(auto short_factor, r.find_floats("short_factor"));
  PINION_TRY(auto long_factor, r.find_floats("long_factor"));
  if (short_factor) s.short_factor = std::move(*short_factor);
  if (long_factor) s.long_factor = std::move(*long_factor);
  return {};
}

Status read_rope(const ConfigReader& json, const FamilyDefaults& d, const ModelOverrides& over, ModelConfig& c) {
  RopeSpec& s = c.rope;
  s.max_position = c.max_position;
  PINION_TRY(s.theta, json.float_or(present(json, kTheta), d.rope_theta, {1, 1e12}));
  PINION_TRY(double partial, json.float_or(present(json, kPartial), d.partial_rotary, {0.01, 1}));
  PINION_TRY(s.original_max_position, json.int_or("original_max_position_embeddings", 0));
  // Gemma 3: sliding layers have a base of their own, and no scaling.
  PINION_TRY(auto local_theta, json.find_float("rope_local_base_freq", {1, 1e12}));
  if (local_theta) c.sliding_rope = RopeSpec{.theta = *local_theta, .max_position = c.max_position};
  for (const char* key : {"rope_scaling", "rope_parameters"}) {  // the second is the 5.x style and wins
    PINION_TRY(auto section, json.find_section(key));
    if (!section) continue;
    PINION_TRY(auto full, section->find_section("full_attention"));
    PINION_TRY(auto sliding, section->find_section("sliding_attention"));
    PINION_OK(read_rope_section(full ? *full : *section, s, partial));
    if (sliding) {
      c.sliding_rope = RopeSpec{.theta = d.rope_theta, .max_position = c.max_position};
      PINION_OK(read_rope_section(*sliding, *c.sliding_rope, partial));
    }
  }
  s.rotary_dim = static_cast<int32_t>(static_cast<double>(c.head_dim) * partial);
  if (over.rope_theta) s.theta = *over.rope_theta;
  if (over.rope_scaling_factor) {
    s.factor = *over.rope_scaling_factor;
    if (s.type == RopeType::plain && s.factor != 1) s.type = RopeType::linear;
  }
  if (c.sliding_rope) {
    c.sliding_rope->rotary_dim = s.rotary_dim;
    PINION_OK(validate(*c.sliding_rope, json.where()));
  }
  return validate(s, json.where());
}

Result<Activation> read_activation(const ConfigReader& json, std::string_view absent) {
  const std::string_view key = present(json, kActivation);
  PINION_TRY(std::string act, json.string_or(key, absent));
  if (act == "silu" || act == "swish") return Activation::silu;
  if (act == "gelu") return Activation::gelu;
  if (act == "gelu_new" || act == "gelu_fast" || act == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (act == "relu") return Activation::relu;
  if (act == "relu2") return Activation::relu2;
  if (act == "quick_gelu") return Activation::quick_gelu;
  return json.error(key, fmt::format("the activation \"{}\" is not supported", act),
                    "supported: silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, relu2, quick_gelu");
}

}  // namespace

Result<ModelConfig> read_decoder_config(const ConfigReader& json, const FamilyDefaults& d, const ModelOverrides& over) {
  ModelConfig c;
  PINION_TRY(c.vocab_size, json.require_int("vocab_size", {1, 1 << 24}));
  PINION_TRY(c.hidden_size, json.require_int(present(json, kHidden), {1, 1 << 20}));
  const std::string_view intermediate = present(json, kIntermediate);
  if (d.mlp_factor > 0) {
    PINION_TRY(c.intermediate_size, json.int_or(intermediate, d.mlp_factor * c.hidden_size, {1, 1 << 22}));
  } else {
    PINION_TRY(c.intermediate_size, json.require_int(intermediate, {1, 1 << 22}));
  }
  PINION_TRY(c.layers, json.require_int(present(json, kLayers), {1, 4096}));
  PINION_TRY(c.heads, json.require_int(present(json, kHeads), {1, 65536}));
  PINION_TRY(c.kv_heads, json.int_or(present(json, kKvHeads), c.heads, {1, 65536}));
  PINION_TRY(c.head_dim, json.int_or("head_dim", d.head_dim > 0 ? d.head_dim : c.hidden_size / c.heads, {1, 4096}));
  PINION_TRY(c.max_position, json.int_or(present(json, kPositions), d.max_position, {1, int64_t{1} << 30}));
  PINION_TRY(double eps, json.float_or(present(json, kEps), d.norm_eps, {0, 1}));
  c.norm_eps = static_cast<float>(eps);
  PINION_TRY(c.tie_embeddings, json.bool_or("tie_word_embeddings", d.tie_embeddings));
  PINION_TRY(c.attention_bias, json.bool_or("attention_bias", false));
  PINION_TRY(c.mlp_bias, json.bool_or("mlp_bias", false));
  PINION_TRY(c.activation, read_activation(json, d.activation));
  PINION_TRY(c.sliding_window, json.find_int("sliding_window", {0, int64_t{1} << 30}));
  if (c.sliding_window == 0) c.sliding_window.reset();
  PINION_TRY(std::string dtype, json.string_or("torch_dtype", "bfloat16"));
  PINION_TRY(dtype, json.string_or("dtype", dtype));
  const auto type = dtype_from_name(dtype);
  if (!type || !is_float(*type))
    return json.error("dtype", fmt::format("the dtype \"{}\" is not supported", dtype),
                      "supported: float32, float16, bfloat16");
  c.dtype = over.dtype.value_or(*type);
  if (c.heads % c.kv_heads)
    return json.error(present(json, kKvHeads),
                      fmt::format("{} query heads do not divide over {} KV heads", c.heads, c.kv_heads));
  if (!d.rope) return c;
  if (c.head_dim % 2) return json.error("head_dim", "must be even");
  PINION_OK(read_rope(json, d, over, c));
  return c;
}

int64_t context_length(const ModelConfig& c) {
  // yarn and longrope publish the stretched length; linear and dynamic factors apply on top of the trained one.
  const bool stretches = c.rope.type == RopeType::dynamic || c.rope.type == RopeType::linear;
  return stretches ? static_cast<int64_t>(static_cast<double>(c.max_position) * std::max(1.0, c.rope.factor))
                   : c.max_position;
}

Status read_sliding_layers(const ConfigReader& json, ModelConfig& c, bool (*slides)(const ConfigReader&, int64_t)) {
  if (!c.sliding_window) return {};
  PINION_TRY(auto types, json.find_strings("layer_types"));
  if (types && static_cast<int64_t>(types->size()) != c.layers)
    return json.error("layer_types", fmt::format("has {} entries for {} layers", types->size(), c.layers));
  c.sliding_layers.resize(c.layers);
  for (int64_t i = 0; i < c.layers; ++i) {
    if (types && (*types)[i] != "full_attention" && (*types)[i] != "sliding_attention") {
      return json.error("layer_types", fmt::format("the layer type \"{}\" is not supported", (*types)[i]));
    }
    c.sliding_layers[i] = types ? (*types)[i] == "sliding_attention" : slides(json, i);
  }
  return {};
}

Status read_optional_window(const ConfigReader& json, ModelConfig& c) {
  PINION_TRY(bool slides, json.bool_or("use_sliding_window", false));
  if (!slides) c.sliding_window.reset();
  PINION_TRY(int64_t first, json.int_or("max_window_layers", 28));
  PINION_OK(read_sliding_layers(json, c, [](const ConfigReader&, int64_t) { return true; }));
  if (c.sliding_window && !json.has("layer_types")) {
    for (int64_t i = 0; i < std::min(first, c.layers); ++i) c.sliding_layers[i] = false;
  }
  return {};
}

Status refuse_options(const ConfigReader& json, std::initializer_list<std::string_view> keys) {
  for (std::string_view key : keys) {
    PINION_TRY(bool set, json.bool_or(key, false));
    if (set) return json.error(key, "this option is not implemented", "use a checkpoint without it");
  }
  return {};
}

float rounded(float x, DType type) {
  alignas(4) std::byte stored[4];
  store_f32(stored, type, 0, x);
  return load_f32(stored, type, 0);
}

}  // namespace pinion
