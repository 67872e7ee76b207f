// The boundary between code compiled for the baseline and code compiled per ISA: plain structs in, one table of
// function pointers per ISA. Everything behind the table runs on one thread over a range that the launch code hands
// out, and calls no inline function shared with other translation units, which the linker might keep in its AVX-512
// form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "backend/backend.h"

namespace pinion::cpu {

struct FloatArray {  // dense f32, bf16 or f16; data null: absent
  const void* data = nullptr;
  DType dtype = DType::f32;
};

// y = x W^T (+ bias), then the epilogue.
struct LinearTask {
  FloatArray weight, bias;
  int64_t out = 0, k = 0;
  const float* x = nullptr;  // [m, k]
  int64_t m = 0;
  float* y = nullptr;  // [m, gated ? out / 2 : out]
  bool gated = false;
};

// How gemm walks: all blocks of `k_chunk` columns of a `panel` of weight rows are multiplied before the next chunk's,
// so that a chunk of x stays in the caches; `m_block` rows of x at most. Multiples of kMaxTileRows, of kSumBlock, any.
struct LinearTile {
  int64_t panel = 144, k_chunk = 512, m_block = 264;
};

struct AttentionTask {
  const float* q = nullptr;  // [tokens, heads * head_dim]
  float* y = nullptr;
  const int32_t* positions = nullptr;
  const KvView* kv = nullptr;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  int64_t window = 0;
  float softcap = 0;              // 0: none
  const float* slopes = nullptr;  // [heads], of ALiBi; null: none
  const float* sinks = nullptr;   // [heads]; null: none
};

// y = x W^T over a packed W: tensor/row_layout.h, as plain numbers.
struct PackedTask {
  LinearTask linear;  // without its weight
  PackedKind kind = PackedKind::none;
  const uint8_t *codes = nullptr, *scales = nullptr;
  const int8_t* zeros = nullptr;   // null: none
  const float* offsets = nullptr;  // null: none
  const float* factors = nullptr;  // of nvfp4
  int64_t code_row_bytes = 0, groups = 1, group = 0;
  int code_bits = 4, scale_bytes = 4;
  const uint8_t* x8 = nullptr;  // [m, x8_stride]: x rounded to int8, plus 128; rows padded to 64 with 128
  int64_t x8_stride = 0;
  const float* x8_scales = nullptr;  // [m]
};
inline constexpr int64_t kPackedRows = 4;      // weight rows that are decoded at once
inline constexpr int64_t kPackedChunk = 1024;  // columns that are decoded at once, and that a partial sum covers
inline constexpr int64_t kPackedPanel = 48;    // weight rows whose sums are finished at once
inline constexpr int64_t kPackedFew = 8;       // rows of x up to which weights are best read row by row

// The rows [first, last) of sequence `seq` and the query heads of one KV head.
struct AttentionBlock {
  int64_t seq = 0, kv_head = 0, first = 0, last = 0;
};

// Keys per partial result; fixed, so that results do not depend on the batch.
inline constexpr int64_t kAttentionSplit = 1024;
inline constexpr int64_t kAttentionTile = 64;           // keys per softmax step
inline constexpr int64_t kMaxLanes = 16;                // of any ISA
inline constexpr int64_t kMaxTileRows = 3 * kMaxLanes;  // weight rows gemm takes at once; ranges start at multiples
inline constexpr int64_t kMaxKeys = 2 * kMaxLanes;      // keys that attention takes at once
inline constexpr int64_t kSumBlock = 128;               // columns per partial sum of a linear
inline constexpr int64_t kMatrixRows = 16;              // rows of x, and of weights, in one matrix tile
inline constexpr int64_t kGemvRows = 1;                 // rows of x that gemv takes

struct RopeKvTask {
  const RopeKvWrite* op = nullptr;
  const float* qkv = nullptr;
  float* q = nullptr;
  FloatArray q_norm, k_norm;
  const RopeTable* table = nullptr;
  const KvView* kv = nullptr;
  const int32_t* positions = nullptr;
};

inline constexpr int64_t kMlaMaxLatent = 4096;  // rank + rope, a row on the stack

struct MlaWriteTask {
  const MlaKvWrite* op = nullptr;
  const float *q = nullptr, *latent = nullptr;
  float* y = nullptr;
  FloatArray norm;
  const RopeTable* table = nullptr;
  const KvView* kv = nullptr;
  const int32_t* positions = nullptr;
};

struct IsaKernels {
  std::string_view name;
  int64_t lanes = 1;

