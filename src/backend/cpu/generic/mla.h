// Multi-head latent attention: the write into the latent cache, reading it back, and queries into the latent space.

inline void mla_kv_write(const MlaWriteTask& task, int64_t seq, int64_t token) {
  const MlaKvWrite& op = *task.op;
  const int64_t head = op.nope + op.rope, width = op.rank + op.rope, half = op.rope / 2;
  const float *cos = task.table->cos + token * half, *sin = task.table->sin + token * half;
  for (int64_t h = 0; h < op.heads; ++h) {
    const int64_t at = (token * op.heads + h) * head;
    for (int64_t i = 0; i < op.nope; ++i) task.y[at + i] = task.q[at + i];
    rotate_head(task.q + at + op.nope, cos, sin, op.rope, op.rope, op.interleaved, task.y + at + op.nope);
  }
  float row[kMlaMaxLatent];
  rms_norm(task.latent + token * width, task.norm, op.rank, op.eps, 0, row);
  rotate_head(task.latent + token * width + op.rank, cos, sin, op.rope, op.rope, op.interleaved, row + op.rank);
  write_head(*task.kv, seq, task.positions[token], 1, 0, width, row, 0, 1);
}

// Latents [first, first + n) of a sequence to f32: their first `rank` numbers to c, densely, the rest to pe, ld apart.
inline void mla_load(const KvView& kv, int64_t seq, int64_t first, int64_t n, int64_t rank, int64_t rope, float* c,
                     float* pe, int64_t ld) {
  with_type(kv.dtype, [&]<class E>(E) {
    const auto copy = [](const typename E::T* from, int64_t count, float* to) {
      each_vector(count,
                  [&](int64_t i, int lanes) { store_lanes<F32>(to + i, load_lanes<E>(from + i, lanes), lanes); });
    };
    for (int64_t j = first; j < first + n; ++j, c += rank, pe += ld) {
      const int32_t block = kv.block_table[seq * kv.max_blocks + j / kv.block_size];
      const char* base = reinterpret_cast<const char*>(kv.base) + block * kv.block_stride;
      const auto* from = reinterpret_cast<const typename E::T*>(base) + j % kv.block_size * (rank + rope);
      copy(from, rank, c);
      copy(from + rank, rope, pe);
    }
  });
}

// y[t][c … c + C * W) = sum over i of x[t][i] * w[i][c …] for T rows, i ascending.
template <class E, int T, int C>
inline __attribute__((always_inline)) void absorb_tile(const typename E::T* w, int64_t n, int64_t cols, const float* x,
                                                       int64_t ldx, float* y, int64_t ldy) {
  V s[T][C];
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) s[t][c] = zero();
  }
  for (int64_t i = 0; i < n; ++i) {
    V row[C];
    for (int c = 0; c < C; ++c) row[c] = E::load(w + i * cols + c * kW);
    for (int t = 0; t < T; ++t) {
      const V f = set1(x[t * ldx + i]);
      for (int c = 0; c < C; ++c) s[t][c] = fma(f, row[c], s[t][c]);
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) F32::store(y + t * ldy + c * kW, s[t][c]);
  }
}

template <class E, int T>
inline void absorb_rows(const typename E::T* w, int64_t n, int64_t cols, const float* x, int64_t ldx, float* y,
                        int64_t ldy) {
  int64_t c = 0;
  for (; c + 4 * kW <= cols; c += 4 * kW) absorb_tile<E, T, 4>(w + c, n, cols, x, ldx, y + c, ldy);
  for (; c + kW <= cols; c += kW) absorb_tile<E, T, 1>(w + c, n, cols, x, ldx, y + c, ldy);
  const int lanes = static_cast<int>(cols - c);
  if (lanes == 0) return;
  for (int t = 0; t < T; ++t) {
    V s = zero();
    for (int64_t i = 0; i < n; ++i) s = fma(set1(x[t * ldx + i]), E::load_partial(w + i * cols + c, lanes), s);
    F32::store_partial(y + t * ldy + c, s, lanes);
  }
}

// y[t] = x[t] w for m rows x of n numbers and a matrix w [n, cols].
inline void mla_absorb(FloatArray weight, int64_t n, int64_t cols, const float* x, int64_t ldx, int64_t m, float* y,
                       int64_t ldy) {
  with_type(weight.dtype, [&]<class E>(E) {
    const auto* w = static_cast<const typename E::T*>(weight.data);
    int64_t t = 0;
    for (; t + 4 <= m; t += 4) absorb_rows<E, 4>(w, n, cols, x + t * ldx, ldx, y + t * ldy, ldy);
    for (; t < m; ++t) absorb_rows<E, 1>(w, n, cols, x + t * ldx, ldx, y + t * ldy, ldy);
  });
}
