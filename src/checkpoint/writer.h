// Writes a checkpoint directory in the Hugging Face layout: config.json, the tokenizer's files, and the tensors in one
// safetensors file or in shards with an index. Tensors stream through, one at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/safetensors.h"

namespace pinion {

struct HfWriteOptions {
  uint64_t max_shard_bytes = 5'000'000'000;
  SafetensorsMetadata metadata = {{"format", "pt"}};
  std::filesystem::path copy_from;          // tokenizer, template and generation files of this directory are copied
  const Json* generation_config = nullptr;  // written instead of copying
  std::function<void(uint64_t done, uint64_t total)> progress;  // bytes, after each tensor
};

// Copies the tokenizer's, the template's and, if asked for, the generation file of a model that has them.
Status copy_companions(const std::filesystem::path& from, const std::filesystem::path& to, bool generation_config);

// Into `dir`, which exists: for callers that fill a larger AtomicDir (a directory per rank).
Status write_hf_files(const std::filesystem::path& dir, const Json& config, std::span<const TensorToWrite> tensors,
                      const HfWriteOptions& options = {});

// The directory appears whole, or not at all. An existing directory is replaced only when it is empty or a checkpoint.
Status write_hf_checkpoint(const std::filesystem::path& output_dir, const Json& config,
                           std::span<const TensorToWrite> tensors, const HfWriteOptions& options = {});

// Whether `output_dir` may be replaced: absent, empty, or holding a config.json. Call it before long work.
Status check_output_directory(const std::filesystem::path& output_dir);

}  // namespace pinion
