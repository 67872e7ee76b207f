#include "text/added_tokens.h"

#include <algorithm>
#include <charconv>

#include "text/json_fields.h"
#include "text/unicode.h"

namespace pinion {

Result<AddedTokens> AddedTokens::parse(const Json* list, const Json* decoder, const Vocab& vocab,
                                       const Normalizer& normalizer, std::string_view where) {
  AddedTokens made;
  const auto read = [&](const Json& item, int64_t id, const Token* before) -> Status {
    Token token;
    PINION_TRY(token.content, string_field(item, "content", where));
    PINION_TRY(token.single_word, bool_field(item, "single_word", where, before && before->single_word));
    PINION_TRY(token.lstrip, bool_field(item, "lstrip", where, before && before->lstrip));
    PINION_TRY(token.rstrip, bool_field(item, "rstrip", where, before && before->rstrip));
    PINION_TRY(token.special, bool_field(item, "special", where, before && before->special));
    PINION_TRY(token.normalized, bool_field(item, "normalized", where, before ? before->normalized : !token.special));
    token.id = static_cast<int32_t>(id);
    return made.add(std::move(token), vocab, where);
  };
  if (list && !list->is_array()) return wrong_field("added_tokens", "an array", where);
  if (list) {
    for (const Json& item : *list) {
      PINION_TRY(const int64_t id, int_field(item, "id", where, 0, max_token_id));
      PINION_OK(read(item, id, nullptr));
    }
  }
  if (decoder && !decoder->is_object()) return wrong_field("added_tokens_decoder", "an object", where);
  if (decoder) {
    for (const auto& [key, item] : decoder->items()) {
      int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size() || id < 0 || id > max_token_id) {
        return wrong_field("added_tokens_decoder", "an object of id to token", where);
      }
      PINION_TRY(const std::string content, string_field(item, "content", where));
      const Token* known = made.find(content);
      const Token before = known ? *known : Token{};
      PINION_OK(read(item, known ? before.id : id, known ? &before : nullptr));
    }
  }
  for (size_t i = 0; i < made.tokens_.size(); ++i) {
    Token& token = made.tokens_[i];
    std::string& pattern = token.decoded;
    pattern = token.content;
    if (token.normalized) normalizer.apply(pattern);
    if (pattern.empty()) continue;
    Matcher& matcher = made.matchers_[token.normalized];
    matcher.used = true;
    matcher.first[static_cast<unsigned char>(pattern[0])] = true;
    matcher.trie.insert(pattern, static_cast<int32_t>(i));
  }
  return made;
}

Status AddedTokens::add(Token token, const Vocab& vocab, std::string_view where) {
  if (token.content.size() > max_token_bytes) {
    return fail(Errc::unsupported, "an added token is longer than " + std::to_string(max_token_bytes) + " bytes",
                where);
  }
  // Where the model has the string too, its id counts, whatever the list says.
  if (const int32_t id = vocab.find(token.content); id != Vocab::none) token.id = id;
  size_ = std::max(size_, token.id + 1);
  const auto [at, fresh] = by_content_.try_emplace(token.content, tokens_.size());
  if (fresh) {
    by_id_[token.id] = tokens_.size();
    tokens_.push_back(std::move(token));
  } else {
    by_id_[token.id] = at->second;
    tokens_[at->second] = std::move(token);
  }
  return {};
}

int32_t AddedTokens::longest_at(const Matcher& matcher, std::string_view text, size_t pos, size_t& end) {
  int32_t node = ByteTrie::root, longest = ByteTrie::none;
  while (pos < text.size()) {
    node = matcher.trie.child(node, text[pos++]);
    if (node == ByteTrie::none) break;
    if (matcher.trie.value(node) != ByteTrie::none) {
      longest = matcher.trie.value(node);
      end = pos;
    }
  }
  return longest;
}

bool AddedTokens::word_ends(std::string_view text) {
  if (text.empty()) return false;
  size_t pos = previous_char(text, text.size());
  return is_word_char(next_char(text, pos));
}

bool AddedTokens::word_begins(std::string_view text) {
  size_t pos = 0;
  return !text.empty() && is_word_char(next_char(text, pos));
}

size_t AddedTokens::space_begin(std::string_view text, size_t begin, size_t end) {
  while (end > begin) {
    const size_t start = previous_char(text, end);
    size_t pos = start;
    if (!is_whitespace(next_char(text, pos))) break;
    end = start;
  }
  return end;
}

size_t AddedTokens::space_end(std::string_view text, size_t begin) {
  for (size_t pos = begin; pos < text.size() && is_whitespace(next_char(text, pos));) begin = pos;
  return begin;
}

}  // namespace pinion
