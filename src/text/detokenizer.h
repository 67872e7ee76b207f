// Incremental detokenisation of one sequence: ids in, whole characters out. What push() and finish() return, joined, is
// exactly what Tokenizer::decode gives for all the ids.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "text/token_decoder.h"
#include "text/tokenizer.h"

namespace pinion {

// Text comes out as soon as no later id can change it. Byte-level tokenizers hold at most an unfinished character;
// those with byte fallback hold a run of byte tokens until it ends, since one bad byte turns the whole run into U+FFFD.
// Needs the tokenizer to live, unmoved, for as long as it is used; one thread at a time.
class Detokenizer {
 public:
  // `context`: ids before the first (a prompt's last few). Their text is not returned, but the text after them reads on
  // from it: a SentencePiece tokenizer then keeps the first word's space.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = false,
                       std::span<const int32_t> context = {});

  std::string push(int32_t id);  // the text that is new and certain; may be empty
  std::string finish();          // the rest; afterwards the detokenizer is as new, without context

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  TokenDecoder::Stream stream_;
};

}  // namespace pinion
