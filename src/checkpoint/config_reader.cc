#include "checkpoint/config_reader.h"

#include <fmt/format.h>

#include <cmath>

#include "base/check.h"

namespace pinion {
namespace {

template <class T>
Result<T> required(Result<std::optional<T>> found, const ConfigReader& reader, std::string_view key) {
  if (!found) return std::move(found).error();
  if (!*found) return reader.error(key, "is missing");
  return **std::move(found);
}

template <class T>
Result<T> value_or(Result<std::optional<T>> found, T value) {
  if (!found) return std::move(found).error();
  return std::move(*found).value_or(std::move(value));
}

// What stands there instead, short enough for a message.
std::string shown(const Json& v) {
  if (v.is_object()) return "an object";
  if (v.is_array()) return "a list";
  std::string text = v.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 80) + "...";
  return text;
}

// The problem with `v` as an integer of that range, or none and the integer in `out`.
std::optional<std::string> read_int(const Json& v, IntRange range, int64_t& out) {
  if (!v.is_number_integer()) return fmt::format("must be an integer, found {}", shown(v));
  const bool too_large = v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!too_large) out = v.get<int64_t>();
  if (too_large || out < range.min || out > range.max) {
    return fmt::format("must be between {} and {}, found {}", range.min, range.max, shown(v));
  }
  return std::nullopt;
}

std::optional<std::string> read_float(const Json& v, FloatRange range, double& out) {
  if (!v.is_number()) return fmt::format("must be a number, found {}", shown(v));
  out = v.get<double>();
  if (!std::isfinite(out) || out < range.min || out > range.max) {
    return fmt::format("must be between {} and {}, found {}", range.min, range.max, shown(v));
  }
  return std::nullopt;
}

}  // namespace

ConfigReader::ConfigReader(const Json& object, std::string where, std::string section)
    : object_(&object), where_(std::move(where)), section_(std::move(section)) {}

const Json* ConfigReader::find(std::string_view key) const {
  if (!object_->is_object()) return nullptr;
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

Error ConfigReader::error(std::string_view key, std::string_view what, std::string_view remedy) const {
  return fail(Errc::invalid_argument, fmt::format("{}{} {}", section_, key, what), where_,
              remedy.empty() ? "correct it in that file" : remedy);
}

Result<std::optional<int64_t>> ConfigReader::find_int(std::string_view key, IntRange range) const {
  const Json* v = find(key);
  if (!v) return std::optional<int64_t>{};
  int64_t out = 0;
  if (auto problem = read_int(*v, range, out)) return error(key, *problem);
  return std::optional(out);
}

Result<int64_t> ConfigReader::require_int(std::string_view key, IntRange range) const {
  return required(find_int(key, range), *this, key);
}

Result<int64_t> ConfigReader::int_or(std::string_view key, int64_t value, IntRange range) const {
  return value_or(find_int(key, range), value);
}

Result<std::optional<double>> ConfigReader::find_float(std::string_view key, FloatRange range) const {
  const Json* v = find(key);
  if (!v) return std::optional<double>{};
  double out = 0;
  if (auto problem = read_float(*v, range, out)) return error(key, *problem);
  return std::optional(out);
}

Result<double> ConfigReader::require_float(std::string_view key, FloatRange range) const {
  return required(find_float(key, range), *this, key);
}

Result<double> ConfigReader::float_or(std::string_view key, double value, FloatRange range) const {
  return value_or(find_float(key, range), value);
}

Result<std::optional<bool>> ConfigReader::find_bool(std::string_view key) const {
  const Json* v = find(key);
  if (!v) return std::optional<bool>{};
  if (!v->is_boolean()) return error(key, fmt::format("must be true or false, found {}", shown(*v)));
  return std::optional(v->get<bool>());
}

Result<bool> ConfigReader::require_bool(std::string_view key) const {
  return required(find_bool(key), *this, key);
}

Result<bool> ConfigReader::bool_or(std::string_view key, bool value) const {
  return value_or(find_bool(key), value);
}

Result<std::optional<std::string>> ConfigReader::find_string(std::string_view key) const {
  const Json* v = find(key);
  if (!v) return std::optional<std::string>{};
  if (!v->is_string()) return error(key, fmt::format("must be a string, found {}", shown(*v)));
  return std::optional(v->get<std::string>());
}

Result<std::string> ConfigReader::require_string(std::string_view key) const {
  return required(find_string(key), *this, key);
}

Result<std::string> ConfigReader::string_or(std::string_view key, std::string_view value) const {
  return value_or(find_string(key), std::string(value));
}

Result<std::optional<std::vector<int64_t>>> ConfigReader::find_ints(std::string_view key, IntRange range) const {
  using List = std::vector<int64_t>;
  const Json* v = find(key);
  if (!v) return std::optional<List>{};
  if (!v->is_array()) return error(key, fmt::format("must be a list of integers, found {}", shown(*v)));
  List out(v->size());
  for (size_t i = 0; i < out.size(); ++i) {
    if (auto problem = read_int((*v)[i], range, out[i])) return error(fmt::format("{}[{}]", key, i), *problem);
  }
  return std::optional(std::move(out));
}

Result<std::vector<int64_t>> ConfigReader::ints_or(std::string_view key, std::vector<int64_t> value,
                                                   IntRange range) const {
  return value_or(find_ints(key, range), std::move(value));
}

Result<std::vector<int64_t>> ConfigReader::one_or_many_ints(std::string_view key, IntRange range) const {
  const Json* v = find(key);
  if (!v || v->is_array()) return ints_or(key, {}, range);
  PINION_TRY(const int64_t one, require_int(key, range));
  return std::vector{one};
}

Result<std::optional<std::vector<double>>> ConfigReader::find_floats(std::string_view key, FloatRange range) const {
  using List = std::vector<double>;
  const Json* v = find(key);
  if (!v) return std::optional<List>{};
  if (!v->is_array()) return error(key, fmt::format("must be a list of numbers, found {}", shown(*v)));
  List out(v->size());
  for (size_t i = 0; i < out.size(); ++i) {
    if (auto problem = read_float((*v)[i], range, out[i])) return error(fmt::format("{}[{}]", key, i), *problem);
  }
  return std::optional(std::move(out));
}

Result<std::optional<std::vector<std::string>>> ConfigReader::find_strings(std::string_view key) const {
  using List = std::vector<std::string>;
  const Json* v = find(key);
  if (!v) return std::optional<List>{};
  if (!v->is_array()) return error(key, fmt::format("must be a list of strings, found {}", shown(*v)));
  List out;
  for (const Json& item : *v) {
    if (!item.is_string()) return error(key, fmt::format("must be a list of strings, found {} in it", shown(item)));
    out.push_back(item.get<std::string>());
  }
  return std::optional(std::move(out));
}

Result<std::optional<ConfigReader>> ConfigReader::find_section(std::string_view key) const {
  const Json* v = find(key);
  if (!v) return std::optional<ConfigReader>{};
  if (!v->is_object()) return error(key, fmt::format("must be an object, found {}", shown(*v)));
  return std::optional(ConfigReader(*v, where_, fmt::format("{}{}.", section_, key)));
}

Result<ConfigReader> ConfigReader::require_section(std::string_view key) const {
  return required(find_section(key), *this, key);
}

}  // namespace pinion
