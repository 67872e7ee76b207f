// Multi-head latent attention for any shape: what a token leaves in the cache, and attention in the absorbed form by a
// warp per row and head, in f32. For float32 mode, and for what the kernel on tensor cores does not take.
#include "backend/cuda/kernels/mla.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/tile/paged_kv.h"
#include "backend/cuda/tile/reduce.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kWriteWarps = 4;
constexpr int64_t kSharedBytes = 96 * 1024;  // every GPU since sm_86 gives a block so much

struct WriteParams {
  ConstValues q, latent, norm;
  Values y;
  PagedKv kv;
  const float *cos = nullptr, *sin = nullptr;  // [tokens, rope / 2]
  const int32_t *positions = nullptr, *row_seq = nullptr;
  int32_t heads = 0, nope = 0, rope = 0, rank = 0;
  bool interleaved = true;
  float eps = 0;
};

// Rotates the `rope` columns at x + from into y + to, a warp.
__device__ inline void rotate(const WriteParams& p, int64_t row, const ConstValues& x, int64_t from, const Values& y,
                              int64_t to) {
  const int32_t half = p.rope / 2;
  for (int32_t pair = threadIdx.x % 32; pair < half; pair += 32) {
    const int32_t i = p.interleaved ? 2 * pair : pair, j = p.interleaved ? i + 1 : pair + half;
    const float a = load(x, from + i), b = load(x, from + j);
    const float c = p.cos[row * half + pair], d = p.sin[row * half + pair];
    store(y, to + i, a * c - b * d);
    store(y, to + j, b * c + a * d);
  }
}

// A warp per query head, and one more for the latent. kVector: elements an access outside of the rotation.
template <int kVector>
__global__ void __launch_bounds__(kWriteWarps * 32) mla_kv_write_kernel(const __grid_constant__ WriteParams p) {
  const int32_t unit = blockIdx.y * kWriteWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (unit > p.heads) return;  // no barrier of the whole block follows
  if (unit < p.heads) {
    const int64_t at = (row * p.heads + unit) * (p.nope + p.rope);
    for (int32_t i = lane * kVector; i < p.nope; i += 32 * kVector) {
      float v[kVector];
      load<kVector>(p.q, at + i, v);
      store<kVector>(p.y, at + i, v);
    }
    rotate(p, row, p.q, at + p.nope, p.y, at + p.nope);
    return;
  }
  const int32_t position = p.positions[row], block = p.kv.block_of(p.row_seq[row], position);
  if (block < 0) return;  // a row of padding
  const int64_t width = p.rank + p.rope, from = row * width, to = p.kv.element(0, position, width);
  float squares = 0;
  for (int32_t i = lane * kVector; i < p.rank; i += 32 * kVector) {
    float v[kVector];
    load<kVector>(p.latent, from + i, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) squares += v[k] * v[k];
  }
  const float factor = 1 / sqrtf(warp_sum(squares) / static_cast<float>(p.rank) + p.eps);
  for (int32_t i = lane * kVector; i < p.rank; i += 32 * kVector) {
    float v[kVector];
    load<kVector>(p.latent, from + i, v);
#pragma unroll
    for (int k = 0; k < kVector; ++k) v[k] *= factor * load(p.norm, i + k);
    store<kVector>(p.kv.k(block), to + i, v);
  }
  rotate(p, row, p.latent, from + p.rank, p.kv.k(block), to + p.rank);
}

struct PlainParams {
  ConstValues q, kv_b;
  Values y;
  PagedKv kv;
  const int32_t *positions = nullptr, *row_seq = nullptr, *context_len = nullptr;
  int32_t heads = 0, nope = 0, rope = 0, rank = 0, v = 0;
  float scale = 1;
};

