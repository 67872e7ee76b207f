// Tokens that a device chooses itself are those that the host's sampler chooses from the same rows, with the same
// logprobs. Without such a device there is nothing to compare.
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <random>
#include <ranges>

#include "backend/all/backends.h"
#include "backend/sampling.h"
#include "runtime/sampler.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

struct Target {
  const Backend* backend = nullptr;
  std::unique_ptr<Device> device;
  SamplingDevice* sampling = nullptr;
};

Target sampling_device() {
  for (const Backend* b : backends()) {
    if (b->probe().empty()) continue;
    auto device = b->open({});
    if (!device.ok()) continue;
    if (auto* sampling = dynamic_cast<SamplingDevice*>(device->get())) return {b, *std::move(device), sampling};
  }
  return {};
}

template <class T>
T* as(Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.data());
}

// Rows of logits with everything that sampling reads and keeps beside them. Steps use the two slots in turn.
class DeviceRows {
 public:
  DeviceRows(const Target& target, int64_t rows, int64_t vocab, int64_t edits = 0, int64_t history = 0)
      : target_(target), rows_(rows), vocab_(vocab), stream_(target.device->make_stream()) {
    const auto room = [&](size_t bytes) { return *target.device->allocate(bytes); };
    logits_ = room(rows * vocab * sizeof(float));
    sampling_ = room(rows * sizeof(RowSampling));
    edits_ = room(edits * sizeof(LogitEdit));
    edited_ = room(edits * sizeof(float));
    histories_ = room(history * sizeof(TokenCount));
    penalized_ = room(history * sizeof(float));
    tokens_ = room(2 * rows * sizeof(int32_t));
    slot_ = room(sizeof(int32_t));
    host_ = *target.device->allocate_pinned(2 * rows * sizeof(int32_t));
    logprobs_ = *target.device->allocate_pinned(2 * rows * (1 + kMaxLogprobs) * sizeof(LogprobEntry));
  }

  void write_history(int64_t at, const std::vector<TokenCount>& counts) {
    stream_->copy_to_device(as<TokenCount>(*histories_) + at, counts.data(), counts.size() * sizeof(TokenCount));
  }
  std::vector<TokenCount> read_history(int64_t at, size_t n) {
    std::vector<TokenCount> counts(n);
    stream_->copy_to_host(counts.data(), as<TokenCount>(*histories_) + at, n * sizeof(TokenCount));
    stream_->synchronize();
    return counts;
  }

  // The tokens; checks that the device's copy is the host's, and that the logits are as before.
  std::vector<int32_t> sample(const std::vector<float>& logits, const std::vector<RowSampling>& rows,
                              const std::vector<LogitEdit>& edits = {}) {
    slot_now_ ^= 1;
    stream_->copy_to_device(logits_->data(), logits.data(), logits.size() * sizeof(float));
    stream_->copy_to_device(sampling_->data(), rows.data(), rows.size() * sizeof(RowSampling));
    stream_->copy_to_device(edits_->data(), edits.data(), edits.size() * sizeof(LogitEdit));
    stream_->copy_to_device(slot_->data(), &slot_now_, sizeof slot_now_);
    target_.sampling->sample_rows(as<float>(*logits_), {}, as<RowSampling>(*sampling_),
                                  {.edits = as<LogitEdit>(*edits_),
                                   .edited = as<float>(*edited_),
                                   .histories = as<TokenCount>(*histories_),
                                   .penalized = as<float>(*penalized_)},
                                  {.tokens = as<int32_t>(*tokens_),
                                   .host = as<int32_t>(*host_),
                                   .logprobs = as<LogprobEntry>(*logprobs_),
                                   .slot = as<int32_t>(*slot_),
                                   .stride = rows_},
                                  std::ssize(rows), vocab_, *stream_);
    std::vector<int32_t> result(rows.size());
    std::vector<float> after(logits.size());
    stream_->copy_to_host(result.data(), as<int32_t>(*tokens_) + slot_now_ * rows_, result.size() * sizeof(int32_t));
    stream_->copy_to_host(after.data(), logits_->data(), after.size() * sizeof(float));
    stream_->synchronize();
    EXPECT_TRUE(std::ranges::equal(result, std::span(as<int32_t>(*host_) + slot_now_ * rows_, rows.size())));
    const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    EXPECT_TRUE(std::ranges::equal(logits, after, same)) << "the logits have changed";
    return result;
  }
  std::span<const LogprobEntry> logprobs(int64_t row) {
    return {as<LogprobEntry>(*logprobs_) + (slot_now_ * rows_ + row) * (1 + kMaxLogprobs), 1 + kMaxLogprobs};
  }

