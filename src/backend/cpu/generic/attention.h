// Attention over the paged cache, flash style: scores of a tile of 64 keys for all query rows of a block, a running
// softmax, and the weighted sum of V. A block's rows are (token, head of the group), so that the heads of one KV head
// share its loads; keys and values of a tile are turned to f32 columns once for all of them (tile.h). Tiles and splits
// lie at fixed positions and a key that a row may not see weighs exactly zero, so that a row's result depends neither
// on the rows beside it nor on how the work was divided.

constexpr float kNone = -__builtin_inff();
constexpr float kLeast = -3e38f;  // the maximum of no scores: finite, so that differences from it are numbers

// A softmax under way: m the largest score, l the sum of weights, acc the weighted sum of V [rows][ld].
struct Partial {
  float *m, *l, *acc;
  int64_t ld;
  Partial(float* memory, int64_t rows, int64_t d)
      : m(memory), l(memory + rows), acc(memory + 2 * rows), ld(attention_width(d)) {}
};

inline void clear(const Partial& p, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) p.m[r] = kLeast, p.l[r] = 0;
  for (int64_t i = 0; i < rows * p.ld; ++i) p.acc[i] = 0;
}

constexpr int kFewQueries = least(8, kTile);  // rows for which values are not worth a conversion of their own

// What one thread works in.
struct AttentionScratch {
  float *keys, *values;          // [d][kKeys] of one group of keys; [width / kKeys][tile][kKeys]
  float *scores, *q, *packed_q;  // [rows][tile]; [rows][d]; tile after tile [d][rows of the tile]
  float* by;                     // [rows]: by what the maximum's change scales a row
  float *total, *next;
  float* decoded;  // two tiles of keys and values, of a cache in 8 bits
  AttentionScratch(float* memory, int64_t rows, int64_t d)
      : keys(memory),
        values(keys + d * kMaxKeys),
        scores(values + kAttentionTile * attention_width(d)),
        q(scores + rows * kAttentionTile),
        packed_q(q + rows * d),
        by(packed_q + rows * d),
        total(by + rows),
        next(total + attention_partial(rows, d)),
        decoded(next + attention_partial(rows, d)) {}
};

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

// The keys [from, to) of the tile at `base`: null elsewhere, and where a block was freed.
template <class T>
struct KeyTile {
  const T* k[kAttentionTile];
  int64_t v_offset;      // from a key to its value, in bytes
  bool strided = false;  // all there, head_dim apart
  const T* value(int64_t i) const { return reinterpret_cast<const T*>(reinterpret_cast<const char*>(k[i]) + v_offset); }

  void list(const KvView& kv, const AttentionBlock& b, int64_t d, int64_t base, int64_t from, int64_t to) {
    v_offset = kv.v_offset;
    strided = from == base && to == base + kAttentionTile && base % kv.block_size + kAttentionTile <= kv.block_size;
    if (!strided) {
      for (int64_t i = 0; i < kAttentionTile; ++i) k[i] = nullptr;
    }
    for (int64_t j = from, n = 0; j < to; j += n) {
      const int64_t slot = j % kv.block_size;
      n = least(kv.block_size - slot, to - j);
      const char* block = key_block(kv, b.seq, j);
      const T* first = reinterpret_cast<const T*>(block) + (b.kv_head * kv.block_size + slot) * d;
      if (block == nullptr) strided = false;
      for (int64_t i = 0; i < n; ++i) k[j - base + i] = block == nullptr ? nullptr : first + i * d;
    }
  }

  // The same of a cache in 8 bits, as numbers in `memory`: the tile's keys, then its values.
  void decode(const KvView& kv, const AttentionBlock& b, int64_t kv_heads, int64_t d, int64_t base, int64_t from,
              int64_t to, float* memory) {
    v_offset = kAttentionTile * d * static_cast<int64_t>(sizeof(float));
    strided = from == base && to == base + kAttentionTile;
    for (int64_t i = 0; i < kAttentionTile; ++i) k[i] = nullptr;
    for (int64_t j = from; j < to; ++j) {
      const char* block = key_block(kv, b.seq, j);
      if (block == nullptr) strided = false;
      if (block == nullptr) continue;
      float *key = memory + (j - base) * d, *value = key + kAttentionTile * d;
      load_head8(kv, block, kv_heads, d, b.kv_head, j % kv.block_size, kv.k_scale, key);
      load_head8(kv, block + kv.v_offset, kv_heads, d, b.kv_head, j % kv.block_size, kv.v_scale, value);
      k[j - base] = key;
    }
  }
};

