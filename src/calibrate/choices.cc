#include "calibrate/choices.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "base/json.h"
#include "base/locate_error.h"
#include "calibrate/sequence_runner.h"

namespace pinion {
namespace {

constexpr size_t kMaxFile = size_t{1} << 30, kMaxLine = size_t{4} << 20, kMostChoices = 26;

std::string letter(size_t i) {
  return std::string(1, static_cast<char>('A' + i));
}

// The answer as a number: 0 … n - 1, or a letter.
std::optional<int32_t> answer_of(const Json& json, size_t choices) {
  int64_t i = -1;
  if (json.is_number_integer()) i = json.get<int64_t>();
  if (json.is_string()) {
    const auto& s = json.get_ref<const std::string&>();
    if (s.size() == 1) i = s[0] >= 'A' && s[0] <= 'Z' ? s[0] - 'A' : s[0] >= '0' && s[0] <= '9' ? s[0] - '0' : -1;
  }
  if (i < 0 || i >= static_cast<int64_t>(choices)) return std::nullopt;
  return static_cast<int32_t>(i);
}

Result<ChoiceQuestion> read_question(std::string_view line, const std::string& where, const Tokenizer& tokenizer) {
  PINION_TRY(const Json json, parse_json(line, where, {.bytes = kMaxLine, .depth = 8}));
  const auto text = [&](const char* key) { return json.is_object() && json.contains(key) && json[key].is_string(); };
  const bool listed = json.is_object() && json.contains("choices") && json["choices"].is_array();
  if (!text("question") || !listed || json["choices"].size() < 2 || json["choices"].size() > kMostChoices ||
      !std::ranges::all_of(json["choices"], [](const Json& c) { return c.is_string(); })) {
    return fail(Errc::corrupt, "the line has no \"question\" and 2 to 26 \"choices\"", where);
  }
  ChoiceQuestion q;
  const auto answer = json.contains("answer") ? answer_of(json["answer"], json["choices"].size()) : std::nullopt;
  if (!answer) return fail(Errc::corrupt, "\"answer\" is not the number or the letter of a choice", where);
  q.answer = *answer;
  if (text("subject")) q.subject = json["subject"];
  std::string prompt = json["question"].get<std::string>() + "\n";
  for (size_t i = 0; i < json["choices"].size(); ++i) {
    prompt += letter(i) + ". " + json["choices"][i].get<std::string>() + "\n";
    const auto ids = tokenizer.encode(" " + letter(i), false);
    // The last token: SentencePiece may have one for the space alone.
    if (ids.empty()) return fail(Errc::unsupported, "the tokenizer has no token for a choice's letter", where);
    q.letters.push_back(ids.back());
  }
  q.prompt = tokenizer.encode(prompt + "Answer:");
  return q;
}

}  // namespace

Result<std::vector<ChoiceQuestion>> read_choices(const std::filesystem::path& file, const Tokenizer& tokenizer,
                                                 int64_t limit) {
  PINION_TRY(const std::string text, read_file(file, kMaxFile));
  std::vector<ChoiceQuestion> out;
  int64_t number = 0;
  for (size_t at = 0; at < text.size() && (limit == 0 || std::ssize(out) < limit);) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line(text.data() + at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    PINION_TRY(ChoiceQuestion q, read_question(line, fmt::format("{}, line {}", file.string(), number), tokenizer));
    out.push_back(std::move(q));
  }
  if (out.empty()) return fail(Errc::corrupt, "the data set has no question", file.string());
  return out;
}

Result<ChoiceScores> answer_choices(Executor& model, const std::vector<ChoiceQuestion>& questions,
                                    const std::function<void(int64_t)>& progress) {
  SequenceRunner runner(model);
  ChoiceScores out;
  for (int64_t i = 0; i < std::ssize(questions); ++i) {
    const ChoiceQuestion& q = questions[i];
    if (const Status fits = runner.check(q.prompt); !fits) {
      return locate_error(fits.error(), fmt::format("question {}", i + 1));
    }
    const auto n = static_cast<int32_t>(q.prompt.size());
    std::span<const float> logits;
    int32_t count = 0;
    for (int32_t at = 0; at < n; at += count) {
      count = std::min(runner.piece(), n - at);
      logits = runner.run(q.prompt, at, count);
    }
    const auto last = logits.last(model.vocab_size());
    const auto best = std::ranges::max_element(q.letters, {}, [&](int32_t id) { return last[id]; });
    const bool right = best - q.letters.begin() == q.answer;
    for (ChoiceScore* s : {&out.all, &out.subjects[q.subject]}) {
      ++s->questions;
      s->right += right;
    }
    if (progress) progress(i + 1);
  }
  return out;
}

}  // namespace pinion
