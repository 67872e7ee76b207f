// A ModelInfer request of the KServe v2 protocol with the tensors of TensorRT-LLM's Triton models, read into requests
// for the engine. Two forms, told apart by their inputs: text ("ensemble", "tensorrt_llm_bls": text_input, max_tokens,
// …) and token ids ("tensorrt_llm": input_ids, request_output_len, …).
//
// As TensorRT-LLM does: without top_k and top_p the choice is greedy; stop_words and bad_words are comma-separated when
// there is one string; unless exclude_input_in_output is set, an answer that does not stream begins with the prompt.
#pragma once

#include <optional>

#include "server/kserve_tensor.h"
#include "server/service.h"

namespace pinion {

struct KserveOutput {
  std::string name;
  bool binary = false;
};

struct KserveMessage {  // from JSON, JSON with binary data, or gRPC
  std::string id;
  std::vector<KserveTensor> inputs;
  OrderedJson parameters = OrderedJson::object();
  std::vector<KserveOutput> outputs;  // empty: all
  bool binary_outputs = false;        // of outputs that are not named
};

// Body of /infer: JSON, and behind it the tensors that "binary_data_size" announces.
Result<KserveMessage> read_infer_message(const OrderedJson& head, std::string_view binary);
// Body of /generate: an input's name, or a parameter's, to a scalar or a list.
Result<KserveMessage> read_generate_message(const OrderedJson& body);

struct KserveCall {
  std::string id;
  std::vector<Request> requests;  // by row of the batch, `choices` each
  int32_t rows = 1, choices = 1;
  bool stream = false, log_probs = false, ids = false;
  std::vector<std::vector<int32_t>> echo_ids;  // by row: what an answer begins with
  std::vector<std::string> echo_text;
  std::vector<KserveOutput> outputs;  // never empty
  bool wants(std::string_view output) const;
};

Result<KserveCall> read_kserve_call(const KserveMessage& message, const ModelService& model, const std::string& id,
                                    int32_t max_choices);

// For the metadata and the configuration: what the two forms take and give.
struct KserveSignature {
  std::string_view name;
  KserveType type;
  int64_t size;          // of one row: 1, or -1 where it varies
  bool optional = true;  // of inputs
};
std::span<const KserveSignature> kserve_inputs(bool ids);
std::span<const KserveSignature> kserve_outputs(bool ids);

}  // namespace pinion
