// Sampling without a sort: a thread block per row. The k-th largest logit, and the smallest set of the largest that
// holds a part p of the weight, are both found digit by digit (radix select, most significant first) over histograms in
// shared memory: of counts for top_k, of weights in fixed point for top_p. Integers add up to the same sum in any
// order, so that a row's token depends on nothing but its logits and its parameters.
#include "backend/cuda/kernels/sample.h"

#include "backend/cuda/kernels/row_edits.h"
#include "backend/cuda/kernels/row_logprobs.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx/cluster.h"
#include "backend/cuda/ptx/dependency.h"
#include "backend/cuda/ptx/mma_sync.h"
#include "backend/cuda/tile/largest_logit.h"

namespace pinion::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kDigits = 256;
constexpr double kFixed = 1099511627776.0;  // 2^40: weights are at most 1, and 2^23 of them still fit 64 bits

struct Shared {
  unsigned long long histogram[kDigits];
  double scan[kWarps];
  float warp_max[kWarps];
  int32_t warp_id[kWarps], count[kWarps];
  float most;
  int32_t best, last, bad;
  float4 found;  // by this block, for the first of its cluster
  uint32_t key;
  unsigned long long above;
};

// The candidates so far: logits of at least `least` whose key is above `key`, and of those with this very key the first
// `ties` in the order of ids.
struct Candidates {
  float least = -INFINITY;
  uint32_t key = 0;
  uint32_t ties = 0xffffffffu;
};

struct Row {
  const float* logits;
  int32_t vocab, first, last;  // this thread's ids in the order of ids: [first, last)
  float most;
  double scale;
  __device__ double weight(float x) const { return exp((static_cast<double>(x) - most) * scale); }
  __device__ unsigned long long fixed_weight(float x) const {
    return static_cast<unsigned long long>(weight(x) * kFixed);
  }
};

// f(logit) for this thread's candidates in the order of ids. `equal_before`: candidates with the very key that earlier
// threads own.
template <class F>
__device__ inline void for_candidates(const Row& row, const Candidates& c, uint32_t equal_before, F&& f) {
  uint32_t equal = equal_before;
  for (int32_t id = row.first; id < row.last; ++id) {
    const float x = row.logits[id];
    if (!(x >= c.least) || x == -INFINITY) continue;
    const uint32_t key = logit_key(x);
    if (key < c.key || (key == c.key && equal++ >= c.ties)) continue;
    f(id, x, key);
  }
}

// How many candidates with the very key earlier threads own.
__device__ uint32_t equal_before(const Row& row, const Candidates& c, Shared& s) {
  int32_t own = 0;
  for (int32_t id = row.first; id < row.last; ++id) {
    const float x = row.logits[id];
    own += x >= c.least && x != -INFINITY && logit_key(x) == c.key ? 1 : 0;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t inclusive = own;
  for (int d = 1; d < 32; d *= 2) {
    const int32_t left = __shfl_up_sync(0xffffffffu, inclusive, d);
    if (lane >= d) inclusive += left;
  }
  if (lane == 31) s.count[warp] = inclusive;
  __syncthreads();
  int32_t before = inclusive - own;
  for (int w = 0; w < warp; ++w) before += s.count[w];
  __syncthreads();
  return static_cast<uint32_t>(before);
}

// Cuts the candidates down to the largest ones that together measure `target`: counts, or fixed-point weights. The last
// one that is needed stays.
template <bool kWeights>
__device__ void keep_largest(const Row& row, Candidates& c, unsigned long long target, Shared& s) {
  const uint32_t before = equal_before(row, c, s);
  uint32_t prefix = 0;
  unsigned long long above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) s.histogram[i] = 0;
    __syncthreads();
    for_candidates(row, c, before, [&](int32_t, float x, uint32_t key) {
      if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) return;
      atomicAdd(&s.histogram[key >> shift & 255], kWeights ? row.fixed_weight(x) : 1ull);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (digit > 0 && above + s.histogram[digit] < target) above += s.histogram[digit--];
      s.key = prefix | static_cast<uint32_t>(digit) << shift;
      s.above = above;
    }
    __syncthreads();
    prefix = s.key, above = s.above;
    __syncthreads();
  }
  // Ties at the boundary: as many of the lowest ids as are needed. A smaller key than before was not possible, and at
  // the same key never more ties than before.
  const float boundary = __uint_as_float(prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix);
  const unsigned long long each = kWeights ? max(row.fixed_weight(boundary), 1ull) : 1ull;
  const unsigned long long need = target > above ? (target - above + each - 1) / each : 1ull;
  const auto ties = static_cast<uint32_t>(min(need, 0xffffffffull));
  c.ties = prefix == c.key ? min(c.ties, ties) : ties;
  c.key = prefix;
}

