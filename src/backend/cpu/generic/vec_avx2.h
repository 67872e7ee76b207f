// Eight f32 lanes on AVX2 with FMA and F16C. Included inside an ISA's namespace, after <immintrin.h>.

using V = __m256;
constexpr int kW = 8;
// Register tiles: attention takes 2 vectors of keys by kTile rows, gemm kLinearVectors of weight rows by kLinearTile
// rows of x.
constexpr int kTile = 6, kLinearVectors = 2, kLinearTile = 6;

inline V zero() {
  return _mm256_setzero_ps();
}
inline V set1(float a) {
  return _mm256_set1_ps(a);
}
inline V add(V a, V b) {
  return _mm256_add_ps(a, b);
}
inline V sub(V a, V b) {
  return _mm256_sub_ps(a, b);
}
inline V mul(V a, V b) {
  return _mm256_mul_ps(a, b);
}
inline V div(V a, V b) {
  return _mm256_div_ps(a, b);
}
inline V max(V a, V b) {
  return _mm256_max_ps(a, b);
}
inline V min(V a, V b) {
  return _mm256_min_ps(a, b);
}
inline V fma(V a, V b, V c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline V round_nearest(V a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline V scale_pow2(V a, V n) {
  const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(e));
}
inline V zero_where_less(V x, V limit, V value) {  // 0 where x < limit, value elsewhere
  return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), value);
}
inline V absolute(V a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
inline V exponent(V a) {  // the power of two at or below |a|; 0 for subnormal numbers
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000)));
}

inline __m128 sum128(V v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
// Four sums at once: out[r] is the sum of the lanes of the r-th argument.
inline void hsum4(V a, V b, V c, V d, float* out) {
  const __m128 ab = _mm_hadd_ps(sum128(a), sum128(b)), cd = _mm_hadd_ps(sum128(c), sum128(d));
  _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}
inline float hmax(V v) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

// Lane j of v[i] changes places with lane i of v[j].
inline __attribute__((always_inline)) void transpose(V (&v)[8]) {
  V r[2][4];  // [four rows][column % 4]: each half holds one column of the four rows
  PINION_UNROLL for (int g = 0; g < 2; ++g) {
    const V a = _mm256_unpacklo_ps(v[4 * g], v[4 * g + 1]), b = _mm256_unpackhi_ps(v[4 * g], v[4 * g + 1]);
    const V c = _mm256_unpacklo_ps(v[4 * g + 2], v[4 * g + 3]), d = _mm256_unpackhi_ps(v[4 * g + 2], v[4 * g + 3]);
    r[g][0] = _mm256_shuffle_ps(a, c, 0x44), r[g][1] = _mm256_shuffle_ps(a, c, 0xee);
    r[g][2] = _mm256_shuffle_ps(b, d, 0x44), r[g][3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  PINION_UNROLL for (int c = 0; c < 4; ++c) {
    v[c] = _mm256_permute2f128_ps(r[0][c], r[1][c], 0x20), v[4 + c] = _mm256_permute2f128_ps(r[0][c], r[1][c], 0x31);
  }
}
// The lanes with even and with odd numbers of a, then b.
inline void deinterleave(V a, V b, V& even, V& odd) {
  const V low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
  even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xdd);
}

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m128i load_halves(const uint16_t* p, int n) {
  alignas(16) uint16_t part[8] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(part));
}
inline void store_halves(uint16_t* p, __m128i v, int n) {
  alignas(16) uint16_t part[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(part), v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

// Number types: loads and stores by lanes; and loads by 32-bit words of kPer numbers, which unpack splits into vectors.
struct F32 {
  using T = float;
  static constexpr int kPer = 1;
  static V words(const T* p) { return load(p); }
  static V words_partial(const T* p, int n) { return load_partial(p, n); }
  static void unpack(V v, V (&out)[1]) { out[0] = v; }
  static V load(const T* p) { return _mm256_loadu_ps(p); }
  static V load_partial(const T* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
  static void store(T* p, V v) { _mm256_storeu_ps(p, v); }
  static void store_partial(T* p, V v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
};

struct Bf16 {
  using T = uint16_t;
  static constexpr int kPer = 2;
  static V words(const T* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static V words_partial(const T* p, int n) {
    alignas(32) uint16_t part[16] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return _mm256_load_ps(reinterpret_cast<const float*>(part));
  }
  static void unpack(V v, V (&out)[2]) {
    const __m256i u = _mm256_castps_si256(v);
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static V widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  static __m128i narrow(V v) {  // to nearest even; NaN stays NaN
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
  static V load(const T* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V load_partial(const T* p, int n) { return widen(load_halves(p, n)); }
  static void store(T* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v)); }
  static void store_partial(T* p, V v, int n) { store_halves(p, narrow(v), n); }
};

struct F16 {
  using T = uint16_t;
  static constexpr int kPer = 2;
  static V words(const T* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static V words_partial(const T* p, int n) {
    alignas(32) uint16_t part[16] = {};
    for (int i = 0; i < n; ++i) part[i] = p[i];
    return _mm256_load_ps(reinterpret_cast<const float*>(part));
  }
  static V widen_words(__m256i u) {  // of words below 2^16
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
  }
  static void unpack(V v, V (&out)[2]) {
    const __m256i u = _mm256_castps_si256(v);
    out[0] = widen_words(_mm256_and_si256(u, _mm256_set1_epi32(0xffff)));
    out[1] = widen_words(_mm256_srli_epi32(u, 16));
  }
  static __m128i narrow(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  static V load(const T* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V load_partial(const T* p, int n) { return _mm256_cvtph_ps(load_halves(p, n)); }
  static void store(T* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v)); }
  static void store_partial(T* p, V v, int n) { store_halves(p, narrow(v), n); }
};
