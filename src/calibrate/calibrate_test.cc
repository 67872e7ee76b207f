#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>
#include <set>

#include "calibrate/dataset.h"
#include "calibrate/evaluate.h"
#include "calibrate/fold_scales.h"
#include "calibrate/input_statistics.h"
#include "calibrate/quantize_model.h"
#include "checkpoint/scratch_for_test.h"
#include "graph/builder.h"
#include "models/moe.h"
#include "quant/quantized_checkpoint.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

TEST(Dataset, ReadsIdsAndNamesABadLine) {
  const ScratchDir dir;
  spit(dir / "good.jsonl", "{\"ids\": [1, 2, 3]}\n\n  \n{\"ids\": []}\n{\"ids\": [4]}");
  auto texts = read_dataset(dir / "good.jsonl", nullptr, nullptr);
  ASSERT_TRUE(texts.ok()) << texts.error().message;
  EXPECT_EQ(*texts, (std::vector<std::vector<int32_t>>{{1, 2, 3}, {4}}));
  texts = read_dataset(dir / "good.jsonl", nullptr, nullptr, {.max_lines = 1, .max_tokens = 2});
  EXPECT_EQ(*texts, (std::vector<std::vector<int32_t>>{{1, 2}}));

  const auto error = [&](const std::string& line) {
    spit(dir / "bad.jsonl", "{\"ids\": [1]}\n" + line + "\n");
    auto read = read_dataset(dir / "bad.jsonl", nullptr, nullptr);
    return read.ok() ? std::string("read") : read.error().message;
  };
  for (const char* line : {"{\"ids\": [1", "[1, 2]", "{\"ids\": [1, -2]}", "{\"ids\": [1.5]}", "{\"ids\": 3}",
                           "{\"words\": \"a\"}", "{\"text\": \"a\"}"}) {
    EXPECT_NE(error(line).find("bad.jsonl, line 2"), std::string::npos) << line << ": " << error(line);
  }
  EXPECT_FALSE(read_dataset(dir / "absent.jsonl", nullptr, nullptr).ok());
  spit(dir / "empty.jsonl", "\n\n");
  EXPECT_FALSE(read_dataset(dir / "empty.jsonl", nullptr, nullptr).ok());
}

// A model whose logits depend on the token alone: logits[t][v] = table[ids[t]][v].
class TableModel : public Executor {
 public:
  TableModel(int32_t vocab, uint64_t seed) : vocab_(vocab), table_(vocab * vocab) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 2);
    for (float& v : table_) v = normal(random);
    options_ = {.num_blocks = 4, .max_batch_size = 1, .max_num_tokens = 5, .max_outputs = 5, .max_seq_len = 64};
  }
  int32_t vocab_size() const override { return vocab_; }
  int32_t context_length() const override { return 64; }
  int32_t block_size() const override { return 16; }
  std::span<const KvGroupInfo> kv_groups() const override { return groups_; }
  const ExecutorOptions& options() const override { return options_; }
  std::span<const int32_t> eos_token_ids() const override { return {}; }
  uint64_t rope_variant(int32_t) const override { return 0; }
  std::span<const float> forward(const Batch& batch) override {
    const BatchSeq& s = batch.seqs.at(0);
    EXPECT_EQ(s.past, seen_);  // pieces come in order
    EXPECT_LE(std::ssize(s.tokens), 5);
    seen_ = s.past + static_cast<int32_t>(s.tokens.size()) == s.rope_length ? 0 : s.past + s.outputs;
    out_.clear();
    for (const int32_t id : s.tokens) out_.insert(out_.end(), row(id), row(id) + vocab_);
    return out_;
  }
  void copy_block(int32_t, int32_t) override {}
  const float* row(int32_t id) const { return table_.data() + id * vocab_; }
  std::vector<double> distribution(int32_t id) const {
    std::vector<double> p(vocab_);
    double sum = 0;
    for (int32_t v = 0; v < vocab_; ++v) sum += p[v] = std::exp(static_cast<double>(row(id)[v]));
    for (double& v : p) v /= sum;
    return p;
  }

 private:
  int32_t vocab_, seen_ = 0;
  std::vector<float> table_, out_;
  std::vector<KvGroupInfo> groups_{KvGroupInfo{}};
  ExecutorOptions options_;
};

