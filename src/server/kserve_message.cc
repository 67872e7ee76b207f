// The JSON bodies of /infer and /generate.
#include <fmt/format.h>

#include <algorithm>

#include "server/kserve_call.h"

namespace pinion {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 24;
constexpr size_t kMostTensors = 256;

Error bad(std::string_view what) {
  return fail(Errc::invalid_argument, what);
}

Result<std::string> name_of(const OrderedJson& tensor, std::string_view list) {
  if (!tensor.is_object() || !tensor.contains("name") || !tensor["name"].is_string()) {
    return bad(fmt::format("an entry of '{}' has no name", list));
  }
  return tensor["name"].get<std::string>();
}

// "parameters" of the message or of a tensor; an empty object when there are none.
Result<OrderedJson> parameters_of(const OrderedJson& object) {
  if (!object.contains("parameters") || object["parameters"].is_null()) return OrderedJson::object();
  if (!object["parameters"].is_object()) return bad("'parameters' is not an object");
  return object["parameters"];
}

Result<bool> flag(const OrderedJson& parameters, const char* name) {
  if (!parameters.contains(name)) return false;
  if (!parameters[name].is_boolean()) return bad(fmt::format("parameter '{}' is not a boolean", name));
  return parameters[name].get<bool>();
}

Status refuse_shared_memory(const OrderedJson& parameters) {
  for (const char* key : {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}) {
    if (parameters.contains(key)) return fail(Errc::unsupported, "shared memory is not supported by this server");
  }
  return {};
}

Result<KserveTensor> read_input(const OrderedJson& input, std::string_view& binary) {
  KserveTensor tensor;
  PINION_TRY(tensor.name, name_of(input, "inputs"));
  if (!input.contains("datatype") || !input["datatype"].is_string()) {
    return bad(fmt::format("input '{}' has no datatype", tensor.name));
  }
  PINION_TRY(tensor.type, parse_kserve_type(input["datatype"].get_ref<const std::string&>()));
  if (!input.contains("shape") || !input["shape"].is_array()) {
    return bad(fmt::format("input '{}' has no shape", tensor.name));
  }
  for (const OrderedJson& d : input["shape"]) {
    const bool fits = d.is_number_integer() && !(d.is_number_unsigned() && d.get<uint64_t>() > (uint64_t{1} << 62));
    if (!fits) return bad(fmt::format("input '{}': a size of the shape is not a whole number", tensor.name));
    tensor.shape.push_back(d.get<int64_t>());
  }
  PINION_OK(check_shape(tensor, kMostElements));
  PINION_TRY(const OrderedJson parameters, parameters_of(input));
  PINION_OK(refuse_shared_memory(parameters));
  if (parameters.contains("binary_data_size")) {
    const OrderedJson& size = parameters["binary_data_size"];
    if (!size.is_number_unsigned() || size.get<uint64_t>() > binary.size()) {
      return bad(fmt::format("input '{}': binary_data_size is more than the body holds", tensor.name));
    }
    PINION_OK(read_binary_values(tensor, binary.substr(0, size.get<uint64_t>())));
    binary.remove_prefix(size.get<uint64_t>());
    return tensor;
  }
  if (!input.contains("data")) return bad(fmt::format("input '{}' has no data", tensor.name));
  PINION_OK(read_json_values(tensor, input["data"]));
  return tensor;
}

// A value of /generate: a scalar or a list becomes one row.
Result<KserveTensor> generate_tensor(const KserveSignature& signature, const OrderedJson& value) {
  KserveTensor tensor{.name = std::string(signature.name), .type = signature.type, .shape = {1, 1}, .values = {}};
  const OrderedJson list = value.is_array() ? value : OrderedJson::array({value});
  if (signature.size == 1 && list.size() != 1) {
    return bad(fmt::format("input '{}': expected one value, got {}", signature.name, list.size()));
  }
  tensor.shape[1] = static_cast<int64_t>(list.size());
  PINION_OK(check_shape(tensor, kMostElements));
  PINION_OK(read_json_values(tensor, list));
  return tensor;
}

}  // namespace

Result<KserveMessage> read_infer_message(const OrderedJson& head, std::string_view binary) {
  KserveMessage message;
  if (head.contains("id") && !head["id"].is_string()) return bad("'id' is not a string");
  if (head.contains("id")) message.id = head["id"].get<std::string>();
  PINION_TRY(message.parameters, parameters_of(head));
  PINION_TRY(message.binary_outputs, flag(message.parameters, "binary_data_output"));
  if (!head.contains("inputs") || !head["inputs"].is_array()) return bad("the request has no 'inputs'");
  if (head["inputs"].size() > kMostTensors) return bad(fmt::format("more than {} inputs", kMostTensors));
  for (const OrderedJson& input : head["inputs"]) {
    PINION_TRY(KserveTensor tensor, read_input(input, binary));
    if (std::ranges::find(message.inputs, tensor.name, &KserveTensor::name) != message.inputs.end()) {
      return bad(fmt::format("input '{}' is given twice", tensor.name));
    }
    message.inputs.push_back(std::move(tensor));
  }
  if (!binary.empty()) return bad(fmt::format("{} bytes behind the last tensor", binary.size()));
  if (!head.contains("outputs")) return message;
  if (!head["outputs"].is_array() || head["outputs"].size() > kMostTensors)
    return bad("'outputs' is not a short array");
  for (const OrderedJson& output : head["outputs"]) {
    KserveOutput wanted;
    PINION_TRY(wanted.name, name_of(output, "outputs"));
    PINION_TRY(const OrderedJson parameters, parameters_of(output));
    PINION_OK(refuse_shared_memory(parameters));
    if (parameters.contains("classification")) {
      return fail(Errc::unsupported, "the classification extension is not supported by this server");
    }
    wanted.binary = message.binary_outputs;
    if (parameters.contains("binary_data")) {
      PINION_TRY(wanted.binary, flag(parameters, "binary_data"));
    }
    message.outputs.push_back(std::move(wanted));
  }
  return message;
}

Result<KserveMessage> read_generate_message(const OrderedJson& body) {
  KserveMessage message;
  if (body.contains("id") && !body["id"].is_string()) return bad("'id' is not a string");
  if (body.contains("id")) message.id = body["id"].get<std::string>();
  PINION_TRY(const OrderedJson nested, parameters_of(body));
  const auto inputs = kserve_inputs(body.contains("input_ids"));
  for (const OrderedJson* object : {&body, &nested}) {
    for (auto it = object->begin(); it != object->end(); ++it) {
      const std::string& key = it.key();
      if (object == &body && (key == "id" || key == "parameters")) continue;
      if (it.value().is_null()) continue;
      const auto signature = std::ranges::find(inputs, key, &KserveSignature::name);
      if (signature == inputs.end()) {
        if (it.value().is_structured())
          return bad(fmt::format("parameter '{}' is not a string, number or boolean", key));
        message.parameters[key] = it.value();
        continue;
      }
      if (std::ranges::find(message.inputs, key, &KserveTensor::name) != message.inputs.end()) {
        return bad(fmt::format("input '{}' is given twice", key));
      }
      PINION_TRY(KserveTensor tensor, generate_tensor(*signature, it.value()));
      message.inputs.push_back(std::move(tensor));
    }
  }
  return message;
}

}  // namespace pinion
