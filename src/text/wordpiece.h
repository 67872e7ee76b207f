// WordPiece (greedy longest match from the left; a word with a gap is unknown as a whole) and WordLevel (a look-up).
#pragma once

#include "text/byte_trie.h"
#include "text/token_model.h"

namespace pinion {

class WordPiece final : public TokenModel {
 public:
  static Result<std::unique_ptr<TokenModel>> parse(const Json& object, std::string_view where);
  void tokenize(std::string_view word, std::vector<int32_t>& ids) const override;

 private:
  explicit WordPiece(Vocab vocab) : TokenModel(std::move(vocab)) {}
  ByteTrie first_, continuing_;  // continuing_: without the prefix
  int32_t unknown_ = Vocab::none;
  size_t max_chars_ = 100;
};

class WordLevel final : public TokenModel {
 public:
  static Result<std::unique_ptr<TokenModel>> parse(const Json& object, std::string_view where);
  void tokenize(std::string_view word, std::vector<int32_t>& ids) const override;

 private:
  explicit WordLevel(Vocab vocab) : TokenModel(std::move(vocab)) {}
  int32_t unknown_ = Vocab::none;
};

}  // namespace pinion
