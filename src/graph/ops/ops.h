// The closed list of operations. One header per op holds its attributes, its shape rule and what it computes; a field
// list (`fields`) serves the text form, the engine file and the tuning cache's key alike.
#pragma once

#include <string_view>
#include <type_traits>
#include <variant>

#include "graph/ops/act.h"
#include "graph/ops/add.h"
#include "graph/ops/add_rms_norm.h"
#include "graph/ops/attention.h"
#include "graph/ops/embed.h"
#include "graph/ops/gated_act.h"
#include "graph/ops/layer_norm.h"
#include "graph/ops/linear.h"
#include "graph/ops/mla_attention.h"
#include "graph/ops/mla_kv_write.h"
#include "graph/ops/moe_combine.h"
#include "graph/ops/moe_linear.h"
#include "graph/ops/moe_route.h"
#include "graph/ops/rms_norm.h"
#include "graph/ops/rope.h"
#include "graph/ops/rope_kv_write.h"
#include "graph/ops/select_rows.h"
#include "graph/ops/soft_cap.h"

namespace pinion {

using Op = std::variant<Embed, Linear, RmsNorm, Rope, Attention, GatedAct, Add, SelectRows, AddRmsNorm, RopeKvWrite,
                        LayerNorm, Act, SoftCap, MoeRoute, MoeLinear, MoeCombine, MlaKvWrite, MlaAttention>;

enum class OpKind : uint8_t {
  embed,
  linear,
  rms_norm,
  rope,
  attention,
  gated_act,
  add,
  select_rows,
  add_rms_norm,
  rope_kv_write,
  layer_norm,
  act,
  soft_cap,
  moe_route,
  moe_linear,
  moe_combine,
  mla_kv_write,
  mla_attention
};
inline constexpr int kOpKinds = std::variant_size_v<Op>;

inline OpKind kind(const Op& op) {
  return static_cast<OpKind>(op.index());
}
inline std::string_view op_name(const Op& op) {
  return std::visit([](const auto& o) { return std::decay_t<decltype(o)>::kName; }, op);
}

}  // namespace pinion
