// A GGUF file's tokenizer as tokenizer.json and tokenizer_config.json. SentencePiece's BPE has scores instead of
// merges: it always joins the neighbours whose joined piece has the highest score, which is BPE with every split of
// every piece as a merge, ordered by the piece's score (transformers' conversion of slow tokenizers does the same).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "checkpoint/config_reader.h"
#include "checkpoint/gguf_model.h"

namespace pinion {
namespace {

constexpr std::string_view kLlama3Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// How text is split before BPE, by tokenizer.ggml.pre (llama.cpp, src/llama-vocab.cpp).
struct PreTokenizer {
  std::string_view name, split;  // empty: the split of GPT-2, which ByteLevel has
  bool nfc, whole_words;         // a piece that is a token is taken as one, whatever the merges say
};
constexpr std::array kPreTokenizers{PreTokenizer{"default", "", false, false},
                                    PreTokenizer{"gpt-2", "", false, false},
                                    PreTokenizer{"llama-bpe", kLlama3Split, false, true},
                                    PreTokenizer{"llama3", kLlama3Split, false, true},
                                    PreTokenizer{"llama-v3", kLlama3Split, false, true},
                                    PreTokenizer{"qwen2", kQwen2Split, true, false},
                                    PreTokenizer{"deepseek-r1-qwen", kQwen2Split, true, false}};

enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr int64_t kMostSplits = int64_t{1} << 22;  // merges that a vocabulary of pieces may give

Json special_token(int64_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Merges of SentencePiece's pieces, the best first.
Result<Json> merges_of(const std::vector<std::string>& tokens, const std::vector<double>& scores,
                       const std::vector<int64_t>& types, const ConfigReader& m) {
  std::unordered_map<std::string_view, int64_t> ids;
  for (int64_t i = 0; i < std::ssize(tokens); ++i) ids.emplace(tokens[i], i);
  struct Merge {
    double score;
    int64_t left, right;
  };
  std::vector<Merge> merges;
  for (int64_t i = 0; i < std::ssize(tokens); ++i) {
    if (types[i] != kNormal && types[i] != kUserDefined) continue;
    const std::string_view piece = tokens[i];
    for (size_t at = 1; at < piece.size(); ++at) {
      const auto left = ids.find(piece.substr(0, at));
      if (left == ids.end()) continue;
      const auto right = ids.find(piece.substr(at));
      if (right != ids.end()) merges.push_back({scores[i], left->second, right->second});
    }
    if (std::ssize(merges) > kMostSplits) return m.error("tokenizer.ggml.tokens", "the pieces have too many splits");
  }
  std::ranges::stable_sort(merges, [](const Merge& a, const Merge& b) {
    return a.score != b.score ? a.score > b.score : a.left != b.left ? a.left < b.left : a.right < b.right;
  });
  Json out = Json::array();
  for (const Merge& merge : merges) out.push_back({tokens[merge.left], tokens[merge.right]});
  return out;
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
};

Result<Vocabulary> read_vocabulary(const ConfigReader& m) {
  Vocabulary v;
  PINION_TRY(auto tokens, m.find_strings("tokenizer.ggml.tokens"));
  if (!tokens || tokens->empty()) return m.error("tokenizer.ggml.tokens", "there is no vocabulary");
  v.tokens = *std::move(tokens);
  PINION_TRY(v.types, m.ints_or("tokenizer.ggml.token_type", std::vector<int64_t>(v.tokens.size(), kNormal), {0, 16}));
  if (v.types.size() != v.tokens.size()) return m.error("tokenizer.ggml.token_type", "has not one entry per token");
  return v;
}

void byte_level(const ConfigReader& m, const PreTokenizer& pre, Json& out) {
  const bool own = pre.split.empty();
  const Json level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", own}};
  out["normalizer"] = pre.nfc ? Json{{"type", "NFC"}} : Json();
  out["pre_tokenizer"] = level;
  if (!own) {
    out["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pre.split}}}, {"behavior", "Isolated"}, {"invert", false}},
          level}}};
  }
  out["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", pre.whole_words},
                  {"merges", *m.find("tokenizer.ggml.merges")}};
}

