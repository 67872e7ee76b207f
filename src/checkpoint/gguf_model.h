// A GGUF file's model in Hugging Face's terms: config.json's keys from the metadata, the tensors' names, and the
// tokenizer's files. Families: llama (Mistral too), qwen2, qwen3, phi3, starcoder2.
#pragma once

#include <map>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/gguf_file.h"

namespace pinion {

struct GgufModel {
  Json config;                               // config.json
  std::map<std::string, std::string> names;  // "model.layers.0.self_attn.q_proj.weight" -> "blk.0.attn_q.weight"
  // Rows of each head's q and k lie in pairs (interleaved rotation), where the model rotates halves: per tensor the
  // rows of a head; absent: as they are.
  std::map<std::string, int64_t> paired_rows;
  std::map<std::string, std::string> files;  // tokenizer.json, tokenizer_config.json; empty: no tokenizer that is known
  std::string no_tokenizer;                  // why files is empty
};

// The row of a GGUF tensor that is the model's row `row`, for a tensor of paired_rows.
constexpr int64_t gguf_row(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, r = row % head_dim, half = head_dim / 2;
  return head * head_dim + 2 * (r % half) + r / half;
}

// Errors: unsupported for other architectures, options and tensors, by name; corrupt for metadata that is missing or
// out of range.
Result<GgufModel> read_gguf_model(const GgufFile& file);

// The tokenizer's files from tokenizer.ggml.*: byte-level BPE ("gpt2") and SentencePiece BPE ("llama"). Errors:
// unsupported for other kinds and for pre-tokenizers that are not known.
Result<std::map<std::string, std::string>> gguf_tokenizer(const Json& metadata, const std::string& where);

}  // namespace pinion
