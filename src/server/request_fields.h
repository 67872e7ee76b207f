// Reads the fields of a request's JSON object with their types and ranges. The first error is kept, with the field's
// name; reads after it do nothing. An absent field and null are the same: the default stays.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "base/json.h"
#include "server/http_message.h"

namespace pinion {

class RequestFields {
 public:
  explicit RequestFields(const OrderedJson& object);  // borrowed

  const OrderedJson* find(std::string_view name);  // null when absent, null, or after an error
  void boolean(std::string_view name, bool& out);
  void string(std::string_view name, std::string& out, size_t max_bytes);
  void integer(std::string_view name, int64_t least, int64_t most, int64_t& out);
  void integer(std::string_view name, int64_t least, int64_t most, int32_t& out);
  void number(std::string_view name, double least, double most, float& out, bool least_allowed = true);
  void ignore(std::string_view name) { known_.insert(name); }
  // A field that would change the answer and is not implemented: refused by name unless it has a harmless value.
  void refuse(std::string_view name, const OrderedJson& harmless = nullptr);

  void fail(ApiError error);
  bool ok() const { return !error_; }
  const std::optional<ApiError>& error() const { return error_; }
  std::string first_unknown() const;  // a field that nothing asked for, or empty

 private:
  std::unordered_map<std::string_view, const OrderedJson*> values_;
  std::unordered_set<std::string_view> known_;
  std::optional<ApiError> error_;
};

// "a string", "an array", … for messages.
std::string_view json_kind(const OrderedJson& value);

}  // namespace pinion
