#include "text/tokenizer.h"

#include <algorithm>

#include "base/file.h"
#include "base/json.h"
#include "text/added_tokens.h"
#include "text/json_fields.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/token_model.h"
#include "text/unicode.h"

namespace pinion {
namespace {

constexpr JsonLimits limits{.bytes = size_t{128} << 20, .depth = 64};

}  // namespace

struct Tokenizer::Parts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  AddedTokens added;
  PostProcessor post_processor;
  TokenDecoder decoder;

  void encode_piece(std::string_view piece, bool at_start, bool split_special, Words& words,
                    std::vector<int32_t>& ids) const;
  void encode_words(std::string_view text, bool at_start, Words& words, std::vector<int32_t>& ids) const;
};

Tokenizer::Tokenizer(std::unique_ptr<const Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& dir_or_file) {
  std::error_code error;
  const bool is_dir = std::filesystem::is_directory(dir_or_file, error);
  const auto file = is_dir ? dir_or_file / "tokenizer.json" : dir_or_file;
  if (is_dir && !std::filesystem::exists(file, error)) {
    for (const char* other : {"tekken.json", "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt"}) {
      if (!std::filesystem::exists(dir_or_file / other, error)) continue;
      return fail(Errc::unsupported, std::string(other) + " without tokenizer.json is not implemented",
                  dir_or_file.string(),
                  "write one with transformers: AutoTokenizer.from_pretrained(dir).save_pretrained(dir)");
    }
    return fail(Errc::not_found, "no tokenizer.json", dir_or_file.string(),
                "download the model's tokenizer files into the directory");
  }
  PINION_TRY(const std::string json, read_file(file, limits.bytes));
  std::string config;
  const auto config_file = file.parent_path() / "tokenizer_config.json";
  if (std::filesystem::exists(config_file, error)) {
    PINION_TRY(config, read_file(config_file, limits.bytes));
  }
  return parse(json, file.string(), config);
}

Result<Tokenizer> Tokenizer::parse(std::string_view json, std::string_view where, std::string_view config_json) {
  PINION_TRY(const Json root, parse_json(json, where, limits));
  Json config;
  if (!config_json.empty()) {
    PINION_TRY(config, parse_json(config_json, std::string(where) + ": tokenizer_config.json", limits));
  }
  if (!root.is_object()) return fail(Errc::corrupt, "a tokenizer must be a JSON object", where);
  PINION_TRY(const std::string version, string_field(root, "version", where, "1.0"));
  if (version != "1.0") {
    return fail(Errc::unsupported, "version \"" + version + "\" of tokenizer.json", where, "version 1.0 is understood");
  }
  const auto at = [&](const char* part) { return std::string(where) + ": " + part; };
  auto parts = std::make_unique<Parts>();
  PINION_TRY(parts->normalizer, Normalizer::parse(find_field(root, "normalizer"), at("normalizer")));
  PINION_TRY(parts->pre_tokenizer, PreTokenizer::parse(find_field(root, "pre_tokenizer"), at("pre_tokenizer")));
  const Json* model = find_field(root, "model");
  if (!model) return wrong_field("model", "an object", where);
  PINION_TRY(parts->model, TokenModel::parse(*model, at("model")));
  PINION_TRY(parts->added,
             AddedTokens::parse(find_field(root, "added_tokens"), find_field(config, "added_tokens_decoder"),
                                parts->model->vocab(), parts->normalizer, at("added_tokens")));
  PINION_TRY(parts->post_processor, PostProcessor::parse(find_field(root, "post_processor"), at("post_processor")));
  PINION_TRY(parts->decoder, TokenDecoder::parse(find_field(root, "decoder"), at("decoder")));
  Tokenizer made(nullptr);
  // transformers builds the rule from add_bos_token where the file has none.
  const Json* add_bos = find_field(config, "add_bos_token");
  std::optional<int32_t> bos;
  if (add_bos && add_bos->is_boolean() && add_bos->get<bool>() && !parts->post_processor.adds_by_rule()) {
    const Json* token = find_field(config, "bos_token");
    if (token && token->is_object()) token = find_field(*token, "content");
    if (token && token->is_string()) {
      const auto& text = token->get_ref<const std::string&>();
      if (const auto* found = parts->added.find(text)) {
        parts->post_processor.prepend(found->id);
      } else if (const int32_t id = parts->model->vocab().find(text); id != Vocab::none) {
        parts->post_processor.prepend(id);
      }
    }
  }
  made.parts_ = std::move(parts);
  return made;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens,
                                       bool split_special_tokens) const {
  std::string valid;
  if (!is_valid_utf8(text)) {
    valid = lossy_utf8(text);
    text = valid;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  const auto& rule = parts_->post_processor;
  if (add_special_tokens) ids.insert(ids.end(), rule.before().begin(), rule.before().end());
  Words words;
  parts_->added.split(text, false, split_special_tokens, [&](size_t begin, size_t end, int32_t id) {
    if (id != Vocab::none) {
      ids.push_back(id);
    } else {
      parts_->encode_piece(text.substr(begin, end - begin), begin == 0, split_special_tokens, words, ids);
    }
  });
  if (add_special_tokens) ids.insert(ids.end(), rule.after().begin(), rule.after().end());
  return ids;
}

void Tokenizer::Parts::encode_piece(std::string_view piece, bool at_start, bool split_special, Words& words,
                                    std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!normalizer.identity()) {
    normalized = piece;
    normalizer.apply(normalized);
    piece = normalized;
  }
  if (!added.any(true)) return encode_words(piece, at_start, words, ids);
  added.split(piece, true, split_special, [&](size_t begin, size_t end, int32_t id) {
    if (id != Vocab::none) {
      ids.push_back(id);
    } else {
      encode_words(piece.substr(begin, end - begin), at_start && begin == 0, words, ids);
    }
  });
}

void Tokenizer::Parts::encode_words(std::string_view text, bool at_start, Words& words,
                                    std::vector<int32_t>& ids) const {
  pre_tokenizer.run(text, at_start, words);
  const bool bytes = pre_tokenizer.leaves_byte_level();
  for (const Words::Range& range : words.ranges) {
    const std::string_view word = words.text.substr(range.begin, range.end - range.begin);
    if (bytes) {
      model->tokenize_bytes(word, ids);
    } else {
      model->tokenize(word, ids);
    }
  }
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  TokenDecoder::Stream stream(parts_->decoder);
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view token = decoder_token(id);
    if (token.data() == nullptr || (skip_special_tokens && is_special(id))) continue;
    stream.push(token, text);
  }
  stream.finish(text);
  return text;
}

int32_t Tokenizer::vocab_size() const {
  return std::max(parts_->model->vocab().size(), parts_->added.size());
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  if (const auto* added = parts_->added.find(token)) return added->id;
  const int32_t id = parts_->model->vocab().find(token);
  return id == Vocab::none ? std::nullopt : std::optional(id);
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
  if (const auto* added = parts_->added.find(id)) return added->content;
  return parts_->model->vocab().token(id);
}

bool Tokenizer::is_special(int32_t id) const {
  const auto* token = parts_->added.find(id);
  return token && token->special;
}

std::string_view Tokenizer::decoder_token(int32_t id) const {
  if (const auto* added = parts_->added.find(id)) return added->decoded;
  return parts_->model->vocab().token(id);
}

std::string Tokenizer::token_bytes(int32_t id) const {
  const std::string_view token = decoder_token(id);
  return token.data() == nullptr ? std::string() : parts_->decoder.token_bytes(token);
}

const TokenDecoder& Tokenizer::decoder() const {
  return parts_->decoder;
}

}  // namespace pinion
