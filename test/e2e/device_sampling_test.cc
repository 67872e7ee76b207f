// Tokens that a device chooses itself are those that the host's sampler chooses from the same rows. Without such a
// device there is nothing to compare.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "backend/all/backends.h"
#include "backend/sampling.h"
#include "runtime/sampler.h"

namespace pinion {
namespace {

struct Target {
  std::unique_ptr<Device> device;
  SamplingDevice* sampling = nullptr;
};

Target sampling_device() {
  for (const Backend* b : backends()) {
    if (b->probe().empty()) continue;
    auto device = b->open({});
    if (!device.ok()) continue;
    if (auto* sampling = dynamic_cast<SamplingDevice*>(device->get())) return {*std::move(device), sampling};
  }
  return {};
}

// Copies rows up, samples, copies tokens down.
std::vector<int32_t> sample_on(const Target& t, const std::vector<float>& logits, const std::vector<RowSampling>& rows,
                               int64_t vocab) {
  auto stream = t.device->make_stream();
  auto data = t.device->allocate(logits.size() * sizeof(float));
  auto params = t.device->allocate(rows.size() * sizeof(RowSampling));
  auto tokens = t.device->allocate(rows.size() * sizeof(int32_t));
  check(data.ok() && params.ok() && tokens.ok(), "no room on the device");
  stream->copy_to_device((*data)->data(), logits.data(), logits.size() * sizeof(float));
  stream->copy_to_device((*params)->data(), rows.data(), rows.size() * sizeof(RowSampling));
  t.sampling->sample_rows(reinterpret_cast<const float*>((*data)->data()), {},
                          reinterpret_cast<const RowSampling*>((*params)->data()),
                          {.tokens = reinterpret_cast<int32_t*>((*tokens)->data())}, std::ssize(rows), vocab, *stream);
  std::vector<int32_t> result(rows.size());
  stream->copy_to_host(result.data(), (*tokens)->data(), result.size() * sizeof(int32_t));
  stream->synchronize();
  return result;
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

}  // namespace
}  // namespace pinion
