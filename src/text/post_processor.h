// The post-processor of a tokenizer file: the special tokens before and after a single text (BOS, EOS, [CLS], [SEP]).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

class PostProcessor {
 public:
  // `object` null: nothing is added.
  static Result<PostProcessor> parse(const Json* object, std::string_view where);
  const std::vector<int32_t>& before() const { return before_; }
  const std::vector<int32_t>& after() const { return after_; }
  bool adds_by_rule() const { return adds_by_rule_; }  // the file itself says what is added, be it nothing
  void prepend(int32_t id) { before_.insert(before_.begin(), id); }

 private:
  Status add(const Json& object, std::string_view where);
  Status add_template(const Json& object, std::string_view where);
  std::vector<int32_t> before_, after_;
  bool adds_by_rule_ = false;
};

}  // namespace pinion
