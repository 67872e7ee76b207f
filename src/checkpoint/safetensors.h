// The safetensors format (https://github.com/huggingface/safetensors, "Format"): a mapped file whose header was checked
// in full before anything is believed, and a streaming writer in the reference writer's canonical order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "tensor/dtype.h"

namespace pinion {

struct TensorInfo {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the data buffer
  uint64_t bytes() const { return end - begin; }
  bool operator==(const TensorInfo&) const = default;
};

// Move-only; spans and references taken from it stay valid when it is moved.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::filesystem::path& path);

  const std::map<std::string, TensorInfo, std::less<>>& tensors() const { return tensors_; }
  // Not aligned to the element size in general: other writers give no such guarantee. Copy before casting.
  std::span<const std::byte> data(const TensorInfo& info) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  SafetensorsFile() = default;
  MappedFile file_;
  uint64_t data_start_ = 0;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

// `data` is the bytes, or a function that appends exactly bytes() bytes to the file (checked): big tensors are made
// while they are written. The span must live until the write returns.
struct TensorToWrite {
  using Producer = std::function<Status(AtomicFile&)>;
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::variant<std::span<const std::byte>, Producer> data;
  uint64_t bytes() const;  // what dtype and shape take
};

using SafetensorsMetadata = std::map<std::string, std::string>;

// Writes the file whole or not at all. Tensors go out by alignment of their type, descending, then by name.
Status write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                         const SafetensorsMetadata& metadata = {});

}  // namespace pinion
