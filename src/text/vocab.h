// The vocabulary of a model: token strings by id and ids by token string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace pinion {

inline constexpr int32_t max_token_id = (1 << 22) - 1;  // far above any model; bounds what a broken file can allocate
inline constexpr size_t max_token_bytes = 4096;

class Vocab {
 public:
  static constexpr int32_t none = -1;

  static Result<Vocab> from_object(const Json& object, std::string_view where);             // {"token": id}
  static Result<Vocab> from_list(std::vector<std::string> tokens, std::string_view where);  // id = index

  int32_t find(std::string_view token) const {
    const auto it = ids_.find(token);
    return it == ids_.end() ? none : it->second;
  }
  bool has(int32_t id) const { return id >= 0 && id < size() && tokens_[static_cast<size_t>(id)].data() != nullptr; }
  std::string_view token(int32_t id) const { return has(id) ? tokens_[static_cast<size_t>(id)] : std::string_view(); }
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }  // largest id + 1

  Vocab() = default;
  Vocab(Vocab&&) = default;
  Vocab& operator=(Vocab&&) = default;
  Vocab(const Vocab&) = delete;  // tokens_ and ids_ view storage_

 private:
  Status fill(std::vector<int32_t> ids, std::string_view where);
  std::vector<std::string> storage_;  // never resized once viewed
  std::vector<std::string_view> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;
};

// The ids of "<0x00>" to "<0xFF>", Vocab::none where missing: byte fallback.
std::vector<int32_t> byte_fallback_ids(const Vocab& vocab);

}  // namespace pinion
