// What mixture-of-experts adds to the linears: epilogues over a row's interleaved gate and up sums, and the weighted
// sum of the experts' outputs.

// raw holds gate and up side by side, n pairs; gate and up are scratch of n floats each.
inline void split_pairs(const float* raw, int64_t n, float* gate, float* up) {
  for (int64_t i = 0; i < n; ++i) gate[i] = raw[2 * i], up[i] = raw[2 * i + 1];
}

inline void clamped_swiglu(const float* gate, const float* up, float limit, float* y, int64_t n) {
  const V most_v = set1(limit), least_v = set1(-limit);
  each_vector(n, [&](int64_t i, int lanes) {
    const V g = min(load_lanes<F32>(gate + i, lanes), most_v);
    const V u = max(min(load_lanes<F32>(up + i, lanes), most_v), least_v);
    store_lanes<F32>(y + i, mul(mul(add(u, set1(1)), g), sigmoid(mul(set1(1.702f), g))), lanes);
  });
}

// y = sum over j of weights[j] * h[j], in this order; then shared * factor is added (null: none).
inline void weighted_sum(const float* h, const float* weights, int64_t top_k, int64_t width, const float* shared,
                         float factor, float* y) {
  each_vector(width, [&](int64_t i, int lanes) {
    V sum = zero();
    for (int64_t j = 0; j < top_k; ++j) sum = fma(set1(weights[j]), load_lanes<F32>(h + j * width + i, lanes), sum);
    if (shared != nullptr) sum = fma(set1(factor), load_lanes<F32>(shared + i, lanes), sum);
    store_lanes<F32>(y + i, sum, lanes);
  });
}