 private:
  const Target& target_;
  int64_t rows_, vocab_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Buffer> logits_, sampling_, edits_, edited_, histories_, penalized_, tokens_, slot_, host_, logprobs_;
  int32_t slot_now_ = 0;
};

std::vector<int32_t> sample_on(const Target& t, const std::vector<float>& logits, const std::vector<RowSampling>& rows,
                               int64_t vocab) {
  return DeviceRows(t, std::ssize(rows), vocab).sample(logits, rows);
}

void expect_logprobs(std::span<const LogprobEntry> got, const TokenLogprob& want, const std::string& where) {
  EXPECT_EQ(got[0].token, want.rank) << where << ", the rank";
  EXPECT_NEAR(got[0].logprob, want.logprob, 1e-5 * (1 + std::abs(want.logprob))) << where;
  for (size_t i = 0; i < want.top.size(); ++i) {
    ASSERT_EQ(got[1 + i].token, want.top[i].first) << where << ", place " << i << " of " << want.top.size();
    if (std::isinf(want.top[i].second)) {
      EXPECT_EQ(got[1 + i].logprob, want.top[i].second) << where << ", place " << i;
    } else {
      EXPECT_NEAR(got[1 + i].logprob, want.top[i].second, 1e-5 * (1 + std::abs(want.top[i].second))) << where;
    }
  }
}

TEST(DeviceSampling, ChoosesTheHostSamplersTokens) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  std::mt19937_64 random(4);
  std::normal_distribution<float> normal(0, 3);
  for (const int32_t vocab : {1, 5, 1000, 32001, 128256}) {
    Sampler sampler(vocab);
    std::vector<SamplingParams> params;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 2.0f, 1e-9f}) {
      for (const int32_t top_k : {0, 1, 7, 50, 1 << 20}) {
        for (const float top_p : {1.0f, 0.9f, 0.3f, 1e-6f}) {
          for (const float min_p : {0.0f, 0.05f}) {
            params.push_back({.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p});
          }
        }
      }
    }
    std::vector<float> logits;
    std::vector<RowSampling> rows;
    std::vector<int32_t> want;
    for (size_t i = 0; i < params.size(); ++i) {
      const SamplingParams& p = params[i];
      const size_t at = logits.size();
      for (int32_t id = 0; id < vocab; ++id) {
        const float x = normal(random);
        logits.push_back(i % 3 == 0 ? std::round(x) : x);  // ties by the hundred
      }
      const uint64_t seed = random();
      auto sampled = sampler.sample(std::span(logits).subspan(at), p, {.seed = seed, .ending = {}}, {}, {}, 3);
      ASSERT_TRUE(sampled.ok()) << sampled.error().message;
      want.push_back(sampled->token);
      rows.push_back({.temperature = p.temperature,
                      .top_p = p.top_p,
                      .min_p = p.min_p,
                      .top_k = p.top_k,
                      .uniform = Sampler::uniform(seed, 3)});
    }
    const auto got = sample_on(target, logits, rows, vocab);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(want[i], got[i]) << "vocab " << vocab << " temperature " << params[i].temperature << " top_k "
                                 << params[i].top_k << " top_p " << params[i].top_p << " min_p " << params[i].min_p;
    }
  }
}

TEST(DeviceSampling, NamesBrokenRows) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> logits{1, 2, NAN, 3, 1, 2, kInf, 3, -kInf, -kInf, -kInf, -kInf, 1, -kInf, 5, 3};
  EXPECT_EQ(sample_on(target, logits, std::vector<RowSampling>(4, {.temperature = 0}), 4),
            (std::vector<int32_t>{kNotFinite, kNotFinite, kNotFinite, 2}));
  EXPECT_EQ(sample_on(target, logits, std::vector<RowSampling>(4, {.temperature = 1, .uniform = 0}), 4),
            (std::vector<int32_t>{kNotFinite, kNotFinite, kNotFinite, 0}));
}

