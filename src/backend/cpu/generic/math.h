// exp and the activations, to about 2 units in the last place of f32.

// x = n ln 2 + r, |r| <= ln 2 / 2.
inline V exp_remainder(V x, V n) {
  return fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));  // ln 2 in two parts
}
inline V exp_minus_1(V r) {  // e^r - 1
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return fma(mul(p, r), r, r);
}

// Zero below -87 (so that masked scores weigh exactly nothing), finite above 88.
inline V vexp(V x) {
  const V clamped = min(max(x, set1(-87.5f)), set1(88.3f));
  const V n = round_nearest(mul(clamped, set1(1.44269504f)));
  return zero_where_less(x, set1(-87), scale_pow2(add(exp_minus_1(exp_remainder(clamped, n)), set1(1)), n));
}

inline V sigmoid(V x) {
  return div(set1(1), add(set1(1), vexp(sub(zero(), x))));
}

// tanh x = (e^2x - 1) / (e^2x + 1), with e^2x - 1 = 2^n (e^r - 1) + (2^n - 1): no difference of near numbers where x is
// small. Beyond |x| = 10 it is 1 in f32.
inline V vtanh(V x) {
  const V x2 = mul(set1(2), min(max(x, set1(-10)), set1(10)));
  const V n = round_nearest(mul(x2, set1(1.44269504f)));
  const V e = add(scale_pow2(exp_minus_1(exp_remainder(x2, n)), n), sub(scale_pow2(set1(1), n), set1(1)));
  return div(e, add(e, set1(2)));
}

// erfc(|x| / sqrt 2) / 2, the normal distribution's tail: e^(-x^2/2) t P(t), t = 1 / (1 + 0.4 |x| / sqrt 2), P fitted
// to a relative error of 6e-8. What the exponent's rounding adds grows with x^2: 1.3e-6 at 4.
inline V normal_tail(V x) {
  const V t = div(set1(1), fma(set1(0.28284271f), absolute(x), set1(1)));
  V p = set1(0.020027176f);
  p = fma(p, t, set1(-0.067209322f));
  p = fma(p, t, set1(0.035815166f));
  p = fma(p, t, set1(0.051153668f));
  p = fma(p, t, set1(0.034845379f));
  p = fma(p, t, set1(0.098877451f));
  p = fma(p, t, set1(0.10037546f));
  p = fma(p, t, set1(0.11330281f));
  p = fma(p, t, set1(0.11281225f));
  return mul(mul(p, t), vexp(mul(mul(set1(-0.5f), x), x)));
}

inline V silu(V x) {
  return mul(x, sigmoid(x));
}
// x times the distribution up to x: x - x tail(x), and on the negative side, where 1 - tail would cancel, x tail(|x|).
inline V gelu(V x) {
  return sub(max(x, zero()), mul(min(absolute(x), set1(20)), normal_tail(x)));  // 20: infinity times 0 is none
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
