// A head that leaves each row's largest logit in place of the row: the tokens are those of the same kernel's logits,
// rows that were asked for are stored, and nothing else is. Without a device that does so there is nothing to compare.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "backend/all/backends.h"
#include "backend/sampling.h"
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

struct Case {
  DType type = DType::bf16;
  int32_t in = 128, vocab = 1000;
  bool bias = false;
};

std::string str(const Case& c) {
  return std::string(name(c.type)) + " in " + std::to_string(c.in) + " vocab " + std::to_string(c.vocab) +
         (c.bias ? " bias" : "");
}

constexpr int32_t kMostRows = 300;
constexpr uint8_t kUntouched = 0x5a;

// A head and its inputs on the device. Some logits of each row tie, id 1's weight has an inf, which some rows turn into
// NaN, inf or -inf, and rows of bf16 are -inf alone.
class Head {
 public:
  Head(const Target& t, const Case& c, std::mt19937_64& random) : t_(t), c_(c), stream_(t.device->make_stream()) {
    const size_t in = c.in, vocab = c.vocab;
    std::vector<uint16_t> weight(in * vocab), x(in * kMostRows);
    const auto put = [&](std::vector<uint16_t>& to, size_t i, float v) { store_f32(to.data(), c_.type, i, v); };
    const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 33) - 16) / 16; };
    for (size_t i = 0; i < weight.size(); ++i) put(weight, i, small());
    for (size_t i = 0; i < x.size(); ++i) put(x, i, small());
    for (size_t id = 0; id < vocab; ++id) {
      if (id % 3 == 2) {  // ties, near and far
        const size_t as = random() % id;
        std::copy_n(weight.begin() + as * in, in, weight.begin() + id * in);
      }
      put(weight, id * in, 0);
      put(weight, id * in + 1, c.type == DType::bf16 ? 3e38f : 0);
    }
    if (vocab > 1) put(weight, in, INFINITY);
    for (size_t r = 0; r < kMostRows; ++r) {
      const size_t kind = random() % 8;
      put(x, r * in, kind == 0 ? 1.0f : kind == 1 ? 0.0f : -1.0f);  // of id 1 inf, NaN, else -inf
      put(x, r * in + 1, kind == 2 ? -64.0f : 0.0f);                // -inf for every id
      if (kind == 3) std::fill_n(x.begin() + r * in + 2, in - 2, 0);
    }
    std::vector<float> bias(vocab);
    for (float& b : bias) b = small();
    weights_ = {{{.dtype = c.type, .rows = c.vocab, .cols = c.in}, upload(weight)}};
    if (c.bias) weights_.push_back({{.dtype = DType::f32, .rows = 1, .cols = c.vocab}, upload(bias)});
    op_ = Linear{.in = c.in, .out = c.vocab, .bias = c.bias};
    x_ = upload(x);
    logits_ = room(vocab * kMostRows * sizeof(float));
    sampling_ = room(kMostRows * sizeof(RowSampling));
    found_ = room(kMostRows * sizeof(uint64_t));
    stored_ = room(kMostRows * sizeof(int32_t));
    tokens_ = room(kMostRows * sizeof(int32_t));
    stream_->synchronize();
  }

  Call call(int32_t rows) {
    specs_.assign(weights_.begin(), weights_.end());
    Call call{.op = &op_, .rows = rows, .weights = specs_};
    call.values.in[0] = c_.type;
    return call;
  }

  struct Outcome {
    std::vector<int32_t> tokens;
    std::vector<float> logits;
  };

  // largest: by launch_head, with these rows stored; else all of them, by the kernel's own launch.
  std::optional<Outcome> run(const Kernel& kernel, const Tuning& tuning, const std::vector<RowSampling>& rows,
                             bool largest) {
    const auto n = static_cast<int64_t>(rows.size());
    const size_t bytes = static_cast<size_t>(n) * c_.vocab * sizeof(float);
    std::vector<int32_t> stored;
    for (const RowSampling& r : rows) stored.push_back(needs_logits(r) ? 1 : 0);
    stream_->copy_to_device(sampling_, rows.data(), rows.size() * sizeof(RowSampling));
    stream_->copy_to_device(stored_, stored.data(), stored.size() * sizeof(int32_t));
    stream_->fill(found_, 0, kMostRows * sizeof(uint64_t));
    stream_->fill(logits_, kUntouched, bytes);
    stream_->fill(tokens_, kUntouched, kMostRows * sizeof(int32_t));
    TensorView in{x_, c_.type, {n, c_.in}}, out{logits_, DType::f32, {n, c_.vocab}};
    const BatchView batch;
    LaunchArgs args;
    args.op = &op_, args.in = {&in, 1}, args.out = {&out, 1}, args.weights = weights_, args.batch = &batch;
    args.tuning = tuning;
    LargestLogits left;
    if (largest) {
      left = {reinterpret_cast<uint64_t*>(found_), reinterpret_cast<const int32_t*>(stored_)};
      if (!t_.sampling->launch_head(kernel, args, left, *stream_)) return std::nullopt;
    } else {
      kernel.launch(args, *stream_);
    }
    t_.sampling->sample_rows(reinterpret_cast<float*>(logits_), left, reinterpret_cast<const RowSampling*>(sampling_),
                             {}, {.tokens = reinterpret_cast<int32_t*>(tokens_)}, n, c_.vocab, *stream_);
    Outcome o{std::vector<int32_t>(rows.size()), std::vector<float>(rows.size() * c_.vocab)};
    stream_->copy_to_host(o.tokens.data(), tokens_, o.tokens.size() * sizeof(int32_t));
    stream_->copy_to_host(o.logits.data(), logits_, bytes);
    stream_->synchronize();
    return o;
  }

 private:
  std::byte* room(size_t bytes) {
    auto buffer = t_.device->allocate(bytes);
    check(buffer.ok(), "no room on the device");
    buffers_.push_back(*std::move(buffer));
    return buffers_.back()->data();
  }
  template <class T>
  std::byte* upload(const std::vector<T>& host) {
    std::byte* to = room(host.size() * sizeof(T));
    stream_->copy_to_device(to, host.data(), host.size() * sizeof(T));
    stream_->synchronize();
    return to;
  }

  const Target& t_;
  Case c_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<WeightView> weights_;
  std::vector<WeightSpec> specs_;
  Op op_;
  std::byte *x_ = nullptr, *logits_ = nullptr, *sampling_ = nullptr, *found_ = nullptr, *stored_ = nullptr,
            *tokens_ = nullptr;
};

