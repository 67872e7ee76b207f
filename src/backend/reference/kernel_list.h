// The oracle: one scalar kernel per op, written to be read. Sums run in double, so that what a fast kernel differs by
// is the fast kernel's own error. Activations are f32; weights and KV are f32, bf16 or f16,
// or quantised where an op says so.
#pragma once

#include <span>

#include "backend/backend.h"

namespace pinion {

std::span<const Kernel> reference_kernels(OpKind kind);

namespace reference {

void act(const LaunchArgs& args, Stream& stream);
void add(const LaunchArgs& args, Stream& stream);
void add_rms_norm(const LaunchArgs& args, Stream& stream);
void attention(const LaunchArgs& args, Stream& stream);
void embed(const LaunchArgs& args, Stream& stream);
void gated_act(const LaunchArgs& args, Stream& stream);
void layer_norm(const LaunchArgs& args, Stream& stream);
void linear(const LaunchArgs& args, Stream& stream);
void mla_attention(const LaunchArgs& args, Stream& stream);
void mla_kv_write(const LaunchArgs& args, Stream& stream);
void moe_combine(const LaunchArgs& args, Stream& stream);
void moe_linear(const LaunchArgs& args, Stream& stream);
void moe_route(const LaunchArgs& args, Stream& stream);
void rms_norm(const LaunchArgs& args, Stream& stream);
void rope(const LaunchArgs& args, Stream& stream);
void rope_kv_write(const LaunchArgs& args, Stream& stream);
void select_rows(const LaunchArgs& args, Stream& stream);
void soft_cap(const LaunchArgs& args, Stream& stream);

// What several ops share: an activation, one norm, one head's rotation, one row written to the cache, where a token's K
// lies.
double activate(Activation act, double x);
void norm_row(const float* x, const WeightView& weight, float eps, float offset, float* y);
void rotate_head(const float* x, const RopeTable& table, int64_t row, int64_t head_dim, int64_t rotary_dim,
                 bool interleaved, float* y);
std::byte* kv_block(const KvView& kv, int64_t seq, int64_t position);  // null: freed behind the window
// One head's key (or value: the plane v_offset further, with v_scale) of a slot, as numbers.
void load_head(const KvView& kv, const std::byte* plane, int64_t kv_heads, int64_t d, int64_t h, int64_t slot,
               float scale, float* out);
void write_kv(const KvView& kv, const BatchView& batch, int64_t kv_heads, int64_t head_dim, const float* k,
              int64_t k_stride, const float* v, int64_t v_stride);

}  // namespace reference
}  // namespace pinion
