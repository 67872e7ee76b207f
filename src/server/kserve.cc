#include "server/kserve.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace pinion {
namespace {

constexpr std::string_view kNoSuchModel = "model_not_found";
constexpr JsonLimits kBodyLimits{.bytes = size_t{1} << 30, .depth = 100};  // the body's size is limited by HTTP

HttpResponse refuse(int status, std::string_view message) {
  return kserve_error(ApiError{.status = status, .message = std::string(message)});
}

HttpResponse wrong_method(std::string_view allow) {
  HttpResponse out = refuse(405, "Method Not Allowed");
  out.headers.emplace_back("Allow", allow);
  return out;
}

HttpResponse json(const OrderedJson& body) {
  return {.body = dump(body)};
}

// The server takes requests and this model answers them.
bool is_ready(const ServerState& state, const ServedModel& model) {
  return state.ready && !state.draining && model.failure().empty();
}

HttpResponse health(bool good) {  // clients look only at the status
  return {.status = good ? 200 : 400, .content_type = "text/plain", .body = ""};
}

OrderedJson signature_json(std::span<const KserveSignature> tensors) {
  OrderedJson out = OrderedJson::array();
  for (const KserveSignature& t : tensors) {
    OrderedJson row;
    row["name"] = t.name;
    row["datatype"] = name(t.type);
    row["shape"] = {-1, t.size};
    out.push_back(std::move(row));
  }
  return out;
}

bool wants_ids(std::string_view model) {
  return model == "tensorrt_llm";
}

HttpResponse server_metadata() {
  OrderedJson out;
  out["name"] = "pinion";
  out["version"] = PINION_VERSION;
  out["extensions"] = {"binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"};
  return json(out);
}

HttpResponse model_metadata(const ServedModel& served, std::string_view model) {
  OrderedJson out;
  out["name"] = model;
  out["versions"] = {served.loaded.version};
  out["platform"] = "pinion";
  out["inputs"] = signature_json(kserve_inputs(wants_ids(model)));
  out["outputs"] = signature_json(kserve_outputs(wants_ids(model)));
  return json(out);
}

OrderedJson config_tensors(std::span<const KserveSignature> tensors, bool inputs) {
  OrderedJson out = OrderedJson::array();
  for (const KserveSignature& t : tensors) {
    OrderedJson row;
    row["name"] = t.name;
    row["data_type"] = t.type == KserveType::bytes ? "TYPE_STRING" : "TYPE_" + std::string(name(t.type));
    row["dims"] = {t.size};
    if (inputs) row["optional"] = t.optional;
    out.push_back(std::move(row));
  }
  return out;
}

HttpResponse model_config(const ServerState& state, std::string_view model) {
  OrderedJson out;
  out["name"] = model;
  out["platform"] = "pinion";
  out["backend"] = "pinion";
  out["max_batch_size"] = state.options.max_choices;
  out["input"] = config_tensors(kserve_inputs(wants_ids(model)), true);
  out["output"] = config_tensors(kserve_outputs(wants_ids(model)), false);
  out["model_transaction_policy"]["decoupled"] = true;
  return json(out);
}

OrderedJson duration(uint64_t count, uint64_t ns) {
  OrderedJson out;
  out["count"] = count;
  out["ns"] = ns;
  return out;
}

OrderedJson model_statistics(const ServedModel& served, std::string_view model) {
  const KserveStats& s = *served.stats;
  OrderedJson row;
  row["name"] = model;
  row["version"] = served.loaded.version;
  row["last_inference"] = s.last_ms.load();
  row["inference_count"] = s.sequences.load();
  row["execution_count"] = s.success.load();
  OrderedJson& stats = row["inference_stats"];
  stats["success"] = duration(s.success, s.success_ns);
  stats["fail"] = duration(s.failed, s.failed_ns);
  stats["queue"] = duration(s.success, s.queue_ns);
  stats["compute_input"] = duration(s.success, s.prefill_ns);
  stats["compute_infer"] = duration(s.success, s.prefill_ns + s.decode_ns);
  stats["compute_output"] = duration(s.success, s.decode_ns);
  stats["cache_hit"] = duration(0, 0);
  stats["cache_miss"] = duration(0, 0);
  return row;
}

HttpResponse statistics(const std::vector<std::pair<ModelHandle, std::string>>& models) {
  OrderedJson out;
  out["model_stats"] = OrderedJson::array();
  for (const auto& [model, name] : models) out["model_stats"].push_back(model_statistics(*model, name));
  return json(out);
}

HttpResponse repository_index(const ServerState& state, const HttpRequest& request) {
  bool only_ready = false;
  if (!request.body.empty()) {
    const auto body = parse_ordered_json(request.body, "request body", kBodyLimits);
    if (!body) return kserve_error(body.error());
    if (body->is_object() && body->contains("ready")) {
      if (!(*body)["ready"].is_boolean()) return refuse(400, "'ready' is not a boolean");
      only_ready = (*body)["ready"].get<bool>();
    }
  }
  OrderedJson out = OrderedJson::array();
  for (const ModelState& m : state.models.index()) {
    const ModelHandle model = state.models.find(m.name);
    const bool ready = model && is_ready(state, *model);
    if (only_ready && !ready) continue;
    OrderedJson row;
    row["name"] = m.name;
    if (!m.version.empty()) row["version"] = m.version;
    row["state"] = m.state == "READY" && !ready ? "UNAVAILABLE" : m.state;
    row["reason"] = m.state == "READY" && !ready ? "not ready" : m.reason;
    out.push_back(std::move(row));
  }
  return json(out);
}

// What of the body a load may bring: Triton's clients can override the configuration and files, which is refused.
std::optional<HttpResponse> refuse_overrides(const HttpRequest& request) {
  if (request.body.empty()) return {};
  const auto body = parse_ordered_json(request.body, "request body", kBodyLimits);
  if (!body) return kserve_error(body.error());
  if (!body->is_object() || !body->contains("parameters") || !(*body)["parameters"].is_object()) return {};
  for (const auto& [name, value] : (*body)["parameters"].items()) {
    if (name == "unload_dependents") continue;
    return refuse(501, fmt::format("the parameter '{}' is not supported: models load as they lie in the repository",
                                   name.substr(0, 64)));
  }
  return {};
}

using Content = std::variant<HttpResponse, GenerationReply, SlowReply>;

// What speaks against asking this model, before the request is read.
std::optional<ApiError> cannot_infer(const ServerState& state, const ServedModel& served, const std::string& model) {
  if (!is_ready(state, served)) return ApiError{.status = 503, .message = "the server is not ready"};
  if (served.generates()) return {};
  return ApiError{.message =
                      fmt::format("'{}' runs inside of the pipeline: ask the model that has the pipeline", model)};
}

Content infer(ServerState& state, const HttpRequest& request, const ModelHandle& served, const std::string& model,
              std::string_view verb) {
  if (const auto refused = cannot_infer(state, *served, model)) return kserve_error(*refused);
  if (!request.content_encoding.empty() && request.content_encoding != "identity") {
    return refuse(415, "compressed bodies are not supported: send no Content-Encoding");
  }
  std::string_view head = request.body, binary;
  if (!request.inference_header_length.empty()) {
    size_t length = 0;
    const std::string& text = request.inference_header_length;
    const auto [end, errc] = std::from_chars(text.data(), text.data() + text.size(), length);
    if (errc != std::errc() || end != text.data() + text.size() || length > head.size() || length == 0) {
      return refuse(400, "Inference-Header-Content-Length is not the length of the body's JSON part");
    }
    binary = head.substr(length);
    head = head.substr(0, length);
  }
  const auto body = parse_ordered_json(head, "request body", kBodyLimits);
  if (!body) return kserve_error(body.error());
  if (!body->is_object()) return refuse(400, "the request body is not a JSON object");
  const bool tensors = verb == "infer";
  const auto message = tensors ? read_infer_message(*body, binary) : read_generate_message(*body);
  if (!message) return kserve_error(message.error());
  auto started = start_kserve(
      state, request, served, model, *message, tensors ? KserveWriter::Form::infer : KserveWriter::Form::generate,
      verb == "generate_stream", fmt::format("/generate_stream: /{} answers exactly once", verb));
  if (const auto* error = std::get_if<ApiError>(&started)) return kserve_error(*error);
  auto& inference = std::get<KserveInference>(started);
  inference.reply.writer = std::move(inference.writer);
  return std::move(inference.reply);
}

// The parts of a path between slashes.
std::vector<std::string> split(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    path.remove_prefix(1);  // the slash
    const size_t end = std::min(path.find('/'), path.size());
    parts.push_back(percent_decode(path.substr(0, end)));
    path.remove_prefix(end);
  }
  return parts;
}

