#include "server/kserve.h"

#include <fmt/format.h>

#include <charconv>

#include "server/kserve_writer.h"

namespace pinion {
namespace {

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

bool is_ready(const ServerState& state) {
  return state.ready && !state.draining && state.service.generator->failure().empty();
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
  out["version"] = "0.1.0";
  out["extensions"] = {"binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"};
  return json(out);
}

HttpResponse model_metadata(std::string_view model) {
  OrderedJson out;
  out["name"] = model;
  out["versions"] = {"1"};
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

HttpResponse statistics(const ServerState& state, std::string_view model) {
  const KserveStats& s = state.kserve;
  OrderedJson row;
  row["name"] = model;
  row["version"] = "1";
  row["last_inference"] = s.last_ms.load();
  row["inference_count"] = s.sequences.load();
  row["execution_count"] = s.success.load();
  row["inference_stats"]["success"] = duration(s.success, s.success_ns);
  row["inference_stats"]["fail"] = duration(s.failed, s.failed_ns);
  OrderedJson out;
  out["model_stats"] = OrderedJson::array({row});
  return json(out);
}

HttpResponse repository_index(const ServerState& state) {
  OrderedJson row;
  row["name"] = state.service.name;
  row["version"] = "1";
  row["state"] = is_ready(state) ? "READY" : "UNAVAILABLE";
  row["reason"] = is_ready(state) ? "" : "not ready";
  return json(OrderedJson::array({row}));
}

using Content = std::variant<HttpResponse, GenerationReply>;

Content infer(ServerState& state, const HttpRequest& request, std::string model, std::string_view verb) {
  if (!is_ready(state)) return refuse(503, "the server is not ready");
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
  auto call = read_kserve_call(*message, state.service, "v2-" + request.request_id, state.options.max_choices);
  if (!call) return kserve_error(call.error());
  if (call->stream && verb != "generate_stream") {
    return refuse(400, fmt::format("'stream' needs /generate_stream: /{} answers exactly once", verb));
  }
  GenerationReply reply;
  reply.requests = call->requests;
  reply.writer =
      std::make_unique<KserveWriter>(*std::move(call), std::move(model),
                                     tensors ? KserveWriter::Form::infer : KserveWriter::Form::generate, state.kserve);
  return reply;
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
  std::string model, verb;  // verb: "" for the metadata
};

// models/NAME[/versions/N][/verb]; parts begin behind "v2".
std::optional<ModelPath> model_path(const std::vector<std::string>& parts) {
  if (parts.size() < 3 || parts[1] != "models" || parts[2].empty()) return {};
  ModelPath out{.model = parts[2], .verb = {}};
  size_t at = 3;
  if (parts.size() > at && parts[at] == "versions") {
    if (parts.size() <= at + 1) return {};
    if (parts[at + 1] != "1") return {};
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
    return {"/v2/models/stats", statistics(state, state.service.name)};
  }
  if (state.options.strict_model_name && path.model != state.service.name) {
    return {"/v2/models/{m}",
            refuse(404, fmt::format("unknown model '{}': this server has '{}'", path.model, state.service.name))};
  }
  const auto answer = [&](std::string_view route, auto make) -> Reply {
    if (!get) return {route, wrong_method("GET, HEAD")};
    return {route, make()};
  };
  if (path.verb.empty()) return answer("/v2/models/{m}", [&] { return model_metadata(path.model); });
  if (path.verb == "ready") return answer("/v2/models/{m}/ready", [&] { return health(is_ready(state)); });
  if (path.verb == "config") return answer("/v2/models/{m}/config", [&] { return model_config(state, path.model); });
  if (path.verb == "stats") return answer("/v2/models/{m}/stats", [&] { return statistics(state, path.model); });
  for (const std::string_view route :
       {"/v2/models/{m}/infer", "/v2/models/{m}/generate", "/v2/models/{m}/generate_stream"}) {
    if (route.substr(route.rfind('/') + 1) != path.verb) continue;
    if (!post) return {route, wrong_method("POST")};
    auto content = infer(state, request, path.model, path.verb);
    return {route, std::move(content)};
  }
  return {"other", refuse(404, "there is no such path")};
}

}  // namespace

std::optional<Reply> handle_kserve(ServerState& state, const HttpRequest& request) {
  if (request.path != "/v2" && !request.path.starts_with("/v2/")) return {};
  const bool get = request.method == "GET" || request.method == "HEAD", post = request.method == "POST";
  const auto parts = split(request.path);
  const bool is_health = parts.size() == 3 && parts[1] == "health";
  if (!is_health && !authorized(state, request)) return Reply{"/v2", key_error()};
  if (parts.size() == 1) return Reply{"/v2", get ? server_metadata() : wrong_method("GET, HEAD")};
  if (is_health && (parts[2] == "live" || parts[2] == "ready")) {
    const bool good = parts[2] == "live" ? state.service.generator->failure().empty() : is_ready(state);
    return Reply{"/v2/health", get ? health(good) : wrong_method("GET, HEAD")};
  }
  if (const auto path = model_path(parts)) return model_request(state, request, *path);
  if (parts[1] == "repository") {
    const std::string& last = parts.back();
    if (last == "index" && parts.size() <= 4) {
      return Reply{"/v2/repository/index", post ? repository_index(state) : wrong_method("POST")};
    }
    if ((last == "load" || last == "unload") && parts.size() >= 5) {
      return Reply{"/v2/repository/models/{m}/load",
                   post ? refuse(503, "explicit model load / unload is not allowed: this server serves one model")
                        : wrong_method("POST")};
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
