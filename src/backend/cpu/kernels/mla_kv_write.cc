// What a token leaves in the latent cache: its latent normalised and its rotated key, and its queries rotated.
#include "backend/cpu/kernels/mla_kv_write.h"

#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion::cpu {
namespace {

void kv_write(const LaunchArgs& args, Stream& stream) {
  const auto& op = std::get<MlaKvWrite>(*args.op);
  CpuStream& cpu = cpu_stream(stream);
  const BatchView& batch = *args.batch;
  const MlaWriteTask task{.op = &op,
                          .q = args.in[0].as<float>(),
                          .latent = args.in[1].as<float>(),
                          .y = args.out[0].as<float>(),
                          .norm = {args.weights[0].data, args.weights[0].dtype},
                          .table = &batch.rope[op.table],
                          .kv = &batch.kv[op.layer],
                          .positions = batch.positions};
  cpu.run_ranges(batch.tokens, 3 * op.heads * (op.nope + op.rope), [&](int64_t first, int64_t last) {
    int64_t seq = 0;
    for (int64_t t = first; t < last; ++t) {
      while (t >= batch.seq_start[seq + 1]) ++seq;
      cpu.isa().mla_kv_write(task, seq, t);
    }
  });
}

std::string kv_write_why_not(const Call& call, const DeviceInfo&) {
  const auto& op = std::get<MlaKvWrite>(*call.op);
  if (op.rank + op.rope > kMlaMaxLatent)
    return "takes latents of at most " + std::to_string(kMlaMaxLatent) + " columns";
  return why_not_floats(call);
}

double kv_write_us(const Call& call, const Tuning&, const DeviceInfo& info) {
  const auto& op = std::get<MlaKvWrite>(*call.op);
  return 1 + 12.0 * static_cast<double>(call.rows * op.heads * (op.nope + op.rope)) / info.read_gbps * 1e-3;
}

}  // namespace

constinit const Kernel kMlaKvWrite{.name = "cpu.mla_kv_write",
                                   .op = OpKind::mla_kv_write,
                                   .why_not = kv_write_why_not,
                                   .tunings = nullptr,
                                   .estimate_us = kv_write_us,
                                   .workspace = nullptr,
                                   .launch = kv_write};

}  // namespace pinion::cpu
