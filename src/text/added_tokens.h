// Added tokens: strings that are one token wherever they stand, found before the model sees the text. Those with
// normalized=false are looked for in the raw text, the others in the normalised text by their normalised form.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/byte_trie.h"
#include "text/normalizer.h"
#include "text/vocab.h"

namespace pinion {

class AddedTokens {
 public:
  struct Token {
    int32_t id = 0;
    std::string content;
    std::string decoded;  // what the decoder is given: the normalised content where normalized is set
    bool single_word = false, lstrip = false, rstrip = false, normalized = true, special = false;
  };
  // `list`: tokenizer.json's added_tokens; `decoder`: tokenizer_config.json's added_tokens_decoder, which overrides
  // the flags and adds tokens. Either may be null.
  static Result<AddedTokens> parse(const Json* list, const Json* decoder, const Vocab& vocab,
                                   const Normalizer& normalizer, std::string_view where);

  // Calls emit(begin, end, id) for pieces that cover the text in order; id Vocab::none: no added token. Special tokens
  // are left in the text when `split_special`. Leftmost-longest; time is the text's length times the longest token's.
  template <class Emit>
  void split(std::string_view text, bool in_normalized, bool split_special, Emit&& emit) const;
  bool any(bool in_normalized) const { return matchers_[in_normalized].used; }

  const Token* find(int32_t id) const {
    const auto it = by_id_.find(id);
    return it == by_id_.end() ? nullptr : &tokens_[it->second];
  }
  const Token* find(std::string_view content) const {
    const auto it = by_content_.find(std::string(content));
    return it == by_content_.end() ? nullptr : &tokens_[it->second];
  }
  int32_t size() const { return size_; }  // largest id + 1

 private:
  struct Matcher {
    bool used = false;
    std::array<bool, 256> first{};  // bytes that begin a token
    ByteTrie trie;                  // values are indexes into tokens_
  };
  Status add(Token token, const Vocab& vocab, std::string_view where);
  // The longest token at `pos`, or ByteTrie::none.
  static int32_t longest_at(const Matcher& matcher, std::string_view text, size_t pos, size_t& end);
  static bool word_ends(std::string_view text);
  static bool word_begins(std::string_view text);
  static size_t space_begin(std::string_view text, size_t begin, size_t end);  // of the spaces that end at `end`
  static size_t space_end(std::string_view text, size_t begin);                // of the spaces that begin at `begin`

  std::vector<Token> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  std::array<Matcher, 2> matchers_;  // raw, normalised
  int32_t size_ = 0;
};

template <class Emit>
void AddedTokens::split(std::string_view text, bool in_normalized, bool split_special, Emit&& emit) const {
  const Matcher& matcher = matchers_[in_normalized];
  size_t done = 0, spaces_seen = 0;  // spaces_seen: an rstrip token's spaces end here, known from the token before
  for (size_t pos = 0, end = 0; matcher.used && pos < text.size();) {
    const int32_t index =
        matcher.first[static_cast<unsigned char>(text[pos])] ? longest_at(matcher, text, pos, end) : ByteTrie::none;
    if (index == ByteTrie::none) {
      ++pos;
      continue;
    }
    const Token& token = tokens_[static_cast<size_t>(index)];
    size_t start = pos, stop = end;
    pos = end;  // a rejected match is passed over as well
    if (split_special && token.special) continue;
    if (token.single_word && (word_ends(text.substr(0, start)) || word_begins(text.substr(stop)))) continue;
    if (token.lstrip) start = space_begin(text, done, start);
    if (token.rstrip) {
      if (stop >= spaces_seen) spaces_seen = space_end(text, stop);
      stop = spaces_seen;
    }
    if (done < start) emit(done, start, Vocab::none);
    emit(start, stop, token.id);
    done = stop;
  }
  if (done < text.size()) emit(done, text.size(), Vocab::none);
}

}  // namespace pinion
