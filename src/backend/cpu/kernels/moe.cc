// Mixture of experts on the CPU. Slots are sorted by expert; each expert that a slot names is one linear over the rows
// of its slots, by the same kernels as dense linears, so that a row's sums do not depend on the rows beside it. No
// expert without a slot is read. Few rows go through in place; otherwise rows are gathered before and scattered after.
// Packed experts differ in what reads a piece of their weights, and in that rows are gathered as they are.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"
#include "backend/cpu/kernels/moe_route.h"
#include "backend/cpu/kernels/packed.h"

namespace pinion::cpu {
namespace {

// ---- grouped linear ----

// In the workspace, in this order; sizes in bytes, rounded up to lines.
struct Places {
  size_t counts, slots, copies, gathered, sums, scratch;  // where each begins
  size_t total, scratch_floats;
};

size_t lines(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

int64_t gather_scratch(const LinearTile& tile) {
  return tile.m_block * kSumBlock;
}

Places places(const MoeLinear& op, const WeightSpec& weight, int64_t rows, int threads) {
  const size_t slots = static_cast<size_t>(rows * op.top_k);
  Places p{};
  p.counts = 0;
  p.slots = p.counts + lines((op.experts + 2) * sizeof(int32_t));
  p.copies = p.slots + lines(slots * sizeof(int32_t));
  const bool copied = weight.layout == Layout::packed && copies_rows(weight.packing);
  p.gathered = p.copies + (copied ? lines(static_cast<size_t>(rows * op.input_width()) * sizeof(float)) : 0);
  p.sums = p.gathered + lines(slots * op.in * sizeof(float));
  p.scratch = p.sums + lines(slots * op.out * sizeof(float));
  const LinearTile few = linear_tile(1, op.in), many = linear_tile(slots, op.in);
  const int64_t dense = std::max({gemm_scratch(few), gemm_scratch(many), gather_scratch(few), gather_scratch(many)});
  const int64_t linear = weight.layout == Layout::packed ? kPackedScratch : dense;
  p.scratch_floats = static_cast<size_t>(std::max(linear, op.out) + 15) / 16 * 16;
  p.total = p.scratch + p.scratch_floats * sizeof(float) * threads;
  return p;
}

size_t linear_workspace(const Call& call, const Tuning&, const DeviceInfo& info) {
  return places(std::get<MoeLinear>(*call.op), call.weights[0], call.rows, info.threads).total;
}

struct Group {  // the slots [first, last) of the sorted list, all of one expert
  int64_t expert, first, last;
};

// Sorts slots by expert, each expert's in the order of rows; what is not this rank's goes last, after the groups.
std::vector<Group> sort_slots(const MoeLinear& op, const int32_t* ids, int64_t slots, int32_t* starts,
                              int32_t* sorted) {
  std::fill_n(starts, op.experts + 2, 0);
  const auto bin = [&](int64_t i) {
    const int64_t e = ids[i] - op.first_expert;
    return e >= 0 && e < op.experts ? e : op.experts;
  };
  for (int64_t i = 0; i < slots; ++i) ++starts[bin(i) + 1];
  for (int64_t e = 0; e <= op.experts; ++e) starts[e + 1] += starts[e];
  std::vector<Group> groups;
  for (int64_t e = 0; e < op.experts; ++e) {
    if (starts[e] < starts[e + 1]) groups.push_back({e, starts[e], starts[e + 1]});
  }
  for (int64_t i = 0; i < slots; ++i) sorted[starts[bin(i)]++] = static_cast<int32_t>(i);
  return groups;
}

// One piece of work: weight rows [first, last) of a group's expert over its rows [m_first, m_last).
struct Piece {
  int64_t group, first, last, m_first, m_last;
};

// Pieces of at least 64 KiB of weights, and a few per thread. A large group is cut by its rows too.
std::vector<Piece> divide(const MoeLinear& op, std::span<const Group> groups, bool packed, int64_t row_bytes,
                          int threads) {
  std::vector<Piece> pieces;
  const int64_t all = std::ssize(groups) * op.out;
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(8L * threads, all * row_bytes / 65536));
  for (int64_t g = 0; g < std::ssize(groups); ++g) {
    const int64_t m = groups[g].last - groups[g].first;
    const LinearTile tile = linear_tile(m, op.in);
    const int64_t panel = packed ? kPackedPanel : tile.panel, block = packed ? kPackedPieceRows : tile.m_block;
    const int64_t parts = (m + block - 1) / block;
    const int64_t panels = (op.out + panel - 1) / panel;
    const int64_t run = std::max<int64_t>(1, std::min(panels, panels * std::ssize(groups) / wanted));
    for (int64_t i = 0; i < panels; i += run) {
      for (int64_t part = 0; part < parts; ++part) {
        pieces.push_back({g, i * panel, std::min(op.out, (i + run) * panel), m * part / parts, m * (part + 1) / parts});
      }
    }
  }
  return pieces;
}

// The rows of every group of more than one, as gemm reads them: part by part, block of columns by block of columns.
template <class F>
void pack(const MoeLinear& op, std::span<const Group> groups, const int32_t* sorted, const F& input_of, float* packed,
          float* scratch, size_t scratch_floats, CpuStream& cpu) {
  struct Part {
    int64_t first, rows, column;
  };
  std::vector<Part> parts;
  for (const Group& g : groups) {
    const int64_t m = g.last - g.first, block = linear_tile(m, op.in).m_block, n = (m + block - 1) / block;
    if (m <= kGemvRows) continue;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t first = g.first + m * i / n, last = g.first + m * (i + 1) / n;
      for (int64_t k = 0; k < op.in; k += kSumBlock) parts.push_back({first, last - first, k});
    }
  }
  cpu.run_slots(std::ssize(parts), [&](int64_t slot, int64_t i) {
    const Part& p = parts[i];
    const int64_t width = std::min(kSumBlock, op.in - p.column);
    float* rows = scratch + slot * scratch_floats;
    for (int64_t t = 0; t < p.rows; ++t) {
      std::memcpy(rows + t * width, input_of(sorted[p.first + t]) + p.column, width * sizeof(float));
    }
    cpu.isa().pack_x(rows, width, p.rows, width, packed + p.first * op.in + p.column * p.rows);
  });
}

// The rows of every group of more than one, side by side.
template <class F>
void gather(const MoeLinear& op, std::span<const Group> groups, const int32_t* sorted, const F& input_of, float* to,
            CpuStream& cpu) {
  cpu.run(std::ssize(groups), [&](int64_t i) {
    const Group& g = groups[i];
    if (g.last - g.first == 1) return;
    for (int64_t t = g.first; t < g.last; ++t) {
      std::memcpy(to + t * op.in, input_of(sorted[t]), op.in * sizeof(float));
    }
  });
}

void linear(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MoeLinear>(*args.op);
  const WeightView& w = args.weights[0];
  const bool packed = w.layout == Layout::packed;
  CpuStream& cpu = cpu_stream(stream);
  const int64_t rows = args.in[0].shape[0], slots = rows * op.top_k, width = op.slot_width();
  if (rows == 0) return;
  const Places at = places(op, w, rows, cpu.threads());
  check(args.workspace.size() >= at.total, "moe_linear's workspace is too small");
  std::byte* memory = args.workspace.data();
  auto* sorted = reinterpret_cast<int32_t*>(memory + at.slots);
  auto *gathered = reinterpret_cast<float*>(memory + at.gathered), *sums = reinterpret_cast<float*>(memory + at.sums);
  auto* scratch = reinterpret_cast<float*>(memory + at.scratch);
  const float* x = prepare_rows(w, args.in[0].as<float>(), rows * op.input_width() / op.in, op.in,
                                reinterpret_cast<float*>(memory + at.copies), cpu);
  float* y = args.out[0].as<float>();
  const auto groups =
      sort_slots(op, args.in[1].as<int32_t>(), slots, reinterpret_cast<int32_t*>(memory + at.counts), sorted);
  const int64_t mine = groups.empty() ? 0 : groups.back().last;
  const auto input_of = [&](int64_t slot) { return x + (op.per_slot ? slot : slot / op.top_k) * op.in; };

  // A group of one slot reads its row and, where the linear's own epilogue is the op's, writes its output in place.
  const bool raw =
      op.epilogue != ExpertEpilogue::none && (op.epilogue != ExpertEpilogue::gated || op.act != Activation::silu);
  const int64_t sum_width = raw ? op.out : width;
  const auto alone = [&](const Group& g) { return g.last - g.first == 1; };
  if (packed) {
    gather(op, groups, sorted, input_of, gathered, cpu);
  } else {
    pack(op, groups, sorted, input_of, gathered, scratch, at.scratch_floats, cpu);
  }

  const size_t element = bit_size(w.dtype) / 8;
  const int64_t row_bytes = packed ? w.row_layout().code_row_bytes() : op.in * static_cast<int64_t>(element);
  const auto pieces = divide(op, groups, packed, row_bytes, cpu.threads());
  cpu.run_slots(std::ssize(pieces), [&](int64_t slot, int64_t i) {
    const Piece& p = pieces[i];
    const Group& g = groups[p.group];
    const bool in_place = alone(g);
    LinearTask task{.weight = {},
                    .bias = {},
                    .out = op.out,
                    .k = op.in,
                    .x = in_place ? input_of(sorted[g.first]) : nullptr,
                    .m = g.last - g.first,
                    .y = in_place && !raw ? y + sorted[g.first] * width : sums + g.first * sum_width,
                    .gated = op.epilogue != ExpertEpilogue::none && !raw};
    if (op.bias) {
      const WeightView& b = args.weights[1];
      task.bias = {static_cast<const std::byte*>(b.data) + g.expert * op.out * bit_size(b.dtype) / 8, b.dtype};
    }
    float* own = scratch + slot * at.scratch_floats;
    if (packed) {
      PackedTask piece = packed_task(w, g.expert * op.out);
      piece.linear = task;
      if (!in_place) piece.linear.x = gathered + g.first * op.in;
      return cpu.isa().packed(piece, p.first, p.last, p.m_first, p.m_last, own);
    }
    task.weight = {static_cast<const std::byte*>(w.data) + g.expert * op.out * op.in * element, w.dtype};
    if (in_place) return cpu.isa().gemv(task, 0, p.first, p.last);
    cpu.isa().gemm(task, linear_tile(task.m, op.in), p.first, p.last, p.m_first, p.m_last,
                   gathered + (g.first + p.m_first) * op.in, own);
  });

  if (!raw && std::ssize(groups) == slots) return;  // every output is in its place
  std::atomic<int64_t> next{0};
  cpu.run_ranges(slots, 2 * sum_width, [&](int64_t first, int64_t last) {
    float* gate = scratch + next.fetch_add(1) * at.scratch_floats;
    for (int64_t i = first; i < last; ++i) {
      float* to = y + sorted[i] * width;
      const float* from = sums + i * sum_width;
      if (i >= mine) {
        std::fill_n(to, width, 0.0f);
      } else if (raw) {
        float* up = gate + width;
        cpu.isa().split_pairs(from, width, gate, up);
        if (op.epilogue == ExpertEpilogue::clamped) {
          cpu.isa().clamped_swiglu(gate, up, op.limit, to, width);
        } else {
          cpu.isa().gated_act(op.act, gate, up, to, width);
        }
      } else {
        const auto g = std::ranges::upper_bound(groups, i, {}, &Group::first) - 1;
        if (!alone(*g)) std::memcpy(to, from, width * sizeof(float));
      }
    }
  });
}

// ---- combine ----

void combine(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MoeCombine>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const float *h = args.in[0].as<float>(), *weights = args.in[1].as<float>();
  const float* shared = args.in.size() > 2 ? args.in[2].as<float>() : nullptr;
  const float* gate = args.in.size() > 3 ? args.in[3].as<float>() : nullptr;
  float* y = args.out[0].as<float>();
  cpu.run_ranges(args.out[0].shape[0], (op.top_k + 2) * op.width, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const float factor = gate != nullptr ? 1 / (1 + std::exp(-gate[t])) : 1;
      cpu.isa().weighted_sum(h + t * op.top_k * op.width, weights + t * op.top_k, op.top_k, op.width,
                             shared != nullptr ? shared + t * op.width : nullptr, factor, y + t * op.width);
    }
  });
}

