// The decoder of a tokenizer file: a chain of steps from token strings to text, run as a stream, so that decoding all
// at once and decoding token by token are the same code and give the same text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/normalizer.h"
#include "text/unicode.h"

namespace pinion {

class TokenDecoder {
 public:
  // `object` null: tokens are joined with spaces.
  static Result<TokenDecoder> parse(const Json* object, std::string_view where);

  // push() appends the text that is certain by now to `out`, in whole characters; finish() the rest.
  class Stream {
   public:
    explicit Stream(const TokenDecoder& decoder) : decoder_(&decoder), states_(decoder.steps_.size()) {}
    void push(std::string_view token, std::string& out) { feed(0, token, out); }
    void finish(std::string& out);

   private:
    struct State {
      size_t count = 0;      // tokens seen; characters stripped at the start
      bool started = false;  // strip: past the start
      std::string held;
      Utf8Stream utf8;
    };
    void feed(size_t step, std::string_view token, std::string& out);
    void feed_whole(size_t step, std::string_view token, std::string& out);
    void flush_bytes(size_t step, std::string& out);
    void strip_fused(size_t step, std::string_view chunk, std::string& out);
    const TokenDecoder* decoder_;
    std::vector<State> states_;
  };

  // The bytes that a token stands for by itself, within a text: not always whole characters.
  std::string token_bytes(std::string_view token) const;

 private:
  enum class Kind { join, byte_level, replace, byte_fallback, fuse, strip, metaspace, wordpiece, bpe };
  struct Step {
    Kind kind = Kind::join;
    bool fused = false;    // its input is one text in chunks, not tokens
    bool buffers = false;  // fused, and cannot work on chunks: waits for the end
    Replacement replacement;
    std::string text;  // strip: the character; metaspace: the replacement; wordpiece: prefix; bpe: suffix
    size_t start = 0, stop = 0;
    bool flag = false;  // metaspace: the first token loses its replacements; wordpiece: cleanup
  };
  Status add(const Json& object, std::string_view where);
  std::vector<Step> steps_;
};

}  // namespace pinion
