// A GGUF file (llama.cpp's format, github.com/ggml-org/ggml, docs/gguf.md): metadata and tensors of one mapped file,
// checked in full before anything is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/result.h"

namespace pinion {

enum class GgmlType : uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14, bf16 = 30 };
std::string_view name(GgmlType type);
int64_t block_elements(GgmlType type);  // of one row
int64_t block_bytes(GgmlType type);

struct GgufTensor {
  GgmlType type = GgmlType::f32;
  std::vector<int64_t> shape;       // the slowest first, as safetensors has it
  std::span<const std::byte> data;  // unaligned; valid as long as the file
};

class GgufFile {
 public:
  // Errors: corrupt for what is no sound file, unsupported for other versions and types of tensors, by name.
  static Result<GgufFile> open(const std::filesystem::path& path);

  const Json& metadata() const { return metadata_; }  // an object: key -> number, string, bool or array of them
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  GgufFile() = default;
  MappedFile file_;
  Json metadata_ = Json::object();
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace pinion
