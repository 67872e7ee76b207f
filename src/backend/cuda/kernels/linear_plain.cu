// Linear without tensor cores: any shape, any float type. For float32 mode, and for what the other kernels do not take.
// A block computes 32 rows for 32 tokens from tiles in shared memory, in f32, k in order: a row's sums are the same in
// any batch.
#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/dependency.h"

namespace pinion::cuda {
namespace {

constexpr int kTile = 32, kK = 32;           // rows and tokens of a block; k of a step
constexpr int kThreads = kTile * kTile / 4;  // each two rows x two tokens: 16 x 16 threads

struct PlainParams {
  ConstValues weight, x;
  LinearOutput output;
  int32_t in = 0;
};

__global__ void __launch_bounds__(kThreads) linear_plain_kernel(const __grid_constant__ PlainParams p) {
  __shared__ float w[kK][kTile + 2], x[kK][kTile + 2];  // the pad keeps pairs aligned and columns in different banks
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int first_row = blockIdx.x * kTile, first_token = blockIdx.y * kTile;
  const int row = threadIdx.x % 16 * 2, token = threadIdx.x / 16 * 2;
  float sum[2][2] = {};
  for (int k0 = 0; k0 < p.in; k0 += kK) {
    for (int i = threadIdx.x; i < kTile * kK; i += kThreads) {
      const int r = i / kK, k = i % kK;
      const bool inside = k0 + k < p.in;
      const bool has_row = inside && first_row + r < p.output.out,
                 has_token = inside && first_token + r < p.output.tokens;
      w[k][r] = has_row ? load(p.weight, static_cast<int64_t>(first_row + r) * p.in + k0 + k) : 0;
      x[k][r] = has_token ? load(p.x, static_cast<int64_t>(first_token + r) * p.in + k0 + k) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      const float2 a = *reinterpret_cast<const float2*>(&w[k][row]), b = *reinterpret_cast<const float2*>(&x[k][token]);
      sum[0][0] += a.x * b.x, sum[0][1] += a.y * b.x, sum[1][0] += a.x * b.y, sum[1][1] += a.y * b.y;
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (first_token + token + i < p.output.tokens) {
      store_rows<2>(p.output, first_token + token + i, first_row + row, sum[i]);
    }
  }
}

struct FinishParams {
  ConstValues products;
  LinearOutput output;
  int32_t rows4 = 0;  // groups of four rows of a token
};

__global__ void linear_finish_kernel(const __grid_constant__ FinishParams p) {
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int token = static_cast<int>(i / p.rows4), row = static_cast<int>(i % p.rows4) * 4;
  if (token >= p.output.tokens) return;
  const int64_t at = int64_t{token} * p.output.out + row;
  float v[4] = {};
  if (p.output.out % 4 == 0) {
    load<4>(p.products, at, v);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (row + k < p.output.out) v[k] = load(p.products, at + k);
    }
  }
  store_rows<4>(p.output, token, row, v);
}

}  // namespace

void linear_finish(const ConstValues& products, const LinearOutput& output, Stream& stream) {
  const int32_t rows4 = (output.out + 3) / 4;
  const int64_t threads = int64_t{output.tokens} * rows4;
  launch<linear_finish_kernel>({.grid = static_cast<unsigned>((threads + 255) / 256), .block = 256},
                               FinishParams{.products = products, .output = output, .rows4 = rows4}, stream);
}

void linear_plain(const LinearProblem& p, Stream& stream) {
  launch<linear_plain_kernel>(
      {.grid = dim3((p.output.out + kTile - 1) / kTile, (p.output.tokens + kTile - 1) / kTile), .block = kThreads},
      PlainParams{.weight = {p.weight, p.type}, .x = {p.x, p.x_type}, .output = p.output, .in = p.in}, stream);
}

}  // namespace pinion::cuda