TEST(Evaluate, ComputesPerplexityAndDivergence) {
  TableModel model(9, 1), reference(9, 2);
  const std::vector<std::vector<int32_t>> texts{{1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3}, {5}, {8, 8}};
  double likelihood = 0, kl = 0;
  int64_t predicted = 0, tokens = 0, same = 0;
  for (const auto& ids : texts) {
    for (size_t i = 0; i < ids.size(); ++i, ++tokens) {
      const auto q = model.distribution(ids[i]), p = reference.distribution(ids[i]);
      for (int v = 0; v < 9; ++v) kl += p[v] * std::log(p[v] / q[v]);
      same += std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin();
      if (i + 1 < ids.size()) likelihood += std::log(q[ids[i + 1]]), ++predicted;
    }
  }
  auto e = evaluate(model, &reference, texts);
  ASSERT_TRUE(e.ok()) << e.error().message;
  EXPECT_EQ(e->tokens, tokens);
  EXPECT_EQ(e->predicted, predicted);
  EXPECT_NEAR(e->perplexity(), std::exp(-likelihood / static_cast<double>(predicted)), 1e-9);
  EXPECT_NEAR(e->kl(), kl / static_cast<double>(tokens), 1e-9);
  EXPECT_DOUBLE_EQ(e->top1(), static_cast<double>(same) / static_cast<double>(tokens));
  TableModel twin(9, 1);
  e = evaluate(model, &twin, texts);
  EXPECT_NEAR(e->kl(), 0, 1e-12);
  EXPECT_EQ(e->top1(), 1);
  EXPECT_EQ(e->perplexity(), e->reference_perplexity());
}

TEST(Evaluate, RefusesTextsThatDoNotFit) {
  TableModel model(9, 1), other(8, 1);
  const std::vector<std::vector<int32_t>> outside{{1}, {9}}, longer{std::vector<int32_t>(65, 1)};
  EXPECT_NE(evaluate(model, nullptr, outside).error().message.find("text 2"), std::string::npos);
  EXPECT_FALSE(evaluate(model, nullptr, longer).ok());
  EXPECT_FALSE(evaluate(model, &other, longer).ok());
}

// A Llama layer's MLP, its norm before it.
struct Mlp {
  Graph graph;
  int64_t width = 64, inner = 96;
  Mlp() {
    Builder b(graph);
    const Scope w("model");
    const Value x = b.embed(w / "embed_tokens", 16, width);
    const Value h = b.rms_norm(x, w / "norm", 1e-5f);
    const Value gate = b.linear(h, w / "gate_proj", inner), up = b.linear(h, w / "up_proj", inner);
    const Value act = graph.add(GatedAct{.width = inner}, {gate, up}, "model.act")[0];
    graph.logits = b.linear(act, w / "down_proj", width);
  }
};

TensorView view(std::vector<float>& data, int64_t cols) {
  return {data.data(), DType::f32, Shape{std::ssize(data) / cols, cols}};
}