// ---- the list ----

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}
std::string packed_why_not(const Call& call, const DeviceInfo&) {
  return why_not_packed(call);
}

double route_us(const Call& call, const Tuning&, const DeviceInfo&) {
  const auto& op = std::get<MoeRoute>(*call.op);
  return 1 + 5e-3 * static_cast<double>(call.rows * op.experts);
}

// The slower of reading the experts that are hit, evenly spread slots assumed, and of their arithmetic.
double linear_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<MoeLinear>(*call.op);
  const double slots = static_cast<double>(call.rows * op.top_k), n = static_cast<double>(op.experts);
  const double hit = n * (1 - std::pow(1 - 1 / n, slots));
  const double weight = static_cast<double>(op.in * op.out);
  const double stored = call.weights.empty() ? 4 * n * weight : static_cast<double>(call.weights[0].bytes());
  const double bytes = hit * stored / n + 4 * slots * static_cast<double>(op.in + op.out);
  return 4 + std::max(bytes / (info.read_gbps * 0.8), 2 * slots * weight / (info.f32_gflops * 0.6)) * 1e-3;
}

double combine_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<MoeCombine>(*call.op);
  return 1 + 4.0 * static_cast<double>(call.rows * (op.top_k + 2) * op.width) / info.read_gbps * 1e-3;
}

