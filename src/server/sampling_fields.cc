#include "server/sampling_fields.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace pinion {
namespace {

constexpr size_t max_stop_strings = 16, max_stop_bytes = 256, max_stop_tokens = 128, max_bias = 1024,
                 max_bad_words = 64;
constexpr float max_penalty = 2;

void read_stop(RequestFields& fields, SamplingParams& sampling) {
  const OrderedJson* stop = fields.find("stop");
  if (!stop) return;
  if (!stop->is_string() && !stop->is_array()) {
    return fields.fail(bad_field("stop", fmt::format("expected a string or an array, got {}", json_kind(*stop))));
  }
  const OrderedJson list = stop->is_array() ? *stop : OrderedJson::array({*stop});
  if (list.size() > max_stop_strings) {
    return fields.fail(
        bad_field("stop", fmt::format("{} strings, at most {} are allowed", list.size(), max_stop_strings)));
  }
  for (const OrderedJson& entry : list) {
    if (!entry.is_string()) {
      return fields.fail(bad_field("stop", fmt::format("expected strings, got {}", json_kind(entry))));
    }
    const auto& text = entry.get_ref<const std::string&>();
    if (text.empty()) return fields.fail(bad_field("stop", "a stop string is empty"));
    if (text.size() > max_stop_bytes) {
      return fields.fail(bad_field("stop", fmt::format("a stop string has more than {} bytes", max_stop_bytes)));
    }
    sampling.stop.push_back(text);
  }
}

void read_logit_bias(RequestFields& fields, const ModelService& model, SamplingParams& sampling) {
  const OrderedJson* bias = fields.find("logit_bias");
  if (!bias) return;
  if (!bias->is_object()) {
    return fields.fail(bad_field("logit_bias", fmt::format("expected an object, got {}", json_kind(*bias))));
  }
  if (bias->size() > max_bias) {
    return fields.fail(
        bad_field("logit_bias", fmt::format("{} entries, at most {} are allowed", bias->size(), max_bias)));
  }
  for (auto it = bias->begin(); it != bias->end(); ++it) {
    const std::string& key = it.key();
    int32_t token = -1;
    const auto [end, errc] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (errc != std::errc() || end != key.data() + key.size() || token < 0 || token >= model.vocab_size) {
      return fields.fail(
          bad_field("logit_bias", fmt::format("a key is not a token id from 0 to {}", model.vocab_size - 1)));
    }
    if (!it.value().is_number() || !(it.value().get<double>() >= -100 && it.value().get<double>() <= 100)) {
      return fields.fail(
          bad_field("logit_bias", fmt::format("the bias of token {} is not between -100 and 100", token)));
    }
    sampling.logit_bias.emplace_back(token, static_cast<float>(it.value().get<double>()));
  }
}

// A word is banned as it is spelled at the start of a text and after a space: both token sequences.
void read_bad_words(RequestFields& fields, const ModelService& model, SamplingParams& sampling) {
  const OrderedJson* words = fields.find("bad_words");
  if (!words) return;
  if (!words->is_array() || words->size() > max_bad_words) {
    return fields.fail(bad_field("bad_words", fmt::format("expected an array of at most {} strings", max_bad_words)));
  }
  for (const OrderedJson& word : *words) {
    if (!word.is_string() || word.get_ref<const std::string&>().empty() ||
        word.get_ref<const std::string&>().size() > max_stop_bytes) {
      return fields.fail(bad_field("bad_words", fmt::format("expected strings of 1 to {} bytes", max_stop_bytes)));
    }
    for (const std::string prefix : {"", " "}) {
      auto ids = model.text->encode(prefix + word.get<std::string>(), false);
      if (!ids.empty()) sampling.bad_words.push_back(std::move(ids));
    }
  }
}

}  // namespace

