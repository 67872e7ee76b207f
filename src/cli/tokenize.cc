// pinion tokenize: JSON lines on standard input, {"text":…} to {"ids":[…]}, or the other way with --decode.
#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "base/json.h"
#include "checkpoint/hf_cache.h"
#include "cli/verbs.h"
#include "text/tokenizer.h"

namespace pinion::cli {
namespace {

struct Args {
  std::string model, tokenizer;
  bool decode = false, skip_special = false, no_special = false;
};

Status run(const Args& a) {
  const std::string& wanted = a.tokenizer.empty() ? a.model : a.tokenizer;
  std::filesystem::path dir = wanted;
  std::error_code code;
  if (!std::filesystem::exists(dir, code)) {
    PINION_TRY(dir, resolve_model(wanted));
  }
  PINION_TRY(Tokenizer tokenizer, Tokenizer::load(dir));
  const char* form = a.decode ? "write a line as {\"ids\":[1,2,3]}" : "write a line as {\"text\":\"...\"}";
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("standard input, line {}", number);
    PINION_TRY(Json json, parse_json(line, where));
    const char* key = a.decode ? "ids" : "text";
    if (!json.is_object() || !json.contains(key))
      return fail(Errc::invalid_argument, fmt::format("the line has no \"{}\"", key), where, form);
    Json out;
    if (a.decode) {
      std::vector<int32_t> ids;
      if (!json["ids"].is_array())
        return fail(Errc::invalid_argument, "\"ids\" must be a list of integers", where, form);
      for (const Json& id : json["ids"]) {
        if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
          return fail(Errc::invalid_argument, "\"ids\" must be a list of token ids", where, form);
        ids.push_back(id.get<int32_t>());
      }
      out["text"] = tokenizer.decode(ids, a.skip_special);
    } else {
      if (!json["text"].is_string()) return fail(Errc::invalid_argument, "\"text\" must be a string", where, form);
      out["ids"] = tokenizer.encode(json["text"].get_ref<const std::string&>(), !a.no_special);
    }
    fmt::print("{}\n", out.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  return {};
}

}  // namespace

Verb add_tokenize(CLI::App& app) {
  auto a = std::make_shared<Args>();
  app.add_option("model", a->model, "a directory with tokenizer.json, or the file")->required();
  app.add_option("--tokenizer", a->tokenizer, "directory of the tokenizer files, when not the model's");
  app.add_flag("--decode", a->decode, "from {\"ids\":[…]} to {\"text\":…}");
  app.add_flag("--skip_special_tokens", a->skip_special, "with --decode: leave special tokens out");
  app.add_flag("--no_special_tokens", a->no_special, "do not add the tokens that the post-processor adds");
  return [a] { return run(*a); };
}

}  // namespace pinion::cli
