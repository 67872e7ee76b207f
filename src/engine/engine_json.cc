#include "engine/engine_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace pinion {
namespace {

[[noreturn]] void bad(const std::string& what) {
  throw std::out_of_range(what);
}

DType dtype(const Json& json) {
  const auto type = dtype_from_name(json.get<std::string>());
  if (!type) bad("unknown dtype " + json.get<std::string>());
  return *type;
}

Packing packing_from_json(const Json& j, const std::string& weight) {
  const auto kind = std::ranges::find(kPackedKindNames, j.at("kind").get<std::string>());
  if (kind == kPackedKindNames.begin() || kind == kPackedKindNames.end()) bad("unknown packing of " + weight);
  const auto inputs = std::ranges::find(kInputRoundingNames, j.at("inputs").get<std::string>());
  if (inputs == kInputRoundingNames.end()) bad("the inputs of " + weight + " are rounded in an unknown way");
  const Packing p{.kind = static_cast<PackedKind>(kind - kPackedKindNames.begin()),
                  .group = j.at("group"),
                  .zeros = j.at("zeros"),
                  .offsets = j.at("offsets"),
                  .ordered = j.at("ordered"),
                  .inputs = static_cast<InputRounding>(inputs - kInputRoundingNames.begin()),
                  .input_scale = j.at("input_scale")};
  if (!is_sound(p)) bad("the packing of " + weight + " has no layout");
  return p;
}

}  // namespace

Json to_json(const Manifest& m) {
  return {{"architecture", m.architecture},
          {"model_name", m.model_name},
          {"target", m.target},
          {"device", m.device},
          {"dtype", name(m.dtype)},
          {"kv_dtype", name(m.kv_dtype)},
          {"block_size", m.block_size},
          {"deterministic", m.deterministic},
          {"kernel_set", m.kernel_set},
          {"eos_token_ids", m.eos_token_ids},
          {"disabled_passes", m.disabled_passes}};
}

Manifest manifest_from_json(const Json& j) {
  Manifest m;
  m.architecture = j.at("architecture");
  m.model_name = j.at("model_name");
  m.target = j.at("target");
  m.device = j.at("device");
  m.dtype = dtype(j.at("dtype"));
  m.kv_dtype = dtype(j.at("kv_dtype"));
  m.block_size = j.at("block_size");
  m.deterministic = j.at("deterministic");
  m.kernel_set = j.at("kernel_set");
  m.eos_token_ids = j.at("eos_token_ids").get<std::vector<int32_t>>();
  m.disabled_passes = j.at("disabled_passes").get<std::vector<std::string>>();
  if (!is_float(m.dtype)) bad("dtype must be a float type");
  if (!is_kv_dtype(m.kv_dtype)) bad("a KV cache cannot be of the type " + std::string(name(m.kv_dtype)));
  if (m.block_size < 1 || m.block_size > 4096) bad("block_size is out of range");
  return m;
}

Json programs_to_json(const EngineContents& c) {
  Json programs = Json::array(), slots = Json::array();
  for (const Program& p : c.programs) {
    Json steps = Json::array();
    for (const KernelChoice& k : p.steps) {
      steps.push_back({{"kernel", k.kernel},
                       {"tuning", k.tuning.value},
                       {"estimate_us", k.estimate_us},
                       {"measured_us", k.measured_us}});
    }
    programs.push_back({{"tokens", p.tokens}, {"steps", steps}});
  }
  for (const ArenaSlot& s : c.arena.slots) slots.push_back({s.per_token, s.per_output});
  return {{"programs", programs}, {"arena", {{"slots", slots}, {"slot_of", c.arena.slot_of}}}};
}

