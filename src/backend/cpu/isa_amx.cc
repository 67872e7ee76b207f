// Linears on the matrix units of AMX, which multiply bf16 by bf16 into f32 sums. Weights in bf16 are read as they lie;
// x is split into three bf16 terms that add up to it exactly, so that every product is exact and the result as good as
// that of f32 multiply-adds, at five times their rate. A sum takes the columns by 32, in order, the terms of each from
// the largest on, whatever the number of rows: so outputs do not depend on the batch.
#include <immintrin.h>

#include "backend/cpu/isa.h"

namespace pinion::cpu {
namespace amx {
// clang-format off
#include "backend/cpu/generic/loops.h"
#include "backend/cpu/generic/vec_avx512.h"
#include "backend/cpu/generic/tile.h"
#include "backend/cpu/generic/math.h"
#include "backend/cpu/generic/linear.h"
// clang-format on

constexpr int kRows = static_cast<int>(kMatrixRows);  // of a tile
constexpr int kColumns = 32;                          // of a tile of bf16
constexpr int kTerms = 3;
constexpr int kPanel = 2 * kRows;  // weight rows, and rows of x, that the eight tiles take at once
static_assert(kW == kRows);

// ---- x as terms: [columns by 32][term][pair of columns][row] of pairs ----

inline void pack_terms(const float* x, int64_t ldx, int64_t n, int64_t k, uint16_t* out) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  constexpr int kNotFinite = 0x99;  // a rest of it would be NaN
  for (int64_t c = 0; c < k; c += kColumns) {
    V words[kTerms][kRows];  // of a row: lane p holds columns 2 p and 2 p + 1
    for (int m = 0; m < kRows; ++m) {
      V even = zero(), odd = zero();
      if (m < n) {
        const float* from = x + m * ldx + c;
        const int left = static_cast<int>(least(kColumns, k - c));
        deinterleave(F32::load_partial(from, left < kW ? left : kW),
                     left > kW ? F32::load_partial(from + kW, left - kW) : zero(), even, odd);
      }
      PINION_UNROLL for (int t = 0; t < kTerms; ++t) {
        const __m512i e = _mm512_and_si512(_mm512_castps_si512(even), high),
                      o = _mm512_and_si512(_mm512_castps_si512(odd), high);
        words[t][m] = _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(e, 16), o));
        even =
            _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(even, kNotFinite)), even, _mm512_castsi512_ps(e));
        odd = _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(odd, kNotFinite)), odd, _mm512_castsi512_ps(o));
      }
    }
    for (int t = 0; t < kTerms; ++t) {
      if (n == 1) {
        F32::store(reinterpret_cast<float*>(out), words[t][0]), out += kColumns;
        continue;
      }
      transpose(words[t]);
      for (int p = 0; p < kRows; ++p, out += 2 * n) {
        F32::store_partial(reinterpret_cast<float*>(out), words[t][p], static_cast<int>(n));
      }
    }
  }
}

// ---- the eight tiles: 0 to 3 sums (weight half + 2 * half of x), 4 and 5 weights, 6 and 7 terms ----

struct Shape {
  int rows[2], n[2];  // of each half; 0: not there
  bool operator==(const Shape&) const = default;
};

// The intrinsics are statements whose memory the compiler does not see: what was written must be there.
inline void written() {
  asm volatile("" ::: "memory");
}

inline void configure(const Shape& shape) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const auto set = [&](int tile, int rows, int bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows > 0 && bytes > 0 ? rows : 0);
    config.bytes[tile] = static_cast<uint16_t>(rows > 0 && bytes > 0 ? bytes : 0);
  };
  for (int i = 0; i < 2; ++i) {
    set(4 + i, shape.rows[i], 2 * kColumns);
    set(6 + i, kColumns / 2, 4 * shape.n[i]);
    for (int j = 0; j < 2; ++j) set(i + 2 * j, shape.rows[i], 4 * shape.n[j]);
  }
  written();
  _tile_loadconfig(&config);
}

// Where weight tiles lie: the two halves, rows ld bytes apart. fetch: the row's length where each step fetches what
// comes kAhead columns later, past the end of the rows from those that follow; 0 where the hardware's own fetching is
// best.
struct WeightTiles {
  const uint16_t *low, *high;
  int64_t ld, fetch = 0;
};
constexpr int64_t kAhead = 256;

