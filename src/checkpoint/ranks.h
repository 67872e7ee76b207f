// A checkpoint that `pinion convert` divided over tensor-parallel and pipeline-parallel ranks, put together again:
// every rank's config.json says which slice of which tensor it holds.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/safetensors.h"

namespace pinion {

class Checkpoint;

struct JoinedTensor {
  TensorInfo info;                  // of the whole tensor
  std::vector<std::byte> bytes;     // what was cut, joined; empty: a rank has all of it
  std::span<const std::byte> data;  // of the whole tensor: `bytes`, or borrowed from that rank
};

// How many ranks the section "pinion" of a divided checkpoint's own config.json announces; 0: it is not divided.
Result<int> rank_count(const Json& config, const std::string& where);

// By the tensors' names. `ranks` in the order rank = pp_rank * tp_size + tp_rank; they must outlive the result. Every
// element must lie in some rank, and be the same in all that hold it: what does not fit is named. Takes memory for the
// tensors that were cut, no more than the ranks' files hold.
Result<std::map<std::string, JoinedTensor>> join_ranks(std::span<const Checkpoint> ranks);

}  // namespace pinion
