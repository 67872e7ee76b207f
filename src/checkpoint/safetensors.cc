#include "checkpoint/safetensors.h"

#include <fmt/format.h>

#include <system_error>

#include "base/check.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

uint64_t little_endian(std::span<const std::byte, 8> bytes) {
  uint64_t v = 0;
  for (int i = 7; i >= 0; --i) v = v << 8 | static_cast<uint64_t>(bytes[i]);
  return v;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  constexpr std::string_view kRemedy = "the file is incomplete or no safetensors file: fetch it again";
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {  // opening a FIFO would block
    return fail(Errc::corrupt, "not a regular file", path.string());
  }
  SafetensorsFile out;
  PINION_TRY(out.file_, MappedFile::open(path));
  const auto bytes = out.file_.bytes();
  if (bytes.size() < 8) {
    return fail(Errc::corrupt, fmt::format("header too small: the file has only {} bytes", bytes.size()), path.string(),
                kRemedy);
  }
  const uint64_t header_bytes = little_endian(bytes.first<8>());
  if (header_bytes > kMaxHeaderBytes) {
    return fail(Errc::corrupt,
                fmt::format("header too large: {} bytes, at most {} are allowed", header_bytes, kMaxHeaderBytes),
                path.string(), kRemedy);
  }
  if (header_bytes > bytes.size() - 8) {
    return fail(Errc::corrupt,
                fmt::format("invalid header length: {} bytes in a file of {} bytes", header_bytes, bytes.size()),
                path.string(), kRemedy);
  }
  out.data_start_ = 8 + header_bytes;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  PINION_TRY(SafetensorsHeader header, parse_safetensors_header(text, bytes.size() - out.data_start_, path.string()));
  out.tensors_ = std::move(header.tensors);
  out.metadata_ = std::move(header.metadata);
  return out;
}

std::span<const std::byte> SafetensorsFile::data(const TensorInfo& info) const {
  const auto buffer = file_.bytes().subspan(data_start_);
  check(info.begin <= info.end && info.end <= buffer.size(), "a tensor of another file");
  return buffer.subspan(info.begin, info.end - info.begin);
}

}  // namespace pinion
