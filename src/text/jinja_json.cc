// tojson as Hugging Face sets it (Python's json.dumps with ensure_ascii=False) and from_json.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/json.h"
#include "text/chat_template.h"
#include "text/jinja_filters.h"
#include "text/jinja_unicode.h"

namespace pinion::jinja {
namespace {

class Writer {
 public:
  Writer(Interpreter& in, const JsonStyle& style) : in_(in), style_(style) {}

  void value(const Value& v, size_t level) {
    if (in_.failed()) return;
    switch (v.kind()) {
      case Kind::none:
        out_ += "null";
        return;
      case Kind::boolean:
        out_ += v.as_bool() ? "true" : "false";
        return;
      case Kind::integer:
        out_ += std::to_string(v.as_int());
        return;
      case Kind::real:
        real(v.as_real());
        return;
      case Kind::string:
        string(v.text());
        return;
      case Kind::list:
      case Kind::tuple: {
        open('[', v.items().empty());
        for (size_t i = 0; i < v.items().size() && !in_.failed(); ++i) {
          if (i) out_ += style_.item_separator;
          newline(level + 1);
          value(v.items()[i], level + 1);
        }
        close(']', v.items().empty(), level);
        return;
      }
      case Kind::dict:
        dict(v.as<Dict>(), level);
        return;
      default:
        in_.error("Object of type " + std::string(type_name(v)) + " is not JSON serializable");
    }
  }

  std::string take() { return std::move(out_); }

 private:
  void open(char c, bool) { out_ += c; }
  void close(char c, bool empty, size_t level) {
    if (!empty) newline(level);
    out_ += c;
  }

  void newline(size_t level) {
    if (!style_.pretty) return;
    size_t size = style_.indent.size();
    if (size && level > in_.memory()->limit / size) {
      in_.error("the template needs too much memory");
      return;
    }
    if (!in_.reserve(out_.size() + 1 + size * level)) return;
    out_ += '\n';
    for (size_t i = 0; i < level; ++i) out_ += style_.indent;
  }

  void real(double d) {
    if (std::isnan(d)) {
      out_ += "NaN";
    } else if (std::isinf(d)) {
      out_ += d < 0 ? "-Infinity" : "Infinity";
    } else {
      out_ += real_repr(d);
    }
  }

  void dict(const Dict& d, size_t level) {
    std::vector<const Entry*> entries;
    for (const Entry& e : d.entries) entries.push_back(&e);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const Entry* a, const Entry* b) { return key_order(a->first, b->first) < 0; });
    }
    open('{', entries.empty());
    bool first = true;
    for (const Entry* e : entries) {
      if (in_.failed()) return;
      if (!first) out_ += style_.item_separator;
      first = false;
      newline(level + 1);
      key(e->first);
      out_ += style_.key_separator;
      value(e->second, level + 1);
    }
    close('}', entries.empty(), level);
  }

  void key(const Value& k) {
    if (k.is_string()) return string(k.text());
    if (!k.is_number() && !k.is_none()) {
      in_.error("keys must be str, int, float, bool or None, not " + std::string(type_name(k)));
      return;
    }
    out_ += '"';
    value(k, 0);
    out_ += '"';
  }

  void string(std::string_view text) {
    if (!in_.reserve(text.size())) return;
    out_ += '"';
    char buffer[16];
    auto unit = [&](unsigned u) {
      std::snprintf(buffer, sizeof buffer, "\\u%04x", u);
      out_ += buffer;
    };
    for (size_t i = 0; i < text.size();) {
      char c = text[i];
      auto u = static_cast<unsigned char>(c);
      if (u >= 0x80) {
        size_t before = i;
        char32_t point = decode_point(text, i);
        if (!style_.ascii) {
          out_.append(text, before, i - before);
        } else if (point < 0x10000) {
          unit(point);
        } else {
          unit(0xD800 + ((point - 0x10000) >> 10));
          unit(0xDC00 + ((point - 0x10000) & 0x3FF));
        }
        continue;
      }
      ++i;
      switch (c) {
        case '"':
          out_ += "\\\"";
          break;
        case '\\':
          out_ += "\\\\";
          break;
        case '\n':
          out_ += "\\n";
          break;
        case '\r':
          out_ += "\\r";
          break;
        case '\t':
          out_ += "\\t";
          break;
        case '\b':
          out_ += "\\b";
          break;
        case '\f':
          out_ += "\\f";
          break;
        default:
          if (u < 0x20) {
            unit(u);
          } else {
            out_ += c;
          }
      }
    }
    out_ += '"';
  }

  Interpreter& in_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string dump_json(Interpreter& in, const Value& v, const JsonStyle& style) {
  if (!in.charge(v.weight()) || !in.reserve(v.weight())) return {};
  Writer writer(in, style);
  writer.value(v, 0);
  return writer.take();
}

Value filter_tojson(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  if (!p.ok()) return {};
  JsonStyle style;
  style.ascii = p.flag(0, false);
  style.sort_keys = p.flag(3, false);
  if (p.has(1) && !p[1].is_none()) {
    style.pretty = true;
    style.item_separator = ",";
    if (p[1].is_string()) {
      style.indent = p[1].text();
    } else {
      int64_t n = std::max<int64_t>(0, p.integer(1, 0));
      if (!p.ok()) return {};
      if (static_cast<uint64_t>(n) > in.memory()->limit || !in.reserve(static_cast<size_t>(n))) {
        return in.error("the template needs too much memory");
      }
      style.indent.assign(static_cast<size_t>(n), ' ');
    }
  }
  if (p.has(2) && !p[2].is_none()) {
    const Value& pair = p[2];
    if (!pair.is_sequence() || pair.items().size() != 2 || !pair.items()[0].is_string() ||
        !pair.items()[1].is_string()) {
      return in.error("tojson: separators must be two strings");
    }
    style.item_separator = pair.items()[0].text();
    style.key_separator = pair.items()[1].text();
  }
  std::string text = dump_json(in, self, style);
  return in.failed() ? Value() : in.string(std::move(text));
}

Value filter_from_json(Interpreter& in, const Value& self, const Args& args) {
  Params p(in, args, "from_json", {});
  if (!p.ok()) return {};
  if (!self.is_string()) return in.error("from_json needs a string, not '" + std::string(type_name(self)) + "'");
  // A parsed value takes up to some tens of bytes for each byte of text.
  if (self.text().size() > in.memory()->limit / 64 || !in.reserve(self.text().size() * 64)) {
    return in.error("the template needs too much memory");
  }
  auto json = parse_ordered_json(self.text(), "from_json");
  if (!json) return in.error(json.error().message);
  return value_from_json(in, *json);
}

}  // namespace pinion::jinja