void programs_from_json(const Json& j, EngineContents& c) {
  for (const Json& s : j.at("arena").at("slots")) {
    const ArenaSlot slot{s.at(0).get<int64_t>(), s.at(1).get<int64_t>()};
    constexpr int64_t kMost = int64_t{1} << 32;
    if (slot.per_token < 0 || slot.per_output < 0 || slot.per_token > kMost || slot.per_output > kMost)
      bad("an arena slot is out of range");
    c.arena.slots.push_back(slot);
  }
  c.arena.slot_of = j.at("arena").at("slot_of").get<std::vector<int32_t>>();
  if (std::ssize(c.arena.slot_of) != c.graph.value_count()) bad("the arena plan does not fit the graph");
  for (int32_t v = 0; v < c.graph.value_count(); ++v) {
    const int32_t slot = c.arena.slot_of[v];
    if (slot < -1 || slot >= std::ssize(c.arena.slots)) bad("an arena slot does not exist");
    if (slot < 0) continue;
    const ValueSpec& spec = c.graph.spec({v});
    const int64_t need = spec.width * static_cast<int64_t>(byte_size(spec.dtype));
    const ArenaSlot& s = c.arena.slots[slot];
    if ((spec.rows == Rows::tokens ? s.per_token : s.per_output) < need)
      bad("an arena slot is too small for its value");
  }
  for (const Node& n : c.graph.nodes()) {
    for (Value v : n.out) {
      if (c.arena.slot_of[v.id] < 0) bad("a value has no arena slot");
    }
  }
  int32_t last = 0;
  for (const Json& p : j.at("programs")) {
    Program program{p.at("tokens"), {}};
    if (program.tokens <= last) bad("programs must ascend in tokens");
    last = program.tokens;
    for (const Json& s : p.at("steps")) {
      program.steps.push_back(
          {s.at("kernel"), {s.at("tuning").get<std::array<int32_t, 4>>()}, s.at("estimate_us"), s.at("measured_us")});
    }
    if (program.steps.size() != c.graph.nodes().size()) bad("a program's steps do not fit the graph");
    c.programs.push_back(std::move(program));
  }
  if (c.programs.empty()) bad("the engine has no programs");
}

Json weights_to_json(const EngineContents& c) {
  Json weights = Json::array();
  for (const PackedWeight& w : c.weights) {
    const Packing& p = w.spec.packing;
    weights.push_back({{"name", w.name},
                       {"dtype", name(w.spec.dtype)},
                       {"layout", name(w.spec.layout)},
                       {"rows", w.spec.rows},
                       {"cols", w.spec.cols},
                       {"offset", w.offset},
                       {"hash", w.hash.hex()}});
    if (w.spec.layout != Layout::packed) continue;
    weights.back()["packing"] = {{"kind", name(p.kind)},        {"group", p.group},     {"zeros", p.zeros},
                                 {"offsets", p.offsets},        {"ordered", p.ordered}, {"inputs", name(p.inputs)},
                                 {"input_scale", p.input_scale}};
  }
  return {{"weights", weights}, {"node_weights", c.node_weights}};
}

void weights_from_json(const Json& j, EngineContents& c, uint64_t data_bytes) {
  for (const Json& w : j.at("weights")) {
    PackedWeight p;
    p.name = w.at("name");
    p.spec = {dtype(w.at("dtype")), Layout::row_major, w.at("rows"), w.at("cols")};
    const auto layout = w.at("layout").get<std::string>();
    if (layout == name(Layout::packed)) {
      p.spec.layout = Layout::packed;
      p.spec.packing = packing_from_json(w.at("packing"), p.name);
    } else if (layout != name(Layout::row_major)) {
      bad("unknown layout of " + p.name);
    }
    if (!is_float(p.spec.dtype)) bad("the dtype of " + p.name + " is no float type");
    p.offset = w.at("offset");
    p.hash = hash_from_hex(w.at("hash"));
    constexpr int64_t kMost = int64_t{1} << 31;
    if (p.spec.rows < 1 || p.spec.cols < 1 || p.spec.rows > kMost || p.spec.cols > kMost || p.offset % 64 ||
        p.offset > data_bytes || p.spec.bytes() > data_bytes - p.offset) {
      bad(p.name + " lies outside the data");
    }
    c.weights.push_back(std::move(p));
  }
  c.node_weights = j.at("node_weights").get<std::vector<std::vector<int32_t>>>();
  if (c.node_weights.size() != c.graph.nodes().size()) bad("the weights do not fit the graph");
  for (size_t i = 0; i < c.node_weights.size(); ++i) {
    const auto& uses = c.graph.nodes()[i].weights;
    if (uses.size() != c.node_weights[i].size())
      bad("the weights of " + c.graph.nodes()[i].scope + " do not fit the graph");
    for (size_t k = 0; k < uses.size(); ++k) {
      const int32_t id = c.node_weights[i][k];
      if (id < 0 || id >= std::ssize(c.weights) || c.weights[id].spec.rows != uses[k].rows ||
          c.weights[id].spec.cols != uses[k].cols) {
        bad("the weights of " + c.graph.nodes()[i].scope + " do not fit the graph");
      }
    }
  }
}

Hash128 hash_from_hex(const std::string& hex) {
  if (hex.size() != 32 || hex.find_first_not_of("0123456789abcdef") != std::string::npos)
    bad("a hash is not 32 hexadecimal digits");
  return {std::stoull(hex.substr(0, 16), nullptr, 16), std::stoull(hex.substr(16), nullptr, 16)};
}

}  // namespace pinion
