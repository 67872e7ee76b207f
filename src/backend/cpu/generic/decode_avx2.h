// Codes of packed weights to f32 on AVX2: 32 at a time. Included inside an ISA's namespace, after vec_avx2.h.

struct NibbleTable {  // value = bytes[code] * scale + bias
  __m128i bytes;
  V scale, bias;
};

inline NibbleTable nibble_table(bool fp4, float scale, float bias) {
  if (fp4) {  // doubled, so that they are integers
    return {_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), set1(scale * 0.5f), set1(bias)};
  }
  return {_mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7), set1(scale), set1(bias)};
}

inline V widen_int8(__m128i codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

inline void decode_nibbles(const uint8_t* codes, const NibbleTable& low, const NibbleTable& high, float* out) {
  const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)), mask = _mm_set1_epi8(15);
  const __m128i l = _mm_shuffle_epi8(low.bytes, _mm_and_si128(b, mask)),
                h = _mm_shuffle_epi8(high.bytes, _mm_and_si128(_mm_srli_epi16(b, 4), mask));
  F32::store(out, fma(widen_int8(l), low.scale, low.bias));
  F32::store(out + 8, fma(widen_int8(_mm_srli_si128(l, 8)), low.scale, low.bias));
  F32::store(out + 16, fma(widen_int8(h), high.scale, high.bias));
  F32::store(out + 24, fma(widen_int8(_mm_srli_si128(h, 8)), high.scale, high.bias));
}

inline void decode_int8(const int8_t* codes, float scale, float bias, float* out) {  // 16 of them
  PINION_UNROLL for (int i = 0; i < 2; ++i) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * i));
    F32::store(out + 8 * i, fma(widen_int8(b), set1(scale), set1(bias)));
  }
}

// e4m3's exponent and mantissa where f32's begin: the exponents' biases differ by 120.
inline void decode_fp8(const uint8_t* codes, float scale, float* out) {
  PINION_UNROLL for (int i = 0; i < 4; ++i) {
    const __m256i b = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * i)));
    const __m256i f = _mm256_and_si256(_mm256_slli_epi32(b, 20), _mm256_set1_epi32(static_cast<int>(0x87f00000)));
    F32::store(out + 8 * i, mul(mul(_mm256_castsi256_ps(f), set1(0x1p120f)), set1(scale)));
  }
}

inline int32_t sum_int32(__m256i v) {
  __m128i a = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}

// sums[i][r]: the products of row i of x and row r of w, n bytes in whole units of 32; weights[r]: the sum of w's row.
template <int T>
inline __attribute__((noinline)) void int8_sums(const int8_t* const (&w)[kPackedRows], int64_t n, const uint8_t* x,
                                                int64_t ldx, int32_t (&sums)[T][kPackedRows],
                                                int32_t (&weights)[kPackedRows]) {
  for (int r = 0; r < static_cast<int>(kPackedRows); ++r) {
    __m256i total = _mm256_setzero_si256(), s[T];
    for (int t = 0; t < T; ++t) s[t] = _mm256_setzero_si256();
    for (int64_t c = 0; c < n; c += 16) {
      const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w[r] + c)));
      total = _mm256_add_epi32(total, _mm256_madd_epi16(v, _mm256_set1_epi16(1)));
      for (int t = 0; t < T; ++t) {
        const __m256i xv = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + t * ldx + c)));
        s[t] = _mm256_add_epi32(s[t], _mm256_madd_epi16(v, xv));
      }
    }
    weights[r] = sum_int32(total);
    for (int t = 0; t < T; ++t) sums[t][r] = sum_int32(s[t]);
  }
}
