// y = x W^T over a range of weight rows. gemv converts weights in registers, because each is used a few times only;
// gemm converts a panel once and reuses it. Both put raw sums into a small buffer, and the epilogue turns that into
// outputs.

// raw[t][0 … n) holds the sums of weight rows first … first + n of row m + t; n is even when gated.
inline void finish(const LinearTask& task, float* raw, int64_t ld_raw, int64_t first, int64_t n, int64_t m,
                   int64_t tokens) {
  const int64_t width = task.gated ? task.out / 2 : task.out;
  for (int64_t t = 0; t < tokens; ++t) {
    float* s = raw + t * ld_raw;
    if (task.bias.data != nullptr) {
      with_type(task.bias.dtype, [&]<class E>(E) {
        const auto* b = static_cast<const typename E::T*>(task.bias.data) + first;
        for (int64_t i = 0; i < n; i += kW) {
          const int lanes = static_cast<int>(least(kW, n - i));
          F32::store_partial(s + i, add(F32::load_partial(s + i, lanes), E::load_partial(b + i, lanes)), lanes);
        }
      });
    }
    if (!task.gated) {
      float* y = task.y + (m + t) * width + first;
      int64_t i = 0;
      for (; i + kW <= n; i += kW) F32::store(y + i, F32::load(s + i));
      if (i < n) F32::store_partial(y + i, F32::load_partial(s + i, static_cast<int>(n - i)), static_cast<int>(n - i));
      continue;
    }
    float* y = task.y + (m + t) * width + first / 2;
    for (int64_t i = 0; i < n / 2; i += kW) {
      const int lanes = static_cast<int>(least(kW, n / 2 - i));
      float gate[kW] = {}, up[kW] = {};
      for (int l = 0; l < lanes; ++l) gate[l] = s[2 * (i + l)], up[l] = s[2 * (i + l) + 1];
      F32::store_partial(y + i, mul(silu(F32::load(gate)), F32::load(up)), lanes);
    }
  }
}

// Four weight rows from `row` on; past `last` the last one is repeated, and its sums are not used.
template <class T>
inline void four_rows(const T* weight, int64_t k, int64_t row, int64_t last, const T* (&w)[4]) {
  for (int64_t r = 0; r < 4; ++r) w[r] = weight + least(row + r, last - 1) * k;
}

template <class E, bool kPrefetch>
inline void gemv_rows(const LinearTask& task, int64_t first, int64_t last) {
  using T = typename E::T;
  const auto* weight = static_cast<const T*>(task.weight.data);
  // Each step uses this many lines of the four rows; the same number is fetched from the four rows after them.
  constexpr int kLines = kPrefetch ? static_cast<int>((4 * kW * sizeof(T) + 63) / 64) : 0;
  const int64_t tiles = (task.m + kTile - 1) / kTile;
  float raw[kGemvRows][kGemvPanel];
  for (int64_t n = first; n < last; n += kGemvPanel) {
    const int64_t end = least(last, n + kGemvPanel);
    for (int64_t row = n; row < end; row += 4) {
      const T* w[4];
      four_rows(weight, task.k, row, end, w);
      const char* ahead = reinterpret_cast<const char*>(weight + least(row + 4, task.out - 1) * task.k);
      int64_t m = 0;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t size = (task.m - m + tiles - i - 1) / (tiles - i);
        with_tile(size, [&]<int kT>() {
          V sums[kT][4];
          for (int t = 0; t < kT; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = zero();
          const float* x = task.x + m * task.k;
          if (i == 0) {
            dot_tile<E, kT, kLines>(w, x, task.k, task.k, ahead, sums);
          } else {
            dot_tile<E, kT, 0>(w, x, task.k, task.k, nullptr, sums);
          }
          for (int t = 0; t < kT; ++t) hsum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3], &raw[m + t][row - n]);
        });
        m += size;
      }
    }
    finish(task, raw[0], kGemvPanel, n, end - n, 0, task.m);
  }
}

inline void gemv(const LinearTask& task, bool prefetch, int64_t first, int64_t last) {
  with_type(task.weight.dtype, [&]<class E>(E) {
    if (prefetch) {
      gemv_rows<E, true>(task, first, last);
    } else {
      gemv_rows<E, false>(task, first, last);
    }
  });
}

