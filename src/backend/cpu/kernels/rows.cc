// The ops that treat rows one by one: vectorised, over the threads where there are rows enough to pay for waking them.
#include <array>
#include <cstring>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion::cpu {
namespace {

constexpr int64_t kMaxHeadDim = 1024;  // rope_kv_write rotates a key on the stack

FloatArray array_of(const WeightView& w) {
  return {w.data, w.dtype};
}

void embed(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Embed>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const int32_t* ids = op.positions ? args.batch->positions : args.batch->token_ids;
  float* y = args.out[0].as<float>();
  for (int64_t t = 0; t < args.batch->tokens; ++t) {
    check(ids[t] >= 0 && ids[t] < op.vocab - op.offset, "a token id or position lies outside the table");
  }
  cpu.run_ranges(args.batch->tokens, 2 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      cpu.isa().embed(array_of(args.weights[0]), ids[t] + op.offset, op.width, op.scale, y + t * op.width);
    }
  });
}

void rms_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<RmsNorm>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.in[0].shape.elements() / op.width, 3 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t i = first * op.width; i < last * op.width; i += op.width) {
      cpu.isa().rms_norm(x + i, array_of(args.weights[0]), op.width, op.eps, op.offset, y + i);
    }
  });
}

void layer_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<LayerNorm>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const FloatArray bias = op.bias ? array_of(args.weights[1]) : FloatArray{};
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.in[0].shape.elements() / op.width, 5 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
      cpu.isa().layer_norm(op, x + g * op.width, array_of(args.weights[0]), bias, g, y + g * op.width);
    }
  });
}

void add_rms_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<AddRmsNorm>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float *x = args.in[0].as<float>(), *residual = args.in[1].as<float>();
  float *sum = args.out[0].as<float>(), *y = args.out[1].as<float>();
  cpu.run_ranges(args.in[0].shape[0], 6 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t i = first * op.width; i < last * op.width; i += op.width) {
      cpu.isa().add(x + i, residual + i, op.scale, sum + i, op.width);
      cpu.isa().rms_norm(sum + i, array_of(args.weights[0]), op.width, op.eps, op.offset, y + i);
    }
  });
}

void add(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  const float scale = std::get<Add>(*args.op).scale;
  const float *a = args.in[0].as<float>(), *b = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.out[0].shape.elements(), 3, [&](int64_t first, int64_t last) {
    cpu.isa().add(a + first, b + first, scale, y + first, last - first);
  });
}

void act(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Act>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.out[0].shape.elements(), 12,
                 [&](int64_t first, int64_t last) { cpu.isa().act(op.act, x + first, y + first, last - first); });
}

void soft_cap(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<SoftCap>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.out[0].shape.elements(), 12, [&](int64_t first, int64_t last) {
    cpu.isa().soft_cap(x + first, op.scale, op.cap, y + first, last - first);
  });
}

void gated_act(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<GatedAct>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float *gate = args.in[0].as<float>(), *up = args.in[1].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.out[0].shape.elements(), 12, [&](int64_t first, int64_t last) {
    cpu.isa().gated_act(op.act, gate + first, up + first, y + first, last - first);
  });
}

void rope(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Rope>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const RopeTable& table = args.batch->rope[op.table];
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.batch->tokens, 3 * op.heads * op.head_dim, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) cpu.isa().rope(op, table, x, y, t);
  });
}

void rope_kv_write(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<RopeKvWrite>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const BatchView& batch = *args.batch;
  RopeKvTask task{.op = &op,
                  .qkv = args.in[0].as<float>(),
                  .q = args.out[0].as<float>(),
                  .table = op.rotary_dim > 0 ? &batch.rope[op.table] : nullptr,
                  .kv = &batch.kv[op.layer],
                  .positions = batch.positions};
  if (op.qk_norm) task.q_norm = array_of(args.weights[0]), task.k_norm = array_of(args.weights[1]);
  cpu.run_ranges(batch.tokens, 4 * (op.heads + 2 * op.kv_heads) * op.head_dim, [&](int64_t first, int64_t last) {
    int64_t seq = 0;
    for (int64_t t = first; t < last; ++t) {
      while (t >= batch.seq_start[seq + 1]) ++seq;
      cpu.isa().rope_kv_write(task, seq, t);
    }
  });
}

void select_rows(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<SelectRows>(*args.op);
  const float* x = args.in[0].as<float>();
  float* y = args.out[0].as<float>();
  cpu_stream(stream).run_ranges(args.batch->outputs, 2 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(y + i * op.width, x + args.batch->output_rows[i] * op.width, op.width * sizeof(float));
    }
  });
}

std::string why_not(const Call& call, const DeviceInfo&) {
  if (const auto* op = std::get_if<RopeKvWrite>(call.op); op != nullptr && op->head_dim > kMaxHeadDim) {
    return "takes heads of at most " + std::to_string(kMaxHeadDim) + " columns";
  }
  return why_not_floats(call);
}

// There is one kernel per op here, so that the figure only has to have the right size: 16 bytes an element.
double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  double width = 4096;
  for (const WeightSpec& w : call.weights) width = static_cast<double>(w.cols);
  return 1 + 16 * width * static_cast<double>(call.rows) / info.read_gbps * 1e-3;
}

constexpr Kernel row(std::string_view name, OpKind op, void (*launch)(const LaunchArgs&, Stream&)) {
  return {.name = name,
          .op = op,
          .why_not = why_not,
          .tunings = nullptr,
          .estimate_us = estimate_us,
          .workspace = nullptr,
          .launch = launch};
}

constexpr std::array kKernels = {
    row("cpu.embed", OpKind::embed, embed),
    row("cpu.rms_norm", OpKind::rms_norm, rms_norm),
    row("cpu.layer_norm", OpKind::layer_norm, layer_norm),
    row("cpu.rope", OpKind::rope, rope),
    row("cpu.act", OpKind::act, act),
    row("cpu.gated_act", OpKind::gated_act, gated_act),
    row("cpu.add", OpKind::add, add),
    row("cpu.soft_cap", OpKind::soft_cap, soft_cap),
    row("cpu.select_rows", OpKind::select_rows, select_rows),
    row("cpu.add_rms_norm", OpKind::add_rms_norm, add_rms_norm),
    row("cpu.rope_kv_write", OpKind::rope_kv_write, rope_kv_write),
};

}  // namespace

std::span<const Kernel> row_kernels(OpKind kind) {
  for (const Kernel& k : kKernels) {
    if (k.op == kind) return {&k, 1};
  }
  return {};
}

}  // namespace pinion::cpu