Status sentence_piece(const ConfigReader& m, const Vocabulary& v, Json& out) {
  PINION_TRY(auto scores, m.find_floats("tokenizer.ggml.scores"));
  if (!scores || scores->size() != v.tokens.size())
    return m.error("tokenizer.ggml.scores", "has not one score per token");
  PINION_TRY(const bool prefix, m.bool_or("tokenizer.ggml.add_space_prefix", true));
  PINION_TRY(const int64_t unknown, m.int_or("tokenizer.ggml.unknown_token_id", 0, {0, std::ssize(v.tokens) - 1}));
  PINION_TRY(Json merges, merges_of(v.tokens, *scores, v.types, m));
  const Json replace{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  Json normalizers = Json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
  normalizers.push_back(replace);
  out["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  out["pre_tokenizer"] = nullptr;
  Json decoders{{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                {{"type", "ByteFallback"}},
                {{"type", "Fuse"}}};
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  out["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  out["model"] = {{"type", "BPE"},    {"dropout", nullptr},    {"unk_token", v.tokens[unknown]},
                  {"fuse_unk", true}, {"byte_fallback", true}, {"ignore_merges", false},
                  {"merges", merges}};
  return {};
}

}  // namespace

Result<std::map<std::string, std::string>> gguf_tokenizer(const Json& metadata, const std::string& where) {
  const ConfigReader m(metadata, where);
  PINION_TRY(const std::string kind, m.string_or("tokenizer.ggml.model", "none"));
  if (kind != "gpt2" && kind != "llama") {
    return m.error("tokenizer.ggml.model", fmt::format("the tokenizer \"{}\" is not read from GGUF", kind),
                   "supported: gpt2, llama; give --tokenizer DIR");
  }
  PINION_TRY(const Vocabulary v, read_vocabulary(m));
  Json out{{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"post_processor", nullptr}};
  if (kind == "gpt2") {
    PINION_TRY(const std::string name, m.string_or("tokenizer.ggml.pre", "default"));
    const auto pre = std::ranges::find(kPreTokenizers, name, &PreTokenizer::name);
    if (pre == kPreTokenizers.end()) {
      std::string known;
      for (const PreTokenizer& p : kPreTokenizers) known += fmt::format("{}{}", known.empty() ? "" : ", ", p.name);
      return m.error("tokenizer.ggml.pre", fmt::format("the pre-tokenizer \"{}\" is not known", name),
                     "supported: " + known + "; give --tokenizer DIR");
    }
    PINION_TRY(const auto merges, m.find_strings("tokenizer.ggml.merges"));
    if (!merges) return m.error("tokenizer.ggml.merges", "a byte-level BPE needs them");
    byte_level(m, *pre, out);
  } else {
    PINION_OK(sentence_piece(m, v, out));
  }
  Json vocab = Json::object(), added = Json::array();
  for (int64_t i = 0; i < std::ssize(v.tokens); ++i) {
    const bool special = v.types[i] == kControl || v.types[i] == kUnknown;
    if (special || v.types[i] == kUserDefined) added.push_back(special_token(i, v.tokens[i], special));
    if (!vocab.emplace(v.tokens[i], i).second && v.types[i] != kUnused)
      return m.error("tokenizer.ggml.tokens", fmt::format("token {} is there twice", i));
  }
  out["model"]["vocab"] = std::move(vocab);
  out["added_tokens"] = std::move(added);

  const int64_t last = std::ssize(v.tokens) - 1;
  PINION_TRY(const auto bos, m.find_int("tokenizer.ggml.bos_token_id", {0, last}));
  PINION_TRY(const auto eos, m.find_int("tokenizer.ggml.eos_token_id", {0, last}));
  PINION_TRY(const bool add_bos, m.bool_or("tokenizer.ggml.add_bos_token", kind == "llama"));
  PINION_TRY(const bool add_eos, m.bool_or("tokenizer.ggml.add_eos_token", false));
  Json single = Json::array(), tokens = Json::object();
  const auto add = [&](int64_t id) {
    const std::string& text = v.tokens[id];
    single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  if (add_bos && bos) add(*bos);
  const Json sequence{{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  single.push_back(sequence);
  if (add_eos && eos) add(*eos);
  if (single.size() > 1) {
    const Json pair{sequence, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}};
    out["post_processor"] = {
        {"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", tokens}};
  }
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"}};
  if (bos) config["bos_token"] = v.tokens[*bos];
  if (eos) config["eos_token"] = v.tokens[*eos];
  PINION_TRY(const auto chat, m.find_string("tokenizer.chat_template"));
  if (chat) config["chat_template"] = *chat;
  return std::map<std::string, std::string>{{"tokenizer.json", out.dump()},
                                            {"tokenizer_config.json", config.dump(2) + "\n"}};
}

}  // namespace pinion
