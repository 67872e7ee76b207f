// Scales of an fp8 KV cache: ModelOpt, compressed-tensors and AutoFP8 each put them elsewhere beside the attention's
// linears (vLLM's reader takes all of these places).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "compiler/compiler.h"
#include "compiler/weight_source.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

Result<std::optional<float>> find_scale(const Checkpoint& checkpoint, const std::string& name) {
  const std::string found = checkpoint.is_dummy() ? "" : checkpoint_name(checkpoint, name);
  if (found.empty()) return std::optional<float>();
  PINION_TRY(const TensorRef t, checkpoint.tensor(found));
  if (!is_float(t.dtype) || t.shape.elements() != 1) {
    return fail(Errc::corrupt, fmt::format("the tensor \"{}\" is no single float", found), checkpoint.dir().string());
  }
  float scale = 0;
  convert_floats(t.data.data(), t.dtype, reinterpret_cast<std::byte*>(&scale), DType::f32, 1);
  if (!(scale > 0) || !std::isfinite(scale)) {
    return fail(Errc::corrupt, fmt::format("the scale \"{}\" is {}", found, scale), checkpoint.dir().string(),
                "it must be finite and positive");
  }
  return std::optional(scale);
}

Result<std::optional<float>> find_scale(const Checkpoint& checkpoint, const std::string& layer, char which) {
  for (const std::string& place :
       {fmt::format("{0}_proj.{0}_scale", which), fmt::format("qkv_proj.{}_scale", which),
        fmt::format("{}_scale", which), fmt::format("attn.{}_scale", which), std::string("kv_scale")}) {
    PINION_TRY(const auto scale, find_scale(checkpoint, fmt::format("{}.{}", layer, place)));
    if (scale) return scale;
  }
  return std::optional<float>();
}

}  // namespace

Status read_kv_scales(const Checkpoint& checkpoint, Graph& graph) {
  for (const Node& n : graph.nodes()) {
    const auto* attention = std::get_if<Attention>(&n.op);
    if (attention == nullptr) continue;
    PINION_TRY(const auto k, find_scale(checkpoint, n.scope, 'k'));
    PINION_TRY(const auto v, find_scale(checkpoint, n.scope, 'v'));
    KvLayer& layer = graph.kv_layers[attention->layer];
    if (k && v) {
      layer.k_scale = *k, layer.v_scale = *v;
    } else if (k || v) {  // one alone serves both
      layer.k_scale = layer.v_scale = k ? *k : *v;
    }
  }
  return {};
}

}  // namespace pinion
