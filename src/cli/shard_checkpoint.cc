#include "cli/shard_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
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
    if (node.in.size() != 1 || !(std::holds_alternative<Rope>(node.op) || std::holds_alternative<RmsNorm>(node.op))) {
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
  std::map<int64_t, Units> units;
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& node = g.nodes()[i];
    if (const auto* a = std::get_if<Attention>(&node.op)) {
      for (size_t k = 0; k < node.in.size(); ++k) {
        const Units u = k == 0 ? Units{.count = a->heads, .what = "num_attention_heads"}
                               : Units{.count = a->kv_heads, .replicate = true, .what = "num_key_value_heads"};
        if (const int64_t n = producer_linear(g, producer, node.in[k]); n >= 0) units[n] = u;
      }
    } else if (const auto* l = std::get_if<Linear>(&node.op)) {
      const int64_t from = node.in.empty() ? -1 : producer[node.in[0].id];
      const auto* a = from < 0 ? nullptr : std::get_if<Attention>(&g.nodes()[from].op);
      if (l->shard == Shard::cols && a) units[i] = Units{.count = a->heads, .what = "num_attention_heads"};
      if (node.out[0] == g.logits) units[i] = Units{.count = l->out, .what = "vocab_size", .uneven = true};
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

// "model.layers.12.mlp" -> 12; nullopt outside the layers.
std::optional<int64_t> layer_of(const std::string& scope) {
  const size_t at = scope.find("layers.");
  if (at == std::string::npos || (at > 0 && scope[at - 1] != '.')) return std::nullopt;
  int64_t n = 0;
  size_t i = at + 7;
  if (i >= scope.size() || scope[i] < '0' || scope[i] > '9') return std::nullopt;
  for (; i < scope.size() && scope[i] >= '0' && scope[i] <= '9'; ++i) n = n * 10 + (scope[i] - '0');
  return n;
}

void convert_run(const std::byte* from, DType from_type, std::byte* to, DType to_type, int64_t n) {
  if (from_type == to_type) {
    std::memcpy(to, from, n * byte_size(to_type));
    return;
  }
  constexpr int64_t kRun = 256;
  alignas(8) std::byte aligned[kRun * 4];
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t m = std::min(kRun, n - i);
    std::memcpy(aligned, from + i * byte_size(from_type), m * byte_size(from_type));
    for (int64_t k = 0; k < m; ++k) store_f32(to + i * byte_size(to_type), to_type, k, load_f32(aligned, from_type, k));
  }
}

}  // namespace

std::vector<int64_t> TensorSlice::sliced_shape() const {
  std::vector<int64_t> out = shape;
  if (axis >= 0) out[axis] = end - begin;
  return out;
}

