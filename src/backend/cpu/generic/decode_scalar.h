// Codes of packed weights to f32 in plain C++: 32 at a time. Included inside an ISA's namespace, after vec_scalar.h.

struct NibbleTable {
  float values[16];
};

inline NibbleTable nibble_table(bool fp4, float scale, float bias) {
  constexpr float kFp4[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  NibbleTable t;
  for (int i = 0; i < 16; ++i) {
    const float value = !fp4 ? static_cast<float>(i - 8) : i < 8 ? kFp4[i] : -kFp4[i - 8];
    t.values[i] = value * scale + bias;
  }
  return t;
}

inline void decode_nibbles(const uint8_t* codes, const NibbleTable& low, const NibbleTable& high, float* out) {
  for (int i = 0; i < 16; ++i) out[i] = low.values[codes[i] & 15], out[16 + i] = high.values[codes[i] >> 4];
}

inline void decode_int8(const int8_t* codes, float scale, float bias, float* out) {  // 16 of them
  for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(codes[i]) * scale + bias;
}

// e4m3's exponent and mantissa where f32's begin: the exponents' biases differ by 120.
inline void decode_fp8(const uint8_t* codes, float scale, float* out) {
  for (int i = 0; i < 32; ++i) {
    const uint32_t b = codes[i];
    out[i] = std::bit_cast<float>((b & 0x80) << 24 | (b & 0x7f) << 20) * 0x1p120f * scale;
  }
}

// sums[i][r]: the products of row i of x and row r of w, n bytes; weights[r]: the sum of w's row.
template <int T>
inline void int8_sums(const int8_t* const (&w)[kPackedRows], int64_t n, const uint8_t* x, int64_t ldx,
                      int32_t (&sums)[T][kPackedRows], int32_t (&weights)[kPackedRows]) {
  for (int r = 0; r < static_cast<int>(kPackedRows); ++r) {
    weights[r] = 0;
    for (int64_t c = 0; c < n; ++c) weights[r] += w[r][c];
    for (int t = 0; t < T; ++t) {
      int32_t sum = 0;
      for (int64_t c = 0; c < n; ++c) sum += w[r][c] * x[t * ldx + c];
      sums[t][r] = sum;
    }
  }
}
