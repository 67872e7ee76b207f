// Attention over the paged cache, flash style: scores of a tile of 64 keys for all query rows of a block, a running
// softmax, and the weighted sum of V. A block's rows are (token, head of the group), so that the heads of one KV head
// share its loads. Tiles and splits lie at fixed positions and a key that a row may not see weighs exactly zero, so
// that a row's result depends neither on the rows beside it nor on how the work was divided.

// A softmax under way: m the largest score, l the sum of weights, acc the weighted sum of V.
struct Partial {
  float *m, *l, *acc;
  Partial(float* memory, int64_t rows) : m(memory), l(memory + rows), acc(memory + 2 * rows) {}
};
constexpr float kNone = -__builtin_inff();

inline void clear(const Partial& p, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r) p.m[r] = kNone, p.l[r] = 0;
  for (int64_t i = 0; i < rows * d; ++i) p.acc[i] = 0;
}

inline void scale_row(float* row, float by, int64_t d) {
  int64_t i = 0;
  for (; i + kW <= d; i += kW) F32::store(row + i, mul(F32::load(row + i), set1(by)));
  for (; i < d; ++i) row[i] *= by;
}

inline float exp_scalar(float x) {
  float out[kW];
  F32::store(out, vexp(set1(x)));
  return out[0];
}

// Where key j of the sequence lies; null where its block was freed.
inline const char* key_block(const KvView& kv, int64_t seq, int64_t j) {
  const int32_t block = kv.block_table[seq * kv.max_blocks + j / kv.block_size];
  return block < 0 ? nullptr : reinterpret_cast<const char*>(kv.base) + block * kv.block_stride;
}

// acc[r][c … c + C * W) += weight[r][j] * v[j], for T rows and n keys that lie d apart.
template <class E, int T, int C>
inline __attribute__((always_inline)) void weigh(const typename E::T* v, int64_t n, int64_t d, const float* weight,
                                                 float* acc) {
  V s[T][C];
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int c = 0; c < C; ++c) s[t][c] = F32::load(acc + t * d + c * kW);
  }
  for (int64_t j = 0; j < n; ++j) {
    V row[C];
    PINION_UNROLL for (int c = 0; c < C; ++c) row[c] = E::load(v + j * d + c * kW);
    PINION_UNROLL for (int t = 0; t < T; ++t) {
      const V p = set1(weight[t * kAttentionTile + j]);
      PINION_UNROLL for (int c = 0; c < C; ++c) s[t][c] = fma(p, row[c], s[t][c]);
    }
  }
  PINION_UNROLL for (int t = 0; t < T; ++t) {
    PINION_UNROLL for (int c = 0; c < C; ++c) F32::store(acc + t * d + c * kW, s[t][c]);
  }
}

template <class E>
inline void weigh_tail(const typename E::T* v, int64_t n, int64_t d, int lanes, int tokens, const float* weight,
                       float* acc) {
  for (int t = 0; t < tokens; ++t) {
    V s = F32::load_partial(acc + t * d, lanes);
    for (int64_t j = 0; j < n; ++j) {
      s = fma(set1(weight[t * kAttentionTile + j]), E::load_partial(v + j * d, lanes), s);
    }
    F32::store_partial(acc + t * d, s, lanes);
  }
}

// One tile's scores to weights in place, and the running softmax of one row with it.
inline void softmax_row(float* s, float* m, float* l, float* acc, int64_t d) {
  V largest = F32::load(s);
  for (int64_t j = kW; j < kAttentionTile; j += kW) largest = max(largest, F32::load(s + j));
  const float tile = hmax(largest);
  if (tile == kNone) {  // sees none of these keys
    for (int64_t j = 0; j < kAttentionTile; j += kW) F32::store(s + j, zero());
    return;
  }
  const float next = *m > tile ? *m : tile;
  if (next != *m) {
    const float by = *m == kNone ? 0 : exp_scalar(*m - next);
    *l *= by;
    scale_row(acc, by, d);
    *m = next;
  }
  V sum = zero();
  for (int64_t j = 0; j < kAttentionTile; j += kW) {
    const V p = vexp(sub(F32::load(s + j), set1(next)));
    F32::store(s + j, p);
    sum = add(sum, p);
  }
  *l += hsum(sum);
}

inline int64_t first_visible(int64_t position, int64_t window) {
  return window > 0 ? most(0, position - window + 1) : 0;
}