Result<std::vector<RankPlan>> plan_ranks(const Model& model, int tp_size, int pp_size) {
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
        const auto* linear = std::get_if<Linear>(&node.op);
        for (const WeightUse& use : node.weights) {
          check(use.parts.size() == 1, "ranks are planned on the graph before fusion");
          const WeightPart& p = use.parts[0];
          const bool vector = use.rows == 1;
          TensorSlice slice{.name = p.name, .shape = vector ? std::vector{p.rows} : std::vector{p.rows, use.cols}};
          if (linear && tp_size > 1 && linear->shard != Shard::none) {
            const bool cols = linear->shard == Shard::cols;
            if (cols && vector) {
              if (tp != 0) continue;  // the ranks' results are summed: the bias counts once
            } else {
              slice.axis = cols ? 1 : 0;
              const auto it = units.find(static_cast<int64_t>(i));
              const Units u =
                  it != units.end() ? it->second : Units{.count = slice.shape[slice.axis], .what = "intermediate_size"};
              PINION_TRY(const Span span, part(u, slice.shape[slice.axis], tp, tp_size, p.name));
              slice.begin = span.begin;
              slice.end = span.end;
            }
          }
          const auto [at, fresh] = place.emplace(p.name, plan.tensors.size());
          if (fresh) {
            plan.tensors.push_back(std::move(slice));
          } else if (TensorSlice& first = plan.tensors[at->second];
                     first.axis != slice.axis || first.begin != slice.begin || first.end != slice.end) {
            first = {.name = p.name, .shape = first.shape};  // tied: one use needs all of it
          }
        }
      }
      // A head tied to the embedding is the whole table in every rank that has either, so that ranks of one stage and
      // of the first and last stage agree.
      for (TensorSlice& t : plan.tensors) {
        const bool embedding = std::ranges::any_of(g.nodes(), [&](const Node& n) {
          return std::holds_alternative<Embed>(n.op) && n.weights[0].parts[0].name == t.name;
        });
        if (embedding) t = {.name = t.name, .shape = t.shape};
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

Result<TensorToWrite> slice_tensor(const Checkpoint& checkpoint, const TensorSlice& slice, DType dtype) {
  TensorRef source;
  if (!checkpoint.is_dummy()) {
    PINION_TRY(source, checkpoint.tensor(slice.name));
    const Shape want{std::span<const int64_t>(slice.shape)};
    if (!(source.shape == want)) {
      return fail(Errc::corrupt,
                  fmt::format("the tensor \"{}\" has the shape {}, the configuration makes it {}", slice.name,
                              source.shape.str(), want.str()),
                  checkpoint.dir().string(), "config.json and the weights do not belong together");
    }
    if (!is_float(source.dtype) || !is_float(dtype)) {
      return fail(Errc::unsupported, fmt::format("the tensor \"{}\" has the dtype {}", slice.name, name(source.dtype)),
                  checkpoint.dir().string(), "supported: float32, float16, bfloat16");
    }
  }
  TensorToWrite out{slice.name, dtype, slice.sliced_shape(), {}};
  out.data = [slice, source, dtype, dummy = checkpoint.is_dummy()](AtomicFile& file) -> Status {
    const bool vector = slice.shape.size() == 1;
    const int64_t width = vector ? 1 : slice.shape[1];  // of the whole tensor's rows
    const int64_t row0 = slice.axis == 0 ? slice.begin : 0;
    const int64_t rows = slice.axis == 0 ? slice.end - slice.begin : slice.shape[0];
    const int64_t col0 = slice.axis == 1 ? slice.begin : 0;
    const int64_t cols = slice.axis == 1 ? slice.end - slice.begin : width;
    const size_t row_bytes = cols * byte_size(dtype);
    const int64_t step = std::clamp<int64_t>(kChunkBytes / static_cast<int64_t>(std::max<size_t>(1, row_bytes)), 1,
                                             std::max<int64_t>(rows, 1));
    constexpr int64_t kRows = 64;  // per piece of work
    std::vector<std::byte> buffer(step * row_bytes);
    ThreadPool pool(available_cpus());
    for (int64_t r0 = 0; r0 < rows; r0 += step) {
      const int64_t count = std::min(step, rows - r0);
      pool.run((count + kRows - 1) / kRows, [&](int64_t piece) {
        const int64_t from = piece * kRows, n = std::min(kRows, count - from);
        // Whole rows follow each other in the tensor, so they are one run.
        const int64_t runs = cols == width ? 1 : n, run = cols == width ? n * cols : cols;
        for (int64_t k = 0; k < runs; ++k) {
          const int64_t element = (row0 + r0 + from + k) * width + col0;
          std::byte* to = buffer.data() + (from + k) * row_bytes;
          if (dummy) {
            fill_dummy(slice.name, dtype, {to, run * byte_size(dtype)}, vector ? slice.shape[0] : width, element);
          } else {
            convert_run(source.data.data() + element * byte_size(source.dtype), source.dtype, to, dtype, run);
          }
        }
      });
      const auto ready = std::span<const std::byte>(buffer).first(count * row_bytes);
      if (!dummy && dtype == DType::f16 && source.dtype != DType::f16) PINION_OK(check_f16(ready, slice.name));
      PINION_OK(file.write(ready));
    }
    return {};
  };
  return out;
}

}  // namespace pinion::cli