void read_sampling(RequestFields& fields, const ModelService& model, SamplingParams& sampling) {
  sampling = model.defaults;
  fields.number("temperature", 0, 2, sampling.temperature);
  fields.number("top_p", 0, 1, sampling.top_p, false);
  fields.number("min_p", 0, 1, sampling.min_p);
  fields.integer("top_k", -1, std::numeric_limits<int32_t>::max(), sampling.top_k);
  sampling.top_k = std::max(sampling.top_k, 0);
  fields.number("presence_penalty", -max_penalty, max_penalty, sampling.presence_penalty);
  fields.number("frequency_penalty", -max_penalty, max_penalty, sampling.frequency_penalty);
  fields.number("repetition_penalty", 0, 100, sampling.repetition_penalty, false);
  int64_t seed = -1;
  fields.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), seed);
  if (fields.find("seed")) sampling.seed = static_cast<uint64_t>(seed);
  fields.integer("min_tokens", 0, model.max_seq_len, sampling.min_tokens);
  fields.boolean("ignore_eos", sampling.ignore_eos);
  fields.boolean("include_stop_str_in_output", sampling.include_stop);
  fields.boolean("skip_special_tokens", sampling.skip_special_tokens);
  if (const OrderedJson* ids = fields.find("stop_token_ids")) {
    const auto tokens = read_token_ids(fields, *ids, "stop_token_ids", model.vocab_size);
    if (tokens.size() > max_stop_tokens) {
      fields.fail(bad_field("stop_token_ids", fmt::format("at most {} are allowed", max_stop_tokens)));
    }
    sampling.stop_token_ids.insert(sampling.stop_token_ids.end(), tokens.begin(), tokens.end());
  }
  read_stop(fields, sampling);
  read_logit_bias(fields, model, sampling);
  read_bad_words(fields, model, sampling);
}

void read_stream_options(RequestFields& fields, CompletionCall& call) {
  fields.boolean("stream", call.stream);
  const OrderedJson* options = fields.find("stream_options");
  if (!options) return;
  if (!options->is_object()) {
    return fields.fail(bad_field("stream_options", fmt::format("expected an object, got {}", json_kind(*options))));
  }
  if (!call.stream) return fields.fail(bad_field("stream_options", "allowed only with \"stream\": true"));
  RequestFields inner(*options);
  inner.boolean("include_usage", call.include_usage);
  inner.boolean("continuous_usage_stats", call.continuous_usage);
  if (auto error = inner.error()) {
    error->param = "stream_options." + error->param;
    fields.fail(*error);
  }
}

void refuse_unsupported(RequestFields& fields) {
  if (const OrderedJson* format = fields.find("response_format")) {
    const bool has_type = format->is_object() && format->contains("type") && (*format)["type"].is_string();
    const std::string type = has_type ? (*format)["type"].get<std::string>() : "";
    if (!has_type) {
      fields.fail(bad_field("response_format", "expected an object with a string \"type\""));
    } else if (type == "json_object" || type == "json_schema" || type == "structural_tag" || type == "json" ||
               type == "regex" || type == "ebnf") {
      fields.fail(unsupported_field("response_format", "of type " + type));
    } else if (type != "text") {
      fields.fail(bad_field("response_format", "the type is not one of text, json_object, json_schema"));
    }
  }
  for (const auto* name : {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
                           "prompt_logprobs", "allowed_token_ids", "prompt_embeds", "lora_request",
                           "kv_transfer_params", "disaggregated_params", "thinking_token_budget", "logits_processors",
                           "documents", "chat_template", "prompt_ignore_length", "top_p_min"}) {
    fields.refuse(name);
  }
  for (const auto* name : {"use_beam_search", "continue_final_message", "return_context_logits",
                           "return_tokens_as_token_ids", "early_stopping"}) {
    fields.refuse(name, false);
  }
  for (const auto* name : {"spaces_between_special_tokens", "detokenize"}) {
    fields.refuse(name, true);
  }
  fields.refuse("length_penalty", 1);
}

void ignore_harmless(RequestFields& fields) {
  for (const auto* name :
       {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prediction", "verbosity",
        "request_id", "guided_decoding_backend", "guided_whitespace_pattern", "vllm_xargs", "prompt_cache_retention"}) {
    fields.ignore(name);
  }
}

}  // namespace pinion
