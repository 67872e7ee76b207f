// Absorbed latent attention on tensor cores: all heads share one key of rank + rope numbers per token, whose first
// `rank` are the value too. A block takes 16 or 64 rows (heads of a token, or of several) of one sequence over tiles of
// 64 keys: a tile comes into shared memory once and serves scores and sums. Where rows are few, the tiles of a sequence
// are divided among blocks, and their parts merged in the order of the keys.
//
// Eight warps: in a score they share the keys, in a sum the columns; weights pass between them through shared memory.
#include <algorithm>
#include <cmath>

#include "backend/cuda/kernels/attention_task.h"
#include "backend/cuda/kernels/mla.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/copy_async.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/tensor_args.h"

namespace pinion::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kKeys = 64, kMostSplits = 64;
constexpr int64_t kFewTokens = 32;    // up to which W_UV goes by the kernel for a few tokens
constexpr int64_t kMostRows = 32768;  // of one pass: what the workspace is made for

struct AttendParams {
  const void* q = nullptr;
  void* o = nullptr;
  float* sums = nullptr;    // [tiles, splits, kRows, rank]
  float2* stats = nullptr;  // [tiles, splits, kRows]: largest score, sum of weights
  const std::byte* cache = nullptr;
  int64_t block_stride = 0;
  const int32_t *block_table = nullptr, *seq_start = nullptr, *context_len = nullptr, *positions = nullptr;
  int32_t max_blocks = 0, block_size = 0, seqs = 0, heads = 0, rank = 0, width = 0, splits = 1;
  int32_t first_token = 0, last_token = 0;  // of this pass
  float score_scale = 1;                    // scale * log2(e)
};

// The rows of a block: `rows` of one sequence from `row` of the pass on; row r belongs to token (offset + r) / heads
// after `token`.
struct RowTile {
  int32_t seq = -1, token = 0, offset = 0, rows = 0, keys = 0;
  int64_t row = 0;
};

template <int kRows>
__device__ inline RowTile find_tile(const AttendParams& p, int tile) {
  __shared__ RowTile found;
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    RowTile mine;
    for (int s0 = 0; s0 < p.seqs; s0 += 32) {
      const int s = s0 + lane;
      const int begin = s < p.seqs ? max(p.seq_start[s], p.first_token) : 0;
      const int end = s < p.seqs ? min(p.seq_start[s + 1], p.last_token) : 0;
      const int rows = max(end - begin, 0) * p.heads, tiles = (rows + kRows - 1) / kRows;
      int upto = tiles;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, upto, d);
        if (lane >= d) upto += other;
      }
      const int all = __shfl_sync(0xffffffffu, upto, 31);
      if (tile < all) {
        const int owner = __ffs(__ballot_sync(0xffffffffu, upto > tile)) - 1;
        if (lane == owner) {
          mine.seq = s, mine.token = begin, mine.offset = (tile - (upto - tiles)) * kRows;
          mine.rows = min(kRows, rows - mine.offset);
          mine.row = int64_t{begin - p.first_token} * p.heads + mine.offset;
          const int last = p.positions[begin + (mine.offset + mine.rows - 1) / p.heads];
          mine.keys = p.context_len[s] == 0 ? 0 : last + 1;  // padding sees nothing
          found = mine;
        }
        break;
      }
      tile -= all;
      if (s0 + 32 >= p.seqs && lane == 0) found = mine;
    }
  }
  __syncthreads();
  return found;
}

// The splits that a sequence's tiles of keys are divided among, none of them empty.
__device__ inline int splits_of(const AttendParams& p, int keys) {
  return min(p.splits, max((keys + kKeys - 1) / kKeys, 1));
}

// 16-byte vectors of a row of kColumns: eight neighbouring rows have them at different banks.
template <int kColumns>
__device__ inline uint32_t place(int row, int vector) {
  return static_cast<uint32_t>(row * kColumns * 2 + ((vector ^ (row & 7)) << 4));
}

