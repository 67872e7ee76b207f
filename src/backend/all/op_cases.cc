#include "backend/all/op_cases.h"

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
        if (kind == OpKind::rms_norm) {
          plain("rms_norm" + t, RmsNorm{.width = w}, n, 1, {vector(type, w)});
          plain("rms_norm offset" + t, RmsNorm{.width = w, .eps = 1e-6f, .offset = 1}, n, 1, {vector(type, w)});
        }
        if (kind == OpKind::add_rms_norm) plain("add_rms_norm" + t, AddRmsNorm{.width = w}, n, 2, {vector(type, w)});
      }
      if (kind == OpKind::add) plain("add" + wide, Add{.width = w}, n, 2);
      if (kind == OpKind::select_rows) plain("select_rows" + wide, SelectRows{.width = w}, n, 1);
      if (kind == OpKind::gated_act) {
        for (Activation a : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
          plain("gated_act " + std::to_string(static_cast<int>(a)) + wide, GatedAct{.width = w, .act = a}, n, 2);
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
      for (DType kv : kFloats) {
        cases.push_back(rope_kv_write(kv, n, 4, 2, 80, 32, false, true, 16));
        cases.push_back(rope_kv_write(kv, n, 6, 3, 36, 36, true, false, 32));
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
    case OpKind::attention:
      return attention_cases(set);
    default:
      return row_cases(kind, set);
  }
}

}  // namespace pinion