// Keys first … first + kKeys of a tile as columns; false when there is none. What stands for an absent key is masked
// later.
template <class E>
inline bool convert_keys(const KeyTile<typename E::T>& tile, int64_t first, int64_t d, float* out) {
  using T = typename E::T;
  if (tile.strided) {
    convert<E, kKeys>(StridedRows<T>(tile.k[first], d), d, out);
    convert<E, kKeys>(StridedRows<T>(tile.k[first + kW], d), d, out + kW);
    return true;
  }
  const T* rows[kKeys];
  const T* some = nullptr;
  for (int64_t i = 0; i < kKeys; ++i) some = tile.k[first + i] != nullptr ? tile.k[first + i] : some;
  if (some == nullptr) return false;
  for (int64_t i = 0; i < kKeys; ++i) rows[i] = tile.k[first + i] != nullptr ? tile.k[first + i] : some;
  convert<E, kKeys>(ListedRows<T>{rows}, d, out);
  convert<E, kKeys>(ListedRows<T>{rows + kW}, d, out + kW);
  return true;
}

// Columns c … c + W of a value; past d, and where it is absent, zero.
template <class E>
inline __attribute__((always_inline)) V load_value(const typename E::T* v, bool present, int64_t c, int64_t d) {
  if (!present || c >= d) return zero();
  return c + kW <= d ? E::load(v + c) : E::load_partial(v + c, static_cast<int>(d - c));
}

// Fetches key i of the tile that comes next, and its value.
template <class T>
inline void fetch(const KeyTile<T>& next, int64_t i, int64_t d) {
  if (next.k[i] == nullptr) return;
  for (int64_t c = 0; c < d; c += 64 / sizeof(T)) {
    __builtin_prefetch(next.k[i] + c, 0, 2);
    __builtin_prefetch(next.value(i) + c, 0, 2);
  }
}

// acc = acc * by + the first n keys' values by their weights s, for few rows: values go from the cache into registers.
template <class E, int kT>
inline __attribute__((noinline)) void weigh_few(const KeyTile<typename E::T>& tile, const KeyTile<typename E::T>& next,
                                                int64_t n, int64_t d, const float* s, const float* by,
                                                const Partial& out) {
  for (int64_t c = 0; c < d; c += kKeys) {
    V sums[kT][2];
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      PINION_UNROLL for (int h = 0; h < 2; ++h) {
        sums[t][h] = mul(F32::load(out.acc + t * out.ld + c + h * kW), set1(by[t]));
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      if (c == 0) fetch(next, i, d);
      const bool present = tile.k[i] != nullptr;
      const V low = load_value<E>(tile.value(i), present, c, d),
              high = load_value<E>(tile.value(i), present, c + kW, d);
      PINION_UNROLL for (int t = 0; t < kT; ++t) {
        const V p = set1(s[t * kAttentionTile + i]);
        sums[t][0] = fma(p, low, sums[t][0]);
        sums[t][1] = fma(p, high, sums[t][1]);
      }
    }
    PINION_UNROLL for (int t = 0; t < kT; ++t) {
      PINION_UNROLL for (int h = 0; h < 2; ++h) F32::store(out.acc + t * out.ld + c + h * kW, sums[t][h]);
    }
  }
}

