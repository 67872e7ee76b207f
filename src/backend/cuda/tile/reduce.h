// Sums over a warp and over a thread block, in one fixed order: the same values give the same bits.
#pragma once

namespace pinion::cuda {

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
  return v;
}

// Over all threads of a block of whole warps, at most 1024; every thread gets the sum. May be called again at once.
__device__ inline float block_sum(float v) {
  __shared__ float partial[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  v = warp_sum(v);
  if (warps == 1) return v;
  __syncthreads();  // the partial sums of the call before are read
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

}  // namespace pinion::cuda
