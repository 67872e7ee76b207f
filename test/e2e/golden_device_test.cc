// Every golden on every device with memory of its own. In float32 within 2e-3 of transformers; in bfloat16, against the
// same float32 goldens, within what rounding the activations may cost: rms <= 0.015 and max <= 0.1 of the logits'
// standard deviation, and greedy tokens equal where the golden's margin exceeds 0.15 of it (the golden's tokens are
// fed, so that one tie does not decide the rest). Where a model has experts, bfloat16 is compared with the reference's
// choice of experts: a near tie between two of them is no error of rounding that the logits could tell from a wrong
// product. Families without kernels there are named and skipped. In bfloat16 all of it once more with the kernels that
// need no Hopper-only instruction forced: what other GPUs would run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "backend/all/backends.h"
#include "checkpoint/safetensors.h"
#include "compiler/compiler.h"
#include "device_backend.h"
#include "golden_file.h"
#include "runtime/engine_executor.h"
#include "test_data.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string family, target;
  DType dtype;
  bool portable = false;
  std::string name() const { return family + "_" + (portable ? "portable" : std::string(pinion::name(dtype))); }
};

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

// Which experts the reference backend chooses in float32, and with which weights: by routing node, by position.
struct ExpertChoices {
  struct Layer {
    int64_t top_k = 0;
    std::vector<int32_t> ids;
    std::vector<float> weights;
  };
  std::vector<Layer> layers;
};

// The ordinal of a routing node among those of the graph; -1 for others.
std::vector<int> routing_nodes(const Graph& graph) {
  std::vector<int> ordinals;
  int next = 0;
  for (const Node& n : graph.nodes()) ordinals.push_back(std::holds_alternative<MoeRoute>(n.op) ? next++ : -1);
  return ordinals;
}

class ReferenceExperts {
 public:
  // Null where the model has no experts.
  static std::unique_ptr<ReferenceExperts> open(const Checkpoint& checkpoint, const fs::path& scratch) {
    auto r = std::make_unique<ReferenceExperts>();
    const Backend& backend = *find_backend("reference");
    r->device_ = *backend.open({});
    auto built = build_engine(checkpoint, backend, *r->device_, {.dtype = DType::f32, .time_kernels = false}, scratch);
    check(built.ok(), "the reference builds every golden");
    r->engine_ = std::make_unique<Engine>(*Engine::open(scratch));
    r->nodes_ = routing_nodes(r->engine_->graph());
    if (std::ranges::max(r->nodes_) < 0) return nullptr;
    r->executor_ =
        *EngineExecutor::create(*r->engine_, backend, *r->device_,
                                {.num_blocks = 128, .max_batch_size = 1, .max_num_tokens = 256, .max_outputs = 1});
    return r;
  }

  ExpertChoices choose(const std::vector<int32_t>& ids) {
    ExpertChoices choices;
    executor_->observe([&](size_t node, std::span<const TensorView> out) {
      if (nodes_[node] < 0) return;
      const auto n = out[0].shape.elements();
      choices.layers.push_back({out[0].shape[1], std::vector(out[0].as<int32_t>(), out[0].as<int32_t>() + n),
                                std::vector(out[1].as<float>(), out[1].as<float>() + n)});
    });
    Feed feed(*executor_, ids, static_cast<int32_t>(ids.size()), 3);
    executor_->forward({{feed.take(feed.left(), 1)}});
    return choices;
  }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineExecutor> executor_;
  std::vector<int> nodes_;
};

// Runs batches with the reference's choice wherever the device's differs.
class ForcedExecutor {
 public:
  ForcedExecutor(EngineExecutor& e, const Graph& graph, ReferenceExperts* reference)
      : executor_(e), reference_(reference), nodes_(routing_nodes(graph)) {
    for (const Node& n : graph.nodes()) {
      const auto* route = std::get_if<MoeRoute>(&n.op);
      sparsemixer_ = sparsemixer_ || (route != nullptr && route->score == RouteScore::sparsemixer);
    }
  }
  void begin(const std::vector<int32_t>& ids) {
    if (reference_ == nullptr) return;
    choices_ = reference_->choose(ids);
    executor_.edit([this](size_t node, std::span<const TensorView> out) {
      if (nodes_[node] < 0) return false;
      const auto& want = choices_.layers[nodes_[node]];
      bool changed = false;
      for (size_t row = 0; row < positions_.size(); ++row) {
        const int64_t from = positions_[row] * want.top_k, to = static_cast<int64_t>(row) * want.top_k;
        ++all_;
        const std::span ids(out[0].as<int32_t>() + to, want.top_k);
        const std::span weights(out[1].as<float>() + to, want.top_k);
        // sparsemixer also chooses which logits a weight is shared with: there the weights themselves jump.
        const auto near = [](float a, float b) { return std::abs(a - b) < 0.05f; };
        if (std::equal(ids.begin(), ids.end(), want.ids.begin() + from) &&
            (!sparsemixer_ || std::equal(weights.begin(), weights.end(), want.weights.begin() + from, near))) {
          continue;
        }
        std::copy_n(want.ids.begin() + from, want.top_k, ids.begin());
        std::copy_n(want.weights.begin() + from, want.top_k, weights.begin());
        changed = true, ++forced_;
      }
      return changed;
    });
  }
  std::span<const float> forward(const Batch& batch) {
    positions_.clear();
    for (const BatchSeq& s : batch.seqs) {
      for (size_t i = 0; i < s.tokens.size(); ++i) positions_.push_back(s.past + static_cast<int32_t>(i));
    }
    return executor_.forward(batch);
  }
  std::string report() const {
    return reference_ == nullptr ? "" : fmt::format(", {} of {} choices of experts forced", forced_, all_);
  }

