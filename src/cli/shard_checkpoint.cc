#include "cli/shard_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>

#include "base/check.h"
#include "base/thread_pool.h"
#include "tensor/convert.h"
#include "tensor/f16_range.h"

namespace pinion::cli {
namespace {

constexpr int64_t kChunkBytes = 8 << 20;  // what is converted at once, and so what a conversion costs in memory

// The linear whose output reaches `v` through ops that keep heads apart (norm per head, rope). -1: none does.
int64_t producer_linear(const Graph& g, const std::vector<int64_t>& producer, Value v) {
  for (;;) {
    const int64_t n = producer[v.id];
    if (n < 0) return -1;
    const Node& node = g.nodes()[n];
    if (std::holds_alternative<Linear>(node.op)) return n;
    if (node.in.size() != 1 || !(std::holds_alternative<Rope>(node.op) || std::holds_alternative<RmsNorm>(node.op) ||
                                 std::holds_alternative<LayerNorm>(node.op))) {
      return -1;
    }
    v = node.in[0];
  }
}

// The units between which a linear's sharded dimension may be cut: heads of attention, else single rows or columns.
struct Units {
  int64_t count = 0;
  bool replicate = false;  // fewer units than ranks: neighbours hold the same one (KV heads)
  const char* what = "";   // the key of config.json, for errors
  bool uneven = false;
};

std::map<int64_t, Units> units_of_linears(const Graph& g) {
  std::vector<int64_t> producer(g.value_count(), -1);
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    for (Value v : g.nodes()[i].out) producer[v.id] = static_cast<int64_t>(i);
  }
  Value head = g.logits;  // before they are scaled and capped
  while (producer[head.id] >= 0 && std::holds_alternative<SoftCap>(g.nodes()[producer[head.id]].op)) {
    head = g.nodes()[producer[head.id]].in[0];
  }
  std::map<int64_t, Units> units;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& node = g.nodes()[i];
    if (const auto* a = std::get_if<Attention>(&node.op)) {
      for (size_t k = 0; k < node.in.size(); ++k) {
        const Units u = k == 0 ? Units{.count = a->heads, .what = "num_attention_heads"}
                               : Units{.count = a->kv_heads, .replicate = true, .what = "num_key_value_heads"};
        if (const int64_t n = producer_linear(g, producer, node.in[k]); n >= 0) units[n] = u;
      }
    } else if (const auto* m = std::get_if<MlaAttention>(&node.op)) {
      units[i] = Units{.count = m->heads, .what = "num_attention_heads"};  // of kv_b
      const int64_t write = producer[node.in[0].id];
      const int64_t n = write < 0 ? -1 : producer_linear(g, producer, g.nodes()[write].in[0]);
      if (n >= 0) units[n] = units[i];
    } else if (const auto* l = std::get_if<Linear>(&node.op)) {
      const int64_t from = node.in.empty() ? -1 : producer[node.in[0].id];
      const auto* a = from < 0 ? nullptr : std::get_if<Attention>(&g.nodes()[from].op);
      const auto* latent = from < 0 ? nullptr : std::get_if<MlaAttention>(&g.nodes()[from].op);
      if (l->shard == Shard::cols && latent) units[i] = Units{.count = latent->heads, .what = "num_attention_heads"};
      if (l->shard == Shard::cols && a) units[i] = Units{.count = a->heads, .what = "num_attention_heads"};
      if (node.out[0] == head) units[i] = Units{.count = l->out, .what = "vocab_size", .uneven = true};
    }
  }
  return units;
}

struct Span {
  int64_t begin, end;
};

