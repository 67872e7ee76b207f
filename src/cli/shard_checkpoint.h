// Which part of which tensor each rank holds when a checkpoint is divided over tensor-parallel and pipeline-parallel
// ranks. The graph says it: a Linear's Shard attribute, the heads of the attention it feeds, and the layer it lies in.
// A plan is data, so that it can be tested, recorded in config.json, and put together again bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "compiler/weight_source.h"
#include "models/families.h"

namespace pinion::cli {

// Elements [begin, end) along one axis of a tensor, or all of it (axis -1).
struct TensorSlice {
  std::string name;            // as it is written
  std::vector<int64_t> shape;  // of the whole tensor: [n], [rows, cols] or [experts, rows, cols]
  int axis = -1;
  int64_t begin = 0, end = 0;
  WeightPart source = {};  // what it is read from; no name: from the tensor `name`
  std::vector<int64_t> sliced_shape() const;
};

struct RankPlan {
  int tp_rank = 0, pp_rank = 0;
  int64_t first_layer = 0, last_layer = 0;  // decoder layers [first, last)
  std::vector<TensorSlice> tensors;         // in the model's order
};

// Ranks in the order rank = pp_rank * tp_size + tp_rank.
//   rows  (q, k, v, gate, up, lm_head): rank t holds the t-th part of the rows; q, k and v are cut between heads, and
//         where there are fewer KV heads than ranks, neighbours hold the same one.
//   cols  (o, down): the t-th part of the columns; the bias, which is added once, is in tensor-parallel rank 0 only.
//   none  (embedding, norms, a head tied to the embedding): whole on every tensor-parallel rank.
// Pipeline ranks hold consecutive layers; the embedding lies in the first, final norm and head in the last.
// What does not divide (heads, KV heads, intermediate size) is refused; a vocabulary may divide unevenly.
// With several tensor-parallel ranks a tensor that fuses several weights (Phi-3's qkv_proj) is written as its parts,
// each under its own name; with one it stays as `checkpoint`, when there is one, has it.
Result<std::vector<RankPlan>> plan_ranks(const Model& model, int tp_size, int pp_size,
                                         const Checkpoint* checkpoint = nullptr);

// The "pinion" section of a rank's config.json: tp_size, tp_rank, pp_size, pp_rank, first_layer, last_layer, and
// "slices": tensor name -> [axis, begin, end, whole length], for the tensors that are not whole.
Json rank_json(const RankPlan& plan, int tp_size, int pp_size);

// Where the slice's weight lies. Fails when the checkpoint lacks it or has it in another shape than the model expects.
Result<WeightSource> open_slice(const Checkpoint& checkpoint, const TensorSlice& slice);

// The slice as `dtype`, made while it is written: converted from the checkpoint, or filled when it is a dummy. The
// checkpoint must outlive the result.
Result<TensorToWrite> slice_tensor(const Checkpoint& checkpoint, const TensorSlice& slice, DType dtype);

}  // namespace pinion::cli