 private:
  EngineExecutor& executor_;
  ReferenceExperts* reference_;
  std::vector<int> nodes_;
  ExpertChoices choices_;
  std::vector<int32_t> positions_;
  int64_t forced_ = 0, all_ = 0;
  bool sparsemixer_ = false;
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
  const fs::path scratch = fs::path(testing::TempDir()) / fmt::format("golden-{}-{}", c.target, c.name());
  fs::remove_all(scratch);
  auto checkpoint = Checkpoint::open(golden);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  const Backend& backend = *find_backend(c.target);
  auto device = backend.open({});
  ASSERT_TRUE(device.ok()) << device.error().message;
  const BuildOptions options{.dtype = c.dtype, .time_kernels = false, .force_kernel = c.portable ? "portable" : ""};
  auto built = build_engine(*checkpoint, backend, **device, options, scratch);
  if (!built.ok() && built.error().code == Errc::unsupported) GTEST_SKIP() << built.error().message;
  ASSERT_TRUE(built.ok()) << built.error().message;
  auto engine = Engine::open(scratch);
  ASSERT_TRUE(engine.ok()) << engine.error().message;
  for (const Program& p : engine->programs()) {
    const auto portable = [](const auto& step) { return step.kernel.find("portable") != std::string::npos; };
    EXPECT_TRUE(!c.portable || std::ranges::any_of(p.steps, portable));
  }
  auto opened = EngineExecutor::create(
      *engine, backend, **device, {.num_blocks = 128, .max_batch_size = 9, .max_num_tokens = 256, .max_outputs = 256});
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EngineExecutor& e = **opened;
  auto file = SafetensorsFile::open(golden / "golden.safetensors");
  ASSERT_TRUE(file.ok());
  const auto vocab = static_cast<size_t>(e.vocab_size());
  const bool exact = c.dtype == DType::f32;
  const auto experts = exact ? nullptr : ReferenceExperts::open(*checkpoint, scratch.string() + "-reference");
  ForcedExecutor forced(e, engine->graph(), experts.get());

  // Whole, in chunks of 16, and token by token (the recorded decode steps).
  Deviation all;
  double sigma = 0;
  for (const char* key : {"short", "mid", "long"}) {
    const auto ids = read<int32_t>(*file, std::string(key) + ".input_ids");
    const auto want = read<float>(*file, std::string(key) + ".logits");
    sigma = standard_deviation(want);
    forced.begin(ids);
    for (int32_t chunk : {1000, 16, 1}) {
      Feed feed(e, ids, static_cast<int32_t>(ids.size()), 3);
      std::vector<float> got;
      while (feed.left() > 0) {
        const auto rows = forced.forward({{feed.take(chunk, chunk)}});
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
  forced.begin(ids);
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
    const auto row = forced.forward(batch).subspan(5 * vocab, vocab);
    const auto best = std::max_element(row.begin(), row.end());
    if (best - row.begin() == greedy[step]) continue;
    ++ties;
    EXPECT_LE(*best - row[greedy[step]], exact ? 2e-3 : 0.15 * sigma) << "step " << step;
  }
  fmt::print("  {:20} {:9} rms {:.5f} max {:.4f} of the logits' sigma, {} ties{}\n", c.family,
             c.portable ? "portable" : name(c.dtype), all.rms() / sigma, all.worst / sigma, ties, forced.report());
  fs::remove_all(scratch);
  fs::remove_all(scratch.string() + "-reference");
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
      list.push_back({entry.path().filename().string(), std::string(backend->name()), DType::bf16, true});
    }
  }
  std::ranges::sort(list, {}, [](const Case& c) { return c.name(); });
  if (list.empty()) list.push_back({});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenOnDevice, testing::ValuesIn(cases()), [](const auto& info) {
  const Case& c = info.param;
  return c.family.empty() ? std::string("none") : c.name();
});

}  // namespace
}  // namespace pinion
