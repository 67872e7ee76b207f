#include "text/vocab.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace pinion {

Result<Vocab> Vocab::from_object(const Json& object, std::string_view where) {
  if (!object.is_object()) return fail(Errc::corrupt, "vocab must be an object of token to id", where);
  Vocab vocab;
  std::vector<int32_t> ids;
  vocab.storage_.reserve(object.size());
  ids.reserve(object.size());
  for (const auto& [token, id] : object.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(max_token_id)) {
      return fail(Errc::corrupt,
                  fmt::format("the id of token \"{}\" must be an integer from 0 to {}", token, max_token_id), where,
                  "take the file from the model's publisher again");
    }
    vocab.storage_.push_back(token);
    ids.push_back(id.get<int32_t>());
  }
  PINION_OK(vocab.fill(std::move(ids), where));
  return vocab;
}

Result<Vocab> Vocab::from_list(std::vector<std::string> tokens, std::string_view where) {
  if (tokens.size() > static_cast<size_t>(max_token_id)) return fail(Errc::corrupt, "vocab has too many tokens", where);
  Vocab vocab;
  vocab.storage_ = std::move(tokens);
  std::vector<int32_t> ids(vocab.storage_.size());
  std::iota(ids.begin(), ids.end(), 0);
  PINION_OK(vocab.fill(std::move(ids), where));
  return vocab;
}

Status Vocab::fill(std::vector<int32_t> ids, std::string_view where) {
  if (!ids.empty()) tokens_.resize(static_cast<size_t>(*std::max_element(ids.begin(), ids.end())) + 1);
  ids_.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (storage_[i].size() > max_token_bytes) {
      return fail(Errc::unsupported,
                  fmt::format("the token with id {} is longer than {} bytes", ids[i], max_token_bytes), where);
    }
    tokens_[static_cast<size_t>(ids[i])] = storage_[i];
    ids_[storage_[i]] = ids[i];
  }
  return {};
}

std::vector<int32_t> byte_fallback_ids(const Vocab& vocab) {
  std::vector<int32_t> ids(256);
  for (size_t byte = 0; byte < ids.size(); ++byte) ids[byte] = vocab.find(fmt::format("<0x{:02X}>", byte));
  return ids;
}

}  // namespace pinion