// The tokens of a head that leaves the largest logit of rows are those of the same kernel's logits; it stores the
// rows that are drawn from, and no others.
TEST(DeviceSampling, TakesTheLargestFromTheHead) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  constexpr int32_t kMostRows = 300;  // more than any kernel takes at once
  std::mt19937_64 random(20);
  std::map<std::string_view, int> runs;
  int broken = 0, tied = 0;
  struct Case {
    int32_t in, vocab;
    bool bias;
    DType type = DType::bf16;
  };
  for (const Case& c : {Case{128, 1, false},
                        {256, 37, true},
                        {264, 1001, false, DType::f16},
                        {2048, 4099, true, DType::f16},
                        {8192, 512, false},
                        {128, 128256, false}}) {
    auto stream = target.device->make_stream();
    std::vector<std::unique_ptr<Buffer>> buffers;
    const auto room = [&]<class T>(const std::vector<T>& host) {
      buffers.push_back(*target.device->allocate(host.size() * sizeof(T)));
      stream->copy_to_device(buffers.back()->data(), host.data(), host.size() * sizeof(T));
      stream->synchronize();
      return reinterpret_cast<T*>(buffers.back()->data());
    };
    // Many ties. Input 0 makes id 1 inf, NaN or -inf, input 1 makes all ids of bf16 -inf.
    const size_t in = c.in, vocab = c.vocab;
    std::vector<uint16_t> weight(in * vocab), x(in * kMostRows);
    for (auto* v : {&weight, &x}) {
      for (size_t i = 0; i < v->size(); ++i) store_f32(v->data(), c.type, i, static_cast<float>(random() % 9) / 4 - 1);
    }
    for (size_t id = 0; id < vocab; ++id) {
      if (id % 3 == 2) std::copy_n(weight.begin() + random() % id * in, in, weight.begin() + id * in);
      store_f32(weight.data(), c.type, id * in, id == 1 ? INFINITY : 0);
      store_f32(weight.data(), c.type, id * in + 1, c.type == DType::bf16 ? 3e38f : 0);
    }
    for (size_t r = 0; r < kMostRows; ++r) {
      store_f32(x.data(), c.type, r * in, r % 8 == 1 ? 1.f : r % 8 == 2 ? 0.f : -1.f);
      store_f32(x.data(), c.type, r * in + 1, r % 8 == 3 ? -64.f : 0.f);
    }
    std::vector<float> bias(vocab), logits(vocab * kMostRows), full(logits.size());
    for (float& b : bias) b = static_cast<float>(random() % 5);
    const std::vector<WeightView> weights{{{.dtype = c.type, .rows = c.vocab, .cols = c.in}, room(weight)},
                                          {{.rows = 1, .cols = c.vocab}, room(bias)}};
    const std::vector<WeightSpec> specs(weights.begin(), weights.end());
    const Op op = Linear{.in = c.in, .out = c.vocab, .bias = c.bias};
    const std::span used_weights = std::span(weights).first(c.bias ? 2 : 1);
    const auto used_specs = std::span(specs).first(used_weights.size());
    auto* at_x = room(x);
    auto* at_logits = room(logits);
    for (const int32_t bucket : {1, 7, 16, 33, 128}) {
      Call call{.op = &op, .rows = bucket, .weights = used_specs};
      call.values.in[0] = c.type;
      const int32_t n = bucket == 128 && vocab < 5000 ? kMostRows : bucket;
      std::vector<RowSampling> rows(n);
      std::vector<int32_t> stored(n), tokens[2];
      for (int32_t r = 0; r < n; ++r) {
        rows[r] = {
            .temperature = random() % 2 ? 0.f : 0.9f, .top_k = static_cast<int32_t>(random() % 3), .uniform = 0.4};
        stored[r] = needs_logits(rows[r]) ? 1 : 0;
      }
      for (const Kernel& kernel : target.backend->kernels(OpKind::linear)) {
        if (!kernel.why_not(call, target.device->info()).empty() || kernel.workspace != nullptr) continue;
        std::vector<Tuning> tunings(1);
        if (kernel.tunings != nullptr) tunings = kernel.tunings(call, target.device->info());
        for (const Tuning& tuning : tunings) {
          const auto run = [&](bool head, std::vector<float>& to) {
            const TensorView from{at_x, c.type, {n, c.in}}, y{at_logits, DType::f32, {n, c.vocab}};
            const LargestLogits largest{room(std::vector<uint64_t>(n)), room(stored)};
            LaunchArgs args{.op = &op, .in = {&from, 1}, .out = {&y, 1}, .weights = used_weights};
            args.tuning = tuning;
            stream->fill(at_logits, 0x5a, size_t{4} * n * vocab);
            if (head && !target.sampling->launch_head(kernel, args, largest, *stream)) return false;
            if (!head) kernel.launch(args, *stream);
            auto* chosen = room(tokens[head] = std::vector<int32_t>(n));
            target.sampling->sample_rows(at_logits, head ? largest : LargestLogits{}, room(rows), {},
                                         {.tokens = chosen}, n, c.vocab, *stream);
            stream->copy_to_host(tokens[head].data(), chosen, size_t{4} * n);
            stream->copy_to_host(to.data(), at_logits, size_t{4} * n * vocab);
            stream->synchronize();
            buffers.resize(4);
            return true;
          };
          if (!run(true, logits)) break;  // a kernel that stores all rows
          run(false, full);
          ++runs[kernel.name];
          for (int32_t r = 0; r < n; ++r) {
            const float *left = &logits[r * vocab], *want = &full[r * vocab];
            const auto where = fmt::format("{} {} in {} vocab {} row {} of {}", kernel.name,
                                           fmt::join(tuning.value, ","), in, vocab, r, n);
            ASSERT_EQ(tokens[1][r], tokens[0][r]) << where;
            const auto right = [&](int32_t id) {
              const float x = stored[r] ? want[id] : std::bit_cast<float>(0x5a5a5a5au);
              return left[id] == x || (std::isnan(left[id]) && std::isnan(x));
            };
            ASSERT_TRUE(std::ranges::all_of(std::views::iota(0, c.vocab), right)) << where << ", stored " << stored[r];
            const int32_t token = tokens[0][r];
            broken += token == kNotFinite ? 1 : 0;
            tied += token >= 0 && std::count(want, want + vocab, want[token]) > 1 ? 1 : 0;
          }
        }
      }
    }
  }
  fmt::print("runs {}, rows not finite {}, with ties {}\n", runs, broken, tied);
  EXPECT_GT(broken, 0);
  EXPECT_GT(tied, 0);
  EXPECT_EQ(runs.size(), target.device->info().isa == "sm_90" ? 4u : runs.size()) << "gemv, stream, wgmma, wide";
}

