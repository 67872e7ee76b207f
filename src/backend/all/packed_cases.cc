// Linears and embeddings over packed weights: every kind of packing with the shapes at which its loops end in other
// places.
#include "backend/all/op_cases.h"

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
    {.kind = PackedKind::int8, .int8_inputs = true},
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

std::vector<OpCase> packed_embed_cases() {
  std::vector<OpCase> cases;
  for (const Packing& p : kPackings) {
    if (p.int8_inputs) continue;
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
