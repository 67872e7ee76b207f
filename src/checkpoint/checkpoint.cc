#include "checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <system_error>

#include "base/log.h"
#include "checkpoint/hf_cache.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

constexpr JsonLimits kConfigLimits{.bytes = size_t{16} << 20, .depth = 64};
constexpr JsonLimits kIndexLimits{.bytes = size_t{256} << 20, .depth = 8};
constexpr size_t kMaxShards = 10'000;  // well under the kernel's 65,530 maps for a process

// How to get the files again: the exact command for a snapshot of the hub's cache.
std::string fetch_remedy(const fs::path& dir) {
  std::error_code code;
  const fs::path real = fs::weakly_canonical(dir, code);
  const fs::path snapshots = real.parent_path();
  std::string repository = snapshots.parent_path().filename().string();
  if (snapshots.filename() != "snapshots" || !repository.starts_with("models--")) {
    return "the download is incomplete: fetch the missing files into that directory";
  }
  repository.erase(0, 8);
  if (const size_t at = repository.find("--"); at != std::string::npos) repository.replace(at, 2, "/");
  return fmt::format("complete the download: hf download {} --revision {}", repository, real.filename().string());
}

Result<Json> read_object(const fs::path& path, JsonLimits limits) {
  PINION_TRY(Json json, read_json_file(path, limits));
  if (!json.is_object()) return fail(Errc::corrupt, "must hold a JSON object", path.string());
  return json;
}

// A file that the directory itself must or may have; not_found is told apart by the caller.
Result<Json> read_config(const fs::path& dir, std::string_view name) {
  PINION_TRY(const fs::path path, file_inside(dir, name));
  return read_object(path, kConfigLimits);
}

bool is_present(const fs::path& path) {  // also a dangling link: naming it is the better error
  std::error_code code;
  return fs::exists(fs::symlink_status(path, code));
}

Error no_weights(const fs::path& dir) {
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(dir, code)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("pytorch_model") || name.ends_with(".bin") || name.ends_with(".pt") ||
        name.ends_with(".pth")) {
      return fail(
          Errc::unsupported, "only safetensors weights are read, found " + shown_name(name), dir.string(),
          "convert them: load the model with transformers and call save_pretrained(dir, safe_serialization=True)");
    }
    if (name == "adapter_model.safetensors") {
      return fail(Errc::invalid_argument, "this is an adapter, not a model", dir.string(),
                  "give the base model's directory");
    }
    if (name.starts_with("consolidated") && name.ends_with(".safetensors")) {
      return fail(Errc::unsupported, "only the vendor's own format is here: " + shown_name(name), dir.string(),
                  "fetch the model's Hugging Face files: model*.safetensors");
    }
  }
  return fail(Errc::not_found, "no weights: neither model.safetensors nor model.safetensors.index.json", dir.string(),
              fetch_remedy(dir));
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const fs::path& dir) {
  std::error_code code;
  if (!fs::is_directory(dir, code)) {
    return fail(Errc::not_found, "no such directory", dir.string(), "give the directory that holds config.json");
  }
  PINION_TRY(Checkpoint out, dummy(dir));
  out.dummy_ = false;
  PINION_TRY(const int ranks, rank_count(out.config_, out.config_path_.string()));
  PINION_OK(ranks > 0 ? out.open_ranks(ranks) : out.open_files());
  return out;
}

Status Checkpoint::open_files() {
  std::string weights;
  if (const auto it = config_.find("transformers_weights"); it != config_.end() && !it->is_null()) {
    if (!it->is_string()) return fail(Errc::corrupt, "transformers_weights must be a string", config_path_.string());
    weights = it->get<std::string>();
    if (!weights.ends_with(".safetensors") && !weights.ends_with(".index.json")) {
      return fail(Errc::unsupported,
                  "only safetensors weights are read, transformers_weights names " + shown_name(weights),
                  config_path_.string(), "fetch the repository's safetensors files");
    }
  } else {
    for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
      if (weights.empty() && is_present(dir_ / name)) weights = name;
    }
    if (weights.empty()) return no_weights(dir_);
  }
  auto path = file_inside(dir_, weights);
  if (!path) {
    if (path.error().code != Errc::not_found) return std::move(path).error();
    return fail(Errc::not_found, "the weights file is missing", (dir_ / weights).string(), fetch_remedy(dir_));
  }
  return weights.ends_with(".json") ? open_sharded(*path) : open_single(*path);
}

