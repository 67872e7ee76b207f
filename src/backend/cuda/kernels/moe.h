// The kernels of mixture-of-experts layers as plain calls; kernels/moe.cc lists them. A slot is one of the top_k
// choices of a token: slot s is choice s % top_k of token s / top_k. Weights are as the checkpoint has them, row-major,
// expert by expert. Nothing is added atomically: the same step gives the same bits.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "backend/cuda/cuda_stream.h"
#include "backend/cuda/tile/expert_output.h"

namespace pinion::cuda {

struct ExpertLinearProblem {
  DType type = DType::bf16;      // of the weight
  DType x_type = DType::bf16;    // the same, except for expert_linear_plain
  const void* weight = nullptr;  // [experts * out, in]
  const void* x = nullptr;       // [tokens, in], or [slots, in] when per_slot
  const int32_t* ids = nullptr;  // [slots]: of the model's experts, of which first_expert … are here
  int32_t in = 0, slots = 0, top_k = 1, experts = 1, first_expert = 0;
  bool per_slot = false;
  ExpertOutput output;
};

// Slots in the order of their experts, cut into tiles of one expert each: made on the device at the start of every
// grouped linear, in its workspace.
struct ExpertTile {
  int32_t expert = 0;           // -1: of experts that are elsewhere; their outputs are zeros
  int32_t first = 0, last = 0;  // of `slots`
};
struct ExpertOrder {
  int32_t* counts = nullptr;    // [experts + 1]
  int32_t* slots = nullptr;     // [slots]: by expert, ascending among an expert's
  ExpertTile* tiles = nullptr;  // [most_tiles]
  int32_t* tile_count = nullptr;
  int32_t most_tiles = 0;
};
size_t expert_order_bytes(int64_t slots, int64_t experts, int tile_slots);
ExpertOrder order_experts(const ExpertLinearProblem& p, int tile_slots, std::span<std::byte> workspace, Stream& stream);

// Any shape and any float types, without tensor cores: float32, and what the others do not take. A slot's sums depend
// on nothing but its x and its expert.
void expert_linear_plain(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream);
size_t expert_linear_plain_workspace(int64_t slots, int64_t experts);

// Any number of slots, mma.sync and cp.async alone: every GPU since sm_80. in % 8 == 0. The sums depend on nothing else
// either.
void expert_linear_grouped(const ExpertLinearProblem& p, std::span<std::byte> workspace, Stream& stream);
size_t expert_linear_grouped_workspace(int64_t slots, int64_t experts);
std::string expert_linear_grouped_why_not(DType type, int64_t in);

// A few tokens: every expert that a slot names is streamed once through rings of copies. in % 8 == 0; 220 KB
// of shared memory.
void expert_linear_stream(const ExpertLinearProblem& p, Stream& stream);
std::string expert_linear_stream_why_not(DType type, int64_t tokens, const MoeLinear& op);

void moe_route(const LaunchArgs& args, Stream& stream);
std::string moe_route_why_not(const MoeRoute& op);
void moe_combine(const LaunchArgs& args, Stream& stream);

}  // namespace pinion::cuda
