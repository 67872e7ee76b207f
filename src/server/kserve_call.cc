#include "server/kserve_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace pinion {
namespace {

constexpr size_t kMostWords = 64, kMostWordBytes = 256;

Error bad(std::string_view what) {
  return fail(Errc::invalid_argument, what);
}

// Inputs of TensorRT-LLM's models that would change the answer and are not implemented: taken while they say nothing,
// otherwise refused by name.
struct Unsupported {
  std::string_view name;
  double harmless;
};
constexpr std::array kUnsupported{Unsupported{"beam_width", 1},
                                  Unsupported{"length_penalty", 1},
                                  Unsupported{"len_penalty", 1},
                                  Unsupported{"return_context_logits", 0},
                                  Unsupported{"return_generation_logits", 0},
                                  Unsupported{"return_perf_metrics", 0},
                                  Unsupported{"stop", 0}};

// The inputs by row of the batch.
class Inputs {
 public:
  Inputs(const KserveMessage& message, int64_t rows) : message_(message), rows_(rows) {}

  const KserveTensor* find(std::string_view name) const {
    const auto it = std::ranges::find(message_.inputs, name, &KserveTensor::name);
    return it == message_.inputs.end() ? nullptr : &*it;
  }

  // The row's one value; null when the input is absent.
  Result<std::optional<double>> number(std::string_view name, int64_t row, double least, double most) const {
    const KserveTensor* tensor = find(name);
    if (tensor == nullptr) return std::optional<double>();
    if (tensor->count() != rows_) {
      return bad(fmt::format("input '{}': {} elements for {} rows", name, tensor->count(), rows_));
    }
    double value = 0;
    if (const auto* reals = std::get_if<std::vector<double>>(&tensor->values)) {
      value = (*reals)[static_cast<size_t>(row)];
    } else if (const auto* whole = std::get_if<std::vector<int64_t>>(&tensor->values)) {
      value = static_cast<double>((*whole)[static_cast<size_t>(row)]);
    } else {
      return bad(fmt::format("input '{}': expected numbers", name));
    }
    if (!(value >= least && value <= most)) {
      return bad(fmt::format("input '{}': {} is not between {} and {}", name, value, least, most));
    }
    return std::optional<double>(value);
  }

  Result<bool> boolean(std::string_view name, int64_t row) const {
    PINION_TRY(const std::optional<double> value, number(name, row, 0, 1));
    return value.value_or(0) != 0;
  }

  Result<std::optional<uint64_t>> seed(int64_t row) const {
    const KserveTensor* tensor = find("seed") != nullptr ? find("seed") : find("random_seed");
    if (tensor == nullptr) return std::optional<uint64_t>();
    const auto* whole = std::get_if<std::vector<int64_t>>(&tensor->values);
    if (whole == nullptr || tensor->count() != rows_) return bad("input 'seed': expected one whole number a row");
    return std::optional<uint64_t>(static_cast<uint64_t>((*whole)[static_cast<size_t>(row)]));
  }

  // The row's elements of an input whose first size is the batch.
  template <class T>
  Result<std::span<const T>> list(std::string_view name, int64_t row) const {
    const KserveTensor* tensor = find(name);
    if (tensor == nullptr) return std::span<const T>();
    const auto* values = std::get_if<std::vector<T>>(&tensor->values);
    if (values == nullptr)
      return bad(fmt::format("input '{}' has the wrong datatype {}", name, pinion::name(tensor->type)));
    if (tensor->count() % rows_ != 0 || (rows_ > 1 && tensor->shape[0] != rows_)) {
      return bad(fmt::format("input '{}': its first size is not the batch's {}", name, rows_));
    }
    const auto each = static_cast<size_t>(tensor->count() / rows_);
    return std::span<const T>(*values).subspan(static_cast<size_t>(row) * each, each);
  }

