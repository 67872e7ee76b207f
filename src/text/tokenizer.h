// Tokenizer: a Hugging Face tokenizer.json, giving the same ids and the same text as the reference implementation.
//
// Encoding: added tokens are cut out, then each remaining piece is normalised, pre-tokenised into words, and the model
// turns words into ids; the post-processor adds BOS and the like. Time is linear in the text (n log n where a word is
// long), whatever the text. Bytes that are not UTF-8 become U+FFFD, one per maximal invalid part. A regular expression
// of the file that exceeds its match limit on a text leaves the rest of that piece as one word.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace pinion {

class TokenDecoder;

// Move-only; const methods may be called from many threads at once.
class Tokenizer {
 public:
  // A tokenizer.json, or a directory that has one; a tokenizer_config.json beside it is honoured too.
  static Result<Tokenizer> load(const std::filesystem::path& dir_or_file);
  // `config_json`: tokenizer_config.json's text, for its added_tokens_decoder and add_bos_token; may be empty.
  static Result<Tokenizer> parse(std::string_view json, std::string_view where, std::string_view config_json = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // add_special_tokens: what the post-processor adds (BOS); false for a chat template's text, which has them already.
  // split_special_tokens: special tokens spelled in the text are ordinary text, for content that is not trusted.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true,
                              bool split_special_tokens = false) const;
  // Ids that the tokenizer does not have are left out.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  int32_t vocab_size() const;  // largest id + 1, added tokens included; a model's embedding may have more rows
  std::optional<int32_t> token_id(std::string_view token) const;
  std::string_view id_to_token(int32_t id) const;  // as the file spells it; empty where there is no such id
  bool is_special(int32_t id) const;
  // The bytes that the token contributes to a text, not always whole characters: for logprobs and grammar masks.
  std::string token_bytes(int32_t id) const;

  // The string that the decoder is given for the id; it has no data() where there is no such id.
  std::string_view decoder_token(int32_t id) const;
  const TokenDecoder& decoder() const;  // its address outlives moves of the tokenizer

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<const Parts> parts);
  std::unique_ptr<const Parts> parts_;
};

}  // namespace pinion