// Weight rows [first, last), columns [k0, k1), to f32: four rows side by side, [row / 4][column / W][4][W], so that the
// inner loop reads one stream. Columns past the end are zero, rows past the end repeat the last one.
template <class E>
inline void pack_panel(const LinearTask& task, int64_t first, int64_t last, int64_t k0, int64_t k1, float* out) {
  for (int64_t row = first; row < last; row += 4) {
    const typename E::T* w[4];
    four_rows(static_cast<const typename E::T*>(task.weight.data), task.k, row, last, w);
    int64_t k = k0;
    for (; k + kW <= k1; k += kW, out += 4 * kW) {
      PINION_UNROLL for (int r = 0; r < 4; ++r) F32::store(out + r * kW, E::load(w[r] + k));
    }
    if (const int n = static_cast<int>(k1 - k); n > 0) {
      for (int r = 0; r < 4; ++r) F32::store(out + r * kW, E::load_partial(w[r] + k, n));
      out += 4 * kW;
    }
  }
}

// dot_tile over four packed rows.
template <int kT, int kLines>
inline __attribute__((always_inline)) void dot_packed(const float* w, const float* x, int64_t ldx, int64_t k,
                                                      const char* ahead, V (&s)[kT][4]) {
  int64_t i = 0;
  for (; i + kW <= k; i += kW, w += 4 * kW) {
    const V v[4] = {F32::load(w), F32::load(w + kW), F32::load(w + 2 * kW), F32::load(w + 3 * kW)};
    if constexpr (kLines > 0) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += 64;
    }
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      const V xv = F32::load(x + t * ldx + i);
      PINION_UNROLL for (int r = 0; r < 4; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
  }
  if (const int n = static_cast<int>(k - i); n > 0) {
    const V v[4] = {F32::load(w), F32::load(w + kW), F32::load(w + 2 * kW), F32::load(w + 3 * kW)};
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      const V xv = F32::load_partial(x + t * ldx + i, n);
      PINION_UNROLL for (int r = 0; r < 4; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
  }
}

template <int kT, int kLines>
inline void gemm_tile(const float* w, const float* x, int64_t ldx, int64_t k, const char* ahead, float* carry,
                      bool carry_in, bool carry_out, float* raw, int64_t ld_raw) {
  V sums[kT][4];
  PINION_UNROLL for (int t = 0; t < kT; ++t) {
    PINION_UNROLL for (int r = 0; r < 4; ++r) sums[t][r] = carry_in ? F32::load(carry + (t * 4 + r) * kW) : zero();
  }
  dot_packed<kT, kLines>(w, x, ldx, k, ahead, sums);
  if (carry_out) {
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      PINION_UNROLL for (int r = 0; r < 4; ++r) F32::store(carry + (t * 4 + r) * kW, sums[t][r]);
    }
  } else {
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      hsum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3], raw + t * ld_raw);
    }
  }
}

// Between blocks of k the lane sums are carried through memory, so that blocking does not change the order of a sum.
// scratch: the panel [panel][k_block], raw sums [m_block][panel], carried lanes [m_block][panel][W].
inline void gemm(const LinearTask& task, const LinearTile& tile, int64_t first, int64_t last, int64_t m_first,
                 int64_t m_last, float* scratch) {
  const int64_t panel = tile.panel, rows = last - first, tokens = m_last - m_first;
  float* packed = scratch;
  float* raw = packed + panel * tile.k_block;
  float* carry = raw + tile.m_block * panel;
  const int64_t tiles = (tokens + kTile - 1) / kTile;
  const int64_t row_bytes = task.k * (task.weight.dtype == DType::f32 ? 4 : 2);
  // The next panel lies right behind this one; its lines are fetched one a step, as long as they last.
  const char* ahead = static_cast<const char*>(task.weight.data) + last * row_bytes;
  const char* ahead_end = tile.prefetch ? ahead + least(panel, task.out - last) * row_bytes : ahead;

  for (int64_t k0 = 0; k0 < task.k; k0 += tile.k_block) {
    const int64_t k1 = least(task.k, k0 + tile.k_block), width = k1 - k0;
    const int64_t quad = (width + kW - 1) / kW * 4 * kW;  // floats of four packed rows
    with_type(task.weight.dtype, [&]<class E>(E) { pack_panel<E>(task, first, last, k0, k1, packed); });
    int64_t m = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t size = (tokens - m + tiles - i - 1) / (tiles - i);
      with_tile(size, [&]<int kT>() {
        const float* x = task.x + (m_first + m) * task.k + k0;
        for (int64_t row = 0; row < rows; row += 4) {
          const float* w = packed + row / 4 * quad;
          float* kept = carry + (m * panel + row * kT) * kW;
          float* sums = raw + m * panel + row;
          if (ahead < ahead_end) {
            gemm_tile<kT, 1>(w, x, task.k, width, ahead, kept, k0 > 0, k1 < task.k, sums, panel);
            ahead += width / kW * 64;
          } else {
            gemm_tile<kT, 0>(w, x, task.k, width, nullptr, kept, k0 > 0, k1 < task.k, sums, panel);
          }
        }
      });
      m += size;
    }
  }
  finish(task, raw, panel, first, rows, m_first, tokens);
}
