#include "calibrate/dataset.h"

#include <fmt/format.h>

#include <string>

#include "base/file.h"
#include "base/json.h"
#include "base/locate_error.h"

namespace pinion {
namespace {

constexpr size_t kMaxFile = size_t{2} << 30, kMaxLine = size_t{64} << 20;

Result<std::vector<int32_t>> read_line(std::string_view line, const std::string& where, const Tokenizer* tokenizer,
                                       const ChatTemplate* chat_template) {
  PINION_TRY(const OrderedJson json, parse_ordered_json(line, where, {.bytes = kMaxLine, .depth = 64}));
  if (!json.is_object()) return fail(Errc::corrupt, "the line is no JSON object", where);
  if (json.contains("ids")) {
    std::vector<int32_t> ids;
    const OrderedJson& list = json["ids"];
    for (size_t i = 0; list.is_array() && i < list.size(); ++i) {
      if (!list[i].is_number_integer() || list[i] < 0 || list[i] > INT32_MAX) break;
      ids.push_back(list[i].get<int32_t>());
    }
    if (!list.is_array() || ids.size() != list.size()) {
      return fail(Errc::corrupt, "\"ids\" must be a list of token ids", where);
    }
    return ids;
  }
  if (tokenizer == nullptr) {
    return fail(Errc::not_found, "the model has no tokenizer", where,
                "give --tokenizer DIR, or lines of {\"ids\": […]}");
  }
  for (const char* key : {"text", "prompt"}) {
    if (!json.contains(key)) continue;
    if (!json[key].is_string()) return fail(Errc::corrupt, fmt::format("\"{}\" must be a string", key), where);
    return tokenizer->encode(json[key].get<std::string>());
  }
  if (!json.contains("messages")) {
    return fail(Errc::corrupt, "the line has none of \"text\", \"prompt\", \"messages\" and \"ids\"", where);
  }
  if (chat_template == nullptr) {
    return fail(Errc::not_found, "the model has no chat template for \"messages\"", where,
                "use lines of {\"text\": …}");
  }
  ChatInput input;
  input.messages = json["messages"];
  if (json.contains("tools")) input.tools = json["tools"];
  if (!input.messages.is_array()) return fail(Errc::corrupt, "\"messages\" must be a list", where);
  input.add_generation_prompt = false;
  const auto text = chat_template->render(input);
  if (!text) return locate_error(text.error(), where);
  return tokenizer->encode(*text, false);
}

}  // namespace

Result<std::vector<std::vector<int32_t>>> read_dataset(const std::filesystem::path& file, const Tokenizer* tokenizer,
                                                       const ChatTemplate* chat_template, DatasetOptions options) {
  auto text = read_file(file, kMaxFile);
  if (!text) {
    if (text.error().code != Errc::not_found) return std::move(text).error();
    return fail(Errc::not_found, "there is no such data set", file.string(),
                "give a JSONL file with a line of {\"text\": …} or {\"messages\": […]} per sample");
  }
  std::vector<std::vector<int32_t>> out;
  int64_t number = 0;
  for (size_t at = 0; at < text->size();) {
    if (options.max_lines > 0 && std::ssize(out) == options.max_lines) break;
    const size_t end = std::min(text->find('\n', at), text->size());
    std::string_view line(text->data() + at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    PINION_TRY(std::vector<int32_t> ids,
               read_line(line, fmt::format("{}, line {}", file.string(), number), tokenizer, chat_template));
    if (options.max_tokens > 0 && std::ssize(ids) > options.max_tokens) ids.resize(options.max_tokens);
    if (!ids.empty()) out.push_back(std::move(ids));
  }
  if (out.empty()) return fail(Errc::corrupt, "the data set has no text", file.string());
  return out;
}

}  // namespace pinion
