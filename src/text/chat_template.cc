// Loading templates from model directories, and the variables a template is rendered with.
#include "text/chat_template.h"

#include "base/file.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"

namespace pinion {
namespace jinja {
namespace {

// Deeper than requests and configuration files are allowed to be.
constexpr int kMaxJsonDepth = 96;

Value convert(Interpreter& in, const OrderedJson& json, int depth) {
  if (depth > kMaxJsonDepth) return in.error("the input is nested too deeply");
  switch (json.type()) {
    case OrderedJson::value_t::null:
      return Value::none();
    case OrderedJson::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case OrderedJson::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case OrderedJson::value_t::number_unsigned: {
      auto u = json.get<uint64_t>();
      if (u > static_cast<uint64_t>(INT64_MAX))
        return in.error("integers beyond 64 bits are not implemented", Errc::unsupported);
      return Value::integer(static_cast<int64_t>(u));
    }
    case OrderedJson::value_t::number_float:
      return Value::real(json.get<double>());
    case OrderedJson::value_t::string:
      return in.string(json.get_ref<const std::string&>());
    case OrderedJson::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(convert(in, item, depth + 1));
      return in.list(std::move(items));
    }
    case OrderedJson::value_t::object: {
      std::vector<Entry> entries;
      entries.reserve(json.size());
      for (const auto& item : json.items()) {
        entries.emplace_back(in.string(item.key()), convert(in, item.value(), depth + 1));
      }
      return in.dict(std::move(entries));
    }
    default:
      return in.error("the input holds a value that is no JSON");
  }
}

struct Size {
  uint64_t nodes = 0, bytes = 0;
};

void measure(const OrderedJson& json, Size& size, int depth) {
  ++size.nodes;
  if (json.is_string()) size.bytes += json.get_ref<const std::string&>().size();
  if (depth > kMaxJsonDepth || !json.is_structured()) return;
  for (const auto& item : json.items()) {
    if (json.is_object()) size.bytes += item.key().size();
    measure(item.value(), size, depth + 1);
  }
}

// Budgets grow with the input, so that long conversations render while a template that loops by itself stops soon.
Limits limits_for(const Size& size) {
  Limits limits;
  limits.steps += size.nodes * 64 + size.bytes / 2;
  limits.memory += size.nodes * 1024 + size.bytes * 8;
  return limits;
}

}  // namespace

Value value_from_json(Interpreter& in, const OrderedJson& json) {
  return convert(in, json, 0);
}

}  // namespace jinja

