#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/shrunk_maps.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

// The path as its writer named it: what is being filled has a name of temporary_name() until it is whole.
std::string shown(const fs::path& path) {
  fs::path out;
  for (const fs::path& part : path) {
    std::string name = part.string();
    if (const size_t end = name.find(".tmp-"); name.starts_with('.') && end != std::string::npos)
      name = name.substr(1, end - 1);
    out /= name;
  }
  return out.string();
}

Error os_error(std::string_view what, const fs::path& path) {
  const int code = errno;
  std::string_view remedy = code == ENOSPC   ? "free some space on that disk or choose another directory"
                            : code == EDQUOT ? "the quota is used up: free some space or choose another directory"
                            : code == EFBIG  ? "raise the limit on file sizes (ulimit -f) or choose another file system"
                            : code == EACCES ? "check the permissions"
                            : code == ENOENT ? "check the path"
                            : code == ENOTDIR ? "a part of the path is not a directory"
                                              : "";
  return fail(code == ENOENT || code == ENOTDIR ? Errc::not_found : Errc::io,
              std::string(what) + ": " + std::strerror(code), shown(path), remedy);
}

// A large file goes to the disk while the rest of it is made: commit() then waits for its end alone.
constexpr uint64_t kFlushBytes = uint64_t{64} << 20;

// Reads a byte of every page: where a mapped file has shrunk, zeros take its place (shrunk_maps.h).
void touch(std::span<const std::byte> bytes) {
  for (size_t i = 0; i < bytes.size(); i += 4096) static_cast<void>(*static_cast<const volatile std::byte*>(&bytes[i]));
  static_cast<void>(*static_cast<const volatile std::byte*>(&bytes.back()));
}

Status write_all(int fd, std::span<const std::byte> bytes, uint64_t offset, const fs::path& path) {
  bool touched = false;
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EFAULT && !touched) {  // the kernel reads no shrunk map, and raises no signal either
      touch(bytes);
      touched = true;
      continue;
    }
    if (n < 0) return os_error("cannot write", path);
    bytes = bytes.subspan(n);
    offset += n;
  }
  return {};
}

fs::path temporary_name(const fs::path& target) {
  static int counter = 0;
  fs::path clean = target;
  if (!clean.has_filename()) clean = clean.parent_path();  // "dir/" names the directory
  return clean.parent_path() /
         ("." + clean.filename().string() + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++));
}

Status sync_directory(const fs::path& directory) {
  const int fd = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return os_error("cannot open the directory", directory);
  ::fsync(fd);  // some file systems refuse fsync on directories: the rename itself was done
  ::close(fd);
  return {};
}

// What is to be kept may hold zeros where a file that was read had bytes a moment before.
Status check_sources() {
  const std::string shrunk = shrunk_file();
  if (shrunk.empty()) return {};
  return fail(Errc::corrupt, "the file shrank while it was read", shrunk,
              "fetch it again, and start again when nothing writes to it");
}

}  // namespace

Result<std::string> read_file(const fs::path& path, size_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return os_error("cannot open", path);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return fail(Errc::corrupt, "not a regular file", path.string(), "give the file itself");
  }
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    ::close(fd);
    return fail(Errc::corrupt,
                "file of " + std::to_string(info.st_size) + " bytes is over the limit of " + std::to_string(max_bytes),
                path.string());
  }
  std::string text(info.st_size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      Error error = os_error("cannot read", path);
      ::close(fd);
      return error;
    }
    if (n == 0) break;  // it shrank meanwhile
    done += n;
  }
  text.resize(done);
  ::close(fd);
  return text;
}

Result<MappedFile> MappedFile::open(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return os_error("cannot open", path);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return fail(Errc::corrupt, "not a regular file", path.string(), "give the file itself");
  }
  MappedFile file;
  file.path_ = path;
  file.size_ = info.st_size;
  if (file.size_ > 0) {
    void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      Error error = os_error("cannot map", path);
      ::close(fd);
      return error;
    }
    file.data_ = static_cast<const std::byte*>(data);
    watch_map(file.data_, file.size_, path.string());
  }
  ::close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!data_) return;
  unwatch_map(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<AtomicFile> AtomicFile::create(const fs::path& target) {
  AtomicFile file;
  file.target_ = target;
  file.temporary_ = temporary_name(target);
  file.fd_ = ::open(file.temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file.fd_ < 0) {
    Error error = os_error("cannot create", target);
    file.temporary_.clear();
    return error;
  }
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      flushing_(other.flushing_),
      target_(std::move(other.target_)),
      temporary_(std::move(other.temporary_)) {
  other.temporary_.clear();
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  PINION_OK(write_all(fd_, bytes, size_, target_));
  size_ += bytes.size();
  if (size_ - flushing_ >= kFlushBytes) {  // what fails here, or is not known here, commit() does and reports
    ::sync_file_range(fd_, static_cast<off64_t>(flushing_), static_cast<off64_t>(size_ - flushing_),
                      SYNC_FILE_RANGE_WRITE);
    flushing_ = size_;
  }
  return {};
}

Status AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  PINION_OK(write_all(fd_, bytes, offset, target_));
  size_ = std::max<uint64_t>(size_, offset + bytes.size());
  return {};
}

Status AtomicFile::commit() {
  PINION_OK(check_sources());
  if (::fsync(fd_) != 0) return os_error("cannot sync", target_);
  if (::close(std::exchange(fd_, -1)) != 0) return os_error("cannot close", target_);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) return os_error("cannot rename into place", target_);
  temporary_.clear();
  return sync_directory(target_.parent_path());
}

Status write_file(const fs::path& path, std::string_view text) {
  PINION_TRY(AtomicFile file, AtomicFile::create(path));
  PINION_OK(file.write(text));
  return file.commit();
}

Result<AtomicDir> AtomicDir::create(const fs::path& target) {
  AtomicDir dir;
  dir.target_ = target.has_filename() ? target : target.parent_path();
  std::error_code code;
  if (dir.target_.has_parent_path()) fs::create_directories(dir.target_.parent_path(), code);
  if (fs::exists(dir.target_, code) && !fs::is_directory(dir.target_, code)) {
    return fail(Errc::invalid_argument, "exists and is not a directory", target.string(),
                "choose another output directory");
  }
  dir.temporary_ = temporary_name(dir.target_);
  if (::mkdir(dir.temporary_.c_str(), 0755) != 0) {
    Error error = os_error("cannot create the directory", target);
    dir.temporary_.clear();
    return error;
  }
  return dir;
}

AtomicDir::~AtomicDir() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

Status AtomicDir::commit() {
  PINION_OK(check_sources());
  std::error_code code;
  fs::path old;
  if (fs::exists(target_, code)) {  // a rename cannot replace a filled directory: move the old one aside first
    old = temporary_name(target_);
    if (::rename(target_.c_str(), old.c_str()) != 0) return os_error("cannot move the old directory aside", target_);
  }
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    Error error = os_error("cannot rename into place", target_);
    if (!old.empty()) ::rename(old.c_str(), target_.c_str());
    return error;
  }
  temporary_.clear();
  if (!old.empty()) fs::remove_all(old, code);
  return sync_directory(target_.parent_path());
}

}  // namespace pinion
