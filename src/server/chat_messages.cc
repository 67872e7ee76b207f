// Chat messages as templates expect them: content parts joined into one string, arguments of tool calls parsed.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "server/openai_request.h"

namespace pinion {
namespace {

constexpr size_t max_content_parts = 1024, max_tools = 128, max_tool_calls = 128;
constexpr std::array<std::string_view, 5> roles = {"system", "user", "assistant", "tool", "function"};

// The text of a message's content; null stays null. `where` is "messages[3].content".
OrderedJson read_content(RequestFields& fields, const OrderedJson& content, const std::string& where) {
  if (content.is_string()) return content;
  if (!content.is_array()) {
    fields.fail(bad_field(where, fmt::format("expected a string or an array, got {}", json_kind(content))));
    return nullptr;
  }
  if (content.size() > max_content_parts) {
    fields.fail(bad_field(where, fmt::format("{} parts, at most {} are allowed", content.size(), max_content_parts)));
    return nullptr;
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const OrderedJson& part = content[i];
    const std::string at = fmt::format("{}[{}]", where, i);
    const std::string* piece = nullptr;
    if (part.is_string()) {
      piece = &part.get_ref<const std::string&>();
    } else if (part.is_object() && part.contains("type") && part["type"].is_string()) {
      const auto& type = part["type"].get_ref<const std::string&>();
      if (type == "text" || type == "refusal") {
        if (!part.contains(type) || !part[type].is_string()) {
          fields.fail(bad_field(at, fmt::format("\"{}\" is missing or not a string", type)));
          return nullptr;
        }
        piece = &part[type].get_ref<const std::string&>();
      } else if (type == "image_url" || type == "input_audio" || type == "video_url" || type == "file" ||
                 type == "audio_url" || type == "image") {
        fields.fail(unsupported_field(at, "of type " + type));
        return nullptr;
      }
    }
    if (!piece) {
      fields.fail(bad_field(at, "expected a string or an object {\"type\": \"text\", \"text\": …}"));
      return nullptr;
    }
    if (i > 0) text += '\n';
    text += *piece;
  }
  return text;
}

// OpenAI sends a call's arguments as a string of JSON; templates want the object.
OrderedJson read_tool_calls(RequestFields& fields, const OrderedJson& calls, const std::string& where) {
  OrderedJson out = OrderedJson::array();
  if (!calls.is_array() || calls.size() > max_tool_calls) {
    fields.fail(bad_field(where, fmt::format("expected an array of at most {} calls", max_tool_calls)));
    return out;
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    OrderedJson call = calls[i];
    const std::string at = fmt::format("{}[{}]", where, i);
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object() ||
        !call["function"].contains("name") || !call["function"]["name"].is_string()) {
      fields.fail(bad_field(at, "expected an object with a \"function\" that has a \"name\""));
      return out;
    }
    OrderedJson& function = call["function"];
    if (!function.contains("arguments")) function["arguments"] = OrderedJson::object();
    if (function["arguments"].is_string()) {
      const auto text = function["arguments"].get<std::string>();
      auto parsed = text.empty() ? Result<OrderedJson>(OrderedJson::object()) : parse_ordered_json(text, at);
      if (!parsed) {
        fields.fail(bad_field(at + ".function.arguments", "not a string of JSON"));
        return out;
      }
      function["arguments"] = std::move(*parsed);
    } else if (!function["arguments"].is_object()) {
      fields.fail(bad_field(at + ".function.arguments", "expected a string of JSON"));
      return out;
    }
    out.push_back(std::move(call));
  }
  return out;
}

OrderedJson read_message(RequestFields& fields, const OrderedJson& message, const std::string& where) {
  if (!message.is_object()) {
    fields.fail(bad_field(where, fmt::format("expected an object, got {}", json_kind(message))));
    return nullptr;
  }
  if (!message.contains("role") || !message["role"].is_string()) {
    fields.fail(bad_field(where + ".role", "missing, or not a string"));
    return nullptr;
  }
  auto role = message["role"].get<std::string>();
  if (role == "developer") role = "system";  // OpenAI's new name; the templates of open models know the old one
  if (std::find(roles.begin(), roles.end(), role) == roles.end()) {
    fields.fail(bad_field(where + ".role", "not one of system, developer, user, assistant, tool"));
    return nullptr;
  }
  OrderedJson out;
  out["role"] = role;
  const bool calls = message.contains("tool_calls") && !message["tool_calls"].is_null();
  if (message.contains("content") && !message["content"].is_null()) {
    out["content"] = read_content(fields, message["content"], where + ".content");
  } else if (role == "assistant" && calls) {
    out["content"] = "";
  } else {
    fields.fail(bad_field(where + ".content", "missing or null"));
  }
  if (calls) out["tool_calls"] = read_tool_calls(fields, message["tool_calls"], where + ".tool_calls");
  for (const auto* name : {"name", "tool_call_id", "reasoning_content", "reasoning"}) {
    if (!message.contains(name) || message[name].is_null()) continue;
    if (!message[name].is_string()) fields.fail(bad_field(where + "." + name, "expected a string"));
    out[std::string_view(name) == "reasoning" ? "reasoning_content" : name] = message[name];
  }
  return out;
}

}  // namespace