// Ties by the hundred, rows of -inf but for a few, and the largest where the search for them has it hardest.
TEST(DeviceSampling, GivesTheHostSamplersLogprobs) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0, 3);
  for (const int32_t vocab : {1, 2, 33, 1000, 5003, 128256}) {
    std::vector<float> logits;
    std::vector<RowSampling> rows;
    std::vector<std::string> names;
    for (const std::string kind : {"normal", "rounded", "equal", "mostly -inf", "zeros of both signs", "one column"}) {
      for (const int32_t top : {0, 1, 5, 20, kMaxLogprobs}) {
        names.push_back(kind + " rows, vocabulary " + std::to_string(vocab) + ", top " + std::to_string(top));
        for (int32_t id = 0; id < vocab; ++id) {
          float x = normal(random);
          if (kind == "rounded") x = std::round(x);
          if (kind == "equal") x = -2.5f;
          if (kind == "mostly -inf" && id % 97 != 0) x = -kInf;
          if (kind == "zeros of both signs") x = x > 0 ? 0.0f : -0.0f;
          if (kind == "one column" && id % 1024 < 80) x += 100;
          logits.push_back(x);
        }
        rows.push_back({.temperature = top == 5 ? 0.0f : 1.5f,
                        .uniform = static_cast<double>(random() % 1000) / 1000,
                        .logprobs = top});
      }
    }
    DeviceRows device(target, std::ssize(rows), vocab);
    const auto tokens = device.sample(logits, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_GE(tokens[i], 0) << names[i];
      const auto want = Sampler::logprob(std::span(logits).subspan(i * vocab, vocab), tokens[i], rows[i].logprobs);
      ASSERT_TRUE(want.ok());
      expect_logprobs(device.logprobs(static_cast<int64_t>(i)), *want, names[i]);
    }
  }
}

