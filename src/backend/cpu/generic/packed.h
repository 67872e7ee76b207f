// y = x W^T over quantised weights as they lie in memory (tensor/row_layout.h). Four weight rows by kPackedChunk
// columns are decoded into L1 once for all rows of x; lanes are columns. An output is summed in one order whatever the
// number of rows of x: a lane's columns ascending within a chunk, the lanes, then the chunks. Before: decode_*.h.

constexpr int kPackedTokens = kW == 16 ? 6 : 2;  // rows of x in a register tile, beside kPackedRows weight rows

struct CodeRow {
  const uint8_t* codes;
  const uint8_t* scales;  // f32, or a byte each
  const int8_t* zeros;    // null: none
  const float* offsets;   // null: none
  float factor;
};

inline CodeRow code_row(const PackedTask& t, int64_t row) {
  return {t.codes + row * t.code_row_bytes, t.scales + row * t.groups * t.scale_bytes,
          t.zeros != nullptr ? t.zeros + row * t.groups : nullptr,
          t.offsets != nullptr ? t.offsets + row * t.groups : nullptr, t.factors != nullptr ? t.factors[row] : 1.0f};
}

inline float float_of_bits(uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

inline float group_scale(const PackedTask& t, const CodeRow& r, int64_t g) {
  if (t.scale_bytes == 4) {
    float v;
    __builtin_memcpy(&v, r.scales + 4 * g, sizeof v);
    return v;
  }
  const uint32_t b = r.scales[g];
  if (t.kind == PackedKind::mxfp4) return float_of_bits(b == 0 ? 1u << 22 : b << 23);
  return float_of_bits((b & 0x7f) << 20) * 0x1p120f * r.factor;  // e4m3, never negative
}

// Whether the codes are multiplied as they are, and the row's one scale is applied to the sum.
inline bool scales_sums(const PackedTask& t) {
  return t.group == 0 && t.code_bits == 8 && t.offsets == nullptr;
}

// Columns [k0, k0 + n) of a row as floats; n in whole units of 32.
inline void decode_row(const PackedTask& t, const CodeRow& r, int64_t k0, int64_t n, float* out) {
  const int64_t group = t.group > 0 ? t.group : k0 + n;
  const bool bytes = t.kind == PackedKind::fp8 || t.kind == PackedKind::int8;
  const uint8_t* codes = r.codes + (bytes ? k0 : k0 / 2);
  if (t.kind == PackedKind::nvfp4) {  // a unit has two scales
    for (int64_t c = 0; c < n; c += 32) {
      const int64_t g = (k0 + c) / 16;
      const float high = g + 1 < t.groups ? group_scale(t, r, g + 1) : 0.0f;
      decode_nibbles(codes + c / 2, nibble_table(true, group_scale(t, r, g), 0), nibble_table(true, high, 0), out + c);
    }
    return;
  }
  for (int64_t c = 0; c < n;) {
    const int64_t g = (k0 + c) / group, end = least(n, (g + 1) * group - k0);
    const bool exists = g < t.groups;  // a group of 16 may be padding alone
    const float scale = scales_sums(t) ? 1.0f : exists ? group_scale(t, r, g) : 0.0f;
    float bias = r.zeros != nullptr && exists ? -static_cast<float>(r.zeros[g]) * scale : 0.0f;
    if (r.offsets != nullptr && exists) bias -= r.offsets[g];
    if (!bytes) {
      const auto table = nibble_table(t.kind == PackedKind::mxfp4, scale, bias);
      for (; c < end; c += 32) decode_nibbles(codes + c / 2, table, table, out + c);
    } else if (t.kind == PackedKind::fp8) {
      for (; c < end; c += 32) decode_fp8(codes + c, scale, out + c);
    } else {
      for (; c < end; c += 16) decode_int8(reinterpret_cast<const int8_t*>(codes + c), scale, bias, out + c);
    }
  }
}

// T rows of x by four rows of decoded weights over n columns: to[t][0 … 3] = or += the sums.
template <int T>
inline __attribute__((noinline)) void packed_dot(const float* w, const float* x, int64_t ldx, int64_t n, bool first,
                                                 float* to, int64_t ld) {
  constexpr int kR = static_cast<int>(kPackedRows);
  V s[T][kR];
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < kR; ++r) s[t][r] = zero();
  }
  int64_t c = 0;
  _Pragma("GCC unroll 1") for (; c + kW <= n; c += kW) {
    V v[kR];
    PINION_UNROLL for (int r = 0; r < kR; ++r) v[r] = F32::load(w + r * kPackedChunk + c);
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V xv = F32::load(x + t * ldx + c);
      PINION_UNROLL for (int r = 0; r < kR; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
  }
  if (c < n) {  // past the row's end the codes may stand for anything finite, and x counts as zero
    for (int t = 0; t < T; ++t) {
      const V xv = F32::load_partial(x + t * ldx + c, static_cast<int>(n - c));
      PINION_UNROLL for (int r = 0; r < kR; ++r) s[t][r] = fma(xv, F32::load(w + r * kPackedChunk + c), s[t][r]);
    }
  }
  for (int t = 0; t < T; ++t) {
    float sum[kR];
    hsum4(s[t][0], s[t][1], s[t][2], s[t][3], sum);
    for (int r = 0; r < kR; ++r) to[t * ld + r] = first ? sum[r] : to[t * ld + r] + sum[r];
  }
}

