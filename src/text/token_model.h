// What turns a word into token ids: BPE, Unigram, WordPiece or WordLevel. Thread-safe when const.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/vocab.h"

namespace pinion {

class TokenModel {
 public:
  static Result<std::unique_ptr<TokenModel>> parse(const Json& object, std::string_view where);
  virtual ~TokenModel() = default;
  // Appends the ids of `word` (valid UTF-8, not empty).
  virtual void tokenize(std::string_view word, std::vector<int32_t>& ids) const = 0;
  // The same for a word whose characters are the bytes of `word` in the byte-level alphabet.
  virtual void tokenize_bytes(std::string_view word, std::vector<int32_t>& ids) const;
  const Vocab& vocab() const { return vocab_; }

 protected:
  explicit TokenModel(Vocab vocab) : vocab_(std::move(vocab)) {}
  Vocab vocab_;
};

}  // namespace pinion
