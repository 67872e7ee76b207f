// The kernels of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1) as plain calls; kernels/mla.cc lists
// them. The cache holds one row of rank + rope numbers per token and is never expanded: in the absorbed form
// (q_nope W_UK) . c replaces q_nope . (W_UK c), so that all heads share one key, and its first `rank` columns are the
// value of them all.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "backend/backend.h"

namespace pinion::cuda {

void mla_kv_write(const LaunchArgs& args, Stream& stream);

// Any shape and any float types, without tensor cores, a warp per row and head.
void mla_attention_plain(const LaunchArgs& args, Stream& stream);
std::string mla_attention_plain_why_not(const MlaAttention& op);

// bf16 or f16 throughout; mma.sync. Four steps: absorb, attend over tiles of 64 keys, merge the splits, project.
//   split: tiles of keys are divided among blocks where there are fewer rows than SMs; otherwise a row's result depends
//   on no other row.
void mla_attention_absorbed(const LaunchArgs& args, bool split, Stream& stream);
size_t mla_attention_absorbed_workspace(const MlaAttention& op, int64_t rows, int sms);
std::string mla_attention_absorbed_why_not(const MlaAttention& op, DType type);

// Its steps. Rows are (token, head) pairs, heads of a token together.
struct MlaLatents {
  const void* q = nullptr;  // [rows, rank + rope]
  void* o = nullptr;        // [rows, rank]: the weighted sum of latents
};
// latents.q from q [tokens, heads * (nope + rope)] and W_UK.
void mla_absorb(const LaunchArgs& args, const MlaLatents& latents, int64_t first_token, int64_t tokens, Stream& stream);
// The output [tokens, heads * v] from latents.o and W_UV; few: by a kernel that suits a few tokens.
void mla_project(const LaunchArgs& args, const MlaLatents& latents, int64_t first_token, int64_t tokens, bool few,
                 Stream& stream);

}  // namespace pinion::cuda
