#include "server/grpc_message.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "base/check.h"
#include "server/kserve.pb.h"

namespace pinion {
namespace {

namespace pb = ::inference;
using google::protobuf::Message;

constexpr JsonLimits kAnswerLimits{.bytes = size_t{1} << 30, .depth = 100};

template <class Parameters>
OrderedJson parameters_json(const Parameters& parameters) {
  OrderedJson out = OrderedJson::object();
  for (const auto& [name, value] : parameters) {
    if (value.has_bool_param()) out[name] = value.bool_param();
    if (value.has_string_param()) out[name] = value.string_param();
    if (value.has_int64_param() && value.int64_param() < 0) out[name] = value.int64_param();
    if (value.has_int64_param() && value.int64_param() >= 0) out[name] = static_cast<uint64_t>(value.int64_param());
    if constexpr (requires { value.double_param(); }) {
      if (value.has_double_param()) out[name] = value.double_param();
      if (value.has_uint64_param()) out[name] = value.uint64_param();
    } else {
      if (value.has_bytes_param()) out[name] = "(bytes)";  // the names alone matter: no load takes any
    }
  }
  return out;
}

// The values that the datatype says; those of other types are not looked at.
OrderedJson contents_json(const pb::InferTensorContents& contents, std::string_view datatype) {
  const auto list = [](const auto& values) {
    OrderedJson out = OrderedJson::array();
    for (const auto& value : values) out.push_back(value);
    return out;
  };
  if (datatype == "BOOL") return list(contents.bool_contents());
  if (datatype == "INT64") return list(contents.int64_contents());
  if (datatype == "UINT64") return list(contents.uint64_contents());
  if (datatype == "FP32") return list(contents.fp32_contents());
  if (datatype == "FP64") return list(contents.fp64_contents());
  if (datatype == "BYTES") return list(contents.bytes_contents());
  return datatype.starts_with("U") ? list(contents.uint_contents()) : list(contents.int_contents());
}

void fill(pb::ModelInferResponse& out, const GrpcInferResponse& response) {
  out.set_model_name(std::string(response.model));
  out.set_model_version(std::string(response.version));
  out.set_id(std::string(response.id));
  if (response.final) (*out.mutable_parameters())["triton_final_response"].set_bool_param(*response.final);
  for (const KserveTensor& tensor : response.tensors) {
    auto& t = *out.add_outputs();
    t.set_name(tensor.name);
    t.set_datatype(std::string(name(tensor.type)));
    for (const int64_t d : tensor.shape) t.add_shape(d);
    out.add_raw_output_contents(binary_values(tensor));
  }
}

// A name as one part of a path.
std::string part(const std::string& name) {
  std::string out;
  for (const char c : name) out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  return out;
}

HttpRequest get(std::string path) {
  HttpRequest out;
  out.method = "GET";
  out.path = std::move(path);
  return out;
}

template <class Request>
HttpRequest get_model(const Request& request, std::string_view verb) {
  const std::string version = request.version().empty() ? "" : "/versions/" + part(request.version());
  return get(fmt::format("/v2/models/{}{}{}", part(request.name()), version, verb));
}

HttpRequest post(std::string path, const OrderedJson& body) {
  HttpRequest out;
  out.method = "POST";
  out.path = std::move(path);
  out.body = dump(body);
  return out;
}

template <class Request>
HttpRequest post_model(const Request& request, std::string_view verb) {
  OrderedJson body = OrderedJson::object();
  body["parameters"] = parameters_json(request.parameters());
  return post(fmt::format("/v2/repository/models/{}/{}", part(request.model_name()), verb), body);
}

HttpRequest to_http(const pb::ServerLiveRequest&) {
  return get("/v2/health/live");
}
HttpRequest to_http(const pb::ServerReadyRequest&) {
  return get("/v2/health/ready");
}
HttpRequest to_http(const pb::HealthCheckRequest&) {
  return get("/v2/health/ready");
}
HttpRequest to_http(const pb::ModelReadyRequest& r) {
  return get_model(r, "/ready");
}
HttpRequest to_http(const pb::ServerMetadataRequest&) {
  return get("/v2");
}
HttpRequest to_http(const pb::ModelMetadataRequest& r) {
  return get_model(r, "");
}
HttpRequest to_http(const pb::ModelConfigRequest& r) {
  return get_model(r, "/config");
}
HttpRequest to_http(const pb::ModelStatisticsRequest& r) {
  return r.name().empty() ? get("/v2/models/stats") : get_model(r, "/stats");
}
HttpRequest to_http(const pb::RepositoryIndexRequest& r) {
  OrderedJson body;
  body["ready"] = r.ready();
  return post("/v2/repository/index", body);
}
HttpRequest to_http(const pb::RepositoryModelLoadRequest& r) {
  return post_model(r, "load");
}
HttpRequest to_http(const pb::RepositoryModelUnloadRequest& r) {
  return post_model(r, "unload");
}

// How REST's answer becomes the message's JSON.
enum class Shape : uint8_t { same, live, ready, health, config, models, nothing };

// REST answers these by the status alone.
std::optional<OrderedJson> of_status(Shape shape, bool good) {
  switch (shape) {
    case Shape::live:
      return OrderedJson{{"live", good}};
    case Shape::ready:
      return OrderedJson{{"ready", good}};
    case Shape::health:
      return OrderedJson{{"status", good ? 1 : 2}};
    default:
      return {};
  }
}

ApiError error_of(const HttpResponse& response) {
  ApiError out{.status = response.status, .message = "the request was refused"};
  const auto body = parse_ordered_json(response.body, "answer", kAnswerLimits);
  if (!body || !body->is_object() || !body->contains("error")) return out;
  const OrderedJson& error = (*body)["error"];
  if (error.is_string()) out.message = error.get<std::string>();
  if (error.is_object() && error.contains("message")) out.message = error["message"].get<std::string>();
  return out;
}

template <class Request>
std::optional<HttpRequest> request_of(std::string_view bytes) {
  Request message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return {};
  return to_http(message);
}

template <class Response, Shape shape>
std::variant<std::string, ApiError> answer_of(const HttpResponse& response) {
  const bool good = response.status == 200;
  OrderedJson json;
  if (auto status = of_status(shape, good); status && (good || response.status == 400)) {
    json = *std::move(status);
  } else if (!good) {
    return error_of(response);
  } else if (shape != Shape::nothing) {
    auto body = parse_ordered_json(response.body, "answer", kAnswerLimits);
    check(body.ok(), "an answer of ours is not JSON");
    if (shape == Shape::same) json = *std::move(body);
    if (shape == Shape::config) json["config"] = *std::move(body);
    if (shape == Shape::models) json["models"] = *std::move(body);
  }
  Response message;
  if (!json.is_null()) {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    const auto status = google::protobuf::util::JsonStringToMessage(dump(json), &message, options);
    check(status.ok(), "an answer of ours does not fit its message: " + status.ToString());
  }
  return message.SerializeAsString();
}

template <class Request, class Response, Shape shape = Shape::same>
constexpr GrpcMethod method(std::string_view path) {
  return {.path = path, .request = request_of<Request>, .answer = answer_of<Response, shape>};
}

constexpr GrpcMethod kMethods[] = {
    method<pb::ServerLiveRequest, pb::ServerLiveResponse, Shape::live>("/inference.GRPCInferenceService/ServerLive"),
    method<pb::ServerReadyRequest, pb::ServerReadyResponse, Shape::ready>(
        "/inference.GRPCInferenceService/ServerReady"),
    method<pb::ModelReadyRequest, pb::ModelReadyResponse, Shape::ready>("/inference.GRPCInferenceService/ModelReady"),
    method<pb::ServerMetadataRequest, pb::ServerMetadataResponse>("/inference.GRPCInferenceService/ServerMetadata"),
    method<pb::ModelMetadataRequest, pb::ModelMetadataResponse>("/inference.GRPCInferenceService/ModelMetadata"),
    method<pb::ModelConfigRequest, pb::ModelConfigResponse, Shape::config>(
        "/inference.GRPCInferenceService/ModelConfig"),
    method<pb::ModelStatisticsRequest, pb::ModelStatisticsResponse>("/inference.GRPCInferenceService/ModelStatistics"),
    method<pb::RepositoryIndexRequest, pb::RepositoryIndexResponse, Shape::models>(
        "/inference.GRPCInferenceService/RepositoryIndex"),
    method<pb::RepositoryModelLoadRequest, pb::RepositoryModelLoadResponse, Shape::nothing>(  //
        "/inference.GRPCInferenceService/RepositoryModelLoad"),
    method<pb::RepositoryModelUnloadRequest, pb::RepositoryModelUnloadResponse, Shape::nothing>(  //
        "/inference.GRPCInferenceService/RepositoryModelUnload"),
    method<pb::HealthCheckRequest, pb::HealthCheckResponse, Shape::health>("/grpc.health.v1.Health/Check"),
};

struct Unimplemented {
  std::string_view prefix, extension;
};
constexpr Unimplemented kUnimplemented[] = {
    {"/inference.GRPCInferenceService/SystemSharedMemory", "system shared memory"},
    {"/inference.GRPCInferenceService/CudaSharedMemory", "CUDA shared memory"},
    {"/inference.GRPCInferenceService/TraceSetting", "trace settings"},
    {"/inference.GRPCInferenceService/LogSettings", "log settings"},
};

}  // namespace

Result<GrpcInferRequest> read_grpc_infer(std::string_view bytes, std::string& id) {
  pb::ModelInferRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return fail(Errc::invalid_argument, "the message is not a ModelInferRequest");
  }
  id = request.id();
  const bool raw = request.raw_input_contents_size() > 0;
  if (raw && request.raw_input_contents_size() != request.inputs_size()) {
    return fail(Errc::invalid_argument,
                fmt::format("{} raw contents for {} inputs", request.raw_input_contents_size(), request.inputs_size()));
  }
  OrderedJson head;
  std::string binary;
  head["id"] = request.id();
  head["parameters"] = parameters_json(request.parameters());
  head["inputs"] = OrderedJson::array();
  for (int i = 0; i < request.inputs_size(); ++i) {
    const auto& input = request.inputs(i);
    OrderedJson json;
    json["name"] = input.name();
    json["datatype"] = input.datatype();
    json["shape"] = OrderedJson::array();
    for (const int64_t d : input.shape()) json["shape"].push_back(d);
    json["parameters"] = parameters_json(input.parameters());
    json["parameters"].erase("binary_data_size");  // REST's, where the tensor lies; here the message says it
    if (raw) {
      json["parameters"]["binary_data_size"] = request.raw_input_contents(i).size();
      binary += request.raw_input_contents(i);
    } else {
      json["data"] = contents_json(input.contents(), input.datatype());
    }
    head["inputs"].push_back(std::move(json));
  }
  head["outputs"] = OrderedJson::array();
  for (const auto& output : request.outputs()) {
    OrderedJson json;
    json["name"] = output.name();
    json["parameters"] = parameters_json(output.parameters());
    head["outputs"].push_back(std::move(json));
  }
  GrpcInferRequest out{.model = request.model_name(), .version = request.model_version(), .id = id, .message = {}};
  PINION_TRY(out.message, read_infer_message(head, binary));
  const OrderedJson& parameters = out.message.parameters;
  out.empty_final = parameters.contains("triton_enable_empty_final_response") &&
                    parameters["triton_enable_empty_final_response"] == true;
  return out;
}

std::string grpc_infer_response(const GrpcInferResponse& response) {
  pb::ModelInferResponse out;
  fill(out, response);
  return out.SerializeAsString();
}

std::string grpc_stream_response(const GrpcInferResponse& response) {
  pb::ModelStreamInferResponse out;
  fill(*out.mutable_infer_response(), response);
  return out.SerializeAsString();
}

std::string grpc_stream_error(std::string_view id, std::string_view text) {
  pb::ModelStreamInferResponse out;
  out.set_error_message(std::string(text));
  out.mutable_infer_response()->set_id(std::string(id));
  return out.SerializeAsString();
}

const GrpcMethod* find_grpc_method(std::string_view path) {
  const auto* found = std::ranges::find(kMethods, path, &GrpcMethod::path);
  return found == std::end(kMethods) ? nullptr : found;
}

std::string_view unimplemented_grpc_extension(std::string_view path) {
  for (const Unimplemented& row : kUnimplemented) {
    if (path.starts_with(row.prefix)) return row.extension;
  }
  return {};
}

}  // namespace pinion
