// Ops over weights that stay quantised: the codes are decoded as they are read, or multiplied as integers.
#include <algorithm>
#include <array>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"
#include "backend/cpu/kernels/packed.h"

namespace pinion::cpu {

std::string why_not_packed(const Call& call) {
  if (call.weights.empty() || call.weights[0].layout != Layout::packed) return "reads packed weights";
  for (const WeightSpec& w : call.weights.subspan(1)) {
    if (!is_float(w.dtype) || w.layout != Layout::row_major) return "reads a float bias";
  }
  return why_not_f32_values(call);
}

PackedTask packed_task(const WeightView& w, int64_t first_row) {
  const RowLayout l = w.row_layout();
  const auto* data = static_cast<const uint8_t*>(w.data);
  const auto* floats = reinterpret_cast<const float*>(data);
  const int64_t group = first_row * l.groups();
  return {.kind = l.kind,
          .codes = data + first_row * l.code_row_bytes(),
          .scales = data + l.scales_offset() + group * l.scale_bytes(),
          .zeros = l.zeros ? reinterpret_cast<const int8_t*>(data + l.zeros_offset()) + group : nullptr,
          .offsets = l.offsets ? floats + l.offsets_offset() / 4 + group : nullptr,
          .factors = l.kind == PackedKind::nvfp4 ? floats + l.factors_offset() / 4 + first_row : nullptr,
          .code_row_bytes = l.code_row_bytes(),
          .groups = l.groups(),
          .group = l.group,
          .code_bits = l.code_bits(),
          .scale_bytes = l.scale_bytes()};
}

const float* prepare_rows(const WeightView& w, const float* x, int64_t rows, int64_t k, float* to, CpuStream& cpu) {
  const Packing& packing = w.packing;
  if (!copies_rows(packing)) return x;
  const int32_t* order = nullptr;
  if (packing.ordered) {
    const RowLayout l = w.row_layout();
    order = reinterpret_cast<const int32_t*>(static_cast<const std::byte*>(w.data) + l.order_offset());
    check(std::all_of(order, order + k, [&](int32_t place) { return place >= 0 && place < k; }),
          "the order of a packed weight's columns lies within its row");
  }
  cpu.run_ranges(rows, 8 * k, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* from = x + i * k;
      float* row = to + i * k;
      if (order != nullptr) {
        for (int64_t c = 0; c < k; ++c) row[order[c]] = from[c];
        from = row;
      }
      if (packing.inputs != InputRounding::none) {
        cpu.isa().round_floats(from, k, packing.inputs, packing.input_scale, row);
      }
    }
  });
  return to;
}

namespace {

constexpr int64_t kMostColumns = 1 << 16;  // of integers: their sums stay within 32 bits

bool multiplies_integers(const WeightSpec& w) {
  return w.packing.is_integer_product() && w.cols <= kMostColumns;
}

std::string why_not(const Call& call, const DeviceInfo&) {
  if (std::string why = why_not_packed(call); !why.empty()) return why;
  return multiplies_integers(call.weights[0]) ? "leaves int8 by int8 to cpu.linear.int8" : "";
}
std::string int8_why_not(const Call& call, const DeviceInfo&) {
  if (std::string why = why_not_packed(call); !why.empty()) return why;
  return multiplies_integers(call.weights[0]) ? "" : "multiplies int8 by int8, 65536 columns at most";
}

double estimate(const Call& call, const DeviceInfo& info, double flop_share) {
  const auto& op = std::get<Linear>(*call.op);
  const double bytes = call.weights.empty() ? 0 : static_cast<double>(call.weights[0].bytes());
  const double moved = bytes + 4.0 * static_cast<double>(call.rows * (op.in + op.output_width()));
  const double flops = 2.0 * static_cast<double>(call.rows * op.in * op.out);
  return 2 + std::max(moved / (info.read_gbps * 0.85), flops / (info.f32_gflops * flop_share)) * 1e-3;
}
double packed_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 0.5);
}
double int8_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return estimate(call, info, 1.5);
}

size_t scratch_bytes(const DeviceInfo& info) {
  return static_cast<size_t>(kPackedScratch) * info.threads * sizeof(float);
}
// The scratch, then x's rows where they are copied.
size_t packed_workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  if (call.weights.empty() || !copies_rows(call.weights[0].packing)) return scratch_bytes(info);
  return scratch_bytes(info) + static_cast<size_t>(call.rows * std::get<Linear>(*call.op).in) * sizeof(float);
}
// The scratch, then the scales of x's rows, then the rows.
int64_t int8_stride(int64_t k) {
  return (k + 63) / 64 * 64;
}
size_t int8_workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  const int64_t k = std::get<Linear>(*call.op).in;
  return scratch_bytes(info) + static_cast<size_t>((call.rows + 15) / 16 * 64) +
         static_cast<size_t>(call.rows * int8_stride(k));
}

PackedTask linear_task(const LaunchArgs& args) {
  const auto& op = std::get<Linear>(*args.op);
  PackedTask task = packed_task(args.weights[0], 0);
  task.linear = {.out = op.out,
                 .k = op.in,
                 .x = args.in[0].as<float>(),
                 .m = args.in[0].shape[0],
                 .y = args.out[0].as<float>(),
                 .gated = op.epilogue == Epilogue::gated_silu};
  if (op.bias) task.linear.bias = {args.weights[1].data, args.weights[1].dtype};
  return task;
}