Result<Span> part(const Units& u, int64_t length, int rank, int size, const std::string& name) {
  const int64_t unit = length / u.count;
  if (u.replicate && u.count < size && size % u.count == 0) {
    const int64_t head = rank / (size / u.count);
    return Span{head * unit, (head + 1) * unit};
  }
  if (u.count % size != 0 && !u.uneven) {
    return fail(Errc::invalid_argument,
                fmt::format("{} = {} does not divide by {} tensor-parallel ranks ({})", u.what, u.count, size, name),
                "--tp_size", "choose a divisor");
  }
  if (u.uneven) return Span{length * rank / size, length * (rank + 1) / size};
  return Span{u.count / size * rank * unit, u.count / size * (rank + 1) * unit};
}

// "model.layers.12.mlp" -> 12, "transformer.h.12.mlp" -> 12: the first number; nullopt outside the layers.
std::optional<int64_t> layer_of(std::string_view scope) {
  while (!scope.empty()) {
    const std::string_view name = scope.substr(0, scope.find('.'));
    int64_t n = 0;
    const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), n);
    if (code == std::errc() && end == name.data() + name.size()) return n;
    scope.remove_prefix(std::min(scope.size(), name.size() + 1));
  }
  return std::nullopt;
}

// How a part lies in its own tensor, and along which axes the weight's rows and columns run there.
struct Stored {
  std::vector<int64_t> shape;
  int rows = 0, cols = 1;
};

Stored stored(const WeightPart& p, int64_t cols, bool vector, int64_t vectors) {
  if (vector) return vectors > 1 ? Stored{{vectors, p.rows / vectors}, 1, -1} : Stored{{p.rows}, 0, -1};
  Stored s = p.transposed ? Stored{{cols, p.rows}, 1, 0} : Stored{{p.rows, cols}, 0, 1};
  if (p.stack > 0) s.shape.insert(s.shape.begin(), p.stack), ++s.rows, ++s.cols;
  return s;
}

// The part, or, where the checkpoint fuses it with others, all of the tensor that does.
WeightPart as_published(const WeightPart& p, const Checkpoint& checkpoint) {
  const bool fused = !p.fused.name.empty() && !checkpoint.is_dummy() && checkpoint_name(checkpoint, p.name).empty() &&
                     !checkpoint_name(checkpoint, p.fused.name).empty();
  if (!fused) return p;
  return {.name = p.fused.name, .rows = p.fused.rows, .fused = {}, .transposed = p.transposed};
}

Shard shard_of(const Op& op) {
  if (const auto* l = std::get_if<Linear>(&op)) return l->shard;
  if (const auto* m = std::get_if<MoeLinear>(&op)) return m->shard;
  if (std::holds_alternative<MlaAttention>(op)) return Shard::rows;  // kv_b, by heads
  return Shard::none;
}

TensorSlice whole(const TensorSlice& s) {
  return {.name = s.name, .shape = s.shape, .source = s.source};
}

}  // namespace

std::vector<int64_t> TensorSlice::sliced_shape() const {
  std::vector<int64_t> out = shape;
  if (axis >= 0) out[axis] = end - begin;
  return out;
}

