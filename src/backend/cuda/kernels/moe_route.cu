// The two ends of a mixture-of-experts layer: the choice of experts, a warp per token, and the weighted sum of what
// they return, in the order of the slots.
#include "backend/cuda/kernels/moe.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kSharedBytes = 48 * 1024, kMostWarps = 4;

struct RouteParams {
  ConstValues logits, bias;
  int32_t* ids = nullptr;
  float* weights = nullptr;
  int32_t rows = 0, experts = 0, top_k = 0, groups = 1, topk_groups = 1;
  RouteScore score = RouteScore::softmax;
  GroupScore group_score = GroupScore::largest;
  bool normalize = false;
  float scale = 1, jitter = 0;
};

size_t route_floats(int64_t experts, int64_t groups, int64_t top_k) {  // of a warp: scores, choice, groups, chosen
  return static_cast<size_t>(2 * experts + groups + 2 * top_k);
}

__device__ inline float warp_max(float v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lane));
  return v;
}

// The lane's best of c[lane], c[lane + 32], …: the first of equals.
struct Best {
  float score;
  int32_t id;
};
__device__ inline Best lane_best(const float* c, int32_t n) {
  const int32_t lane = threadIdx.x % 32;
  Best best{-INFINITY, lane < n ? lane : 0};
  for (int32_t e = lane; e < n; e += 32) {
    if (c[e] > best.score) best = {c[e], e};
  }
  return best;
}
__device__ inline Best warp_best(Best b) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const float score = __shfl_xor_sync(0xffffffffu, b.score, lane);
    const int32_t id = __shfl_xor_sync(0xffffffffu, b.id, lane);
    if (score > b.score || (score == b.score && id < b.id)) b = {score, id};
  }
  return b;
}

// Leaves the choices outside the best groups at -infinity. As many lanes share a group as there are for each.
__device__ void keep_groups(const RouteParams& p, float* c, float* group) {
  const int32_t lane = threadIdx.x % 32, size = p.experts / p.groups;
  int32_t parts = 1;
  while (2 * parts * p.groups <= 32) parts *= 2;
  for (int32_t g0 = 0; g0 < p.groups; g0 += 32 / parts) {
    const int32_t g = g0 + lane / parts;
    float first = -INFINITY, second = -INFINITY;
    for (int32_t i = lane % parts; g < p.groups && i < size; i += parts) {
      const float v = c[g * size + (i + lane / parts * parts) % size];  // each group begins elsewhere: other banks
      second = fmaxf(second, fminf(first, v)), first = fmaxf(first, v);
    }
    for (int32_t d = parts / 2; d > 0; d /= 2) {
      const float f = __shfl_xor_sync(0xffffffffu, first, d), s = __shfl_xor_sync(0xffffffffu, second, d);
      second = fmaxf(fminf(first, f), fmaxf(second, s)), first = fmaxf(first, f);
    }
    if (lane % parts == 0 && g < p.groups) group[g] = p.group_score == GroupScore::largest ? first : first + second;
  }
  __syncwarp();
  for (int32_t g0 = 0; g0 < p.groups; g0 += 32) {
    const int32_t g = g0 + lane;
    int32_t better = 0;
    for (int32_t o = 0; g < p.groups && o < p.groups; ++o) {
      better += group[o] > group[g] || (group[o] == group[g] && o < g);
    }
    const unsigned kept = __ballot_sync(0xffffffffu, g < p.groups && better < p.topk_groups);
    for (int32_t e = g0 * size + lane; e < min((g0 + 32) * size, p.experts); e += 32) {
      if ((kept >> (e / size - g0) & 1) == 0) c[e] = -INFINITY;
    }
  }
  __syncwarp();
}

__device__ void choose(const RouteParams& p, float* s, float* c, float* group, int32_t* id, float* weight) {
  const int32_t lane = threadIdx.x % 32;
  if (p.score == RouteScore::softmax) {
    float largest = -INFINITY, sum = 0;
    for (int32_t e = lane; e < p.experts; e += 32) largest = fmaxf(largest, s[e]);
    largest = warp_max(largest);
    for (int32_t e = lane; e < p.experts; e += 32) sum += s[e] = expf(s[e] - largest);
    const float by = 1 / warp_sum(sum);
    for (int32_t e = lane; e < p.experts; e += 32) s[e] *= by;
  } else {
    for (int32_t e = lane; e < p.experts; e += 32) s[e] = 1 / (1 + expf(-s[e]));
  }
  for (int32_t e = lane; e < p.experts; e += 32) c[e] = s[e] + (p.bias.data != nullptr ? load(p.bias, e) : 0);
  __syncwarp();
  if (p.groups > 1) keep_groups(p, c, group);
  Best mine = lane_best(c, p.experts);
  float sum = 1e-20f;
  for (int32_t j = 0; j < p.top_k; ++j) {
    const Best best = warp_best(mine);
    sum += s[best.id];
    if (lane == best.id % 32) {  // who owned it looks again
      id[j] = best.id, weight[j] = s[best.id];
      c[best.id] = -INFINITY;
      mine = lane_best(c, p.experts);
    }
  }
  __syncwarp();
  const float by = p.scale / (p.normalize ? sum : 1);
  for (int32_t j = lane; j < p.top_k; j += 32) weight[j] *= by;
}