Result<Checkpoint> Checkpoint::dummy(const fs::path& config_json_or_dir) {
  std::error_code code;
  Checkpoint out;
  out.dummy_ = true;
  if (fs::is_directory(config_json_or_dir, code)) {
    out.dir_ = config_json_or_dir;
    out.config_path_ = out.dir_ / "config.json";
    auto config = read_config(out.dir_, "config.json");
    if (!config) {
      if (config.error().code != Errc::not_found) return std::move(config).error();
      return fail(Errc::not_found, "config.json is missing", out.dir_.string(),
                  "give the directory of a Hugging Face model; if it is one, " + fetch_remedy(out.dir_));
    }
    out.config_ = std::move(*config);
    if (is_present(out.dir_ / "generation_config.json")) {
      PINION_TRY(out.generation_config_, read_config(out.dir_, "generation_config.json"));
    }
  } else {  // the file itself, under any name: given by the user, so links are theirs
    const auto status = fs::status(config_json_or_dir, code);
    if (fs::exists(status) && !fs::is_regular_file(status)) {
      return fail(Errc::invalid_argument, "not a regular file", config_json_or_dir.string(), "give the file itself");
    }
    out.dir_ = config_json_or_dir.parent_path();
    if (out.dir_.empty()) out.dir_ = ".";
    out.config_path_ = config_json_or_dir;
    PINION_TRY(out.config_, read_object(config_json_or_dir, kConfigLimits));
  }
  return out;
}

Result<Checkpoint> Checkpoint::open_gguf(const fs::path& path) {
  PINION_TRY(GgufFile file, GgufFile::open(path));
  PINION_TRY(GgufModel model, read_gguf_model(file));
  const auto gguf = std::make_shared<Gguf>(Gguf{std::move(file), std::move(model), {}, {}});
  Checkpoint out;
  out.dir_ = path.parent_path().empty() ? fs::path(".") : path.parent_path();
  out.config_path_ = path;
  out.config_ = gguf->model.config;
  for (const auto& [name, from] : gguf->model.names) {
    const GgufTensor& t = gguf->file.tensors().at(from);
    TensorInfo& info = gguf->info[name];
    info.shape = t.shape;
    info.dtype = t.type == GgmlType::f32 ? DType::f32 : t.type == GgmlType::bf16 ? DType::bf16 : DType::f16;
    if (block_elements(t.type) > 1) {  // of quantised ones, which quant/ reads, only that they exist
      info.dtype = DType::u8;
      info.shape = {std::ssize(t.data)};
    } else if (const auto paired = gguf->model.paired_rows.find(name); paired != gguf->model.paired_rows.end()) {
      auto& bytes = gguf->halves[name];
      bytes.resize(t.data.size());
      const int64_t rows = t.shape[0];
      const size_t row = t.data.size() / rows;
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(bytes.data() + r * row, t.data.data() + gguf_row(r, paired->second) * row, row);
      }
    }
    info.end = t.data.size();
    const auto halves = gguf->halves.find(name);
    out.tensors_.emplace(name, Place{&info, halves != gguf->halves.end() ? halves->second : t.data});
  }
  out.gguf_ = gguf;
  return out;
}

Status Checkpoint::open_single(const fs::path& path) {
  PINION_TRY(SafetensorsFile file, SafetensorsFile::open(path));
  files_.push_back(std::move(file));
  for (const auto& [name, info] : files_[0].tensors()) tensors_.emplace(name, Place{&info, files_[0].data(info)});
  return {};
}

Status Checkpoint::open_ranks(int ranks) {
  config_.erase("pinion");  // of the whole there is nothing to say
  for (int r = 0; r < ranks; ++r) {
    PINION_TRY(Checkpoint rank, dummy(dir_ / fmt::format("rank{}", r)));
    rank.dummy_ = false;
    PINION_OK(rank.open_files());
    ranks_.push_back(std::move(rank));
  }
  PINION_TRY(joined_, join_ranks(ranks_));
  for (const auto& [name, joined] : joined_) tensors_.emplace(name, Place{&joined.info, joined.data});
  return {};
}