Result<std::vector<RankPlan>> plan_ranks(const Model& model, int tp_size, int pp_size, const Checkpoint* checkpoint) {
  const Graph& g = model.graph;
  const int64_t layers = std::ssize(g.kv_layers);
  check(tp_size >= 1 && pp_size >= 1, "a checkpoint divides over at least one rank");
  if (pp_size > layers) {
    return fail(Errc::invalid_argument, fmt::format("{} layers do not divide over {} ranks", layers, pp_size),
                "--pp_size", "choose a smaller number");
  }
  const auto units = units_of_linears(g);
  std::vector<RankPlan> plans;
  for (int pp = 0; pp < pp_size; ++pp) {
    for (int tp = 0; tp < tp_size; ++tp) {
      RankPlan plan{.tp_rank = tp,
                    .pp_rank = pp,
                    .first_layer = layers * pp / pp_size,
                    .last_layer = layers * (pp + 1) / pp_size,
                    .tensors = {}};
      std::map<std::string, size_t> place;
      bool seen_layer = false;
      for (size_t i = 0; i < g.nodes().size(); ++i) {
        const Node& node = g.nodes()[i];
        const auto layer = layer_of(node.scope);
        seen_layer |= layer.has_value();
        const bool mine =
            layer ? *layer >= plan.first_layer && *layer < plan.last_layer : pp == (seen_layer ? pp_size - 1 : 0);
        if (!mine) continue;
        const Shard shard = tp_size > 1 ? shard_of(node.op) : Shard::none;
        const auto* moe = std::get_if<MoeLinear>(&node.op);
        for (const WeightUse& use : node.weights) {
          const bool vector = use.rows == 1;
          if (shard == Shard::cols && vector && tp != 0) continue;  // ranks' results are summed: the bias counts once
          for (const WeightPart& p : use.parts) {
            const WeightPart source = checkpoint && tp_size == 1 ? as_published(p, *checkpoint) : p;
            Stored as = stored(source, use.cols, vector, moe ? moe->experts : 1);
            // A matrix of one row is packed as a vector, and published as a matrix (Qwen2-MoE's shared_expert_gate).
            if (vector && use.role == "weight" && std::holds_alternative<Linear>(node.op))
              as = {.shape = {1, source.rows}, .rows = 0, .cols = 1};
            TensorSlice slice{.name = source.name, .shape = as.shape, .source = source};
            if (shard == Shard::rows || (shard == Shard::cols && !vector)) {
              slice.axis = shard == Shard::cols ? as.cols : as.rows;
              const int64_t length = slice.shape[slice.axis];
              const auto it = units.find(static_cast<int64_t>(i));
              const Units u = it != units.end() ? it->second : Units{.count = length, .what = "intermediate_size"};
              PINION_TRY(const Span span, part(u, length, tp, tp_size, p.name));
              slice.begin = span.begin;
              slice.end = span.end;
            }
            const auto [at, fresh] = place.emplace(slice.name, plan.tensors.size());
            if (fresh) {
              plan.tensors.push_back(std::move(slice));
            } else if (TensorSlice& first = plan.tensors[at->second];
                       first.axis != slice.axis || first.begin != slice.begin || first.end != slice.end) {
              first = whole(first);  // tied: one use needs all of it
            }
          }
        }
      }
      // A head tied to the embedding is the whole table in every rank that has either, so that ranks of one stage and
      // of the first and last stage agree.
      for (TensorSlice& t : plan.tensors) {
        const bool embedding = std::ranges::any_of(g.nodes(), [&](const Node& n) {
          return std::holds_alternative<Embed>(n.op) && n.weights[0].parts[0].name == t.name;
        });
        if (embedding) t = whole(t);
      }
      plans.push_back(std::move(plan));
    }
  }
  return plans;
}

Json rank_json(const RankPlan& plan, int tp_size, int pp_size) {
  Json slices = Json::object();
  for (const TensorSlice& t : plan.tensors) {
    if (t.axis >= 0) slices[t.name] = {t.axis, t.begin, t.end, t.shape[t.axis]};
  }
  return {{"tp_size", tp_size},         {"tp_rank", plan.tp_rank},         {"pp_size", pp_size},
          {"pp_rank", plan.pp_rank},    {"first_layer", plan.first_layer}, {"last_layer", plan.last_layer},
          {"slices", std::move(slices)}};
}

namespace {

Status check_f16(std::span<const std::byte> bytes, const std::string& tensor) {
  if (!has_f16_infinity(bytes)) return {};
  return fail(Errc::invalid_argument,
              fmt::format("the tensor \"{}\" holds values beyond 65504, the largest of float16", tensor), "--dtype",
              "choose bfloat16 or float32");
}

}  // namespace

