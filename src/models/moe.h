// The mixture-of-experts MLP: a router, the experts it chooses for each token, and an expert that all tokens share.
#pragma once

#include "graph/builder.h"
#include "models/config.h"

namespace pinion {

// Where a family's checkpoints keep the parts, below the MLP's scope.
struct MoeNames {
  std::string_view router = "gate";
  std::string_view gate = "gate_proj", up = "up_proj", down = "down_proj";  // experts.<e>.<name>.weight
  std::string_view shared = {}, shared_gate = {};                           // empty: the family has none
  Scope stacked = {};  // another scope of the MLP where files stack the experts; empty: the same
};

// y = sum of the chosen experts' weight * down(act(gate(x)) * up(x)), and the shared expert where there is one. Reads
// experts.<e>.gate_proj and the like, or experts.gate_up_proj [experts, 2 * intermediate, hidden], gate before up, and
// experts.down_proj [experts, hidden, intermediate].
Value moe_mlp(Builder& b, const ModelConfig& c, const Scope& w, Value x, const MoeNames& names = {});

// Its pieces, for families whose experts are stored otherwise. choose_experts returns ids and weights.
struct Routing {
  Value ids, weights;
};
Routing choose_experts(Builder& b, const ModelConfig& c, const Scope& router, Value logits);

// Reads the number of experts (num_experts, num_local_experts or n_routed_experts), num_experts_per_tok,
// moe_intermediate_size (else intermediate_size), norm_topk_prob and the layers that have experts
// (decoder_sparse_step, mlp_only_layers; first_k_dense_replace, moe_layer_freq).
Status read_moe(const ConfigReader& json, ModelConfig& c);

}  // namespace pinion
