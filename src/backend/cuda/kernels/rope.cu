// Rope and RopeKvWrite. Common heads take a thread per eight elements, four pairs, which meet in its registers: these
// kernels stand between a linear and attention, and what counts is how soon they end. Other heads take a warp each and
// go through shared memory, so that both elements of a pair are at hand whatever the layout.
#include <array>
#include <bit>

#include "backend/cuda/kernel_list.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/paged_kv.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kWarps = 4;                                              // heads per thread block
constexpr int64_t kMaxHeadDim = 48 * 1024 / (kWarps * sizeof(float));  // what shared memory holds without asking

struct RopeParams {
  ConstValues x;
  Values y;
  const float *cos = nullptr, *sin = nullptr;  // [tokens, rotary_dim / 2]
  int32_t heads = 0, head_dim = 0, rotary_dim = 0;
  bool interleaved = false;

  // RopeKvWrite: x holds heads query heads, kv_heads key heads and kv_heads value heads; y takes the queries.
  int32_t kv_heads = 0;
  ConstValues q_norm, k_norm;  // null: none
  float eps = 0, offset = 0;
  PagedKv kv;
  const int32_t *positions = nullptr, *row_seq = nullptr;
};

// Which pair of rotated elements i belongs to, and whether it is the second of it.
struct Pair {
  int32_t index = 0;
  bool second = false;
};
__device__ inline Pair pair_of(const RopeParams& p, int32_t i) {
  const int32_t half = p.rotary_dim / 2;
  return p.interleaved ? Pair{i / 2, i % 2 != 0} : Pair{i % half, i >= half};
}

// kVector elements a lane and access; every width and offset is a multiple of it. What went up with the step (angles,
// positions, block tables) waits for no kernel and is asked for early.
template <bool kWrite, int kVector>
__global__ void __launch_bounds__(kWarps * 32) rope_kernel(const __grid_constant__ RopeParams p) {
  extern __shared__ float shared[];
  const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t total = p.heads + 2 * p.kv_heads, head = blockIdx.y * kWarps + warp;
  const int64_t row = blockIdx.x, half = p.rotary_dim / 2;
  float* s = shared + warp * p.head_dim;
  ptx::launch_dependents();

  const bool is_value = kWrite && head >= p.heads + p.kv_heads;
  const ConstValues& weight = head < p.heads ? p.q_norm : p.k_norm;
  float cos[kVector], sin[kVector],
      scale[kVector];  // of the lane's first elements; heads up to 32 kVector have no more
  if (head < total && !is_value) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const int32_t i = lane * kVector + k;
      if (i < p.rotary_dim) {
        const int64_t at = row * half + pair_of(p, i).index;
        cos[k] = p.cos[at], sin[k] = p.sin[at];
      }
      if (kWrite && weight.data != nullptr && i < p.head_dim) scale[k] = p.offset + load(weight, i);
    }
  }
  int32_t position = 0, block = 0;
  if (kWrite && head >= p.heads) position = p.positions[row], block = p.kv.block_of(p.row_seq[row], position);
  ptx::wait_dependencies();
  if (head >= total) return;  // no barrier of the whole block follows

  float squares = 0;
  for (int32_t i = lane * kVector; i < p.head_dim; i += 32 * kVector) {
    float v[kVector];
    load<kVector>(p.x, (row * total + head) * p.head_dim + i, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) s[i + k] = v[k], squares += v[k] * v[k];
  }
  __syncwarp();
  if constexpr (kWrite) {
    if (!is_value && weight.data != nullptr) {
      const float factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
      for (int32_t i = lane * kVector; i < p.head_dim; i += 32 * kVector) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          s[i + k] *= factor * (i < 32 * kVector ? scale[k] : p.offset + load(weight, i + k));
        }
      }
      __syncwarp();
    }
  }

  Values y = p.y;
  int64_t to = (row * p.heads + head) * p.head_dim;
  if constexpr (kWrite) {
    if (head >= p.heads) {
      if (block < 0) return;  // a row of padding
      const int32_t kv_head = is_value ? head - p.heads - p.kv_heads : head - p.heads;
      y = is_value ? p.kv.v(block) : p.kv.k(block);
      to = p.kv.element(kv_head, position, p.head_dim);
    }
  }
  for (int32_t i = lane * kVector; i < p.head_dim; i += 32 * kVector) {
    float v[kVector];
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      v[k] = s[i + k];
      if (is_value || i + k >= p.rotary_dim) continue;
      const Pair pair = pair_of(p, i + k);
      const int64_t at = row * half + pair.index;
      const bool early = i < 32 * kVector;
      const float c = early ? cos[k] : p.cos[at], d = early ? sin[k] : p.sin[at];
      const int32_t other = p.interleaved ? (i + k) ^ 1 : pair.second ? pair.index : pair.index + p.rotary_dim / 2;
      v[k] = pair.second ? v[k] * c + s[other] * d : v[k] * c - s[other] * d;
    }
    store<kVector>(y, to + i, v);
  }
}