// Random requests step by step, with one step's tokens unknown to the next as in serving: what the device masks,
// biases and counts by itself gives the tokens of the host's sampler, which is told everything.
TEST(DeviceSampling, EditsAndCountsAsTheHostSampler) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  constexpr int kSteps = 12;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal(0, 2);
  for (const int32_t vocab : {7, 300, 32000}) {
    for (const int n : {3, 40}) {  // rows by clusters of blocks, and by a block each
      struct Sequence {
        SamplingParams params;
        SamplerState state;
        TokenHistory history;
        std::vector<int32_t> tokens;
        int64_t at = 0;
        int32_t size = 0;
        bool ended = false;  // no token was left: the rest is not compared
      };
      const auto token = [&] { return static_cast<int32_t>(random() % std::min(vocab, 40)); };
      Sampler sampler(vocab);
      std::vector<Sequence> sequences(n);
      int64_t room = 0;
      for (Sequence& s : sequences) {
        SamplingParams& p = s.params;
        p.temperature = random() % 3 == 0 ? 0 : 0.7f;
        if (random() % 2 == 0) p.repetition_penalty = random() % 2 == 0 ? 1.3f : 0.8f;
        if (random() % 2 == 0) p.frequency_penalty = 0.3f, p.presence_penalty = -0.2f;
        if (random() % 3 == 0) p.top_k = 5;
        if (random() % 3 == 0) p.top_p = 0.9f;
        if (random() % 2 == 0) p.min_tokens = 4, s.state.ending = {token(), token()};
        p.logprobs = static_cast<int32_t>(random() % 8) - 1;
        for (auto k = random() % 20; k-- > 0;) p.logit_bias.emplace_back(token(), normal(random));
        if (random() % 4 == 0) p.logit_bias.emplace_back(token(), -kInf);
        for (auto k = random() % 30; k-- > 0;) p.bad_words.push_back({token(), token()});
        s.state.biases = p.logit_bias;
        std::ranges::stable_sort(s.state.biases, {}, &std::pair<int32_t, float>::first);
        s.state.seed = random();
        for (auto k = 1 + random() % 30; k-- > 0;) s.history.add_prompt(s.tokens.emplace_back(token()));
        s.at = room;
        s.size = static_cast<int32_t>(s.history.counts().size()) + kSteps;
        room += 1 + s.size;
      }
      DeviceRows device(target, n, vocab, 100 * n, room);
      for (const Sequence& s : sequences) {
        std::vector<TokenCount> counts{{static_cast<int32_t>(s.history.counts().size()), s.size}};
        for (const auto& [id, count] : s.history.counts()) counts.push_back({id, count});
        device.write_history(s.at, counts);
      }
      for (int32_t step = 0; step < kSteps; ++step) {
        std::vector<float> logits(static_cast<size_t>(n) * vocab);
        for (float& x : logits) x = random() % 2 == 0 ? std::round(normal(random)) : normal(random);
        std::vector<RowSampling> rows;
        std::vector<LogitEdit> edits;
        for (int i = 0; i < n; ++i) {
          const Sequence& s = sequences[i];
          const SamplingParams& p = s.params;
          RowSampling& r = rows.emplace_back(RowSampling{.temperature = p.temperature,
                                                         .top_p = p.top_p,
                                                         .min_p = p.min_p,
                                                         .top_k = p.top_k,
                                                         .uniform = Sampler::uniform(s.state.seed, step),
                                                         .edits = static_cast<int32_t>(edits.size()),
                                                         .earlier_row = step > 0 ? i : -1,
                                                         .logprobs = p.logprobs});
          for (const auto& word : p.bad_words) {
            if (step > 0) {
              edits.push_back({word[1], word[0], -kInf});
            } else if (s.tokens.back() == word[0]) {
              edits.push_back({word[1], -1, -kInf});
            }
          }
          if (step < p.min_tokens) {
            for (const int32_t id : s.state.ending) edits.push_back({id, -1, -kInf});
          }
          r.masks = static_cast<int32_t>(edits.size()) - r.edits;
          for (const auto& [id, bias] : s.state.biases) edits.push_back({id, -1, bias});
          r.biases = static_cast<int32_t>(edits.size()) - r.edits - r.masks;
          if (!p.penalizes()) continue;
          r.history = static_cast<int32_t>(s.at);
          r.repetition_penalty = p.repetition_penalty;
          r.presence_penalty = p.presence_penalty;
          r.frequency_penalty = p.frequency_penalty;
        }
        ASSERT_LE(std::ssize(edits), 100 * n);
        const auto got = device.sample(logits, rows, edits);
        for (int i = 0; i < n; ++i) {
          Sequence& s = sequences[i];
          if (s.ended) continue;
          const std::string where = "vocabulary " + std::to_string(vocab) + ", row " + std::to_string(i) + " of " +
                                    std::to_string(n) + ", step " + std::to_string(step);
          const auto row = std::span(logits).subspan(static_cast<size_t>(i) * vocab, vocab);
          const auto want = sampler.sample(row, s.params, s.state, s.history, s.tokens, step);
          if (!want.ok()) {
            ASSERT_EQ(got[i], kNoneLeft) << where << ": " << want.error().message;
            s.ended = true;
            continue;
          }
          ASSERT_EQ(got[i], want->token) << where << ", " << rows[i].masks << " masks, " << rows[i].biases
                                         << " biases, history " << rows[i].history;
          if (s.params.logprobs >= 0) expect_logprobs(device.logprobs(i), want->logprob, where);
          s.tokens.push_back(got[i]);
          s.history.add_output(got[i]);
        }
      }
      for (const Sequence& s : sequences) {
        if (s.ended || !s.params.penalizes()) continue;
        const auto counts = device.read_history(s.at, 1 + s.history.counts().size());
        EXPECT_EQ(counts[0].token, std::ssize(s.history.counts()));
        for (size_t k = 1; k < counts.size(); ++k) {
          const auto it = s.history.counts().find(counts[k].token);
          ASSERT_NE(it, s.history.counts().end()) << "token " << counts[k].token << " was never put out";
          EXPECT_EQ(it->second, counts[k].count) << "token " << counts[k].token;
        }
      }
    }
  }
}

