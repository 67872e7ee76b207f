#include <fmt/format.h>

#include "engine/engine.h"
#include "engine/engine_json.h"

namespace pinion {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kFile = "rank0.engine";

Json section_json(uint64_t offset, uint64_t size, const Hash128& hash) {
  return {{"offset", offset}, {"size", size}, {"hash", hash.hex()}};
}

}  // namespace

Result<EngineWriter> EngineWriter::create(const fs::path& target) {
  PINION_TRY(AtomicDir dir, AtomicDir::create(target));
  PINION_TRY(AtomicFile file, AtomicFile::create(dir.path() / kFile));
  PINION_OK(file.write(std::string(kEngineHeader, ' ')));  // filled by finish()
  return EngineWriter(std::move(dir), std::move(file));
}

Status EngineWriter::begin_weight(PackedWeight& weight) {
  const uint64_t padding = (64 - file_.size() % 64) % 64;
  PINION_OK(file_.write(std::string(padding, '\0')));
  weight.offset = file_.size() - kEngineHeader;
  return {};
}

Status EngineWriter::add_weight(PackedWeight& weight, std::span<const std::byte> bytes) {
  PINION_OK(begin_weight(weight));
  weight.hash = hash128(bytes);
  return append(bytes);
}

Status EngineWriter::add_file(const fs::path& from) {
  PINION_TRY(std::string text, read_file(from));
  return add_text(from.filename().string(), text);
}

Status EngineWriter::add_text(const std::string& name, std::string_view text) {
  PINION_OK(write_file(dir_.path() / name, text));
  files_[name] = {{"size", text.size()}, {"hash", hash128(text).hex()}};
  return {};
}

Status EngineWriter::finish(const EngineContents& c) {
  Json table;
  table["data"] = section_json(kEngineHeader, file_.size() - kEngineHeader, {});
  const std::pair<const char*, Json> sections[] = {
      {"graph", to_json(c.graph)}, {"programs", programs_to_json(c)}, {"weights", weights_to_json(c)}};
  for (const auto& [name, json] : sections) {
    const std::string text = json.dump();
    table[name] = section_json(file_.size(), text.size(), hash128(text));
    PINION_OK(file_.write(text));
  }
  std::string header = std::string(kEngineMagic) + table.dump();
  if (header.size() > kEngineHeader) return fail(Errc::internal, "the section table does not fit its header");
  header.resize(kEngineHeader, ' ');
  PINION_OK(file_.write_at(0, std::as_bytes(std::span(header))));
  files_[std::string(kFile)] = {{"size", file_.size()}, {"header", hash128(header).hex()}};
  PINION_OK(file_.commit());
  const Json top{{"format", kEngineFormat}, {"manifest", to_json(c.manifest)}, {"files", files_}};
  PINION_OK(write_file(dir_.path() / "engine.json", top.dump(2) + "\n"));
  return dir_.commit();
}

std::string to_text(const EngineContents& c) {
  std::string text = "manifest " + to_json(c.manifest).dump(2) + "\n\ngraph\n" + to_text(c.graph) + "\nweights\n";
  for (const PackedWeight& w : c.weights) {
    text += fmt::format("  {} {} [{}, {}] {} bytes at {} {}\n", w.name, str(w.spec), w.spec.rows, w.spec.cols,
                        w.spec.bytes(), w.offset, w.hash.hex());
  }
  for (const Program& p : c.programs) {
    text += fmt::format("\nprogram for up to {} tokens\n", p.tokens);
    for (size_t i = 0; i < p.steps.size(); ++i) {
      const KernelChoice& k = p.steps[i];
      text += fmt::format("  {:4} {:28} {} {}\n", i, k.kernel, c.graph.nodes()[i].scope,
                          k.measured_us > 0 ? fmt::format("{:.1f} us measured", k.measured_us) : "");
    }
  }
  text += fmt::format("\narena: {} slots\n", c.arena.slots.size());
  for (const ArenaSlot& s : c.arena.slots)
    text += fmt::format("  {} bytes per token + {} per output\n", s.per_token, s.per_output);
  return text;
}

}  // namespace pinion
