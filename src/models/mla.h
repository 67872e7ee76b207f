// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1): keys and values come from one low-rank latent per
// token, which is all that the cache holds.
#pragma once

#include "graph/builder.h"
#include "models/config.h"

namespace pinion {

// Queries (through q_lora_rank where there is one), the latent, attention over it, the output projection. Makes the KV
// layer number `layer` a latent one.
Value mla_block(Builder& b, const ModelConfig& c, const Scope& w, Value x, int64_t layer);

// Reads kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim and rope_interleave; makes the rope
// one of qk_rope_head_dim, and the scale (nope + rope)^-1/2, times yarn's mscale_all_dim factor squared.
Status read_mla(const ConfigReader& json, ModelConfig& c);

}  // namespace pinion