constexpr int kPairThreads = 128;

// Eight columns of a head: four pairs that rotate, or what lies behind them. A head is head_dim / 8 threads of a warp.
template <bool kWrite>
__global__ void __launch_bounds__(kPairThreads) rope_pairs_kernel(const __grid_constant__ RopeParams p) {
  const int32_t each = p.head_dim / 8, total = p.heads + 2 * p.kv_heads;
  const int32_t index = blockIdx.y * kPairThreads + threadIdx.x, head = index / each, item = index % each;
  const int64_t row = blockIdx.x, half = p.rotary_dim / 2;
  ptx::launch_dependents();

  const bool is_value = kWrite && head >= p.heads + p.kv_heads, in_cache = kWrite && head >= p.heads;
  const bool rotates = !is_value && 8 * item < p.rotary_dim, apart = rotates && !p.interleaved;
  const int32_t first = apart ? 4 * item : 8 * item, second = apart ? first + static_cast<int32_t>(half) : first + 4;
  float angle[2][4] = {}, scale[8];
  if (rotates && head < total) {
    load<4>({p.cos, DType::f32}, row * half + 4 * item, angle[0]);
    load<4>({p.sin, DType::f32}, row * half + 4 * item, angle[1]);
  }
  const ConstValues& weight = head < p.heads ? p.q_norm : p.k_norm;
  const bool norm = kWrite && !is_value && weight.data != nullptr;
  if (norm) {
    float a[4], b[4];
    load<4>(weight, first, a), load<4>(weight, second, b);
#pragma unroll
    for (int k = 0; k < 4; ++k) scale[k] = p.offset + a[k], scale[4 + k] = p.offset + b[k];
  }
  int32_t position = 0, block = 0;
  if (in_cache && head < total) position = p.positions[row], block = p.kv.block_of(p.row_seq[row], position);
  ptx::wait_dependencies();

  float x[8] = {};  // the elements from `first` on, then those from `second` on
  if (head < total) {
    float a[4], b[4];
    const int64_t from = (row * total + head) * p.head_dim;
    load<4>(p.x, from + first, a), load<4>(p.x, from + second, b);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = a[k], x[4 + k] = b[k];
  }
  if constexpr (kWrite) {
    float squares = 0;
#pragma unroll
    for (const float v : x) squares += v * v;
    for (int32_t d = 1; d < each; d *= 2) squares += __shfl_xor_sync(~0u, squares, d);
    if (norm) {
      const float factor = 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
      for (int k = 0; k < 8; ++k) x[k] *= factor * scale[k];
    }
  }
  if (head >= total || block < 0) return;  // block < 0: a row of padding
  if (rotates) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float& a = x[p.interleaved ? 2 * k : k];
      float& b = x[p.interleaved ? 2 * k + 1 : 4 + k];
      const float before = a;
      a = a * angle[0][k] - b * angle[1][k];
      b = b * angle[0][k] + before * angle[1][k];
    }
  }
  Values y = p.y;
  int64_t to = (row * p.heads + head) * p.head_dim;
  if constexpr (kWrite) {
    if (in_cache) {
      y = is_value ? p.kv.v(block) : p.kv.k(block);
      to = p.kv.element(head - p.heads - (is_value ? p.kv_heads : 0), position, p.head_dim);
    }
  }
  store<4>(y, to + first, {x[0], x[1], x[2], x[3]});
  store<4>(y, to + second, {x[4], x[5], x[6], x[7]});
}

