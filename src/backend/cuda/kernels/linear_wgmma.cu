// Linear for 1 to 128 tokens on Hopper. The product is taken as y^T = W x^T: 64 weight rows are wgmma's M, the tokens
// its N, so that few tokens cost little. One warp asks for tiles of W and x with tensor copies into a ring, the first
// of W before the previous kernel ends; each warpgroup multiplies 64 rows. Blocks of a cluster may split K (their sums
// are added through shared memory, always in the order of k) and may share each copy of x.
//
// Bytes: the weight once, x once per block row (from L2); at 128 tokens the copies of x are half of the traffic into
// the SMs, which is what `share` and more groups a block are for.
#include <cuda.h>

#include <algorithm>

#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/bulk_copy.h"
#include "backend/cuda/ptx/cluster.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mbarrier.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/ptx/wgmma.h"
#include "backend/cuda/tile/tensor_map.h"

namespace pinion::cuda {
namespace {

constexpr int kMaxGroups = 4, kMaxStages = 16;
constexpr int kAtomK = 64;                                    // k of a swizzled 128-byte row
constexpr int kRowBytes = 128, kGroupBytes = 64 * kRowBytes;  // of an atom: one row, one warpgroup's rows
constexpr size_t kSharedBytes = 227 * 1024;
constexpr size_t kFixedBytes = 1024 + 512;  // of a block: what aligning the ring may cost, and the barriers

struct WgmmaParams {
  CUtensorMap weight, x;
  LinearOutput output;
  int32_t groups = 0, splits = 0, share = 0, stages = 0;
  int32_t rows = 0;   // of a block
  int32_t steps = 0;  // stages of k altogether
};

// k of one stage: two atoms while x is small, so that each row gives 256 bytes at a time.
template <int kTokens>
constexpr int kAtoms = kTokens <= 64 ? 2 : 1;

template <int kTokens>
constexpr int stage_bytes(int rows) {
  return kAtoms<kTokens> * (rows + kTokens) * kRowBytes;
}

constexpr int sum_pitch(int groups) {
  return 64 * groups +
         4;  // floats of one token's sums; the pad keeps the four tokens of a lane quad in different banks
}

// T: __nv_bfloat16 or __half. kTokens: columns, those past the last token being zeros. kHead: see
// LinearOutput::largest.
// Block: 4 * groups consumer warps, then the copying warp. Cluster: splits * share blocks, the splits next to each
// other.
template <class T, int kTokens, bool kHead>
__global__ void __launch_bounds__(kMaxGroups * 128 + 32, 1) linear_wgmma_kernel(const __grid_constant__ WgmmaParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kParts = kAtoms<kTokens>;
  extern __shared__ uint8_t raw[];
  __shared__ uint64_t barriers[2 * kMaxStages];
  const uint32_t base = (ptx::shared_address(raw) + 1023) & ~1023u;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = p.groups;
  const int cluster = p.splits * p.share, rank = cluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int split = rank % p.splits, sharer = rank / p.splits;
  const int tile = blockIdx.x / cluster * p.share + sharer, first_row = tile * p.rows;
  const int begin = p.steps * split / p.splits, end = p.steps * (split + 1) / p.splits;
  const int part_bytes = p.rows * kRowBytes, weight_bytes = kParts * part_bytes;
  const int bytes = weight_bytes + kParts * kTokens * kRowBytes;
  const uint32_t full = ptx::shared_address(barriers), empty = full + 8 * kMaxStages;

  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      ptx::barrier_init(full + 8 * i, 1);
      ptx::barrier_init(empty + 8 * i, 4 * groups * p.share);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  if (cluster > 1) ptx::cluster_arrive_relaxed();
  ptx::launch_dependents();

  if (warp == 4 * groups) {  // the copying warp
    const auto copy_weight = [&](int stage, int step) {
      ptx::barrier_expect(full + 8 * stage, bytes);
#pragma unroll
      for (int a = 0; a < kParts; ++a) {
        ptx::tensor_copy(base + stage * bytes + a * part_bytes, &p.weight, (step * kParts + a) * kAtomK, first_row,
                         full + 8 * stage, ptx::CacheHint::evict_first);
      }
    };
    const auto copy_x = [&](int stage, int step) {
#pragma unroll
      for (int a = 0; a < kParts; ++a) {
        const uint32_t to = base + stage * bytes + weight_bytes + a * kTokens * 128;
        const int k = (step * kParts + a) * kAtomK;
        if (p.share == 1) {
          ptx::tensor_copy(to, &p.x, k, 0, full + 8 * stage, ptx::CacheHint::evict_last);
        } else {  // this block's half of the tokens, for both
          const uint16_t blocks = static_cast<uint16_t>((1u | 1u << p.splits) << split);
          ptx::tensor_copy_multicast(to + sharer * (kTokens / 2) * 128, &p.x, k, sharer * (kTokens / 2),
                                     full + 8 * stage, blocks, ptx::CacheHint::evict_last);
        }
      }
    };
    const int ahead = min(p.stages, end - begin);
    if (lane == 0) {
      for (int i = 0; i < ahead; ++i) copy_weight(i, begin + i);
    }
    __syncwarp();
    if (cluster > 1) ptx::cluster_wait();  // the other blocks' barriers exist
    ptx::wait_dependencies();
    if (lane == 0) {
      for (int i = 0; i < ahead; ++i) copy_x(i, begin + i);
      int stage = 0;
      uint32_t parity = 0;
      for (int step = begin + ahead; step < end; ++step) {
        ptx::barrier_wait(empty + 8 * stage, parity);
        copy_weight(stage, step);
        copy_x(stage, step);
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
    }
    __syncwarp();
    if (cluster > 1) {
      if (p.splits > 1) ptx::cluster_sync();  // the sums lie in shared memory
      ptx::cluster_arrive_relaxed();          // and nobody reads or signals this block any more
      ptx::cluster_wait();
    }
    return;
  }

  ptx::wait_dependencies();
  if (cluster > 1) ptx::cluster_wait();
  const int group = warp / 4;
  float sums[kTokens / 2] = {};
  int stage = 0;
  uint32_t parity = 0;
  const auto release = [&](int done) {
    if (p.share == 1) {
      if (lane == 0) ptx::barrier_arrive(empty + 8 * done);
    } else if (lane < p.share) {
      ptx::barrier_arrive_peer(ptx::peer_address(empty + 8 * done, split + lane * p.splits));
    }
  };
  for (int step = begin; step < end; ++step) {
    ptx::barrier_wait(full + 8 * stage, parity);
    const uint32_t at = base + stage * bytes;
    ptx::wgmma_fence();
#pragma unroll
    for (int a = 0; a < kParts; ++a) {
      // A last warpgroup with fewer rows than 64 multiplies what lies behind them as well, and keeps none of it.
      const uint64_t w = ptx::wgmma_operand(at + a * part_bytes + group * kGroupBytes);
      const uint64_t x = ptx::wgmma_operand(at + weight_bytes + a * kTokens * 128);
#pragma unroll
      for (int k = 0; k < kAtomK / 16; ++k) ptx::wgmma_64xNx16<T, kTokens>(sums, w + 2 * k, x + 2 * k);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    // Only what will be filled again is released, so that every arrival is awaited before its block may end.
    if (step > begin && step - 1 + p.stages < end) release(stage == 0 ? p.stages - 1 : stage - 1);
    if (++stage == p.stages) stage = 0, parity ^= 1;
  }
  ptx::wgmma_wait<0>();

  // The ring has been read by all warpgroups: it now holds the sums, [token][row].
  const int threads = groups * 128, pitch = sum_pitch(groups);
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
  float* staged = reinterpret_cast<float*>(raw + (base - ptx::shared_address(raw)));
  {
    const int row = (warp % 4) * 16 + group * 64 + lane / 4, token = 2 * (lane % 4);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      float* to = staged + (8 * j + token) * pitch + row;
      to[0] = sums[4 * j], to[pitch] = sums[4 * j + 1], to[8] = sums[4 * j + 2], to[pitch + 8] = sums[4 * j + 3];
    }
  }
  if (p.splits > 1) {
    ptx::cluster_sync();
  } else {
    asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
  }
  // A thread takes four rows for every `lanes`-th of this block's tokens, which are every splits-th of all.
  const int vectors = p.rows / 4, row = threadIdx.x % vectors * 4, lanes = threads / vectors;
  const int lane_of = threadIdx.x / vectors, step = lanes * p.splits;
  const int first = lane_of < lanes ? split + p.splits * lane_of : p.output.tokens;
  if (p.splits >
      1) {  // adds up the blocks' sums, in the order of k, where this block's own lay: nobody else reads those
    constexpr int kBatch = 4;  // loads in flight: one takes as long as from L2
#pragma unroll 2
    for (int token = first; token < p.output.tokens; token += step) {
      const uint32_t at = base + (token * pitch + row) * static_cast<uint32_t>(sizeof(float));
      float4 sum{};
      for (int s = 0; s < p.splits; s += kBatch) {
        float4 part[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          part[i] = ptx::load_peer(ptx::peer_address(at, sharer * p.splits + min(s + i, p.splits - 1)));
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (s + i < p.splits) sum.x += part[i].x, sum.y += part[i].y, sum.z += part[i].z, sum.w += part[i].w;
        }
      }
      *reinterpret_cast<float4*>(staged + token * pitch + row) = sum;
    }
  }
  if constexpr (kHead) {
    if (p.splits > 1) {  // other threads added up the sums
      asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
    }
    finish_head(p.output, staged, pitch, first_row, p.rows, split, p.splits, 4 * groups);
  } else {
    store_columns<T>(p.output, first_row + row, first, step,
                     [&](int token) { return *reinterpret_cast<const float4*>(staged + token * pitch + row); });
  }
  if (cluster > 1) {
    ptx::cluster_arrive_relaxed();
    ptx::cluster_wait();
  }
#else
  __trap();  // compiled for another GPU, or for sm_90 without its `a`
#endif
}

template <int kTokens>
int most_stages(int rows) {
  return std::min(kMaxStages, static_cast<int>(kSharedBytes - kFixedBytes) / stage_bytes<kTokens>(rows));
}

template <class T, int kTokens>
void launch_wgmma(const LinearProblem& p, WgmmaPlan plan, Stream& stream) {
  plan.share = std::min(plan.share, kTokens / 8);  // parts of x are whole groups of eight swizzled rows
  WgmmaParams params{.output = p.output, .groups = plan.groups, .splits = plan.splits, .share = plan.share};
  const int stage_k = kAtoms<kTokens> * kAtomK;
  params.steps = (p.in + stage_k - 1) / stage_k;
  // What a last warpgroup reads behind its rows lies in the stage's x.
  params.rows =
      plan.rows > 0 && 64 * plan.groups - plan.rows <= kAtoms<kTokens> * kTokens ? plan.rows : 64 * plan.groups;
  params.stages = most_stages<kTokens>(params.rows);
  params.weight =
      tensor_map({.data = p.weight, .type = p.type, .rows = p.output.out, .columns = p.in}, params.rows, kAtomK);
  params.x =
      tensor_map({.data = p.x, .type = p.type, .rows = p.output.tokens, .columns = p.in}, kTokens / plan.share, kAtomK);
  const int tiles = (p.output.out + params.rows - 1) / params.rows;
  const int clusters = (tiles + plan.share - 1) / plan.share;
  const size_t ring = static_cast<size_t>(params.stages) * stage_bytes<kTokens>(params.rows);
  const size_t sums = sizeof(float) * sum_pitch(plan.groups) * kTokens;
  const LaunchShape shape{.grid = static_cast<unsigned>(clusters * plan.share * plan.splits),
                          .block = static_cast<unsigned>(plan.groups * 128 + 32),
                          .shared = std::max(ring, sums) + 1024,
                          .cluster = plan.share * plan.splits};
  p.output.largest.found != nullptr ? launch<linear_wgmma_kernel<T, kTokens, true>>(shape, params, stream)
                                    : launch<linear_wgmma_kernel<T, kTokens, false>>(shape, params, stream);
}

template <class T>
void launch_wgmma(const LinearProblem& p, const WgmmaPlan& plan, Stream& stream) {
  const int tokens = p.output.tokens;
  if (tokens <= 16) return launch_wgmma<T, 16>(p, plan, stream);
  if (tokens <= 32) return launch_wgmma<T, 32>(p, plan, stream);
  if (tokens <= 64) return launch_wgmma<T, 64>(p, plan, stream);
  launch_wgmma<T, 128>(p, plan, stream);
}

}  // namespace

void linear_wgmma(const LinearProblem& p, const WgmmaPlan& plan, Stream& stream) {
  if (p.type == DType::bf16) return launch_wgmma<__nv_bfloat16>(p, plan, stream);
  launch_wgmma<__half>(p, plan, stream);
}

std::vector<WgmmaPlan> linear_wgmma_plans(int64_t tokens, int64_t in, int64_t out, int sms) {
  // The cost of a plan over that of reading the weight alone, fitted to the layers of an 8B model at 32 to 128 tokens
  // (docs/performance/cuda-linear.md): SMs that the last wave leaves idle, which matter little while they are few,
  // since the others then have more of the memory; splits, which end with an exchange of sums; copies of x.
  struct Ranked {
    WgmmaPlan plan;
    double cost;
  };
  std::vector<Ranked> ranked;
  const int64_t steps = (in + 127) / 128;
  for (int groups = 1; groups <= kMaxGroups; ++groups) {
    for (int splits : {1, 2, 3, 4, 6, 8}) {
      for (int share : {1, 2}) {
        if (splits > steps || splits * share > 8 || (share > 1 && tokens < 8 * share)) continue;
        const int64_t tiles = (out + 64 * groups - 1) / (64 * groups);
        const int64_t blocks = (tiles + share - 1) / share * share * splits, waves = (blocks + sms - 1) / sms;
        const double idle = 1 - static_cast<double>(blocks) / static_cast<double>(waves * sms);
        const double x = static_cast<double>(tokens) / (64.0 * groups * share);
        ranked.push_back({{groups, splits, share}, 1 + 0.1 * idle + 0.02 * (splits - 1 + share - 1) + 0.02 * x});
      }
    }
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) { return a.cost < b.cost; });
  constexpr size_t kTried = 6;
  std::vector<WgmmaPlan> plans;
  for (size_t i = 0; i < std::min(ranked.size(), kTried); ++i) plans.push_back(ranked[i].plan);
  // Every SM one block of as many rows, whatever that leaves of the last warpgroup.
  for (const int32_t splits : {1, 2, 3}) {
    const int64_t even = ((out * splits + sms - 1) / sms + 7) / 8 * 8;
    if (even % 64 == 0 || even > 64 * kMaxGroups || splits > steps) continue;
    const WgmmaPlan plan{static_cast<int32_t>((even + 63) / 64), splits, 1, static_cast<int32_t>(even)};
    plans.insert(splits == 1 ? plans.begin() + 1 : plans.end(), plan);
  }
  // Of many tokens the copies of x are half of what goes to the SMs: the best few once more in pairs that share them.
  for (size_t i = 0; i < 3 && tokens >= 64; ++i) {
    WgmmaPlan paired = plans[i];
    paired.share = 2;
    const auto same = [&](const WgmmaPlan& p) {
      return p.groups == paired.groups && p.splits == paired.splits && p.share == 2 && p.rows == paired.rows;
    };
    if (paired.splits <= 4 && std::none_of(plans.begin(), plans.end(), same)) plans.push_back(paired);
  }
  return plans;
}

std::string linear_wgmma_why_not(DType type, int64_t tokens, int64_t in) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (tokens > 128) return "takes at most 128 rows";
  if (in % 8 != 0) return "needs `in` to be a multiple of 8";
  return {};
}

}  // namespace pinion::cuda