  // Weight rows [first, last). `distance`: columns to fetch ahead, 0 for none, less than k.
  void (*gemv)(const LinearTask&, int64_t distance, int64_t first, int64_t last);
  // Rows [m_first, m_last) of x, as pack_x left them (k * kSumBlock-wide blocks of them, in order), for weight rows
  // [first, last).
  void (*gemm)(const LinearTask&, const LinearTile&, int64_t first, int64_t last, int64_t m_first, int64_t m_last,
               const float* x, float* scratch);
  void (*pack_x)(const float* x, int64_t ldx, int64_t n, int64_t k, float* out);  // n rows, at most kSumBlock columns

  // Linears on matrix units, for bf16 weights; null where the ISA has none. pack_terms writes n <= kMatrixRows rows of
  // x as three bf16 terms each, n * terms_stride(k) numbers. multiply_terms is gemm over rows that pack_terms left in
  // blocks of kMatrixRows, from row m_first on, a multiple of kMatrixRows. matrix_multiply: 2^16 * rounds operations.
  void (*pack_terms)(const float* x, int64_t ldx, int64_t n, int64_t k, uint16_t* out) = nullptr;
  void (*multiply_terms)(const LinearTask&, const LinearTile&, int64_t first, int64_t last, int64_t m_first,
                         int64_t m_last, const uint16_t* x, float* scratch) = nullptr;
  float (*matrix_multiply)(int64_t rounds) = nullptr;

  // Linears over packed weights, whose rows [first, last) they take for rows [m_first, m_last) of x. packed: scratch of
  // kPackedRows * kPackedChunk floats, then as packed_int8: (m_last - m_first) * kPackedPanel + 2 * kMaxLanes.
  // round_row makes a row of x8 of `padded` bytes, and returns its scale; round_floats rounds a row as InputRounding
  // says. `fixed`: the inputs' static scale, 0 where they have none.
  void (*packed)(const PackedTask&, int64_t first, int64_t last, int64_t m_first, int64_t m_last, float* scratch);
  void (*packed_int8)(const PackedTask&, int64_t first, int64_t last, int64_t m_first, int64_t m_last, float* raw);
  float (*round_row)(const float* x, int64_t k, int64_t padded, float fixed, uint8_t* out);
  void (*round_floats)(const float* x, int64_t k, InputRounding inputs, float fixed, float* out);
  void (*packed_row)(const PackedTask&, int64_t row, int64_t width, float scale, float* y);  // W[row] * scale

  // A block over all its keys; one split of a block into a partial (rows * (2 + head_dim) floats); partials into y.
  void (*attention)(const AttentionTask&, const AttentionBlock&, float* scratch);
  void (*attention_split)(const AttentionTask&, const AttentionBlock&, int64_t split, float* partial, float* scratch);
  void (*attention_merge)(const AttentionTask&, const AttentionBlock&, int64_t splits, float* partials);
  void (*write_kv)(const KvView&, int64_t seq, int64_t position, int64_t kv_heads, int64_t head_dim, const float* k,
                   const float* v);
  void (*rope_kv_write)(const RopeKvTask&, int64_t seq, int64_t token);
  void (*rope)(const Rope&, const RopeTable&, const float* x, float* y, int64_t token);

