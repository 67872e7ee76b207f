// MlaKvWrite (multi-head latent attention, DeepSeek-V2, arXiv:2405.04434, 2.1): what a token leaves in the cache, and
// the rotation of its queries. A latent row c | k_pe becomes RmsNorm(c) | rope(k_pe), rank + rope numbers in the
// one-headed latent cache of layer `layer`; every query head's last `rope` columns are rotated. weights: norm [rank]
// inputs: q [tokens, heads * (nope + rope)], latent [tokens, rank + rope]   output: q, rotated
#pragma once

#include "graph/ops/op_base.h"

namespace pinion {

struct MlaKvWrite {
  static constexpr std::string_view kName = "mla_kv_write";
  int64_t heads = 0, nope = 0, rope = 0, rank = 0;
  int32_t table = 0;
  bool interleaved = true;
  float eps = 1e-6f;
  int32_t layer = 0;

  ShapeResult shapes(std::span<const ValueSpec> x) const {
    if (x.size() != 2 || x[0].width != heads * (nope + rope) || x[1].width != rank + rope || rope % 2)
      return shape_error("mla_kv_write takes q of heads * (nope + rope) and the latent of rank + rope columns");
    return std::vector<ValueSpec>{x[0]};
  }
  void fields(auto&& f) {
    f("heads", heads), f("nope", nope), f("rope", rope), f("rank", rank), f("table", table),
        f("interleaved", interleaved), f("eps", eps), f("layer", layer);
  }
  bool operator==(const MlaKvWrite&) const = default;
};

}  // namespace pinion
