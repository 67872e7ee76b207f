// The tensors of the two forms that TensorRT-LLM's Triton models have: names, types and sizes.
#include <array>

#include "server/kserve_call.h"

namespace pinion {
namespace {

using enum KserveType;

constexpr std::array kTextInputs{
    KserveSignature{"text_input", bytes, 1, false},  //
    KserveSignature{"max_tokens", int32, 1, false},  //
    KserveSignature{"num_return_sequences", int32, 1},
    KserveSignature{"bad_words", bytes, -1},
    KserveSignature{"stop_words", bytes, -1},
    KserveSignature{"exclude_input_in_output", boolean, 1},
    KserveSignature{"end_id", int32, 1},
    KserveSignature{"pad_id", int32, 1},
    KserveSignature{"top_k", int32, 1},
    KserveSignature{"top_p", fp32, 1},
    KserveSignature{"min_p", fp32, 1},
    KserveSignature{"temperature", fp32, 1},
    KserveSignature{"length_penalty", fp32, 1},
    KserveSignature{"repetition_penalty", fp32, 1},
    KserveSignature{"min_tokens", int32, 1},
    KserveSignature{"presence_penalty", fp32, 1},
    KserveSignature{"frequency_penalty", fp32, 1},
    KserveSignature{"seed", uint64, 1},
    KserveSignature{"random_seed", uint64, 1},
    KserveSignature{"return_log_probs", boolean, 1},
    KserveSignature{"return_num_input_tokens", boolean, 1},
    KserveSignature{"return_num_output_tokens", boolean, 1},
    KserveSignature{"beam_width", int32, 1},
    KserveSignature{"stream", boolean, 1},
    KserveSignature{"embedding_bias_words", bytes, -1},
    KserveSignature{"embedding_bias_weights", fp32, -1},
};
constexpr std::array kIdInputs{
    KserveSignature{"input_ids", int32, -1, false},          //
    KserveSignature{"input_lengths", int32, 1, false},       //
    KserveSignature{"request_output_len", int32, 1, false},  //
    KserveSignature{"num_return_sequences", int32, 1},
    KserveSignature{"exclude_input_in_output", boolean, 1},
    KserveSignature{"end_id", int32, 1},
    KserveSignature{"pad_id", int32, 1},
    KserveSignature{"runtime_top_k", int32, 1},
    KserveSignature{"runtime_top_p", fp32, 1},
    KserveSignature{"temperature", fp32, 1},
    KserveSignature{"len_penalty", fp32, 1},
    KserveSignature{"repetition_penalty", fp32, 1},
    KserveSignature{"min_tokens", int32, 1},
    KserveSignature{"presence_penalty", fp32, 1},
    KserveSignature{"frequency_penalty", fp32, 1},
    KserveSignature{"seed", uint64, 1},
    KserveSignature{"random_seed", uint64, 1},
    KserveSignature{"return_log_probs", boolean, 1},
    KserveSignature{"beam_width", int32, 1},
    KserveSignature{"streaming", boolean, 1},
};
constexpr std::array kTextOutputs{
    KserveSignature{"text_output", bytes, -1},      KserveSignature{"batch_index", int32, 1},
    KserveSignature{"sequence_index", int32, 1},    KserveSignature{"cum_log_probs", fp32, -1},
    KserveSignature{"output_log_probs", fp32, -1},  KserveSignature{"num_input_tokens", int32, 1},
    KserveSignature{"num_output_tokens", int32, 1},
};
constexpr std::array kIdOutputs{
    KserveSignature{"output_ids", int32, -1},   KserveSignature{"sequence_length", int32, -1},
    KserveSignature{"batch_index", int32, 1},   KserveSignature{"sequence_index", int32, 1},
    KserveSignature{"cum_log_probs", fp32, -1}, KserveSignature{"output_log_probs", fp32, -1},
};

}  // namespace

std::span<const KserveSignature> kserve_inputs(bool ids) {
  return ids ? std::span<const KserveSignature>(kIdInputs) : kTextInputs;
}

std::span<const KserveSignature> kserve_outputs(bool ids) {
  return ids ? std::span<const KserveSignature>(kIdOutputs) : kTextOutputs;
}

}  // namespace pinion
