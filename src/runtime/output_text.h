// OutputText: turns output tokens into text that may be sent. It searches stop strings across token boundaries and
// holds back text that might be the beginning of one, so that nothing of a stop string is ever sent.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pinion {

// Tokens in, complete characters out: what the loop needs of text/'s Detokenizer.
class TextDecoder {
 public:
  virtual ~TextDecoder() = default;
  virtual std::string push(int32_t token) = 0;
  virtual std::string finish() = 0;  // what is left of an incomplete character
};
// Made for each request on the thread that submits it; the prompt is context for the first characters.
using TextDecoderFactory =
    std::function<std::unique_ptr<TextDecoder>(std::span<const int32_t> prompt, bool skip_special_tokens)>;

// Finds the stop string that ends first in the text (of those that end at the same byte, the longest), wherever the
// text is cut into pushes.
class StopMatcher {
 public:
  StopMatcher(std::vector<std::string> stop, bool include_stop);
  // The text that is safe to send. Once stopped() everything further is dropped.
  std::string push(std::string_view text);
  std::string pass(std::string_view text);  // without a search: min_tokens is not reached
  std::string finish();                     // the text held back, as no more will come
  const std::optional<std::string>& stopped() const { return stopped_; }

 private:
  std::vector<std::string> stop_;
  bool include_stop_;
  std::string held_;
  std::optional<std::string> stopped_;
};

class OutputText {
 public:
  OutputText(std::unique_ptr<TextDecoder> decoder, std::vector<std::string> stop, bool include_stop)
      : decoder_(std::move(decoder)), stop_(std::move(stop), include_stop) {}
  std::string push(int32_t token, bool search) {
    const std::string text = decoder_->push(token);
    return search ? stop_.push(text) : stop_.pass(text);
  }
  std::string finish() {
    std::string text = stop_.push(decoder_->finish());
    return text += stop_.finish();
  }
  const std::optional<std::string>& stopped() const { return stop_.stopped(); }

 private:
  std::unique_ptr<TextDecoder> decoder_;
  StopMatcher stop_;
};

}  // namespace pinion
