// The last resort of linear and attention: any shape and any float types, a warp per result, slowly. They are what the
// fast kernels are compared with on the GPU, and what runs where no fast kernel accepts the call.
#include <algorithm>
#include <array>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/kv_write.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/activation.h"
#include "backend/cuda/tile/paged_kv.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int64_t kMaxHeadDim = 48 * 1024 / (2 * kWarps * sizeof(float));  // a query and a sum per warp

struct LinearParams {
  ConstValues x, weight, bias;
  Values y;
  int64_t in = 0, width = 0;  // of x and of y
  bool gated = false;
};

template <int N>
__device__ float dot(const LinearParams& p, int64_t row, int64_t out) {
  float sum = 0;
  for (int64_t k = threadIdx.x % 32 * N; k < p.in; k += 32 * N) {
    float x[N], w[N];
    load<N>(p.x, row * p.in + k, x);
    load<N>(p.weight, out * p.in + k, w);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += x[i] * w[i];
  }
  return warp_sum(sum) + (p.bias.data != nullptr ? load(p.bias, out) : 0.0f);
}

// A warp per element of y. Rows along x: the grid's other dimensions end at 65,535 blocks.
template <int N>
__global__ void linear_kernel(const __grid_constant__ LinearParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t row = blockIdx.x;
  for (int64_t i = int64_t{blockIdx.y} * kWarps + threadIdx.x / 32; i < p.width; i += int64_t{gridDim.y} * kWarps) {
    float v;
    if (p.gated) {
      const float gate = dot<N>(p, row, 2 * i), up = dot<N>(p, row, 2 * i + 1);
      v = activate(Activation::silu, gate) * up;
    } else {
      v = dot<N>(p, row, i);
    }
    if (threadIdx.x % 32 == 0) store(p.y, row * p.width + i, v);
  }
}

void linear(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Linear>(*args.op);
  const LinearParams p{.x = const_values(args.in[0]),
                       .weight = const_values(args.weights[0]),
                       .bias = op.bias ? const_values(args.weights[1]) : ConstValues{},
                       .y = values(args.out[0]),
                       .in = op.in,
                       .width = op.output_width(),
                       .gated = op.epilogue == Epilogue::gated_silu};
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(args.in[0].shape[0]), std::min(blocks_for(p.width, kWarps), 65535u)),
      .block = kWarps * 32};
  p.in % 8 == 0 ? launch<linear_kernel<8>>(shape, p, stream) : launch<linear_kernel<1>>(shape, p, stream);
}

struct KvWriteParams {
  ConstValues k, v;
  PagedKv kv;
  const int32_t *positions = nullptr, *row_seq = nullptr;
  int32_t kv_heads = 0, head_dim = 0;
};

__global__ void kv_write_kernel(const __grid_constant__ KvWriteParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t row = blockIdx.x, width = int64_t{p.kv_heads} * p.head_dim;
  const int32_t position = p.positions[row], block = p.kv.block_of(p.row_seq[row], position);
  if (block < 0) return;  // a row of padding
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const int64_t to = p.kv.element(i / p.head_dim, position, p.head_dim) + i % p.head_dim;
    store(p.kv.k(block), to, load(p.k, row * width + i));
    store(p.kv.v(block), to, load(p.v, row * width + i));
  }
}

struct AttentionParams {
  ConstValues q, sinks;
  Values y;
  PagedKv kv;
  const int32_t *positions = nullptr, *row_seq = nullptr, *context_len = nullptr;
  int32_t heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  float scale = 1, softcap = 0, alibi = 0;
  int32_t alibi_first = 0, alibi_power = 1;  // the largest power of two that the model's number of heads holds
};

__device__ inline float alibi_slope(const AttentionParams& p, int32_t head) {  // as graph/ops/attention.h has it
  const int32_t h = p.alibi_first + head, n = p.alibi_power;
  return p.alibi * exp2f(h < n ? -8.0f * (h + 1) / n : -4.0f * (2 * (h - n) + 1) / n);
}

