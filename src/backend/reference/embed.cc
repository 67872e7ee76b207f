// y[t] = weight[token or position + offset] * scale.
#include "backend/reference/kernel_list.h"
#include "backend/reference/packed.h"

namespace pinion::reference {

void embed(const LaunchArgs& args, Stream&) {
  const auto& op = std::get<Embed>(*args.op);
  const WeightView& w = args.weights[0];
  float* y = args.out[0].as<float>();
  for (int64_t t = 0; t < args.batch->tokens; ++t) {
    const int64_t id = (op.positions ? args.batch->positions[t] : args.batch->token_ids[t]) + op.offset;
    check(id >= op.offset && id < op.vocab, "a token id or position lies outside the table");
    for (int64_t i = 0; i < op.width; ++i) y[t * op.width + i] = weight_at(w, id, i) * op.scale;
  }
}

}  // namespace pinion::reference
