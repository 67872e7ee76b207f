#!/usr/bin/env python3
"""Writes tiny random checkpoints of option values that the golden archive lacks, with logits by transformers.

usage: make_families.py OUTPUT_DIR [--seed N] [NAME ...]

Each is a directory like those under families/ of the archive: config.json, model.safetensors and golden.safetensors.
PINION_GOLDEN_EXTRA=OUTPUT_DIR test_golden then tries them all. Needs torch, transformers and safetensors.
"""

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

COMMON = dict(vocab_size=160, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SMALL = dict(COMMON, hidden_size=80, num_hidden_layers=3, num_attention_heads=5, intermediate_size=112,
             max_position_embeddings=256)
GQA = dict(SMALL, hidden_size=96, num_attention_heads=6, num_key_value_heads=2)
GEMMA = dict(GQA, head_dim=24)
FALCON = dict(COMMON, hidden_size=96, num_hidden_layers=3, num_attention_heads=6, max_position_embeddings=256)

MOE = dict(GQA, moe_intermediate_size=48, num_experts=6, num_experts_per_tok=3)
LATENT = dict(SMALL, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=40, qk_nope_head_dim=24,
              qk_rope_head_dim=8, v_head_dim=20, moe_intermediate_size=24, first_k_dense_replace=1)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=32.0,
            beta_slow=1.0)

