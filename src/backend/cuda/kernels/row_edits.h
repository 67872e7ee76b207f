// What a row's masks, biases and penalties do to its logits before a token is drawn: in place, by one thread block, in
// the host sampler's order and with its roundings, and undone afterwards from what was there before.
#pragma once

#include "backend/sampling.h"

namespace pinion::cuda {

struct RowEdits {
  float* logits = nullptr;
  const LogitEdit* edits = nullptr;
  float* edited = nullptr;
  TokenCount* history = nullptr;  // null: no penalties
  float* penalized = nullptr;
  int32_t masks = 0, biases = 0;
  int32_t earlier = -1;  // the token that the step before chose, where that is asked for
  float repetition = 1, presence = 0, frequency = 0;

  __device__ bool any() const { return masks + biases > 0 || history != nullptr; }
  __device__ int32_t seen() const { return history != nullptr ? history->token : 0; }
};

// All threads of the block; a barrier before and behind.
__device__ inline void apply_edits(const RowEdits& e) {
  const auto first = static_cast<int32_t>(threadIdx.x), step = static_cast<int32_t>(blockDim.x);
  const int32_t n = e.masks + e.biases, seen = e.seen();
  __syncthreads();
  for (int32_t i = first; i < n; i += step) e.edited[i] = e.logits[e.edits[i].token];
  for (int32_t i = first; i < seen; i += step) e.penalized[i] = e.logits[e.history[1 + i].token];
  __syncthreads();
  for (int32_t i = first; i < e.masks; i += step) {
    const LogitEdit m = e.edits[i];
    // Added, not stored: a logit that is not finite stays so. Twice the same token is twice the same value.
    if (m.after < 0 || m.after == e.earlier) e.logits[m.token] = e.edited[i] + m.bias;
  }
  __syncthreads();
  for (int32_t i = e.masks + first; i < n; i += step) {
    const int32_t token = e.edits[i].token;
    if (i > e.masks && e.edits[i - 1].token == token) continue;  // the thread of the token's first bias adds them all
    float x = e.logits[token];
    for (int32_t j = i; j < n && e.edits[j].token == token; ++j) x = __fadd_rn(x, e.edits[j].bias);
    e.logits[token] = x;
  }
  __syncthreads();
  for (int32_t i = first; i < seen; i += step) {
    const TokenCount t = e.history[1 + i];
    float x = e.logits[t.token];
    x = x > 0 ? __fdiv_rn(x, e.repetition) : __fmul_rn(x, e.repetition);
    if (t.count > 0) {
      x = __fsub_rn(x, __fadd_rn(__fmul_rn(e.frequency, static_cast<float>(t.count)), e.presence));
    }
    e.logits[t.token] = x;
  }
  __syncthreads();
}

__device__ inline void undo_edits(const RowEdits& e) {
  const auto first = static_cast<int32_t>(threadIdx.x), step = static_cast<int32_t>(blockDim.x);
  const int32_t n = e.masks + e.biases, seen = e.seen();
  __syncthreads();
  for (int32_t i = first; i < n; i += step) e.logits[e.edits[i].token] = e.edited[i];
  for (int32_t i = first; i < seen; i += step) e.logits[e.history[1 + i].token] = e.penalized[i];
  __syncthreads();
}

// Counts a token that was put out. `found`: in shared memory.
__device__ inline void count_token(TokenCount* history, int32_t token, int32_t& found) {
  const TokenCount head = *history;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  for (auto i = static_cast<int32_t>(threadIdx.x); i < head.token; i += static_cast<int32_t>(blockDim.x)) {
    if (history[1 + i].token == token) ++history[1 + i].count, found = 1;
  }
  __syncthreads();
  if (threadIdx.x == 0 && found == 0 && head.token < head.count) {
    history[1 + head.token] = {token, 1};
    history->token = head.token + 1;
  }
  __syncthreads();
}

}  // namespace pinion::cuda
