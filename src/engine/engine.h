// The engine: what a build writes and the run time reads. A directory:
//   engine.json        format, manifest, and size and hash of every other file; written last
//   rank0.engine       sections: graph, programs, weight index (JSON), weight data (each weight 64-byte aligned)
//   tokenizer.json …   copied from the checkpoint
// Every section and every weight has a checksum (XXH3-128), so that a damaged file is named, not run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/result.h"
#include "graph/graph.h"

namespace pinion {

inline constexpr int kEngineFormat = 4;      // changes when the files' meaning does
inline constexpr int kKernelSetVersion = 5;  // changes when a kernel's name, layout or tuning does

struct Manifest {
  std::string architecture, model_name;
  std::string target;         // backend: "cpu", "reference"
  std::string device;         // the device whose kernels were timed
  DType dtype = DType::bf16;  // of the matrix weights
  DType kv_dtype = DType::bf16;
  int32_t block_size = 64;  // tokens per KV block
  bool deterministic = false;
  int32_t kernel_set = kKernelSetVersion;
  std::vector<int32_t> eos_token_ids;
  std::vector<std::string> disabled_passes;
};

// One weight as packed: several nodes may use it (tied embeddings).
struct PackedWeight {
  std::string name;  // its first part's tensor name
  WeightSpec spec;
  uint64_t offset = 0;  // in the data section
  Hash128 hash;
};

// What runs a node: chosen at build, resolved by name at load.
struct KernelChoice {
  std::string kernel;
  Tuning tuning;
  double estimate_us = 0, measured_us = 0;  // 0: not timed
};

// Kernels for steps of up to `tokens` tokens; past the last program's bucket its kernels serve.
struct Program {
  int32_t tokens = 1;
  std::vector<KernelChoice> steps;  // step i runs node i of the graph
};

// A piece of the arena that values with disjoint lives share: per_token * tokens + per_output * outputs bytes.
struct ArenaSlot {
  int64_t per_token = 0, per_output = 0;
};

struct ArenaPlan {
  std::vector<ArenaSlot> slots;
  std::vector<int32_t> slot_of;  // by value id; -1: the value is not used
  size_t bytes(int64_t tokens, int64_t outputs) const;
};

// The element types of a node's values, for its kernels' Call.
inline ValueTypes value_types(const Graph& graph, const Node& node) {
  ValueTypes types;
  check(node.in.size() <= types.in.size() && node.out.size() <= types.out.size(), "a node has too many values");
  for (size_t i = 0; i < node.in.size(); ++i) types.in[i] = graph.spec(node.in[i]).dtype;
  for (size_t i = 0; i < node.out.size(); ++i) types.out[i] = graph.spec(node.out[i]).dtype;
  return types;
}

struct EngineContents {  // everything but the weights' bytes
  Manifest manifest;
  Graph graph;
  ArenaPlan arena;
  std::vector<Program> programs;  // ascending in tokens
  std::vector<PackedWeight> weights;
  std::vector<std::vector<int32_t>> node_weights;  // by node: indices into weights
};

class Engine {
 public:
  // Reads and checks everything but the weights' bytes. Errors name the file and the section.
  static Result<Engine> open(const std::filesystem::path& dir);
  static bool is_engine_dir(const std::filesystem::path& dir);

  const Manifest& manifest() const { return c_.manifest; }
  const Graph& graph() const { return c_.graph; }
  const ArenaPlan& arena() const { return c_.arena; }
  std::span<const Program> programs() const { return c_.programs; }
  std::span<const PackedWeight> weights() const { return c_.weights; }
  std::span<const int32_t> node_weights(size_t node) const { return c_.node_weights[node]; }
  const EngineContents& contents() const { return c_; }
  const std::filesystem::path& dir() const { return dir_; }
  uint64_t data_bytes() const { return data_.size(); }

  // Copies the data section to `to` (data_bytes() long) with all CPUs and checks every weight's hash on the way.
  Status read_weights(std::byte* to) const;
  std::span<const std::byte> weight_bytes(const PackedWeight& w) const {
    return data_.subspan(w.offset, w.spec.bytes());
  }

 private:
  Engine() = default;
  std::filesystem::path dir_;
  MappedFile file_;
  EngineContents c_;
  std::span<const std::byte> data_;
};

// Writes an engine piece by piece: weights first, then finish(). Nothing stays behind when finish() is not reached.
class EngineWriter {
 public:
  static Result<EngineWriter> create(const std::filesystem::path& dir);
  // Appends one weight's bytes; fills offset and hash.
  Status add_weight(PackedWeight& weight, std::span<const std::byte> bytes);
  // The same in pieces, where the caller fills in the hash.
  Status begin_weight(PackedWeight& weight);  // fills the offset
  Status append(std::span<const std::byte> bytes) { return file_.write(bytes); }
  Status add_file(const std::filesystem::path& from);  // copied under its own name (tokenizer files)
  Status add_text(const std::string& name, std::string_view text);
  Status finish(const EngineContents& contents);

 private:
  EngineWriter(AtomicDir dir, AtomicFile file) : dir_(std::move(dir)), file_(std::move(file)) {}
  AtomicDir dir_;
  AtomicFile file_;
  Json files_ = Json::object();
};

Json to_json(const Manifest& manifest);
std::string to_text(const EngineContents& contents);  // `pinion inspect`

}  // namespace pinion
