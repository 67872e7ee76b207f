// DeepSeek-V2, V3 and R1: latent attention, leading dense layers, then shared and routed experts. V2 routes by softmax
// within the best groups; V3 by sigmoid, groups and experts chosen with a learned bias that the weights do not see.
#include "base/log.h"
#include "models/blocks.h"
#include "models/family_list.h"
#include "models/mla.h"
#include "models/moe.h"

namespace pinion {
namespace {

Value layer(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t i) {
  Value h = norm(b, c, w / "input_layernorm", x);
  x = b.add(x, mla_block(b, c, w / "self_attn", h, i), w / "self_attn");
  h = norm(b, c, w / "post_attention_layernorm", x);
  const Scope mlp = w / "mlp";
  return b.add(x, c.moe.sparse[i] ? moe_mlp(b, c, mlp, h, {.shared = "shared_experts"}) : gated_mlp(b, c, mlp, h), mlp);
}

struct RouterDefaults {
  const char *method, *score;
  bool normalize;
};

Result<ModelConfig> read(const ConfigReader& json, const ModelOverrides& overrides, const RouterDefaults& defaults) {
  PINION_TRY(auto c, read_decoder_config(json, {}, overrides));
  c.sliding_window.reset();
  PINION_OK(read_mla(json, c));
  PINION_OK(read_moe(json, c));
  MoeConfig& m = c.moe;
  PINION_TRY(m.normalize, json.bool_or("norm_topk_prob", defaults.normalize));
  PINION_TRY(const int64_t shared, json.int_or("n_shared_experts", 0, {0, 1024}));
  m.shared_intermediate_size = shared * m.intermediate_size;
  PINION_TRY(const double scale, json.float_or("routed_scaling_factor", 1, {0, 1e6}));
  m.scale = static_cast<float>(scale);

  PINION_TRY(const std::string method, json.string_or("topk_method", defaults.method));
  PINION_TRY(const std::string score, json.string_or("scoring_func", defaults.score));
  if (score != "softmax" && score != "sigmoid")
    return json.error("scoring_func", "the router's \"" + score + "\" is not supported", "supported: softmax, sigmoid");
  m.score = score == "sigmoid" ? RouteScore::sigmoid : RouteScore::softmax;
  if (method != "greedy" && method != "group_limited_greedy" && method != "noaux_tc") {
    return json.error("topk_method", "the router's \"" + method + "\" is not supported",
                      "supported: greedy, group_limited_greedy, noaux_tc");
  }
  if (method != "greedy") {
    PINION_TRY(m.groups, json.int_or("n_group", 1, {1, m.experts}));
    PINION_TRY(m.topk_groups, json.int_or("topk_group", m.groups, {1, m.groups}));
  }
  PINION_TRY(const int64_t predicting, json.int_or("num_nextn_predict_layers", 0, {0, 64}));
  if (predicting > 0) {
    spdlog::info("multi-token prediction ({} layers) is not built: what the model says does not depend on it",
                 predicting);
  }
  m.score_bias = method == "noaux_tc";
  m.group_score = m.score_bias ? GroupScore::two_largest : GroupScore::largest;
  if (!m.score_bias && m.normalize && m.top_k > 1) m.scale = 1;  // V2 scales only what it does not normalise
  if (m.experts % m.groups) return json.error("n_group", "does not divide the number of experts");
  if (m.top_k > m.experts / m.groups * m.topk_groups)
    return json.error("num_experts_per_tok", "is more than the chosen groups have experts");
  if (m.score_bias && m.groups > 1 && m.experts / m.groups < 2)
    return json.error("n_group", "leaves groups of one expert, which have no two best");
  return c;
}

}  // namespace

Result<ModelConfig> deepseek_v2::config(const ConfigReader& json, const ModelOverrides& overrides) {
  return read(json, overrides, {"greedy", "softmax", false});
}
void deepseek_v2::build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

Result<ModelConfig> deepseek_v3::config(const ConfigReader& json, const ModelOverrides& overrides) {
  return read(json, overrides, {"noaux_tc", "sigmoid", true});
}
void deepseek_v3::build(Builder& b, const ModelConfig& c) {
  decoder(b, c, layer);
}

}  // namespace pinion