TEST(DeviceSampling, NamesRowsThatTheirEditsBreak) {
  const Target target = sampling_device();
  if (target.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const std::vector<float> logits{1, 2, NAN, 3, 1, 2, kInf, 3, 1, -kInf, -kInf, 2, 1, 2, 3, 3e38f, 1, 2, 3, 4};
  std::vector<LogitEdit> edits;
  std::vector<RowSampling> rows;
  for (int32_t row = 0; row < 5; ++row) {
    rows.push_back({.edits = static_cast<int32_t>(edits.size()), .logprobs = 2});
    if (row < 3) {
      for (const int32_t id : {2, 0, 3}) edits.push_back({id, -1, -kInf});
      edits.push_back({0, -1, -kInf});
      rows.back().masks = 4;
    } else if (row == 3) {
      edits.push_back({3, -1, 3e38f});
      rows.back().biases = 1;
    } else {
      for (const int32_t id : {3, 2}) edits.push_back({id, -1, -kInf});
      rows.back().masks = 2;
    }
  }
  DeviceRows device(target, 5, 4, std::ssize(edits));
  EXPECT_EQ(device.sample(logits, rows, edits),
            (std::vector<int32_t>{kNotFinite, kNotFinite, kNoneLeft, kNoneLeft, 1}));
  expect_logprobs(device.logprobs(4), *Sampler::logprob(std::span(logits).subspan(16, 4), 1, 2), "the last row");
}

}  // namespace
}  // namespace pinion