template <int kWidth, int kRows>
constexpr size_t kShared = static_cast<size_t>(kRows + 2 * kKeys) * kWidth * 2 + kRows* kKeys * 2 +
                           kWarps* kRows * sizeof(float) + kRows * sizeof(int32_t);

// T: __nv_bfloat16 or __half. kWidth >= rank + rope, kRank >= rank: what lies beyond is zero and not stored.
template <class T, int kWidth, int kRank, int kRows>
__global__ void __launch_bounds__(kThreads, 1) mla_attend_kernel(const __grid_constant__ AttendParams p) {
  constexpr int kRowWarps = kRows == 16 ? 1 : 2, kShare = kWarps / kRowWarps;  // warps that share rows
  constexpr int kM = kRows / kRowWarps / 16, kN = kKeys / kShare / 8, kO = kRank / kShare / 8;
  static_assert(kO % 2 == 0 && kWidth % 64 == 0);
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t q_at = ptx::shared_address(shared), kv_at = q_at + kRows * kWidth * 2;
  const uint32_t p_at = kv_at + 2 * kKeys * kWidth * 2;
  float* across = reinterpret_cast<float*>(shared + (p_at - q_at) + kRows * kKeys * 2);  // [kShare][kRows]
  int32_t* seen = reinterpret_cast<int32_t*>(across + kWarps * kRows);  // [kRows]: the last key that a row sees
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int share = warp % kShare, row0 = warp / kShare * (kM * 16);
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const RowTile tile = find_tile<kRows>(p, static_cast<int>(blockIdx.x));
  const int split = blockIdx.y, splits = splits_of(p, tile.keys), key_tiles = (tile.keys + kKeys - 1) / kKeys;
  if (tile.seq < 0 || split >= splits) return;
  const int begin = key_tiles * split / splits, end = key_tiles * (split + 1) / splits;

  {
    constexpr int kEach = kThreads / kRows;  // threads a row
    const int row = threadIdx.x / kEach;
    const T* from = static_cast<const T*>(p.q) + (tile.row + row) * p.width;
    for (int v = threadIdx.x % kEach; v < kWidth / 8; v += kEach) {
      const bool inside = row < tile.rows && 8 * v < p.width;
      ptx::copy_async_16(q_at + place<kWidth>(row, v), inside ? from + 8 * v : p.q, inside ? 16 : 0);
    }
    if (threadIdx.x < kRows) {
      const int r = threadIdx.x;
      seen[r] = r < tile.rows && tile.keys > 0 ? p.positions[tile.token + (tile.offset + r) / p.heads] : -1;
    }
  }
  const auto request = [&](int i) {
    if (i < end) {
      const int row = threadIdx.x / 4, key = i * kKeys + row;
      const int block =
          key < tile.keys ? p.block_table[static_cast<int64_t>(tile.seq) * p.max_blocks + key / p.block_size] : -1;
      const T* from = reinterpret_cast<const T*>(p.cache + max(block, 0) * p.block_stride) +
                      static_cast<int64_t>(key % p.block_size) * p.width;
      const uint32_t to = kv_at + i % 2 * (kKeys * kWidth * 2);
#pragma unroll 6
      for (int v = threadIdx.x % 4; v < kWidth / 8; v += 4) {
        const bool inside = block >= 0 && 8 * v < p.width;
        ptx::copy_async_16(to + place<kWidth>(row, v), inside ? static_cast<const void*>(from + 8 * v) : p.cache,
                           inside ? 16 : 0);
      }
    }
    ptx::copy_async_commit();
  };
  request(begin);

  float o[kM][kO][4] = {}, largest[kM][2], total[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) largest[m][0] = largest[m][1] = -INFINITY;
  for (int i = begin; i < end; ++i) {
    ptx::copy_async_wait<0>();
    __syncthreads();  // the tile has arrived for all threads, and the one before it and its weights have been read
    request(i + 1);
    const uint32_t kv = kv_at + i % 2 * (kKeys * kWidth * 2);

    // Scores of this warp's keys.
    float s[kM][kN][4] = {};
    const int key0 = share * kN * 8;
#pragma unroll 2
    for (int k = 0; k < kWidth / 8; k += 4) {  // 32 columns
      uint32_t b[kN][4];                       // of 8 keys: four times 8 columns
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        ptx::load_matrix_x4(b[n], kv + place<kWidth>(key0 + 8 * n + lane % 8, k + lane / 8));
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t a[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          ptx::load_matrix_x4(a, q_at + place<kWidth>(row0 + 16 * m + lane % 16, k + 2 * half + lane / 16));
#pragma unroll
          for (int n = 0; n < kN; ++n) ptx::mma_m16n8k16<T>(s[m][n], a, b[n][2 * half], b[n][2 * half + 1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 16 * m + 8 * half + g, last = seen[row];
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& x = s[m][n][2 * half + j];
            x = i * kKeys + key0 + 8 * n + 2 * t + j <= last ? x * p.score_scale : -INFINITY;
            most = fmaxf(most, x);
          }
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        if (t == 0) across[share * kRows + row] = most;
      }
    }
    __syncthreads();

    // Weights, and what was summed up brought to the new largest score.
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 16 * m + 8 * half + g;
        float most = largest[m][half];
#pragma unroll
        for (int w = 0; w < kShare; ++w) most = fmaxf(most, across[w * kRows + row]);
        const float base = most == -INFINITY ? 0.0f : most, shrink = exp2_fast(largest[m][half] - base);
        largest[m][half] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const float a = exp2_fast(s[m][n][2 * half] - base), b = exp2_fast(s[m][n][2 * half + 1] - base);
          sum += a + b;
          const uint32_t at = p_at + place<kKeys>(row, key0 / 8 + n) + 4 * t;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(ptx::pack<T>(a, b)) : "memory");
        }
        total[m][half] = total[m][half] * shrink + sum;
#pragma unroll
        for (int n = 0; n < kO; ++n) o[m][n][2 * half] *= shrink, o[m][n][2 * half + 1] *= shrink;
      }
    }
    __syncthreads();

    // Sums of this warp's columns.
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        ptx::load_matrix_x4(a[m], p_at + place<kKeys>(row0 + 16 * m + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kO; n += 2) {
        uint32_t b[4];
        ptx::load_matrix_x4_transposed(b, kv + place<kWidth>(16 * k + lane % 16, share * kO + n + lane / 16));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          ptx::mma_m16n8k16<T>(o[m][n], a[m], b[0], b[1]);
          ptx::mma_m16n8k16<T>(o[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  ptx::copy_async_wait<0>();
  __syncthreads();  // `across` has been read
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[m][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (t == 0) across[share * kRows + row0 + 16 * m + 8 * half + g] = sum;
    }
  }
  __syncthreads();
  const int64_t part = (int64_t{blockIdx.x} * p.splits + split) * kRows;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + 16 * m + 8 * half + g;
      if (row >= tile.rows) continue;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kShare; ++w) sum += across[w * kRows + row];
      const float by = splits > 1 ? 1.0f : sum > 0 ? __fdiv_rn(1.0f, sum) : 0.0f;
      if (splits > 1 && share == 0 && t == 0) p.stats[part + row] = {largest[m][half], sum};
#pragma unroll
      for (int n = 0; n < kO; ++n) {
        const int column = (share * kO + n) * 8 + 2 * t;
        if (column >= p.rank) continue;
        const float a = o[m][n][2 * half] * by, b = o[m][n][2 * half + 1] * by;
        if (splits > 1) {
          *reinterpret_cast<float2*>(p.sums + (part + row) * p.rank + column) = {a, b};
        } else {
          *reinterpret_cast<uint32_t*>(static_cast<T*>(p.o) + (tile.row + row) * p.rank + column) = ptx::pack<T>(a, b);
        }
      }
    }
  }
}