// The soft cap and ALiBi's bias on the scores of the keys base + first … base + last; the query sits at `position`.
inline void adjust_scores(const AttentionTask& task, int64_t head, int64_t position, int64_t base, int64_t first,
                          int64_t last, float* row) {
  if (task.softcap > 0) {
    for (int64_t j = first; j < last; j += kW) {
      const int lanes = static_cast<int>(least(kW, last - j));
      const V s = F32::load_partial(row + j, lanes);
      F32::store_partial(row + j, mul(vtanh(mul(s, set1(1 / task.softcap))), set1(task.softcap)), lanes);
    }
  }
  if (task.slopes != nullptr) {
    const float slope = task.slopes[head];
    for (int64_t j = first; j < last; ++j) row[j] += slope * static_cast<float>(base + j - position);
  }
}

// The keys [lo, hi) of one split into `out`. q: the block's scaled query rows [rows][d]; s: scores [rows][tile].
template <class E>
inline void attend(const AttentionTask& task, const AttentionBlock& b, int64_t lo, int64_t hi, const float* q, float* s,
                   const Partial& out) {
  using T = typename E::T;
  const KvView& kv = *task.kv;
  const int64_t d = task.head_dim, group = task.heads / task.kv_heads, rows = (b.last - b.first) * group;
  for (int64_t base = lo / kAttentionTile * kAttentionTile; base < hi; base += kAttentionTile) {
    const int64_t j0 = most(lo, base), j1 = least(hi, base + kAttentionTile);
    for (int64_t i = 0; i < rows * kAttentionTile; i += kW) F32::store(s + i, set1(kNone));
    for (int64_t j = j0, n = 0; j < j1; j += n) {
      const int64_t slot = j % kv.block_size;
      n = least(kv.block_size - slot, j1 - j);
      const char* block = key_block(kv, b.seq, j);
      if (block == nullptr) continue;
      const T* keys = reinterpret_cast<const T*>(block) + (b.kv_head * kv.block_size + slot) * d;
      for (int64_t r = 0; r < rows; r += kTile) {
        with_tile(least(kTile, rows - r), [&]<int kT>() {
          for (int64_t key = 0; key < n; key += 4) {
            const T* w[4];
            four_rows(keys, d, key, n, w);
            V sums[kT][4];
            PINION_UNROLL for (int t = 0; t < kT; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = zero();
            dot_tile<E, kT, 0>(w, q + r * d, d, d, nullptr, sums);
            for (int t = 0; t < kT; ++t) {
              float four[4];
              hsum4(sums[t][0], sums[t][1], sums[t][2], sums[t][3], four);
              float* to = s + (r + t) * kAttentionTile + (j - base) + key;
              for (int64_t i = 0; i < least(4, n - key); ++i) to[i] = four[i];
            }
          }
        });
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = task.positions[b.first + r / group];
      float* row = s + r * kAttentionTile;
      if (task.softcap > 0 || task.slopes != nullptr)
        adjust_scores(task, b.kv_head * group + r % group, position, base, j0 - base, j1 - base, row);
      for (int64_t j = most(0, position + 1 - base); j < j1 - base; ++j) row[j] = kNone;
      for (int64_t j = 0, n = least(kAttentionTile, first_visible(position, task.window) - base); j < n; ++j)
        row[j] = kNone;
      softmax_row(row, out.m + r, out.l + r, out.acc + r * d, d);
    }
    for (int64_t j = j0, n = 0; j < j1; j += n) {
      const int64_t slot = j % kv.block_size;
      n = least(kv.block_size - slot, j1 - j);
      const char* block = key_block(kv, b.seq, j);
      if (block == nullptr) continue;
      const T* values = reinterpret_cast<const T*>(block + kv.v_offset) + (b.kv_head * kv.block_size + slot) * d;
      for (int64_t r = 0; r < rows; r += kTile) {
        const float* p = s + r * kAttentionTile + (j - base);
        float* acc = out.acc + r * d;
        with_tile(least(kTile, rows - r), [&]<int kT>() {
          int64_t c = 0;
          for (; c + 4 * kW <= d; c += 4 * kW) weigh<E, kT, 4>(values + c, n, d, p, acc + c);
          for (; c + kW <= d; c += kW) weigh<E, kT, 1>(values + c, n, d, p, acc + c);
          if (c < d) weigh_tail<E>(values + c, n, d, static_cast<int>(d - c), kT, p, acc + c);
        });
      }
    }
  }
}

inline void scaled_queries(const AttentionTask& task, const AttentionBlock& b, float* q) {
  const int64_t d = task.head_dim, group = task.heads / task.kv_heads;
  for (int64_t t = b.first; t < b.last; ++t) {
    const float* from = task.q + (t * task.heads + b.kv_head * group) * d;
    for (int64_t i = 0; i < group * d; ++i) *q++ = from[i] * task.scale;
  }
}

// total takes in `next`, a later split.
inline void merge(const Partial& total, const Partial& next, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r) {
    if (next.m[r] == kNone) continue;
    float *a = total.acc + r * d, *b = next.acc + r * d;
    const float m = total.m[r] > next.m[r] ? total.m[r] : next.m[r];
    const float by_a = total.m[r] == kNone ? 0 : exp_scalar(total.m[r] - m), by_b = exp_scalar(next.m[r] - m);
    total.m[r] = m;
    total.l[r] = total.l[r] * by_a + next.l[r] * by_b;
    for (int64_t i = 0; i < d; ++i) a[i] = a[i] * by_a + b[i] * by_b;
  }
}

inline void write_rows(const AttentionTask& task, const AttentionBlock& b, const Partial& total) {
  const int64_t d = task.head_dim, group = task.heads / task.kv_heads;
  for (int64_t t = b.first, r = 0; t < b.last; ++t) {
    for (int64_t h = 0; h < group; ++h, ++r) {
      float* y = task.y + (t * task.heads + b.kv_head * group + h) * d;
      float by = total.l[r] > 0 ? 1 / total.l[r] : 0;
      if (task.sinks != nullptr) {  // one more term of the softmax's sum, relative to the larger of both maxima
        const float sink = task.sinks[b.kv_head * group + h], m = sink > total.m[r] ? sink : total.m[r];
        const float own = exp_scalar(total.m[r] - m);
        by = own / (total.l[r] * own + exp_scalar(sink - m));
      }
      for (int64_t i = 0; i < d; ++i) y[i] = total.acc[r * d + i] * by;
    }
  }
}

// The keys that any row of the block sees.
inline void visible(const AttentionTask& task, const AttentionBlock& b, int64_t& lo, int64_t& hi) {
  lo = first_visible(task.positions[b.first], task.window), hi = 0;
  for (int64_t t = b.first; t < b.last; ++t) {
    lo = least(lo, first_visible(task.positions[t], task.window));
    hi = most(hi, task.positions[t] + 1);
  }
}

inline void attend_split(const AttentionTask& task, const AttentionBlock& b, int64_t split, const float* q, float* s,
                         const Partial& out) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads);
  int64_t lo, hi;
  visible(task, b, lo, hi);
  lo = most(lo, split * kAttentionSplit), hi = least(hi, (split + 1) * kAttentionSplit);
  clear(out, rows, task.head_dim);
  if (lo >= hi) return;
  with_type(task.kv->dtype, [&]<class E>(E) { attend<E>(task, b, lo, hi, q, s, out); });
}