struct ModelPath {
  std::string model, version, verb;  // version: "" for the newest; verb: "" for the metadata
};

// models/NAME[/versions/N][/verb]; parts begin behind "v2".
std::optional<ModelPath> model_path(const std::vector<std::string>& parts) {
  if (parts.size() < 3 || parts[1] != "models" || parts[2].empty()) return {};
  ModelPath out{.model = parts[2], .version = {}, .verb = {}};
  size_t at = 3;
  if (parts.size() > at && parts[at] == "versions") {
    if (parts.size() <= at + 1 || parts[at + 1].empty()) return {};
    out.version = parts[at + 1];
    at += 2;
  }
  if (parts.size() > at) out.verb = parts[at++];
  if (parts.size() != at) return {};
  return out;
}

Reply model_request(ServerState& state, const HttpRequest& request, const ModelPath& path) {
  const bool get = request.method == "GET" || request.method == "HEAD", post = request.method == "POST";
  if (path.model == "stats" && path.verb.empty()) {
    if (!get) return {"/v2/models/stats", wrong_method("GET, HEAD")};
    std::vector<std::pair<ModelHandle, std::string>> all;
    for (const ModelHandle& m : state.models.all()) all.emplace_back(m, m->service().name);
    return {"/v2/models/stats", statistics(all)};
  }
  const auto found = find_kserve_model(state, path.model, path.version);
  if (const auto* error = std::get_if<ApiError>(&found)) {
    const bool missing = error->code == kNoSuchModel;
    return {"/v2/models/{m}", missing && path.verb == "ready" ? health(false) : kserve_error(*error)};
  }
  const ModelHandle& model = std::get<ModelHandle>(found);
  const auto answer = [&](std::string_view route, auto make) -> Reply {
    if (!get) return {route, wrong_method("GET, HEAD")};
    return {route, make()};
  };
  if (path.verb.empty()) return answer("/v2/models/{m}", [&] { return model_metadata(*model, path.model); });
  if (path.verb == "ready") return answer("/v2/models/{m}/ready", [&] { return health(is_ready(state, *model)); });
  if (path.verb == "config") return answer("/v2/models/{m}/config", [&] { return model_config(state, path.model); });
  if (path.verb == "stats") return answer("/v2/models/{m}/stats", [&] { return statistics({{model, path.model}}); });
  for (const std::string_view route :
       {"/v2/models/{m}/infer", "/v2/models/{m}/generate", "/v2/models/{m}/generate_stream"}) {
    if (route.substr(route.rfind('/') + 1) != path.verb) continue;
    if (!post) return {route, wrong_method("POST")};
    auto content = infer(state, request, model, path.model, path.verb);
    return {route, std::move(content)};
  }
  return {"other", refuse(404, "there is no such path")};
}

