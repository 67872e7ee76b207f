// The one inner product of the CPU backend. Lanes are outputs (weight rows, keys): a block of rows is turned into
// columns of f32 once, [k][rows], and each column is multiplied by one number of each row of x. Every output of every
// kernel is summed in one order: blocks of kSumBlock columns, ascending within a block, the blocks' sums added in
// order. So the kernels agree bit for bit whatever the number of rows, and any of them is batch invariant.

constexpr int kTileRows = 2 * kW;  // weight rows of a register tile, beside kTile rows of x
static_assert(kTileRows <= kMaxTileRows && kSumBlock % kTileRows == 0 && kTile <= kW);

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

// Calls f(first, size) for the tiles of n rows of x: as few as can be, of equal size.
template <class F>
inline __attribute__((always_inline)) void each_tile(int64_t n, F&& f) {
  const int64_t tiles = (n + kTile - 1) / kTile;
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

// Calls f(rows, rows) with the two halves of the kTileRows rows from `w` on, ld apart. Past the n-th the last one is
// repeated; what it gives is not used.
template <class T, class F>
inline __attribute__((always_inline)) void tile_rows(const T* w, int64_t ld, int64_t n, F&& f) {
  if (n >= kTileRows) return f(StridedRows<T>(w, ld), StridedRows<T>(w + kW * ld, ld));
  const T* rows[kTileRows];
  for (int64_t i = 0; i < kTileRows; ++i) rows[i] = w + least(i, n - 1) * ld;
  f(ListedRows<T>{rows}, ListedRows<T>{rows + kW});
}

// k columns of kW rows, as f32 in lanes [0, kW) of out [k][kTileRows].
template <class E, class Rows>
inline __attribute__((noinline)) void convert(const Rows& rows, int64_t k, float* out) {
  for (int64_t c = 0; c < k; c += kStep<E>) {
    each_column<E>(rows, c, k, [&](int64_t at, V v) { F32::store(out + at * kTileRows, v); });
  }
}

// What a multiplication fetches meanwhile: from each of kTileRows rows `step` bytes apart, the lines [first, last).
struct Ahead {
  const char* at = nullptr;
  int64_t step = 0;
  int first = 0, last = 0;
};

// sums[t] += the sum over k columns of w [k][kTileRows] times x; the element (column c, row t) of x is
// x[c * kColumn + t * kRow].
template <int T, int kColumn, int kRow, bool kFetch>
inline __attribute__((always_inline)) void multiply(const float* w, const float* x, int64_t k, Ahead ahead,
                                                    V (&sums)[T][2]) {
  V s[T][2];
  PINION_UNROLL for (int t = 0; t < T; ++t) s[t][0] = sums[t][0], s[t][1] = sums[t][1];
  const auto column = [&]() __attribute__((always_inline)) {
    const V w0 = F32::load(w), w1 = F32::load(w + kW);
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V v = set1(x[t * kRow]);
      s[t][0] = fma(v, w0, s[t][0]);
      s[t][1] = fma(v, w1, s[t][1]);
    }
    w += kTileRows, x += kColumn;
  };
  // Not unrolled: GCC 12 would move the sums from register to register, and spill some.
  int64_t c = 0;
  if constexpr (kFetch) {
    constexpr int kColumns = kSumBlock / kTileRows;  // so that a block of columns fetches from every row
    for (; c + kColumns <= k; c += kColumns) {
      for (int l = ahead.first; l < ahead.last; ++l) __builtin_prefetch(ahead.at + 64 * l, 0, 2);
      ahead.at += ahead.step;
      _Pragma("GCC unroll 1") for (int i = 0; i < kColumns; ++i) column();
    }
  }
  _Pragma("GCC unroll 1") for (; c < k; ++c) column();
  PINION_UNROLL for (int t = 0; t < T; ++t) sums[t][0] = s[t][0], sums[t][1] = s[t][1];
}

// One block of columns of kT packed rows of x, into sums `to` that lie ld apart: set by the first block, added to by
// the others.
template <int kT, bool kFetch>
inline __attribute__((noinline)) void add_tile(const float* w, const float* x, int64_t k, const Ahead& ahead,
                                               bool first_block, float* to, int64_t ld) {
  V s[kT][2];
  PINION_UNROLL for (int t = 0; t < kT; ++t) s[t][0] = s[t][1] = zero();
  multiply<kT, kT, 1, kFetch>(w, x, k, ahead, s);
  PINION_UNROLL for (int t = 0; t < kT; ++t) {
    PINION_UNROLL for (int h = 0; h < 2; ++h) {
      float* p = to + t * ld + h * kW;
      F32::store(p, first_block ? s[t][h] : add(F32::load(p), s[t][h]));
    }
  }
}

// Columns [0, k) of n rows of x, ldx apart, tile after tile as [k][rows of the tile].
inline void pack_x(const float* x, int64_t ldx, int64_t n, int64_t k, float* out) {
  each_tile(n, [&](int64_t first, int64_t size) {
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
