// Typed reads of JSON objects from outside: every read names the field and the place in its error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

// null when the object lacks the field or the field is JSON null.
inline const Json* find_field(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

inline Error wrong_field(const char* key, std::string_view expected, std::string_view where) {
  return fail(Errc::corrupt, "field \"" + std::string(key) + "\" must be " + std::string(expected), where,
              "take the file from the model's publisher again");
}

inline Result<std::string> string_field(const Json& object, const char* key, std::string_view where,
                                        std::optional<std::string> fallback = {}) {
  const Json* field = find_field(object, key);
  if (!field && fallback) return *fallback;
  if (!field || !field->is_string()) return wrong_field(key, "a string", where);
  return field->get<std::string>();
}

inline Result<bool> bool_field(const Json& object, const char* key, std::string_view where,
                               std::optional<bool> fallback = {}) {
  const Json* field = find_field(object, key);
  if (!field && fallback) return *fallback;
  if (!field || !field->is_boolean()) return wrong_field(key, "true or false", where);
  return field->get<bool>();
}

inline Result<int64_t> int_field(const Json& object, const char* key, std::string_view where, int64_t low, int64_t high,
                                 std::optional<int64_t> fallback = {}) {
  const Json* field = find_field(object, key);
  if (!field && fallback) return *fallback;
  // is_number_integer is also true for unsigned values beyond int64, which get<int64_t> would wrap.
  const bool fits = field && field->is_number_integer() &&
                    (!field->is_number_unsigned() || field->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (!fits || field->get<int64_t>() < low || field->get<int64_t>() > high) {
    return wrong_field(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high), where);
  }
  return field->get<int64_t>();
}

inline Result<const Json*> array_field(const Json& object, const char* key, std::string_view where) {
  const Json* field = find_field(object, key);
  if (!field || !field->is_array()) return wrong_field(key, "an array", where);
  return field;
}

}  // namespace pinion