// A warp per row and query head; softmax and sum in one walk over the keys (Milakov and Gimelshein 2018).
__global__ void attention_kernel(const __grid_constant__ AttentionParams p) {
  extern __shared__ float shared[];
  const int32_t lane = threadIdx.x % 32, head = blockIdx.y * kWarps + threadIdx.x / 32;
  float* q = shared + threadIdx.x / 32 * 2 * p.head_dim;
  float* sum = q + p.head_dim;
  const int64_t row = blockIdx.x;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (head >= p.heads) return;  // no barrier of the whole block follows
  const int64_t at = (row * p.heads + head) * p.head_dim;
  for (int32_t i = lane; i < p.head_dim; i += 32) q[i] = load(p.q, at + i), sum[i] = 0;
  __syncwarp();

  const int32_t seq = p.row_seq[row], position = p.positions[row], kv_head = head / (p.heads / p.kv_heads);
  const int32_t last = p.context_len[seq] == 0 ? -1 : position;  // a row of padding sees nothing
  float largest = -INFINITY, total = 0;
  if (p.sinks.data != nullptr) largest = load(p.sinks, head), total = 1;
  for (int32_t key = p.window > 0 ? max(0, position - p.window + 1) : 0; key <= last; ++key) {
    const int32_t block = p.kv.block_of(seq, key);
    if (block < 0) continue;
    const int64_t element = p.kv.element(kv_head, key, p.head_dim);
    const ConstValues keys{p.kv.k(block).data, p.kv.dtype}, vectors{p.kv.v(block).data, p.kv.dtype};
    float score = 0;
    for (int32_t i = lane; i < p.head_dim; i += 32) score += q[i] * load(keys, element + i);
    score = warp_sum(score) * p.scale;
    if (p.softcap > 0) score = p.softcap * tanhf(score / p.softcap);
    if (p.alibi > 0) score += alibi_slope(p, head) * static_cast<float>(key - position);
    const float most = fmaxf(largest, score), shrink = expf(largest - most), weight = expf(score - most);
    total = total * shrink + weight;
    for (int32_t i = lane; i < p.head_dim; i += 32) {
      sum[i] = sum[i] * shrink + weight * load(vectors, element + i);
    }
    largest = most;
  }
  for (int32_t i = lane; i < p.head_dim; i += 32) store(p.y, at + i, total > 0 ? sum[i] / total : 0.0f);
}

void attention(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const BatchView& batch = *args.batch;
  if (args.in.size() == 3) write_kv(args, stream);
  AttentionParams p{.q = const_values(args.in[0]),
                    .sinks = op.sinks ? const_values(args.weights[0]) : ConstValues{},
                    .y = values(args.out[0]),
                    .kv = paged_kv(batch.kv[op.layer]),
                    .positions = batch.positions,
                    .row_seq = batch.row_seq,
                    .context_len = batch.context_len,
                    .heads = static_cast<int32_t>(op.heads),
                    .kv_heads = static_cast<int32_t>(op.kv_heads),
                    .head_dim = static_cast<int32_t>(op.head_dim),
                    .window = op.window,
                    .scale = op.scale,
                    .softcap = op.softcap,
                    .alibi = op.alibi,
                    .alibi_first = static_cast<int32_t>(op.alibi_first)};
  while (2 * p.alibi_power <= op.alibi_heads) p.alibi_power *= 2;
  launch<attention_kernel>({.grid = dim3(static_cast<unsigned>(batch.tokens), blocks_for(op.heads, kWarps)),
                            .block = kWarps * 32,
                            .shared = 2 * kWarps * op.head_dim * sizeof(float)},
                           p, stream);
}

std::string why_not_linear(const Call& call, const DeviceInfo&) {
  return why_not_floats(call);
}

std::string why_not_attention(const Call& call, const DeviceInfo&) {
  if (std::get<Attention>(*call.op).head_dim > kMaxHeadDim) {
    return "takes heads of at most " + std::to_string(kMaxHeadDim) + " columns";
  }
  return why_not_floats(call);
}

// Far behind every other kernel, which is all that matters.
double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  double macs = static_cast<double>(call.rows) * 1024;
  for (const WeightSpec& w : call.weights) macs += static_cast<double>(call.rows) * w.rows * w.cols;
  if (const auto* a = std::get_if<Attention>(call.op)) {
    macs += 2.0 * static_cast<double>(call.rows) * call.context * a->heads * a->head_dim;
  }
  return 100 + 100 * macs / info.f32_gflops * 1e-3;
}

constexpr std::array kKernels = {
    Kernel{.name = "cuda.reference.linear",
           .op = OpKind::linear,
           .why_not = why_not_linear,
           .tunings = nullptr,
           .estimate_us = estimate_us,
           .workspace = nullptr,
           .launch = linear},
    Kernel{.name = "cuda.reference.attention",
           .op = OpKind::attention,
           .why_not = why_not_attention,
           .tunings = nullptr,
           .estimate_us = estimate_us,
           .workspace = nullptr,
           .launch = attention},
};

}  // namespace

void write_kv(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Attention>(*args.op);
  const KvWriteParams p{.k = const_values(args.in[1]),
                        .v = const_values(args.in[2]),
                        .kv = paged_kv(args.batch->kv[op.layer]),
                        .positions = args.batch->positions,
                        .row_seq = args.batch->row_seq,
                        .kv_heads = static_cast<int32_t>(op.kv_heads),
                        .head_dim = static_cast<int32_t>(op.head_dim)};
  launch<kv_write_kernel>({.grid = static_cast<unsigned>(args.batch->tokens), .block = 256}, p, stream);
}

std::span<const Kernel> reference_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
