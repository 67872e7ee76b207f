// Sixteen f32 lanes on AVX-512 (F, BW, VL, DQ). Included inside an ISA's namespace, after <immintrin.h>.

using V = __m512;
constexpr int kW = 16;
// Register tiles: attention takes 2 vectors of keys by kTile rows, gemm kLinearVectors of weight rows by kLinearTile
// rows of x.
constexpr int kTile = 12, kLinearVectors = 3, kLinearTile = 8;

inline V zero() {
  return _mm512_setzero_ps();
}
inline V set1(float a) {
  return _mm512_set1_ps(a);
}
inline V add(V a, V b) {
  return _mm512_add_ps(a, b);
}
inline V sub(V a, V b) {
  return _mm512_sub_ps(a, b);
}
inline V mul(V a, V b) {
  return _mm512_mul_ps(a, b);
}
inline V div(V a, V b) {
  return _mm512_div_ps(a, b);
}
inline V max(V a, V b) {
  return _mm512_max_ps(a, b);
}
inline V min(V a, V b) {
  return _mm512_min_ps(a, b);
}
inline V fma(V a, V b, V c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline V round_nearest(V a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline V scale_pow2(V a, V n) {
  return _mm512_scalef_ps(a, n);
}
inline V zero_where_less(V x, V limit, V value) {  // 0 where x < limit, value elsewhere
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
}
inline V absolute(V a) {
  return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}
inline V exponent(V a) {  // the power of two at or below |a|; 0 for subnormal numbers
  return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000)));
}

inline __m128 sum128(V v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
// Four sums at once: out[r] is the sum of the lanes of the r-th argument.
inline void hsum4(V a, V b, V c, V d, float* out) {
  const __m128 ab = _mm_hadd_ps(sum128(a), sum128(b)), cd = _mm_hadd_ps(sum128(c), sum128(d));
  _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}
inline float hmax(V v) {
  return _mm512_reduce_max_ps(v);
}

// Lane j of v[i] changes places with lane i of v[j].
inline __attribute__((always_inline)) void transpose(V (&v)[16]) {
  V r[4][4];  // [four rows][column % 4]: each quarter holds one column of the four rows
  PINION_UNROLL for (int g = 0; g < 4; ++g) {
    const V a = _mm512_unpacklo_ps(v[4 * g], v[4 * g + 1]), b = _mm512_unpackhi_ps(v[4 * g], v[4 * g + 1]);
    const V c = _mm512_unpacklo_ps(v[4 * g + 2], v[4 * g + 3]), d = _mm512_unpackhi_ps(v[4 * g + 2], v[4 * g + 3]);
    const auto low = [](V x, V y) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    const auto high = [](V x, V y) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    r[g][0] = low(a, c), r[g][1] = high(a, c), r[g][2] = low(b, d), r[g][3] = high(b, d);
  }
  PINION_UNROLL for (int c = 0; c < 4; ++c) {
    const V a = _mm512_shuffle_f32x4(r[0][c], r[1][c], 0x88), b = _mm512_shuffle_f32x4(r[0][c], r[1][c], 0xdd);
    const V e = _mm512_shuffle_f32x4(r[2][c], r[3][c], 0x88), f = _mm512_shuffle_f32x4(r[2][c], r[3][c], 0xdd);
    v[c] = _mm512_shuffle_f32x4(a, e, 0x88), v[8 + c] = _mm512_shuffle_f32x4(a, e, 0xdd);
    v[4 + c] = _mm512_shuffle_f32x4(b, f, 0x88), v[12 + c] = _mm512_shuffle_f32x4(b, f, 0xdd);
  }
}
// The lanes with even and with odd numbers of a, then b.
inline void deinterleave(V a, V b, V& even, V& odd) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = _mm512_permutex2var_ps(a, first, b);
  odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b);
}

inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1);
}

// Number types: loads and stores by lanes; and loads by 32-bit words of kPer numbers, which unpack splits into vectors.
struct F32 {
  using T = float;
  static constexpr int kPer = 1;
  static V words(const T* p) { return load(p); }
  static V words_partial(const T* p, int n) { return load_partial(p, n); }
  static void unpack(V v, V (&out)[1]) { out[0] = v; }
  static V load(const T* p) { return _mm512_loadu_ps(p); }
  static V load_partial(const T* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static void store(T* p, V v) { _mm512_storeu_ps(p, v); }
  static void store_partial(T* p, V v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
};

struct Bf16 {
  using T = uint16_t;
  static constexpr int kPer = 2;
  static V words(const T* p) { return _mm512_loadu_ps(p); }
  static V words_partial(const T* p, int n) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p));
  }
  static void unpack(V v, V (&out)[2]) {
    const __m512i u = _mm512_castps_si512(v);
    out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
    out[1] = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static V widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static __m256i narrow(V v) {  // to nearest even; NaN stays NaN
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }
  static V load(const T* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load_partial(const T* p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
  static void store(T* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
  static void store_partial(T* p, V v, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(v)); }
};

struct F16 {
  using T = uint16_t;
  static constexpr int kPer = 2;
  static V words(const T* p) { return _mm512_loadu_ps(p); }
  static V words_partial(const T* p, int n) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p));
  }
  static void unpack(V v, V (&out)[2]) {
    const __m512i u = _mm512_castps_si512(v);
    out[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(u));
    out[1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(u, 16)));
  }
  static __m256i narrow(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V load(const T* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load_partial(const T* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
  static void store(T* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
  static void store_partial(T* p, V v, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(v)); }
};
