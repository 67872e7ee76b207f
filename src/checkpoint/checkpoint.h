// A Hugging Face checkpoint directory: config.json, and tensors found by name in one safetensors file or in the shards
// that the index names. Files are mapped, so opening costs only the headers. A directory that holds the ranks of a
// divided checkpoint is read as the whole one, whose cut tensors are joined in memory (ranks.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/dummy.h"  // fill_dummy, for is_dummy()
#include "checkpoint/gguf_model.h"
#include "checkpoint/ranks.h"
#include "checkpoint/safetensors.h"
#include "tensor/tensor.h"

namespace pinion {

// Borrows from the Checkpoint, and stays valid as long as it (also when it is moved). `data` may be unaligned.
struct TensorRef {
  std::string_view name;
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> data;
};

class Checkpoint {
 public:
  // Needs config.json and model.safetensors, model.safetensors.index.json, or the file that the config's
  // "transformers_weights" names; of a divided checkpoint, all of its ranks' directories.
  static Result<Checkpoint> open(const std::filesystem::path& dir);
  // Only config.json, no weights: tensors are then made by fill_dummy. Takes the directory or the config file.
  static Result<Checkpoint> dummy(const std::filesystem::path& config_json_or_dir);
  // A GGUF file: configuration, names and tokenizer are made from its metadata (gguf_model.h).
  static Result<Checkpoint> open_gguf(const std::filesystem::path& file);

  const Json& config() const { return config_; }
  const Json& generation_config() const { return generation_config_; }  // null when there is none
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
  Result<TensorRef> tensor(std::string_view name) const;  // the error names the tensor and the near misses
  std::vector<std::string> names() const;                 // sorted
  uint64_t total_bytes() const;                           // of all tensors
  const std::filesystem::path& dir() const { return dir_; }
  std::filesystem::path config_path() const { return config_path_; }
  bool is_dummy() const { return dummy_; }
  std::span<const Checkpoint> ranks() const { return ranks_; }             // of a divided one; empty: it is not
  const GgufFile* gguf() const { return gguf_ ? &gguf_->file : nullptr; }  // null: no GGUF
  const GgufModel* gguf_model() const { return gguf_ ? &gguf_->model : nullptr; }

 private:
  struct Gguf {
    GgufFile file;
    GgufModel model;
    std::map<std::string, TensorInfo> info;                // by the checkpoint's names
    std::map<std::string, std::vector<std::byte>> halves;  // float q and k, their rows in the order of halves
  };
  struct Place {
    const TensorInfo* info = nullptr;  // where its file's header or its owner below holds it, which does not move
    std::span<const std::byte> data;
  };
  Checkpoint() = default;
  Status open_files();
  Status open_single(const std::filesystem::path& file);
  Status open_sharded(const std::filesystem::path& index);
  Status open_ranks(int ranks);

  std::filesystem::path dir_, config_path_;
  Json config_, generation_config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place, std::less<>> tensors_;
  bool dummy_ = false;
  std::shared_ptr<const Gguf> gguf_;
  std::vector<Checkpoint> ranks_;
  std::map<std::string, JoinedTensor> joined_;
};

}  // namespace pinion