OrderedJson read_messages(RequestFields& fields, const RequestLimits& limits) {
  OrderedJson out = OrderedJson::array();
  const OrderedJson* messages = fields.find("messages");
  if (!fields.ok()) return out;
  if (!messages) {
    fields.fail(bad_field("messages", "missing"));
  } else if (!messages->is_array() || messages->empty()) {
    fields.fail(bad_field("messages", messages->is_array() ? "empty" : "expected an array"));
  } else if (messages->size() > limits.max_messages) {
    fields.fail(bad_field("messages",
                          fmt::format("{} messages, at most {} are allowed", messages->size(), limits.max_messages)));
  } else {
    for (size_t i = 0; i < messages->size() && fields.ok(); ++i) {
      out.push_back(read_message(fields, (*messages)[i], fmt::format("messages[{}]", i)));
    }
  }
  return out;
}

OrderedJson read_tools(RequestFields& fields) {
  const OrderedJson* tools = fields.find("tools");
  if (!tools) return nullptr;
  if (!tools->is_array() || tools->size() > max_tools) {
    fields.fail(bad_field("tools", fmt::format("expected an array of at most {} tools", max_tools)));
    return nullptr;
  }
  for (size_t i = 0; i < tools->size(); ++i) {
    const OrderedJson& tool = (*tools)[i];
    const bool is_function = tool.is_object() && tool.contains("type") && tool["type"] == "function" &&
                             tool.contains("function") && tool["function"].is_object();
    if (!is_function || !tool["function"].contains("name") || !tool["function"]["name"].is_string()) {
      fields.fail(
          bad_field(fmt::format("tools[{}]", i), "expected {\"type\": \"function\", \"function\": {\"name\": …}}"));
      return nullptr;
    }
    const auto& name = tool["function"]["name"].get_ref<const std::string&>();
    if (name.empty() || name.size() > 256) {
      fields.fail(bad_field(fmt::format("tools[{}].function.name", i), "expected 1 to 256 bytes"));
      return nullptr;
    }
  }
  return tools->empty() ? OrderedJson(nullptr) : *tools;
}

OrderedJson read_template_arguments(RequestFields& fields) {
  OrderedJson out = OrderedJson::object();
  if (const OrderedJson* arguments = fields.find("chat_template_kwargs")) {
    if (!arguments->is_object()) {
      fields.fail(bad_field("chat_template_kwargs", fmt::format("expected an object, got {}", json_kind(*arguments))));
      return out;
    }
    // What the server itself sets may not be overridden from here.
    for (const auto* name : {"messages", "tools", "add_generation_prompt", "tokenize", "chat_template", "bos_token",
                             "eos_token", "continue_final_message"}) {
      if (arguments->contains(name)) {
        fields.fail(bad_field("chat_template_kwargs", fmt::format("'{}' cannot be set here", name)));
      }
    }
    out = *arguments;
  }
  if (const OrderedJson* effort = fields.find("reasoning_effort")) {
    if (!effort->is_string() || effort->get_ref<const std::string&>().size() > 16) {
      fields.fail(bad_field("reasoning_effort", "expected one of none, minimal, low, medium, high, xhigh"));
    } else {
      out["reasoning_effort"] = *effort;
    }
  }
  return out;
}

}  // namespace pinion