Reply load_request(ServerState& state, const HttpRequest& request, const std::string& name, bool load) {
  const std::string_view route = load ? "/v2/repository/models/{m}/load" : "/v2/repository/models/{m}/unload";
  if (request.method != "POST") return {route, wrong_method("POST")};
  if (!state.models.clients_may_load()) {
    return {route, refuse(503, "explicit model load / unload is not allowed: this server serves one model")};
  }
  if (auto refused = refuse_overrides(request)) return {route, *std::move(refused)};
  return {route, SlowReply([&state, name, load]() -> HttpResponse {
            const Status status = load ? state.models.load(name) : state.models.unload(name);
            if (!status) return kserve_error(status.error());
            return {.body = ""};
          })};
}

}  // namespace

std::variant<ApiError, ModelHandle> find_kserve_model(const ServerState& state, const std::string& name,
                                                      const std::string& version) {
  ModelHandle model = state.models.find(name);
  if (!model && !state.options.strict_model_name && !state.models.knows(name)) model = state.models.only();
  if (!model && (!state.ready || state.models.is_loading(state.models.knows(name) ? name : ""))) {
    return ApiError{.status = 503,
                    .message = state.ready ? "the model is being replaced" : "the model is still loading",
                    .code = "not_ready",
                    .retry_after = 5};
  }
  if (!model) {
    return ApiError{.status = 404,
                    .message = fmt::format("unknown model '{}'", name.substr(0, 256)),
                    .code = std::string(kNoSuchModel)};
  }
  if (version.empty() || version == model->loaded.version) return model;
  return ApiError{.status = 404,
                  .message = fmt::format("'{}' has version {}, not {}", name.substr(0, 256), model->loaded.version,
                                         version.substr(0, 32))};
}