constexpr int kMergeThreads = 128;

// A block per row of a tile: the splits' parts in the order of their keys.
template <class T, int kRows>
__global__ void __launch_bounds__(kMergeThreads) mla_merge_kernel(const __grid_constant__ AttendParams p) {
  __shared__ float factor[kMostSplits];
  ptx::launch_dependents();
  ptx::wait_dependencies();
  const RowTile tile = find_tile<kRows>(p, static_cast<int>(blockIdx.x));
  const int row = blockIdx.y, splits = splits_of(p, tile.keys);
  if (tile.seq < 0 || row >= tile.rows || splits == 1) return;  // one split has written its result
  const int64_t part = int64_t{blockIdx.x} * p.splits * kRows + row;
  float largest = -INFINITY, total = 0;
  for (int i = 0; i < splits; ++i) largest = fmaxf(largest, p.stats[part + int64_t{i} * kRows].x);
  for (int i = 0; i < splits; ++i) {
    const float2 s = p.stats[part + int64_t{i} * kRows];
    const float f = s.x == -INFINITY ? 0.0f : exp2_fast(s.x - largest);
    total += f * s.y;
    if (threadIdx.x == 0) factor[i] = f;
  }
  __syncthreads();
  const float by = total > 0 ? __fdiv_rn(1.0f, total) : 0.0f;
  for (int column = threadIdx.x * 4; column < p.rank; column += kMergeThreads * 4) {
    float4 sum{};
#pragma unroll 8
    for (int i = 0; i < splits; ++i) {
      const float4 v = *reinterpret_cast<const float4*>(p.sums + (part + int64_t{i} * kRows) * p.rank + column);
      const float f = factor[i];
      sum.x += f * v.x, sum.y += f * v.y, sum.z += f * v.z, sum.w += f * v.w;
    }
    *reinterpret_cast<uint2*>(static_cast<T*>(p.o) + (tile.row + row) * p.rank + column) = {
        ptx::pack<T>(sum.x * by, sum.y * by), ptx::pack<T>(sum.z * by, sum.w * by)};
  }
}

