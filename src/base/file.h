// Files: whole reads with a limit, read-only maps, and writes that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace pinion {

// The whole file. Errors: not_found, io, corrupt when it is larger than max_bytes or no regular file.
Result<std::string> read_file(const std::filesystem::path& path, size_t max_bytes = size_t{1} << 30);

// A read-only private map of a whole file; owns it, move-only. bytes() stays valid as long as this object lives.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::filesystem::path path_;
};

// A file being written under a temporary name beside its target; commit() syncs and renames it, and the destructor
// removes it when commit() was not reached. Writes go through a buffer; a failed write is remembered and reported.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::filesystem::path& target);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();
  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text) { return write(std::as_bytes(std::span(text.data(), text.size()))); }
  Status write_at(uint64_t offset, std::span<const std::byte> bytes);  // does not move the append position
  uint64_t size() const { return size_; }
  Status commit();

 private:
  AtomicFile() = default;
  int fd_ = -1;
  uint64_t size_ = 0, flushing_ = 0;  // flushing_: bytes that the disk was given so far
  std::filesystem::path target_, temporary_;
};

Status write_file(const std::filesystem::path& path, std::string_view text);  // through AtomicFile

// A directory being filled under a temporary name beside its target; commit() renames it over the target (an existing
// one is replaced), the destructor removes it otherwise.
class AtomicDir {
 public:
  static Result<AtomicDir> create(const std::filesystem::path& target);
  AtomicDir(AtomicDir&& other) noexcept : target_(std::move(other.target_)), temporary_(std::move(other.temporary_)) {
    other.temporary_.clear();
  }
  AtomicDir& operator=(AtomicDir&&) = delete;
  ~AtomicDir();
  const std::filesystem::path& path() const { return temporary_; }
  Status commit();

 private:
  AtomicDir() = default;
  std::filesystem::path target_, temporary_;
};

}  // namespace pinion