  void (*rms_norm)(const float* x, FloatArray weight, int64_t width, float eps, float offset, float* y);
  void (*layer_norm)(const LayerNorm&, const float* x, FloatArray weight, FloatArray bias, int64_t group, float* y);
  void (*add)(const float* a, const float* b, float scale, float* y, int64_t n);  // a + scale * b
  void (*act)(Activation, const float* x, float* y, int64_t n);
  void (*gated_act)(Activation, const float* gate, const float* up, float* y, int64_t n);
  void (*soft_cap)(const float* x, float scale, float cap, float* y, int64_t n);
  void (*embed)(FloatArray weight, int64_t row, int64_t width, float scale, float* y);

  // Mixture of experts (generic/moe.h) and latent attention (generic/mla.h).
  void (*split_pairs)(const float* raw, int64_t n, float* gate, float* up);
  void (*clamped_swiglu)(const float* gate, const float* up, float limit, float* y, int64_t n);
  void (*weighted_sum)(const float* h, const float* weights, int64_t top_k, int64_t width, const float* shared,
                       float factor, float* y);
  void (*mla_kv_write)(const MlaWriteTask&, int64_t seq, int64_t token);
  void (*mla_load)(const KvView&, int64_t seq, int64_t first, int64_t n, int64_t rank, int64_t rope, float* c,
                   float* pe, int64_t ld);
  void (*mla_absorb)(FloatArray weight, int64_t n, int64_t cols, const float* x, int64_t ldx, int64_t m, float* y,
                     int64_t ldy);

  // For measuring this machine: reads whole 1 KiB pieces as `streams` (1, 2, 4, 8) runs side by side; multiply-adds in
  // registers, 2 * lanes * 12 * rounds operations. The result only keeps the work from being optimised away.
  float (*read)(const std::byte* data, int64_t bytes, int64_t streams, bool prefetch);
  float (*multiply_add)(int64_t rounds);
};

// The tile that suits a number of rows. Few: x stays in L2 whatever the order, and weights are best read row by row.
// Many: a chunk of x is to stay in L2 while a panel of weights passes by.
inline constexpr int64_t kFewRows = 64;
constexpr LinearTile linear_tile(int64_t rows, int64_t k) {
  if (rows > kFewRows) return {.panel = 3 * kMaxTileRows, .k_chunk = 512, .m_block = 264};
  return {.panel = kMaxTileRows, .k_chunk = (k + kSumBlock - 1) / kSumBlock * kSumBlock, .m_block = kFewRows};
}

// Scratch that one thread needs, in floats.
constexpr int64_t gemm_scratch(const LinearTile& tile) {
  return kMaxTileRows * kSumBlock + tile.m_block * tile.panel + 2 * kMaxLanes;  // the epilogue reads whole vectors
}
constexpr int64_t terms_stride(int64_t k) {  // bf16 numbers of a row's terms: columns by 32, three terms
  return (k + 31) / 32 * 96;
}
constexpr int64_t matrix_scratch(const LinearTile& tile) {  // sums, and what the epilogue takes at a time
  return tile.panel * tile.m_block + (2 * kMatrixRows + 2) * 2 * kMatrixRows;
}
constexpr int64_t attention_width(int64_t head_dim) {  // of a row of weighted values
  return (head_dim + kMaxKeys - 1) / kMaxKeys * kMaxKeys;
}
constexpr int64_t attention_partial(int64_t rows, int64_t head_dim) {
  return rows * (2 + attention_width(head_dim));
}
constexpr int64_t attention_scratch(int64_t rows, int64_t head_dim) {
  return kMaxKeys * head_dim + kAttentionTile * attention_width(head_dim) + rows * (kAttentionTile + 2 * head_dim + 1) +
         2 * attention_partial(rows, head_dim) + 4 * kAttentionTile * head_dim;
}

std::span<const IsaKernels* const> available_isas();  // of this machine, the best first
const IsaKernels* find_isa(std::string_view name);    // null: unknown, or this machine lacks it

extern const IsaKernels kScalar;
#if defined(__x86_64__)
extern const IsaKernels kAvx2, kAvx512;
IsaKernels with_amx(IsaKernels isa);  // an AVX-512 table, with the matrix units' functions
#endif

}  // namespace pinion::cpu
