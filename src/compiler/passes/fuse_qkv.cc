// q, k and v of one input become one linear; the head norms, the rotation and the cache write become one RopeKvWrite,
// and attention reads the cache. Weights stack by rows q, k, v, so the merge is exact.
#include "compiler/passes/fusion.h"

namespace pinion {
namespace {

struct Branch {  // linear [→ head norm] [→ rope] as found before an attention input
  const Node *linear = nullptr, *norm = nullptr, *rope = nullptr;
};

Branch find(const Graph& g, const Uses& uses, Value v) {
  Branch b;
  if ((b.rope = sole_definer<Rope>(g, uses, v))) v = b.rope->in[0];
  if ((b.norm = sole_definer<RmsNorm>(g, uses, v))) v = b.norm->in[0];
  b.linear = sole_definer<Linear>(g, uses, v);
  return b;
}

WeightUse stack(const Node& q, const Node& k, const Node& v, size_t i) {
  WeightUse w = q.weights[i];
  for (const Node* n : {&k, &v}) {
    const WeightUse& more = n->weights[i];
    w.parts.insert(w.parts.end(), more.parts.begin(), more.parts.end());
    (w.rows == 1 ? w.cols : w.rows) += more.rows == 1 ? more.cols : more.rows;
  }
  return w;
}

}  // namespace

void fuse_qkv(Graph& g) {
  const Uses uses(g);
  std::vector<Node> nodes;
  std::vector<std::vector<Node>> inserted(g.nodes().size());  // what comes in the place of node i
  std::vector<bool> removed(g.nodes().size(), false);
  for (int32_t i = 0; i < std::ssize(g.nodes()); ++i) {
    const Node& n = g.nodes()[i];
    const auto* attention = std::get_if<Attention>(&n.op);
    if (!attention || n.in.size() != 3) continue;
    const Branch q = find(g, uses, n.in[0]), k = find(g, uses, n.in[1]), v = find(g, uses, n.in[2]);
    if (!q.linear || !k.linear || !v.linear || !q.rope != !k.rope || v.rope || v.norm || !q.norm != !k.norm) continue;
    const auto& lq = std::get<Linear>(q.linear->op);
    const auto& lk = std::get<Linear>(k.linear->op);
    const auto& lv = std::get<Linear>(v.linear->op);
    const Rope rq = q.rope ? std::get<Rope>(q.rope->op) : Rope{};  // none: ALiBi, learned positions
    const Rope rk = k.rope ? std::get<Rope>(k.rope->op) : Rope{};
    const RmsNorm norm = q.norm ? std::get<RmsNorm>(q.norm->op) : RmsNorm{};
    if (q.linear->in != k.linear->in || q.linear->in != v.linear->in || lq.bias != lk.bias || lq.bias != lv.bias)
      continue;
    if (rq.rotary_dim != rk.rotary_dim || rq.table != rk.table || rq.interleaved != rk.interleaved) continue;
    if (q.norm) {
      if (norm.width != attention->head_dim || norm != std::get<RmsNorm>(k.norm->op)) continue;
    }
    Node merged{Linear{.in = lq.in, .out = lq.out + lk.out + lv.out, .bias = lq.bias, .shard = lq.shard},
                q.linear->in,
                {},
                n.scope + ".qkv_proj",
                {}};
    for (size_t w = 0; w < q.linear->weights.size(); ++w)
      merged.weights.push_back(stack(*q.linear, *k.linear, *v.linear, w));
    merged.out = {g.new_value({Rows::tokens, lq.out + lk.out + lv.out})};
    Node write{RopeKvWrite{.heads = attention->heads,
                           .kv_heads = attention->kv_heads,
                           .head_dim = attention->head_dim,
                           .rotary_dim = rq.rotary_dim,
                           .table = rq.table,
                           .interleaved = rq.interleaved,
                           .qk_norm = q.norm != nullptr,
                           .eps = norm.eps,
                           .offset = norm.offset,
                           .layer = attention->layer},
               merged.out,
               {n.in[0]},
               n.scope + ".rope_kv",
               {}};
    if (q.norm) {
      write.weights = {q.norm->weights[0], k.norm->weights[0]};
      write.weights[0].role = "q_norm", write.weights[1].role = "k_norm";
    }
    for (const Branch* b : {&q, &k, &v}) {
      for (const Node* dead : {b->linear, b->norm, b->rope}) {
        if (dead) removed[dead - g.nodes().data()] = true;
      }
    }
    Node reader = n;
    reader.in = {n.in[0]};
    removed[i] = true;
    inserted[i] = {std::move(merged), std::move(write), std::move(reader)};
  }
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    for (Node& n : inserted[i]) nodes.push_back(std::move(n));
    if (!removed[i]) nodes.push_back(g.nodes()[i]);
  }
  g.replace_nodes(std::move(nodes));
}

}  // namespace pinion
