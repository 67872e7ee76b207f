#include "checkpoint/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "checkpoint/config_reader.h"
#include "checkpoint/safetensors_header.h"  // shown_name

namespace pinion {
namespace {

using TensorName = std::pair<std::string_view, std::string_view>;  // GGUF's, the checkpoint's
struct Family {
  std::string_view gguf, model_type, architecture;
  bool paired = false;                 // llama.cpp stores q and k of this architecture for interleaved rotation
  bool windows = false;                // has a sliding window on every layer
  std::array<TensorName, 2> own = {};  // tensors of a layer whose names differ from kLayer's
  std::string_view activation = "silu";
  TensorName norm_eps = {".attention.layer_norm_rms_epsilon", "rms_norm_eps"};
};
constexpr std::array kFamilies{Family{"llama", "llama", "LlamaForCausalLM", true},
                               Family{"qwen2", "qwen2", "Qwen2ForCausalLM"},
                               Family{"qwen3", "qwen3", "Qwen3ForCausalLM"},
                               Family{"phi3",
                                      "phi3",
                                      "Phi3ForCausalLM",
                                      false,
                                      true,
                                      {{{"attn_qkv", "self_attn.qkv_proj"}, {"ffn_up", "mlp.gate_up_proj"}}}},
                               Family{"starcoder2",
                                      "starcoder2",
                                      "Starcoder2ForCausalLM",
                                      false,
                                      true,
                                      {{{"ffn_up", "mlp.c_fc"}, {"ffn_down", "mlp.c_proj"}}},
                                      "gelu_pytorch_tanh",
                                      {".attention.layer_norm_epsilon", "norm_epsilon"}}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kTop{
    {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}}};
constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kLayer{
    {{"attn_norm", "input_layernorm"},
     {"attn_q", "self_attn.q_proj"},
     {"attn_k", "self_attn.k_proj"},
     {"attn_v", "self_attn.v_proj"},
     {"attn_output", "self_attn.o_proj"},
     {"attn_q_norm", "self_attn.q_norm"},
     {"attn_k_norm", "self_attn.k_norm"},
     {"ffn_norm", "post_attention_layernorm"},
     {"ffn_gate", "mlp.gate_proj"},
     {"ffn_up", "mlp.up_proj"},
     {"ffn_down", "mlp.down_proj"}}};

// The checkpoint's name of a tensor; empty: unknown.
std::string hf_name(std::string_view gguf, const Family& family) {
  const size_t dot = gguf.rfind('.');
  if (dot == std::string_view::npos) return {};
  const std::string_view kind = gguf.substr(dot);
  std::string_view stem = gguf.substr(0, dot);
  if (kind != ".weight" && kind != ".bias") return {};
  const auto find = [&](const auto& table, const std::string& prefix) -> std::string {
    for (const auto& [from, to] : table) {
      if (from == stem && !to.empty()) return fmt::format("{}{}{}", prefix, to, kind);
    }
    return {};
  };
  if (!stem.starts_with("blk.")) return find(kTop, "");
  stem.remove_prefix(4);
  const size_t end = stem.find('.');
  if (end == std::string_view::npos || end == 0 || end > 5 ||
      stem.substr(0, end).find_first_not_of("0123456789") != std::string_view::npos) {
    return {};
  }
  const std::string prefix = fmt::format("model.layers.{}.", stem.substr(0, end));
  stem.remove_prefix(end + 1);
  const std::string own = find(family.own, prefix);
  return own.empty() ? find(kLayer, prefix) : own;
}

constexpr std::string_view kRopeFreqs = "rope_freqs.weight", kRopeLong = "rope_factors_long.weight",
                           kRopeShort = "rope_factors_short.weight";

// The dividers of llama 3's rotation are stored as they are: longrope's factors say the same.
Result<Json> rope_factors(std::string_view name, const GgufTensor& t, const std::string& where) {
  if (t.type != GgmlType::f32 || t.shape.size() != 1)
    return fail(Errc::corrupt, fmt::format("{} is no F32 vector", name), where);
  std::vector<float> factors(t.shape[0]);
  std::memcpy(factors.data(), t.data.data(), t.data.size());
  if (std::ranges::any_of(factors, [](float f) { return !std::isfinite(f) || f <= 0; }))
    return fail(Errc::corrupt, fmt::format("{} has a factor that is not positive", name), where);
  return Json(factors);
}

Status read_scaling(const ConfigReader& m, const std::string& arch, const GgufFile& file, Json& config) {
  PINION_TRY(const std::string type, m.string_or(arch + ".rope.scaling.type", "none"));
  const auto freqs = file.tensors().find(kRopeFreqs);
  const auto longer = file.tensors().find(kRopeLong), shorter = file.tensors().find(kRopeShort);
  if (longer != file.tensors().end() && shorter != file.tensors().end() && (type == "none" || type == "longrope")) {
    PINION_TRY(const Json long_factors, rope_factors(kRopeLong, longer->second, m.where()));
    PINION_TRY(const Json short_factors, rope_factors(kRopeShort, shorter->second, m.where()));
    PINION_TRY(const int64_t original,
               m.require_int(arch + ".rope.scaling.original_context_length", {1, int64_t{1} << 30}));
    config["original_max_position_embeddings"] = original;
    config["rope_scaling"] = {{"rope_type", "longrope"},
                              {"short_factor", short_factors},
                              {"long_factor", long_factors},
                              {"original_max_position_embeddings", original}};
    if (m.has(arch + ".rope.scaling.attn_factor")) {
      PINION_TRY(config["rope_scaling"]["attention_factor"],
                 m.float_or(arch + ".rope.scaling.attn_factor", 1, {1e-3, 1e3}));
    }
    return {};
  }
  if (freqs != file.tensors().end()) {
    if (type != "none")
      return m.error(arch + ".rope.scaling.type", "rope_freqs.weight and a scaling exclude each other");
    PINION_TRY(const Json factors, rope_factors(kRopeFreqs, freqs->second, m.where()));
    config["rope_scaling"] = {{"rope_type", "longrope"},
                              {"short_factor", factors},
                              {"long_factor", factors},
                              {"attention_factor", 1.0},
                              {"original_max_position_embeddings", config.at("max_position_embeddings")}};
    return {};
  }
  if (type == "none") return {};
  PINION_TRY(const double factor, m.float_or(arch + ".rope.scaling.factor", 1, {1e-3, 1e6}));
  if (type == "linear") {
    config["rope_scaling"] = {{"rope_type", "linear"}, {"factor", factor}};
    return {};
  }
  if (type != "yarn")
    return m.error(arch + ".rope.scaling.type", fmt::format("\"{}\" is not supported", type),
                   "supported: none, linear, yarn");
  PINION_TRY(const int64_t original,
             m.require_int(arch + ".rope.scaling.original_context_length", {1, int64_t{1} << 30}));
  config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", factor}, {"original_max_position_embeddings", original}};
  return {};
}

Result<Json> read_config(const ConfigReader& m, const Family& family, const GgufFile& file) {
  const std::string a(family.gguf);
  Json c{
      {"model_type", family.model_type}, {"architectures", {family.architecture}}, {"hidden_act", family.activation}};
  constexpr IntRange kSize{1, 1 << 24};
  for (const auto& [from, to] : {std::pair{".embedding_length", "hidden_size"},
                                 {".block_count", "num_hidden_layers"},
                                 {".feed_forward_length", "intermediate_size"},
                                 {".attention.head_count", "num_attention_heads"},
                                 {".context_length", "max_position_embeddings"}}) {
    PINION_TRY(c[to], m.require_int(a + from, kSize));
  }
  PINION_TRY(c["num_key_value_heads"], m.int_or(a + ".attention.head_count_kv", c["num_attention_heads"], kSize));
  PINION_TRY(c[std::string(family.norm_eps.second)], m.float_or(a + std::string(family.norm_eps.first), 1e-5, {0, 1}));
  PINION_TRY(c["rope_theta"], m.float_or(a + ".rope.freq_base", 10000, {1, 1e12}));
  PINION_TRY(const auto key_length, m.find_int(a + ".attention.key_length", kSize));
  PINION_TRY(const auto value_length, m.find_int(a + ".attention.value_length", kSize));
  if (key_length != value_length)
    return m.error(a + ".attention.value_length", "keys and values of different lengths are not supported");
  const int64_t head_dim =
      key_length.value_or(c["hidden_size"].get<int64_t>() / c["num_attention_heads"].get<int64_t>());
  c["head_dim"] = head_dim;
  PINION_TRY(const int64_t rotary, m.int_or(a + ".rope.dimension_count", head_dim, kSize));
  if (rotary != head_dim)
    return m.error(a + ".rope.dimension_count", "a rotation of a part of each head is not supported");
  PINION_TRY(const int64_t experts, m.int_or(a + ".expert_count", 0));
  if (experts > 0) return m.error(a + ".expert_count", "experts are not supported", "give the Hugging Face checkpoint");
  for (const char* key : {".attention.sliding_window", ".attn_logit_softcapping", ".final_logit_softcapping"}) {
    if (family.windows && key == std::string_view(".attention.sliding_window")) continue;
    if (m.has(a + key)) return m.error(a + key, "this option is not supported", "give the Hugging Face checkpoint");
  }
  if (family.windows && m.has(a + ".attention.sliding_window")) {
    PINION_TRY(c["sliding_window"], m.require_int(a + ".attention.sliding_window", {0, int64_t{1} << 30}));
  }
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2)
    return fail(Errc::corrupt, "the file has no matrix token_embd.weight", m.where());
  c["vocab_size"] = embedding->second.shape[0];
  c["tie_word_embeddings"] = !file.tensors().contains("output.weight");
  const bool bias = file.tensors().contains("blk.0.attn_q.bias");
  if (family.gguf == "llama") c["attention_bias"] = bias;
  if (family.gguf == "starcoder2") c["use_bias"] = bias;
  const bool bf16 = embedding->second.type == GgmlType::bf16, f32 = embedding->second.type == GgmlType::f32;
  c["torch_dtype"] = bf16 ? "bfloat16" : f32 ? "float32" : "float16";
  const int64_t vocab = c["vocab_size"];
  Json ends = Json::array();
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    PINION_TRY(const auto id, m.find_int(key, {0, vocab - 1}));
    if (id && std::ranges::find(ends, Json(*id)) == ends.end()) ends.push_back(*id);
  }
  if (!ends.empty()) c["eos_token_id"] = ends;
  PINION_TRY(const auto bos, m.find_int("tokenizer.ggml.bos_token_id", {0, vocab - 1}));
  if (bos) c["bos_token_id"] = *bos;
  PINION_OK(read_scaling(m, a, file, c));
  return c;
}

}  // namespace

