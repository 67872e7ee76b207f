#include "checkpoint/hf_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "base/file.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

const char* env(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

bool has_control(std::string_view text) {
  return std::ranges::any_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

// A relative path of plain components, none of them "." or "..".
bool is_plain_relative(std::string_view name) {
  constexpr size_t kMaxBytes = 1024;
  if (name.empty() || name.size() > kMaxBytes || name.front() == '/' || has_control(name)) return false;
  if (name.find('\\') != std::string_view::npos) return false;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = end + 1;
  }
  return true;
}

bool is_repository_name(std::string_view model) {  // "name" or "org/name"
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  return is_plain_relative(model) && std::ranges::count(model, '/') <= 1 && model.size() <= 200 &&
         std::ranges::all_of(model, [&](char c) { return c == '/' || plain(c); });
}

bool is_inside(const fs::path& path, const fs::path& dir) {
  const auto [at_dir, at_path] = std::mismatch(dir.begin(), dir.end(), path.begin(), path.end());
  return at_dir == dir.end() && at_path != path.end();
}

}  // namespace

fs::path hf_hub_cache() {
  if (const char* dir = env("HF_HUB_CACHE")) return dir;
  if (const char* dir = env("HUGGINGFACE_HUB_CACHE")) return dir;  // its older name
  if (const char* dir = env("HF_HOME")) return fs::path(dir) / "hub";
  if (const char* dir = env("XDG_CACHE_HOME")) return fs::path(dir) / "huggingface" / "hub";
  const char* home = env("HOME");
  return fs::path(home ? home : "/") / ".cache" / "huggingface" / "hub";
}

Result<fs::path> resolve_model(std::string_view model) {
  std::error_code code;
  if (model.empty() || has_control(model)) {
    return fail(Errc::invalid_argument, "no model given", shown_name(model), "give a directory or org/name");
  }
  const fs::path as_path(model);
  if (fs::is_directory(as_path, code)) return as_path;
  if (fs::exists(as_path, code)) {
    return fail(Errc::invalid_argument, "the model is a file, not a directory", as_path.string(),
                "give the directory that holds config.json");
  }
  const size_t at_sign = model.find('@');
  const std::string repository(model.substr(0, at_sign));
  const std::string revision(at_sign == std::string_view::npos ? "main" : model.substr(at_sign + 1));
  if (!is_repository_name(repository) || !is_plain_relative(revision)) {
    return fail(Errc::not_found, "no such directory", as_path.string(),
                "check the path, or give org/name of a cached model");
  }

  std::string folder = "models--" + repository;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const fs::path root = hf_hub_cache() / folder;
  const fs::path snapshots = root / "snapshots";
  const std::string download =
      "hf download " + repository + (at_sign == std::string_view::npos ? "" : " --revision " + revision);
  if (auto commit = read_file(root / "refs" / revision, 1024)) {
    std::string name = *commit;
    while (!name.empty() && (name.back() == '\n' || name.back() == '\r' || name.back() == ' ')) name.pop_back();
    if (is_plain_relative(name) && name.find('/') == std::string::npos && fs::is_directory(snapshots / name, code)) {
      return snapshots / name;
    }
  } else if (fs::is_directory(snapshots / revision, code)) {  // a commit
    return snapshots / revision;
  }
  const bool known = fs::is_directory(root, code);
  return fail(Errc::not_found,
              known
                  ? fmt::format("the model {} is in the cache, but not its revision {}", repository, revision)
                  : fmt::format("the model {} is neither a directory nor in the local Hugging Face cache", repository),
              root.string(), "download it: " + download);
}

Result<fs::path> file_inside(const fs::path& dir, std::string_view name) {
  if (!is_plain_relative(name)) {
    return fail(Errc::corrupt,
                "the file name " + shown_name(name) + " is refused: it must stay inside the model's directory",
                dir.string(), "fetch the model from a source you trust");
  }
  const fs::path path = dir / name;
  std::error_code code;
  const fs::path real = fs::canonical(path, code);
  if (code) {
    const bool absent = code == std::errc::no_such_file_or_directory || code == std::errc::not_a_directory;
    const bool dangling = absent && fs::is_symlink(fs::symlink_status(path, code));
    return fail(absent ? Errc::not_found : Errc::corrupt,
                dangling ? "the link leads to a file that is missing"
                : absent ? "the file is missing"
                         : "cannot resolve the file",
                path.string());
  }
  if (!fs::is_regular_file(real, code)) return fail(Errc::corrupt, "not a regular file", path.string());
  const fs::path real_dir = fs::canonical(dir, code);
  if (is_inside(real, real_dir)) return path;
  // A hub snapshot is <cache>/models--org--name/snapshots/<commit>, of links into <cache>/models--org--name/blobs.
  if (const fs::path snapshots = real_dir.parent_path(); snapshots.filename() == "snapshots") {
    const fs::path blobs = fs::canonical(snapshots.parent_path() / "blobs", code);
    if (!code && is_inside(real, blobs)) return path;
  }
  if (env("PINION_FOLLOW_LINKS")) return path;
  return fail(Errc::corrupt, "the link leads out of the model's directory", path.string(),
              "copy the file into the directory, or set PINION_FOLLOW_LINKS=1 if the link is yours");
}

}  // namespace pinion