Status Checkpoint::open_sharded(const fs::path& index_path) {
  const std::string where = index_path.string();
  PINION_TRY(const Json index, read_object(index_path, kIndexLimits));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) return fail(Errc::corrupt, "weight_map must be an object", where);

  std::map<std::string, size_t> shards;  // file name -> place in files_
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string())
      return fail(Errc::corrupt, "weight_map: the value of " + shown_name(name) + " must be a file name", where);
    const std::string& file_name = file.get_ref<const std::string&>();
    if (!file_name.ends_with(".safetensors")) {
      return fail(Errc::unsupported, "only safetensors weights are read, weight_map names " + shown_name(file_name),
                  where, "fetch the repository's safetensors files, with their index");
    }
    shards.emplace(file_name, 0);
    if (shards.size() > kMaxShards)
      return fail(Errc::corrupt, fmt::format("weight_map: more than {} files", kMaxShards), where);
  }
  std::vector<std::string> missing;
  std::vector<fs::path> paths;
  for (const auto& [file_name, place] : shards) {
    auto path = file_inside(dir_, file_name);
    if (path) {
      paths.push_back(*path);
    } else if (path.error().code == Errc::not_found) {
      missing.push_back(file_name);
    } else {
      return std::move(path).error();
    }
  }
  if (!missing.empty()) {
    return fail(Errc::not_found,
                missing.size() == 1 ? fmt::format("the shard {} is missing", shown_name(missing[0]))
                                    : fmt::format("{} of {} shards are missing, first {}", missing.size(),
                                                  shards.size(), shown_name(missing[0])),
                dir_.string(), fetch_remedy(dir_));
  }
  for (auto& [file_name, place] : shards) {
    place = files_.size();
    PINION_TRY(SafetensorsFile file, SafetensorsFile::open(paths[place]));
    files_.push_back(std::move(file));
  }
  for (const auto& [name, file] : map->items()) {
    const size_t place = shards.at(file.get_ref<const std::string&>());
    const auto& in_file = files_[place].tensors();
    const auto it = in_file.find(name);
    if (it == in_file.end()) {
      return fail(Errc::corrupt,
                  fmt::format("the index places tensor {} in a file that does not hold it", shown_name(name)),
                  files_[place].path().string(), "index and shards are of different versions: fetch them again");
    }
    tensors_.emplace(name, Place{&it->second, files_[place].data(it->second)});
  }
  size_t unlisted = 0;
  for (const auto& file : files_) {
    for (const auto& [name, info] : file.tensors()) unlisted += !tensors_.contains(name);
  }
  if (unlisted > 0) spdlog::warn("{} tensors in the shards are not in the index and are ignored ({})", unlisted, where);
  return {};
}

Result<TensorRef> Checkpoint::tensor(std::string_view name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    if (dummy_)
      return fail(Errc::not_found, "a dummy checkpoint holds no tensors, asked for " + shown_name(name), dir_.string());
    // The neighbour in name order that shares the longest beginning: "…q_proj.qweight" for "…q_proj.weight".
    const auto shared = [&](const std::string& other) { return std::ranges::mismatch(name, other).in1 - name.begin(); };
    std::string closest;
    const auto next = tensors_.lower_bound(name);
    if (next != tensors_.end()) closest = next->first;
    if (next != tensors_.begin() && (closest.empty() || shared(std::prev(next)->first) > shared(closest))) {
      closest = std::prev(next)->first;
    }
    return fail(Errc::not_found,
                fmt::format("the checkpoint has no tensor {}{}", shown_name(name),
                            closest.empty() ? "" : ", the closest is " + shown_name(closest)),
                dir_.string(), "config.json and the weights do not belong together, or the family names it otherwise");
  }
  const auto& [info, data] = it->second;
  if (info->shape.size() > Shape::kMaxRank) {
    return fail(Errc::unsupported,
                fmt::format("tensor {} has {} dimensions, at most {} are supported", shown_name(name),
                            info->shape.size(), Shape::kMaxRank),
                dir_.string());
  }
  return TensorRef{it->first, info->dtype, Shape(std::span<const int64_t>(info->shape)), data};
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  out.reserve(tensors_.size());
  for (const auto& [name, place] : tensors_) out.push_back(name);
  return out;
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, place] : tensors_) sum += place.info->bytes();
  return sum;
}

}  // namespace pinion
