#include "text/unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "text/json_fields.h"
#include "text/unicode.h"

namespace pinion {
namespace {

constexpr double unknown_penalty = 10.0;

}  // namespace

Result<std::unique_ptr<TokenModel>> Unigram::parse(const Json& object, std::string_view where) {
  PINION_TRY(const Json* list, array_field(object, "vocab", where));
  std::vector<std::string> tokens;
  std::vector<double> scores;
  for (const Json& item : *list) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number() ||
        !std::isfinite(item[1].get<double>())) {
      return fail(Errc::corrupt, "vocab entry " + std::to_string(tokens.size()) + " must be [token, score]", where,
                  "take the file from the model's publisher again");
    }
    tokens.push_back(item[0].get<std::string>());
    scores.push_back(item[1].get<double>());
  }
  if (tokens.empty()) return fail(Errc::corrupt, "vocab is empty", where);
  PINION_TRY(Vocab vocab, Vocab::from_list(std::move(tokens), where));
  std::unique_ptr<Unigram> model(new Unigram(std::move(vocab)));
  for (int32_t id = 0; id < model->vocab_.size(); ++id) {
    if (!model->vocab_.token(id).empty()) model->trie_.insert(model->vocab_.token(id), id);
  }
  model->unknown_score_ = *std::min_element(scores.begin(), scores.end()) - unknown_penalty;
  model->scores_ = std::move(scores);
  if (find_field(object, "unk_id")) {
    PINION_TRY(const int64_t unknown, int_field(object, "unk_id", where, 0, model->vocab_.size() - 1));
    model->unknown_ = static_cast<int32_t>(unknown);
  }
  PINION_TRY(const bool byte_fallback, bool_field(object, "byte_fallback", where, false));
  if (byte_fallback) model->fallback_ = byte_fallback_ids(model->vocab_);
  return std::unique_ptr<TokenModel>(std::move(model));
}

void Unigram::append_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  if (const int32_t id = vocab_.find(text); id != Vocab::none) {
    ids.push_back(id);
    return;
  }
  const auto fallback = [&](char c) { return fallback_[static_cast<unsigned char>(c)]; };
  if (!fallback_.empty() && std::all_of(text.begin(), text.end(), [&](char c) { return fallback(c) != Vocab::none; })) {
    for (const char c : text) ids.push_back(fallback(c));
  } else if (unknown_ != Vocab::none) {
    ids.push_back(unknown_);
  }
}

void Unigram::tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  constexpr size_t unreached = std::numeric_limits<size_t>::max();
  struct Node {
    size_t from = unreached;
    double score = 0;
    int32_t id = Vocab::none;
  };
  std::vector<Node> best(word.size() + 1);
  const auto offer = [&](size_t from, size_t to, double score, int32_t id) {
    Node& node = best[to];
    if (node.from == unreached || score > node.score) node = {from, score, id};
  };
  for (size_t pos = 0; pos < word.size();) {
    const size_t start = pos;
    next_char(word, pos);
    bool has_single = false;
    int32_t node = ByteTrie::root;
    for (size_t end = start; end < word.size();) {
      node = trie_.child(node, word[end++]);
      if (node == ByteTrie::none) break;
      if (const int32_t id = trie_.value(node); id != ByteTrie::none) {
        offer(start, end, best[start].score + scores_[static_cast<size_t>(id)], id);
        if (end == pos) has_single = true;
      }
    }
    if (!has_single) offer(start, pos, best[start].score + unknown_score_, unknown_);
  }
  std::vector<size_t> ends;
  for (size_t end = word.size(); end > 0; end = best[end].from) ends.push_back(end);
  size_t unknown_begin = unreached;
  const auto flush = [&](size_t end) {
    if (unknown_begin != unreached) append_unknown(word.substr(unknown_begin, end - unknown_begin), ids);
    unknown_begin = unreached;
  };
  for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
    const Node& node = best[*end];
    if (node.id == unknown_ || node.id == Vocab::none) {
      if (unknown_begin == unreached) unknown_begin = node.from;
    } else {
      flush(node.from);
      ids.push_back(node.id);
    }
  }
  flush(word.size());
}

}  // namespace pinion
