// The filters and tests: tables found by name at parse time. jinja_filters.cc has those on text and numbers,
// jinja_filters_sequence.cc those on sequences, jinja_predicates.cc the tests.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "text/jinja_interpreter.h"

namespace pinion::jinja {

struct FilterEntry {
  std::string_view name;
  Value (*run)(Interpreter&, const Value& self, const Args&);
};

struct TestEntry {
  std::string_view name;
  bool (*run)(Interpreter&, const Value& self, const Args&);
};

const FilterEntry* find_filter(std::string_view name);
const TestEntry* find_test(std::string_view name);
// For a filter that Jinja has and this engine does not: the sentence that refuses it. Otherwise empty.
std::string why_no_filter(std::string_view name);

std::span<const FilterEntry> sequence_filters();

// str.replace; shared by the method and the filter. `limit` < 0: all.
Value replace_text(Interpreter& in, const Value& self, std::string_view from, std::string_view to, int64_t limit);
bool text_is_case(std::string_view text, bool lower);

// Python's %-formatting and str.format (jinja_format.cc).
Value format_percent(Interpreter& in, const Value& format, const Value& values);
Value format_braces(Interpreter& in, const Value& format, const Args& args);

// Python's json.dumps (jinja_json.cc).
struct JsonStyle {
  bool ascii = false, sort_keys = false, pretty = false;
  std::string indent, item_separator = ", ", key_separator = ": ";
};
std::string dump_json(Interpreter& in, const Value& v, const JsonStyle& style);
Value filter_tojson(Interpreter& in, const Value& self, const Args& args);
Value filter_from_json(Interpreter& in, const Value& self, const Args& args);

}  // namespace pinion::jinja
