#include "server/api.h"

#include <fmt/format.h>

#include <random>

#include "base/log.h"
#include "server/completion_writer.h"
#include "server/kserve.h"

namespace pinion {
namespace {

constexpr JsonLimits body_limits{.bytes = size_t{1} << 30, .depth = 100};  // the body's size is limited by HTTP

HttpResponse json_response(const OrderedJson& body) {
  return {.body = dump(body)};
}

HttpResponse unavailable(std::string_view why, std::string_view code) {
  return error_response({.status = 503, .message = std::string(why), .code = std::string(code), .retry_after = 5});
}

std::optional<HttpResponse> not_serving(const ServerState& state) {
  if (const std::string failure = state.service.generator->failure(); !failure.empty()) {
    return unavailable("the engine failed: restart the server", "engine_failed");
  }
  if (state.draining) return unavailable("the server is shutting down", "shutting_down");
  if (!state.ready) return unavailable("the model is still loading", "not_ready");
  return {};
}

HttpResponse health(ServerState& state, const HttpRequest&) {
  // Live: also while it warms up or drains, or an orchestrator would kill it then.
  if (!state.service.generator->failure().empty()) return *not_serving(state);
  return {.content_type = "text/plain", .body = ""};
}

HttpResponse health_ready(ServerState& state, const HttpRequest&) {
  if (auto refused = not_serving(state)) return *std::move(refused);
  return {.content_type = "text/plain", .body = ""};
}

HttpResponse metrics(ServerState& state, const HttpRequest&) {
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = state.metrics.text(state.service.generator->stats(), !not_serving(state), state.connections)};
}

HttpResponse version(ServerState&, const HttpRequest&) {
  return json_response({{"version", "0.1.0"}});
}

OrderedJson model_json(const ServerState& state) {
  OrderedJson out;
  out["id"] = state.service.name;
  out["object"] = "model";
  out["created"] = 0;
  out["owned_by"] = "pinion";
  out["root"] = state.service.name;
  out["parent"] = nullptr;
  out["max_model_len"] = state.service.max_seq_len;
  return out;
}

HttpResponse models(ServerState& state, const HttpRequest&) {
  OrderedJson out;
  out["object"] = "list";
  out["data"] = OrderedJson::array();
  out["data"].push_back(model_json(state));
  return json_response(out);
}

constexpr std::string_view models_prefix = "/v1/models/";

HttpResponse one_model(ServerState& state, const HttpRequest& request) {
  const std::string name = percent_decode(std::string_view(request.path).substr(models_prefix.size()));
  if (name == state.service.name) return json_response(model_json(state));
  return error_response(
      {.status = 404,
       .message = fmt::format("the model '{}' does not exist: this server has '{}'", name, state.service.name),
       .param = "model",
       .code = "model_not_found"});
}

HttpResponse tokenize(ServerState& state, const OrderedJson& body) {
  const ModelService& model = state.service;
  const RequestLimits limits{.strict_fields = state.options.strict_fields};
  RequestFields fields(body);
  read_model(fields, model);
  bool special = !body.contains("messages"), names = false, add_generation_prompt = true;
  fields.boolean("add_special_tokens", special);
  fields.boolean("return_token_strs", names);
  std::vector<int32_t> ids;
  if (body.contains("messages")) {
    const OrderedJson messages = read_messages(fields, limits);
    const OrderedJson tools = read_tools(fields), extra = read_template_arguments(fields);
    fields.boolean("add_generation_prompt", add_generation_prompt);
    fields.refuse("continue_final_message", false);
    fields.refuse("chat_template");
    if (fields.ok() && !model.text->has_chat_template())
      fields.fail(bad_field("messages", "this model has no chat template"));
    if (fields.ok()) {
      auto text = model.text->render(messages, tools, add_generation_prompt, extra);
      if (!text)
        return error_response({.message = text.error().message, .param = "messages", .code = "template_error"});
      ids = model.text->encode(*text, special);
    }
  } else {
    const OrderedJson* prompt = fields.find("prompt");
    if (prompt && prompt->is_string()) {
      ids = model.text->encode(prompt->get_ref<const std::string&>(), special);
    } else {
      fields.fail(bad_field("prompt", prompt ? "expected a string" : "missing"));
    }
  }
  if (auto unknown = check_unknown(fields, limits)) fields.fail(*unknown);
  if (!fields.ok()) return error_response(*fields.error());
  OrderedJson out;
  out["count"] = ids.size();
  out["max_model_len"] = model.max_seq_len;
  out["tokens"] = ids;
  out["token_strs"] = nullptr;
  if (names) {
    out["token_strs"] = OrderedJson::array();
    for (const int32_t id : ids) out["token_strs"].push_back(model.text->token_name(id));
  }
  return json_response(out);
}

HttpResponse detokenize(ServerState& state, const OrderedJson& body) {
  RequestFields fields(body);
  read_model(fields, state.service);
  std::vector<int32_t> ids;
  if (const OrderedJson* tokens = fields.find("tokens")) {
    ids = read_token_ids(fields, *tokens, "tokens", state.service.vocab_size);
  } else {
    fields.fail(bad_field("tokens", "missing"));
  }
  if (auto unknown = check_unknown(fields, {.strict_fields = state.options.strict_fields})) fields.fail(*unknown);
  if (!fields.ok()) return error_response(*fields.error());
  OrderedJson out;
  out["prompt"] = state.service.text->decode(ids, false);
  return json_response(out);
}

std::variant<HttpResponse, GenerationReply> generate(ServerState& state, const HttpRequest& request,
                                                     const OrderedJson& body, bool chat) {
  if (auto refused = not_serving(state)) return *std::move(refused);
  const RequestLimits limits{.max_choices = state.options.max_choices, .strict_fields = state.options.strict_fields};
  ParsedCall parsed =
      chat ? parse_chat_call(body, state.service, limits) : parse_completion_call(body, state.service, limits);
  if (auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  auto& call = std::get<CompletionCall>(parsed);
  const std::string id = (chat ? "chatcmpl-" : "cmpl-") + request.request_id;
  GenerationReply reply{.requests = call.requests(id)};
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  reply.writer = std::make_unique<CompletionWriter>(std::move(call), state.service, id,
                                                    std::chrono::duration_cast<std::chrono::seconds>(now).count());
  return reply;
}

struct GetRoute {
  std::string_view path;
  HttpResponse (*answer)(ServerState&, const HttpRequest&);
  bool needs_key = false;
};
constexpr GetRoute get_routes[] = {
    {"/health", health},   {"/health/live", health},     {"/health/ready", health_ready},
    {"/ping", health},     {"/metrics", metrics},        {"/prometheus/metrics", metrics},
    {"/version", version}, {"/v1/models", models, true},
};
constexpr std::string_view post_routes[] = {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"};

HttpResponse wrong_method(std::string_view allow, bool options) {
  HttpResponse out = options ? HttpResponse{.status = 204}
                             : error_response({.status = 405,
                                               .message = fmt::format("this path allows only {}", allow),
                                               .code = "method_not_allowed"});
  out.headers.emplace_back("Allow", allow);
  return out;
}

// The time does not tell how much of a wrong key was right.
bool same_key(std::string_view a, std::string_view b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  }
  return difference == 0;
}

bool is_json(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  constexpr std::string_view wanted = "application/json";
  return type.size() == wanted.size() && std::equal(type.begin(), type.end(), wanted.begin(), [](char a, char b) {
           return (a >= 'A' && a <= 'Z' ? a + ('a' - 'A') : a) == b;
         });
}

std::variant<HttpResponse, GenerationReply> post(ServerState& state, const HttpRequest& request) {
  if (!request.content_encoding.empty() && request.content_encoding != "identity") {
    return error_response({.status = 415, .message = "compressed bodies are not supported: send no Content-Encoding"});
  }
  if (!is_json(request.content_type)) {
    return error_response({.status = 415, .message = "expected Content-Type: application/json"});
  }
  auto body = parse_ordered_json(request.body, "request body", body_limits);
  if (!body) return error_response({.message = body.error().message, .code = "invalid_json"});
  if (!body->is_object()) return error_response({.message = "the request body is not a JSON object"});
  if (request.path == "/tokenize") return tokenize(state, *body);
  if (request.path == "/detokenize") return detokenize(state, *body);
  return generate(state, request, *body, request.path == "/v1/chat/completions");
}

}  // namespace

bool authorized(const ServerState& state, const HttpRequest& request) {
  if (state.options.api_keys.empty()) return true;
  constexpr std::string_view scheme = "Bearer ";
  const std::string_view given = request.authorization;
  bool found = false;
  for (const std::string& key : state.options.api_keys) {
    found |=
        given.substr(0, scheme.size()) == scheme && same_key(given.substr(std::min(given.size(), scheme.size())), key);
  }
  return found;
}

HttpResponse key_error() {
  HttpResponse out =
      error_response({.status = 401, .message = "the API key is missing or wrong", .code = "invalid_api_key"});
  out.headers.emplace_back("WWW-Authenticate", "Bearer");
  return out;
}

Reply handle(ServerState& state, const HttpRequest& request) {
  if (auto reply = handle_kserve(state, request)) return *std::move(reply);
  const bool get = request.method == "GET" || request.method == "HEAD", options = request.method == "OPTIONS";
  const auto answer_get = [&](std::string_view route, auto answer, bool needs_key) -> Reply {
    if (!get) return {route, wrong_method("GET, HEAD, OPTIONS", options)};
    if (needs_key && !authorized(state, request)) return {route, key_error()};
    return {route, answer(state, request)};
  };
  for (const GetRoute& route : get_routes) {
    if (request.path == route.path) return answer_get(route.path, route.answer, route.needs_key);
  }
  if (request.path.starts_with(models_prefix)) return answer_get("/v1/models/{id}", one_model, true);
  for (const std::string_view route : post_routes) {
    if (request.path != route) continue;
    if (request.method != "POST") return {route, wrong_method("POST, OPTIONS", options)};
    if (!authorized(state, request)) return {route, key_error()};
    auto content = post(state, request);
    return {route, std::move(content)};
  }
  return {"other", error_response({.status = 404, .message = "there is no such path", .code = "not_found"})};
}

std::string random_id() {
  thread_local std::random_device source;
  std::string out;
  for (int i = 0; i < 4; ++i) out += fmt::format("{:08x}", source());
  return out;
}

}  // namespace pinion