 private:
  const KserveMessage& message_;
  const int64_t rows_;
};

// One string is a comma-separated list, several are one word each; an empty string is none.
Result<std::vector<std::string>> read_words(const Inputs& inputs, std::string_view name, int64_t row) {
  PINION_TRY(const auto given, inputs.list<std::string>(name, row));
  std::vector<std::string> words;
  for (const std::string& text : given) {
    if (given.size() > 1) {
      words.push_back(text);
      continue;
    }
    for (size_t at = 0; at <= text.size();) {
      const size_t comma = std::min(text.find(',', at), text.size());
      words.push_back(text.substr(at, comma - at));
      at = comma + 1;
    }
  }
  std::erase(words, "");
  if (words.size() > kMostWords) return bad(fmt::format("input '{}': more than {} words", name, kMostWords));
  for (const std::string& w : words) {
    if (w.size() > kMostWordBytes)
      return bad(fmt::format("input '{}': a word of more than {} bytes", name, kMostWordBytes));
  }
  return words;
}

Status read_choice(const Inputs& inputs, int64_t row, bool ids, SamplingParams& s) {
  constexpr double kInt = std::numeric_limits<int32_t>::max();
  PINION_TRY(const auto top_k, inputs.number(ids ? "runtime_top_k" : "top_k", row, -1, kInt));
  PINION_TRY(const auto top_p, inputs.number(ids ? "runtime_top_p" : "top_p", row, 0, 1));
  PINION_TRY(const auto min_p, inputs.number("min_p", row, 0, 1));
  PINION_TRY(const auto temperature, inputs.number("temperature", row, 0, 100));
  s.top_k = static_cast<int32_t>(std::max(0.0, top_k.value_or(0)));
  s.top_p = top_p.value_or(0) > 0 ? static_cast<float>(*top_p) : 1;
  s.min_p = static_cast<float>(min_p.value_or(0));
  const bool greedy = s.top_k == 0 && top_p.value_or(0) == 0 && s.min_p == 0;
  s.temperature = greedy ? 0 : static_cast<float>(temperature.value_or(1));
  PINION_TRY(const auto repetition, inputs.number("repetition_penalty", row, 1e-3, 100));
  PINION_TRY(const auto presence, inputs.number("presence_penalty", row, -2, 2));
  PINION_TRY(const auto frequency, inputs.number("frequency_penalty", row, -2, 2));
  s.repetition_penalty = static_cast<float>(repetition.value_or(1));
  s.presence_penalty = static_cast<float>(presence.value_or(0));
  s.frequency_penalty = static_cast<float>(frequency.value_or(0));
  PINION_TRY(s.seed, inputs.seed(row));
  return {};
}

Status read_ends(const Inputs& inputs, int64_t row, const ModelService& model, SamplingParams& s) {
  PINION_TRY(const auto end, inputs.number("end_id", row, -1, model.vocab_size - 1));
  if (end == -1) s.ignore_eos = true;
  if (end.value_or(-1) >= 0) s.stop_token_ids.push_back(static_cast<int32_t>(*end));
  PINION_TRY(s.stop, read_words(inputs, "stop_words", row));
  PINION_TRY(const auto words, read_words(inputs, "bad_words", row));
  for (const std::string& word : words) {
    for (const std::string prefix : {"", " "}) {  // as it is spelled at a text's start and behind a space
      auto tokens = model.text->encode(prefix + word, false);
      if (!tokens.empty()) s.bad_words.push_back(std::move(tokens));
    }
  }
  PINION_TRY(const auto biased, inputs.list<std::string>("embedding_bias_words", row));
  PINION_TRY(const auto weights, inputs.list<double>("embedding_bias_weights", row));
  if (biased.size() != weights.size()) return bad("'embedding_bias_words' and 'embedding_bias_weights' differ in size");
  for (size_t i = 0; i < biased.size(); ++i) {
    if (!(std::abs(weights[i]) <= 100)) return bad("input 'embedding_bias_weights': not between -100 and 100");
    for (const int32_t token : model.text->encode(biased[i], false)) {
      s.logit_bias.emplace_back(token, static_cast<float>(weights[i]));
    }
  }
  return {};
}

Result<std::vector<int32_t>> read_prompt(const Inputs& inputs, int64_t row, bool ids, const ModelService& model) {
  std::vector<int32_t> prompt;
  if (ids) {
    PINION_TRY(const auto tokens, inputs.list<int64_t>("input_ids", row));
    PINION_TRY(const auto length, inputs.number("input_lengths", row, 1, static_cast<double>(tokens.size())));
    for (size_t i = 0; i < static_cast<size_t>(length.value_or(static_cast<double>(tokens.size()))); ++i) {
      if (tokens[i] < 0 || tokens[i] >= model.vocab_size) {
        return bad(fmt::format("input 'input_ids': not a token id from 0 to {}", model.vocab_size - 1));
      }
      prompt.push_back(static_cast<int32_t>(tokens[i]));
    }
  } else {
    PINION_TRY(const auto text, inputs.list<std::string>("text_input", row));
    if (text.size() != 1) return bad(fmt::format("input 'text_input': {} strings in a row, expected 1", text.size()));
    if (!text[0].empty()) prompt = model.text->encode(text[0], true);
  }
  if (prompt.empty()) return bad(fmt::format("input '{}' is empty", ids ? "input_ids" : "text_input"));
  return prompt;
}

Status check_names(const KserveMessage& message, const Inputs& inputs, int64_t rows, bool ids) {
  for (const KserveTensor& tensor : message.inputs) {
    const auto known = kserve_inputs(ids);
    const auto unsupported = std::ranges::find(kUnsupported, tensor.name, &Unsupported::name);
    if (unsupported != kUnsupported.end()) {
      for (int64_t row = 0; row < rows; ++row) {
        PINION_TRY(const auto value, inputs.number(tensor.name, row, -1e9, 1e9));
        if (value != unsupported->harmless) {
          return fail(Errc::unsupported, fmt::format("input '{}' is not supported by this server", tensor.name));
        }
      }
    } else if (std::ranges::find(known, tensor.name, &KserveSignature::name) == known.end()) {
      return bad(fmt::format("unexpected input '{}'", tensor.name));
    }
  }
  return {};
}

Status read_outputs(const KserveMessage& message, KserveCall& call) {
  const auto known = kserve_outputs(call.ids);
  for (const KserveOutput& o : message.outputs) {
    if (std::ranges::find(known, o.name, &KserveSignature::name) == known.end()) {
      return bad(fmt::format("unexpected output '{}'", o.name));
    }
    const bool scores = o.name == "cum_log_probs" || o.name == "output_log_probs";
    if (scores && !call.log_probs) return bad(fmt::format("output '{}' needs return_log_probs", o.name));
  }
  call.outputs = message.outputs;
  if (!call.outputs.empty()) return {};
  const Inputs inputs(message, call.rows);
  for (const KserveSignature& o : known) {
    if (o.name.ends_with("log_probs") && !call.log_probs) continue;
    if (o.name.starts_with("num_")) {  // num_input_tokens: when return_num_input_tokens is set
      PINION_TRY(const bool wanted, inputs.boolean("return_" + std::string(o.name), 0));
      if (!wanted) continue;
    }
    call.outputs.push_back({std::string(o.name), message.binary_outputs});
  }
  return {};
}

// "priority" of the protocol: 0 the default, else 1 is the highest.
Result<int32_t> read_priority(const KserveMessage& message) {
  if (!message.parameters.contains("priority")) return 0;
  const OrderedJson& p = message.parameters["priority"];
  if (!p.is_number_unsigned() || p.get<uint64_t>() > 1'000'000)
    return bad("parameter 'priority' is not a small number");
  return -p.get<int32_t>();
}

}  // namespace

