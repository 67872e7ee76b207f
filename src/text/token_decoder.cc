#include "text/token_decoder.h"

#include <array>
#include <optional>
#include <utility>

#include "text/byte_level.h"
#include "text/json_fields.h"

namespace pinion {
namespace {

constexpr size_t max_steps = 32;
constexpr size_t token_limit = 64 * 1024, text_limit = size_t{16} << 20;  // what replacements may grow to

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty() || text.find(from) == std::string::npos) return;
  std::string out;
  size_t done = 0;
  for (size_t found; (found = text.find(from, done)) != std::string::npos; done = found + from.size()) {
    out.append(text, done, found - done).append(to);
  }
  text = out.append(text, done);
}

// "<0xHH>" -> the byte.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return {};
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return {};
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

void clean_up(std::string& text) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 11> rules{{{" .", "."},
                                                                                        {" ?", "?"},
                                                                                        {" !", "!"},
                                                                                        {" ,", ","},
                                                                                        {" ' ", "'"},
                                                                                        {" n't", "n't"},
                                                                                        {" 'm", "'m"},
                                                                                        {" do not", " don't"},
                                                                                        {" 's", "'s"},
                                                                                        {" 've", "'ve"},
                                                                                        {" 're", "'re"}}};
  for (const auto& [from, to] : rules) replace_all(text, from, to);
}

// Without up to `start` leading and `stop` trailing occurrences of `text`.
std::string_view strip(std::string_view token, std::string_view text, size_t start, size_t stop) {
  for (; start > 0 && token.starts_with(text); --start) token.remove_prefix(text.size());
  for (; stop > 0 && token.ends_with(text); --stop) token.remove_suffix(text.size());
  return token;
}

}  // namespace

Result<TokenDecoder> TokenDecoder::parse(const Json* object, std::string_view where) {
  TokenDecoder made;
  if (object) {
    PINION_OK(made.add(*object, where));
  } else {
    made.steps_.emplace_back();
  }
  bool fused = false;
  for (Step& step : made.steps_) {
    step.fused = fused;
    const bool chunkwise = step.kind == Kind::fuse || step.kind == Kind::byte_level || step.kind == Kind::strip ||
                           step.kind == Kind::metaspace || step.kind == Kind::join ||
                           (step.kind == Kind::replace && step.replacement.single_char());
    step.buffers = fused && (!chunkwise || step.kind == Kind::byte_level);
    if (step.kind == Kind::fuse || step.kind == Kind::byte_level) fused = true;
  }
  return made;
}

Status TokenDecoder::add(const Json& object, std::string_view where) {
  PINION_TRY(const std::string type, string_field(object, "type", where));
  if (type == "Sequence") {
    PINION_TRY(const Json* list, array_field(object, "decoders", where));
    for (const Json& item : *list) PINION_OK(add(item, where));
    return {};
  }
  if (steps_.size() >= max_steps) return fail(Errc::unsupported, "more than 32 decoder steps", where);
  Step step;
  if (type == "ByteLevel") {
    step.kind = Kind::byte_level;
  } else if (type == "Replace") {
    step.kind = Kind::replace;
    PINION_TRY(step.replacement, Replacement::parse(object, where));
  } else if (type == "ByteFallback") {
    step.kind = Kind::byte_fallback;
  } else if (type == "Fuse") {
    step.kind = Kind::fuse;
  } else if (type == "Strip") {
    step.kind = Kind::strip;
    PINION_TRY(step.text, string_field(object, "content", where));
    if (!is_one_char(step.text)) return wrong_field("content", "one character", where);
    PINION_TRY(const int64_t start, int_field(object, "start", where, 0, 1 << 20, 0));
    PINION_TRY(const int64_t stop, int_field(object, "stop", where, 0, 1 << 20, 0));
    step.start = static_cast<size_t>(start);
    step.stop = static_cast<size_t>(stop);
  } else if (type == "Metaspace") {
    step.kind = Kind::metaspace;
    PINION_TRY(step.text, string_field(object, "replacement", where, "\u2581"));
    if (!is_one_char(step.text)) return wrong_field("replacement", "one character", where);
    PINION_TRY(const bool prefix, bool_field(object, "add_prefix_space", where, true));
    PINION_TRY(const std::string scheme, string_field(object, "prepend_scheme", where, prefix ? "always" : "never"));
    step.flag = scheme != "never";
  } else if (type == "WordPiece") {
    step.kind = Kind::wordpiece;
    PINION_TRY(step.text, string_field(object, "prefix", where, "##"));
    PINION_TRY(step.flag, bool_field(object, "cleanup", where, true));
  } else if (type == "BPEDecoder") {
    step.kind = Kind::bpe;
    PINION_TRY(step.text, string_field(object, "suffix", where, "</w>"));
  } else {
    return fail(Errc::unsupported, "decoder type \"" + type + "\" is not implemented", where,
                "use a model with another tokenizer");
  }
  steps_.push_back(std::move(step));
  return {};
}

void TokenDecoder::Stream::feed(size_t at, std::string_view token, std::string& out) {
  if (at == states_.size()) {
    out += token;
  } else if (decoder_->steps_[at].buffers) {
    states_[at].held += token;
  } else {
    feed_whole(at, token, out);
  }
}

