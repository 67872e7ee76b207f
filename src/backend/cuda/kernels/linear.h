// The linear kernels as plain calls: what kernels/linear.cc lists as rows and bench/gpu/linear_chain.cu times. All read
// the weight row-major [out, in] as the checkpoint has it. Each plan is plain numbers, so that it fits a Tuning; a plan
// is made on the host from the shape alone, and launches allocate nothing and can be recorded.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/cuda_stream.h"
#include "backend/cuda/tile/linear_output.h"

namespace pinion::cuda {

struct LinearProblem {
  DType type = DType::bf16;      // of the weight
  DType x_type = DType::bf16;    // the same, except for linear_plain
  const void* weight = nullptr;  // [out, in], 16-byte aligned
  const void* x = nullptr;       // [tokens, in], 16-byte aligned
  int32_t in = 0;
  LinearOutput output;
};

// One token: each warp streams whole weight rows through its own ring of bulk copies and adds products in f32.
// sm_90; in % 8 == 0, in <= 32768.
struct GemvPlan {
  int32_t warps = 8;   // of a block, 8 or 16
  int32_t narrow = 0;  // 1: no more shared memory than a warp's rows fill, which leaves room for the kernels around it
};
void linear_gemv(const LinearProblem& p, const GemvPlan& plan, Stream& stream);
std::vector<GemvPlan> linear_gemv_plans(int64_t in, int64_t out, int sms);  // best guess first
std::string linear_gemv_why_not(DType type, int64_t tokens, int64_t in);

// 1 to 16 tokens: rings of bulk copies feed mma.sync; the warps of a block split K. sm_90; in % 128 == 0.
struct StreamPlan {
  int32_t slice = 256;  // k of a warp and pass: 128 or 256
  int32_t warps = 16;   // of a block, at most 16; slices that they do not cover take further passes
  int32_t narrow = 0;   // 1: half of the shared memory, which leaves room for a block of the kernel around it
};
void linear_stream(const LinearProblem& p, const StreamPlan& plan, Stream& stream);
std::vector<StreamPlan> linear_stream_plans(int64_t tokens, int64_t in, int64_t out, int sms);  // best guess first
std::string linear_stream_why_not(DType type, int64_t tokens, int64_t in, int64_t out, int sms);

// 1 to 128 tokens: tensor copies feed wgmma with the weight as the 64-row operand and the tokens as columns.
struct WgmmaPlan {
  int32_t groups = 2;  // warpgroups of a block: 64 output rows each, 1 to 4
  int32_t splits = 1;  // blocks of a cluster along K, added up in that order through shared memory
  int32_t share = 1;   // blocks of a cluster along the rows that share one copy of x: 1 or 2
  int32_t rows = 0;    // output rows of a block, a multiple of 8; 0: 64 * groups
};
void linear_wgmma(const LinearProblem& p, const WgmmaPlan& plan, Stream& stream);
std::vector<WgmmaPlan> linear_wgmma_plans(int64_t tokens, int64_t in, int64_t out, int sms);
std::string linear_wgmma_why_not(DType type, int64_t tokens, int64_t in);

// 1 to 128 tokens and many rows: tensor copies feed wgmma with 64 tokens a warpgroup as its rows and up to 256 rows of
// the weight as its columns; a block goes on from tile to tile. sm_90; in and out multiples of 8; no bias.
struct WidePlan {
  int32_t rows = 256;  // of a tile, a multiple of 8, at most 256
};
void linear_wide(const LinearProblem& p, const WidePlan& plan, Stream& stream);
std::vector<WidePlan> linear_wide_plans(int64_t out, int sms);     // empty: too few rows
std::string linear_wide_why_not(const LinearProblem& p, int sms);  // pointers in p are not read

// Any number of tokens, mma.sync and cp.async alone: every GPU since sm_80. in % 8 == 0. A row's sums depend on nothing
// but its x and the weight.
void linear_portable(const LinearProblem& p, Stream& stream);
std::string linear_portable_why_not(DType type, int64_t in);

// Any shape and any float type, without tensor cores: float32, and what the others do not take.
void linear_plain(const LinearProblem& p, Stream& stream);

// Any number of tokens through cuBLASLt, which is loaded when it is first asked for: a machine without it has the other
// kernels. Bias and gated_silu are a kernel of their own after it. Dimensions up to 2^31 - 1.
struct LargePlan {
  std::array<int32_t, 4> algorithm{};  // cuBLASLt's algorithm and its configuration; all zero: its first choice
};
void linear_large(const LinearProblem& p, const LargePlan& plan, std::span<std::byte> workspace, Stream& stream);
std::vector<LargePlan> linear_large_plans(const LinearProblem& p, int device);  // pointers in p are not read
size_t linear_large_workspace(DType type, int64_t tokens, int64_t out, bool gated_silu);
std::string linear_large_why_not();  // why the library cannot be used

// The bias and the epilogue on finished products [tokens, out], which may be y itself where there is no gate.
void linear_finish(const ConstValues& products, const LinearOutput& output, Stream& stream);

}  // namespace pinion::cuda
