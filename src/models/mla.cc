#include "models/mla.h"

#include <cmath>

namespace pinion {

Value mla_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer) {
  constexpr float kEps = 1e-6f;  // of the two inner norms, whatever the model's is
  const MlaConfig& m = c.mla;
  b.graph().kv_layers[layer] = {1, m.rank + m.rope, 0, true};
  Value q = x;
  if (m.q_rank > 0) {
    q = b.linear(x, w / "q_a_proj", m.q_rank, {.bias = c.attention_bias});
    q = b.rms_norm(q, w / "q_a_layernorm", kEps);
  }
  q = b.linear(q, w / (m.q_rank > 0 ? "q_b_proj" : "q_proj"), c.heads * (m.nope + m.rope), {.shard = Shard::rows});
  const Value latent = b.linear(x, w / "kv_a_proj_with_mqa", m.rank + m.rope, {.bias = c.attention_bias});
  const MlaKvWrite write{.heads = c.heads,
                         .nope = m.nope,
                         .rope = m.rope,
                         .rank = m.rank,
                         .interleaved = m.interleaved,
                         .eps = kEps,
                         .layer = static_cast<int32_t>(layer)};
  const std::string norm = (w / "kv_a_layernorm").tensor("weight");
  q = b.node(write, {q, latent}, w / "latent_kv", {{"norm", 1, m.rank, {{.name = norm, .rows = m.rank}}}})[0];
  const MlaAttention attention{.heads = c.heads,
                               .nope = m.nope,
                               .rope = m.rope,
                               .rank = m.rank,
                               .v = m.v,
                               .scale = m.scale,
                               .layer = static_cast<int32_t>(layer)};
  const int64_t rows = c.heads * (m.nope + m.v);
  const std::string kv_b = (w / "kv_b_proj").tensor("weight");
  const Value y = b.node(attention, {q}, w, {{"kv_b", rows, m.rank, {{.name = kv_b, .rows = rows}}}})[0];
  return b.linear(y, w / "o_proj", c.hidden_size, {.bias = c.attention_bias, .shard = Shard::cols});
}

Status read_mla(const ConfigReader& json, ModelConfig& c) {
  MlaConfig& m = c.mla;
  PINION_TRY(m.rank, json.require_int("kv_lora_rank", {1, 1 << 20}));
  PINION_TRY(m.q_rank, json.int_or("q_lora_rank", 0, {0, 1 << 20}));
  PINION_TRY(m.nope, json.require_int("qk_nope_head_dim", {1, 65536}));
  PINION_TRY(m.rope, json.require_int("qk_rope_head_dim", {2, 65536}));
  PINION_TRY(m.v, json.require_int("v_head_dim", {1, 65536}));
  PINION_TRY(m.interleaved, json.bool_or("rope_interleave", true));
  if (m.rope % 2) return json.error("qk_rope_head_dim", "must be even");
  c.rope.rotary_dim = static_cast<int32_t>(m.rope);
  double factor = 1;
  if (c.rope.type == RopeType::yarn && c.rope.mscale_all_dim != 0 && c.rope.factor > 1)
    factor = 0.1 * c.rope.mscale_all_dim * std::log(c.rope.factor) + 1;
  m.scale = static_cast<float>(factor * factor / std::sqrt(static_cast<double>(m.nope + m.rope)));
  return {};
}

}  // namespace pinion
