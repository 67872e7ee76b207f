#include "graph/graph.h"

#include <fmt/format.h>

#include <set>

#include "base/check.h"

namespace pinion {
namespace {

ShapeResult output_shapes(const Op& op, std::span<const ValueSpec> in) {
  return std::visit([&](const auto& o) { return o.shapes(in); }, op);
}

// The weights an op wants, in its documented order.
struct Want {
  std::string_view role;
  int64_t rows, cols;
};

std::vector<Want> wanted_weights(const Op& op) {
  std::vector<Want> want;
  if (auto* e = std::get_if<Embed>(&op)) want = {{"weight", e->vocab, e->width}};
  if (auto* l = std::get_if<Linear>(&op)) {
    want = {{"weight", l->out, l->in}};
    if (l->bias) want.push_back({"bias", 1, l->out});
  }
  if (auto* n = std::get_if<RmsNorm>(&op)) want = {{"weight", 1, n->width}};
  if (auto* n = std::get_if<LayerNorm>(&op)) {
    want = {{"weight", 1, n->groups * n->width}};
    if (n->bias) want.push_back({"bias", 1, n->groups * n->width});
  }
  if (auto* a = std::get_if<Attention>(&op); a && a->sinks) want = {{"sinks", 1, a->heads}};
  if (auto* n = std::get_if<AddRmsNorm>(&op)) want = {{"weight", 1, n->width}};
  if (auto* r = std::get_if<RopeKvWrite>(&op); r && r->qk_norm)
    want = {{"q_norm", 1, r->head_dim}, {"k_norm", 1, r->head_dim}};
  if (auto* m = std::get_if<MoeRoute>(&op); m && m->bias) want = {{"bias", 1, m->experts}};
  if (auto* m = std::get_if<MoeLinear>(&op)) {
    want = {{"weight", m->experts * m->out, m->in}};
    if (m->bias) want.push_back({"bias", 1, m->experts * m->out});
  }
  if (auto* m = std::get_if<MlaKvWrite>(&op)) want = {{"norm", 1, m->rank}};
  if (auto* m = std::get_if<MlaAttention>(&op)) want = {{"kv_b", m->heads * (m->nope + m->v), m->rank}};
  return want;
}

int64_t first_half_rows(const WeightUse& w) {
  int64_t rows = 0;
  for (size_t i = 0; i < w.parts.size() / 2; ++i) rows += w.parts[i].rows;
  return rows;
}

// What a shape rule sees of a value: element types are the compiler's choice, but for what the rules make integers.
ValueSpec rule_spec(const ValueSpec& s) {
  return {s.rows, s.width, is_float(s.dtype) ? DType::f32 : s.dtype};
}

Status check_weights(const Node& n) {
  auto bad = [&](std::string what) { return fail(Errc::corrupt, what, n.scope); };
  const auto want = wanted_weights(n.op);
  if (want.size() != n.weights.size())
    return bad(fmt::format("{} takes {} weights, has {}", op_name(n.op), want.size(), n.weights.size()));
  for (size_t i = 0; i < want.size(); ++i) {
    const WeightUse& w = n.weights[i];
    if (w.role != want[i].role || w.rows != want[i].rows || w.cols != want[i].cols) {
      return bad(fmt::format("weight {} is {} [{}, {}], not {} [{}, {}]", i, w.role, w.rows, w.cols, want[i].role,
                             want[i].rows, want[i].cols));
    }
    int64_t rows = 0;
    for (const WeightPart& p : w.parts) {
      if (p.rows <= 0 || p.name.empty()) return bad("a weight part is empty");
      const FusedRows& f = p.fused;
      if (!f.name.empty() && (f.first < 0 || f.block <= 0 || f.stride < f.block || f.row(p.rows - 1) >= f.rows))
        return bad("a weight part lies outside the tensor that holds it");
      if (p.stack < 0 || (p.stack > 0 && (p.index < 0 || p.index >= p.stack)))
        return bad("a weight part lies outside its stack");
      rows += p.rows;
    }
    const int64_t total = w.rows == 1 ? w.cols : w.rows;  // a vector's parts stack along its columns
    if (rows != total) return bad(fmt::format("the parts of {} have {} rows, not {}", w.role, rows, total));
    if (w.interleave && first_half_rows(w) * 2 != rows) return bad("interleaving takes two halves of one height");
  }
  return {};
}

}  // namespace

Value Graph::new_value(ValueSpec spec) {
  values_.push_back(spec);
  return {static_cast<int32_t>(values_.size()) - 1};
}

std::vector<Value> Graph::add(Op op, std::vector<Value> in, std::string scope, std::vector<WeightUse> weights) {
  std::vector<ValueSpec> specs;
  for (Value v : in) {
    check(v.id >= 0 && v.id < value_count(), "an input is no value of this graph");
    specs.push_back(spec(v));
  }
  auto shapes = output_shapes(op, specs);
  check(shapes.ok(), shapes.ok() ? "" : scope + ": " + shapes.error().message);
  Node node{std::move(op), std::move(in), {}, std::move(scope), std::move(weights)};
  for (const ValueSpec& s : *shapes) node.out.push_back(new_value(s));
  nodes_.push_back(node);
  return node.out;
}

Status verify(const Graph& g) {
  std::vector<bool> defined(g.value_count(), false);
  for (const Node& n : g.nodes()) {
    auto bad = [&](std::string what) { return fail(Errc::corrupt, "the graph is broken: " + what, n.scope); };
    std::vector<ValueSpec> specs;
    for (Value v : n.in) {
      if (v.id < 0 || v.id >= g.value_count() || !defined[v.id])
        return bad(fmt::format("value {} is used before it is defined", v.id));
      specs.push_back(rule_spec(g.spec(v)));
    }
    auto shapes = output_shapes(n.op, specs);
    if (!shapes) return bad(shapes.error().message);
    if (shapes->size() != n.out.size()) return bad("wrong number of outputs");
    for (size_t i = 0; i < n.out.size(); ++i) {
      const Value v = n.out[i];
      if (v.id < 0 || v.id >= g.value_count() || defined[v.id])
        return bad(fmt::format("value {} is defined twice or unknown", v.id));
      if (rule_spec(g.spec(v)) != (*shapes)[i])
        return bad(fmt::format("value {} has another shape than its op gives", v.id));
      if (g.spec(v).width <= 0 || g.spec(v).width > (int64_t{1} << 30)) return bad("a width is out of range");
      defined[v.id] = true;
    }
    PINION_OK(check_weights(n));
    auto layer_ok = [&](int32_t layer, int64_t kv_heads, int64_t head_dim, bool latent = false) {
      return layer >= 0 && layer < std::ssize(g.kv_layers) && g.kv_layers[layer].kv_heads == kv_heads &&
             g.kv_layers[layer].head_dim == head_dim && g.kv_layers[layer].latent == latent;
    };
    auto rope_ok = [&](int32_t table, int64_t rotary) {
      return table >= 0 && table < std::ssize(g.ropes) && g.ropes[table].rotary_dim == rotary;
    };
    if (auto* a = std::get_if<Attention>(&n.op); a && !layer_ok(a->layer, a->kv_heads, a->head_dim))
      return bad("unknown KV layer");
    if (auto* r = std::get_if<RopeKvWrite>(&n.op); r && (!layer_ok(r->layer, r->kv_heads, r->head_dim) ||
                                                         (r->rotary_dim > 0 && !rope_ok(r->table, r->rotary_dim))))
      return bad("unknown KV layer or rope table");
    if (auto* m = std::get_if<MlaKvWrite>(&n.op);
        m && (!layer_ok(m->layer, 1, m->rank + m->rope, true) || !rope_ok(m->table, m->rope)))
      return bad("unknown latent KV layer or rope table");
    if (auto* m = std::get_if<MlaAttention>(&n.op); m && !layer_ok(m->layer, 1, m->rank + m->rope, true))
      return bad("unknown latent KV layer");
    if (auto* r = std::get_if<Rope>(&n.op); r && !rope_ok(r->table, r->rotary_dim)) return bad("unknown rope table");
  }
  if (g.logits.id < 0 || g.logits.id >= g.value_count() || !defined[g.logits.id] ||
      g.spec(g.logits) != ValueSpec{Rows::outputs, g.vocab_size}) {
    return fail(Errc::corrupt, "the graph is broken: it defines no logits");
  }
  return {};
}

}  // namespace pinion