std::variant<ApiError, KserveInference> start_kserve(ServerState& state, const HttpRequest& request,
                                                     const ModelHandle& served, const std::string& model,
                                                     const KserveMessage& message, KserveWriter::Form form,
                                                     bool can_stream, std::string_view remedy) {
  if (auto refused = cannot_infer(state, *served, model)) return *std::move(refused);
  auto call = read_kserve_call(message, served->service(), "v2-" + request.request_id, state.options.max_choices);
  if (!call) return kserve_api_error(call.error());
  if (call->stream && !can_stream) return ApiError{.message = fmt::format("'stream' needs {}", remedy)};
  if (auto refused = over_limit(state, request)) return *std::move(refused);
  KserveInference out{.reply = {.model = served, .requests = call->requests, .writer = nullptr}, .writer = nullptr};
  out.writer = std::make_unique<KserveWriter>(*std::move(call), model, served->loaded.version, form, served->stats);
  bill(state, request, out.reply);
  return out;
}

std::optional<Reply> handle_kserve(ServerState& state, const HttpRequest& request) {
  if (request.path != "/v2" && !request.path.starts_with("/v2/")) return {};
  const bool get = request.method == "GET" || request.method == "HEAD", post = request.method == "POST";
  const auto parts = split(request.path);
  const bool is_health = parts.size() == 3 && parts[1] == "health";
  if (!is_health && !authorized(state, request)) return Reply{"/v2", key_error()};
  if (parts.size() == 1) return Reply{"/v2", get ? server_metadata() : wrong_method("GET, HEAD")};
  if (is_health && (parts[2] == "live" || parts[2] == "ready")) {
    const auto models = state.models.all();
    const bool live = std::ranges::all_of(models, [](const ModelHandle& m) { return m->failure().empty(); });
    return Reply{"/v2/health", get ? health(parts[2] == "live" ? live : is_serving(state)) : wrong_method("GET, HEAD")};
  }
  if (const auto path = model_path(parts)) return model_request(state, request, *path);
  if (parts[1] == "repository") {
    const std::string& last = parts.back();
    if (last == "index" && parts.size() <= 4) {
      return Reply{"/v2/repository/index", post ? repository_index(state, request) : wrong_method("POST")};
    }
    // repository[/REPOSITORY]/models/NAME/load
    if ((last == "load" || last == "unload") && parts.size() >= 5 && parts[parts.size() - 3] == "models") {
      return load_request(state, request, parts[parts.size() - 2], last == "load");
    }
  }
  for (const std::string_view extension : {"systemsharedmemory", "cudasharedmemory", "trace", "logging"}) {
    if (parts[1] == extension) {
      return Reply{"other", refuse(501, fmt::format("the extension '{}' is not supported by this server", extension))};
    }
  }
  return Reply{"other", refuse(404, "there is no such path")};
}

}  // namespace pinion
