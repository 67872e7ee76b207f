#include "backend/all/op_cases.h"

#include <algorithm>
#include <iterator>

#include "graph/graph.h"  // to_text

namespace pinion {
namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

WeightSpec matrix(DType type, int64_t rows, int64_t cols) {
  return {.dtype = type, .rows = rows, .cols = cols};
}
WeightSpec vector(DType type, int64_t cols) {
  return {.dtype = type, .rows = 1, .cols = cols};
}

std::vector<CaseSequence> tokens(int32_t n) {
  return {{n, n}};
}

OpCase linear(DType type, int32_t rows, int64_t in, int64_t out, Epilogue epilogue = Epilogue::none,
              bool bias = false) {
  OpCase c{.name = "linear " + std::string(name(type)) + " " + std::to_string(rows) + "x" + std::to_string(in) + "x" +
                   std::to_string(out) + (epilogue == Epilogue::gated_silu ? " gated" : "") + (bias ? " bias" : ""),
           .op = Linear{.in = in, .out = out, .bias = bias, .epilogue = epilogue}};
  c.weights = {matrix(type, out, in)};
  if (bias) c.weights.push_back(vector(type, out));
  c.seqs = tokens(rows);
  return c;
}

std::vector<OpCase> linear_cases(CaseSet set) {
  std::vector<OpCase> cases;
  if (set == CaseSet::timing) {  // the layers of Llama-3.2-1B
    for (int32_t rows : {1, 4, 16, 64, 512}) {
      cases.push_back(linear(DType::bf16, rows, 2048, 3072));
      cases.push_back(linear(DType::bf16, rows, 2048, 2048));
      cases.push_back(linear(DType::bf16, rows, 2048, 16384, Epilogue::gated_silu));
      cases.push_back(linear(DType::bf16, rows, 8192, 2048));
      if (rows <= 16) cases.push_back(linear(DType::bf16, rows, 2048, 128256));
    }
    for (OpCase& c : packed_linear_cases(set)) cases.push_back(std::move(c));
    return cases;
  }
  for (int32_t rows = 1; rows <= 17; ++rows) cases.push_back(linear(DType::bf16, rows, 64, 36));
  for (DType type : kFloats) {
    for (int32_t rows : {1, 3, 8, 13, 33, 129}) {
      cases.push_back(linear(type, rows, 100, 70, Epilogue::none, true));  // neither is a multiple of 16
      cases.push_back(linear(type, rows, 37, 90, Epilogue::gated_silu, rows % 2 == 1));
    }
    cases.push_back(linear(type, 5, 7, 3));      // less than one vector, less than one tile
    cases.push_back(linear(type, 9, 3001, 41));  // several blocks of k, the last one odd
    cases.push_back(linear(type, 70, 2100, 130, Epilogue::gated_silu));
    cases.push_back(linear(type, 0, 64, 64));  // an empty step
  }
  cases.push_back(linear(DType::bf16, 300, 1040, 66));
  for (DType type : {DType::bf16, DType::f16}) {  // k in whole units of the streaming kernels, in one pass and in two
    for (int32_t rows : {1, 7, 8, 12, 16, 31, 64, 128}) {
      cases.push_back(linear(type, rows, 1280, 100, Epilogue::gated_silu, rows % 2 == 0));
      cases.push_back(linear(type, rows, 4224, 52, Epilogue::none, true));
    }
    cases.push_back(linear(type, 9, 72, 12808));  // a hundred rows for each of a GPU's multiprocessors
    cases.push_back(linear(type, 70, 136, 13208, Epilogue::gated_silu));
  }
  for (OpCase& c : packed_linear_cases(set)) cases.push_back(std::move(c));
  return cases;
}

OpCase attention(DType kv, std::vector<CaseSequence> seqs, int64_t heads, int64_t kv_heads, int64_t dim, int32_t window,
                 int32_t block_size, int inputs) {
  OpCase c{.name = "attention " + std::string(name(kv)) + " heads " + std::to_string(heads) + "/" +
                   std::to_string(kv_heads) + "x" + std::to_string(dim) + " window " + std::to_string(window) +
                   " blocks of " + std::to_string(block_size) + " inputs " + std::to_string(inputs) + " seqs",
           .op = Attention{.heads = heads, .kv_heads = kv_heads, .head_dim = dim, .scale = 0.125f, .window = window}};
  for (const auto& s : seqs) c.name += " " + std::to_string(s.tokens) + "@" + std::to_string(s.context);
  c.seqs = std::move(seqs);
  c.inputs = inputs;
  c.kv_dtype = kv;
  c.block_size = block_size;
  return c;
}

std::vector<OpCase> attention_cases(CaseSet set) {
  std::vector<OpCase> cases;
  if (set == CaseSet::timing) {
    for (int32_t context : {512, 4096, 16384})
      cases.push_back(attention(DType::bf16, {{1, context}}, 32, 8, 64, 0, 64, 1));
    cases.push_back(attention(DType::bf16, std::vector<CaseSequence>(16, {1, 1024}), 32, 8, 64, 0, 64, 1));
    cases.push_back(attention(DType::bf16, {{512, 512}}, 32, 8, 64, 0, 64, 1));
    cases.push_back(attention(DType::bf16, {{512, 4096}}, 32, 8, 64, 0, 64, 1));
    return cases;
  }
  for (DType kv : {DType::f8_e4m3, DType::i8}) {
    for (int inputs : {1, 3}) {
      cases.push_back(attention(kv, {{1, 1}}, 4, 2, 64, 0, 64, inputs));
      cases.push_back(attention(kv, {{1, 77}, {33, 33}, {5, 130}}, 8, 2, 64, 0, 16, inputs));
      cases.push_back(attention(kv, {{1, 300}, {40, 200}}, 4, 4, 80, 50, 32, inputs));
    }
    cases.push_back(attention(kv, {{1, 2500}}, 4, 1, 32, 1100, 64, 1));  // splits, the first behind the window
    cases.push_back(attention(kv, {{20, 1040}}, 3, 3, 5, 0, 7, 3));
  }
  for (DType kv : kFloats) {
    for (int inputs : {1, 3}) {
      cases.push_back(attention(kv, {{1, 1}}, 4, 2, 64, 0, 64, inputs));
      cases.push_back(attention(kv, {{1, 77}, {33, 33}, {5, 130}}, 8, 2, 64, 0, 16, inputs));
      cases.push_back(attention(kv, {{1, 300}, {40, 200}}, 4, 4, 80, 50, 32, inputs));  // window, odd head
    }
    cases.push_back(attention(kv, {{1, 2500}}, 4, 1, 32, 0, 64, 1));  // splits
    cases.push_back(attention(kv, {{3, 2300}, {1, 1024}, {1, 1025}}, 2, 1, 128, 0, 64, 1));
    cases.push_back(attention(kv, {{1, 2500}}, 4, 1, 20, 1100, 64, 1));  // the first splits behind the window
    cases.push_back(attention(kv, {{129, 129}}, 6, 2, 72, 17, 16, 3));
    cases.push_back(attention(kv, {{20, 1040}}, 3, 3, 5, 0, 7, 3));  // odd everything
    // Soft caps, ALiBi with the slopes of six heads and of a rank's half of twelve, sinks; each with a window and
    // splits.
    for (const Attention& special :
         {Attention{.softcap = 3}, Attention{.alibi = 0.7f, .alibi_heads = 6},
          Attention{.alibi = 1, .alibi_heads = 12, .alibi_first = 6}, Attention{.sinks = true}}) {
      for (int32_t window : {0, 40}) {
        OpCase c = attention(kv, {{1, 1400}, {37, 90}}, 6, 2, 48, window, 16, 1);
        auto& op = std::get<Attention>(c.op);
        op.softcap = special.softcap, op.sinks = special.sinks, op.alibi = special.alibi;
        op.alibi_heads = special.alibi_heads, op.alibi_first = special.alibi_first;
        c.name = to_text(c.op) + " " + c.name;
        if (op.sinks) c.weights = {vector(DType::f32, op.heads)};
        cases.push_back(std::move(c));
      }
    }
  }
  return cases;
}

OpCase rope_kv_write(DType kv, int32_t n, int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary,
                     bool interleaved, bool norm, int32_t block_size) {
  OpCase c{.name = "rope_kv_write " + std::string(name(kv)) + " " + std::to_string(n) + " tokens, heads " +
                   std::to_string(heads) + "/" + std::to_string(kv_heads) + "x" + std::to_string(dim) + " rotary " +
                   std::to_string(rotary) + (interleaved ? " interleaved" : "") + (norm ? " norm" : ""),
           .op = RopeKvWrite{.heads = heads,
                             .kv_heads = kv_heads,
                             .head_dim = dim,
                             .rotary_dim = rotary,
                             .interleaved = interleaved,
                             .qk_norm = norm}};
  if (norm) c.weights = {vector(DType::f32, dim), vector(DType::bf16, dim)};
  c.seqs = {{n, n + 5}, {1, 9}};
  c.kv_dtype = kv;
  c.block_size = block_size;
  return c;
}

std::vector<OpCase> moe_route_cases(CaseSet set) {
  std::vector<OpCase> cases;
  const auto add = [&](int32_t rows, const MoeRoute& op) {
    OpCase c{.name = "moe_route " + to_text(Op(op)) + " rows " + std::to_string(rows), .op = op};
    if (op.bias) c.weights = {vector(DType::f32, op.experts)};
    c.seqs = tokens(rows);
    cases.push_back(std::move(c));
  };
  const MoeRoute v3{.experts = 256,
                    .top_k = 8,
                    .groups = 8,
                    .topk_groups = 4,
                    .score = RouteScore::sigmoid,
                    .group_score = GroupScore::two_largest,
                    .bias = true,
                    .normalize = true,
                    .scale = 2.5f};
  if (set == CaseSet::timing) {
    for (int32_t rows : {1, 512}) {
      add(rows, {.experts = 128, .top_k = 8, .normalize = true});
      add(rows, v3);
    }
    return cases;
  }
  for (int32_t rows : {0, 1, 7, 130}) {
    add(rows, {.experts = 8, .top_k = 2, .normalize = true});
    add(rows, {.experts = 60, .top_k = 4, .scale = 16});
    add(rows, {.experts = 5, .top_k = 5});
    add(rows, {.experts = 33, .top_k = 6, .score = RouteScore::sigmoid, .bias = true, .normalize = true});
    add(rows, {.experts = 160, .top_k = 6, .groups = 8, .topk_groups = 3, .scale = 16});
    add(rows, v3);
    add(rows, {.experts = 16, .top_k = 2, .score = RouteScore::sparsemixer, .jitter = 0.01f});
    add(rows, {.experts = 4, .top_k = 2, .score = RouteScore::sparsemixer, .jitter = 0.3f});
  }
  return cases;
}

std::vector<OpCase> moe_linear_cases(CaseSet set) {
  std::vector<OpCase> cases;
  const auto add = [&](DType type, int32_t rows, const MoeLinear& op) {
    OpCase c{.name = "moe_linear " + std::string(name(type)) + " " + to_text(Op(op)) + " rows " + std::to_string(rows),
             .op = op};
    c.weights = {matrix(type, op.experts * op.out, op.in)};
    if (op.bias) c.weights.push_back(vector(DType::f32, op.experts * op.out));
    c.seqs = tokens(rows);
    c.inputs = 2;
    cases.push_back(std::move(c));
  };
  if (set == CaseSet::timing) {  // Qwen3-30B-A3B's experts
    for (int32_t rows : {1, 4, 16, 64, 512}) {
      const MoeLinear up{.experts = 128, .top_k = 8, .in = 2048, .out = 1536, .epilogue = ExpertEpilogue::gated};
      const MoeLinear down{.experts = 128, .top_k = 8, .in = 768, .out = 2048, .per_slot = true};
      add(DType::bf16, rows, up);
      add(DType::bf16, rows, down);
    }
    return cases;
  }
  for (DType type : kFloats) {
    for (int32_t rows : {0, 1, 3, 20, 150}) {
      MoeLinear op{.experts = 6, .top_k = 2, .in = 40, .out = 36};
      add(type, rows, op);
      op.per_slot = true, op.bias = true;
      add(type, rows, op);
      op.first_expert = 3;  // most slots are another rank's
      add(type, rows, op);
      op = {.experts = 5, .top_k = 3, .in = 37, .out = 46, .bias = rows % 2 == 1, .epilogue = ExpertEpilogue::gated};
      add(type, rows, op);
      op.act = Activation::gelu_tanh;
      add(type, rows, op);
      op.epilogue = ExpertEpilogue::clamped, op.limit = 1.5f, op.bias = true, op.first_expert = 1;
      add(type, rows, op);
    }
  }
  add(DType::bf16, 300, {.experts = 2, .top_k = 1, .in = 1100, .out = 130, .epilogue = ExpertEpilogue::gated});
  for (int32_t rows : {90, 150}) {  // 18 and 30 slots an expert: tiles of their own
    add(DType::bf16, rows, {.experts = 5, .top_k = 1, .in = 200, .out = 140, .epilogue = ExpertEpilogue::gated});
  }
  for (DType type : {DType::bf16, DType::f16}) {  // k in whole units of the streaming kernels, and not
    for (int32_t rows : {1, 5, 16}) {
      MoeLinear op{.experts = 12, .top_k = 3, .in = 288, .out = 52, .bias = true, .epilogue = ExpertEpilogue::gated};
      add(type, rows, op);
      op = {.experts = 3, .top_k = 2, .in = 2176, .out = 40, .first_expert = 1, .per_slot = true};
      add(type, rows, op);
    }
  }
  return cases;
}

std::vector<OpCase> moe_combine_cases(CaseSet set) {
  std::vector<OpCase> cases;
  const bool timing = set == CaseSet::timing;
  for (int32_t rows : timing ? std::vector<int32_t>{1, 512} : std::vector<int32_t>{0, 1, 6, 140}) {
    for (int inputs : {2, 3, 4}) {
      const MoeCombine op{.top_k = timing ? 8 : 3, .width = timing ? 2048 : 77};
      OpCase c{.name = "moe_combine " + std::to_string(rows) + " rows, inputs " + std::to_string(inputs), .op = op};
      c.seqs = tokens(rows);
      c.inputs = inputs;
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

OpCase mla(DType kv, DType type, std::vector<CaseSequence> seqs, const MlaAttention& op, int32_t block_size) {
  OpCase c{.name = "mla_attention " + std::string(name(kv)) + " " + std::string(name(type)) + " " + to_text(Op(op)) +
                   " blocks of " + std::to_string(block_size) + " seqs",
           .op = op};
  for (const auto& s : seqs) c.name += " " + std::to_string(s.tokens) + "@" + std::to_string(s.context);
  c.weights = {matrix(type, op.heads * (op.nope + op.v), op.rank)};
  c.seqs = std::move(seqs);
  c.kv_dtype = kv;
  c.block_size = block_size;
  return c;
}

std::vector<OpCase> mla_attention_cases(CaseSet set) {
  std::vector<OpCase> cases;
  if (set == CaseSet::timing) {  // DeepSeek-V2-Lite
    const MlaAttention lite{.heads = 16, .nope = 128, .rope = 64, .rank = 512, .v = 128, .scale = 0.07f};
    for (int32_t context : {512, 4096}) cases.push_back(mla(DType::bf16, DType::bf16, {{1, context}}, lite, 64));
    cases.push_back(mla(DType::bf16, DType::bf16, std::vector<CaseSequence>(16, {1, 1024}), lite, 64));
    cases.push_back(mla(DType::bf16, DType::bf16, {{512, 512}}, lite, 64));
    cases.push_back(mla(DType::bf16, DType::bf16, {{512, 4096}}, lite, 64));
    return cases;
  }
  const MlaAttention small{.heads = 4, .nope = 16, .rope = 8, .rank = 32, .v = 16, .scale = 0.2f};
  const MlaAttention odd{.heads = 3, .nope = 13, .rope = 6, .rank = 29, .v = 23, .scale = 0.15f};  // v past nope + rope
  for (DType kv : kFloats) {
    cases.push_back(mla(kv, DType::bf16, {{1, 1}}, small, 64));
    cases.push_back(mla(kv, DType::f32, {{1, 77}, {33, 33}, {5, 130}, {70, 100}}, small, 16));
    cases.push_back(mla(kv, DType::f16, {{20, 45}, {1, 9}}, odd, 7));
  }
  cases.push_back(mla(DType::f32, DType::bf16, {{1, 2300}}, small, 64));  // splits
  cases.push_back(mla(DType::bf16, DType::f32, {{130, 1100}, {1, 1025}}, odd, 32));
  // The latents of DeepSeek-V2 and V3: 576 columns; heads that fill a tile of rows, and that do not.
  const MlaAttention published{.heads = 3, .nope = 128, .rope = 64, .rank = 512, .v = 128, .scale = 0.02f};
  cases.push_back(mla(DType::bf16, DType::bf16, {{1, 150}, {40, 75}, {1, 1}}, published, 64));
  cases.push_back(mla(DType::f16, DType::f16, {{1, 100}, {1, 70}}, published, 16));
  return cases;
}

std::vector<OpCase> mla_kv_write_cases(CaseSet set) {
  std::vector<OpCase> cases;
  const auto add = [&](DType kv, int32_t n, const MlaKvWrite& op, int32_t block_size) {
    OpCase c{
        .name = "mla_kv_write " + std::string(name(kv)) + " " + to_text(Op(op)) + " " + std::to_string(n) + " tokens",
        .op = op};
    c.weights = {vector(DType::f32, op.rank)};
    c.seqs = {{n, n + 5}, {1, 9}};
    c.inputs = 2;
    c.kv_dtype = kv;
    c.block_size = block_size;
    cases.push_back(std::move(c));
  };
  if (set == CaseSet::timing) {
    for (int32_t n : {1, 512}) add(DType::bf16, n, {.heads = 16, .nope = 128, .rope = 64, .rank = 512}, 64);
    return cases;
  }
  for (DType kv : kFloats) {
    for (int32_t n : {1, 40}) {
      add(kv, n, {.heads = 4, .nope = 16, .rope = 8, .rank = 32}, 16);
      add(kv, n, {.heads = 3, .nope = 5, .rope = 6, .rank = 29, .interleaved = false, .eps = 1e-3f}, 7);
    }
  }
  return cases;
}

std::vector<OpCase> row_cases(OpKind kind, CaseSet set) {
  std::vector<OpCase> cases;
  const bool timing = set == CaseSet::timing;
  const auto plain = [&](std::string name, Op op, int32_t rows, int inputs, std::vector<WeightSpec> weights = {}) {
    cases.push_back({.name = name + " " + std::to_string(rows) + " rows",
                     .op = std::move(op),
                     .weights = std::move(weights),
                     .seqs = tokens(rows),
                     .inputs = inputs});
  };
  const std::vector<int32_t> rows = timing ? std::vector<int32_t>{1, 16, 512} : std::vector<int32_t>{0, 1, 5, 129};
  const std::vector<int64_t> widths = timing ? std::vector<int64_t>{2048} : std::vector<int64_t>{1, 33, 256, 1000};
  for (int32_t n : rows) {
    for (int64_t w : widths) {
      const std::string wide = " width " + std::to_string(w);
      for (DType type : kFloats) {
        const std::string t = " " + std::string(name(type)) + wide;
        if (timing && type != DType::bf16) continue;
        if (kind == OpKind::embed)
          plain("embed" + t, Embed{.vocab = 50, .width = w, .scale = 1.5f}, n, 0, {matrix(type, 50, w)});
        if (kind == OpKind::embed && !timing) {
          const Embed positions{.vocab = 140, .width = w, .positions = true, .offset = 2};
          plain("embed positions" + t, positions, n, 0, {matrix(type, 140, w)});
        }
        if (kind == OpKind::layer_norm) {
          plain("layer_norm" + t, LayerNorm{.width = w}, n, 1, {vector(type, w)});
          const LayerNorm biased{.width = w, .eps = 1e-3f, .offset = 1, .bias = true};
          plain("layer_norm bias" + t, biased, n, 1, {vector(type, w), vector(type, w)});
          const LayerNorm heads{.width = w, .bias = true, .groups = 3};
          plain("layer_norm groups" + t, heads, n, 1, {vector(type, 3 * w), vector(type, 3 * w)});
        }
        if (kind == OpKind::rms_norm) {
          plain("rms_norm" + t, RmsNorm{.width = w}, n, 1, {vector(type, w)});
          plain("rms_norm offset" + t, RmsNorm{.width = w, .eps = 1e-6f, .offset = 1}, n, 1, {vector(type, w)});
        }
        if (kind == OpKind::add_rms_norm) {
          plain("add_rms_norm" + t, AddRmsNorm{.width = w}, n, 2, {vector(type, w)});
          plain("add_rms_norm scale" + t, AddRmsNorm{.width = w, .scale = 0.3f}, n, 2, {vector(type, w)});
        }
      }
      if (kind == OpKind::add) {
        plain("add" + wide, Add{.width = w}, n, 2);
        plain("add scale" + wide, Add{.width = w, .scale = 0.3f}, n, 2);
      }
      if (kind == OpKind::soft_cap) {
        plain("soft_cap" + wide, SoftCap{.width = w, .scale = 0.7f, .cap = 1.5f}, n, 1);
        plain("soft_cap scale" + wide, SoftCap{.width = w, .scale = 0.25f}, n, 1);
      }
      if (kind == OpKind::select_rows) plain("select_rows" + wide, SelectRows{.width = w}, n, 1);
      if (kind == OpKind::gated_act || kind == OpKind::act) {
        for (size_t i = 0; i < enum_names(Activation{}).size(); ++i) {
          const auto a = static_cast<Activation>(i);
          const std::string activation = " " + std::string(enum_names(a)[i]) + wide;
          if (kind == OpKind::act) {
            plain("act" + activation, Act{.width = w, .act = a}, n, 1);
          } else {
            plain("gated_act" + activation, GatedAct{.width = w, .act = a}, n, 2);
          }
        }
      }
    }
    if (kind == OpKind::rope) {
      plain("rope", Rope{.heads = 8, .head_dim = 64, .rotary_dim = 64}, n, 1);
      if (timing) continue;
      plain("rope partial", Rope{.heads = 3, .head_dim = 80, .rotary_dim = 20}, n, 1);
      plain("rope interleaved", Rope{.heads = 3, .head_dim = 36, .rotary_dim = 36, .interleaved = true}, n, 1);
    }
    if (kind == OpKind::rope_kv_write && n > 0) {
      cases.push_back(rope_kv_write(DType::bf16, n, 32, 8, 64, 64, false, false, 64));
      if (timing) continue;
      for (DType kv : {DType::f8_e4m3, DType::i8}) cases.push_back(rope_kv_write(kv, n, 4, 2, 80, 32, false, true, 16));
      for (DType kv : kFloats) {
        cases.push_back(rope_kv_write(kv, n, 4, 2, 80, 32, false, true, 16));
        cases.push_back(rope_kv_write(kv, n, 6, 3, 36, 36, true, false, 32));
        cases.push_back(rope_kv_write(kv, n, 4, 1, 24, 0, false, false, 16));  // positions come from elsewhere
        OpCase offset = rope_kv_write(kv, n, 4, 2, 40, 40, false, true, 16);
        std::get<RopeKvWrite>(offset.op).offset = 1;
        offset.name += " offset";
        cases.push_back(std::move(offset));
      }
    }
  }
  return cases;
}

}  // namespace

int64_t OpCase::rows() const {
  int64_t n = 0;
  for (const auto& s : seqs) n += s.tokens;
  return n;
}

Call OpCase::call() const {
  Call call{.op = &op,
            .rows = rows(),
            .seqs = static_cast<int64_t>(seqs.size()),
            .context = 1,
            .inputs = inputs,
            .weights = weights,
            .kv_dtype = kv_dtype};
  for (const auto& s : seqs) call.context = std::max<int64_t>(call.context, s.context);
  return call;
}

std::vector<OpCase> op_cases(OpKind kind, CaseSet set) {
  switch (kind) {
    case OpKind::linear:
      return linear_cases(set);
    case OpKind::embed: {
      std::vector<OpCase> cases = row_cases(kind, set);
      if (set == CaseSet::correctness) std::ranges::move(packed_embed_cases(), std::back_inserter(cases));
      return cases;
    }
    case OpKind::attention:
      return attention_cases(set);
    case OpKind::moe_route:
      return moe_route_cases(set);
    case OpKind::moe_linear: {
      std::vector<OpCase> cases = moe_linear_cases(set);
      std::ranges::move(packed_moe_cases(set), std::back_inserter(cases));
      return cases;
    }
    case OpKind::moe_combine:
      return moe_combine_cases(set);
    case OpKind::mla_attention:
      return mla_attention_cases(set);
    case OpKind::mla_kv_write:
      return mla_kv_write_cases(set);
    default:
      return row_cases(kind, set);
  }
}

}  // namespace pinion