// The sum of the threads' `own` before this one in the order of threads, and of all.
__device__ double exclusive_sum(double own, Shared& s, double& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double inclusive = own;
  for (int d = 1; d < 32; d *= 2) {
    const double left = __shfl_up_sync(0xffffffffu, inclusive, d);
    if (lane >= d) inclusive += left;
  }
  if (lane == 31) s.scan[warp] = inclusive;
  __syncthreads();
  double before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += s.scan[w];
  }
  __syncthreads();
  return before + inclusive - own;
}

// The largest logit, its lowest id, and whether the row is finite: of the logits [first, last).
__device__ void find_largest(const float* logits, int32_t first, int32_t last, Shared& s) {
  float most = -INFINITY;
  int32_t best = last;
  bool bad = false;
  const auto see = [&](float x, int32_t id) {
    bad |= isnan(x) || x == INFINITY;
    if (x > most) most = x, best = id;
  };
  if (reinterpret_cast<uintptr_t>(logits + first) % 16 == 0) {
    const int32_t vectors = (last - first) / 4;
#pragma unroll 4
    for (int32_t i = threadIdx.x; i < vectors; i += kThreads) {
      const float4 v = reinterpret_cast<const float4*>(logits + first)[i];
      const int32_t id = first + 4 * i;
      see(v.x, id), see(v.y, id + 1), see(v.z, id + 2), see(v.w, id + 3);
    }
    first += 4 * vectors;
  }
  for (int32_t id = first + static_cast<int32_t>(threadIdx.x); id < last; id += kThreads) see(logits[id], id);
  for (int d = 16; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, most, d);
    const int32_t id = __shfl_xor_sync(0xffffffffu, best, d);
    if (other > most || (other == most && id < best)) most = other, best = id;
  }
  if (threadIdx.x == 0) s.bad = 0, s.last = -1;
  if (threadIdx.x % 32 == 0) s.warp_max[threadIdx.x / 32] = most, s.warp_id[threadIdx.x / 32] = best;
  __syncthreads();
  if (bad) s.bad = 1;
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) {
      if (s.warp_max[w] > most || (s.warp_max[w] == most && s.warp_id[w] < best)) {
        most = s.warp_max[w], best = s.warp_id[w];
      }
    }
    s.most = most, s.best = best;
  }
  __syncthreads();
}

// The same over the whole row, by the blocks of a cluster together; true in the first of them, which goes on alone.
__device__ bool find_largest_of_row(const float* logits, int32_t vocab, Shared& s) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (const auto blocks = static_cast<int32_t>(ptx::cluster_size()); blocks > 1) {
    const auto rank = static_cast<int32_t>(ptx::cluster_rank());
    const int32_t each = (vocab / blocks + 3) / 4 * 4;
    find_largest(logits, min(rank * each, vocab), rank + 1 == blocks ? vocab : min((rank + 1) * each, vocab), s);
    if (threadIdx.x == 0) s.found = {s.most, __int_as_float(s.best), __int_as_float(s.bad), 0};
    ptx::cluster_sync();
    if (rank == 0 && threadIdx.x == 0) {
      for (int32_t b = 1; b < blocks; ++b) {  // in the order of ids
        const float4 other = ptx::load_peer(ptx::peer_address(ptx::shared_address(&s.found), b));
        if (other.x > s.most) s.most = other.x, s.best = __float_as_int(other.y);
        s.bad |= __float_as_int(other.z);
      }
    }
    ptx::cluster_sync();  // the others' results have been read: they may end
    return rank == 0;
  }
#endif
  find_largest(logits, 0, vocab, s);
  return true;
}

