// Codes of packed weights to f32 on AVX-512: 32 at a time. Included inside an ISA's namespace, after vec_avx512.h.

inline V nibble_table(bool fp4, float scale, float bias) {
  const V values = fp4 ? _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6)
                       : _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return fma(values, set1(scale), set1(bias));
}

// A permutation looks at the low four bits of a lane alone.
inline void decode_nibbles(const uint8_t* codes, V low, V high, float* out) {
  const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  F32::store(out, _mm512_permutexvar_ps(b, low));
  F32::store(out + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(b, 4), high));
}

inline void decode_int8(const int8_t* codes, float scale, float bias, float* out) {  // 16 of them
  const __m512i b = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  F32::store(out, fma(_mm512_cvtepi32_ps(b), set1(scale), set1(bias)));
}

// e4m3's exponent and mantissa where f32's begin: the exponents' biases differ by 120.
inline void decode_fp8(const uint8_t* codes, float scale, float* out) {
  PINION_UNROLL for (int i = 0; i < 2; ++i) {
    const __m512i b = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + i));
    const __m512i f = _mm512_and_si512(_mm512_slli_epi32(b, 20), _mm512_set1_epi32(static_cast<int>(0x87f00000)));
    F32::store(out + 16 * i, mul(mul(_mm512_castsi512_ps(f), set1(0x1p120f)), set1(scale)));
  }
}

#define PINION_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

// sums[i][r]: the products of row i of x and row r of w, n bytes, x padded to whole vectors with 128; weights[r]: the
// sum of w's row. What lies past a row of w is multiplied by the padding, and counted in weights alike.
template <int T>
inline PINION_VNNI __attribute__((noinline)) void int8_sums_vnni(const int8_t* const (&w)[kPackedRows], int64_t n,
                                                                 const uint8_t* x, int64_t ldx,
                                                                 int32_t (&sums)[T][kPackedRows],
                                                                 int32_t (&weights)[kPackedRows]) {
  constexpr int kR = static_cast<int>(kPackedRows);
  __m512i s[T][kR], total[kR];
  PINION_UNROLL for (int r = 0; r < kR; ++r) {
    total[r] = _mm512_setzero_si512();
    PINION_UNROLL for (int t = 0; t < T; ++t) s[t][r] = _mm512_setzero_si512();
  }
  const __m512i ones = _mm512_set1_epi8(1);
  _Pragma("GCC unroll 1") for (int64_t c = 0; c < n; c += 64) {
    __m512i v[kR];
    PINION_UNROLL for (int r = 0; r < kR; ++r) {
      v[r] = _mm512_loadu_si512(w[r] + c);
      total[r] = _mm512_dpbusd_epi32(total[r], ones, v[r]);
    }
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const __m512i xv = _mm512_loadu_si512(x + t * ldx + c);
      PINION_UNROLL for (int r = 0; r < kR; ++r) s[t][r] = _mm512_dpbusd_epi32(s[t][r], xv, v[r]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    weights[r] = _mm512_reduce_add_epi32(total[r]);
    for (int t = 0; t < T; ++t) sums[t][r] = _mm512_reduce_add_epi32(s[t][r]);
  }
}

template <int T>
inline __attribute__((noinline)) void int8_sums_plain(const int8_t* const (&w)[kPackedRows], int64_t n,
                                                      const uint8_t* x, int64_t ldx, int32_t (&sums)[T][kPackedRows],
                                                      int32_t (&weights)[kPackedRows]) {
  for (int r = 0; r < static_cast<int>(kPackedRows); ++r) {
    __m512i total = _mm512_setzero_si512(), s[T];
    for (int t = 0; t < T; ++t) s[t] = _mm512_setzero_si512();
    for (int64_t c = 0; c < n; c += 32) {
      const __m512i v = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w[r] + c)));
      total = _mm512_add_epi32(total, _mm512_madd_epi16(v, _mm512_set1_epi16(1)));
      for (int t = 0; t < T; ++t) {
        const __m512i xv = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + t * ldx + c)));
        s[t] = _mm512_add_epi32(s[t], _mm512_madd_epi16(v, xv));
      }
    }
    weights[r] = _mm512_reduce_add_epi32(total);
    for (int t = 0; t < T; ++t) sums[t][r] = _mm512_reduce_add_epi32(s[t]);
  }
}

template <int T>
inline void int8_sums(const int8_t* const (&w)[kPackedRows], int64_t n, const uint8_t* x, int64_t ldx,
                      int32_t (&sums)[T][kPackedRows], int32_t (&weights)[kPackedRows]) {
  static const bool vnni = __builtin_cpu_supports("avx512vnni") != 0;
  vnni ? int8_sums_vnni<T>(w, n, x, ldx, sums, weights) : int8_sums_plain<T>(w, n, x, ldx, sums, weights);
}
