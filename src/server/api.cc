#include "server/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "base/log.h"
#include "server/completion_writer.h"
#include "server/embeddings.h"
#include "server/kserve.h"
#include "server/page.h"
#include "server/responses.h"

namespace pinion {
namespace {

constexpr JsonLimits body_limits{.bytes = size_t{1} << 30, .depth = 100};  // the body's size is limited by HTTP

HttpResponse json_response(const OrderedJson& body) {
  return {.body = dump(body)};
}

HttpResponse unavailable(std::string_view why, std::string_view code) {
  return error_response({.status = 503, .message = std::string(why), .code = std::string(code), .retry_after = 5});
}

std::optional<HttpResponse> not_serving(const ServerState& state, const ServedModel* model = nullptr) {
  for (const ModelHandle& m : model ? std::vector<ModelHandle>() : state.models.all()) {
    if (!m->failure().empty()) return unavailable("the engine failed: restart the server", "engine_failed");
  }
  if (model && !model->failure().empty()) return unavailable("the engine failed: restart the server", "engine_failed");
  if (state.draining) return unavailable("the server is shutting down", "shutting_down");
  if (!state.ready) return unavailable("the model is still loading", "not_ready");
  if (!model && !state.models.ready()) return unavailable("a model could not be loaded", "not_ready");
  return {};
}

HttpResponse health(ServerState& state, const HttpRequest&) {
  // Live: also while it warms up or drains, or an orchestrator would kill it then.
  for (const ModelHandle& m : state.models.all()) {
    if (!m->failure().empty()) return *not_serving(state, m.get());
  }
  return {.content_type = "text/plain", .body = ""};
}

HttpResponse health_ready(ServerState& state, const HttpRequest&) {
  if (auto refused = not_serving(state)) return *std::move(refused);
  return {.content_type = "text/plain", .body = ""};
}

// Two names may mean one engine (a pipeline and its step): its figures are counted under the first.
HttpResponse metrics(ServerState& state, const HttpRequest&) {
  std::vector<ServerMetrics::Snapshot> snapshots;
  std::vector<const Generator*> seen;
  for (const ModelHandle& m : state.models.all()) {
    const Generator* generator = m->service().generator;
    if (!generator || std::find(seen.begin(), seen.end(), generator) != seen.end()) continue;
    seen.push_back(generator);
    snapshots.push_back({m->metrics, generator->stats()});
  }
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = state.metrics.text(snapshots, !not_serving(state), state.connections)};
}

HttpResponse page(ServerState&, const HttpRequest&) {
  return {.content_type = "text/html; charset=utf-8",
          .body = std::string(chat_page()),
          .headers = {{"Content-Security-Policy",
                       "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"},
                      {"X-Content-Type-Options", "nosniff"}}};
}

HttpResponse version(ServerState&, const HttpRequest&) {
  return json_response({{"version", PINION_VERSION}});
}

OrderedJson model_json(const ModelService& model) {
  OrderedJson out;
  out["id"] = model.name;
  out["object"] = "model";
  out["created"] = 0;
  out["owned_by"] = "pinion";
  out["root"] = model.name;
  out["parent"] = nullptr;
  out["max_model_len"] = model.max_seq_len;
  return out;
}

HttpResponse models(ServerState& state, const HttpRequest&) {
  OrderedJson out;
  out["object"] = "list";
  out["data"] = OrderedJson::array();
  for (const ModelHandle& m : state.models.all()) {
    if (m->generates()) out["data"].push_back(model_json(m->service()));
  }
  return json_response(out);
}

std::string names(const ServerState& state) {
  std::string out;
  for (const ModelHandle& m : state.models.all()) {
    if (m->generates()) out += (out.empty() ? "'" : ", '") + m->service().name + "'";
  }
  return out.empty() ? "none" : out;
}

HttpResponse no_such_model(const ServerState& state, std::string_view name) {
  return error_response(
      {.status = 404,
       .message = fmt::format("the model '{}' does not exist: this server has {}", name, names(state)),
       .param = "model",
       .code = "model_not_found"});
}

constexpr std::string_view models_prefix = "/v1/models/";

HttpResponse one_model(ServerState& state, const HttpRequest& request) {
  const std::string name = percent_decode(std::string_view(request.path).substr(models_prefix.size()));
  const ModelHandle model = state.models.find(name);
  return model && model->generates() ? json_response(model_json(model->service())) : no_such_model(state, name);
}

HttpResponse tokenize(ServerState& state, const ModelService& model, const OrderedJson& body) {
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

HttpResponse detokenize(ServerState& state, const ModelService& model, const OrderedJson& body) {
  RequestFields fields(body);
  read_model(fields, model);
  std::vector<int32_t> ids;
  if (const OrderedJson* tokens = fields.find("tokens")) {
    ids = read_token_ids(fields, *tokens, "tokens", model.vocab_size);
  } else {
    fields.fail(bad_field("tokens", "missing"));
  }
  if (auto unknown = check_unknown(fields, {.strict_fields = state.options.strict_fields})) fields.fail(*unknown);
  if (!fields.ok()) return error_response(*fields.error());
  OrderedJson out;
  out["prompt"] = model.text->decode(ids, false);
  return json_response(out);
}

using Content = std::variant<HttpResponse, GenerationReply, SlowReply>;

Content generate(ServerState& state, const HttpRequest& request, ModelHandle model, const OrderedJson& body,
                 bool chat) {
  if (auto refused = not_serving(state, model.get())) return *std::move(refused);
  const RequestLimits limits{.max_choices = state.options.max_choices, .strict_fields = state.options.strict_fields};
  const ModelService& service = model->service();
  ParsedCall parsed = chat ? parse_chat_call(body, service, limits) : parse_completion_call(body, service, limits);
  if (auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  if (auto refused = over_limit(state, request)) return error_response(*refused);
  auto& call = std::get<CompletionCall>(parsed);
  const std::string id = (chat ? "chatcmpl-" : "cmpl-") + request.request_id;
  GenerationReply reply{.model = model, .requests = call.requests(id), .writer = nullptr};
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  reply.writer = std::make_unique<CompletionWriter>(std::move(call), service, id,
                                                    std::chrono::duration_cast<std::chrono::seconds>(now).count());
  bill(state, request, reply);
  return reply;
}

Content respond(ServerState& state, const HttpRequest& request, ModelHandle model, const OrderedJson& body) {
  if (auto refused = not_serving(state, model.get())) return *std::move(refused);
  const auto chat = chat_body_of_response_request(body);
  if (const auto* error = std::get_if<ApiError>(&chat)) return error_response(*error);
  const RequestLimits limits{.max_choices = state.options.max_choices, .strict_fields = state.options.strict_fields};
  ParsedCall parsed = parse_chat_call(std::get<OrderedJson>(chat), model->service(), limits);
  if (auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  if (auto refused = over_limit(state, request)) return error_response(*refused);
  auto& call = std::get<CompletionCall>(parsed);
  const std::string id = "resp_" + request.request_id;
  GenerationReply reply{.model = model, .requests = call.requests(id), .writer = nullptr};
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  reply.writer = std::make_unique<ResponsesWriter>(std::move(call), body, model->service(), id,
                                                   std::chrono::duration_cast<std::chrono::seconds>(now).count());
  bill(state, request, reply);
  return reply;
}

Content embed(ServerState& state, const HttpRequest& request, ModelHandle model, const OrderedJson& body) {
  if (auto refused = not_serving(state, model.get())) return *std::move(refused);
  auto parsed = parse_embedding_call(body, model->service(), {.strict_fields = state.options.strict_fields});
  if (auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  if (auto refused = over_limit(state, request)) return error_response(*refused);
  auto& call = std::get<EmbeddingCall>(parsed);
  GenerationReply reply{.model = model, .requests = call.requests("embd-" + request.request_id), .writer = nullptr};
  reply.writer = std::make_unique<EmbeddingWriter>(std::move(call), model->service().name);
  bill(state, request, reply);
  return reply;
}

// The model that a body names; with one model an absent name means it. Null: `refusal` says why.
ModelHandle choose_model(const ServerState& state, const OrderedJson& body, HttpResponse& refusal) {
  const bool named = body.contains("model") && body["model"].is_string() && body["model"] != "";
  ModelHandle model = named ? state.models.find(body["model"].get_ref<const std::string&>()) : nullptr;
  if (!model) model = state.models.only();  // which refuses a name that is not its own
  if (model && model->generates()) return model;
  if (!model && (!state.ready || state.models.is_loading(""))) {
    refusal = unavailable(state.ready ? "the model is being replaced" : "the model is still loading", "not_ready");
    return nullptr;
  }
  if (named) {
    refusal = no_such_model(state, body["model"].get_ref<const std::string&>().substr(0, 256));
  } else {
    refusal = error_response(bad_field("model", "missing: this server has " + names(state)));
  }
  return nullptr;
}

struct GetRoute {
  std::string_view path;
  HttpResponse (*answer)(ServerState&, const HttpRequest&);
  bool needs_key = false;
};
constexpr GetRoute get_routes[] = {
    {"/", page},
    {"/health", health},
    {"/health/live", health},
    {"/health/ready", health_ready},
    {"/ping", health},
    {"/metrics", metrics},
    {"/prometheus/metrics", metrics},
    {"/version", version},
    {"/v1/models", models, true},
};
constexpr std::string_view post_routes[] = {"/v1/chat/completions", "/v1/completions", "/v1/responses",
                                            "/v1/embeddings",       "/tokenize",       "/detokenize"};

HttpResponse wrong_method(std::string_view allow, bool options) {
  HttpResponse out = options ? HttpResponse{.status = 204}
                             : error_response({.status = 405,
                                               .message = fmt::format("this path allows only {}", allow),
                                               .code = "method_not_allowed"});
  out.headers.emplace_back("Allow", allow);
  return out;
}

bool is_json(std::string_view type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.remove_suffix(1);
  constexpr std::string_view wanted = "application/json";
  return type.size() == wanted.size() && std::equal(type.begin(), type.end(), wanted.begin(), [](char a, char b) {
           return (a >= 'A' && a <= 'Z' ? a + ('a' - 'A') : a) == b;
         });
}

Content post(ServerState& state, const HttpRequest& request) {
  if (!request.content_encoding.empty() && request.content_encoding != "identity") {
    return error_response({.status = 415, .message = "compressed bodies are not supported: send no Content-Encoding"});
  }
  if (!is_json(request.content_type)) {
    return error_response({.status = 415, .message = "expected Content-Type: application/json"});
  }
  auto body = parse_ordered_json(request.body, "request body", body_limits);
  if (!body) return error_response({.message = body.error().message, .code = "invalid_json"});
  if (!body->is_object()) return error_response({.message = "the request body is not a JSON object"});
  HttpResponse refusal;
  ModelHandle model = choose_model(state, *body, refusal);
  if (!model) return refusal;
  if (request.path == "/tokenize") return tokenize(state, model->service(), *body);
  if (request.path == "/detokenize") return detokenize(state, model->service(), *body);
  if (request.path == "/v1/embeddings") return embed(state, request, std::move(model), *body);
  if (request.path == "/v1/responses") return respond(state, request, std::move(model), *body);
  return generate(state, request, std::move(model), *body, request.path == "/v1/chat/completions");
}

}  // namespace

bool is_serving(const ServerState& state) {
  return !not_serving(state);
}

bool authorized(const ServerState& state, const HttpRequest& request) {
  return state.options.api_keys.empty() || state.limiter.find(request.authorization) >= 0;
}

std::optional<ApiError> over_limit(ServerState& state, const HttpRequest& request) {
  const int wait = state.limiter.admit(state.limiter.find(request.authorization));
  if (wait == 0) return {};
  return ApiError{.status = 429,
                  .message = fmt::format("the API key's rate limit is reached: try again in {} s", wait),
                  .code = "rate_limit_exceeded",
                  .retry_after = wait};
}

void bill(const ServerState& state, const HttpRequest& request, GenerationReply& reply) {
  reply.key = state.limiter.find(request.authorization);
  if (reply.key < 0) return;
  const int32_t priority = state.options.api_keys[static_cast<size_t>(reply.key)].priority;
  for (Request& r : reply.requests) {
    r.priority = static_cast<int32_t>(std::clamp<int64_t>(int64_t{r.priority} + priority, INT32_MIN + 1, INT32_MAX));
  }
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

Reply handle_metrics(ServerState& state, const HttpRequest& request) {
  const bool get = request.method == "GET" || request.method == "HEAD";
  if (request.path != "/metrics") {
    return {"other", error_response({.status = 404, .message = "this port has only /metrics", .code = "not_found"})};
  }
  return {"/metrics", get ? metrics(state, request) : wrong_method("GET, HEAD", request.method == "OPTIONS")};
}

std::string random_id() {
  thread_local std::random_device source;
  std::string out;
  for (int i = 0; i < 4; ++i) out += fmt::format("{:08x}", source());
  return out;
}

}  // namespace pinion
