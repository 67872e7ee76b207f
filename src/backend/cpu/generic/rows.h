// Everything that works on one row at a time: norms, rotations, cache writes, element by element.

// Calls f(i, lanes) over [0, n) in vectors; f's loads and stores must honour lanes < W.
template <class E>
inline V load_lanes(const typename E::T* p, int lanes) {
  return lanes == kW ? E::load(p) : E::load_partial(p, lanes);
}
template <class E>
inline void store_lanes(typename E::T* p, V v, int lanes) {
  if (lanes == kW) {
    E::store(p, v);
  } else {
    E::store_partial(p, v, lanes);
  }
}
template <class F>
inline __attribute__((always_inline)) void each_vector(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + kW <= n; i += kW) f(i, kW);
  if (i < n) f(i, static_cast<int>(n - i));
}

inline void rms_norm(const float* x, FloatArray weight, int64_t width, float eps, float offset, float* y) {
  V s[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kW <= width; i += 4 * kW) {
    PINION_UNROLL for (int c = 0; c < 4; ++c) {
      const V v = F32::load(x + i + c * kW);
      s[c] = fma(v, v, s[c]);
    }
  }
  for (; i < width; i += kW) {
    const V v = load_lanes<F32>(x + i, static_cast<int>(least(kW, width - i)));
    s[0] = fma(v, v, s[0]);
  }
  const float squares = hsum(add(add(s[0], s[1]), add(s[2], s[3])));
  const V scale = set1(1 / __builtin_sqrtf(squares / static_cast<float>(width) + eps));
  with_type(weight.dtype, [&]<class E>(E) {
    const auto* w = static_cast<const typename E::T*>(weight.data);
    each_vector(width, [&](int64_t at, int lanes) {
      const V factor = add(load_lanes<E>(w + at, lanes), set1(offset));
      store_lanes<F32>(y + at, mul(mul(load_lanes<F32>(x + at, lanes), scale), factor), lanes);
    });
  });
}

inline void layer_norm(const LayerNorm& op, const float* x, FloatArray weight, FloatArray bias, int64_t group,
                       float* y) {
  const int64_t width = op.width, first = group % op.groups * width;
  V s = zero();
  each_vector(width, [&](int64_t i, int lanes) { s = add(s, load_lanes<F32>(x + i, lanes)); });
  const V mean = set1(hsum(s) / static_cast<float>(width));
  s = zero();
  each_vector(width, [&](int64_t i, int lanes) {  // lanes past the end would count as -mean: y holds them as zeros
    store_lanes<F32>(y + i, sub(load_lanes<F32>(x + i, lanes), mean), lanes);
    const V v = load_lanes<F32>(y + i, lanes);
    s = fma(v, v, s);
  });
  const V scale = set1(1 / __builtin_sqrtf(hsum(s) / static_cast<float>(width) + op.eps));
  with_type(weight.dtype, [&]<class E>(E) {
    const auto* w = static_cast<const typename E::T*>(weight.data) + first;
    each_vector(width, [&](int64_t i, int lanes) {
      const V factor = add(load_lanes<E>(w + i, lanes), set1(op.offset));
      store_lanes<F32>(y + i, mul(mul(load_lanes<F32>(y + i, lanes), scale), factor), lanes);
    });
  });
  if (bias.data == nullptr) return;
  with_type(bias.dtype, [&]<class E>(E) {
    const auto* b = static_cast<const typename E::T*>(bias.data) + first;
    each_vector(width, [&](int64_t i, int lanes) {
      store_lanes<F32>(y + i, add(load_lanes<F32>(y + i, lanes), load_lanes<E>(b + i, lanes)), lanes);
    });
  });
}

inline void add_rows(const float* a, const float* b, float scale, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int lanes) {  // with a scale of 1 the product is exact
    store_lanes<F32>(y + i, fma(load_lanes<F32>(b + i, lanes), set1(scale), load_lanes<F32>(a + i, lanes)), lanes);
  });
}

inline void act(Activation activation, const float* x, float* y, int64_t n) {
  with_activation(activation, [&](auto f) {
    each_vector(n, [&](int64_t i, int lanes) { store_lanes<F32>(y + i, f(load_lanes<F32>(x + i, lanes)), lanes); });
  });
}

inline void gated_act(Activation activation, const float* gate, const float* up, float* y, int64_t n) {
  with_activation(activation, [&](auto f) {
    each_vector(n, [&](int64_t i, int lanes) {
      store_lanes<F32>(y + i, mul(f(load_lanes<F32>(gate + i, lanes)), load_lanes<F32>(up + i, lanes)), lanes);
    });
  });
}

inline void soft_cap(const float* x, float scale, float cap, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int lanes) {
    const V v = mul(load_lanes<F32>(x + i, lanes), set1(scale));
    store_lanes<F32>(y + i, cap > 0 ? mul(vtanh(mul(v, set1(1 / cap))), set1(cap)) : v, lanes);
  });
}

