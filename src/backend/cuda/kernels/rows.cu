// The ops that treat elements one by one: embed, select_rows, add, gated_act, act, soft_cap. Memory-bound: a thread
// takes eight elements in 16-byte accesses where the width allows, one otherwise; values and weights of any float type.
#include <array>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/activation.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline int64_t thread_index() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// y[r] = table[index[r]] * scale: rows gathered from a table of `rows` rows. Where `earlier` says so, the index is
// earlier_index[earlier[r]].
struct GatherParams {
  ConstValues table;
  Values y;
  const int32_t* index = nullptr;
  const int32_t *earlier = nullptr, *earlier_index = nullptr;
  int64_t offset = 0, rows = 0, width = 0, count = 0;  // count: elements of y
  float scale = 1;
};

template <int N>
__global__ void gather_kernel(const __grid_constant__ GatherParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t i = thread_index() * N;
  if (i >= p.count) return;
  const int64_t row = i / p.width, column = i - row * p.width;
  // Rows outside the table are bugs of the caller that must not become reads outside the table.
  const int32_t earlier = p.earlier != nullptr ? p.earlier[row] : -1;
  const int32_t index = earlier >= 0 ? p.earlier_index[earlier] : p.index[row];
  const int64_t from = min(max(int64_t{index} + p.offset, int64_t{0}), p.rows - 1);
  float v[N];
  load<N>(p.table, from * p.width + column, v);
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] *= p.scale;
  store<N>(p.y, i, v);
}

void gather(const GatherParams& p, Stream& stream) {
  if (p.width % 8 == 0) {
    launch<gather_kernel<8>>({.grid = blocks_for(p.count / 8, kThreads), .block = kThreads}, p, stream);
  } else {
    launch<gather_kernel<1>>({.grid = blocks_for(p.count, kThreads), .block = kThreads}, p, stream);
  }
}

void embed(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Embed>(*args.op);
  gather({.table = const_values(args.weights[0]),
          .y = values(args.out[0]),
          .index = op.positions ? args.batch->positions : args.batch->token_ids,
          .earlier = op.positions ? nullptr : args.batch->earlier_row,
          .earlier_index = args.batch->earlier_tokens,
          .offset = op.offset,
          .rows = op.vocab,
          .width = op.width,
          .count = args.batch->tokens * op.width,
          .scale = op.scale},
         stream);
}

void select_rows(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<SelectRows>(*args.op);
  gather({.table = const_values(args.in[0]),
          .y = values(args.out[0]),
          .index = args.batch->output_rows,
          .rows = args.batch->tokens,
          .width = op.width,
          .count = args.batch->outputs * op.width},
         stream);
}

// y = f(a, b), element by element.
enum class Pointwise { add, gated_act, act, soft_cap };

struct PointwiseParams {
  ConstValues a, b;
  Values y;
  int64_t count = 0;
  float scale = 1, cap = 0;
  Activation act = Activation::silu;
};

template <Pointwise F>
__device__ inline float pointwise(const PointwiseParams& p, float a, float b) {
  if constexpr (F == Pointwise::add) return a + p.scale * b;
  if constexpr (F == Pointwise::gated_act) return activate(p.act, a) * b;
  if constexpr (F == Pointwise::act) return activate(p.act, a);
  if constexpr (F == Pointwise::soft_cap) return p.cap > 0 ? p.cap * tanhf(p.scale * a / p.cap) : p.scale * a;
}

template <Pointwise F, int N>
__global__ void pointwise_kernel(const __grid_constant__ PointwiseParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t i = thread_index() * N;
  if (i >= p.count) return;
  float a[N], b[N];
  load<N>(p.a, i, a);
  if constexpr (F == Pointwise::add || F == Pointwise::gated_act) {
    load<N>(p.b, i, b);
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) b[k] = 0;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) a[k] = pointwise<F>(p, a[k], b[k]);
  store<N>(p.y, i, a);
}

template <Pointwise F>
void run_pointwise(const LaunchArgs& args, PointwiseParams p, Stream& stream) {
  p.a = const_values(args.in[0]);
  if (args.in.size() > 1) p.b = const_values(args.in[1]);
  p.y = values(args.out[0]);
  p.count = args.out[0].shape.elements();
  if (p.count % 8 == 0) {
    launch<pointwise_kernel<F, 8>>({.grid = blocks_for(p.count / 8, kThreads), .block = kThreads}, p, stream);
  } else {
    launch<pointwise_kernel<F, 1>>({.grid = blocks_for(p.count, kThreads), .block = kThreads}, p, stream);
  }
}

void add(const LaunchArgs& args, Stream& stream) {
  run_pointwise<Pointwise::add>(args, {.scale = std::get<Add>(*args.op).scale}, stream);
}
void gated_act(const LaunchArgs& args, Stream& stream) {
  run_pointwise<Pointwise::gated_act>(args, {.act = std::get<GatedAct>(*args.op).act}, stream);
}
void act(const LaunchArgs& args, Stream& stream) {
  run_pointwise<Pointwise::act>(args, {.act = std::get<Act>(*args.op).act}, stream);
}
void soft_cap(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<SoftCap>(*args.op);
  run_pointwise<Pointwise::soft_cap>(args, {.scale = op.scale, .cap = op.cap}, stream);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

// One kernel per op: only the size of the figure matters. 2 us is a kernel's boundary.
double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  double width = 4096;
  for (const WeightSpec& w : call.weights) width = static_cast<double>(w.cols);
  return 2 + 6 * width * static_cast<double>(call.rows) / info.read_gbps * 1e-3;
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
    row("cuda.embed", OpKind::embed, embed), row("cuda.select_rows", OpKind::select_rows, select_rows),
    row("cuda.add", OpKind::add, add),       row("cuda.gated_act", OpKind::gated_act, gated_act),
    row("cuda.act", OpKind::act, act),       row("cuda.soft_cap", OpKind::soft_cap, soft_cap),
};

}  // namespace

std::span<const Kernel> row_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