// Softmax and sum in one walk over the keys (Milakov and Gimelshein 2018).
__global__ void mla_attention_plain_kernel(const __grid_constant__ PlainParams p) {
  extern __shared__ float shared[];
  const int32_t warps = blockDim.x / 32, lane = threadIdx.x % 32, head = blockIdx.y * warps + threadIdx.x / 32;
  const int32_t width = p.rank + p.rope;
  float* q = shared + threadIdx.x / 32 * (2 * p.rank + p.rope);  // absorbed, then rotated columns
  float* sum = q + width;
  const int64_t row = blockIdx.x;
  ptx::launch_dependents();
  ptx::wait_dependencies();
  if (head >= p.heads) return;  // no barrier of the whole block follows
  const int64_t from = (row * p.heads + head) * (p.nope + p.rope), w = int64_t{head} * (p.nope + p.v) * p.rank;
  for (int32_t i = lane; i < p.rank; i += 32) {
    float x = 0;
    for (int32_t n = 0; n < p.nope; ++n) x += load(p.q, from + n) * load(p.kv_b, w + int64_t{n} * p.rank + i);
    q[i] = x, sum[i] = 0;
  }
  for (int32_t i = lane; i < p.rope; i += 32) q[p.rank + i] = load(p.q, from + p.nope + i);
  __syncwarp();

  const int32_t seq = p.row_seq[row], last = p.context_len[seq] == 0 ? -1 : p.positions[row];  // padding sees nothing
  float largest = -INFINITY, total = 0;
  for (int32_t key = 0; key <= last; ++key) {
    const int32_t block = p.kv.block_of(seq, key);
    if (block < 0) continue;
    const ConstValues latent{p.kv.k(block).data, p.kv.dtype};
    const int64_t element = p.kv.element(0, key, width);
    float score = 0;
    for (int32_t i = lane; i < width; i += 32) score += q[i] * load(latent, element + i);
    score = warp_sum(score) * p.scale;
    const float most = fmaxf(largest, score), shrink = expf(largest - most), weight = expf(score - most);
    total = total * shrink + weight;
    for (int32_t i = lane; i < p.rank; i += 32) sum[i] = sum[i] * shrink + weight * load(latent, element + i);
    largest = most;
  }
  __syncwarp();
  const float by = total > 0 ? 1 / total : 0;
  for (int32_t o = 0; o < p.v; ++o) {
    float y = 0;
    for (int32_t i = lane; i < p.rank; i += 32) y += sum[i] * load(p.kv_b, w + int64_t{p.nope + o} * p.rank + i);
    y = warp_sum(y) * by;
    if (lane == 0) store(p.y, (row * p.heads + head) * p.v + o, y);
  }
}

int64_t warp_bytes(const MlaAttention& op) {
  return (2 * op.rank + op.rope) * static_cast<int64_t>(sizeof(float));
}

}  // namespace

void mla_kv_write(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MlaKvWrite>(*args.op);
  const BatchView& batch = *args.batch;
  const RopeTable& table = batch.rope[op.table];
  const WriteParams p{.q = const_values(args.in[0]),
                      .latent = const_values(args.in[1]),
                      .norm = const_values(args.weights[0]),
                      .y = values(args.out[0]),
                      .kv = paged_kv(batch.kv[op.layer]),
                      .cos = table.cos,
                      .sin = table.sin,
                      .positions = batch.positions,
                      .row_seq = batch.row_seq,
                      .heads = static_cast<int32_t>(op.heads),
                      .nope = static_cast<int32_t>(op.nope),
                      .rope = static_cast<int32_t>(op.rope),
                      .rank = static_cast<int32_t>(op.rank),
                      .interleaved = op.interleaved,
                      .eps = op.eps};
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(batch.tokens), blocks_for(op.heads + 1, kWriteWarps)),
                          .block = kWriteWarps * 32};
  const bool even = op.nope % 4 == 0 && op.rope % 4 == 0 && op.rank % 4 == 0;
  even ? launch<mla_kv_write_kernel<4>>(shape, p, stream) : launch<mla_kv_write_kernel<1>>(shape, p, stream);
}

void mla_attention_plain(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MlaAttention>(*args.op);
  const BatchView& batch = *args.batch;
  const PlainParams p{.q = const_values(args.in[0]),
                      .kv_b = const_values(args.weights[0]),
                      .y = values(args.out[0]),
                      .kv = paged_kv(batch.kv[op.layer]),
                      .positions = batch.positions,
                      .row_seq = batch.row_seq,
                      .context_len = batch.context_len,
                      .heads = static_cast<int32_t>(op.heads),
                      .nope = static_cast<int32_t>(op.nope),
                      .rope = static_cast<int32_t>(op.rope),
                      .rank = static_cast<int32_t>(op.rank),
                      .v = static_cast<int32_t>(op.v),
                      .scale = op.scale};
  const auto warps = static_cast<unsigned>(std::min<int64_t>(4, kSharedBytes / warp_bytes(op)));
  launch<mla_attention_plain_kernel>({.grid = dim3(static_cast<unsigned>(batch.tokens), blocks_for(op.heads, warps)),
                                      .block = warps * 32,
                                      .shared = static_cast<size_t>(warps * warp_bytes(op))},
                                     p, stream);
}

std::string mla_attention_plain_why_not(const MlaAttention& op) {
  if (warp_bytes(op) <= kSharedBytes) return {};
  return "keeps latents of at most about 12,000 columns";
}

}  // namespace pinion::cuda
