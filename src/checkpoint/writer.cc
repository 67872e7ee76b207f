#include "checkpoint/writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "checkpoint/hf_cache.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

constexpr std::array kCopiedFiles{"tokenizer.json",
                                  "tokenizer_config.json",
                                  "special_tokens_map.json",
                                  "added_tokens.json",
                                  "vocab.json",
                                  "vocab.txt",
                                  "merges.txt",
                                  "tokenizer.model",
                                  "spiece.model",
                                  "tekken.json",
                                  "chat_template.jinja",
                                  "chat_template.json",
                                  "generation_config.json"};

std::string pretty(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Consecutive tensors in the given order, so that neighbours in the model share a file; one larger than the limit has
// a file of its own.
std::vector<std::span<const TensorToWrite>> split(std::span<const TensorToWrite> tensors, uint64_t max_bytes) {
  std::vector<std::span<const TensorToWrite>> shards;
  size_t begin = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t next = tensors[i].bytes();
    if (i > begin && (bytes > max_bytes || next > max_bytes - bytes)) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += next;
  }
  shards.push_back(tensors.subspan(begin));
  return shards;
}

Status check_tensors(std::span<const TensorToWrite> tensors, const std::string& where) {
  std::vector<std::string_view> names;
  for (const TensorToWrite& t : tensors) {
    if (!tensor_bytes(t.dtype, t.shape)) {
      return fail(Errc::invalid_argument, "tensor " + shown_name(t.name) + " has a shape that fits no file", where);
    }
    names.push_back(t.name);
  }
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    return fail(Errc::invalid_argument, "the tensor " + shown_name(*twice) + " appears twice", where);
  }
  return {};
}

// The same tensor with a report after it is written.
TensorToWrite with_progress(const TensorToWrite& tensor, uint64_t& done, uint64_t total,
                            const HfWriteOptions& options) {
  TensorToWrite out{tensor.name, tensor.dtype, tensor.shape, {}};
  out.data = [&tensor, &done, total, &options](AtomicFile& file) -> Status {
    if (const auto* bytes = std::get_if<std::span<const std::byte>>(&tensor.data)) {
      PINION_OK(file.write(*bytes));
    } else {
      PINION_OK(std::get<TensorToWrite::Producer>(tensor.data)(file));
    }
    done += tensor.bytes();
    if (options.progress) options.progress(done, total);
    return {};
  };
  return out;
}

}  // namespace

Status copy_companions(const fs::path& from, const fs::path& to, bool generation_config) {
  for (const std::string name : kCopiedFiles) {
    if (name == "generation_config.json" && !generation_config) continue;
    std::error_code code;
    if (!fs::exists(fs::symlink_status(from / name, code))) continue;
    PINION_TRY(const fs::path source, file_inside(from, name));
    if (!fs::copy_file(source, to / name, fs::copy_options::overwrite_existing, code)) {
      return fail(Errc::io, "cannot copy: " + code.message(), (to / name).string());
    }
  }
  return {};
}

Status write_hf_files(const fs::path& dir, const Json& config, std::span<const TensorToWrite> tensors,
                      const HfWriteOptions& options) {
  PINION_OK(check_tensors(tensors, dir.string()));
  PINION_OK(write_file(dir / "config.json", pretty(config)));
  if (options.generation_config && !options.generation_config->is_null()) {
    PINION_OK(write_file(dir / "generation_config.json", pretty(*options.generation_config)));
  }
  if (!options.copy_from.empty()) PINION_OK(copy_companions(options.copy_from, dir, !options.generation_config));

  uint64_t total = 0, done = 0, elements = 0;
  for (const TensorToWrite& t : tensors) {
    total += t.bytes();
    elements += t.bytes() * 8 / bit_size(t.dtype);
  }
  const auto shards = split(tensors, options.max_shard_bytes);
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? "model.safetensors"
                                                : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<TensorToWrite> reported;
    for (const TensorToWrite& t : shards[i]) {
      reported.push_back(with_progress(t, done, total, options));
      weight_map[t.name] = name;
    }
    PINION_OK(write_safetensors(dir / name, reported, options.metadata));
  }
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_parameters", elements}, {"total_size", total}}},
                        {"weight_map", weight_map}};
    PINION_OK(write_file(dir / "model.safetensors.index.json", pretty(index)));
  }
  return {};
}

Status write_hf_checkpoint(const fs::path& output_dir, const Json& config, std::span<const TensorToWrite> tensors,
                           const HfWriteOptions& options) {
  PINION_OK(check_output_directory(output_dir));
  PINION_TRY(AtomicDir dir, AtomicDir::create(output_dir));
  PINION_OK(write_hf_files(dir.path(), config, tensors, options));
  return dir.commit();
}

Status check_output_directory(const fs::path& output_dir) {
  std::error_code code;
  if (!fs::exists(output_dir, code)) return {};
  if (!fs::is_directory(output_dir, code)) {
    return fail(Errc::invalid_argument, "exists and is not a directory", output_dir.string(),
                "choose another output directory");
  }
  if (fs::is_empty(output_dir, code) || fs::exists(output_dir / "config.json", code)) return {};
  return fail(Errc::invalid_argument, "the output directory holds other files, which would be replaced",
              output_dir.string(), "choose a new or empty directory");
}

}  // namespace pinion
