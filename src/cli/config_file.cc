#include "cli/config_file.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "base/file.h"

namespace pinion::cli {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20, kMostNodes = 20'000;
constexpr int kMostDepth = 16;

OrderedJson scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;  // quoted
  if (text.empty() || text == "~" || text == "null" || text == "Null") return nullptr;
  if (text == "true" || text == "True") return true;
  if (text == "false" || text == "False") return false;
  int64_t whole = 0;
  const char* const last = text.data() + text.size();
  if (const auto [end, errc] = std::from_chars(text.data(), last, whole); errc == std::errc() && end == last) {
    return whole;
  }
  double real = 0;
  if (const auto [end, errc] = std::from_chars(text.data(), last, real); errc == std::errc() && end == last) {
    return real;
  }
  return text;
}

// Aliases make a YAML file a graph: what it unfolds to is counted.
bool convert(const YAML::Node& node, int depth, size_t& nodes, OrderedJson& out) {
  if (depth > kMostDepth || ++nodes > kMostNodes) return false;
  if (node.IsMap()) {
    out = OrderedJson::object();
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return false;
      if (!convert(entry.second, depth + 1, nodes, out[entry.first.Scalar()])) return false;
    }
  } else if (node.IsSequence()) {
    out = OrderedJson::array();
    for (const auto& entry : node) {
      out.push_back(nullptr);
      if (!convert(entry, depth + 1, nodes, out.back())) return false;
    }
  } else {
    out = node.IsScalar() ? scalar(node) : OrderedJson(nullptr);
  }
  return true;
}

// What other tools call our flags; an empty flag: the setting is what we do anyway.
struct Renamed {
  std::string_view key, flag;
};
constexpr std::array kRenamed{
    Renamed{"free_gpu_memory_fraction", "kv_cache_free_memory_fraction"},
    Renamed{"kv_cache_free_gpu_mem_fraction", "kv_cache_free_memory_fraction"},
    Renamed{"max_tokens", "kv_cache_max_tokens"},
    Renamed{"host_cache_size", "kv_cache_host_memory_bytes"},
    Renamed{"dtype", "kv_cache_dtype"},  // inside of kv_cache_config alone
    Renamed{"capacity_scheduler_policy", "batch_scheduler_policy"},
};

std::string flag_text(const OrderedJson& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Error unknown(const std::string& key) {
  return fail(Errc::invalid_argument, "unknown setting", key, "see pinion serve --help for what there is");
}

Status read_settings(const OrderedJson& object, const std::string& path, bool cache,
                     const std::vector<std::string>& kept, ConfigFlags& flags, OrderedJson& other) {
  for (auto it = object.begin(); it != object.end(); ++it) {
    std::string key = it.key();
    std::replace(key.begin(), key.end(), '-', '_');
    const OrderedJson& value = it.value();
    const std::string where = path + key;
    if (value.is_null()) continue;
    if (path.empty() && std::find(kept.begin(), kept.end(), key) != kept.end()) {
      other[key] = value;
      continue;
    }
    if (key == "executor_config" || key == "kv_cache_config" || key == "scheduler_config") {
      if (!value.is_object()) return fail(Errc::invalid_argument, "expected settings", where, "");
      PINION_OK(read_settings(value, where + ".", key == "kv_cache_config", kept, flags, other));
      continue;
    }
    if (value.is_object()) return unknown(where);
    const bool on = value == true || value == "true";
    if (key == "enable_block_reuse" || key == "enable_kv_cache_reuse") {
      if (!on) flags.push_back({"no_prefix_reuse", {"true"}});
      continue;
    }
    if (key == "enable_chunked_prefill" || key == "enable_chunked_context") {
      if (!on)
        flags.push_back({"chunk_tokens", {std::to_string(1 << 20)}});  // a prompt is one piece, if it fits a step
      continue;
    }
    if (key == "max_beam_width" || key == "enable_partial_reuse") {
      const bool harmless = value == 0 || value == false || (key == "max_beam_width" && value == 1) ||
                            (key == "enable_partial_reuse" && value == true);
      if (!harmless) return fail(Errc::unsupported, "the setting is not implemented", where, "leave it out");
      continue;
    }
    for (const Renamed& r : kRenamed) {
      const bool in_cache = r.key == "max_tokens" || r.key == "dtype";
      if (r.key == key && (!in_cache || cache)) key = r.flag;
    }
    std::vector<std::string> values;
    if (value.is_array()) {
      for (const OrderedJson& v : value) {
        if (v.is_structured()) return unknown(where);
        values.push_back(flag_text(v));
      }
    } else {
      values.push_back(flag_text(value));
    }
    if (key == "batch_scheduler_policy") {
      for (char& c : values[0]) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    flags.push_back({std::move(key), std::move(values)});
  }
  return {};
}

}  // namespace

Result<OrderedJson> read_config_file(const std::filesystem::path& path) {
  PINION_TRY(const std::string text, read_file(path, kMostBytes));
  try {
    OrderedJson out;
    size_t nodes = 0;
    if (!convert(YAML::Load(text), 0, nodes, out)) {
      return fail(Errc::corrupt, "the configuration is too deep or too large", path.string(), "");
    }
    if (!out.is_object()) {
      return fail(Errc::corrupt, "the configuration is no mapping of settings", path.string(), "write `flag: value`");
    }
    return out;
  } catch (const YAML::Exception& e) {  // yaml-cpp reports so
    return fail(Errc::corrupt, "no YAML or JSON: " + e.msg, fmt::format("{}, line {}", path.string(), e.mark.line + 1),
                "");
  }
}

Result<ConfigFlags> config_flags(const OrderedJson& config, const std::vector<std::string>& kept, OrderedJson& other) {
  ConfigFlags flags;
  PINION_OK(read_settings(config, "", false, kept, flags, other));
  return flags;
}

Status apply_flags(CLI::App& app, const ConfigFlags& flags, const std::string& where) {
  for (const auto& [name, values] : flags) {
    CLI::Option* option = app.get_option_no_throw(name == "model" ? name : "--" + name);
    if (option == nullptr || name == "config" || name == "help") return unknown(where + ": " + name);
    if (option->count() > 0) continue;  // the command line says it
    const bool is_flag = option->get_expected_max() == 0;
    try {
      if (is_flag && values.size() == 1 && values[0] == "false") continue;
      option->add_result(values);
      option->run_callback();
    } catch (const CLI::Error& e) {
      return fail(Errc::invalid_argument, e.what(), where + ": " + name, "");
    }
  }
  return {};
}

}  // namespace pinion::cli
