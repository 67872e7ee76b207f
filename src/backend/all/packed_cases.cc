// Linears and embeddings over packed weights: every kind of packing with the shapes at which its loops end in other
// places.
#include "backend/all/op_cases.h"
#include "graph/graph.h"  // to_text

namespace pinion {
namespace {

constexpr Packing kPackings[] = {
    {PackedKind::fp8, 0, false},
    {PackedKind::fp8, 128, false},
    {PackedKind::int8, 0, false},
    {PackedKind::int8, 64, true},
    {PackedKind::int4, 0, true},
    {PackedKind::int4, 32, true},
    {PackedKind::int4, 128, false},
    {PackedKind::nvfp4, 16, false},
    {PackedKind::mxfp4, 32, false},
    {PackedKind::int8, 0, true},
    {PackedKind::int4, 32, true, true},
    {PackedKind::int8, 32, false, true},
    {PackedKind::int8, 16},
    {.kind = PackedKind::int4, .group = 32, .zeros = true, .ordered = true},
    {.kind = PackedKind::int8, .group = 64, .ordered = true, .inputs = InputRounding::int8_token},
    {.kind = PackedKind::int8, .inputs = InputRounding::int8_token},
    {.kind = PackedKind::int8, .inputs = InputRounding::int8_static, .input_scale = 0.02f},
    {.kind = PackedKind::int4, .group = 64, .inputs = InputRounding::int8_token},
    {.kind = PackedKind::int4, .group = 32, .zeros = true, .inputs = InputRounding::int8_static, .input_scale = 0.02f},
    {.kind = PackedKind::int4, .group = 32, .inputs = InputRounding::fp8_token},
    {.kind = PackedKind::fp8, .inputs = InputRounding::fp8_token},
    {.kind = PackedKind::fp8, .inputs = InputRounding::fp8_static, .input_scale = 0.005f},
    {.kind = PackedKind::fp8, .group = 128, .inputs = InputRounding::fp8_group128},
};

OpCase packed_linear(const Packing& packing, int32_t rows, int64_t in, int64_t out, Epilogue epilogue, bool bias) {
  OpCase c{.name = {}, .op = Linear{.in = in, .out = out, .bias = bias, .epilogue = epilogue}};
  c.weights = {{DType::bf16, Layout::packed, out, in, packing}};
  c.name = "linear " + str(c.weights[0]) + " " + std::to_string(rows) + "x" + std::to_string(in) + "x" +
           std::to_string(out) + (epilogue == Epilogue::gated_silu ? " gated" : "") + (bias ? " bias" : "");
  if (bias) c.weights.push_back({.dtype = DType::f32, .rows = 1, .cols = out});
  c.seqs = {{rows, rows}};
  return c;
}

}  // namespace

std::vector<OpCase> packed_linear_cases(CaseSet set) {
  std::vector<OpCase> cases;
  if (set == CaseSet::timing) {  // Llama-3.2-1B's widest linear
    for (int32_t rows : {1, 4, 16, 64}) {
      for (const Packing& p : kPackings)
        cases.push_back(packed_linear(p, rows, 2048, 16384, Epilogue::gated_silu, false));
    }
    return cases;
  }
  for (const Packing& p : kPackings) {
    for (int32_t rows : {1, 2, 7, 13}) {
      cases.push_back(packed_linear(p, rows, 96, 70, Epilogue::none, true));
      cases.push_back(packed_linear(p, rows, 100, 50, Epilogue::gated_silu, false));  // the last unit is not full
    }
    cases.push_back(packed_linear(p, 5, 7, 3, Epilogue::none, false));      // less than one vector, less than one tile
    cases.push_back(packed_linear(p, 9, 3001, 41, Epilogue::none, false));  // several chunks, the last one odd
    cases.push_back(packed_linear(p, 70, 1100, 130, Epilogue::gated_silu, true));
    cases.push_back(packed_linear(p, 0, 64, 64, Epilogue::none, false));
  }
  return cases;
}

std::vector<OpCase> packed_moe_cases(CaseSet set) {
  std::vector<OpCase> cases;
  const auto add = [&](const Packing& p, int32_t rows, const MoeLinear& op) {
    OpCase c{.name = {}, .op = op};
    c.weights = {{DType::bf16, Layout::packed, op.experts * op.out, op.in, p}};
    c.name = "moe_linear " + str(c.weights[0]) + " " + to_text(Op(op)) + " rows " + std::to_string(rows);
    if (op.bias) c.weights.push_back({.dtype = DType::f32, .rows = 1, .cols = op.experts * op.out});
    c.seqs = {{rows, rows}};
    c.inputs = 2;
    cases.push_back(std::move(c));
  };
  if (set == CaseSet::timing) {  // Qwen3-30B-A3B's experts in 4 bits
    const MoeLinear up{.experts = 128, .top_k = 8, .in = 2048, .out = 1536, .epilogue = ExpertEpilogue::gated};
    for (const int32_t rows : {1, 16, 64}) add({PackedKind::int4, 128}, rows, up);
    return cases;
  }
  for (const Packing& p : kPackings) {
    for (const int32_t rows : {0, 1, 20}) {
      MoeLinear op{.experts = 6, .top_k = 2, .in = 96, .out = 36, .first_expert = 3, .per_slot = true, .bias = true};
      add(p, rows, op);
      op = {.experts = 5, .top_k = 3, .in = 70, .out = 46, .bias = true, .epilogue = ExpertEpilogue::clamped};
      op.limit = 1.5f;
      add(p, rows, op);
    }
    add(p, 90, {.experts = 2, .top_k = 1, .in = 160, .out = 66, .epilogue = ExpertEpilogue::gated});
  }
  return cases;
}

std::vector<OpCase> packed_embed_cases() {
  std::vector<OpCase> cases;
  for (const Packing& p : kPackings) {
    if (p.inputs != InputRounding::none || p.ordered) continue;
    for (const int64_t width : {96, 70, 2100}) {
      OpCase c{.name = {}, .op = Embed{.vocab = 40, .width = width, .scale = 1.5f}};
      c.weights = {{DType::bf16, Layout::packed, 40, width, p}};
      c.name = "embed " + str(c.weights[0]) + " " + std::to_string(width);
      c.seqs = {{7, 7}};
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

}  // namespace pinion
