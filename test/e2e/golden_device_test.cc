// Every golden on every device with memory of its own. In float32 within 2e-3 of transformers; in bfloat16, against the
// same float32 goldens, within what rounding the activations may cost: rms <= 0.015 and max <= 0.1 of the logits'
// standard deviation, and greedy tokens equal where the golden's margin exceeds 0.15 of it (the golden's tokens are
// fed, so that one tie does not decide the rest). Families without kernels there are named and skipped.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "backend/all/backends.h"
#include "checkpoint/safetensors.h"
#include "compiler/compiler.h"
#include "golden_file.h"
#include "runtime/engine_executor.h"
#include "test_data.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string family, target;
  DType dtype;
};

const Backend* device_backend() {
  for (const Backend* b : backends()) {
    if (b->probe().empty()) continue;
    auto device = b->open({});
    if (device.ok() && !(*device)->host_visible()) return b;
  }
  return nullptr;
}

// One sequence in its own blocks, fed piece by piece.
class Feed {
 public:
  Feed(EngineExecutor& e, std::vector<int32_t> ids, int32_t rope_length, int32_t first_block)
      : ids_(std::move(ids)), rope_length_(rope_length) {
    for (size_t g = 0; g < e.kv_groups().size(); ++g) {
      auto& t = tables_.emplace_back((ids_.size() + e.block_size() - 1) / e.block_size());
      std::iota(t.begin(), t.end(), first_block + static_cast<int32_t>(g * t.size()));
    }
  }
  int32_t left() const { return static_cast<int32_t>(ids_.size()) - past_; }
  int32_t blocks() const { return static_cast<int32_t>(tables_.size() * tables_[0].size()); }
  BatchSeq take(int32_t n, int32_t outputs) {
    n = std::min(n, left());
    BatchSeq s{.tokens = std::span(ids_).subspan(past_, n),
               .past = past_,
               .rope_length = rope_length_,
               .blocks = {},
               .outputs = std::min(outputs, n)};
    for (const auto& t : tables_) s.blocks.emplace_back(t);
    past_ += n;
    return s;
  }

 private:
  std::vector<int32_t> ids_;
  int32_t rope_length_, past_ = 0;
  std::vector<std::vector<int32_t>> tables_;
};

struct Deviation {
  double sum = 0, worst = 0, scale = 0;
  int64_t count = 0;
  void add(std::span<const float> got, std::span<const float> want) {
    for (size_t i = 0; i < want.size(); ++i) {
      const double d = std::abs(static_cast<double>(got[i]) - want[i]);
      sum += std::isfinite(d) ? d * d : 1e30;
      worst = std::isfinite(d) ? std::max(worst, d) : 1e30;
    }
    count += std::ssize(want);
  }
  double rms() const { return std::sqrt(sum / static_cast<double>(std::max<int64_t>(count, 1))); }
};

double standard_deviation(std::span<const float> x) {
  const double n = static_cast<double>(x.size()), mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double sum = 0;
  for (float v : x) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / n);
}

class GoldenOnDevice : public testing::TestWithParam<Case> {};

