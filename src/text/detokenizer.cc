#include "text/detokenizer.h"

namespace pinion {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens, std::span<const int32_t> context)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens), stream_(tokenizer.decoder()) {
  for (const int32_t id : context) push(id);
}

std::string Detokenizer::push(int32_t id) {
  std::string text;
  const std::string_view token = tokenizer_->decoder_token(id);
  if (token.data() == nullptr || (skip_special_tokens_ && tokenizer_->is_special(id))) return text;
  stream_.push(token, text);
  return text;
}

std::string Detokenizer::finish() {
  std::string text;
  stream_.finish(text);
  return text;
}

}  // namespace pinion
