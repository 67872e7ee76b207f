#include "engine/engine.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>

#include "base/thread_pool.h"
#include "engine/engine_json.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kRemedy = "build the engine again";
constexpr std::string_view kFile = "rank0.engine";

struct Sections {
  std::map<std::string, Section> table;
  std::span<const std::byte> file;
  std::string where;

  Result<std::span<const std::byte>> find(const std::string& name, bool hashed) const {
    const auto it = table.find(name);
    if (it == table.end()) return fail(Errc::corrupt, "the section \"" + name + "\" is missing", where, kRemedy);
    const Section& s = it->second;
    if (s.offset > file.size() || s.size > file.size() - s.offset) {
      return fail(Errc::corrupt, "the section \"" + name + "\" lies outside the file: it was cut short", where,
                  kRemedy);
    }
    const auto bytes = file.subspan(s.offset, s.size);
    if (hashed && hash128(bytes) != s.hash)
      return fail(Errc::corrupt, "the section \"" + name + "\" is damaged (checksum differs)", where, kRemedy);
    return bytes;
  }
  Result<Json> json(const std::string& name) const {
    PINION_TRY(auto bytes, find(name, true));
    return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where + ": " + name);
  }
};

Result<Sections> read_sections(std::span<const std::byte> file, const std::string& where) {
  if (file.size() < kEngineHeader || std::memcmp(file.data(), kEngineMagic.data(), kEngineMagic.size()) != 0) {
    return fail(Errc::corrupt, "not an engine file, or cut short", where, kRemedy);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kEngineMagic.size(),
                              kEngineHeader - kEngineMagic.size());
  PINION_TRY(Json table, parse_json(text, where + ": header", {.bytes = kEngineHeader, .depth = 4}));
  Sections sections{{}, file, where};
  for (const auto& [name, s] : table.items()) {
    sections.table[name] = {s.at("offset"), s.at("size"), hash_from_hex(s.at("hash"))};
  }
  return sections;
}

// A tokenizer file that came along: whole, as the build wrote it.
Status check_companion(const fs::path& dir, const std::string& name, const Json& entry) {
  if (fs::path(name).filename() != name)
    return fail(Errc::corrupt, "a file name with a directory: " + name, (dir / "engine.json").string(), kRemedy);
  const std::string where = (dir / name).string();
  auto text = read_file(dir / name);
  if (!text && text.error().code == Errc::not_found)
    return fail(Errc::not_found, "a file of the engine is missing", where, kRemedy);
  if (!text) return std::move(text).error();
  if (text->size() != entry.at("size").get<uint64_t>() || hash128(*text) != hash_from_hex(entry.at("hash")))
    return fail(Errc::corrupt, "the file has changed since the engine was built", where, kRemedy);
  return {};
}

// A map's pages count as resident memory once they were read: gives back those that lie whole in `bytes`.
void drop_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page,
             last = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

size_t ArenaPlan::bytes(int64_t tokens, int64_t outputs) const {
  size_t total = 0;
  for (const ArenaSlot& s : slots) total += (s.per_token * tokens + s.per_output * outputs + 63) / 64 * 64;
  return total;
}

bool Engine::is_engine_dir(const fs::path& dir) {
  std::error_code code;
  return fs::exists(dir / "engine.json", code);
}

Result<Engine> Engine::open(const fs::path& dir) {
  PINION_TRY(Json top, read_json_file(dir / "engine.json"));
  Engine e;
  e.dir_ = dir;
  const std::string where = (dir / kFile).string();
  std::string reading = (dir / "engine.json").string();
  try {
    if (const int format = top.at("format"); format != kEngineFormat) {
      return fail(Errc::unsupported,
                  fmt::format("the engine has format {}, this Pinion reads {}", format, kEngineFormat), reading,
                  kRemedy);
    }
    e.c_.manifest = manifest_from_json(top.at("manifest"));
    for (const auto& [name, file] : top.at("files").items()) {
      if (name != kFile) PINION_OK(check_companion(dir, name, file));
    }
    PINION_TRY(e.file_, MappedFile::open(dir / kFile));
    const auto bytes = e.file_.bytes();
    if (bytes.size() != top.at("files").at(kFile).at("size").get<uint64_t>()) {
      return fail(
          Errc::corrupt,
          fmt::format("has {} bytes, engine.json says {}", bytes.size(), top["files"][kFile]["size"].get<uint64_t>()),
          where, kRemedy);
    }
    if (bytes.size() >= kEngineHeader &&
        hash128(bytes.first(kEngineHeader)) != hash_from_hex(top.at("files").at(kFile).at("header"))) {
      return fail(Errc::corrupt, "the header is damaged (checksum differs)", where, kRemedy);
    }
    reading = where;
    PINION_TRY(Sections sections, read_sections(bytes, where));
    PINION_TRY(Json graph, sections.json("graph"));
    PINION_TRY(e.c_.graph, graph_from_json(graph, where + ": graph"));
    PINION_TRY(Json programs, sections.json("programs"));
    programs_from_json(programs, e.c_);
    PINION_TRY(e.data_, sections.find("data", false));  // weights carry their own hashes
    PINION_TRY(Json weights, sections.json("weights"));
    weights_from_json(weights, e.c_, e.data_.size());
    for (int32_t id : e.c_.manifest.eos_token_ids) {
      if (id < 0 || id >= e.c_.graph.vocab_size)
        return fail(Errc::corrupt, "an end-of-text token is outside the vocabulary", dir.string(), kRemedy);
    }
  } catch (const std::exception& error) {
    std::string_view what = error.what();  // "[json.exception.type_error.302] type must be number, but is null"
    if (what.starts_with("[json.exception")) what.remove_prefix(std::min(what.find("] "), what.size() - 2) + 2);
    return fail(Errc::corrupt, fmt::format("malformed engine: {}", what), reading, kRemedy);
  }
  return e;
}

Status Engine::read_weights(std::byte* to) const {
  // Pieces of 4 MiB keep every CPU busy however unequal the weights are; the hashes run over the copies afterwards.
  constexpr uint64_t kPiece = uint64_t{4} << 20;
  ThreadPool pool(available_cpus());
  pool.run((data_.size() + kPiece - 1) / kPiece, [&](int64_t i) {
    const uint64_t begin = i * kPiece, n = std::min<uint64_t>(kPiece, data_.size() - begin);
    std::memcpy(to + begin, data_.data() + begin, n);
    drop_pages(data_.subspan(begin, n));
  });
  std::atomic<int64_t> damaged{-1};
  pool.run(std::ssize(c_.weights), [&](int64_t i) {
    const PackedWeight& w = c_.weights[i];
    if (hash128(std::span<const std::byte>(to + w.offset, w.spec.bytes())) != w.hash) damaged = i;
  });
  if (damaged >= 0) {
    return fail(Errc::corrupt, "the weight \"" + c_.weights[damaged].name + "\" is damaged (checksum differs)",
                (dir_ / kFile).string(), kRemedy);
  }
  return {};
}

}  // namespace pinion