size_t lines(int64_t bytes) {
  return static_cast<size_t>((bytes + 255) / 256 * 256);
}

// In the workspace, one after another.
struct Places {
  size_t q, o, sums, stats, total;
};
Places places(const MlaAttention& op, int64_t rows, int sms) {
  const int64_t row_pairs = std::min(rows * op.heads, kMostRows + op.heads), parts = int64_t{sms} * 64;
  Places p{};
  p.o = p.q + lines(row_pairs * (op.rank + op.rope) * 2);
  p.sums = p.o + lines(row_pairs * op.rank * 2);
  p.stats = p.sums + lines(parts * op.rank * static_cast<int64_t>(sizeof(float)));
  p.total = p.stats + lines(parts * static_cast<int64_t>(sizeof(float2)));
  return p;
}

template <class T, int kWidth, int kRank, int kRows>
void attend(AttendParams p, int64_t tiles, int splits, Stream& stream) {
  p.splits = splits;
  launch<mla_attend_kernel<T, kWidth, kRank, kRows>>(
      {.grid = dim3(static_cast<unsigned>(tiles), splits), .block = kThreads, .shared = kShared<kWidth, kRows>}, p,
      stream);
  if (splits == 1) return;
  launch<mla_merge_kernel<T, kRows>>({.grid = dim3(static_cast<unsigned>(tiles), kRows), .block = kMergeThreads}, p,
                                     stream);
}

