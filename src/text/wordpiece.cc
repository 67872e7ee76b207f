#include "text/wordpiece.h"

#include <algorithm>

#include "text/json_fields.h"

namespace pinion {
namespace {

Result<Vocab> read_vocab(const Json& object, std::string_view where) {
  const Json* field = find_field(object, "vocab");
  if (!field) return wrong_field("vocab", "an object", where);
  return Vocab::from_object(*field, where);
}

Result<int32_t> read_unknown(const Json& object, const Vocab& vocab, std::string fallback, std::string_view where) {
  PINION_TRY(const std::string token, string_field(object, "unk_token", where, std::move(fallback)));
  const int32_t id = vocab.find(token);
  if (id == Vocab::none) return fail(Errc::corrupt, "unk_token \"" + token + "\" is not in vocab", where);
  return id;
}

}  // namespace

Result<std::unique_ptr<TokenModel>> WordPiece::parse(const Json& object, std::string_view where) {
  PINION_TRY(Vocab vocab, read_vocab(object, where));
  std::unique_ptr<WordPiece> model(new WordPiece(std::move(vocab)));
  PINION_TRY(model->unknown_, read_unknown(object, model->vocab_, "[UNK]", where));
  PINION_TRY(const std::string prefix, string_field(object, "continuing_subword_prefix", where, "##"));
  PINION_TRY(const int64_t max_chars, int_field(object, "max_input_chars_per_word", where, 1, INT32_MAX, 100));
  model->max_chars_ = static_cast<size_t>(max_chars);
  for (int32_t id = 0; id < model->vocab_.size(); ++id) {
    const std::string_view token = model->vocab_.token(id);
    if (!token.empty()) model->first_.insert(token, id);
    if (token.size() > prefix.size() && token.starts_with(prefix)) {
      model->continuing_.insert(token.substr(prefix.size()), id);
    }
  }
  return std::unique_ptr<TokenModel>(std::move(model));
}

void WordPiece::tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  const auto chars = std::count_if(word.begin(), word.end(), [](char c) { return (c & 0xC0) != 0x80; });
  const size_t before = ids.size();
  size_t begin = static_cast<size_t>(chars) > max_chars_ ? word.size() + 1 : 0;
  while (begin < word.size()) {
    const ByteTrie& trie = begin == 0 ? first_ : continuing_;
    int32_t node = ByteTrie::root, longest = ByteTrie::none;
    size_t longest_end = 0;
    for (size_t end = begin; end < word.size();) {
      node = trie.child(node, word[end++]);
      if (node == ByteTrie::none) break;
      if (trie.value(node) != ByteTrie::none) {
        longest = trie.value(node);
        longest_end = end;
      }
    }
    if (longest == ByteTrie::none) break;
    ids.push_back(longest);
    begin = longest_end;
  }
  if (begin == word.size()) return;
  ids.resize(before);
  ids.push_back(unknown_);
}

Result<std::unique_ptr<TokenModel>> WordLevel::parse(const Json& object, std::string_view where) {
  PINION_TRY(Vocab vocab, read_vocab(object, where));
  std::unique_ptr<WordLevel> model(new WordLevel(std::move(vocab)));
  PINION_TRY(model->unknown_, read_unknown(object, model->vocab_, "<unk>", where));
  return std::unique_ptr<TokenModel>(std::move(model));
}

void WordLevel::tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  const int32_t id = vocab_.find(word);
  ids.push_back(id == Vocab::none ? unknown_ : id);
}

}  // namespace pinion
