// pinion eval: perplexity of a text, multiple choice, and how far a model is from another one (KL divergence, agreement
// of the most likely token).
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "base/log.h"
#include "calibrate/choices.h"
#include "calibrate/dataset.h"
#include "calibrate/evaluate.h"
#include "cli/model.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Args {
  ModelArgs model;
  std::string dataset, against, against_dtype = "auto", against_kv_cache_dtype = "auto";
  int64_t limit = 0;
  bool json = false;
};

Status run(Args a, bool compare) {
  a.model.limits.max_batch_size = 1;
  const ExecutorOptions defaults{.max_num_tokens = 512, .max_outputs = 512};
  PINION_TRY(OpenModel m, open_model(a.model, defaults));
  PINION_TRY(const auto texts, read_dataset(a.dataset, m.tokenizer.get(), m.chat_template ? &*m.chat_template : nullptr,
                                            {.max_lines = a.limit}));
  OpenModel reference;
  if (compare) {
    ModelArgs other = a.model;  // but for what makes the model less exact than its reference
    other.model = a.against;
    other.build.dtype = a.against_dtype;
    other.build.kv_cache_dtype = a.against_kv_cache_dtype;
    other.build.qformat.clear();
    other.build.expand_weights = false;
    PINION_TRY(reference, open_model(other, defaults));
  }
  const bool terminal = isatty(STDERR_FILENO) != 0;
  auto last = std::chrono::steady_clock::now();
  const auto progress = [&](int64_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last < std::chrono::milliseconds(terminal ? 200 : 5000)) return;
    last = now;
    if (terminal) {
      fmt::print(stderr, "\rtext {} of {}\033[K", done, texts.size());
    } else {
      spdlog::info("text {} of {}", done, texts.size());
    }
  };
  const auto result = evaluate(*m.executor, reference.executor.get(), texts, progress);
  if (terminal) fmt::print(stderr, "\r\033[K");
  if (!result) return result.error();
  const Evaluation& e = *result;
  if (a.json) {
    Json json{{"texts", texts.size()}, {"tokens", e.tokens}, {"perplexity", e.perplexity()}};
    if (compare) {
      json["kl"] = e.kl();
      json["top1"] = e.top1();
      json["reference_perplexity"] = e.reference_perplexity();
    }
    fmt::print("{}\n", json.dump());
    return {};
  }
  fmt::print("{} texts, {} tokens: perplexity {:.4f}\n", texts.size(), e.tokens, e.perplexity());
  if (compare) {
    fmt::print("against {}: perplexity {:.4f}, KL divergence {:.3g} per token, same most likely token {:.3f} %\n",
               a.against, e.reference_perplexity(), e.kl(), 100 * e.top1());
  }
  return {};
}

// Multiple choice.
Status run_choices(Args a) {
  a.model.limits.max_batch_size = 1;
  PINION_TRY(OpenModel m, open_model(a.model, {.max_num_tokens = 512, .max_outputs = 512}));
  if (m.tokenizer == nullptr) {
    return fail(Errc::not_found, "the model has no tokenizer", a.model.model, "give --tokenizer DIR");
  }
  PINION_TRY(const auto questions, read_choices(a.dataset, *m.tokenizer, a.limit));
  PINION_TRY(const ChoiceScores scores, answer_choices(*m.executor, questions));
  if (a.json) {
    Json subjects = Json::object();
    for (const auto& [name, s] : scores.subjects) {
      if (!name.empty()) subjects[name] = {{"questions", s.questions}, {"accuracy", s.accuracy()}};
    }
    fmt::print("{}\n", Json{{"questions", scores.all.questions},
                            {"right", scores.all.right},
                            {"accuracy", scores.all.accuracy()},
                            {"subjects", subjects}}
                           .dump());
    return {};
  }
  for (const auto& [name, s] : scores.subjects) {
    if (!name.empty()) fmt::print("  {:<40} {:6} questions, {:6.2f} %\n", name, s.questions, 100 * s.accuracy());
  }
  fmt::print("{} questions: {} right, {:.2f} %\n", scores.all.questions, scores.all.right, 100 * scores.all.accuracy());
  return {};
}

void add_shared(CLI::App& app, Args& a) {
  add_model_options(app, a.model);
  app.add_option("--dataset", a.dataset, "JSONL with \"text\", \"prompt\", \"messages\" or \"ids\" in each line")
      ->required();
  app.add_option("--limit", a.limit, "lines of it to use; 0: all")->check(CLI::Range(0, 1 << 30));
}

}  // namespace

Verb add_eval(CLI::App& app) {
  app.require_subcommand(1);
  auto a = std::make_shared<Args>();
  CLI::App* perplexity = app.add_subcommand("perplexity", "how well the model predicts a text");
  add_shared(*perplexity, *a);
  perplexity->add_flag("--json", a->json, "print one JSON object: texts, tokens, perplexity");
  CLI::App* agreement = app.add_subcommand("agreement", "how far the model is from another one");
  add_shared(*agreement, *a);
  agreement->add_option("--against", a->against, "the reference: a model as MODEL")->required();
  agreement->add_option("--against_dtype", a->against_dtype, "the reference's dtype")->capture_default_str();
  agreement->add_option("--against_kv_cache_dtype", a->against_kv_cache_dtype, "that of its KV cache")
      ->capture_default_str();
  agreement->add_flag("--json", a->json,
                      "print one JSON object: texts, tokens, perplexity, kl, top1, reference_perplexity");
  CLI::App* choices = app.add_subcommand("choices", "multiple choice: the most likely of the answers' letters");
  add_model_options(*choices, a->model);
  choices
      ->add_option("--dataset", a->dataset,
                   "JSONL with \"question\", \"choices\", \"answer\" (and \"subject\") in each line, as MMLU has them")
      ->required();
  choices->add_option("--limit", a->limit, "lines of it to use; 0: all")->check(CLI::Range(0, 1 << 30));
  choices->add_flag("--json", a->json, "print one JSON object: questions, right, accuracy, subjects");
  return [=] { return choices->parsed() ? run_choices(*a) : run(*a, agreement->parsed()); };
}

}  // namespace pinion::cli