TEST(InputCollector, SamplesEveryRowWithTheSameChanceAndKeepsTheRange) {
  Mlp m;
  InputCollector inputs(m.graph, 50);
  const size_t norm = 1;
  ASSERT_TRUE(std::holds_alternative<RmsNorm>(m.graph.nodes()[norm].op));
  for (int step = 0; step < 40; ++step) {
    std::vector<float> rows(25 * m.width);
    for (int r = 0; r < 25; ++r) {
      for (int64_t k = 0; k < m.width; ++k) rows[r * m.width + k] = static_cast<float>(step * 25 + r);
    }
    const TensorView v = view(rows, m.width);
    inputs.see(norm, std::span(&v, 1));
  }
  const InputStatistics* s = inputs.find("model.up_proj.weight");
  ASSERT_NE(s, nullptr);
  EXPECT_EQ(s, inputs.find("model.gate_proj.weight"));
  EXPECT_EQ(inputs.find("model.down_proj.weight"), nullptr);
  EXPECT_EQ(s->seen, 1000);
  EXPECT_EQ(s->absmax, 999);
  EXPECT_EQ(s->column_absmax, std::vector<float>(m.width, 999));
  ASSERT_EQ(s->inputs().rows, 50);
  double mean = 0;
  std::set<float> distinct;
  for (int r = 0; r < 50; ++r) {
    const float value = s->sample[r * m.width];
    EXPECT_EQ(value, s->sample[r * m.width + m.width - 1]);  // rows stay whole
    mean += value / 50;
    distinct.insert(value);
  }
  EXPECT_EQ(distinct.size(), 50u);
  EXPECT_NEAR(mean, 499.5, 150);  // the deviation of that mean is 40
}

// What an interrupted calibration saved and another one went on with is what one would have collected.
TEST(InputCollector, GoesOnWhereItWasInterrupted) {
  Mlp m;
  const ScratchDir dir;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> steps(9, std::vector<float>(25 * m.width));
  for (auto& rows : steps) {
    for (float& v : rows) v = normal(random);
  }
  const auto see = [&](InputCollector& c, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const TensorView v = view(steps[i], m.width);
      c.see(1, std::span(&v, 1));
    }
  };
  InputCollector whole(m.graph, 50), half(m.graph, 50), rest(m.graph, 50);
  see(whole, 0, 9);
  see(half, 0, 4);
  EXPECT_EQ(*rest.load(dir / "state", "key"), 0);
  ASSERT_TRUE(half.save(dir / "state", "key", 4).ok());
  const auto texts = rest.load(dir / "state", "key");
  ASSERT_TRUE(texts.ok()) << texts.error().message;
  EXPECT_EQ(*texts, 4);
  see(rest, 4, 9);
  const InputStatistics *a = whole.find("model.up_proj.weight"), *b = rest.find("model.up_proj.weight");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(a->sample, b->sample);
  EXPECT_EQ(a->seen, b->seen);
  EXPECT_EQ(a->absmax, b->absmax);
  EXPECT_EQ(a->column_absmax, b->column_absmax);

  InputCollector other(m.graph, 50);
  EXPECT_NE(other.load(dir / "state", "another").error().message.find("another model"), std::string::npos);
  spit(dir / "state", "no state");
  EXPECT_FALSE(other.load(dir / "state", "key").ok());
}

