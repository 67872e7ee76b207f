// AWQ's and SmoothQuant's scales over a whole model: linears that share an input are scaled together, and the inverse
// goes into what made the input: a norm's weight, or the rows of the up projection. All experts of a layer share one
// input, which its router reads too: the router's columns take the scales as well. Each expert's down projection has
// its own, for its own up projection.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "calibrate/input_statistics.h"
#include "checkpoint/checkpoint.h"
#include "quant/quant_format.h"

namespace pinion {

struct LinearTensor {
  std::string module;  // "model.layers.0.mlp.up_proj"
  std::string tensor;  // the checkpoint's name of its weight
  std::string part;    // the graph's name of it (of the first, where the tensor fuses several)
  int64_t rows = 0, cols = 0;
  size_t node = 0;     // in the graph
  size_t piece = 0;    // which part of the node's weight
  bool fused = false;  // the tensor holds other linears too
  bool plain = false;  // head or embedding: in 8 bits, rounded to nearest
};

struct ScaledWeights {
  std::map<std::string, std::vector<float>> weights;  // by tensor, [rows, cols]
  std::map<std::string, InputStatistics> inputs;      // by tensor, as they will be once scales are folded
  std::map<size_t, InputStatistics> experts;          // by node: what all experts of a MoeLinear saw
  std::map<std::string, std::vector<float>> changed;  // norms and routers, by the checkpoint's name
};

// Changes `scaled` in place. An input that is made by anything but an RMS norm or a gated activation, or that something
// else than `linears` (and, of experts, what chooses and weighs them) reads too, keeps its scale.
Status fold_scales(const Checkpoint& checkpoint, const Graph& graph, const std::vector<LinearTensor>& linears,
                   InputScaling scaling, const EncodeOptions& options, ScaledWeights& scaled);

}  // namespace pinion