namespace {

Result<std::shared_ptr<const jinja::Template>> parse_shared(std::string_view source) {
  PINION_TRY(jinja::Template parsed, jinja::parse_template(source));
  return std::make_shared<const jinja::Template>(std::move(parsed));
}

bool present(const std::filesystem::path& path) {
  std::error_code ec;
  return std::filesystem::exists(path, ec);
}

// A special token is a string, or an AddedToken object with the string as its content.
std::optional<std::string> token_text(const OrderedJson& json) {
  if (json.is_string()) return json.get<std::string>();
  if (!json.is_object()) return std::nullopt;
  auto content = json.find("content");
  if (content == json.end() || !content->is_string()) return std::nullopt;
  return content->get<std::string>();
}

void read_special_tokens(const OrderedJson& config, OrderedJson& tokens) {
  if (!config.is_object()) return;
  for (const auto& item : config.items()) {
    const std::string& name = item.key();
    if (tokens.contains(name)) continue;
    if (name == "additional_special_tokens" && item.value().is_array()) {
      OrderedJson list = OrderedJson::array();
      for (const auto& token : item.value()) {
        if (auto text = token_text(token)) list.push_back(*text);
      }
      tokens[name] = std::move(list);
    } else if (name == "extra_special_tokens" && item.value().is_object()) {
      read_special_tokens(item.value(), tokens);
    } else if (name.ends_with("_token")) {
      if (auto text = token_text(item.value())) tokens[name] = *text;
    }
  }
}

bool content_parts(std::string_view source) {
  for (std::string_view sign :
       {"in message.content", "in message['content']", "in message[\"content\"]", "in content ", "in content%",
        "in content-", "in m.content", "in m['content']", "in msg.content", "content[0]", "item['type']", "item.type",
        "part['type']", "part.type", "content['type']", "content.type", "block['type']", "block.type"}) {
    if (source.find(sign) != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string source) {
  ChatTemplate out;
  PINION_TRY(out.default_, parse_shared(source));
  out.reads_content_parts_ = content_parts(source);
  out.source_ = std::move(source);
  return out;
}

Result<std::optional<ChatTemplate>> ChatTemplate::load(const std::filesystem::path& model_dir) {
  constexpr size_t kMaxTemplateBytes = size_t{4} << 20;
  OrderedJson config = OrderedJson::object(), tokens = OrderedJson::object();
  if (auto path = model_dir / "tokenizer_config.json"; present(path)) {
    PINION_TRY(config, read_ordered_json_file(path));
    read_special_tokens(config, tokens);
  }
  if (auto path = model_dir / "special_tokens_map.json"; present(path)) {
    PINION_TRY(OrderedJson map, read_ordered_json_file(path));
    read_special_tokens(map, tokens);
  }
  std::string where = (model_dir / "tokenizer_config.json").string();
  OrderedJson found;
  if (config.is_object() && config.contains("chat_template")) found = config["chat_template"];
  if (auto path = model_dir / "chat_template.json"; present(path)) {
    PINION_TRY(OrderedJson file, read_ordered_json_file(path));
    if (file.is_object() && file.contains("chat_template")) found = file["chat_template"];
    where = path.string();
  }
  if (auto path = model_dir / "chat_template.jinja"; present(path)) {
    PINION_TRY(std::string source, read_file(path, kMaxTemplateBytes));
    found = std::move(source);
    where = path.string();
  }
  if (found.is_null()) return std::optional<ChatTemplate>();

  std::optional<std::string> main, tool_use;
  if (found.is_string()) {
    main = found.get<std::string>();
  } else if (found.is_array()) {
    for (const auto& entry : found) {
      if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") || !entry["name"].is_string() ||
          !entry["template"].is_string()) {
        return fail(Errc::corrupt, "chat_template has an entry that is not {name, template}", where);
      }
      if (entry["name"] == "default") main = entry["template"].get<std::string>();
      if (entry["name"] == "tool_use") tool_use = entry["template"].get<std::string>();
    }
    if (!main && !tool_use) {
      return fail(Errc::corrupt, "chat_template lists no template named default", where,
                  "name one of them default, or give one with --chat_template");
    }
  } else {
    return fail(Errc::corrupt, "chat_template is neither a string nor a list", where);
  }
  auto located = [&](const Error& e) { return Error{e.code, e.message + " in " + where}; };
  auto out = parse(main ? *main : *tool_use);
  if (!out) return located(out.error());
  if (tool_use) {
    auto parsed = parse_shared(*tool_use);
    if (!parsed) return located(parsed.error());
    out->tool_use_ = *std::move(parsed);
  }
  out->special_tokens_ = std::move(tokens);
  return std::optional<ChatTemplate>(*std::move(out));
}

Result<std::string> ChatTemplate::render(const ChatInput& input) const {
  if (!input.messages.is_array()) return fail(Errc::invalid_argument, "messages must be a list");
  if (!input.tools.is_null() && !input.tools.is_array()) return fail(Errc::invalid_argument, "tools must be a list");
  if (!input.extra.is_null() && !input.extra.is_object()) {
    return fail(Errc::invalid_argument, "the chat template's kwargs must be an object");
  }
  jinja::Size size;
  for (const OrderedJson* part : {&input.messages, &input.tools, &input.extra}) jinja::measure(*part, size, 0);
  const jinja::Template& chosen = tool_use_ && !input.tools.is_null() ? *tool_use_ : *default_;
  jinja::Interpreter in(chosen, jinja::limits_for(size), input.now.value_or(std::time(nullptr)));
  auto define = [&](std::string_view name, const OrderedJson& json) {
    in.define(name, jinja::value_from_json(in, json));
  };
  for (const auto& item : special_tokens_.items()) define(item.key(), item.value());
  in.define("documents", jinja::Value::none());
  if (input.extra.is_object()) {
    for (const auto& item : input.extra.items()) {
      for (std::string_view reserved : {"messages", "tools", "add_generation_prompt", "tokenize", "raise_exception"}) {
        if (item.key() == reserved) {
          return fail(Errc::invalid_argument, "the chat template's kwargs may not set '" + item.key() + "'");
        }
      }
      define(item.key(), item.value());
    }
  }
  define("messages", input.messages);
  define("tools", input.tools);
  in.define("add_generation_prompt", jinja::Value::boolean(input.add_generation_prompt));
  return in.render();
}

}  // namespace pinion