// Four experts, of which a token takes two: 0 and 1 where it is even, 0 and 2 where it is odd.
TEST(InputCollector, AnExpertHasTheRowsThatWereSentToIt) {
  Graph graph;
  Builder b(graph);
  ModelConfig c;
  c.hidden_size = 8;
  c.moe.experts = 4, c.moe.top_k = 2, c.moe.intermediate_size = 6;
  const Scope w("model");
  const Value x = b.rms_norm(b.embed(w / "embed_tokens", 16, 8), w / "norm", 1e-5f);
  graph.logits = moe_mlp(b, c, w / "mlp", x, {});
  InputCollector inputs(graph, 50);
  const auto see = [&](InputCollector& to, int first, int count) {
    for (size_t i = 0; i < graph.nodes().size(); ++i) {
      const Node& n = graph.nodes()[i];
      std::vector<float> rows, weights(2 * count);
      std::vector<int32_t> ids;
      for (int t = first; t < first + count; ++t) {
        ids.insert(ids.end(), {0, t % 2 == 0 ? 1 : 2});
        if (n.out[0] == x) rows.insert(rows.end(), 8, static_cast<float>(t));
        for (const int slot : {0, 1}) {
          if (std::holds_alternative<MoeLinear>(n.op)) rows.insert(rows.end(), 6, static_cast<float>(10 * t + slot));
        }
      }
      const bool hidden = std::holds_alternative<MoeLinear>(n.op) && !std::get<MoeLinear>(n.op).per_slot;
      if (std::holds_alternative<MoeRoute>(n.op)) {
        const TensorView out[] = {{ids.data(), DType::i32, Shape{count, 2}}, view(weights, 2)};
        to.see(i, out);
      } else if (n.out[0] == x || hidden) {
        const TensorView out = view(rows, hidden ? 12 : 8);
        to.see(i, std::span(&out, 1));
      }
    }
  };
  const auto values = [](const InputStatistics* s) {
    std::set<float> out;
    for (int64_t i = 0; i < std::ssize(s->sample); i += s->cols) out.insert(s->sample[i]);
    return out;
  };
  see(inputs, 0, 10);
  const ScratchDir dir;
  ASSERT_TRUE(inputs.save(dir / "state", "key", 1).ok());
  InputCollector rest(graph, 50);
  EXPECT_EQ(*rest.load(dir / "state", "key"), 1);
  see(inputs, 10, 23), see(rest, 10, 23);
  for (const InputCollector* seen : {&inputs, &rest}) {
    const auto find = [&](int e, const char* name) {
      return seen->find("model.mlp.experts." + std::to_string(e) + "." + name + ".weight");
    };
    std::set<float> all, even, odd_hidden, hidden;
    for (int t = 0; t < 33; ++t) {
      all.insert(static_cast<float>(t));
      if (t % 2 == 0) even.insert(static_cast<float>(t));
      hidden.insert({static_cast<float>(10 * t), static_cast<float>(10 * t + 1)});
      if (t % 2 == 1) odd_hidden.insert(static_cast<float>(10 * t + 1));
    }
    for (const char* name : {"gate_proj", "up_proj"}) {
      EXPECT_EQ(values(find(0, name)), all);
      EXPECT_EQ(values(find(1, name)), even);
      EXPECT_EQ(find(2, name)->seen, 16);
      EXPECT_EQ(find(2, name)->absmax, 31);
      EXPECT_EQ(find(1, name)->absmax, 32);
      // No token came to the last one: it has what the layer saw.
      EXPECT_EQ(values(find(3, name)), all);
    }
    EXPECT_EQ(values(find(2, "down_proj")), odd_hidden);
    EXPECT_EQ(find(3, "down_proj")->seen, 66);
    EXPECT_EQ(find(3, "down_proj"), seen->find_layer("model.mlp.experts.0.down_proj.weight"));
    EXPECT_EQ(find(3, "down_proj")->absmax, 321);
  }
}

// One outlier in 64,000 numbers: the largest magnitude is its own, 99.99 % of them and the least error leave it out.
TEST(InputRange, CanLeaveOutliersOut) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  InputStatistics s{.cols = 64, .seen = 1000, .column_absmax = std::vector<float>(64), .sample = {}};
  for (int i = 0; i < 64000; ++i) s.sample.push_back(normal(random));
  s.sample[777] = 100;
  s.absmax = 100;
  const auto range = [&](std::string_view method, InputQuant kind) {
    return input_range(s, *range_method(method), kind);
  };
  for (const InputQuant kind : {InputQuant::int8_static, InputQuant::e4m3_static}) {
    EXPECT_EQ(range("max", kind), 100);
    EXPECT_NEAR(range("percentile", kind), 3.9f, 0.4f);  // the normal distribution's
  }
  EXPECT_LT(range("mse", InputQuant::int8_static), 90);
  EXPECT_EQ(range("auto", InputQuant::int8_static), range("mse", InputQuant::int8_static));
  EXPECT_EQ(range("auto", InputQuant::e4m3_static), 100);
  EXPECT_FALSE(range_method("entropy").ok());
  InputStatistics zeros{.cols = 4, .seen = 1, .column_absmax = std::vector<float>(4), .sample = std::vector<float>(4)};
  EXPECT_EQ(input_range(zeros, RangeMethod::percentile, InputQuant::int8_static), 0);
}