__device__ void sparsemixer(const RouteParams& p, float* s, int32_t* id, float* weight) {
  const int32_t lane = threadIdx.x % 32;
  for (int32_t j = 0; j < p.top_k; ++j) {
    const Best best = warp_best(lane_best(s, p.experts));
    float sum = 0;
    for (int32_t e = lane; e < p.experts; e += 32) {  // one that is gone counts as -infinity
      const float l = s[e];
      if (l != -INFINITY && (best.score - l) / fmaxf(fabsf(l), best.score) <= 2 * p.jitter) sum += expf(l - best.score);
    }
    sum = warp_sum(sum);
    if (lane == 0) id[j] = best.id, weight[j] = p.scale / sum, s[best.id] = -INFINITY;
    __syncwarp();
  }
}

__global__ void route_kernel(const __grid_constant__ RouteParams p) {
  extern __shared__ float shared[];
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t row = int64_t{blockIdx.x} * warps + warp;
  float* s = shared + warp * (2 * p.experts + p.groups + 2 * p.top_k);
  float *c = s + p.experts, *group = c + p.experts, *weight = group + p.groups;
  auto* id = reinterpret_cast<int32_t*>(weight + p.top_k);
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (row >= p.rows) return;  // no barrier of the whole block follows
  for (int32_t e = lane; e < p.experts; e += 32) s[e] = load(p.logits, row * p.experts + e);
  __syncwarp();
  if (p.score == RouteScore::sparsemixer) {
    sparsemixer(p, s, id, weight);
  } else {
    choose(p, s, c, group, id, weight);
  }
  __syncwarp();
  for (int32_t j = lane; j < p.top_k; j += 32) {  // ascending ids
    int32_t place = 0;
    for (int32_t i = 0; i < p.top_k; ++i) place += id[i] < id[j] || (id[i] == id[j] && i < j);
    p.ids[row * p.top_k + place] = id[j];
    p.weights[row * p.top_k + place] = weight[j];
  }
}

struct CombineParams {
  ConstValues h, weights, shared, gate;
  Values y;
  int32_t top_k = 0, width = 0;
};

template <int N>
__global__ void combine_kernel(const __grid_constant__ CombineParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t row = blockIdx.x;
  const int32_t column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (column >= p.width) return;
  float sum[N] = {}, v[N];
#pragma unroll 4
  for (int32_t j = 0; j < p.top_k; ++j) {
    const float weight = load(p.weights, row * p.top_k + j);
    load<N>(p.h, (row * p.top_k + j) * p.width + column, v);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += weight * v[i];
  }
  if (p.shared.data != nullptr) {
    const float factor = p.gate.data != nullptr ? 1 / (1 + __expf(-load(p.gate, row))) : 1;
    load<N>(p.shared, row * p.width + column, v);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += factor * v[i];
  }
  store<N>(p.y, row * p.width + column, sum);
}

}  // namespace

void moe_route(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MoeRoute>(*args.op);
  const RouteParams p{.logits = const_values(args.in[0]),
                      .bias = op.bias ? const_values(args.weights[0]) : ConstValues{},
                      .ids = args.out[0].as<int32_t>(),
                      .weights = args.out[1].as<float>(),
                      .rows = static_cast<int32_t>(args.in[0].shape[0]),
                      .experts = static_cast<int32_t>(op.experts),
                      .top_k = static_cast<int32_t>(op.top_k),
                      .groups = static_cast<int32_t>(op.groups),
                      .topk_groups = static_cast<int32_t>(op.topk_groups),
                      .score = op.score,
                      .group_score = op.group_score,
                      .normalize = op.normalize,
                      .scale = op.scale,
                      .jitter = op.jitter};
  const size_t bytes = route_floats(op.experts, op.groups, op.top_k) * sizeof(float);
  const int warps = kMostWarps * bytes <= kSharedBytes ? kMostWarps : 1;
  launch<route_kernel>({.grid = blocks_for(p.rows, warps), .block = warps * 32u, .shared = warps * bytes}, p, stream);
}

std::string moe_route_why_not(const MoeRoute& op) {
  if (route_floats(op.experts, op.groups, op.top_k) * sizeof(float) <= kSharedBytes) return {};
  return "keeps the scores of at most about 6,000 experts";
}

void moe_combine(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MoeCombine>(*args.op);
  const CombineParams p{.h = const_values(args.in[0]),
                        .weights = const_values(args.in[1]),
                        .shared = args.in.size() > 2 ? const_values(args.in[2]) : ConstValues{},
                        .gate = args.in.size() > 3 ? const_values(args.in[3]) : ConstValues{},
                        .y = values(args.out[0]),
                        .top_k = static_cast<int32_t>(op.top_k),
                        .width = static_cast<int32_t>(op.width)};
  const auto rows = static_cast<unsigned>(args.out[0].shape[0]);
  if (op.width % 8 == 0) {
    launch<combine_kernel<8>>({.grid = dim3(rows, blocks_for(op.width, 8 * 128)), .block = 128}, p, stream);
  } else {
    launch<combine_kernel<1>>({.grid = dim3(rows, blocks_for(op.width, 128)), .block = 128}, p, stream);
  }
}

}  // namespace pinion::cuda