template <bool kTwoHalves, bool kTwoBlocks>
inline void multiply_steps(WeightTiles w, const uint16_t* x, const uint16_t* x1, const Shape& shape, int64_t steps) {
  const int64_t n = 2 * shape.n[0], n1 = 2 * shape.n[1];  // bf16 numbers of a pair of columns
  for (int64_t s = 0; s < steps; ++s, w.low += kColumns, w.high += kColumns) {
    if constexpr (kTwoHalves && !kTwoBlocks) {
      if (w.fetch > 0) {
        const uint16_t* to = w.low + kAhead + (s * kColumns + kAhead < w.fetch ? 0 : (kPanel - 1) * w.fetch);
        for (int r = 0; r < kPanel; ++r) __builtin_prefetch(to + r * (w.ld / 2), 0, 2);
      }
    }
    _tile_loadd(4, w.low, w.ld);
    if constexpr (kTwoHalves) _tile_loadd(5, w.high, w.ld);
    for (int t = 0; t < kTerms; ++t) {
      _tile_loadd(6, x, 2 * n);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kTwoHalves) _tile_dpbf16ps(1, 5, 6);
      x += n * kColumns / 2;
      if constexpr (kTwoBlocks) {
        _tile_loadd(7, x1, 2 * n1);
        _tile_dpbf16ps(2, 4, 7);
        if constexpr (kTwoHalves) _tile_dpbf16ps(3, 5, 7);
        x1 += n1 * kColumns / 2;
      }
    }
  }
}

inline void multiply_any(const WeightTiles& w, const uint16_t* x, const uint16_t* x1, const Shape& shape,
                         int64_t steps) {
  const bool halves = shape.rows[1] > 0, blocks = shape.n[1] > 0;
  if (halves && blocks) return multiply_steps<true, true>(w, x, x1, shape, steps);
  if (halves) return multiply_steps<true, false>(w, x, x1, shape, steps);
  if (blocks) return multiply_steps<false, true>(w, x, x1, shape, steps);
  multiply_steps<false, false>(w, x, x1, shape, steps);
}

inline void load_sums(const float* sums, const Shape& shape) {
  constexpr int kBytes = 4 * kRows, kTile = kRows * kRows;
  const bool halves = shape.rows[1] > 0, blocks = shape.n[1] > 0;
  if (sums == nullptr) {
    _tile_zero(0);
    if (halves) _tile_zero(1);
    if (blocks) _tile_zero(2);
    if (halves && blocks) _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, kBytes);
  if (halves) _tile_loadd(1, sums + kTile, kBytes);
  if (blocks) _tile_loadd(2, sums + 2 * kTile, kBytes);
  if (halves && blocks) _tile_loadd(3, sums + 3 * kTile, kBytes);
}

inline void store_sums(float* sums, const Shape& shape) {
  constexpr int kBytes = 4 * kRows, kTile = kRows * kRows;
  const bool halves = shape.rows[1] > 0, blocks = shape.n[1] > 0;
  _tile_stored(0, sums, kBytes);
  if (halves) _tile_stored(1, sums + kTile, kBytes);
  if (blocks) _tile_stored(2, sums + 2 * kTile, kBytes);
  if (halves && blocks) _tile_stored(3, sums + 3 * kTile, kBytes);
}

// The sums of a panel and two blocks, [half][weight row][row of x], into raw [row of x][kPanel].
inline void transpose_sums(const float* sums, const Shape& shape, float* raw) {
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 2; ++i) {
      if (shape.rows[i] == 0 || shape.n[j] == 0) continue;
      V v[kRows];
      PINION_UNROLL for (int r = 0; r < kRows; ++r) v[r] = F32::load(sums + (2 * j + i) * kRows * kRows + r * kRows);
      transpose(v);
      for (int t = 0; t < shape.n[j]; ++t) F32::store(raw + (j * kRows + t) * kPanel + i * kRows, v[t]);
    }
  }
}