TEST_P(GoldenOnDevice, LogitsAndGreedyTokensMatch) {
  const Case& c = GetParam();
  if (c.family.empty()) GTEST_SKIP() << "no device with memory of its own";
  const fs::path golden = golden_dir() / "families" / c.family;
  const fs::path scratch =
      fs::path(testing::TempDir()) / fmt::format("golden-{}-{}-{}", c.target, c.family, name(c.dtype));
  fs::remove_all(scratch);
  auto checkpoint = Checkpoint::open(golden);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  const Backend& backend = *find_backend(c.target);
  auto device = backend.open({});
  ASSERT_TRUE(device.ok()) << device.error().message;
  auto built = build_engine(*checkpoint, backend, **device, {.dtype = c.dtype, .time_kernels = false}, scratch);
  if (!built.ok() && built.error().code == Errc::unsupported) GTEST_SKIP() << built.error().message;
  ASSERT_TRUE(built.ok()) << built.error().message;
  auto engine = Engine::open(scratch);
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  auto opened = EngineExecutor::create(
      *engine, backend, **device, {.num_blocks = 128, .max_batch_size = 9, .max_num_tokens = 256, .max_outputs = 256});
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EngineExecutor& e = **opened;
  auto file = SafetensorsFile::open(golden / "golden.safetensors");
  ASSERT_TRUE(file.ok());
  const auto vocab = static_cast<size_t>(e.vocab_size());
  const bool exact = c.dtype == DType::f32;

  // Whole, in chunks of 16, and token by token (the recorded decode steps).
  Deviation all;
  double sigma = 0;
  for (const char* key : {"short", "mid", "long"}) {
    const auto ids = read<int32_t>(*file, std::string(key) + ".input_ids");
    const auto want = read<float>(*file, std::string(key) + ".logits");
    sigma = standard_deviation(want);
    for (int32_t chunk : {1000, 16, 1}) {
      Feed feed(e, ids, static_cast<int32_t>(ids.size()), 3);
      std::vector<float> got;
      while (feed.left() > 0) {
        const auto rows = e.forward({{feed.take(chunk, chunk)}});
        got.insert(got.end(), rows.begin(), rows.end());
      }
      ASSERT_EQ(got.size(), ids.size() * vocab);
      Deviation d;
      d.add(std::span(got).last(want.size()), want);
      all.add(std::span(got).last(want.size()), want);
      all.worst = std::max(all.worst, d.worst);
      if (exact) {
        EXPECT_LE(d.worst, 2e-3) << key << " chunk " << chunk;
      } else {
        EXPECT_LE(d.rms(), 0.015 * sigma) << key << " chunk " << chunk;
        EXPECT_LE(d.worst, 0.1 * sigma) << key << " chunk " << chunk;
      }
    }
  }

  // Greedy by teacher forcing, in a batch with eight others of mixed lengths, so that prefill and decode mix and
  // padding is there.
  auto ids = read<int32_t>(*file, "mid.input_ids");
  const auto greedy = read<int32_t>(*file, "mid.greedy");
  const auto prompt = static_cast<int32_t>(ids.size());
  const size_t checked = c.family == "llama_dynamic_ntk" ? 48 - prompt : greedy.size();
  ids.insert(ids.end(), greedy.begin(), greedy.begin() + static_cast<int64_t>(checked));
  std::vector<Feed> feeds;
  int32_t block = 0;
  for (int i = 0; i < 9; ++i) {
    const int32_t start = i == 5 ? prompt : 3 + 2 * i;
    std::vector<int32_t> own(ids.begin(), ids.begin() + start + static_cast<int32_t>(checked));
    feeds.emplace_back(e, own, start, block);
    block += feeds.back().blocks();
  }
  ASSERT_LE(block, e.options().num_blocks);
  int ties = 0;
  for (size_t step = 0; step < checked; ++step) {
    Batch batch;
    for (int i = 0; i < 9; ++i) batch.seqs.push_back(feeds[i].take(step > 0 ? 1 : i == 5 ? prompt : 3 + 2 * i, 1));
    const auto row = e.forward(batch).subspan(5 * vocab, vocab);
    const auto best = std::max_element(row.begin(), row.end());
    if (best - row.begin() == greedy[step]) continue;
    ++ties;
    EXPECT_LE(*best - row[greedy[step]], exact ? 2e-3 : 0.15 * sigma) << "step " << step;
  }
  fmt::print("  {:20} {:9} rms {:.5f} max {:.4f} of the logits' sigma, {} ties\n", c.family, name(c.dtype),
             all.rms() / sigma, all.worst / sigma, ties);
  fs::remove_all(scratch);
}

std::vector<Case> cases() {
  std::vector<Case> list;
  const Backend* backend = device_backend();
  std::error_code code;
  if (backend != nullptr) {
    for (const auto& entry : fs::directory_iterator(golden_dir() / "families", code)) {
      if (!fs::exists(entry.path() / "golden.safetensors")) continue;
      for (DType t : {DType::f32, DType::bf16}) {
        list.push_back({entry.path().filename().string(), std::string(backend->name()), t});
      }
    }
  }
  std::ranges::sort(list, {}, [](const Case& c) { return std::pair(c.family, c.dtype); });
  if (list.empty()) list.push_back({});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenOnDevice, testing::ValuesIn(cases()), [](const auto& info) {
  const Case& c = info.param;
  return c.family.empty() ? std::string("none") : c.family + "_" + std::string(name(c.dtype));
});

}  // namespace
}  // namespace pinion
