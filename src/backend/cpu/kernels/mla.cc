// Multi-head latent attention on the CPU, in two forms that both end in the attention of kernels/attention.cc.
//   absorbed: queries go into the latent space, and the cache is read as one KV head of rank + rope columns that all
//             query heads share, its own value; the weighted latents then go through W_UV. Nothing is expanded.
//   expanded: for one head at a time, 1,024 keys and values are made from the cache and used by all rows of the
//             sequence. It costs rank * (nope + v) multiply-adds a key more and (2 rank - nope - v) or so a row and key
//             less, so that it pays for sequences with many rows in the step: prefill.
#include <algorithm>
#include <array>
#include <vector>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"
#include "backend/cpu/kernels/mla_kv_write.h"

namespace pinion::cpu {
namespace {

constexpr int64_t kBlockRows = 48;      // query rows of one attention call, as in kernels/attention.cc
constexpr int64_t kAbsorbRows = 64;     // rows that are absorbed at once
constexpr int64_t kExpandRows = 512;    // rows that share one expansion
constexpr int64_t kExpandKeys = 32768;  // past it partial results take more memory than the expanded form is worth

int64_t head_dim(const MlaAttention& op) {  // of an expanded key; values are padded to it
  return std::max(op.nope + op.rope, op.v);
}
int64_t latent_dim(const MlaAttention& op) {
  return op.rank + op.rope;
}
int64_t splits_of(int64_t keys) {
  return (keys + kAttentionSplit - 1) / kAttentionSplit;
}
int64_t line(int64_t floats) {
  return (floats + 15) / 16 * 16;
}

// Latents through `rows` of kv_b from `row` on: y [m, rows] = c [m, rank] w^T, by the linear kernels on one thread.
void project(const IsaKernels& isa, const WeightView& w, int64_t row, int64_t rows, const float* c, int64_t m, float* y,
             float* scratch) {
  const LinearTask task{
      .weight = {static_cast<const std::byte*>(w.data) + row * w.cols * bit_size(w.dtype) / 8, w.dtype},
      .bias = {},
      .out = rows,
      .k = w.cols,
      .x = c,
      .m = m,
      .y = y};
  if (m <= kGemvRows) return isa.gemv(task, 0, 0, rows);
  const LinearTile tile = linear_tile(m, task.k);
  float* packed = scratch + line(gemm_scratch(tile));
  for (int64_t k = 0; k < task.k; k += kSumBlock) {
    isa.pack_x(c + k, task.k, m, std::min(kSumBlock, task.k - k), packed + k * m);
  }
  isa.gemm(task, tile, 0, rows, 0, m, packed, scratch);
}

int64_t project_scratch(int64_t m, int64_t rank) {  // for at most m rows
  return std::max(line(gemm_scratch(linear_tile(m, rank))), line(gemm_scratch(linear_tile(1, rank)))) + line(m * rank);
}

// ---- which form ----

enum class Form { suited, absorbed, expanded };
Form form_of(const Tuning& tuning) {
  return static_cast<Form>(tuning.value[0]);
}

bool expand(const MlaAttention& op, Form form, int64_t rows, int64_t keys) {
  if (form == Form::absorbed || keys > kExpandKeys) return false;
  if (form == Form::expanded) return true;
  if (rows < 8) return false;  // too few to share an expansion's memory traffic
  const double x = static_cast<double>(op.rank * (op.nope + op.v));
  const double pairs = static_cast<double>(rows) * (static_cast<double>(keys) - static_cast<double>(rows) / 2);
  const double expanded = static_cast<double>(keys) * x + pairs * 2.0 * static_cast<double>(head_dim(op));
  const double absorbed = static_cast<double>(rows) * x + pairs * 2.0 * static_cast<double>(latent_dim(op));
  return expanded < absorbed;
}

// ---- workspace, in floats ----

int64_t absorbed_floats(const MlaAttention& op, int64_t rows, int64_t splits) {
  const int64_t n = std::min(rows, kAbsorbRows) * op.heads;
  return 2 * line(n * latent_dim(op)) + line(attention_partial(n, latent_dim(op)) * splits);
}
int64_t absorbed_scratch(const MlaAttention& op) {  // of one thread: attention, then the way back from latents
  return std::max(line(attention_scratch(kBlockRows, latent_dim(op))),
                  line(kAbsorbRows * op.rank) + line(kAbsorbRows * op.v) + project_scratch(kAbsorbRows, op.rank));
}

struct ExpandPlaces {  // of one thread
  int64_t latent, made, keys, values, q, y, partials, scratch, total;
};
constexpr int64_t kLatentRows = 132;  // cached rows that are projected at once

ExpandPlaces expand_places(const MlaAttention& op, int64_t rows, int64_t splits) {
  const int64_t d = head_dim(op), n = std::min(rows, kExpandRows);
  ExpandPlaces p{};
  p.latent = 0;
  p.made = p.latent + line(kLatentRows * op.rank);
  p.keys = p.made + line(kLatentRows * (op.nope + op.v));
  p.values = p.keys + line(kAttentionSplit * d);
  p.q = p.values + line(kAttentionSplit * d);
  p.y = p.q + line(n * d);
  p.partials = p.y + line(n * d);
  p.scratch = p.partials + line(attention_partial(n, d) * splits);
  p.total = p.scratch + std::max(line(attention_scratch(kBlockRows, d)), project_scratch(kLatentRows, op.rank));
  return p;
}

size_t workspace(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  const auto& op = std::get<MlaAttention>(*call.op);
  const int64_t splits = splits_of(call.context) + 1;
  int64_t floats = absorbed_floats(op, call.rows, splits) + absorbed_scratch(op) * info.threads;
  if (form_of(tuning) != Form::absorbed) {
    const int64_t most = std::min(splits, splits_of(kExpandKeys) + 1);
    floats = std::max(floats, expand_places(op, call.rows, most).total * info.threads);
  }
  return static_cast<size_t>(floats) * sizeof(float);
}

// ---- absorbed ----

struct Rows {  // rows [first, last) of one sequence
  int64_t seq, first, last;
};

int64_t heads_per_block(const MlaAttention& op, int64_t blocks, int threads) {
  int64_t heads = op.heads;
  // Whole divisors: few enough rows for a block, and blocks enough for the threads.
  while (heads > 1 && (heads > kBlockRows || blocks * (op.heads / heads) < 2L * threads)) {
    int64_t next = heads - 1;
    while (op.heads % next != 0) --next;
    if (heads <= kBlockRows && next < 4) break;  // smaller blocks would read the cache once more for little
    heads = next;
  }
  return heads;
}

// At most kAbsorbRows rows, [pieces.front().first, pieces.back().last), which are neighbours.
void absorbed(const LaunchArgs& args, CpuStream& cpu, std::span<const Rows> pieces) {
  const auto& op = std::get<MlaAttention>(*args.op);
  const BatchView& batch = *args.batch;
  const int64_t width = latent_dim(op), q_head = op.nope + op.rope;
  const int64_t first = pieces.front().first, rows = pieces.back().last - first;
  int64_t longest = 0;
  for (const Rows& r : pieces) longest = std::max<int64_t>(longest, batch.context_len[r.seq]);
  const int64_t splits = splits_of(longest);
  const int64_t group = heads_per_block(op, std::ssize(pieces), cpu.threads()), groups = op.heads / group;
  const int64_t block_tokens = std::max<int64_t>(1, kBlockRows / group);

  auto* memory = reinterpret_cast<float*>(args.workspace.data());
  float *q = memory, *y = q + line(rows * op.heads * width), *partials = y + line(rows * op.heads * width);
  float* scratch = partials + line(attention_partial(rows * op.heads, width) * splits);
  check(static_cast<size_t>(scratch - memory + absorbed_scratch(op) * cpu.threads()) * sizeof(float) <=
            args.workspace.size(),
        "mla_attention's workspace is too small");
  const WeightView& w = args.weights[0];
  // Heads of a group lie side by side per row: [groups][rows][group][width].
  const auto place = [&](int64_t h) { return ((h / group * rows) * group + h % group) * width; };
  const float* x = args.in[0].as<float>() + first * op.heads * q_head;
  cpu.run(op.heads, [&](int64_t h) {
    float* to = q + place(h);
    const float* from = x + h * q_head;
    const auto* w_uk = static_cast<const std::byte*>(w.data) + h * (op.nope + op.v) * op.rank * bit_size(w.dtype) / 8;
    cpu.isa().mla_absorb({w_uk, w.dtype}, op.nope, op.rank, from, op.heads * q_head, rows, to, group * width);
    for (int64_t t = 0; t < rows; ++t) {
      std::copy_n(from + t * op.heads * q_head + op.nope, op.rope, to + t * group * width + op.rank);
    }
  });

  const KvView& kv = batch.kv[op.layer];
  std::vector<Rows> blocks;
  for (const Rows& r : pieces) {
    for (int64_t t = r.first; t < r.last; t += block_tokens)
      blocks.push_back({r.seq, t - first, std::min(r.last, t + block_tokens) - first});
  }
  const auto task_of = [&](int64_t g) {
    return AttentionTask{.q = q + g * rows * group * width,
                         .y = y + g * rows * group * width,
                         .positions = batch.positions + first,
                         .kv = &kv,
                         .heads = group,
                         .kv_heads = 1,
                         .head_dim = width,
                         .scale = op.scale};
  };
  const int64_t items = std::ssize(blocks) * groups;
  const auto block_of = [&](int64_t item) {
    const Rows& r = blocks[item / groups];
    return AttentionBlock{.seq = r.seq, .kv_head = 0, .first = r.first, .last = r.last};
  };
  if (items < 4L * cpu.threads() && splits > 1) {
    const auto partial_of = [&](int64_t item) {  // [splits][rows of the block], blocks in the order of their rows
      const Rows& r = blocks[item / groups];
      const int64_t before = r.first * op.heads + item % groups * group * (r.last - r.first);
      return partials + attention_partial(before, width) * splits;
    };
    cpu.run_slots(items * splits, [&](int64_t slot, int64_t i) {
      const AttentionBlock b = block_of(i / splits);
      const int64_t size = attention_partial((b.last - b.first) * group, width);
      cpu.isa().attention_split(task_of(i / splits % groups), b, i % splits,
                                partial_of(i / splits) + size * (i % splits), scratch + slot * absorbed_scratch(op));
    });
    for (int64_t i = 0; i < items; ++i)
      cpu.isa().attention_merge(task_of(i % groups), block_of(i), splits, partial_of(i));
  } else {
    cpu.run_slots(items, [&](int64_t slot, int64_t i) {
      cpu.isa().attention(task_of(i % groups), block_of(i), scratch + slot * absorbed_scratch(op));
    });
  }

  float* out = args.out[0].as<float>() + first * op.heads * op.v;
  cpu.run_slots(op.heads, [&](int64_t slot, int64_t h) {
    float* c = scratch + slot * absorbed_scratch(op);
    float *values = c + line(kAbsorbRows * op.rank), *rest = values + line(kAbsorbRows * op.v);
    for (int64_t t = 0; t < rows; ++t) std::copy_n(y + place(h) + t * group * width, op.rank, c + t * op.rank);
    project(cpu.isa(), w, h * (op.nope + op.v) + op.nope, op.v, c, rows, values, rest);
    for (int64_t t = 0; t < rows; ++t) std::copy_n(values + t * op.v, op.v, out + (t * op.heads + h) * op.v);
  });
}

// ---- expanded ----

// At most kExpandRows rows of one sequence, one head.
void expand_head(const LaunchArgs& args, CpuStream& cpu, const Rows& r, int64_t h, float* memory) {
  const auto& op = std::get<MlaAttention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& latents = batch.kv[op.layer];
  const int64_t d = head_dim(op), q_head = op.nope + op.rope, made_width = op.nope + op.v, rows = r.last - r.first;
  const int64_t keys = batch.positions[r.last - 1] + 1, splits = splits_of(keys);
  const ExpandPlaces at = expand_places(op, rows, splits);
  float *latent = memory + at.latent, *made = memory + at.made, *k = memory + at.keys, *v = memory + at.values;
  float *q = memory + at.q, *y = memory + at.y, *partials = memory + at.partials, *scratch = memory + at.scratch;
  const float* from = args.in[0].as<float>() + (r.first * op.heads + h) * q_head;
  for (int64_t t = 0; t < rows; ++t) {
    std::copy_n(from + t * op.heads * q_head, q_head, q + t * d);
    std::fill_n(q + t * d + q_head, d - q_head, 0.0f);
  }
  std::vector<int32_t> table(splits, 0);  // each split in turn lies in the one block there is
  const KvView view{.base = reinterpret_cast<std::byte*>(k),
                    .block_stride = 0,
                    .v_offset = (v - k) * static_cast<int64_t>(sizeof(float)),
                    .block_size = static_cast<int32_t>(kAttentionSplit),
                    .dtype = DType::f32,
                    .block_table = table.data(),
                    .max_blocks = static_cast<int32_t>(splits)};
  const AttentionTask task{.q = q,
                           .y = y,
                           .positions = batch.positions + r.first,
                           .kv = &view,
                           .heads = 1,
                           .kv_heads = 1,
                           .head_dim = d,
                           .scale = op.scale};
  const auto partial_of = [&](int64_t t) { return partials + attention_partial(t, d) * splits; };
  for (int64_t split = 0; split < splits; ++split) {
    const int64_t first = split * kAttentionSplit, n = std::min(keys - first, kAttentionSplit);
    for (int64_t j = 0; j < n; j += kLatentRows) {
      const int64_t m = std::min(kLatentRows, n - j);
      cpu.isa().mla_load(latents, r.seq, first + j, m, op.rank, op.rope, latent, k + j * d + op.nope, d);
      project(cpu.isa(), args.weights[0], h * made_width, made_width, latent, m, made, scratch);
      for (int64_t i = 0; i < m; ++i) {
        std::copy_n(made + i * made_width, op.nope, k + (j + i) * d);
        std::copy_n(made + i * made_width + op.nope, op.v, v + (j + i) * d);
        std::fill_n(k + (j + i) * d + q_head, d - q_head, 0.0f);
        std::fill_n(v + (j + i) * d + op.v, d - op.v, 0.0f);
      }
    }
    for (int64_t t = 0; t < rows; t += kBlockRows) {
      const AttentionBlock b{.seq = 0, .kv_head = 0, .first = t, .last = std::min(rows, t + kBlockRows)};
      cpu.isa().attention_split(task, b, split, partial_of(t) + attention_partial(b.last - t, d) * split, scratch);
    }
  }
  float* out = args.out[0].as<float>() + (r.first * op.heads + h) * op.v;
  for (int64_t t = 0; t < rows; t += kBlockRows) {
    const AttentionBlock b{.seq = 0, .kv_head = 0, .first = t, .last = std::min(rows, t + kBlockRows)};
    cpu.isa().attention_merge(task, b, splits, partial_of(t));
    for (int64_t i = b.first; i < b.last; ++i) std::copy_n(y + i * d, op.v, out + i * op.heads * op.v);
  }
}

void expanded(const LaunchArgs& args, CpuStream& cpu, std::span<const Rows> pieces) {
  const auto& op = std::get<MlaAttention>(*args.op);
  auto* memory = reinterpret_cast<float*>(args.workspace.data());
  int64_t most = 0;
  for (const Rows& r : pieces) {
    const int64_t splits = splits_of(args.batch->positions[r.last - 1] + 1);
    most = std::max(most, expand_places(op, r.last - r.first, splits).total);
  }
  check(static_cast<size_t>(most * cpu.threads()) * sizeof(float) <= args.workspace.size(),
        "mla_attention's workspace is too small");
  cpu.run_slots(std::ssize(pieces) * op.heads, [&](int64_t slot, int64_t i) {
    expand_head(args, cpu, pieces[i / op.heads], i % op.heads, memory + slot * most);
  });
}

// ---- launch ----

void attention(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MlaAttention>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const BatchView& batch = *args.batch;
  std::vector<Rows> few, many;  // rows to absorb, neighbours all; rows to expand
  int64_t waiting = 0;
  const auto flush = [&] {
    if (!few.empty()) absorbed(args, cpu, few);
    few.clear(), waiting = 0;
  };
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t begin = batch.seq_start[s], end = batch.seq_start[s + 1];
    if (begin == end) continue;
    if (expand(op, form_of(args.tuning), end - begin, batch.context_len[s])) {
      for (int64_t t = begin; t < end; t += kExpandRows) many.push_back({s, t, std::min(end, t + kExpandRows)});
      flush();
      continue;
    }
    for (int64_t t = begin, n = 0; t < end; t += n) {
      n = std::min(end - t, kAbsorbRows - waiting);
      few.push_back({s, t, t + n});
      waiting += n;
      if (waiting == kAbsorbRows) flush();
    }
  }
  flush();
  if (!many.empty()) expanded(args, cpu, many);
}

void absorbed_only(const LaunchArgs& args, Stream& stream) {
  LaunchArgs forced = args;
  forced.tuning.value[0] = static_cast<int32_t>(Form::absorbed);
  attention(forced, stream);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

std::vector<Tuning> tunings(const Call& call, const DeviceInfo&) {
  std::vector<Tuning> list{{}};
  // By the estimate never better than the form that suits each sequence; what tests and diff may force.
  if (call.context <= kExpandKeys) list.push_back({{static_cast<int32_t>(Form::expanded)}});
  return list;
}

double estimate(const Call& call, bool expanding, const DeviceInfo& info) {
  const auto& op = std::get<MlaAttention>(*call.op);
  const double rows = static_cast<double>(call.rows), keys = static_cast<double>(call.context);
  const double x = static_cast<double>(op.rank * (op.nope + op.v));
  const double width = static_cast<double>(expanding ? head_dim(op) : latent_dim(op));
  const double made = expanding ? static_cast<double>(call.seqs) * keys : rows;
  const double flops = 2.0 * static_cast<double>(op.heads) * (made * x + rows * keys * 2 * width);
  const double bytes =
      static_cast<double>(call.seqs) * keys * static_cast<double>(latent_dim(op)) * bit_size(call.kv_dtype) / 8 +
      static_cast<double>(op.heads) * x * 2;
  return 5 + std::max(bytes / (info.read_gbps * 0.8), flops / (info.f32_gflops * 0.4)) * 1e-3;
}
double suited_us(const Call& call, const Tuning& tuning, const DeviceInfo& info) {
  if (form_of(tuning) == Form::expanded) return 1 + estimate(call, true, info);
  return std::min(estimate(call, true, info), estimate(call, false, info));
}
double absorbed_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 1 + estimate(call, false, info);
}
size_t absorbed_workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  return workspace(call, {{static_cast<int32_t>(Form::absorbed)}}, info);
}

constexpr std::array kAttentionKernels = {
    Kernel{.name = "cpu.mla_attention",
           .op = OpKind::mla_attention,
           .batch_invariant = false,  // the form depends on how many rows of a sequence a step holds
           .why_not = why_not,
           .tunings = tunings,
           .estimate_us = suited_us,
           .workspace = workspace,
           .launch = attention},
    Kernel{.name = "cpu.mla_attention.absorbed",
           .op = OpKind::mla_attention,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = absorbed_us,
           .workspace = absorbed_workspace,
           .launch = absorbed_only},
};
}  // namespace

std::span<const Kernel> mla_kernels(OpKind kind) {
  if (kind == OpKind::mla_attention) return kAttentionKernels;
  if (kind == OpKind::mla_kv_write) return {&kMlaKvWrite, 1};
  return {};
}

}  // namespace pinion::cpu