bool KserveCall::wants(std::string_view output) const {
  return std::ranges::find(outputs, output, &KserveOutput::name) != outputs.end();
}

Result<KserveCall> read_kserve_call(const KserveMessage& message, const ModelService& model, const std::string& id,
                                    int32_t max_choices) {
  const Inputs any(message, 1);
  KserveCall call{.id = message.id};
  call.ids = any.find("input_ids") != nullptr;
  const KserveTensor* prompts = call.ids ? any.find("input_ids") : any.find("text_input");
  if (prompts == nullptr) return bad("the request has neither 'text_input' nor 'input_ids'");
  if (prompts->count() == 0) return bad(fmt::format("input '{}' is empty", prompts->name));
  const int64_t rows = prompts->shape.size() > 1 ? prompts->shape[0] : 1;
  const Inputs inputs(message, rows);
  PINION_OK(check_names(message, inputs, rows, call.ids));
  PINION_TRY(const auto choices, inputs.number("num_return_sequences", 0, 1, max_choices));
  call.choices = static_cast<int32_t>(choices.value_or(1));
  if (rows * call.choices > max_choices) {
    return bad(fmt::format("{} sequences in one request, at most {} are allowed", rows * call.choices, max_choices));
  }
  call.rows = static_cast<int32_t>(rows);
  PINION_TRY(call.stream, inputs.boolean(call.ids ? "streaming" : "stream", 0));
  PINION_TRY(call.log_probs, inputs.boolean("return_log_probs", 0));
  PINION_TRY(const int32_t priority, read_priority(message));
  PINION_OK(read_outputs(message, call));

  for (int64_t row = 0; row < rows; ++row) {
    PINION_TRY(const std::vector<int32_t> prompt, read_prompt(inputs, row, call.ids, model));
    SamplingParams sampling{};
    PINION_OK(read_choice(inputs, row, call.ids, sampling));
    PINION_OK(read_ends(inputs, row, model, sampling));
    const std::string_view wanted = call.ids ? "request_output_len" : "max_tokens";
    PINION_TRY(const auto most, inputs.number(wanted, row, 1, model.max_seq_len));
    if (!most) return bad(fmt::format("input '{}' is missing", wanted));
    if (static_cast<int64_t>(prompt.size()) + static_cast<int64_t>(*most) > model.max_seq_len) {
      return bad(fmt::format("the prompt has {} tokens and {} are asked for, the model's limit is {} for both together",
                             prompt.size(), *most, model.max_seq_len));
    }
    sampling.max_tokens = static_cast<int32_t>(*most);
    PINION_TRY(const auto least, inputs.number("min_tokens", row, 0, *most));
    sampling.min_tokens = static_cast<int32_t>(least.value_or(0));
    if (call.log_probs) sampling.logprobs = 0;
    PINION_TRY(const auto exclude, inputs.number("exclude_input_in_output", row, 0, 1));
    const bool answer_only = exclude ? *exclude != 0 : model.exclude_input;
    const bool echo = !answer_only && !call.stream;
    call.echo_ids.push_back(echo ? prompt : std::vector<int32_t>());
    call.echo_text.push_back(echo && !call.ids ? model.text->decode(prompt, true) : "");
    for (int32_t j = 0; j < call.choices; ++j) {
      Request request{.id = fmt::format("{}-{}", id, call.requests.size()),
                      .prompt = prompt,
                      .sampling = sampling,
                      .priority = priority,
                      .cache_salt = {}};
      if (sampling.seed) request.sampling.seed = *sampling.seed + static_cast<uint64_t>(j);
      call.requests.push_back(std::move(request));
    }
  }
  return call;
}

}  // namespace pinion
