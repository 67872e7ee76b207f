#include "models/config.h"

#include <fmt/format.h>

#include <algorithm>

namespace pinion {
namespace {

Result<RopeSpec> read_rope(const ConfigReader& json, const ModelConfig& c, const FamilyDefaults& d,
                           const ModelOverrides& over) {
  RopeSpec s;
  s.max_position = c.max_position;
  PINION_TRY(s.theta, json.float_or("rope_theta", d.rope_theta, {1, 1e12}));
  PINION_TRY(double partial, json.float_or("partial_rotary_factor", 1, {0.01, 1}));
  PINION_TRY(s.original_max_position, json.int_or("original_max_position_embeddings", 0));
  for (const char* section : {"rope_scaling", "rope_parameters"}) {  // the second is the 5.x style and wins
    PINION_TRY(auto found, json.find_section(section));
    if (!found) continue;
    const ConfigReader& r = *found;
    PINION_TRY(std::string type, r.string_or("type", "default"));
    PINION_TRY(type, r.string_or("rope_type", type));
    if (type == "su") type = "longrope";
    if (type == "default")
      s.type = RopeType::plain;
    else if (type == "linear")
      s.type = RopeType::linear;
    else if (type == "dynamic")
      s.type = RopeType::dynamic;
    else if (type == "yarn")
      s.type = RopeType::yarn;
    else if (type == "llama3")
      s.type = RopeType::llama3;
    else if (type == "longrope")
      s.type = RopeType::longrope;
    else
      return r.error("rope_type", fmt::format("the rope scaling \"{}\" is not supported", type),
                     "supported: default, linear, dynamic, yarn, llama3, longrope");
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
  }
  s.rotary_dim = static_cast<int32_t>(c.head_dim * partial);
  if (over.rope_theta) s.theta = *over.rope_theta;
  if (over.rope_scaling_factor) {
    s.factor = *over.rope_scaling_factor;
    if (s.type == RopeType::plain && s.factor != 1) s.type = RopeType::linear;
  }
  PINION_OK(validate(s, json.where()));
  return s;
}

Result<Activation> read_activation(const ConfigReader& json) {
  PINION_TRY(std::string act, json.string_or("hidden_act", "silu"));
  if (act == "silu" || act == "swish") return Activation::silu;
  if (act == "gelu") return Activation::gelu;
  if (act == "gelu_new" || act == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  if (act == "relu") return Activation::relu;
  return json.error("hidden_act", fmt::format("the activation \"{}\" is not supported", act),
                    "supported: silu, gelu, gelu_new, gelu_pytorch_tanh, relu");
}

}  // namespace

Result<ModelConfig> read_decoder_config(const ConfigReader& json, const FamilyDefaults& d, const ModelOverrides& over) {
  ModelConfig c;
  PINION_TRY(c.vocab_size, json.require_int("vocab_size", {1, 1 << 24}));
  PINION_TRY(c.hidden_size, json.require_int("hidden_size", {1, 1 << 20}));
  PINION_TRY(c.intermediate_size, json.require_int("intermediate_size", {1, 1 << 22}));
  PINION_TRY(c.layers, json.require_int("num_hidden_layers", {1, 4096}));
  PINION_TRY(c.heads, json.require_int("num_attention_heads", {1, 65536}));
  PINION_TRY(c.kv_heads, json.int_or("num_key_value_heads", c.heads, {1, 65536}));
  PINION_TRY(c.head_dim, json.int_or("head_dim", c.hidden_size / c.heads, {1, 4096}));
  PINION_TRY(c.max_position, json.int_or("max_position_embeddings", 2048, {1, int64_t{1} << 30}));
  PINION_TRY(double eps, json.float_or("rms_norm_eps", d.norm_eps, {0, 1}));
  c.norm_eps = static_cast<float>(eps);
  PINION_TRY(c.tie_embeddings, json.bool_or("tie_word_embeddings", d.tie_embeddings));
  PINION_TRY(c.attention_bias, json.bool_or("attention_bias", false));
  PINION_TRY(c.mlp_bias, json.bool_or("mlp_bias", false));
  PINION_TRY(c.activation, read_activation(json));
  PINION_TRY(c.sliding_window, json.find_int("sliding_window", {1, int64_t{1} << 30}));
  PINION_TRY(std::string dtype, json.string_or("torch_dtype", "bfloat16"));
  PINION_TRY(dtype, json.string_or("dtype", dtype));
  const auto type = dtype_from_name(dtype);
  if (!type || !is_float(*type))
    return json.error("dtype", fmt::format("the dtype \"{}\" is not supported", dtype),
                      "supported: float32, float16, bfloat16");
  c.dtype = *type;
  if (json.has("quantization_config")) {
    return json.error("quantization_config", "quantised checkpoints are not supported yet",
                      "use the checkpoint in bfloat16, float16 or float32");
  }
  if (c.heads % c.kv_heads)
    return json.error("num_key_value_heads",
                      fmt::format("{} query heads do not divide over {} KV heads", c.heads, c.kv_heads));
  if (c.head_dim % 2) return json.error("head_dim", "must be even");
  PINION_TRY(c.rope, read_rope(json, c, d, over));
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

}  // namespace pinion
