// The one inner product of the CPU backend. Lanes are outputs (weight rows, keys): a block of rows is turned into
// columns of f32 once, [k][rows], and each column is multiplied by one number of each row of x. Every output of every
// kernel is summed in one order: blocks of kSumBlock columns, ascending within a block, the blocks' sums added in
// order. So the kernels agree bit for bit whatever the number of rows, and any of them is batch invariant.

constexpr int kKeys = 2 * kW;  // keys of attention's register tile, beside kTile rows of queries
static_assert(kLinearVectors * kW <= kMaxTileRows && kMaxTileRows % (kLinearVectors * kW) == 0);
static_assert(kMaxKeys % kKeys == 0 && kTile <= kW && kLinearTile <= kW);

inline float hsum(V a) {
  float out[4];
  hsum4(a, a, a, a, out);
  return out[0];
}

// Calls f(E{}) with the loads and stores of a float type.
template <class F>
inline __attribute__((always_inline)) void with_type(DType type, F&& f) {
  if (type == DType::bf16) return f(Bf16{});
  if (type == DType::f16) return f(F16{});
  f(F32{});
}

// Calls f.template operator()<T>() with T = n, for 1 <= n <= N.
template <int N, class F>
inline __attribute__((always_inline)) void with_count(int64_t n, F&& f) {
  if constexpr (N > 1) {
    if (n < N) return with_count<N - 1>(n, f);
  }
  f.template operator()<N>();
}

// Calls f(first, size) for the tiles of at most N of n rows of x: as few as can be, of equal size.
template <int N, class F>
inline __attribute__((always_inline)) void each_tile(int64_t n, F&& f) {
  const int64_t tiles = (n + N - 1) / N;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t size = (n - first + tiles - i - 1) / (tiles - i);
    f(first, size);
    first += size;
  }
}

template <class E>
constexpr int kStep = kW* E::kPer;  // columns that one transposition takes

// The columns [c, c + kStep) of kW rows, of which k exist: f(column, values of the rows), ascending.
template <class E, class Rows, class F>
inline __attribute__((always_inline)) void each_column(const Rows& rows, int64_t c, int64_t k, F&& f) {
  V v[kW], u[E::kPer];
  if (c + kStep<E> <= k) {
    PINION_UNROLL for (int i = 0; i < kW; ++i) v[i] = E::words(rows(i) + c);
    transpose(v);
    PINION_UNROLL for (int i = 0; i < kW; ++i) {
      E::unpack(v[i], u);
      PINION_UNROLL for (int q = 0; q < E::kPer; ++q) f(c + i * E::kPer + q, u[q]);
    }
    return;
  }
  for (int i = 0; i < kW; ++i) v[i] = E::words_partial(rows(i) + c, static_cast<int>(k - c));
  transpose(v);
  for (int64_t at = c; at < k; ++at) {
    E::unpack(v[(at - c) / E::kPer], u);
    f(at, u[(at - c) % E::kPer]);
  }
}

// kW rows that lie ld apart. By fours, so that addresses need few registers.
template <class T>
struct StridedRows {
  const T* four[kW / 4];
  int64_t ld;
  StridedRows(const T* first, int64_t stride) : ld(stride) {
    for (int i = 0; i < kW / 4; ++i) four[i] = first + 4 * i * ld;
  }
  const T* operator()(int i) const { return four[i / 4] + i % 4 * ld; }
};

// kW rows anywhere.
template <class T>
struct ListedRows {
  const T* const* rows;
  const T* operator()(int i) const { return rows[i]; }
};

// Calls f with the R * W rows from `w` on, ld apart, as something whose [i] is the i-th W of them. Past the n-th the
// last one is repeated; what it gives is not used.
template <int R, class T, class F>
inline __attribute__((always_inline)) void tile_rows(const T* w, int64_t ld, int64_t n, F&& f) {
  struct Strided {
    const T* w;
    int64_t ld;
    StridedRows<T> operator[](int i) const { return {w + i * kW * ld, ld}; }
  };
  struct Listed {
    const T* rows[R * kW];
    ListedRows<T> operator[](int i) const { return {rows + i * kW}; }
  };
  if (n >= R * kW) return f(Strided{w, ld});
  Listed listed;
  for (int64_t i = 0; i < R * kW; ++i) listed.rows[i] = w + least(i, n - 1) * ld;
  f(listed);
}