// Of a row of logits: kNotFinite, or the lowest id of the largest.
int32_t largest_of(std::span<const float> row) {
  size_t best = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    if (std::isnan(row[i]) || row[i] == INFINITY) return kNotFinite;
    if (row[i] > row[best]) best = i;
  }
  return row[best] == -INFINITY ? kNotFinite : static_cast<int32_t>(best);
}

std::vector<RowSampling> some_rows(int32_t rows, int kind, std::mt19937_64& random) {
  std::vector<RowSampling> sampling;
  for (int32_t r = 0; r < rows; ++r) {
    const bool drawn = kind == 1 || (kind == 2 && random() % 3 == 0);
    sampling.push_back({.temperature = drawn ? 0.9f : 0, .uniform = static_cast<double>(random() % 1000) / 1000});
    if (!drawn && random() % 4 == 0) sampling.back().temperature = 1, sampling.back().top_k = 1;  // the same
  }
  return sampling;
}

TEST(GreedyHead, ChoosesTheTokensOfItsOwnLogits) {
  const Target t = sampling_device();
  if (t.sampling == nullptr) GTEST_SKIP() << "no device that samples";
  std::mt19937_64 random(20);
  std::map<std::string_view, int> runs;
  int broken = 0, tied = 0;
  for (const Case& c : {Case{DType::bf16, 128, 1}, Case{DType::bf16, 256, 37, true}, Case{DType::f16, 264, 1001},
                        Case{DType::f16, 2048, 4099, true}, Case{DType::bf16, 128, 32003}, Case{DType::bf16, 8192, 512},
                        Case{DType::bf16, 128, 128256}}) {
    Head head(t, c, random);
    for (const int32_t rows : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 100, 127, 128}) {
      if (c.vocab > 5000 && rows != 1 && rows != 16 && rows != 33 && rows != 128) continue;
      for (const Kernel& kernel : t.backend->kernels(OpKind::linear)) {
        const Call call = head.call(rows);
        if (!kernel.why_not(call, t.device->info()).empty() || kernel.workspace != nullptr) continue;
        std::vector<Tuning> tunings{{}};
        if (kernel.tunings != nullptr) tunings = kernel.tunings(call, t.device->info());
        for (const Tuning& tuning : tunings) {
          // Kernels take more rows than they were chosen for as well.
          const int32_t own = rows == 128 && c.vocab < 5000 ? kMostRows : rows;
          for (int kind = 0; kind < 3; ++kind) {
            const auto sampling = some_rows(own, kind, random);
            const auto got = head.run(kernel, tuning, sampling, true);
            if (!got) break;  // it stores all rows, which other tests compare
            const auto want = head.run(kernel, tuning, sampling, false);
            ++runs[kernel.name];
            const std::string where = str(c) + " rows " + std::to_string(own) + " " + std::string(kernel.name) + " {" +
                                      std::to_string(tuning.value[0]) + "," + std::to_string(tuning.value[1]) + "," +
                                      std::to_string(tuning.value[2]) + "," + std::to_string(tuning.value[3]) + "}";
            for (int32_t r = 0; r < own; ++r) {
              const auto full = std::span(want->logits).subspan(size_t(r) * c.vocab, c.vocab);
              const auto kept = std::span(got->logits).subspan(size_t(r) * c.vocab, c.vocab);
              ASSERT_EQ(got->tokens[r], want->tokens[r]) << where << " row " << r << " kind " << kind;
              if (needs_logits(sampling[r])) {
                ASSERT_EQ(std::memcmp(full.data(), kept.data(), full.size_bytes()), 0) << where << " row " << r;
                continue;
              }
              const int32_t token = largest_of(full);
              ASSERT_EQ(got->tokens[r], token) << where << " row " << r;
              broken += token == kNotFinite ? 1 : 0;
              tied += token != kNotFinite && std::ranges::count(full, full[token]) > 1 ? 1 : 0;
              const auto* bytes = reinterpret_cast<const uint8_t*>(kept.data());
              ASSERT_EQ(std::count(bytes, bytes + kept.size_bytes(), kUntouched), std::ssize(kept) * 4)
                  << where << " row " << r << " was stored";
            }
          }
        }
      }
    }
  }
  for (const auto& [kernel, n] : runs) printf("%.*s %d runs\n", static_cast<int>(kernel.size()), kernel.data(), n);
  printf("%d rows not finite, %d with ties for the largest\n", broken, tied);
  EXPECT_GT(broken, 0);
  EXPECT_GT(tied, 0);
  EXPECT_EQ(runs.size(), t.device->info().isa == "sm_90" ? 3u : runs.size()) << "gemv, stream and wgmma";
}

}  // namespace
}  // namespace pinion
