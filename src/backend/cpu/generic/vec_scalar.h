// Four f32 lanes in the compiler's own vectors: the baseline of any machine, and the last resort. Included inside an
// ISA's namespace, after <cmath> and "tensor/convert.h".

typedef float V __attribute__((vector_size(16)));
constexpr int kW = 4;
// Register tiles: attention takes 2 vectors of keys by kTile rows, gemm kLinearVectors of weight rows by kLinearTile
// rows of x.
constexpr int kTile = 4, kLinearVectors = 2, kLinearTile = 4;

inline V zero() {
  return V{};
}
inline V set1(float a) {
  return V{a, a, a, a};
}
inline V add(V a, V b) {
  return a + b;
}
inline V sub(V a, V b) {
  return a - b;
}
inline V mul(V a, V b) {
  return a * b;
}
inline V div(V a, V b) {
  return a / b;
}
inline V max(V a, V b) {
  return a > b ? a : b;
}
inline V min(V a, V b) {
  return a < b ? a : b;
}
inline V fma(V a, V b, V c) {
  return a * b + c;
}
inline V round_nearest(V a) {
  return V{std::nearbyint(a[0]), std::nearbyint(a[1]), std::nearbyint(a[2]), std::nearbyint(a[3])};
}
inline V scale_pow2(V a, V n) {
  for (int i = 0; i < 4; ++i) {
    a[i] *= std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n[i]) + 127) << 23);
  }
  return a;
}
inline V zero_where_less(V x, V limit, V value) {
  return x < limit ? zero() : value;
}
inline V absolute(V a) {
  return a < zero() ? -a : a;
}
inline V exponent(V a) {  // the power of two at or below |a|; 0 for subnormal numbers
  for (int i = 0; i < 4; ++i)
    a[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(a[i])) & 0x7f800000);
  return a;
}
// Four sums at once: out[r] is the sum of the lanes of the r-th argument.
inline void hsum4(V a, V b, V c, V d, float* out) {
  const V v[4] = {a, b, c, d};
  for (int r = 0; r < 4; ++r) out[r] = (v[r][0] + v[r][1]) + (v[r][2] + v[r][3]);
}
inline float hmax(V v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}

// Lane j of v[i] changes places with lane i of v[j].
inline void transpose(V (&v)[4]) {
  const V a = v[0], b = v[1], c = v[2], d = v[3];
  for (int i = 0; i < 4; ++i) v[i] = V{a[i], b[i], c[i], d[i]};
}
// The lanes with even and with odd numbers of a, then b.
inline void deinterleave(V a, V b, V& even, V& odd) {
  even = V{a[0], a[2], b[0], b[2]}, odd = V{a[1], a[3], b[1], b[3]};
}

// Number types: loads and stores by lanes; and loads by 32-bit words of kPer numbers, which unpack splits into vectors.
template <class E>
struct Converted {  // a 2-byte format
  using T = uint16_t;
  struct Halves {
    T h[8];
  };
  static constexpr int kPer = 2;
  static V words(const T* p) { return words_partial(p, 8); }
  static V words_partial(const T* p, int n) {
    Halves part{};
    for (int i = 0; i < n; ++i) part.h[i] = p[i];
    return std::bit_cast<V>(part);
  }
  static void unpack(V v, V (&out)[2]) {
    const auto [h] = std::bit_cast<Halves>(v);
    out[0] = V{E::get(h[0]), E::get(h[2]), E::get(h[4]), E::get(h[6])};
    out[1] = V{E::get(h[1]), E::get(h[3]), E::get(h[5]), E::get(h[7])};
  }
  static V load(const T* p) { return V{E::get(p[0]), E::get(p[1]), E::get(p[2]), E::get(p[3])}; }
  static V load_partial(const T* p, int n) {
    V v{};
    for (int i = 0; i < n; ++i) v[i] = E::get(p[i]);
    return v;
  }
  static void store(T* p, V v) { store_partial(p, v, 4); }
  static void store_partial(T* p, V v, int n) {
    for (int i = 0; i < n; ++i) p[i] = E::put(v[i]);
  }
};

struct F32 {
  using T = float;
  static constexpr int kPer = 1;
  static V words(const T* p) { return load(p); }
  static V words_partial(const T* p, int n) { return load_partial(p, n); }
  static void unpack(V v, V (&out)[1]) { out[0] = v; }
  static V load(const T* p) { return V{p[0], p[1], p[2], p[3]}; }
  static V load_partial(const T* p, int n) {
    V v{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static void store(T* p, V v) { store_partial(p, v, 4); }
  static void store_partial(T* p, V v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
};

struct Bf16 : Converted<Bf16> {
  static float get(uint16_t v) { return bf16_to_f32(v); }
  static uint16_t put(float v) { return f32_to_bf16(v); }
};

struct F16 : Converted<F16> {
  static float get(uint16_t v) { return f16_to_f32(v); }
  static uint16_t put(float v) { return f32_to_f16(v); }
};