// The first n values of a tile to f32 columns: [width / kKeys][tile][kKeys].
template <class E>
inline void convert_values(const KeyTile<typename E::T>& tile, int64_t n, int64_t d, float* out) {
  for (int64_t c = 0; c < attention_width(d); c += kKeys, out += kAttentionTile * kKeys) {
    for (int64_t i = 0; i < n; ++i) {
      const bool present = tile.k[i] != nullptr;
      F32::store(out + i * kKeys, load_value<E>(tile.value(i), present, c, d));
      F32::store(out + i * kKeys + kW, load_value<E>(tile.value(i), present, c + kW, d));
    }
  }
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

// Scores of one group of keys, its `columns` [d][kKeys], for all rows: into s, kAttentionTile apart.
inline void score(const float* columns, int64_t rows, int64_t d, const float* packed_q, float* s) {
  each_tile<kTile>(rows, [&](int64_t first, int64_t size) {
    with_count<kTile>(size, [&]<int kT>() {
      for (int64_t k = 0; k < d; k += kSumBlock) {
        add_tile<2, kT>(columns + k * kKeys, packed_q + first * d + k * kT, least(kSumBlock, d - k), {}, k == 0,
                        s + first * kAttentionTile, kAttentionTile);
      }
    });
  });
}

// Scores to weights in place, for the keys base … base + tile of which row r sees [lo, hi) at most; the running softmax
// of every row takes them in, but acc: `by` says how that is to be scaled.
inline void softmax_rows(const AttentionTask& task, const AttentionBlock& b, int64_t base, int64_t lo, int64_t hi,
                         int64_t rows, float* s, const Partial& out, float* by) {
  const int64_t group = task.heads / task.kv_heads;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = task.positions[b.first + r / group];
    float* row = s + r * kAttentionTile;
    if (task.softcap > 0 || task.slopes != nullptr)
      adjust_scores(task, b.kv_head * group + r % group, position, base, lo - base, hi - base, row);
    for (int64_t j = most(0, least(hi, position + 1) - base); j < kAttentionTile; ++j) row[j] = kNone;
    for (int64_t j = 0, n = least(kAttentionTile, most(lo, first_visible(position, task.window)) - base); j < n; ++j)
      row[j] = kNone;
    V largest = F32::load(row);
    for (int64_t j = kW; j < kAttentionTile; j += kW) largest = max(largest, F32::load(row + j));
    by[r] = hmax(largest);
  }
  for (int64_t r = 0; r < rows; r += kW) {
    const int lanes = static_cast<int>(least(kW, rows - r));
    const V old = F32::load_partial(out.m + r, lanes), next = max(old, F32::load_partial(by + r, lanes));
    const V scale = vexp(sub(old, next));
    F32::store_partial(out.m + r, next, lanes);
    F32::store_partial(out.l + r, mul(F32::load_partial(out.l + r, lanes), scale), lanes);
    F32::store_partial(by + r, scale, lanes);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* row = s + r * kAttentionTile;
    const V m = set1(out.m[r]);
    V sum = zero();
    for (int64_t j = 0; j < kAttentionTile; j += kW) {
      const V p = vexp(sub(F32::load(row + j), m));
      F32::store(row + j, p);
      sum = add(sum, p);
    }
    out.l[r] += hsum(sum);
  }
}

// acc = acc * by + the first n keys' values by their weights s.
inline void weigh(int64_t n, int64_t rows, const float* s, const float* values, const float* by, const Partial& out) {
  for (int64_t c = 0; c < out.ld; c += kKeys) {
    each_tile<kTile>(rows, [&](int64_t first, int64_t size) {
      with_count<kTile>(size, [&]<int kT>() {
        float* acc = out.acc + first * out.ld + c;
        V sums[kT][2];
        PINION_UNROLL for (int t = 0; t < kT; ++t) {
          const V scale = set1(by[first + t]);
          sums[t][0] = mul(F32::load(acc + t * out.ld), scale);
          sums[t][1] = mul(F32::load(acc + t * out.ld + kW), scale);
        }
        multiply<2, kT, 1, kAttentionTile>(values + c * kAttentionTile, s + first * kAttentionTile, n, {}, sums);
        PINION_UNROLL for (int t = 0; t < kT; ++t) {
          F32::store(acc + t * out.ld, sums[t][0]);
          F32::store(acc + t * out.ld + kW, sums[t][1]);
        }
      });
    });
  }
}

// The keys [lo, hi) of one split into `out`.
template <class E>
inline void attend(const AttentionTask& task, const AttentionBlock& b, int64_t lo, int64_t hi,
                   const AttentionScratch& at, const Partial& out) {
  const int64_t d = task.head_dim, rows = (b.last - b.first) * (task.heads / task.kv_heads);
  KeyTile<typename E::T> tiles[2];
  const auto list = [&](int64_t base, int i) {
    const int64_t from = most(lo, base), to = least(hi, base + kAttentionTile);
    if constexpr (sizeof(typename E::T) == sizeof(float)) {
      if (is_kv8(task.kv->dtype)) {
        float* memory = at.decoded + i * 2 * kAttentionTile * d;
        return tiles[i].decode(*task.kv, b, task.kv_heads, d, base, from, to, memory);
      }
    }
    tiles[i].list(*task.kv, b, d, base, from, to);
  };
  int64_t base = lo / kAttentionTile * kAttentionTile;
  list(base, 0);
  for (int i = 0; base < hi; base += kAttentionTile, i ^= 1) {
    list(base + kAttentionTile, i ^ 1);
    const int64_t from = most(lo, base), to = least(hi, base + kAttentionTile);
    for (int64_t group = 0; group < kAttentionTile; group += kKeys) {
      if (convert_keys<E>(tiles[i], group, d, at.keys)) score(at.keys, rows, d, at.packed_q, at.scores + group);
    }
    for (int64_t j = from - base; j < to - base; ++j) {
      if (tiles[i].k[j] != nullptr) continue;  // freed: nobody should see it
      for (int64_t r = 0; r < rows; ++r) at.scores[r * kAttentionTile + j] = kNone;
    }
    softmax_rows(task, b, base, from, to, rows, at.scores, out, at.by);
    if (rows <= kFewQueries) {
      with_count<kFewQueries>(
          rows, [&]<int kT>() { weigh_few<E, kT>(tiles[i], tiles[i ^ 1], to - base, d, at.scores, at.by, out); });
      continue;
    }
    convert_values<E>(tiles[i], to - base, d, at.values);
    weigh(to - base, rows, at.scores, at.values, at.by, out);
  }
}

