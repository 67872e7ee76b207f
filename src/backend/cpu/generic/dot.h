// The one inner product of the CPU backend. Every output of every linear kernel, and every attention score, is summed
// in this order: lane i takes columns i, i + W, i + 2W, … in one accumulator, then the lanes are added as one fixed
// tree. So the kernels agree bit for bit whatever the number of rows, and any of them is batch invariant.

inline float hsum(V a) {
  float out[4];
  hsum4(a, a, a, a, out);
  return out[0];
}

// Four weight rows from `row` on; past `last` the last one is repeated, and its sums are not used.
template <class T>
inline void four_rows(const T* weight, int64_t k, int64_t row, int64_t last, const T* (&w)[4]) {
  for (int64_t r = 0; r < 4; ++r) w[r] = weight + least(row + r, last - 1) * k;
}

// sums[t][r] += x[t] . w[r] over columns [0, k), for rows of x that lie ldx apart. Bytes from `ahead` on are
// prefetched, kLines cache lines a step (0: none).
template <class E, int T, int kLines>
inline __attribute__((always_inline)) void dot_tile(const typename E::T* const (&w)[4], const float* x, int64_t ldx,
                                                    int64_t k, const char* ahead, V (&sums)[T][4]) {
  V s[T][4];
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < 4; ++r) s[t][r] = sums[t][r];
  }
  const typename E::T *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
  int64_t i = 0;
  for (; i + kW <= k; i += kW) {
    const V v[4] = {E::load(w0 + i), E::load(w1 + i), E::load(w2 + i), E::load(w3 + i)};
    if constexpr (kLines > 0) {
      PINION_UNROLL for (int l = 0; l < kLines; ++l) __builtin_prefetch(ahead + 64 * l, 0, 2);
      ahead += 64 * kLines;
    }
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V xv = F32::load(x + t * ldx + i);
      PINION_UNROLL for (int r = 0; r < 4; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
  }
  if (const int n = static_cast<int>(k - i); n > 0) {
    const V v[4] = {E::load_partial(w0 + i, n), E::load_partial(w1 + i, n), E::load_partial(w2 + i, n),
                    E::load_partial(w3 + i, n)};
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V xv = F32::load_partial(x + t * ldx + i, n);
      PINION_UNROLL for (int r = 0; r < 4; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
  }
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < 4; ++r) sums[t][r] = s[t][r];
  }
}

// Calls f.template operator()<T>() with T = n, for 1 <= n <= kTile.
template <class F>
inline __attribute__((always_inline)) void with_tile(int64_t n, F&& f) {
  static_assert(kTile <= 6);
  switch (n) {
    case 1:
      return f.template operator()<1>();
    case 2:
      if constexpr (kTile >= 2) return f.template operator()<2>();
      break;
    case 3:
      if constexpr (kTile >= 3) return f.template operator()<3>();
      break;
    case 4:
      if constexpr (kTile >= 4) return f.template operator()<4>();
      break;
    case 5:
      if constexpr (kTile >= 5) return f.template operator()<5>();
      break;
    case 6:
      if constexpr (kTile >= 6) return f.template operator()<6>();
      break;
    default:
      break;
  }
}

// Calls f(E{}) with the loads and stores of a float type.
template <class F>
inline __attribute__((always_inline)) void with_type(DType type, F&& f) {
  if (type == DType::bf16) return f(Bf16{});
  if (type == DType::f16) return f(F16{});
  f(F32{});
}
