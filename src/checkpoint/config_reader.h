// Typed access to config.json: a value of the wrong type or out of its range is an Error that names the key and the
// file. null counts as absent, as in transformers.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

struct IntRange {
  int64_t min = 0;
  int64_t max = int64_t{1} << 31;  // no size in a model's config reaches it
};
struct FloatRange {
  double min = -1e30;
  double max = 1e30;
};

// Borrows the object. Each type has three forms: require_x (absent is an error), find_x (absent is nullopt) and
// x_or (absent is the default).
class ConfigReader {
 public:
  // `where` names the file; sections add "rope_scaling." and so on to the key in errors.
  ConfigReader(const Json& object, std::string where, std::string section = {});

  bool has(std::string_view key) const { return find(key) != nullptr; }
  const Json* find(std::string_view key) const;  // nullptr when absent or null
  const Json& json() const { return *object_; }
  const std::string& where() const { return where_; }

  Result<std::optional<int64_t>> find_int(std::string_view key, IntRange range = {}) const;
  Result<int64_t> require_int(std::string_view key, IntRange range = {}) const;
  Result<int64_t> int_or(std::string_view key, int64_t value, IntRange range = {}) const;

  Result<std::optional<double>> find_float(std::string_view key, FloatRange range = {}) const;  // integers too
  Result<double> require_float(std::string_view key, FloatRange range = {}) const;
  Result<double> float_or(std::string_view key, double value, FloatRange range = {}) const;

  Result<std::optional<bool>> find_bool(std::string_view key) const;
  Result<bool> require_bool(std::string_view key) const;
  Result<bool> bool_or(std::string_view key, bool value) const;

  Result<std::optional<std::string>> find_string(std::string_view key) const;
  Result<std::string> require_string(std::string_view key) const;
  Result<std::string> string_or(std::string_view key, std::string_view value) const;

  Result<std::optional<std::vector<int64_t>>> find_ints(std::string_view key, IntRange range = {}) const;
  Result<std::vector<int64_t>> ints_or(std::string_view key, std::vector<int64_t> value, IntRange range = {}) const;
  // "eos_token_id": one integer or a list of them.
  Result<std::vector<int64_t>> one_or_many_ints(std::string_view key, IntRange range = {}) const;  // absent: empty
  Result<std::optional<std::vector<double>>> find_floats(std::string_view key, FloatRange range = {}) const;
  Result<std::optional<std::vector<std::string>>> find_strings(std::string_view key) const;

  Result<std::optional<ConfigReader>> find_section(std::string_view key) const;  // a nested object
  Result<ConfigReader> require_section(std::string_view key) const;

  // For checks of the caller's own: "<what>" about `key`, in the same form as the errors above.
  Error error(std::string_view key, std::string_view what, std::string_view remedy = {}) const;

 private:
  const Json* object_;
  std::string where_, section_;
};

}  // namespace pinion