Result<WeightSource> open_slice(const Checkpoint& checkpoint, const TensorSlice& slice) {
  WeightPart p = slice.source;
  int64_t elements = 1;
  for (int64_t n : slice.shape) elements *= n;
  if (p.name.empty()) p = {.name = slice.name, .rows = slice.shape[0]};
  const bool vector = p.rows == elements;
  const int64_t cols = vector ? 1 : elements / p.rows / std::max<int64_t>(1, p.stack);
  return WeightSource::open(checkpoint, p, cols, vector);
}

Result<TensorToWrite> slice_tensor(const Checkpoint& checkpoint, const TensorSlice& slice, DType dtype) {
  if (!is_float(dtype)) {
    return fail(Errc::unsupported, fmt::format("the tensor \"{}\" cannot be written as {}", slice.name, name(dtype)),
                checkpoint.dir().string(), "supported: float32, float16, bfloat16");
  }
  PINION_TRY(const WeightSource source, open_slice(checkpoint, slice));
  TensorToWrite out{slice.name, dtype, slice.sliced_shape(), {}};
  out.data = [slice, source, dtype, dummy = checkpoint.is_dummy()](AtomicFile& file) -> Status {
    // As [matrices, rows, cols]; a vector's elements are rows of one column.
    std::array<int64_t, 3> shape{1, slice.shape[0], 1}, begin{}, end;
    int axis = slice.axis < 0 ? -1 : slice.axis + 1;
    if (slice.shape.size() == 2) shape[2] = slice.shape[1];
    if (slice.shape.size() == 3) shape = {slice.shape[0], slice.shape[1], slice.shape[2]}, axis = slice.axis;
    end = shape;
    if (axis >= 0) begin[axis] = slice.begin, end[axis] = slice.end;
    // In a tensor that fuses weights, these are some of the rows; of a transposed one, a run of the columns.
    const FusedRows& rows = source.rows();
    const bool columns = slice.source.transposed && slice.shape.size() > 1;
    check(!columns || rows.block >= slice.source.rows, "columns of a transposed tensor lie in one run");
    const int64_t width = columns ? rows.rows : shape[2], first = columns ? rows.first : 0;
    const auto row_of = [&](int64_t m, int64_t r) { return m * shape[1] + (columns ? r : rows.row(r)); };

    const int64_t cols = end[2] - begin[2], count = end[1] - begin[1];
    const size_t row_bytes = cols * byte_size(dtype);
    const int64_t step = std::clamp<int64_t>(kChunkBytes / static_cast<int64_t>(std::max<size_t>(1, row_bytes)), 1,
                                             std::max<int64_t>(count, 1));
    constexpr int64_t kRows = 64;  // per piece of work
    std::vector<std::byte> buffer(step * row_bytes);
    ThreadPool pool(available_cpus());
    for (int64_t m = begin[0]; m < end[0]; ++m) {
      for (int64_t r0 = begin[1]; r0 < end[1]; r0 += step) {
        const int64_t n = std::min(step, end[1] - r0);
        pool.run((n + kRows - 1) / kRows, [&](int64_t piece) {
          for (int64_t i = piece * kRows; i < std::min(n, (piece + 1) * kRows); ++i) {
            std::byte* to = buffer.data() + i * row_bytes;
            if (dummy) {
              const int64_t dummy_width = slice.shape.size() == 1 ? shape[1] : shape[2];
              fill_dummy(slice.name, dtype, {to, row_bytes}, dummy_width,
                         (m * shape[1] + r0 + i) * shape[2] + begin[2]);
            } else {
              const TensorRef& t = source.tensor();
              const int64_t element = row_of(m, r0 + i) * width + first + begin[2];
              convert_floats(t.data.data() + element * byte_size(t.dtype), t.dtype, to, dtype, cols);
            }
          }
        });
        const auto ready = std::span<const std::byte>(buffer).first(n * row_bytes);
        if (!dummy && dtype == DType::f16 && source.tensor().dtype != DType::f16)
          PINION_OK(check_f16(ready, slice.name));
        PINION_OK(file.write(ready));
      }
    }
    return {};
  };
  return out;
}

}  // namespace pinion::cli