// Folding changes no function: what the norm's weight and the columns (or up's rows and down's columns) lose and gain
// cancels.
TEST(FoldScales, LeavesTheFunctionAsItWas) {
  Mlp m;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto fill = [&](int64_t n) {
    std::vector<float> out(n);
    for (float& v : out) v = normal(random);
    return out;
  };
  const ScratchDir dir;
  const std::vector<float> norm = fill(m.width);
  const std::string bytes(reinterpret_cast<const char*>(norm.data()), norm.size() * 4);
  spit(dir / "config.json", "{}");
  spit(dir / "model.safetensors",
       safetensors_bytes(R"({"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,256]}})", bytes));
  auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;

  for (const InputScaling scaling : {InputScaling::awq, InputScaling::smooth}) {
    std::vector<LinearTensor> linears;
    ScaledWeights scaled, before;
    for (size_t i = 0; i < m.graph.nodes().size(); ++i) {
      const auto* linear = std::get_if<Linear>(&m.graph.nodes()[i].op);
      if (linear == nullptr) continue;
      const std::string tensor = m.graph.nodes()[i].weights[0].parts[0].name;
      linears.push_back(
          {.module = tensor, .tensor = tensor, .part = tensor, .rows = linear->out, .cols = linear->in, .node = i});
      before.weights[tensor] = fill(linear->out * linear->in);
      InputStatistics s{.cols = linear->in, .seen = 32, .sample = fill(32 * linear->in)};
      for (int64_t t = 0; t < 32; ++t) s.sample[t * s.cols + 5] *= 30;  // an outlier column, so that scales differ
      s.column_absmax.assign(s.cols, 0);
      for (size_t i = 0; i < s.sample.size(); ++i) {
        s.column_absmax[i % s.cols] = std::max(s.column_absmax[i % s.cols], std::fabs(s.sample[i]));
      }
      before.inputs[tensor] = s;
    }
    before.inputs["model.up_proj.weight"] = before.inputs["model.gate_proj.weight"];
    scaled = before;
    ASSERT_TRUE(fold_scales(*checkpoint, m.graph, linears, scaling, {.group = 32}, scaled).ok());
    const std::vector<float>& folded = scaled.changed.at("model.norm.weight");
    const auto &gate = scaled.weights["model.gate_proj.weight"], &up = scaled.weights["model.up_proj.weight"],
               &down = scaled.weights["model.down_proj.weight"];
    float most = 1;
    for (int64_t n = 0; n < m.inner; ++n) {
      for (int64_t k = 0; k < m.width; ++k) {
        const int64_t i = n * m.width + k;
        const float want = before.weights["model.gate_proj.weight"][i] * norm[k];
        ASSERT_NEAR(gate[i] * folded[k], want, 1e-5f * std::fabs(want));
        most = std::max(most, std::fabs(norm[k] / folded[k]));
        // up's rows carry the inverse of down's columns.
        const int64_t j = k * m.inner + n;
        const float product =
            before.weights["model.up_proj.weight"][i] * norm[k] * before.weights["model.down_proj.weight"][j];
        ASSERT_NEAR(up[i] * folded[k] * down[j], product, 1e-4f * std::fabs(product));
      }
    }
    EXPECT_GT(most, 1.5f);  // something was folded at all
    const InputStatistics& s = scaled.inputs["model.gate_proj.weight"];
    float absmax = 0;
    for (const float v : s.sample) absmax = std::max(absmax, std::fabs(v));
    EXPECT_NEAR(s.absmax, absmax, 1e-5f * absmax);
    const float x = before.inputs["model.gate_proj.weight"].sample[5];
    EXPECT_NEAR(scaled.inputs["model.gate_proj.weight"].sample[5], x * folded[5] / norm[5], 1e-4f * std::fabs(x));
  }
}

}  // namespace
}  // namespace pinion