inline void embed(FloatArray weight, int64_t row, int64_t width, float scale, float* y) {
  with_type(weight.dtype, [&]<class E>(E) {
    const auto* w = static_cast<const typename E::T*>(weight.data) + row * width;
    each_vector(width, [&](int64_t i, int lanes) {
      store_lanes<F32>(y + i, mul(load_lanes<E>(w + i, lanes), set1(scale)), lanes);
    });
  });
}

// cos and sin are the token's; x and y may be the same.
inline void rotate_head(const float* x, const float* cos, const float* sin, int64_t head_dim, int64_t rotary_dim,
                        bool interleaved, float* y) {
  const int64_t half = rotary_dim / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cos[i] - b * sin[i];
      y[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  } else {
    each_vector(half, [&](int64_t i, int lanes) {
      const V a = load_lanes<F32>(x + i, lanes), b = load_lanes<F32>(x + half + i, lanes);
      const V c = load_lanes<F32>(cos + i, lanes), s = load_lanes<F32>(sin + i, lanes);
      store_lanes<F32>(y + i, sub(mul(a, c), mul(b, s)), lanes);
      store_lanes<F32>(y + half + i, fma(a, s, mul(b, c)), lanes);
    });
  }
  if (y != x) {
    for (int64_t i = rotary_dim; i < head_dim; ++i) y[i] = x[i];
  }
}

inline void rope(const Rope& op, const RopeTable& table, const float* x, float* y, int64_t token) {
  const int64_t half = op.rotary_dim / 2;
  for (int64_t h = 0; h < op.heads; ++h) {
    const int64_t at = (token * op.heads + h) * op.head_dim;
    rotate_head(x + at, table.cos + token * half, table.sin + token * half, op.head_dim, op.rotary_dim, op.interleaved,
                y + at);
  }
}

// One head's key or, with kv.v_offset, value.
inline void write_head(const KvView& kv, int64_t seq, int64_t position, int64_t kv_heads, int64_t head,
                       int64_t head_dim, const float* x, int64_t offset, float scale) {
  const int32_t block = kv.block_table[seq * kv.max_blocks + position / kv.block_size];
  if (block < 0) return;  // freed behind the window: nobody will read it
  char* base = reinterpret_cast<char*>(kv.base) + block * kv.block_stride + offset;
  const int64_t slot = position % kv.block_size;
  if (is_kv8(kv.dtype)) return store_head8(kv, base, kv_heads, head_dim, head, slot, scale, x);
  with_type(kv.dtype, [&]<class E>(E) {
    auto* to = reinterpret_cast<typename E::T*>(base) + (head * kv.block_size + slot) * head_dim;
    each_vector(head_dim, [&](int64_t i, int lanes) { store_lanes<E>(to + i, load_lanes<F32>(x + i, lanes), lanes); });
  });
}

inline void write_kv(const KvView& kv, int64_t seq, int64_t position, int64_t kv_heads, int64_t head_dim,
                     const float* k, const float* v) {
  for (int64_t h = 0; h < kv_heads; ++h) {
    write_head(kv, seq, position, kv_heads, h, head_dim, k + h * head_dim, 0, kv.k_scale);
    write_head(kv, seq, position, kv_heads, h, head_dim, v + h * head_dim, kv.v_offset, kv.v_scale);
  }
}

inline void rope_kv_write(const RopeKvTask& task, int64_t seq, int64_t token) {
  const RopeKvWrite& op = *task.op;
  const int64_t d = op.head_dim, half = op.rotary_dim / 2, position = task.positions[token];
  const float* cos = half > 0 ? task.table->cos + token * half : nullptr;
  const float* sin = half > 0 ? task.table->sin + token * half : nullptr;
  const float* row = task.qkv + token * (op.heads + 2 * op.kv_heads) * d;
  float* q = task.q + token * op.heads * d;
  for (int64_t h = 0; h < op.heads; ++h) {
    const float* x = row + h * d;
    if (op.qk_norm) rms_norm(x, task.q_norm, d, op.eps, op.offset, q + h * d), x = q + h * d;
    rotate_head(x, cos, sin, d, op.rotary_dim, op.interleaved, q + h * d);
  }
  constexpr int64_t kMaxHead = 1024;  // why_not refuses wider heads
  float k[kMaxHead];
  for (int64_t h = 0; h < op.kv_heads; ++h) {
    const float* x = row + (op.heads + h) * d;
    if (op.qk_norm) rms_norm(x, task.k_norm, d, op.eps, op.offset, k), x = k;
    rotate_head(x, cos, sin, d, op.rotary_dim, op.interleaved, k);
    write_head(*task.kv, seq, position, op.kv_heads, h, d, k, 0, task.kv->k_scale);
    write_head(*task.kv, seq, position, op.kv_heads, h, d, row + (op.heads + op.kv_heads + h) * d, task.kv->v_offset,
               task.kv->v_scale);
  }
}
