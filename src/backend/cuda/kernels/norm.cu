// RmsNorm, AddRmsNorm and LayerNorm: a thread block per group of `width` columns of a row. Up to 8 vectors of 8
// elements stay in a thread's registers between the passes (65,536 columns with 1,024 threads); what lies past that is
// read again.
#include <algorithm>
#include <array>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

enum class Norm { rms, add_rms, layer };

struct NormParams {
  ConstValues x, residual;  // add_rms: sum = x + scale * residual
  ConstValues weight, bias;
  Values sum, y;
  int64_t width = 0;
  int64_t groups = 1;  // weight vectors side by side, by group of the row
  float eps = 0, offset = 0, scale = 1;
};

constexpr int kMaxThreads = 1024;

// kHeld: vectors per thread that stay in registers. One serves models up to 8,192 columns.
template <Norm F, int N, int kHeld>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const __grid_constant__ NormParams p) {
  const int64_t at = int64_t{blockIdx.x} * p.width, vectors = p.width / N;
  const int64_t weight_at = (blockIdx.x % p.groups) * p.width;
  ptx::launch_dependents();
  // No kernel writes weights: the first are on their way while the kernel before this one ends.
  float weight[N], held[kHeld][N];
  if (threadIdx.x < vectors) load<N>(p.weight, weight_at + threadIdx.x * N, weight);
  ptx::wait_dependencies();

  auto read = [&](int64_t vector, float(&v)[N], bool first) {
    if constexpr (F != Norm::add_rms) {
      load<N>(p.x, at + vector * N, v);
    } else {
      float r[N];
      load<N>(p.x, at + vector * N, v);
      load<N>(p.residual, at + vector * N, r);
#pragma unroll
      for (int k = 0; k < N; ++k) v[k] += p.scale * r[k];
      if (first) store<N>(p.sum, at + vector * N, v);
    }
  };
  auto for_each = [&](bool first, auto&& f) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int64_t vector = int64_t{threadIdx.x} + int64_t{h} * blockDim.x;
      if (vector >= vectors) break;
      if (first) read(vector, held[h], true);
      float w[N];
      if (h > 0 && !first) load<N>(p.weight, weight_at + vector * N, w);
      f(vector, held[h], h == 0 ? weight : w);
    }
    for (int64_t vector = int64_t{threadIdx.x} + int64_t{kHeld} * blockDim.x; vector < vectors; vector += blockDim.x) {
      float v[N], w[N];
      read(vector, v, first);
      if (!first) load<N>(p.weight, weight_at + vector * N, w);
      f(vector, v, w);
    }
  };

  float total = 0;
  for_each(true, [&](int64_t, const float(&v)[N], const float(&)[N]) {
#pragma unroll
    for (int k = 0; k < N; ++k) total += F == Norm::layer ? v[k] : v[k] * v[k];
  });
  total = block_sum(total);
  const float n = static_cast<float>(p.width);
  float mean = 0, variance = total / n;
  if constexpr (F == Norm::layer) {
    mean = variance;
    float squares = 0;
    for_each(false, [&](int64_t, const float(&v)[N], const float(&)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) squares += (v[k] - mean) * (v[k] - mean);
    });
    variance = block_sum(squares) / n;
  }
  const float factor = 1.0f / sqrtf(variance + p.eps);
  for_each(false, [&](int64_t vector, const float(&v)[N], const float(&w)[N]) {
    float y[N];
#pragma unroll
    for (int k = 0; k < N; ++k) y[k] = (v[k] - mean) * factor * (p.offset + w[k]);
    if constexpr (F == Norm::layer) {
      if (p.bias.data != nullptr) {
        float b[N];
        load<N>(p.bias, weight_at + vector * N, b);
#pragma unroll
        for (int k = 0; k < N; ++k) y[k] += b[k];
      }
    }
    store<N>(p.y, at + vector * N, y);
  });
}

template <Norm F>
void run(const NormParams& p, int64_t groups, Stream& stream) {
  const int64_t vectors = p.width % 8 == 0 ? p.width / 8 : p.width;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kMaxThreads, (vectors + 31) / 32 * 32));
  const LaunchShape shape{.grid = static_cast<unsigned>(groups), .block = threads};
  if (p.width % 8 == 0) {
    vectors <= kMaxThreads ? launch<norm_kernel<F, 8, 1>>(shape, p, stream)
                           : launch<norm_kernel<F, 8, 4>>(shape, p, stream);
  } else {
    launch<norm_kernel<F, 1, 8>>(shape, p, stream);
  }
}

void rms_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<RmsNorm>(*args.op);
  run<Norm::rms>({.x = const_values(args.in[0]),
                  .weight = const_values(args.weights[0]),
                  .y = values(args.out[0]),
                  .width = op.width,
                  .eps = op.eps,
                  .offset = op.offset},
                 args.in[0].shape.elements() / op.width, stream);
}

void add_rms_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<AddRmsNorm>(*args.op);
  run<Norm::add_rms>({.x = const_values(args.in[0]),
                      .residual = const_values(args.in[1]),
                      .weight = const_values(args.weights[0]),
                      .sum = values(args.out[0]),
                      .y = values(args.out[1]),
                      .width = op.width,
                      .eps = op.eps,
                      .offset = op.offset,
                      .scale = op.scale},
                     args.in[0].shape[0], stream);
}

void layer_norm(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<LayerNorm>(*args.op);
  run<Norm::layer>({.x = const_values(args.in[0]),
                    .weight = const_values(args.weights[0]),
                    .bias = op.bias ? const_values(args.weights[1]) : ConstValues{},
                    .y = values(args.out[0]),
                    .width = op.width,
                    .groups = op.groups,
                    .eps = op.eps,
                    .offset = op.offset},
                   args.in[0].shape.elements() / op.width, stream);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

// One kernel per op: only the size of the figure matters.
double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 2 + 8.0 * static_cast<double>(call.weights[0].cols * call.rows) / info.read_gbps * 1e-3;
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
    row("cuda.rms_norm", OpKind::rms_norm, rms_norm),
    row("cuda.add_rms_norm", OpKind::add_rms_norm, add_rms_norm),
    row("cuda.layer_norm", OpKind::layer_norm, layer_norm),
};

}  // namespace

std::span<const Kernel> norm_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
