#include "text/pre_tokenizer.h"

#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/unicode.h"

namespace pinion {
namespace {

constexpr size_t max_steps = 64;
constexpr std::string_view gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

Result<PreTokenizer> PreTokenizer::parse(const Json* object, std::string_view where) {
  PreTokenizer made;
  if (object) PINION_OK(made.add(*object, where));
  if (!made.steps_.empty() && made.steps_.back().kind == Kind::byte_level) {
    made.leaves_byte_level_ = true;
    made.steps_.pop_back();
  }
  return made;
}

Result<PreTokenizer::Behavior> PreTokenizer::parse_behavior(const Json& object, std::string_view where,
                                                            std::optional<std::string> fallback) {
  PINION_TRY(const std::string name, string_field(object, "behavior", where, std::move(fallback)));
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  return wrong_field("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous", where);
}

Status PreTokenizer::add_regex(std::string_view pattern, std::string_view where, Behavior behavior, bool invert) {
  Step step;
  PINION_TRY(step.regex, Regex::compile(pattern, where));
  step.behavior = behavior;
  step.invert = invert;
  steps_.push_back(std::move(step));
  return {};
}

void PreTokenizer::add_chars(bool (*is_match)(char32_t), Behavior behavior) {
  Step step;
  step.kind = Kind::split_chars;
  step.is_match = is_match;
  step.behavior = behavior;
  steps_.push_back(std::move(step));
}

Status PreTokenizer::add_split(const Json& object, std::string_view where) {
  Step step;
  PINION_TRY(step.behavior, parse_behavior(object, where, {}));
  PINION_TRY(step.invert, bool_field(object, "invert", where, false));
  const Json* pattern = find_field(object, "pattern");
  if (pattern && find_field(*pattern, "String")) {
    PINION_TRY(const std::string text, string_field(*pattern, "String", where));
    if (text.empty()) return wrong_field("pattern", "a string that is not empty", where);
    PINION_TRY(step.regex, Regex::literal(text, where));
  } else if (pattern && find_field(*pattern, "Regex")) {
    PINION_TRY(const std::string text, string_field(*pattern, "Regex", where));
    PINION_TRY(step.regex, Regex::compile(text, where));
  } else {
    return wrong_field("pattern", "{\"String\"} or {\"Regex\"}", where);
  }
  steps_.push_back(std::move(step));
  return {};
}

Status PreTokenizer::add_metaspace(const Json& object, std::string_view where) {
  Step step;
  step.kind = Kind::metaspace;
  PINION_TRY(step.replacement, string_field(object, "replacement", where, "\u2581"));
  if (!is_one_char(step.replacement)) return wrong_field("replacement", "one character", where);
  PINION_TRY(const bool prefix, bool_field(object, "add_prefix_space", where, true));
  PINION_TRY(const std::string scheme, string_field(object, "prepend_scheme", where, prefix ? "always" : "never"));
  if (scheme == "first") {
    step.prepend = Prepend::first;
  } else if (scheme == "never") {
    step.prepend = Prepend::never;
  } else if (scheme != "always") {
    return wrong_field("prepend_scheme", "always, first or never", where);
  }
  if (!prefix && step.prepend != Prepend::never) {
    return wrong_field("add_prefix_space", "true where prepend_scheme is not never", where);
  }
  PINION_TRY(const bool split, bool_field(object, "split", where, true));
  const std::string replacement = step.replacement;
  steps_.push_back(std::move(step));
  if (!split) return {};
  Step next;
  next.behavior = Behavior::merged_with_next;
  PINION_TRY(next.regex, Regex::literal(replacement, where));
  steps_.push_back(std::move(next));
  return {};
}

Status PreTokenizer::add(const Json& object, std::string_view where) {
  PINION_TRY(const std::string type, string_field(object, "type", where));
  if (type == "Sequence") {
    PINION_TRY(const Json* list, array_field(object, "pretokenizers", where));
    for (const Json& item : *list) PINION_OK(add(item, where));
    return {};
  }
  if (steps_.size() >= max_steps) return fail(Errc::unsupported, "more than 64 pre-tokenizer steps", where);
  if (type == "ByteLevel") {
    PINION_TRY(const bool prefix, bool_field(object, "add_prefix_space", where, true));
    PINION_TRY(const bool use_regex, bool_field(object, "use_regex", where, true));
    Step step;
    step.kind = Kind::prefix_space;
    if (prefix) steps_.push_back(step);
    if (use_regex) PINION_OK(add_regex(gpt2_pattern, where));
    step.kind = Kind::byte_level;
    steps_.push_back(std::move(step));
    return {};
  }
  if (type == "Split") return add_split(object, where);
  if (type == "Metaspace") return add_metaspace(object, where);
  if (type == "Digits") {
    PINION_TRY(const bool individual, bool_field(object, "individual_digits", where, false));
    add_chars(is_numeric, individual ? Behavior::isolated : Behavior::contiguous);
  } else if (type == "Whitespace") {
    return add_regex(R"([\w\x{200C}\x{200D}]+|[^\w\x{200C}\x{200D}\s]+)", where, Behavior::removed, true);
  } else if (type == "WhitespaceSplit") {
    add_chars(is_whitespace, Behavior::removed);
  } else if (type == "Punctuation") {
    PINION_TRY(const Behavior behavior, parse_behavior(object, where, "Isolated"));
    add_chars(is_punctuation, behavior);
  } else if (type == "BertPreTokenizer") {
    add_chars(is_whitespace, Behavior::removed);
    add_chars(is_punctuation, Behavior::isolated);
  } else if (type == "CharDelimiterSplit") {
    PINION_TRY(const std::string delimiter, string_field(object, "delimiter", where));
    if (!is_one_char(delimiter)) return wrong_field("delimiter", "one character", where);
    Step step;
    step.behavior = Behavior::removed;
    PINION_TRY(step.regex, Regex::literal(delimiter, where));
    steps_.push_back(std::move(step));
  } else if (type == "FixedLength") {
    PINION_TRY(const int64_t length, int_field(object, "length", where, 1, INT32_MAX, 5));
    Step step;
    step.kind = Kind::fixed_length;
    step.length = static_cast<size_t>(length);
    steps_.push_back(std::move(step));
  } else {
    return fail(Errc::unsupported, "pre-tokenizer type \"" + type + "\" is not implemented", where,
                "use a model with another tokenizer");
  }
  return {};
}

void PreTokenizer::run(std::string_view text, bool at_start, Words& words) const {
  words.text = text;
  words.ranges.clear();
  if (!text.empty()) words.ranges.push_back({0, text.size(), at_start});
  for (const Step& step : steps_) {
    if (step.kind == Kind::split_regex || step.kind == Kind::split_chars || step.kind == Kind::fixed_length) {
      split(step, words);
    } else {
      rewrite(step, words);
    }
  }
}

void PreTokenizer::split(const Step& step, Words& words) {
  words.next.clear();
  auto& out = words.next;
  for (const Words::Range& range : words.ranges) {
    const size_t first = out.size();
    const auto push = [&](size_t begin, size_t end) {
      out.push_back({begin, end, range.at_start && begin == range.begin});
    };
    bool previous_match = false;
    const auto emit = [&](size_t begin, size_t end, bool match) {
      begin += range.begin;
      end += range.begin;
      match = match != step.invert;
      switch (step.behavior) {
        case Behavior::removed:
          if (!match) push(begin, end);
          break;
        case Behavior::isolated:
          push(begin, end);
          break;
        case Behavior::contiguous:
          if (match == previous_match && out.size() > first) {
            out.back().end = end;
          } else {
            push(begin, end);
          }
          break;
        case Behavior::merged_with_previous:
          if (match && !previous_match && out.size() > first) {
            out.back().end = end;
          } else {
            push(begin, end);
          }
          break;
        case Behavior::merged_with_next:
          // A piece joins the match before it, when that match is not joined to one itself: of a run of matches only
          // the last takes a neighbour.
          if (previous_match && !match && out.size() > first) {
            out.back().end = end;
          } else {
            push(begin, end);
          }
          break;
      }
      previous_match = match;
    };
    const std::string_view text = words.text.substr(range.begin, range.end - range.begin);
    if (step.kind == Kind::split_regex) {
      step.regex->split(text, emit);
    } else if (step.kind == Kind::split_chars) {
      size_t done = 0;
      for (size_t pos = 0; pos < text.size();) {
        const size_t start = pos;
        if (!step.is_match(next_char(text, pos))) continue;
        if (start > done) emit(done, start, false);
        emit(start, pos, true);
        done = pos;
      }
      if (done < text.size()) emit(done, text.size(), false);
    } else {
      size_t begin = 0, count = 0;
      for (size_t pos = 0; pos < text.size();) {
        next_char(text, pos);
        if (++count == step.length || pos == text.size()) {
          emit(begin, pos, false);
          begin = pos;
          count = 0;
        }
      }
    }
  }
  std::erase_if(out, [](const Words::Range& range) { return range.begin == range.end; });
  words.ranges.swap(out);
}

void PreTokenizer::rewrite(const Step& step, Words& words) {
  std::string& out = words.scratch;
  out.clear();
  for (Words::Range& range : words.ranges) {
    std::string_view text = words.text.substr(range.begin, range.end - range.begin);
    range.begin = out.size();
    switch (step.kind) {
      case Kind::prefix_space:
        if (!text.starts_with(' ')) out.push_back(' ');
        out += text;
        break;
      case Kind::byte_level:
        append_byte_level(text, out);
        break;
      default:  // metaspace
        if (!text.starts_with(' ') && !text.starts_with(step.replacement) &&
            (step.prepend == Prepend::always || (step.prepend == Prepend::first && range.at_start))) {
          out += step.replacement;
        }
        for (const char c : text) {
          if (c == ' ') {
            out += step.replacement;
          } else {
            out.push_back(c);
          }
        }
    }
    range.end = out.size();
  }
  words.storage.swap(out);
  words.text = words.storage;
}

}  // namespace pinion