// A token drawn from a finite row, whose largest logit find_largest left; the same in every thread.
__device__ int32_t draw(const float* logits, int32_t vocab, const RowSampling& sampling, Shared& s) {
  const int32_t share = (vocab + kThreads - 1) / kThreads,
                first = min(static_cast<int32_t>(threadIdx.x) * share, vocab);
  // As on the host: lower temperatures leave weight on the largest logits alone, and dividing by them may overflow.
  const Row row{logits, vocab, first, min(first + share, vocab), s.most, 1.0 / fmaxf(sampling.temperature, 1e-5f)};
  Candidates c;
  if (sampling.min_p > 0) c.least = static_cast<float>(s.most + log(static_cast<double>(sampling.min_p)) / row.scale);
  if (sampling.top_k > 0 && sampling.top_k < vocab) {
    keep_largest<false>(row, c, static_cast<unsigned long long>(sampling.top_k), s);
  }
  if (sampling.top_p < 1) {
    const uint32_t before = equal_before(row, c, s);
    if (threadIdx.x == 0) s.above = 0;
    __syncthreads();
    unsigned long long own = 0;
    for_candidates(row, c, before, [&](int32_t, float x, uint32_t) { own += row.fixed_weight(x); });
    atomicAdd(&s.above, own);
    __syncthreads();
    const auto target = static_cast<unsigned long long>(static_cast<double>(s.above) * sampling.top_p);
    __syncthreads();
    keep_largest<true>(row, c, max(target, 1ull), s);
  }
  const uint32_t before = equal_before(row, c, s);
  double own = 0, total = 0;
  for_candidates(row, c, before, [&](int32_t id, float x, uint32_t) {
    const double w = row.weight(x);
    own += w;
    if (w > 0) atomicMax(&s.last, id);
  });
  double reached = exclusive_sum(own, s, total);
  const double target = sampling.uniform * total;
  if (threadIdx.x == 0) s.best = s.last;  // where rounding leaves the target past the end
  __syncthreads();
  if (target >= reached && target < reached + own) {
    int32_t chosen = -1;
    for_candidates(row, c, before, [&](int32_t id, float x, uint32_t) {
      reached += row.weight(x);
      if (chosen < 0 && target < reached) chosen = id;
    });
    if (chosen >= 0) s.best = chosen;
  }
  __syncthreads();
  return s.best;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParams p) {
  __shared__ Shared s;
  __shared__ LogprobShared logprobs;
  const int32_t at = static_cast<int32_t>(blockIdx.x) / p.blocks;
  const RowSampling sampling = p.sampling[at];  // went up with the step
  const bool stored = p.largest.stored == nullptr || p.largest.stored[at] != 0;
  ptx::wait_dependencies();
  const int64_t slot = p.to.slot != nullptr ? *p.to.slot : 0, to = slot * p.to.stride + at;
  const auto choose = [&](int32_t token) {
    p.to.tokens[to] = token;
    if (p.to.host != nullptr) p.to.host[to] = token;
  };
  if (!stored) {  // the head has left the largest logit, and no row
    const uint64_t found = p.largest.found[at];
    if (blockIdx.x % p.blocks == 0 && threadIdx.x == 0) choose(packed_finite(found) ? packed_id(found) : kNotFinite);
    return;
  }
  float* logits = p.logits + int64_t{at} * p.vocab;
  const bool penalized = sampling.history >= 0;
  const RowEdits edits{
      .logits = logits,
      .edits = p.memory.edits + sampling.edits,
      .edited = p.memory.edited + sampling.edits,
      .history = penalized ? p.memory.histories + sampling.history : nullptr,
      .penalized = penalized ? p.memory.penalized + sampling.history : nullptr,
      .masks = sampling.masks,
      .biases = sampling.biases,
      .earlier = sampling.earlier_row < 0 ? -1 : p.to.tokens[(slot ^ 1) * p.to.stride + sampling.earlier_row],
      .repetition = sampling.repetition_penalty,
      .presence = sampling.presence_penalty,
      .frequency = sampling.frequency_penalty};
  if (edits.any()) {  // by one block of the cluster alone
    if (static_cast<int32_t>(blockIdx.x) % p.blocks != 0) return;
    apply_edits(edits);
    find_largest(logits, 0, p.vocab, s);
  } else if (!find_largest_of_row(logits, p.vocab, s)) {
    return;
  }
  const bool broken = s.bad || s.most == -INFINITY;
  int32_t token = broken ? kNotFinite : s.best;
  if (!broken && sampling.temperature != 0) token = draw(logits, p.vocab, sampling, s);
  if (edits.any()) {
    undo_edits(edits);
    if (broken || sampling.logprobs >= 0) find_largest(logits, 0, p.vocab, s);
    if (broken && !s.bad && s.most != -INFINITY) token = kNoneLeft;
  }
  if (token >= 0 && penalized) count_token(edits.history, token, s.last);
  if (token >= 0 && sampling.logprobs >= 0 && p.to.logprobs != nullptr) {
    write_logprobs<kThreads>(logits, p.vocab, s.most, token, min(sampling.logprobs, kMaxLogprobs),
                             p.to.logprobs + to * (1 + kMaxLogprobs), logprobs);
  }
  if (threadIdx.x == 0) choose(token);
}

}  // namespace

void sample_rows(SampleParams p, int64_t rows, Stream& stream) {
  // Few rows would leave most of the GPU idle while each is read once. Without clusters a row has one block.
  p.blocks = rows <= 16 && p.vocab >= 16384 && cuda_stream(stream).device().dependent_launch() ? 8 : 1;
  launch<sample_kernel>({.grid = static_cast<unsigned>(rows * p.blocks), .block = kThreads, .cluster = p.blocks}, p,
                        stream);
}

}  // namespace pinion::cuda
