// exp and the activations, to about 2 units in the last place of f32.

// Zero below -87 (so that masked scores weigh exactly nothing), finite above 88.
inline V vexp(V x) {
  const V n = round_nearest(mul(min(max(x, set1(-87.5f)), set1(88.3f)), set1(1.44269504f)));
  const V clamped = min(max(x, set1(-87.5f)), set1(88.3f));
  V r = fma(n, set1(-0.693359375f), clamped);  // ln 2 in two parts
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(mul(p, r), r, r), set1(1));
  return zero_where_less(x, set1(-87), scale_pow2(p, n));
}

inline V sigmoid(V x) {
  return div(set1(1), add(set1(1), vexp(sub(zero(), x))));
}

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
inline V verf(V x) {
  const V a = absolute(x), t = div(set1(1), fma(set1(0.3275911f), a, set1(1)));
  V p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  return negative_where(x, sub(set1(1), mul(mul(p, t), vexp(sub(zero(), mul(a, a))))));
}

inline V vtanh(V x) {  // absolute error 1e-7
  return sub(mul(set1(2), sigmoid(mul(set1(2), x))), set1(1));
}
inline V silu(V x) {
  return mul(x, sigmoid(x));
}
inline V gelu(V x) {
  return mul(mul(set1(0.5f), x), add(set1(1), verf(mul(x, set1(0.70710678f)))));
}
inline V gelu_tanh(V x) {  // (1 + tanh u) / 2 is sigmoid(2 u)
  return mul(x, sigmoid(mul(set1(1.5957691216f), mul(x, fma(mul(set1(0.044715f), x), x, set1(1))))));
}
inline V quick_gelu(V x) {
  return mul(x, sigmoid(mul(set1(1.702f), x)));
}
inline V relu(V x) {
  return max(x, zero());
}

// Calls f with the activation as a function of one vector.
template <class F>
inline __attribute__((always_inline)) void with_activation(Activation act, F&& f) {
  switch (act) {
    case Activation::silu:
      return f([](V x) { return silu(x); });
    case Activation::gelu:
      return f([](V x) { return gelu(x); });
    case Activation::gelu_tanh:
      return f([](V x) { return gelu_tanh(x); });
    case Activation::relu:
      return f([](V x) { return relu(x); });
    case Activation::relu2:
      return f([](V x) { return mul(relu(x), relu(x)); });
    case Activation::quick_gelu:
      return f([](V x) { return quick_gelu(x); });
  }
}
