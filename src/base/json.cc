// A SAX pass enforces the limits and refuses duplicate keys while it builds the document through nlohmann's DOM
// builder.
#include "base/json.h"

#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include "base/file.h"

namespace pinion {
namespace {

template <class J>
class LimitedBuilder : public nlohmann::json_sax<J> {
 public:
  using Base = nlohmann::json_sax<J>;
  LimitedBuilder(J& root, int max_depth) : dom_(root, false), max_depth_(max_depth) {}

  bool null() override { return dom_.null(); }
  bool boolean(bool v) override { return dom_.boolean(v); }
  bool number_integer(typename Base::number_integer_t v) override { return dom_.number_integer(v); }
  bool number_unsigned(typename Base::number_unsigned_t v) override { return dom_.number_unsigned(v); }
  bool number_float(typename Base::number_float_t v, const std::string& s) override { return dom_.number_float(v, s); }
  bool string(std::string& v) override { return dom_.string(v); }
  bool binary(typename Base::binary_t& v) override { return dom_.binary(v); }
  bool start_object(std::size_t n) override {
    if (!enter()) return false;
    keys_.emplace_back();
    return dom_.start_object(n);
  }
  bool key(std::string& k) override {
    if (!keys_.back().insert(k).second) return refuse(fmt::format("the key \"{}\" appears twice", k));
    return dom_.key(k);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return dom_.end_object();
  }
  bool start_array(std::size_t n) override { return enter() && dom_.start_array(n); }
  bool end_array() override {
    --depth_;
    return dom_.end_array();
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception& e) override {
    std::string text = e.what();  // "[json.exception…] parse error at line 1, column 9: syntax error …"
    if (auto p = text.find("] "); p != std::string::npos) text.erase(0, p + 2);
    return refuse(fmt::format("{} at byte {}", text, at));
  }
  const std::string& reason() const { return reason_; }

 private:
  bool enter() { return ++depth_ <= max_depth_ || refuse(fmt::format("nested deeper than {} levels", max_depth_)); }
  bool refuse(std::string why) {
    if (reason_.empty()) reason_ = std::move(why);
    return false;
  }

  nlohmann::detail::json_sax_dom_parser<J> dom_;
  int max_depth_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
  std::string reason_;
};

template <class J>
Result<J> parse(std::string_view text, std::string_view where, JsonLimits limits) {
  if (text.size() > limits.bytes) {
    return fail(Errc::corrupt, fmt::format("JSON of {} bytes is over the limit of {}", text.size(), limits.bytes),
                where);
  }
  // nlohmann takes a NUL for the end of input and skips a byte-order mark; neither is JSON (RFC 8259).
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return fail(Errc::corrupt, fmt::format("not valid JSON: a NUL at byte {}", nul), where,
                "fix the file or fetch it again");
  }
  if (text.starts_with("\xef\xbb\xbf"))
    return fail(Errc::corrupt, "not valid JSON: it begins with a byte-order mark", where, "save it without the mark");
  J root;
  LimitedBuilder<J> builder(root, limits.depth);
  if (!J::sax_parse(text.begin(), text.end(), &builder)) {
    return fail(Errc::corrupt, "not valid JSON: " + builder.reason(), where, "fix the file or fetch it again");
  }
  return root;
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view where, JsonLimits limits) {
  return parse<Json>(text, where, limits);
}

Result<OrderedJson> parse_ordered_json(std::string_view text, std::string_view where, JsonLimits limits) {
  return parse<OrderedJson>(text, where, limits);
}

Result<Json> read_json_file(const std::filesystem::path& path, JsonLimits limits) {
  PINION_TRY(std::string text, read_file(path, limits.bytes));
  return parse_json(text, path.string(), limits);
}

Result<OrderedJson> read_ordered_json_file(const std::filesystem::path& path, JsonLimits limits) {
  PINION_TRY(std::string text, read_file(path, limits.bytes));
  return parse_ordered_json(text, path.string(), limits);
}

}  // namespace pinion
