// Unigram (SentencePiece): the segmentation of a word with the best sum of scores, found by Viterbi over byte
// positions. Time is the word's length times the longest token's.
#pragma once

#include "text/byte_trie.h"
#include "text/token_model.h"

namespace pinion {

class Unigram final : public TokenModel {
 public:
  static Result<std::unique_ptr<TokenModel>> parse(const Json& object, std::string_view where);
  // A character that no token covers is dropped when the file has no unk_id.
  void tokenize(std::string_view word, std::vector<int32_t>& ids) const override;

 private:
  explicit Unigram(Vocab vocab) : TokenModel(std::move(vocab)) {}
  void append_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  std::vector<double> scores_;  // by id
  ByteTrie trie_;
  double unknown_score_ = 0;
  int32_t unknown_ = Vocab::none;
  std::vector<int32_t> fallback_;  // by byte; empty without byte_fallback
};

}  // namespace pinion
