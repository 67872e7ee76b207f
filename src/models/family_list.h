// The list of families: namespace of the family's file, architecture as config.json names it, and the options that it
// reads beyond what every decoder has. Adding a family is a file and a line here (docs/howto/add-model.md).
#pragma once

#include <string_view>

#include "models/config.h"

// clang-format off
#define PINION_FAMILIES(FAMILY)                                                                                       \
  FAMILY(bloom, "BloomForCausalLM", "apply_residual_connection_post_layernorm")                                       \
  FAMILY(cohere, "CohereForCausalLM", "logit_scale use_qk_norm attention_bias")                                       \
  FAMILY(deepseek_v2, "DeepseekV2ForCausalLM", "q_lora_rank rope_interleave topk_method scoring_func norm_topk_prob n_shared_experts first_k_dense_replace moe_layer_freq attention_bias") \
  FAMILY(deepseek_v3, "DeepseekV3ForCausalLM", "q_lora_rank rope_interleave topk_method scoring_func norm_topk_prob n_shared_experts first_k_dense_replace moe_layer_freq attention_bias") \
  FAMILY(falcon, "FalconForCausalLM", "multi_query new_decoder_architecture num_ln_in_parallel_attn parallel_attn alibi bias") \
  FAMILY(falcon, "RWForCausalLM", "multi_query new_decoder_architecture num_ln_in_parallel_attn parallel_attn alibi bias") \
  FAMILY(gemma, "GemmaForCausalLM", "attention_bias")                                                                 \
  FAMILY(gemma2, "Gemma2ForCausalLM", "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar sliding_window layer_types attention_bias") \
  FAMILY(gemma3, "Gemma3ForCausalLM", "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar sliding_window layer_types sliding_window_pattern rope_local_base_freq attention_bias") \
  FAMILY(gemma3, "Gemma3ForConditionalGeneration", "attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar sliding_window layer_types sliding_window_pattern rope_local_base_freq attention_bias") \
  FAMILY(glm4, "Glm4ForCausalLM", "attention_bias partial_rotary_factor")                                             \
  FAMILY(gpt2, "GPT2LMHeadModel", "scale_attn_weights scale_attn_by_inverse_layer_idx")                               \
  FAMILY(gpt_neox, "GPTNeoXForCausalLM", "use_parallel_residual attention_bias rotary_pct rotary_emb_base")           \
  FAMILY(gpt_oss, "GptOssForCausalLM", "sliding_window layer_types attention_bias swiglu_limit experts_per_token")     \
  FAMILY(granite, "GraniteForCausalLM", "embedding_multiplier attention_multiplier residual_multiplier logits_scaling attention_bias mlp_bias") \
  FAMILY(llama, "LlamaForCausalLM", "attention_bias mlp_bias")                                                        \
  FAMILY(mistral, "MistralForCausalLM", "sliding_window layer_types")                                                 \
  FAMILY(mixtral, "MixtralForCausalLM", "sliding_window layer_types")                                                  \
  FAMILY(nemotron, "NemotronForCausalLM", "partial_rotary_factor attention_bias mlp_bias")                            \
  FAMILY(olmo2, "Olmo2ForCausalLM", "attention_bias")                                                                 \
  FAMILY(opt, "OPTForCausalLM", "do_layer_norm_before enable_bias word_embed_proj_dim _remove_final_layer_norm")      \
  FAMILY(phi, "PhiForCausalLM", "qk_layernorm partial_rotary_factor")                                                 \
  FAMILY(phi3, "Phi3ForCausalLM", "sliding_window partial_rotary_factor original_max_position_embeddings")            \
  FAMILY(phimoe, "PhimoeForCausalLM", "attention_bias lm_head_bias router_jitter_noise sliding_window")                \
  FAMILY(phimoe, "PhiMoEForCausalLM", "attention_bias lm_head_bias router_jitter_noise sliding_window")                \
  FAMILY(qwen2, "Qwen2ForCausalLM", "use_sliding_window sliding_window max_window_layers layer_types")                \
  FAMILY(qwen2_moe, "Qwen2MoeForCausalLM", "qkv_bias norm_topk_prob decoder_sparse_step mlp_only_layers use_sliding_window sliding_window max_window_layers layer_types") \
  FAMILY(qwen3, "Qwen3ForCausalLM", "attention_bias use_sliding_window sliding_window max_window_layers layer_types") \
  FAMILY(qwen3_moe, "Qwen3MoeForCausalLM", "attention_bias norm_topk_prob decoder_sparse_step mlp_only_layers use_sliding_window sliding_window layer_types") \
  FAMILY(smollm3, "SmolLM3ForCausalLM", "no_rope_layers no_rope_layer_interval use_sliding_window sliding_window layer_types attention_bias mlp_bias") \
  FAMILY(stablelm, "StableLmForCausalLM", "use_qkv_bias qk_layernorm use_parallel_residual partial_rotary_factor")    \
  FAMILY(starcoder2, "Starcoder2ForCausalLM", "use_bias sliding_window")
// clang-format on

namespace pinion {

class Builder;

#define PINION_DECLARE_FAMILY(space, architecture, options)                              \
  namespace space {                                                                      \
  Result<ModelConfig> config(const ConfigReader& json, const ModelOverrides& overrides); \
  void build(Builder& b, const ModelConfig& c);                                          \
  }
PINION_FAMILIES(PINION_DECLARE_FAMILY)
#undef PINION_DECLARE_FAMILY

}  // namespace pinion