constexpr std::array kKernels = {
    Kernel{.name = "cpu.moe_route",
           .op = OpKind::moe_route,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = route_us,
           .workspace = moe_route_workspace,
           .launch = moe_route},
    Kernel{.name = "cpu.moe_linear",
           .op = OpKind::moe_linear,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = linear_us,
           .workspace = linear_workspace,
           .launch = linear},
    Kernel{.name = "cpu.moe_linear.packed",
           .op = OpKind::moe_linear,
           .layout = Layout::packed,
           .why_not = packed_why_not,
           .tunings = nullptr,
           .estimate_us = linear_us,
           .workspace = linear_workspace,
           .launch = linear},
    Kernel{.name = "cpu.moe_combine",
           .op = OpKind::moe_combine,
           .why_not = why_not,
           .tunings = nullptr,
           .estimate_us = combine_us,
           .workspace = nullptr,
           .launch = combine},
};

}  // namespace

std::span<const Kernel> moe_kernels(OpKind kind) {
  const auto of_kind = [&](const Kernel& k) { return k.op == kind; };
  const auto* first = std::ranges::find_if(kKernels, of_kind);  // those of one op are neighbours
  return {first, std::ranges::find_if_not(first, kKernels.end(), of_kind)};
}

}  // namespace pinion::cpu
