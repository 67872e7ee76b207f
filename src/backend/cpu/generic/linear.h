// y = x W^T over a range of weight rows. gemv, for one row of x, multiplies the columns as they come out of the
// transposition; gemm keeps a block of them in L1 for all rows of x. Both leave raw sums in a small buffer, which the
// epilogue turns into outputs.

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
    for (int64_t i = 0; i < n / 2; i += kW) {  // raw has whole tiles: what lies past n is read, not used
      V gate, up;
      deinterleave(F32::load(s + 2 * i), F32::load(s + 2 * i + kW), gate, up);
      F32::store_partial(y + i, mul(silu(gate), up), static_cast<int>(least(kW, n / 2 - i)));
    }
  }
}

constexpr int kTileRows = kLinearVectors * kW;  // weight rows of gemm's register tile, beside kLinearTile rows of x

inline void pack_x(const float* x, int64_t ldx, int64_t n, int64_t k, float* out) {
  pack_rows<kLinearTile>(x, ldx, n, k, out);
}

template <class E>
inline void gemv_rows(const LinearTask& task, int64_t distance, int64_t first, int64_t last) {
  using T = typename E::T;
  const auto* weight = static_cast<const T*>(task.weight.data);
  constexpr int kRows = 2 * kW;  // two chains of sums: enough for the memory's pace
  const int64_t k = task.k;
  for (int64_t row = first; row < last; row += kRows) {
    float raw[kRows];
    tile_rows<2>(weight + row * k, k, last - row, [&](const auto& rows) {
      const auto low = rows[0], high = rows[1];
      V total[2] = {zero(), zero()};
      for (int64_t k0 = 0; k0 < k; k0 += kSumBlock) {
        const int64_t k1 = least(k, k0 + kSumBlock);
        V s[2] = {zero(), zero()};
        for (int64_t c = k0; c < k1; c += kStep<E>) {
          // `distance` columns ahead, past the end of the rows in those that follow.
          const int64_t to = c + distance < k ? c + distance : c + distance - k + kRows * k;
          if (distance > 0) {
            PINION_UNROLL for (int i = 0; i < kW; ++i) __builtin_prefetch(low(i) + to, 0, 2);
            PINION_UNROLL for (int i = 0; i < kW; ++i) __builtin_prefetch(high(i) + to, 0, 2);
          }
          each_column<E>(low, c, k1, [&](int64_t at, V v) { s[0] = fma(set1(task.x[at]), v, s[0]); });
          each_column<E>(high, c, k1, [&](int64_t at, V v) { s[1] = fma(set1(task.x[at]), v, s[1]); });
        }
        PINION_UNROLL for (int h = 0; h < 2; ++h) total[h] = k0 == 0 ? s[h] : add(total[h], s[h]);
      }
      F32::store(raw, total[0]), F32::store(raw + kW, total[1]);
    });
    finish(task, raw, kRows, row, least(kRows, last - row), 0, 1);
  }
}

inline void gemv(const LinearTask& task, int64_t distance, int64_t first, int64_t last) {
  with_type(task.weight.dtype, [&]<class E>(E) { gemv_rows<E>(task, distance, first, last); });
}

// scratch: a block of weights [kSumBlock][kTileRows], then the sums [m][panel].
template <class E>
inline void gemm_rows(const LinearTask& task, const LinearTile& tile, int64_t first, int64_t last, int64_t m_first,
                      int64_t m_last, const float* x, float* scratch) {
  using T = typename E::T;
  const auto* weight = static_cast<const T*>(task.weight.data);
  const int64_t k = task.k, tokens = m_last - m_first, tiles = (tokens + kLinearTile - 1) / kLinearTile;
  float *block = scratch, *raw = block + kTileRows * kSumBlock;
  constexpr int kLines = kSumBlock * sizeof(T) / 64;
  for (int64_t panel = first; panel < last; panel += tile.panel) {
    const int64_t end = least(last, panel + tile.panel);
    for (int64_t chunk = 0; chunk < k; chunk += tile.k_chunk) {
      const int64_t chunk_end = least(k, chunk + tile.k_chunk);
      for (int64_t row = panel; row < end; row += kTileRows) {
        for (int64_t k0 = chunk; k0 < chunk_end; k0 += kSumBlock) {
          const int64_t width = least(kSumBlock, chunk_end - k0);
          tile_rows<kLinearVectors>(weight + row * k + k0, k, end - row, [&](const auto& rows) {
            for (int r = 0; r < kLinearVectors; ++r) convert<E, kTileRows>(rows[r], width, block + r * kW);
          });
          // While this block is multiplied, the one that comes next is fetched.
          const T* next = weight + row * k + k0 + kSumBlock;
          if (k0 + kSumBlock >= chunk_end) {
            next = row + kTileRows < end ? weight + (row + kTileRows) * k + chunk
                   : chunk_end < k       ? weight + panel * k + chunk_end
                   : end < last          ? weight + end * k
                                         : nullptr;
          }
          Ahead ahead{.at = reinterpret_cast<const char*>(next), .step = k * static_cast<int64_t>(sizeof(T))};
          int64_t i = 0;
          each_tile<kLinearTile>(tokens, [&](int64_t m, int64_t size) {
            ahead.first = static_cast<int>(i * kLines / tiles), ahead.last = static_cast<int>(++i * kLines / tiles);
            ahead.rows = next != nullptr && ahead.first < ahead.last ? kTileRows : 0;
            float* to = raw + m * tile.panel + (row - panel);
            with_count<kLinearTile>(size, [&]<int kT>() {
              add_tile<kLinearVectors, kT>(block, x + k0 * tokens + m * width, width, ahead, k0 == 0, to, tile.panel);
            });
          });
        }
      }
    }
    finish(task, raw, tile.panel, panel, end - panel, m_first, tokens);
  }
}

inline void gemm(const LinearTask& task, const LinearTile& tile, int64_t first, int64_t last, int64_t m_first,
                 int64_t m_last, const float* x, float* scratch) {
  with_type(task.weight.dtype, [&]<class E>(E) { gemm_rows<E>(task, tile, first, last, m_first, m_last, x, scratch); });
}
