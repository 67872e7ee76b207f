#include "server/request_fields.h"

#include <fmt/format.h>

#include <limits>

namespace pinion {

std::string_view json_kind(const OrderedJson& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return "a string";
  if (value.is_boolean()) return "a boolean";
  if (value.is_number_float()) return "a fractional number";
  if (value.is_number()) return "an integer";
  return "null";
}

RequestFields::RequestFields(const OrderedJson& object) {
  for (auto it = object.begin(); it != object.end(); ++it) values_.emplace(it.key(), &it.value());
}

const OrderedJson* RequestFields::find(std::string_view name) {
  known_.insert(name);
  const auto it = values_.find(name);
  return error_ || it == values_.end() || it->second->is_null() ? nullptr : it->second;
}

void RequestFields::boolean(std::string_view name, bool& out) {
  const OrderedJson* value = find(name);
  if (!value) return;
  if (!value->is_boolean()) return fail(bad_field(name, fmt::format("expected a boolean, got {}", json_kind(*value))));
  out = value->get<bool>();
}

void RequestFields::string(std::string_view name, std::string& out, size_t max_bytes) {
  const OrderedJson* value = find(name);
  if (!value) return;
  if (!value->is_string()) return fail(bad_field(name, fmt::format("expected a string, got {}", json_kind(*value))));
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    return fail(bad_field(name, fmt::format("{} bytes, at most {} are allowed", text.size(), max_bytes)));
  }
  out = text;
}

void RequestFields::integer(std::string_view name, int64_t least, int64_t most, int64_t& out) {
  const OrderedJson* value = find(name);
  if (!value) return;
  if (!value->is_number_integer()) {
    return fail(bad_field(name, fmt::format("expected an integer, got {}", json_kind(*value))));
  }
  const bool too_large = value->is_number_unsigned() &&
                         value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const auto number = too_large ? std::numeric_limits<int64_t>::max() : value->get<int64_t>();
  if (too_large || number < least || number > most) {
    return fail(bad_field(name, fmt::format("{} is not between {} and {}", value->dump(), least, most)));
  }
  out = number;
}

void RequestFields::integer(std::string_view name, int64_t least, int64_t most, int32_t& out) {
  int64_t wide = out;
  integer(name, least, most, wide);
  out = static_cast<int32_t>(wide);
}

void RequestFields::number(std::string_view name, double least, double most, float& out, bool least_allowed) {
  const OrderedJson* value = find(name);
  if (!value) return;
  if (!value->is_number()) return fail(bad_field(name, fmt::format("expected a number, got {}", json_kind(*value))));
  const auto number = value->get<double>();
  if (!(number >= least && number <= most) || (!least_allowed && number == least)) {  // also NaN
    return fail(bad_field(name, fmt::format("{} is not {} {} and at most {}", value->dump(),
                                            least_allowed ? "at least" : "above", least, most)));
  }
  out = static_cast<float>(number);
}

void RequestFields::refuse(std::string_view name, const OrderedJson& harmless) {
  const OrderedJson* value = find(name);
  if (value && *value != harmless) fail(unsupported_field(name));
}

void RequestFields::fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

std::string RequestFields::first_unknown() const {
  for (const auto& [name, value] : values_) {
    if (!known_.contains(name)) return std::string(name);
  }
  return {};
}

}  // namespace pinion