Result<GgufModel> read_gguf_model(const GgufFile& file) {
  const std::string where = file.path().string();
  const ConfigReader m(file.metadata(), where);
  PINION_TRY(const std::string architecture, m.string_or("general.architecture", ""));
  const auto family = std::ranges::find(kFamilies, architecture, &Family::gguf);
  if (family == kFamilies.end()) {
    std::string known;
    for (const Family& f : kFamilies) known += fmt::format("{}{}", known.empty() ? "" : ", ", f.gguf);
    return m.error("general.architecture", fmt::format("\"{}\" is not read from GGUF", architecture),
                   "supported: " + known + "; others from their Hugging Face checkpoint");
  }
  GgufModel out;
  PINION_TRY(out.config, read_config(m, *family, file));
  const int64_t head_dim = out.config["head_dim"];
  for (const auto& [name, tensor] : file.tensors()) {
    if (name == kRopeFreqs || name == kRopeLong || name == kRopeShort) continue;
    std::string to = hf_name(name, *family);
    if (to.empty()) {
      return fail(Errc::unsupported, fmt::format("the tensor {} is not known", shown_name(name)), where,
                  "it may change the weights' meaning");
    }
    if (family->paired && (name.find(".attn_q.") != std::string::npos || name.find(".attn_k.") != std::string::npos)) {
      if (head_dim % 2 != 0 || tensor.shape[0] % head_dim != 0)
        return fail(Errc::corrupt, fmt::format("the rows of {} are no whole heads", shown_name(name)), where);
      out.paired_rows[to] = head_dim;
    }
    out.names[std::move(to)] = name;
  }
  auto files = gguf_tokenizer(file.metadata(), where);
  if (files.ok()) {
    out.files = *std::move(files);
  } else {
    out.no_tokenizer = files.error().message;
  }
  return out;
}

}  // namespace pinion