void TokenDecoder::Stream::feed_whole(size_t at, std::string_view token, std::string& out) {
  const Step& step = decoder_->steps_[at];
  State& state = states_[at];
  std::string text;
  switch (step.kind) {
    case Kind::join:
      if (state.count++ > 0) text += ' ';
      text += token;
      return feed(at + 1, text, out);
    case Kind::byte_level: {
      std::string bytes;
      if (!append_byte_level_bytes(token, bytes)) bytes = token;
      state.utf8.push(bytes, text);
      if (!text.empty()) feed(at + 1, text, out);
      return;
    }
    case Kind::replace:
      text = token;
      step.replacement.apply(text, step.fused ? text_limit : token_limit);
      return feed(at + 1, text, out);
    case Kind::byte_fallback:
      if (const auto byte = fallback_byte(token)) {
        state.held.push_back(*byte);
        return;
      }
      flush_bytes(at, out);
      return feed(at + 1, token, out);
    case Kind::fuse:
      return feed(at + 1, token, out);
    case Kind::strip:
      if (step.fused) return strip_fused(at, token, out);
      return feed(at + 1, strip(token, step.text, step.start, step.stop), out);
    case Kind::metaspace:
      text = token;
      replace_all(text, step.text, step.flag && (step.fused || state.count == 0) ? "" : " ");
      ++state.count;
      return feed(at + 1, text, out);
    case Kind::wordpiece:
      text = token;
      if (state.count++ > 0) {
        if (!step.text.empty() && token.starts_with(step.text)) {
          text.erase(0, step.text.size());
        } else {
          text.insert(0, 1, ' ');
        }
      }
      if (step.flag) clean_up(text);
      return feed(at + 1, text, out);
    case Kind::bpe:  // the last token is treated differently, so each waits for the next
      text = std::move(state.held);
      state.held = token;
      if (state.count++ == 0) return;
      replace_all(text, step.text, " ");
      return feed(at + 1, text, out);
  }
}

// A run of byte tokens is text when the whole run is valid UTF-8; otherwise each of its bytes is a U+FFFD.
void TokenDecoder::Stream::flush_bytes(size_t at, std::string& out) {
  const std::string bytes = std::exchange(states_[at].held, {});
  if (bytes.empty()) return;
  if (is_valid_utf8(bytes)) return feed(at + 1, bytes, out);
  const std::string bad = to_utf8(replacement_char);
  for (size_t i = 0; i < bytes.size(); ++i) feed(at + 1, bad, out);
}

void TokenDecoder::Stream::strip_fused(size_t at, std::string_view chunk, std::string& out) {
  const Step& step = decoder_->steps_[at];
  State& state = states_[at];
  while (!state.started && !chunk.empty()) {
    if (state.count < step.start && chunk.starts_with(step.text)) {
      chunk.remove_prefix(step.text.size());
      ++state.count;
    } else {
      state.started = true;
    }
  }
  if (step.stop == 0) return feed(at + 1, chunk, out);
  // What could still be stripped at the end waits.
  std::string text = std::exchange(state.held, {});
  text += chunk;
  const std::string_view sure = strip(text, step.text, 0, step.stop);
  state.held = text.substr(sure.size());
  feed(at + 1, sure, out);
}

void TokenDecoder::Stream::finish(std::string& out) {
  for (size_t at = 0; at < states_.size(); ++at) {
    const Step& step = decoder_->steps_[at];
    State& state = states_[at];
    if (step.buffers) feed_whole(at, std::exchange(state.held, {}), out);
    if (step.kind == Kind::byte_fallback) flush_bytes(at, out);
    if (step.kind == Kind::byte_level) {
      std::string text;
      state.utf8.finish(text);
      if (!text.empty()) feed(at + 1, text, out);
    } else if (step.kind == Kind::bpe && state.count > 0) {
      std::string text = std::exchange(state.held, {});
      replace_all(text, step.text, "");
      feed(at + 1, text, out);
    }
  }
  states_.assign(states_.size(), State{});
}

std::string TokenDecoder::token_bytes(std::string_view token) const {
  std::string text(token);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::byte_level: {
        std::string bytes;
        if (append_byte_level_bytes(text, bytes)) text = std::move(bytes);
        return text;  // bytes from here on, not characters
      }
      case Kind::replace:
        step.replacement.apply(text, token_limit);
        break;
      case Kind::byte_fallback:
        if (const auto byte = fallback_byte(text)) return std::string(1, *byte);
        break;
      case Kind::strip:
        if (!step.fused) text = std::string(strip(text, step.text, step.start, step.stop));
        break;
      case Kind::metaspace:
        replace_all(text, step.text, " ");
        break;
      case Kind::wordpiece:
        if (!step.text.empty() && text.starts_with(step.text)) {
          text.erase(0, step.text.size());
        } else {
          text.insert(0, 1, ' ');
        }
        if (step.flag) clean_up(text);
        break;
      case Kind::bpe:
        replace_all(text, step.text, " ");
        break;
      case Kind::join:
        text.insert(0, 1, ' ');
        break;
      case Kind::fuse:
        break;
    }
  }
  return text;
}

}  // namespace pinion