inline float row_scale(const PackedTask& t, int64_t row) {
  return scales_sums(t) ? group_scale(t, code_row(t, row), 0) : 1.0f;
}

inline void packed_row(const PackedTask& t, int64_t row, int64_t width, float scale, float* y) {
  float decoded[kPackedChunk];
  const CodeRow codes = code_row(t, row);
  const float own = row_scale(t, row) * scale;
  for (int64_t k0 = 0; k0 < width; k0 += kPackedChunk) {
    const int64_t n = least(kPackedChunk, width - k0);
    decode_row(t, codes, k0, (n + 31) / 32 * 32, decoded);
    for (int64_t i = 0; i < n; ++i) y[k0 + i] = decoded[i] * own;
  }
}

// scratch: the decoded tile [kPackedRows][kPackedChunk], then sums [tokens][kPackedPanel] and one more vector pair.
inline void packed(const PackedTask& t, int64_t first, int64_t last, int64_t m_first, int64_t m_last, float* scratch) {
  constexpr int64_t kR = kPackedRows;
  const LinearTask& task = t.linear;
  const int64_t k = task.k, tokens = m_last - m_first;
  const float* x = task.x + m_first * k;
  float *tile = scratch, *raw = tile + kR * kPackedChunk;
  const auto block = [&](int64_t row, int64_t rows, int64_t k0, float* to) {
    const int64_t n = least(kPackedChunk, k - k0), padded = (n + 31) / 32 * 32;
    for (int64_t r = 0; r < kR; ++r) {  // past the last row it is repeated; what it gives is not used
      const CodeRow codes = code_row(t, row + least(r, rows - 1));
      const uint8_t* ahead = codes.codes + kR * t.code_row_bytes + k0 * t.code_bits / 8;
      for (int64_t b = 0; b < n * t.code_bits / 8; b += 64) __builtin_prefetch(ahead + b, 0, 2);
      decode_row(t, codes, k0, padded, tile + r * kPackedChunk);
    }
    each_tile<kPackedTokens>(tokens, [&](int64_t m, int64_t size) {
      with_count<kPackedTokens>(size, [&]<int kT>() {
        packed_dot<kT>(tile, x + m * k + k0, k, n, k0 == 0, to + m * kPackedPanel, kPackedPanel);
      });
    });
  };
  for (int64_t panel = first; panel < last; panel += kPackedPanel) {
    const int64_t end = least(last, panel + kPackedPanel);
    if (tokens <= kPackedFew) {  // in the order in which the weights lie
      for (int64_t row = panel; row < end; row += kR) {
        for (int64_t k0 = 0; k0 < k; k0 += kPackedChunk) block(row, end - row, k0, raw + (row - panel));
      }
    } else {  // a chunk of x stays in the caches
      for (int64_t k0 = 0; k0 < k; k0 += kPackedChunk) {
        for (int64_t row = panel; row < end; row += kR) block(row, end - row, k0, raw + (row - panel));
      }
    }
    for (int64_t row = panel; row < end; ++row) {
      const float scale = row_scale(t, row);
      for (int64_t m = 0; m < tokens; ++m) raw[m * kPackedPanel + row - panel] *= scale;
    }
    finish(task, raw, kPackedPanel, panel, end - panel, m_first, tokens);
  }
}

// ---- rounded inputs ----

struct RowScale {
  float scale, inverse;
};

// `fixed` 0: that of n numbers, their absmax over `largest`.
inline RowScale row_scale_of(const float* x, int64_t n, float fixed, float largest) {
  if (fixed > 0) return {fixed, 1 / fixed};
  V most_v = zero();
  int64_t c = 0;
  for (; c + kW <= n; c += kW) most_v = max(most_v, absolute(F32::load(x + c)));
  if (c < n) most_v = max(most_v, absolute(F32::load_partial(x + c, static_cast<int>(n - c))));
  const float absmax = hmax(most_v);
  return absmax > 1e-30f ? RowScale{absmax / largest, largest / absmax} : RowScale{1, 0};
}