# name: (architecture, what its configuration is made of)
FAMILIES = {
    "falcon_11b": ("FalconForCausalLM", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2,
                                             num_ln_in_parallel_attn=1)),
    "falcon_alibi_parallel": ("FalconForCausalLM", dict(FALCON, alibi=True, multi_query=False, parallel_attn=True)),
    "falcon_rope_sequential": ("FalconForCausalLM", dict(FALCON, multi_query=True, parallel_attn=False, bias=True)),
    "gemma_odd_width": ("GemmaForCausalLM", GEMMA),
    "gemma2_no_caps": ("Gemma2ForCausalLM", dict(GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None,
                                                 sliding_window=12, query_pre_attn_scalar=40)),
    "gemma2_low_caps": ("Gemma2ForCausalLM", dict(GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
                                                  sliding_window=12)),
    "gemma3_linear": ("Gemma3ForCausalLM", dict(
        GEMMA, num_hidden_layers=4, sliding_window=10, query_pre_attn_scalar=30,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}})),
    "phi_qk_norm": ("PhiForCausalLM", dict(GQA, qk_layernorm=True, partial_rotary_factor=0.25)),
    "phi3_partial": ("Phi3ForCausalLM", dict(GQA, partial_rotary_factor=0.75, tie_word_embeddings=True,
                                             sliding_window=20)),
    "gpt2_scales": ("GPT2LMHeadModel", dict(COMMON, n_embd=60, n_layer=3, n_head=3, n_positions=256, n_inner=100,
                                            scale_attn_by_inverse_layer_idx=True)),
    "gpt2_unscaled": ("GPT2LMHeadModel", dict(COMMON, n_embd=60, n_layer=2, n_head=3, n_positions=256,
                                              scale_attn_weights=False, activation_function="relu")),
    "neox_sequential": ("GPTNeoXForCausalLM", dict(SMALL, use_parallel_residual=False, attention_bias=False,
                                                   hidden_act="gelu_fast")),
    "opt_350m": ("OPTForCausalLM", dict(COMMON, hidden_size=80, num_hidden_layers=3, num_attention_heads=5, ffn_dim=96,
                                        max_position_embeddings=256, do_layer_norm_before=False,
                                        word_embed_proj_dim=40)),
    "opt_no_bias": ("OPTForCausalLM", dict(COMMON, hidden_size=80, num_hidden_layers=2, num_attention_heads=5,
                                           ffn_dim=96, max_position_embeddings=256, enable_bias=False,
                                           activation_function="gelu")),
    "bloom_12_heads": ("BloomForCausalLM", dict(COMMON, hidden_size=96, n_layer=3, n_head=12)),
    "bloom_post_residual": ("BloomForCausalLM", dict(COMMON, hidden_size=96, n_layer=3, n_head=6,
                                                     apply_residual_connection_post_layernorm=True)),
    "olmo2_bias": ("Olmo2ForCausalLM", dict(GQA, attention_bias=True)),
    "granite_bias": ("GraniteForCausalLM", dict(GQA, attention_bias=True, mlp_bias=True, embedding_multiplier=3.0,
                                                logits_scaling=2.5, residual_multiplier=0.7, attention_multiplier=0.2,
                                                tie_word_embeddings=True)),
    "starcoder2_plain": ("Starcoder2ForCausalLM", dict(GQA, use_bias=False, sliding_window=None)),
    "cohere_qk_norm": ("CohereForCausalLM", dict(GQA, use_qk_norm=True, attention_bias=True, logit_scale=0.4)),
    "stablelm_parallel": ("StableLmForCausalLM", dict(GQA, use_parallel_residual=True, qk_layernorm=True)),
    "nemotron_bias": ("NemotronForCausalLM", dict(GQA, head_dim=20, attention_bias=True, mlp_bias=True,
                                                  partial_rotary_factor=1.0)),
    "smollm3_no_rope": ("SmolLM3ForCausalLM", dict(GQA, num_hidden_layers=4, no_rope_layer_interval=2)),
    "smollm3_sliding": ("SmolLM3ForCausalLM", dict(GQA, num_hidden_layers=4, use_sliding_window=True,
                                                   sliding_window=11)),
    "glm4_no_bias": ("Glm4ForCausalLM", dict(GQA, head_dim=24, attention_bias=False, partial_rotary_factor=0.25)),
    "mistral_head_dim": ("MistralForCausalLM", dict(GQA, head_dim=20, sliding_window=9)),
    "qwen3_bias": ("Qwen3ForCausalLM", dict(GQA, head_dim=20, attention_bias=True)),
    "mixtral_window": ("MixtralForCausalLM", dict(GQA, head_dim=20, num_local_experts=5, num_experts_per_tok=3,
                                                  sliding_window=16)),
    "qwen2_moe_dense_layers": ("Qwen2MoeForCausalLM", dict(
        MOE, norm_topk_prob=True, decoder_sparse_step=2, shared_expert_intermediate_size=40, use_sliding_window=True,
        sliding_window=12, max_window_layers=1)),
    "qwen3_moe_bias": ("Qwen3MoeForCausalLM", dict(MOE, head_dim=20, norm_topk_prob=False, mlp_only_layers=[1],
                                                   attention_bias=True)),
    "phimoe_bias": ("PhimoeForCausalLM", dict(GQA, num_local_experts=8, attention_bias=True, lm_head_bias=True,
                                              router_jitter_noise=0.1)),
    "gpt_oss_top3": ("GptOssForCausalLM", dict(GQA, head_dim=24, num_hidden_layers=4, num_local_experts=6,
                                               num_experts_per_tok=3, sliding_window=10,
                                               rope_parameters=dict(YARN, truncate=False))),
    "deepseek_v2_groups": ("DeepseekV2ForCausalLM", dict(
        LATENT, q_lora_rank=28, n_routed_experts=12, n_group=4, topk_group=2, topk_method="group_limited_greedy",
        num_experts_per_tok=3, routed_scaling_factor=4.0, n_shared_experts=2)),
    "deepseek_v3_yarn": ("DeepseekV3ForCausalLM", dict(
        LATENT, q_lora_rank=None, v_head_dim=36, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4,
        routed_scaling_factor=1.7, norm_topk_prob=False, n_shared_experts=1,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    "deepseek_v3_bias": ("DeepseekV3ForCausalLM", dict(
        LATENT, q_lora_rank=20, first_k_dense_replace=0, n_routed_experts=8, n_group=1, topk_group=1,
        num_experts_per_tok=3, n_shared_experts=3, attention_bias=True)),
}


def write(directory, architecture, options, seed):
    torch.manual_seed(seed)
    cls = getattr(transformers, architecture)
    # Eager attention would add Falcon's ALiBi twice, see docs/adr/0006-falcon-alibi-once.md.
    attention = "sdpa" if options.get("alibi") else "eager"
    config = cls.config_class(**options, architectures=[architecture], attn_implementation=attention)
    model = cls(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2:
                p.normal_(0, 0.12)
            else:  # norms and biases that a wrong norm or a lost bias would show
                p.add_(torch.randn_like(p) * 0.2)
            p.copy_(p.to(torch.bfloat16).float())
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.copy_((torch.randn_like(b) * 0.2).to(torch.bfloat16).float())
        tensors = {}
        for key, n in (("short", 7), ("mid", 33), ("long", 90)):
            ids = torch.randint(3, options["vocab_size"], (1, n))
            tensors[f"{key}.input_ids"] = ids[0].to(torch.int32)
            tensors[f"{key}.logits"] = model(ids, use_cache=False).logits[0, -24:].float().contiguous()
            if key == "mid":
                for _ in range(24):
                    best = model(ids, use_cache=False).logits[0, -1].argmax()
                    ids = torch.cat([ids, best.view(1, 1)], 1)
                tensors["mid.greedy"] = ids[0, n:].to(torch.int32)
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(directory)
    save_file(tensors, directory / "golden.safetensors")
    written = json.loads((directory / "config.json").read_text())
    print(f"{directory.name}: {architecture}, {sum(p.numel() for p in model.parameters())} parameters, "
          f"model_type {written['model_type']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("names", nargs="*", default=[])
    args = parser.parse_args()
    for name in args.names or FAMILIES:
        write(args.output / "families" / name, *FAMILIES[name], args.seed)


if __name__ == "__main__":
    main()