template <bool kWrite>
void run(const RopeParams& p, int64_t rows, Stream& stream) {
  const int32_t total = p.heads + 2 * p.kv_heads, each = p.head_dim / 8;
  if (p.head_dim % 8 == 0 && p.rotary_dim % 8 == 0 && each <= 32 && std::has_single_bit(static_cast<uint32_t>(each))) {
    launch<rope_pairs_kernel<kWrite>>(
        {.grid = dim3(static_cast<unsigned>(rows), blocks_for(int64_t{total} * each, kPairThreads)),
         .block = kPairThreads},
        p, stream);
    return;
  }
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(rows), blocks_for(p.heads + 2 * p.kv_heads, kWarps)),
                          .block = kWarps * 32,
                          .shared = kWarps * p.head_dim * sizeof(float)};
  // Four elements a lane fill a warp with a head of 128; heads of odd sizes go one by one.
  p.head_dim % 4 == 0 ? launch<rope_kernel<kWrite, 4>>(shape, p, stream)
                      : launch<rope_kernel<kWrite, 1>>(shape, p, stream);
}

void rope(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<Rope>(*args.op);
  const RopeTable& table = args.batch->rope[op.table];
  run<false>({.x = const_values(args.in[0]),
              .y = values(args.out[0]),
              .cos = table.cos,
              .sin = table.sin,
              .heads = static_cast<int32_t>(op.heads),
              .head_dim = static_cast<int32_t>(op.head_dim),
              .rotary_dim = static_cast<int32_t>(op.rotary_dim),
              .interleaved = op.interleaved},
             args.batch->tokens, stream);
}

void rope_kv_write(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<RopeKvWrite>(*args.op);
  const BatchView& batch = *args.batch;
  RopeParams p{.x = const_values(args.in[0]),
               .y = values(args.out[0]),
               .heads = static_cast<int32_t>(op.heads),
               .head_dim = static_cast<int32_t>(op.head_dim),
               .rotary_dim = static_cast<int32_t>(op.rotary_dim),
               .interleaved = op.interleaved,
               .kv_heads = static_cast<int32_t>(op.kv_heads),
               .eps = op.eps,
               .offset = op.offset,
               .kv = paged_kv(batch.kv[op.layer]),
               .positions = batch.positions,
               .row_seq = batch.row_seq};
  if (op.rotary_dim > 0) p.cos = batch.rope[op.table].cos, p.sin = batch.rope[op.table].sin;
  if (op.qk_norm) p.q_norm = const_values(args.weights[0]), p.k_norm = const_values(args.weights[1]);
  run<true>(p, batch.tokens, stream);
}

std::string why_not(const Call& call, const DeviceInfo&) {
  int64_t head_dim = 0;
  if (const auto* op = std::get_if<Rope>(call.op)) head_dim = op->head_dim;
  if (const auto* op = std::get_if<RopeKvWrite>(call.op)) head_dim = op->head_dim;
  if (head_dim > kMaxHeadDim) return "takes heads of at most " + std::to_string(kMaxHeadDim) + " columns";
  return why_not_floats(call);
}

double estimate_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  return 2 + 4.0 * 4096 * static_cast<double>(call.rows) / info.read_gbps * 1e-3;  // one kernel per op: the size counts
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
    row("cuda.rope", OpKind::rope, rope),
    row("cuda.rope_kv_write", OpKind::rope_kv_write, rope_kv_write),
};

}  // namespace

std::span<const Kernel> rope_kernels() {
  return kKernels;
}

}  // namespace pinion::cuda