inline V round_int8(V v) {
  return max(min(round_nearest(v), set1(127)), set1(-128));
}

// To the nearest e4m3 number, ties to even: adding 1.5 * 2^23 units of its last place rounds the sum there.
inline V round_e4m3(V v) {
  v = max(min(v, set1(448)), set1(-448));
  const V magic = mul(max(exponent(v), set1(0x1p-6f)), set1(0x1.8p20f));
  return sub(add(v, magic), magic);
}

inline void round_floats(const float* x, int64_t k, InputRounding inputs, float fixed, float* out) {
  const bool int8 = inputs == InputRounding::int8_token || inputs == InputRounding::int8_static;
  const int64_t group = inputs == InputRounding::fp8_group128 ? 128 : k;
  for (int64_t k0 = 0; k0 < k; k0 += group) {
    const int64_t n = least(group, k - k0);
    const RowScale s = row_scale_of(x + k0, n, fixed, int8 ? 127 : 448);
    for (int64_t c = k0; c < k0 + n; c += kW) {
      const int lanes = static_cast<int>(least(kW, k0 + n - c));
      const V v = mul(F32::load_partial(x + c, lanes), set1(s.inverse));
      F32::store_partial(out + c, mul(int8 ? round_int8(v) : round_e4m3(v), set1(s.scale)), lanes);
    }
  }
}

// ---- int8 weights by int8 inputs ----

// One row of x as 128 + round(x / scale); the columns up to `padded` count as zero.
inline float round_row(const float* x, int64_t k, int64_t padded, float fixed, uint8_t* out) {
  const RowScale s = row_scale_of(x, k, fixed, 127);
  float rounded[kW];
  for (int64_t c = 0; c < k; c += kW) {
    const int lanes = static_cast<int>(least(kW, k - c));
    F32::store(rounded, round_int8(mul(F32::load_partial(x + c, lanes), set1(s.inverse))));
    for (int i = 0; i < lanes; ++i) out[c + i] = static_cast<uint8_t>(static_cast<int32_t>(rounded[i]) + 128);
  }
  for (int64_t c = k; c < padded; ++c) out[c] = 128;
  return s.scale;
}

constexpr int kInt8Tokens = kW == 16 ? 4 : 2;

template <int T>
inline void int8_tile(const PackedTask& t, int64_t row, int64_t rows, int64_t m, float* to) {
  const int8_t* w[kPackedRows];
  for (int64_t r = 0; r < kPackedRows; ++r) {
    w[r] = reinterpret_cast<const int8_t*>(t.codes + (row + least(r, rows - 1)) * t.code_row_bytes);
  }
  int32_t sums[T][kPackedRows], weights[kPackedRows];
  int8_sums<T>(w, t.code_row_bytes, t.x8 + m * t.x8_stride, t.x8_stride, sums, weights);
  for (int64_t r = 0; r < least(kPackedRows, rows); ++r) {
    const float scale = row_scale(t, row + r);
    for (int i = 0; i < T; ++i) {
      to[i * kPackedPanel + r] = static_cast<float>(sums[i][r] - 128 * weights[r]) * (t.x8_scales[m + i] * scale);
    }
  }
}

inline void packed_int8(const PackedTask& t, int64_t first, int64_t last, int64_t m_first, int64_t m_last, float* raw) {
  const int64_t tokens = m_last - m_first;
  for (int64_t panel = first; panel < last; panel += kPackedPanel) {
    const int64_t end = least(last, panel + kPackedPanel);
    for (int64_t row = panel; row < end; row += kPackedRows) {
      for (int64_t r = 0; r < kPackedRows; ++r) {
        const uint8_t* ahead = t.codes + (row + kPackedRows + r) * t.code_row_bytes;
        for (int64_t b = 0; b < t.code_row_bytes; b += 64) __builtin_prefetch(ahead + b, 0, 2);
      }
      each_tile<kInt8Tokens>(tokens, [&](int64_t m, int64_t size) {
        with_count<kInt8Tokens>(size, [&]<int kT>() {
          int8_tile<kT>(t, row, end - row, m_first + m, raw + m * kPackedPanel + (row - panel));
        });
      });
    }
    finish(t.linear, raw, kPackedPanel, panel, end - panel, m_first, tokens);
  }
}