inline void attention_split(const AttentionTask& task, const AttentionBlock& b, int64_t split, float* partial,
                            float* scratch) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads);
  scaled_queries(task, b, scratch);
  attend_split(task, b, split, scratch, scratch + rows * task.head_dim, Partial(partial, rows));
}

inline void attention_merge(const AttentionTask& task, const AttentionBlock& b, int64_t splits, float* partials) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads), size = attention_partial(rows, task.head_dim);
  const Partial total(partials, rows);
  for (int64_t i = 1; i < splits; ++i) merge(total, Partial(partials + i * size, rows), rows, task.head_dim);
  write_rows(task, b, total);
}

inline void attention(const AttentionTask& task, const AttentionBlock& b, float* scratch) {
  const int64_t d = task.head_dim, rows = (b.last - b.first) * (task.heads / task.kv_heads);
  float *q = scratch, *s = q + rows * d;
  const Partial total(s + rows * kAttentionTile, rows), next(total.acc + rows * d, rows);
  scaled_queries(task, b, q);
  int64_t lo, hi;
  visible(task, b, lo, hi);
  const int64_t first = lo / kAttentionSplit, last = (hi - 1) / kAttentionSplit;
  attend_split(task, b, first, q, s, total);
  for (int64_t split = first + 1; split <= last; ++split) {
    attend_split(task, b, split, q, s, next);
    merge(total, next, rows, d);
  }
  write_rows(task, b, total);
}