// k columns of kW rows, as f32 in the first lanes of out [k][ld].
template <class E, int kLd, class Rows>
inline __attribute__((noinline)) void convert(const Rows& rows, int64_t k, float* out) {
  for (int64_t c = 0; c < k; c += kStep<E>) {
    each_column<E>(rows, c, k, [&](int64_t at, V v) { F32::store(out + at * kLd, v); });
  }
}

// What a multiplication fetches meanwhile: from each of `rows` rows `step` bytes apart, the lines [first, last).
struct Ahead {
  const char* at = nullptr;
  int64_t step = 0;
  int rows = 0, first = 0, last = 0;
};

// sums[t] += the sum over k columns of w [k][R * W] times x; the element (column c, row t) of x is x[c * kColumn + t *
// kRow].
template <int R, int T, int kColumn, int kRow>
inline __attribute__((always_inline)) void multiply(const float* w, const float* x, int64_t k, Ahead ahead,
                                                    V (&sums)[T][R]) {
  V s[T][R];
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < R; ++r) s[t][r] = sums[t][r];
  }
  const auto column = [&]() __attribute__((always_inline)) {
    V v[R];
    PINION_UNROLL for (int r = 0; r < R; ++r) v[r] = F32::load(w + r * kW);
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V xv = set1(x[t * kRow]);
      PINION_UNROLL for (int r = 0; r < R; ++r) s[t][r] = fma(xv, v[r], s[t][r]);
    }
    w += R * kW, x += kColumn;
  };
  // Not unrolled: GCC 12 would move the sums from register to register, and spill some.
  int64_t c = 0;
  constexpr int kColumns = static_cast<int>(kSumBlock / (R * kW));  // a row's share of a block's time
  for (int row = 0; row < ahead.rows && c + kColumns <= k; ++row, c += kColumns) {
    for (int l = ahead.first; l < ahead.last; ++l) __builtin_prefetch(ahead.at + 64 * l, 0, 2);
    ahead.at += ahead.step;
    _Pragma("GCC unroll 1") for (int i = 0; i < kColumns; ++i) column();
  }
  _Pragma("GCC unroll 1") for (; c < k; ++c) column();
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < R; ++r) sums[t][r] = s[t][r];
  }
}

// One block of columns of T packed rows of x, into sums `to` that lie ld apart: set by the first block, added to by the
// others.
template <int R, int T>
inline __attribute__((noinline)) void add_tile(const float* w, const float* x, int64_t k, const Ahead& ahead,
                                               bool first_block, float* to, int64_t ld) {
  V s[T][R];
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < R; ++r) s[t][r] = zero();
  }
  multiply<R, T, T, 1>(w, x, k, ahead, s);
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int r = 0; r < R; ++r) {
      float* p = to + t * ld + r * kW;
      F32::store(p, first_block ? s[t][r] : add(F32::load(p), s[t][r]));
    }
  }
}

// Columns [0, k) of n rows of x, ldx apart, tile of N rows after tile as [k][rows of the tile].
template <int N>
inline void pack_rows(const float* x, int64_t ldx, int64_t n, int64_t k, float* out) {
  each_tile<N>(n, [&](int64_t first, int64_t size) {
    const float* from = x + first * ldx;
    for (int64_t c = 0; c < k; c += kW) {
      const int columns = static_cast<int>(least(kW, k - c));
      V v[kW];
      for (int t = 0; t < kW; ++t) v[t] = t < size ? F32::load_partial(from + t * ldx + c, columns) : zero();
      transpose(v);
      for (int i = 0; i < columns; ++i) F32::store_partial(out + i * size, v[i], static_cast<int>(size));
      out += columns * size;
    }
  });
}