inline void scaled_queries(const AttentionTask& task, const AttentionBlock& b, const AttentionScratch& at) {
  const int64_t d = task.head_dim, group = task.heads / task.kv_heads;
  float* q = at.q;
  for (int64_t t = b.first; t < b.last; ++t) {
    const float* from = task.q + (t * task.heads + b.kv_head * group) * d;
    for (int64_t i = 0; i < group * d; ++i) *q++ = from[i] * task.scale;
  }
  pack_rows<kTile>(at.q, d, (b.last - b.first) * group, d, at.packed_q);
}

// total takes in `next`, a later split.
inline void merge(const Partial& total, const Partial& next, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    if (next.l[r] == 0) continue;
    float *a = total.acc + r * total.ld, *b = next.acc + r * total.ld;
    const float m = total.m[r] > next.m[r] ? total.m[r] : next.m[r];
    const float by_a = exp_scalar(total.m[r] - m), by_b = exp_scalar(next.m[r] - m);
    total.m[r] = m;
    total.l[r] = total.l[r] * by_a + next.l[r] * by_b;
    for (int64_t i = 0; i < total.ld; ++i) a[i] = a[i] * by_a + b[i] * by_b;
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
      for (int64_t i = 0; i < d; ++i) y[i] = total.acc[r * total.ld + i] * by;
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

inline void attend_split(const AttentionTask& task, const AttentionBlock& b, int64_t split, const AttentionScratch& at,
                         const Partial& out) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads);
  int64_t lo, hi;
  visible(task, b, lo, hi);
  lo = most(lo, split * kAttentionSplit), hi = least(hi, (split + 1) * kAttentionSplit);
  clear(out, rows);
  if (lo >= hi) return;
  with_type(task.kv->dtype, [&]<class E>(E) { attend<E>(task, b, lo, hi, at, out); });
}

inline void attention_split(const AttentionTask& task, const AttentionBlock& b, int64_t split, float* partial,
                            float* scratch) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads);
  const AttentionScratch at(scratch, rows, task.head_dim);
  scaled_queries(task, b, at);
  attend_split(task, b, split, at, Partial(partial, rows, task.head_dim));
}

inline void attention_merge(const AttentionTask& task, const AttentionBlock& b, int64_t splits, float* partials) {
  const int64_t rows = (b.last - b.first) * (task.heads / task.kv_heads), size = attention_partial(rows, task.head_dim);
  const Partial total(partials, rows, task.head_dim);
  for (int64_t i = 1; i < splits; ++i) merge(total, Partial(partials + i * size, rows, task.head_dim), rows);
  write_rows(task, b, total);
}

inline void attention(const AttentionTask& task, const AttentionBlock& b, float* scratch) {
  const int64_t d = task.head_dim, rows = (b.last - b.first) * (task.heads / task.kv_heads);
  const AttentionScratch at(scratch, rows, d);
  const Partial total(at.total, rows, d), next(at.next, rows, d);
  scaled_queries(task, b, at);
  int64_t lo, hi;
  visible(task, b, lo, hi);
  const int64_t first = lo / kAttentionSplit, last = (hi - 1) / kAttentionSplit;
  attend_split(task, b, first, at, total);
  for (int64_t split = first + 1; split <= last; ++split) {
    attend_split(task, b, split, at, next);
    merge(total, next, rows);
  }
  write_rows(task, b, total);
}
