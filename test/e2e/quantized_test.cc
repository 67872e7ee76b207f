// Quantised models through the whole engine: packed weights give what expanding them gives, in fewer bytes; a GGUF file
// gives what its checkpoint gives; a KV cache in 8 bits stays near the float one.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "backend/all/backends.h"
#include "calibrate/quantize_model.h"
#include "calibrate/sequence_runner.h"
#include "checkpoint/gguf_for_test.h"
#include "checkpoint/writer.h"
#include "compiled_model.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

const fs::path families = fs::path(PINION_GOLDEN_DIR) / "families";
const ExecutorOptions limits{.max_batch_size = 1, .max_num_tokens = 64, .max_outputs = 64};
const std::vector<int32_t> ids{5, 17, 100, 3, 44, 44, 9, 12, 150, 7, 23, 61};

class Scratch {
 public:
  Scratch()
      : path_(fs::temp_directory_path() /
              ("pinion-quantized-" + std::to_string(::getpid()) + "-" + std::to_string(next_++))) {
    fs::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  static inline int next_ = 0;
  fs::path path_;
};

std::vector<float> logits(const CompiledModel& m) {
  SequenceRunner runner(m.executor());
  const auto all = runner.run(ids, 0, static_cast<int32_t>(ids.size()));
  return {all.begin(), all.end()};
}

double farthest(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max<double>(most, std::fabs(a[i] - b[i]));
  return most;
}

// The family's checkpoint in a format that needs no calibration, its inputs in floats unless asked.
fs::path quantized(const Scratch& scratch, const char* family, const char* format, QuantizeModelOptions options = {},
                   InputQuant input = InputQuant::none) {
  const Checkpoint checkpoint = *Checkpoint::open(families / family);
  const Model model = *build_model(checkpoint.config(), "config.json");
  options.format = *find_quant_format(format);
  options.encode = options.format->defaults;
  options.encode.group = 32;
  options.encode.input = input;
  auto made = quantize_model(checkpoint, model, options, nullptr);
  check(made.ok(), made ? "" : made.error().message);
  const fs::path to = scratch / format;
  const Status written = write_hf_checkpoint(to, made->config, made->tensors, {});
  check(written.ok(), written ? "" : written.error().message);
  return to;
}

int packed_weights(const Engine& e) {
  return static_cast<int>(
      std::ranges::count(e.weights(), Layout::packed, [](const PackedWeight& w) { return w.spec.layout; }));
}

TEST(Quantized, PackedWeightsGiveWhatExpandingThemGives) {
  for (const char* backend : {"cpu", "reference"}) {
    for (const char* format : {"fp8", "int8_wo", "int4_wo", "nvfp4", "mxfp4"}) {
      SCOPED_TRACE(std::string(backend) + " " + format);
      const Scratch scratch;
      const fs::path checkpoint = quantized(scratch, "llama3_gqa", format);
      const CompiledModel packed(checkpoint, *find_backend(backend), {.dtype = DType::f32}, limits);
      const CompiledModel expanded(checkpoint, *find_backend(backend), {.dtype = DType::f32, .packed = false}, limits);
      EXPECT_EQ(packed_weights(expanded.engine()), 0);
      EXPECT_EQ(packed_weights(packed.engine()), 8);  // qkv, o, gate and up, down of two layers
      EXPECT_LT(packed.engine().data_bytes(), expanded.engine().data_bytes() * 6 / 10);
      EXPECT_LT(farthest(logits(packed), logits(expanded)), 2e-4);
    }
  }
}

// Experts are packed as linears are: two matrices of all experts in a layer.
TEST(Quantized, ExpertsStayPacked) {
  for (const char* backend : {"cpu", "reference"}) {
    for (const char* format : {"fp8", "int4_wo", "mxfp4"}) {
      SCOPED_TRACE(std::string(backend) + " " + format);
      const Scratch scratch;
      const fs::path checkpoint = quantized(scratch, "mixtral", format);
      const CompiledModel packed(checkpoint, *find_backend(backend), {.dtype = DType::f32}, limits);
      const CompiledModel expanded(checkpoint, *find_backend(backend), {.dtype = DType::f32, .packed = false}, limits);
      EXPECT_EQ(packed_weights(packed.engine()), 8);  // qkv, o, gate and up, down of two layers
      EXPECT_LT(packed.engine().data_bytes(), expanded.engine().data_bytes() * 6 / 10);
      EXPECT_LT(farthest(logits(packed), logits(expanded)), 2e-4);
    }
  }
}

// Calibrated experts: what is folded into norms, routers and up projections changes no function, and AWQ's searches
// lower the error of the outputs. What is calibrated for a layer's experts is what was sent to them.
TEST(Quantized, ExpertsAreCalibrated) {
  for (const auto& [family, router] : {std::pair{"mixtral", "block_sparse_moe.gate"},
                                       {"qwen2_moe", "mlp.shared_expert_gate"},
                                       {"qwen3_moe", "mlp.gate"}}) {
    SCOPED_TRACE(family);
    const Scratch scratch;
    const Backend& cpu = *find_backend("cpu");
    const CompiledModel slow(families / family, cpu, {.dtype = DType::f32, .disabled_passes = {"all"}}, limits);
    InputCollector inputs(slow.engine().graph(), 256);
    slow.executor().observe([&](size_t node, std::span<const TensorView> out) { inputs.see(node, out); });
    SequenceRunner runner(slow.executor());
    for (int32_t text = 0; text < 12; ++text) {
      std::vector<int32_t> tokens;
      for (int32_t i = 0; i < 60; ++i) tokens.push_back((i * i * 7 + text * 31 + i * 13) % 150);
      runner.run(tokens, 0, 60);
    }
    const std::vector<float> want = logits(slow);
    const double largest = farthest(want, std::vector<float>(want.size(), 0));
    const Checkpoint checkpoint = *Checkpoint::open(families / family);
    const Model model = *build_model(checkpoint.config(), "config.json");
    std::map<std::string, double> error;
    for (const auto& [format, allowed] :
         {std::pair{"int8_sq", 0.05}, {"int4_wo", 0.6}, {"int4_awq", 0.6}, {"int4_gptq", 0.6}}) {
      SCOPED_TRACE(format);
      QuantizeModelOptions options{.format = *find_quant_format(format)};
      options.encode = options.format->defaults;
      options.encode.group = 0, options.encode.input = InputQuant::none;
      const auto made = quantize_model(checkpoint, model, options, &inputs);
      ASSERT_TRUE(made.ok()) << made.error().message;
      for (const LinearReport& l : made->report) error[format] += l.error / static_cast<double>(made->report.size());
      ASSERT_TRUE(write_hf_checkpoint(scratch / format, made->config, made->tensors, {}).ok());
      const CompiledModel m(scratch / format, cpu, {.dtype = DType::f32, .packed = false}, limits);
      EXPECT_LT(farthest(logits(m), want), allowed * largest);
      const bool folds = options.format->scaling != InputScaling::none;
      for (const char* floats : {"input_layernorm", "post_attention_layernorm", router}) {
        const std::string name = std::string("model.layers.0.") + floats + ".weight";
        EXPECT_EQ(std::ranges::count(made->made, name, &ExportedTensor::name), folds) << name;
      }
    }
    // Static inputs: a scale for each linear, experts too.
    QuantizeModelOptions fixed{.format = *find_quant_format("fp8")};
    fixed.encode = fixed.format->defaults;
    fixed.encode.input = InputQuant::e4m3_static;
    const auto made = quantize_model(checkpoint, model, fixed, &inputs);
    ASSERT_TRUE(made.ok()) << made.error().message;
    EXPECT_EQ(std::ranges::count_if(made->made, [](const auto& t) { return t.name.ends_with(".input_scale"); }),
              made->linears);
    ASSERT_TRUE(write_hf_checkpoint(scratch / "fixed", made->config, made->tensors, {}).ok());
    const CompiledModel rounds(scratch / "fixed", cpu, {.dtype = DType::f32}, limits);
    EXPECT_LT(farthest(logits(rounds), want), 0.6 * largest);
    EXPECT_LT(error["int4_awq"], 0.9 * error["int4_wo"]);
    EXPECT_LT(error["int4_gptq"], 0.9 * error["int4_wo"]);
  }
}

// Rounded inputs move the logits, a little, and both backends alike: a number on the other side of a step is one step
// of one input.
TEST(Quantized, InputsAreRoundedWhereTheFormatSaysSo) {
  const Backend &cpu = *find_backend("cpu"), &reference = *find_backend("reference");
  for (const auto& [format, input] : {std::pair{"fp8", InputQuant::e4m3_token},
                                      {"int8_wo", InputQuant::int8_token},
                                      {"int4_wo", InputQuant::e4m3_token},
                                      {"int4_wo", InputQuant::int8_token}}) {
    SCOPED_TRACE(str(Scheme{.input = input}) + " of " + format);
    const Scratch scratch;
    const fs::path checkpoint = quantized(scratch, "llama3_gqa", format, {}, input);
    const CompiledModel rounds(checkpoint, cpu, {.dtype = DType::f32}, limits);
    const CompiledModel oracle(checkpoint, reference, {.dtype = DType::f32}, limits);
    const CompiledModel floats(checkpoint, cpu, {.dtype = DType::f32, .packed = false}, limits);
    const std::vector<float> got = logits(rounds), want = logits(oracle), plain = logits(floats);
    const double largest = farthest(plain, std::vector<float>(plain.size(), 0)), moved = farthest(want, plain);
    EXPECT_GT(moved, 1e-4 * largest);
    EXPECT_LT(moved, 0.25 * largest);
    EXPECT_LT(farthest(got, want), 0.5 * moved);
  }
}

TEST(Quantized, TheHeadAndTheEmbeddingCanBeInEightBits) {
  const Scratch scratch;
  QuantizeModelOptions options;
  options.head = options.embedding = true;
  const fs::path checkpoint = quantized(scratch, "llama32_tied", "int8_wo", options);
  const CompiledModel packed(checkpoint, *find_backend("cpu"), {.dtype = DType::f32}, limits);
  const CompiledModel expanded(checkpoint, *find_backend("cpu"), {.dtype = DType::f32, .packed = false}, limits);
  EXPECT_EQ(packed_weights(packed.engine()), 9);  // one matrix for both
  EXPECT_LT(farthest(logits(packed), logits(expanded)), 2e-4);
}

TEST(Quantized, SomeLinearsCanHaveEightBitsBesideFour) {
  const Scratch scratch;
  QuantizeModelOptions options;
  options.in_8bit = {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"};
  const fs::path checkpoint = quantized(scratch, "llama3_gqa", "int4_wo", options);
  const CompiledModel packed(checkpoint, *find_backend("cpu"), {.dtype = DType::f32}, limits);
  EXPECT_EQ(packed_weights(packed.engine()), 8);
  std::map<PackedKind, int> kinds;
  for (const PackedWeight& w : packed.engine().weights()) ++kinds[w.spec.packing.kind];
  EXPECT_EQ(kinds[PackedKind::int8], 2);
  EXPECT_EQ(kinds[PackedKind::int4], 6);
  const CompiledModel expanded(checkpoint, *find_backend("cpu"), {.dtype = DType::f32, .packed = false}, limits);
  EXPECT_LT(farthest(logits(packed), logits(expanded)), 2e-4);
}

// Quantising while building takes what quantising before gives; int8 inputs change little.
TEST(Quantized, ABuildCanQuantiseByItself) {
  const Scratch scratch;
  const Backend& cpu = *find_backend("cpu");
  const CompiledModel before(quantized(scratch, "llama3_gqa", "int8_wo"), cpu, {.dtype = DType::f32}, limits);
  const CompiledModel itself(families / "llama3_gqa", cpu, {.dtype = DType::f32, .qformat = "int8_wo"}, limits);
  EXPECT_EQ(packed_weights(itself.engine()), 8);
  EXPECT_EQ(farthest(logits(before), logits(itself)), 0);
  auto device = cpu.open({});
  const auto refused = build_engine(*Checkpoint::open(families / "llama3_gqa"), cpu, **device,
                                    {.time_kernels = false, .qformat = "int4_awq"}, scratch / "refused");
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("calibration"), std::string::npos);
}

TEST(Quantized, RetargetingExpandsWhatNoKernelReads) {
  const Scratch scratch;
  const Backend& cpu = *find_backend("cpu");
  const CompiledModel packed(quantized(scratch, "llama3_gqa", "int4_wo"), cpu, {.dtype = DType::f32}, limits);
  auto device = *cpu.open({});
  const auto again = retarget(packed.engine(), cpu, *device, {.time_kernels = false}, scratch / "again");
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(packed_weights(*Engine::open(scratch / "again")), 8);
}

TEST(Quantized, AnEightBitCacheStaysNearTheFloatOne) {
  for (const char* backend : {"cpu", "reference"}) {
    const Backend& b = *find_backend(backend);
    const CompiledModel exact(families / "qwen3", b, {.dtype = DType::f32}, limits);
    const std::vector<float> want = logits(exact);
    double largest = 0;
    for (float v : want) largest = std::max<double>(largest, std::fabs(v));
    for (const auto& [type, allowed] : {std::pair{DType::f8_e4m3, 0.1}, {DType::i8, 0.02}}) {
      const CompiledModel m(families / "qwen3", b, {.dtype = DType::f32, .kv_dtype = type}, limits);
      const double off = farthest(want, logits(m));
      EXPECT_LT(off, allowed * largest) << backend << " " << name(type);
      EXPECT_GT(off, 0) << "the cache is not rounded at all";
      // A head's key: 32 numbers of 4 bytes, or of one, int8's with its scale.
      EXPECT_EQ(m.executor().kv_groups()[0].block_bytes,
                exact.executor().kv_groups()[0].block_bytes * (type == DType::i8 ? 36 : 32) / 128);
    }
  }
}

// ---- GGUF ----

// The checkpoint as llama.cpp's converter writes it, in f32 or, matrices of whole blocks, Q8_0.
std::string to_gguf(const fs::path& dir, const std::string& arch, bool paired, bool q8) {
  const Checkpoint c = *Checkpoint::open(dir);
  const Json& j = c.config();
  GgufBytes b;
  const auto u32 = [&](const char* key, const char* from) { b.u32(arch + key, j[from].get<uint32_t>()); };
  b.string("general.architecture", arch);
  u32(".embedding_length", "hidden_size"), u32(".block_count", "num_hidden_layers");
  u32(".feed_forward_length", "intermediate_size"), u32(".attention.head_count", "num_attention_heads");
  u32(".attention.head_count_kv", "num_key_value_heads"), u32(".context_length", "max_position_embeddings");
  const int64_t d = j.value("head_dim", j["hidden_size"].get<int64_t>() / j["num_attention_heads"].get<int64_t>());
  b.u32(arch + ".attention.key_length", static_cast<uint32_t>(d));
  b.u32(arch + ".attention.value_length", static_cast<uint32_t>(d));
  b.f32(arch + ".rope.freq_base", j["rope_parameters"]["rope_theta"].get<float>());
  const bool layer_norm = j.contains("norm_epsilon");
  b.f32(arch + (layer_norm ? ".attention.layer_norm_epsilon" : ".attention.layer_norm_rms_epsilon"),
        j[layer_norm ? "norm_epsilon" : "rms_norm_eps"].get<float>());
  if (j.contains("sliding_window") && j["sliding_window"].is_number())
    u32(".attention.sliding_window", "sliding_window");
  if (const Json& rope = j["rope_parameters"]; rope.value("rope_type", "") == "longrope") {
    b.u32(arch + ".rope.scaling.original_context_length", rope["original_max_position_embeddings"].get<uint32_t>());
    for (const auto& [from, to] :
         {std::pair{"long_factor", "rope_factors_long.weight"}, {"short_factor", "rope_factors_short.weight"}}) {
      const auto factors = rope[from].get<std::vector<float>>();
      b.tensor(to, {std::ssize(factors)}, 0, {reinterpret_cast<const char*>(factors.data()), factors.size() * 4});
    }
  }
  const std::pair<std::string, std::string> names[] = {{"model.embed_tokens", "token_embd"},
                                                       {"model.norm", "output_norm"},
                                                       {"lm_head", "output"},
                                                       {"model.layers.", "blk."},
                                                       {"input_layernorm", "attn_norm"},
                                                       {"self_attn.q_proj", "attn_q"},
                                                       {"self_attn.k_proj", "attn_k"},
                                                       {"self_attn.v_proj", "attn_v"},
                                                       {"self_attn.o_proj", "attn_output"},
                                                       {"self_attn.q_norm", "attn_q_norm"},
                                                       {"self_attn.k_norm", "attn_k_norm"},
                                                       {"self_attn.qkv_proj", "attn_qkv"},
                                                       {"mlp.gate_up_proj", "ffn_up"},
                                                       {"mlp.c_fc", "ffn_up"},
                                                       {"mlp.c_proj", "ffn_down"},
                                                       {"post_attention_layernorm", "ffn_norm"},
                                                       {"mlp.gate_proj", "ffn_gate"},
                                                       {"mlp.up_proj", "ffn_up"},
                                                       {"mlp.down_proj", "ffn_down"}};
  for (const std::string& tensor : c.names()) {
    const TensorRef t = *c.tensor(tensor);
    std::string name = tensor;
    for (const auto& [from, to] : names) {
      if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
    }
    const int64_t rows = t.shape[0], cols = t.shape.rank() == 2 ? t.shape[1] : 1;
    std::vector<float> values(rows * cols), out(values.size());
    convert_floats(t.data.data(), t.dtype, reinterpret_cast<std::byte*>(values.data()), DType::f32, rows * cols);
    const bool swap =
        paired && cols > 1 && (name.find("attn_q.") != std::string::npos || name.find("attn_k.") != std::string::npos);
    for (int64_t r = 0; r < rows; ++r) {  // llama.cpp's permute: [head][half][i] to [head][i][half]
      const int64_t within = r % d, to = swap ? r - within + 2 * (within % (d / 2)) + within / (d / 2) : r;
      std::copy_n(values.data() + r * cols, cols, out.data() + to * cols);
    }
    if (cols == 1) {
      b.tensor(name, {rows}, 0, {reinterpret_cast<const char*>(out.data()), out.size() * 4});
      continue;
    }
    std::string data;
    for (int64_t i = 0; q8 && i < rows * cols; i += 32) {
      float absmax = 0;
      for (int k = 0; k < 32; ++k) absmax = std::max(absmax, std::fabs(out[i + k]));
      const uint16_t scale = f32_to_f16(absmax / 127);
      data += GgufBytes::number(scale);
      for (int k = 0; k < 32; ++k) {
        data +=
            static_cast<char>(scale ? std::clamp(std::nearbyint(out[i + k] / f16_to_f32(scale)), -127.0f, 127.0f) : 0);
      }
    }
    if (!q8) data.assign(reinterpret_cast<const char*>(out.data()), out.size() * 4);
    b.tensor(name, {cols, rows}, q8 ? 8 : 0, data);
  }
  return b.bytes();
}

TEST(Quantized, AGgufFileGivesWhatItsCheckpointGives) {
  const Backend& cpu = *find_backend("cpu");
  for (const auto& [family, arch] : {std::pair{"llama3_gqa", "llama"},
                                     {"qwen3", "qwen3"},
                                     {"phi3", "phi3"},
                                     {"phi3_longrope", "phi3"},
                                     {"starcoder2", "starcoder2"}}) {
    SCOPED_TRACE(family);
    const Scratch scratch;
    const bool paired = std::string(arch) == "llama";
    std::ofstream(scratch / "f32.gguf", std::ios::binary) << to_gguf(families / family, arch, paired, false);
    std::ofstream(scratch / "q8.gguf", std::ios::binary) << to_gguf(families / family, arch, paired, true);
    const CompiledModel want(families / family, cpu, {.dtype = DType::f32}, limits);
    const CompiledModel same(scratch / "f32.gguf", cpu, {.dtype = DType::f32}, limits);
    // Longrope's factors are doubles in config.json, floats in GGUF.
    const double factors = family == std::string_view("phi3_longrope") ? 1e-4 : 0;
    EXPECT_LE(farthest(logits(want), logits(same)), factors);
    const CompiledModel q8(scratch / "q8.gguf", cpu, {.dtype = DType::f32}, limits);
    // The embedding and the head too, which StarCoder2 ties.
    EXPECT_EQ(packed_weights(q8.engine()), family == std::string_view("starcoder2") ? 9 : 10);
    const CompiledModel expanded(scratch / "q8.gguf", cpu, {.dtype = DType::f32, .packed = false}, limits);
    EXPECT_LT(farthest(logits(expanded), logits(q8)), 2e-4);
    const double largest = farthest(logits(want), std::vector<float>(logits(want).size(), 0));
    EXPECT_LT(farthest(logits(want), logits(q8)), 0.05 * largest);
  }
}

}  // namespace
}  // namespace pinion