template <class T, int kWidth, int kRank>
void attend(const AttendParams& p, const BatchView& batch, bool split, Stream& stream) {
  const int64_t tokens = p.last_token - p.first_token, sms = cuda_stream(stream).device().multiprocessors;
  // Without splits always the same tile: what a row's weights add up to depends on how warps share them.
  const int64_t rows = split && batch.max_seq_tokens * p.heads <= 16 ? 16 : 64;
  const int64_t tiles = batch.max_seq_tokens == 1 ? tokens * ((p.heads + rows - 1) / rows)
                                                  : tokens * p.heads / rows + std::min<int64_t>(tokens, p.seqs);
  const int64_t key_tiles = (std::max<int64_t>(batch.max_context, 1) + kKeys - 1) / kKeys;
  const int64_t splits = split ? std::clamp<int64_t>(sms / tiles, 1, std::min<int64_t>(key_tiles, kMostSplits)) : 1;
  if (rows == 16) {
    attend<T, kWidth, kRank, 16>(p, tiles, static_cast<int>(splits), stream);
  } else {
    attend<T, kWidth, kRank, 64>(p, tiles, static_cast<int>(splits), stream);
  }
}

bool is_small(const MlaAttention& op) {
  return op.rank + op.rope <= 128;
}

}  // namespace

void mla_attention_absorbed(const LaunchArgs& args, bool split, Stream& stream) {
  const auto& op = std::get<MlaAttention>(*args.op);
  const BatchView& batch = *args.batch;
  const KvView& kv = batch.kv[op.layer];
  const int sms = cuda_stream(stream).device().multiprocessors;
  const Places at = places(op, batch.tokens, sms);
  check(args.workspace.size() >= at.total, "mla_attention's workspace is too small");
  std::byte* memory = args.workspace.data();
  const MlaLatents latents{memory + at.q, memory + at.o};
  const int64_t most = std::max<int64_t>(1, kMostRows / op.heads);
  for (int64_t first = 0; first < batch.tokens; first += most) {
    const int64_t tokens = std::min(most, batch.tokens - first);
    mla_absorb(args, latents, first, tokens, stream);
    const AttendParams p{.q = latents.q,
                         .o = latents.o,
                         .sums = reinterpret_cast<float*>(memory + at.sums),
                         .stats = reinterpret_cast<float2*>(memory + at.stats),
                         .cache = kv.base,
                         .block_stride = kv.block_stride,
                         .block_table = kv.block_table,
                         .seq_start = batch.seq_start,
                         .context_len = batch.context_len,
                         .positions = batch.positions,
                         .max_blocks = kv.max_blocks,
                         .block_size = kv.block_size,
                         .seqs = batch.seqs,
                         .heads = static_cast<int32_t>(op.heads),
                         .rank = static_cast<int32_t>(op.rank),
                         .width = static_cast<int32_t>(op.rank + op.rope),
                         .first_token = static_cast<int32_t>(first),
                         .last_token = static_cast<int32_t>(first + tokens),
                         .score_scale = static_cast<float>(op.scale * 1.4426950408889634)};
    const bool bf16 = kv.dtype == DType::bf16;
    if (is_small(op)) {
      bf16 ? attend<__nv_bfloat16, 128, 128>(p, batch, split, stream)
           : attend<__half, 128, 128>(p, batch, split, stream);
    } else {
      bf16 ? attend<__nv_bfloat16, 576, 512>(p, batch, split, stream)
           : attend<__half, 576, 512>(p, batch, split, stream);
    }
    mla_project(args, latents, first, tokens, split && tokens <= kFewTokens, stream);
  }
}

size_t mla_attention_absorbed_workspace(const MlaAttention& op, int64_t rows, int sms) {
  return places(op, rows, sms).total;
}

std::string mla_attention_absorbed_why_not(const MlaAttention& op, DType type) {
  if (type != DType::bf16 && type != DType::f16) return "multiplies bf16 or f16";
  if (op.nope % 8 != 0 || op.rope % 8 != 0 || op.rank % 8 != 0) {
    return "needs nope, rope and rank to be multiples of 8";
  }
  if (op.rank > 512 || op.rank + op.rope > 576) return "takes latents of at most 512 + 64 columns";
  return {};
}

}  // namespace pinion::cuda
