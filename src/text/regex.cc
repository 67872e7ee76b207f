#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include <new>

#include "text/regex_syntax.h"
#include "text/unicode.h"

namespace pinion {
namespace {

constexpr size_t max_pattern_bytes = 64 * 1024;
constexpr uint32_t match_limit = 20'000'000;  // about 0.2 s of backtracking
constexpr uint32_t heap_limit_kib = 64 * 1024;

// What a thread needs to run matches; made once per thread.
struct MatchScratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 8 * 1024 * 1024, nullptr);
  MatchScratch() {
    if (!data || !context) throw std::bad_alloc();
    pcre2_set_match_limit(context, match_limit);
    pcre2_set_depth_limit(context, match_limit);
    pcre2_set_heap_limit(context, heap_limit_kib);
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchScratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
};

}  // namespace

struct Regex::Code {
  pcre2_code* code;
  explicit Code(pcre2_code* c) : code(c) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
};

Result<Regex> Regex::compile(std::string_view pattern, std::string_view where) {
  if (pattern.size() > max_pattern_bytes) {
    return fail(Errc::unsupported, "regular expression longer than 64 KiB", where, "use another tokenizer.json");
  }
  PINION_TRY(const std::string text, ruby_to_pcre2(pattern, where));
  auto* context = pcre2_compile_context_create(nullptr);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int code = 0;
  PCRE2_SIZE offset = 0;
  auto* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, context);
  pcre2_compile_context_free(context);
  if (!compiled) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(code, message, sizeof(message));
    return fail(Errc::corrupt,
                "regular expression: " + std::string(reinterpret_cast<const char*>(message)) + " in " + text, where,
                "correct the pattern in tokenizer.json");
  }
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where it fails, pcre2_match interprets
  Regex regex;
  regex.code_ = std::make_shared<const Code>(compiled);
  return regex;
}

Result<Regex> Regex::literal(std::string_view text, std::string_view where) {
  std::string pattern;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80) != 0;
    if (!plain && c > ' ' && c < 0x7F) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return compile(pattern, where);
}

bool Regex::find(std::string_view text, size_t from, size_t& begin, size_t& end) const {
  thread_local MatchScratch scratch;
  const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
  if (found < 0) return false;  // no match, or over the limits
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.data);
  begin = range[0];
  end = range[1];
  return begin >= from && end >= begin;
}

size_t Regex::after(std::string_view text, size_t pos) {
  if (pos >= text.size()) return text.size() + 1;
  next_char(text, pos);
  return pos;
}

std::string Regex::replace(std::string_view text, std::string_view with) const {
  std::string out;
  split(text,
        [&](size_t begin, size_t end, bool is_match) { out += is_match ? with : text.substr(begin, end - begin); });
  return out;
}

}  // namespace pinion