// Pieces of weight rows by pieces of x's rows, as f(scratch, first, last, m_first, m_last).
template <class F>
void run_pieces(const PackedTask& t, CpuStream& cpu, float* scratch, F&& f) {
  const int64_t m = t.linear.m, parts = (m + kPackedPieceRows - 1) / kPackedPieceRows, out = t.linear.out;
  // At least 32 KiB of weights, and a few pieces per thread, so that a delayed one does not hold up the others.
  const int64_t wanted = std::clamp<int64_t>(out * t.code_row_bytes / 32768, 1, int64_t{8} * cpu.threads());
  const int64_t range = ((out + wanted - 1) / wanted + kPackedPanel - 1) / kPackedPanel * kPackedPanel;
  cpu.run_slots((out + range - 1) / range * parts, [&](int64_t slot, int64_t i) {
    const int64_t part = i % parts, first = i / parts * range;
    f(scratch + slot * kPackedScratch, first, std::min(out, first + range), m * part / parts, m * (part + 1) / parts);
  });
}

void packed(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  PackedTask task = linear_task(args);
  const Packing& packing = args.weights[0].packing;
  const int64_t m = task.linear.m, k = task.linear.k, floats = kPackedScratch * cpu.threads();
  if (m == 0) return;
  check(args.workspace.size() >= (floats + (copies_rows(packing) ? m * k : 0)) * sizeof(float),
        "a packed linear's workspace is too small");
  auto* scratch = reinterpret_cast<float*>(args.workspace.data());
  task.linear.x = prepare_rows(args.weights[0], task.linear.x, m, k, scratch + floats, cpu);
  run_pieces(task, cpu, scratch, [&](float* own, int64_t first, int64_t last, int64_t m_first, int64_t m_last) {
    cpu.isa().packed(task, first, last, m_first, m_last, own);
  });
}

void int8(const LaunchArgs& args, Stream& stream) {
  CpuStream& cpu = cpu_stream(stream);
  PackedTask task = linear_task(args);
  const int64_t m = task.linear.m, k = task.linear.k;
  if (m == 0) return;
  const int64_t floats = kPackedScratch * cpu.threads();
  const float fixed = args.weights[0].packing.input_scale;
  task.x8_stride = int8_stride(k);
  check(args.workspace.size() >= floats * sizeof(float) + (m + 15) / 16 * 64 + m * task.x8_stride,
        "an int8 linear's workspace is too small");
  auto* scratch = reinterpret_cast<float*>(args.workspace.data());
  float* scales = scratch + floats;
  auto* x8 = reinterpret_cast<uint8_t*>(scales + (m + 15) / 16 * 16);
  cpu.run_ranges(m, 4 * k, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      scales[i] = cpu.isa().round_row(task.linear.x + i * k, k, task.x8_stride, fixed, x8 + i * task.x8_stride);
    }
  });
  task.x8 = x8, task.x8_scales = scales;
  run_pieces(task, cpu, scratch, [&](float* raw, int64_t first, int64_t last, int64_t m_first, int64_t m_last) {
    cpu.isa().packed_int8(task, first, last, m_first, m_last, raw);
  });
}

std::string embed_why_not(const Call& call, const DeviceInfo&) {
  if (call.weights.empty() || call.weights[0].layout != Layout::packed) return "reads packed weights";
  if (copies_rows(call.weights[0].packing)) return "has no inputs to round or put in order";
  return why_not_f32_values(call);
}
double embed_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 1 + 8 * static_cast<double>(std::get<Embed>(*call.op).width * call.rows) / info.read_gbps * 1e-3;
}

void embed(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Embed>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const PackedTask task = packed_task(args.weights[0], 0);
  const int32_t* ids = op.positions ? args.batch->positions : args.batch->token_ids;
  float* y = args.out[0].as<float>();
  for (int64_t t = 0; t < args.batch->tokens; ++t) {
    check(ids[t] >= 0 && ids[t] < op.vocab - op.offset, "a token id or position lies outside the table");
  }
  cpu.run_ranges(args.batch->tokens, 2 * op.width, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      cpu.isa().packed_row(task, ids[t] + op.offset, op.width, op.scale, y + t * op.width);
    }
  });
}

constexpr std::array kLinear = {
    Kernel{.name = "cpu.linear.packed",
           .op = OpKind::linear,
           .layout = Layout::packed,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = packed_us,
           .workspace = packed_workspace,
           .launch = packed},
    Kernel{.name = "cpu.linear.int8",
           .op = OpKind::linear,
           .layout = Layout::packed,
           .why_not = int8_why_not,
           .tunings = nullptr,
           .estimate_us = int8_us,
           .workspace = int8_workspace,
           .launch = int8},
};
constexpr std::array kEmbed = {
    Kernel{.name = "cpu.embed.packed",
           .op = OpKind::embed,
           .layout = Layout::packed,
           .why_not = embed_why_not,
           .tunings = nullptr,
           .estimate_us = embed_us,
           .workspace = nullptr,
           .launch = embed},
};

}  // namespace

std::span<const Kernel> packed_kernels(OpKind kind) {
  if (kind == OpKind::linear) return kLinear;
  if (kind == OpKind::embed) return kEmbed;
  return {};
}

}  // namespace pinion::cpu
