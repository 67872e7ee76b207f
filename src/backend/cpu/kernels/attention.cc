// Attention on the CPU: work is divided over (sequence, KV head, block of query rows); where that is less than the
// threads, as in a single stream's decode, over splits of the keys too, whose partial results are merged in order.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion::cpu {
namespace {

constexpr int64_t kRows = 48;         // query rows of a block: whole tiles of 6 and of 3, scores and sums in L1 and L2
constexpr int64_t kSplitTokens = 16;  // a step of more tokens than this has blocks enough without splits

struct Division {
  int64_t group, tokens;  // heads per KV head; tokens of a block
  int64_t rows() const { return group * tokens; }
};

Division divide(const Attention& op) {
  const int64_t group = op.heads / op.kv_heads;
  return {group, std::max<int64_t>(1, kRows / group)};
}

std::string why_not(const Call& call, const DeviceInfo&) {
  if (!call.weights.empty() && call.weights[0].dtype != DType::f32) return "reads f32 sinks";
  return why_not_floats(call);
}

double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<Attention>(*call.op);
  const double keys = static_cast<double>(op.window > 0 ? std::min<int64_t>(op.window, call.context) : call.context);
  const double flops = 4.0 * call.rows * keys * op.heads * op.head_dim;
  const double bytes = 2.0 * call.seqs * keys * op.kv_heads * op.head_dim * bit_size(call.kv_dtype) / 8;
  return 3 + std::max(bytes / (info.read_gbps * 0.8), flops / (info.f32_gflops * 0.4)) * 1e-3;
}

size_t scratch_floats(const Attention& op) {
  return static_cast<size_t>((attention_scratch(divide(op).rows(), op.head_dim) + 15) / 16 * 16);
}

size_t slope_floats(const Attention& op) {  // at the workspace's start
  return op.alibi > 0 ? static_cast<size_t>(op.heads + 15) / 16 * 16 : 0;
}

size_t partial_floats(const Attention& op, int64_t tokens, int64_t splits) {
  return static_cast<size_t>(attention_partial(tokens * op.heads, op.head_dim)) * splits;
}

size_t workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<Attention>(*call.op);
  const int64_t splits = (call.context + kAttentionSplit - 1) / kAttentionSplit + 1;
  return sizeof(float) * (slope_floats(op) + scratch_floats(op) * info.threads +
                          partial_floats(op, std::min(call.rows, kSplitTokens), splits));
}

void write_kv(const LaunchArgs& args, const Attention& op, CpuStream& cpu) {
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const int64_t width = op.kv_heads * op.head_dim;
  const float *k = args.in[1].as<float>(), *v = args.in[2].as<float>();
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t first = batch.seq_start[s];
    cpu.run_ranges(batch.seq_start[s + 1] - first, 4 * width, [&](int64_t a, int64_t b) {
      for (int64_t t = first + a; t < first + b; ++t) {
        cpu.isa().write_kv(kv, s, batch.positions[t], op.kv_heads, op.head_dim, k + t * width, v + t * width);
      }
    });
  }
}

// Finds the i-th (sequence, block of tokens) of the batch. Sequences are few or short where there are many.
AttentionBlock find_block(const BatchView& batch, int64_t tokens, int64_t i) {
  for (int64_t s = 0; s < batch.seqs; ++s) {
    const int64_t first = batch.seq_start[s], n = batch.seq_start[s + 1] - first, blocks = (n + tokens - 1) / tokens;
    if (i < blocks) return {.seq = s, .first = first + i * tokens, .last = first + std::min(n, (i + 1) * tokens)};
    i -= blocks;
  }
  check(false, "an attention block lies outside the batch");
  return {};
}

void launch(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const BatchView& batch = *args.batch;
  if (batch.tokens == 0) return;
  if (args.in.size() == 3) write_kv(args, op, cpu);

  AttentionTask task{.q = args.in[0].as<float>(),
                     .y = args.out[0].as<float>(),
                     .positions = batch.positions,
                     .kv = &batch.kv[op.layer],
                     .heads = op.heads,
                     .kv_heads = op.kv_heads,
                     .head_dim = op.head_dim,
                     .scale = op.scale,
                     .window = op.window,
                     .softcap = op.softcap,
                     .sinks = op.sinks ? static_cast<const float*>(args.weights[0].data) : nullptr};
  const Division division = divide(op);
  const size_t scratch = scratch_floats(op);
  const size_t slopes = slope_floats(op), floats = args.workspace.size() / sizeof(float) - slopes;
  check(args.workspace.size() / sizeof(float) >= slopes + scratch * cpu.threads(),
        "the attention kernel's workspace is too small");
  auto* memory = reinterpret_cast<float*>(args.workspace.data()) + slopes;
  if (slopes > 0) {
    for (int64_t h = 0; h < op.heads; ++h) (memory - slopes)[h] = alibi_slope(op, h);
    task.slopes = memory - slopes;
  }

  int64_t blocks = 0, longest = 0;
  for (int64_t s = 0; s < batch.seqs; ++s) {
    blocks += (batch.seq_start[s + 1] - batch.seq_start[s] + division.tokens - 1) / division.tokens;
    longest = std::max<int64_t>(longest, batch.context_len[s]);
  }
  const int64_t items = blocks * op.kv_heads, splits = (longest + kAttentionSplit - 1) / kAttentionSplit;
  const auto block_of = [&](int64_t item) {  // the last tokens, which see most keys, first
    AttentionBlock block = find_block(batch, division.tokens, blocks - 1 - item / op.kv_heads);
    block.kv_head = item % op.kv_heads;
    return block;
  };

  float* partials = memory + scratch * cpu.threads();
  const bool fits =
      batch.tokens <= kSplitTokens && floats - scratch * cpu.threads() >= partial_floats(op, batch.tokens, splits);
  if (items < 4L * cpu.threads() && splits > 1 && fits) {
    // Partials of a block: [splits][rows]; blocks in the order of their tokens, then KV heads.
    const auto partial_of = [&](const AttentionBlock& b) {
      const int64_t before = b.first * op.heads + b.kv_head * division.group * (b.last - b.first);
      return partials + attention_partial(before, op.head_dim) * splits;
    };
    cpu.run_slots(items * splits, [&](int64_t slot, int64_t i) {
      const AttentionBlock b = block_of(i / splits);
      float* out = partial_of(b) + attention_partial((b.last - b.first) * division.group, op.head_dim) * (i % splits);
      cpu.isa().attention_split(task, b, i % splits, out, memory + slot * scratch);
    });
    for (int64_t i = 0; i < items; ++i) {
      const AttentionBlock b = block_of(i);
      cpu.isa().attention_merge(task, b, splits, partial_of(b));
    }
    return;
  }
  const int64_t work = longest * op.kv_heads * batch.tokens * op.head_dim;
  if (work < 16 * 1024) {  // a few µs: not worth waking the threads
    for (int64_t i = 0; i < items; ++i) cpu.isa().attention(task, block_of(i), memory);
    return;
  }
  cpu.run_slots(items,
                [&](int64_t slot, int64_t i) { cpu.isa().attention(task, block_of(i), memory + slot * scratch); });
}

constexpr std::array kKernels = {
    Kernel{.name = "cpu.attention",
           .op = OpKind::attention,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = estimate_us,
           .workspace = workspace,
           .launch = launch},
};

}  // namespace

std::span<const Kernel> attention_kernels() {
  return kKernels;
}

}  // namespace pinion::cpu