// Columns [k0, k1) of a panel of weight rows and two blocks of x, on top of what `sums` holds.
inline void add_columns(const LinearTask& task, int64_t row, int64_t k0, int64_t k1, const uint16_t* x,
                        const uint16_t* x1, const Shape& shape, float* sums) {
  const int64_t steps = (k1 - k0) / kColumns, rest = (k1 - k0) % kColumns;
  const int64_t at = k0 / kColumns * kTerms * kColumns;
  const auto* w = static_cast<const uint16_t*>(task.weight.data) + row * task.k + k0;
  const auto* high = w + (shape.rows[1] > 0 ? kRows * task.k : 0);
  x += at * shape.n[0], x1 += at * shape.n[1];
  load_sums(k0 == 0 ? nullptr : sums, shape);
  multiply_any({w, high, 2 * task.k, k1 - k0 == task.k && shape.n[0] <= 8 ? task.k : 0}, x, x1, shape, steps);
  if (rest > 0) {  // what lies past a row's end may be anything, and NaN times a zero term is no zero
    alignas(64) uint16_t tail[2][kRows][kColumns] = {};
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < shape.rows[i]; ++r) {
        const uint16_t* from = (i == 0 ? w : high) + r * task.k + steps * kColumns;
        for (int64_t c = 0; c < rest; ++c) tail[i][r][c] = from[c];
      }
    }
    written();
    const int64_t passed = steps * kTerms * kColumns;
    multiply_any({tail[0][0], tail[1][0], 2 * kColumns}, x + passed * shape.n[0], x1 + passed * shape.n[1], shape, 1);
  }
  store_sums(sums, shape);
}

// scratch: the sums [panel / kPanel][pairs of blocks][4][16][16], then raw outputs of one panel.
inline void multiply_terms(const LinearTask& task, const LinearTile& tile, int64_t first, int64_t last, int64_t m_first,
                           int64_t m_last, const uint16_t* x, float* scratch) {
  const int64_t pairs = (m_last - m_first + kPanel - 1) / kPanel, stride = terms_stride(task.k);
  float* raw = scratch + tile.panel * tile.m_block;
  Shape now{};
  for (int64_t panel = first; panel < last; panel += tile.panel) {
    const int64_t end = least(last, panel + tile.panel);
    for (int64_t k0 = 0; k0 < task.k; k0 += tile.k_chunk) {
      const int64_t k1 = least(task.k, k0 + tile.k_chunk);
      for (int64_t pair = 0; pair < pairs; ++pair) {
        for (int64_t row = panel; row < end; row += kPanel) {
          const int64_t m = m_first + pair * kPanel;
          const auto part = [](int64_t n) { return static_cast<int>(n < 0 ? 0 : least(n, kRows)); };
          const Shape shape{{part(end - row), part(end - row - kRows)}, {part(m_last - m), part(m_last - m - kRows)}};
          if (!(shape == now)) configure(shape), now = shape;
          float* sums = scratch + ((row - panel) / kPanel * pairs + pair) * kPanel * kPanel;
          const uint16_t* terms = x + m * stride;
          add_columns(task, row, k0, k1, terms, terms + (shape.n[1] > 0 ? kRows * stride : 0), shape, sums);
          if (k1 < task.k) continue;
          transpose_sums(sums, shape, raw);
          finish(task, raw, kPanel, row, least(kPanel, end - row), m, shape.n[0] + shape.n[1]);
        }
      }
    }
  }
  _tile_release();  // state that a thread does not have to be switched with
}

inline float matrix_multiply(int64_t rounds) {
  configure({{kRows, kRows}, {kRows, kRows}});
  alignas(64) float out[kRows * kRows];
  for (int i = 0; i < kRows * kRows; ++i) out[i] = 0;
  load_sums(nullptr, {{kRows, kRows}, {kRows, kRows}});
  written();
  _tile_loadd(4, out, 64);
  _tile_loadd(5, out, 64);
  _tile_loadd(6, out, 64);
  _tile_loadd(7, out, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  _tile_release();
  return out[0];
}
}  // namespace amx

IsaKernels with_amx(IsaKernels isa) {
  isa.name = "amx";
  isa.pack_terms = amx::pack_terms;
  isa.multiply_terms = amx::multiply_terms;
  isa.matrix_multiply = amx::matrix_multiply;
  return isa;
}

}  // namespace pinion::cpu
