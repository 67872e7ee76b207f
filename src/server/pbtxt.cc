#include "server/pbtxt.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>

namespace pinion {
namespace {

constexpr int kMostDepth = 32;
constexpr size_t kMostValues = 100'000;

class Parser {
 public:
  Parser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  Result<OrderedJson> run() {
    OrderedJson out = message(0, '\0');
    if (!error_.empty()) {
      return fail(Errc::corrupt, error_, fmt::format("{}, line {}", where_, line_), "see Triton's model configuration");
    }
    return out;
  }

 private:
  void bad(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    at_ = text_.size();
  }

  void skip() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (std::isspace(static_cast<unsigned char>(c))) {
        line_ += c == '\n';
        ++at_;
      } else {
        return;
      }
    }
  }
  char peek() {
    skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  static bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
  std::string word() {
    peek();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_word(text_[at_]) || text_[at_] == '.' || text_[at_] == '-' || text_[at_] == '+'))
      ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  // Fields up to `end`; depth is bounded, so is the recursion.
  OrderedJson message(int depth, char end) {
    OrderedJson out = OrderedJson::object();
    if (depth > kMostDepth) {
      bad("messages are nested too deeply");
      return out;
    }
    for (;;) {
      const char next = peek();
      if (next == end || next == '\0') {
        if (end != '\0' && !take(end)) bad(fmt::format("\"{}\" is missing", end));
        return out;
      }
      const std::string name = word();
      if (name.empty()) {
        bad(fmt::format("expected a field's name, found '{}'", next));
        return out;
      }
      const bool colon = take(':');
      OrderedJson& values = out[name];
      if (values.is_null()) values = OrderedJson::array();
      if (take('[')) {
        while (error_.empty() && !take(']')) {
          values.push_back(value(depth));
          if (!take(',') && peek() != ']') bad("expected \",\" or \"]\" in a list");
        }
      } else if (colon || peek() == '{') {
        values.push_back(value(depth));
      } else {
        bad(fmt::format("expected \":\" or \"{{\" behind \"{}\"", name.substr(0, 64)));
      }
      while (take(',') || take(';')) {
      }
      if (!error_.empty()) return out;
    }
  }

  OrderedJson value(int depth) {
    if (++values_ > kMostValues) {
      bad("too many values");
      return nullptr;
    }
    const char next = peek();
    if (next == '{') {
      ++at_;
      return message(depth + 1, '}');
    }
    if (next == '"' || next == '\'') {
      std::string out;
      while (peek() == '"' || peek() == '\'') out += quoted();  // neighbours are one string
      return out;
    }
    const std::string text = word();
    if (text.empty()) {
      bad("expected a value");
      return nullptr;
    }
    if (text == "true" || text == "True" || text == "t") return true;
    if (text == "false" || text == "False" || text == "f") return false;
    int64_t whole = 0;
    const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), whole);
    if (errc == std::errc() && end == text.data() + text.size()) return whole;
    double real = 0;
    const auto [real_end, real_errc] = std::from_chars(text.data(), text.data() + text.size(), real);
    if (real_errc == std::errc() && real_end == text.data() + text.size()) return real;
    return text;
  }

  std::string quoted() {
    const char quote = text_[at_++];
    std::string out;
    while (at_ < text_.size() && text_[at_] != quote && text_[at_] != '\n') {
      char c = text_[at_++];
      if (c == '\\' && at_ < text_.size()) {
        c = text_[at_++];
        switch (c) {
          case 'n':
            c = '\n';
            break;
          case 't':
            c = '\t';
            break;
          case 'r':
            c = '\r';
            break;
          case '\\':
          case '"':
          case '\'':
            break;
          default:
            bad(fmt::format("the escape \\{} is not known here", c));
            return out;
        }
      }
      out += c;
    }
    if (at_ >= text_.size() || text_[at_] != quote) {
      bad("a string does not end on its line");
      return out;
    }
    ++at_;
    return out;
  }

  const std::string_view text_, where_;
  size_t at_ = 0, values_ = 0;
  int line_ = 1;
  std::string error_;
};

// The last value of a field; null when absent.
const OrderedJson* last(const OrderedJson& message, const char* name) {
  if (!message.is_object() || !message.contains(name) || message[name].empty()) return nullptr;
  return &message[name].back();
}
std::string text_of(const OrderedJson& message, const char* name) {
  const OrderedJson* value = last(message, name);
  return value && value->is_string() ? value->get<std::string>() : std::string();
}

}  // namespace

Result<OrderedJson> parse_pbtxt(std::string_view text, std::string_view where) {
  return Parser(text, where).run();
}

std::string TritonConfig::parameter(const std::string& key) const {
  const auto it = parameters.find(key);
  return it == parameters.end() ? std::string() : it->second;
}

Result<TritonConfig> read_triton_config(std::string_view text, std::string_view where) {
  PINION_TRY(const OrderedJson m, parse_pbtxt(text, where));
  TritonConfig out;
  out.name = text_of(m, "name");
  out.platform = text_of(m, "platform");
  out.backend = text_of(m, "backend");
  if (const OrderedJson* n = last(m, "max_batch_size")) {
    if (!n->is_number_integer() || n->get<int64_t>() < 0 || n->get<int64_t>() > 65536) {
      return fail(Errc::invalid_argument, "max_batch_size is not a number from 0 to 65536", where);
    }
    out.max_batch_size = n->get<int64_t>();
  }
  for (const OrderedJson& p : m.contains("parameters") ? m["parameters"] : OrderedJson::array()) {
    const std::string key = text_of(p, "key");
    const OrderedJson* value = last(p, "value");
    const std::string text_value = value ? text_of(*value, "string_value") : std::string();
    if (key.empty()) return fail(Errc::invalid_argument, "a parameter has no key", where);
    if (!text_value.empty() && !text_value.starts_with("${")) out.parameters[key] = text_value;
  }
  if (const OrderedJson* ensemble = last(m, "ensemble_scheduling"); ensemble && ensemble->contains("step")) {
    for (const OrderedJson& step : (*ensemble)["step"]) out.steps.push_back(text_of(step, "model_name"));
  }
  if (const OrderedJson* policy = last(m, "model_transaction_policy")) {
    const OrderedJson* decoupled = last(*policy, "decoupled");
    out.decoupled = decoupled && *decoupled == true;
  }
  return out;
}

}  // namespace pinion
