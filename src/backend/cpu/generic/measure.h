// What the machine can do at best: loads that only add up, and multiply-adds that never leave the registers.

template <int kStreams, bool kPrefetch>
inline float read_streams(const std::byte* data, int64_t bytes) {
  constexpr int64_t kPiece = 64;
  const int64_t run = bytes / kStreams / kPiece * kPiece;
  V s[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < run; i += kPiece) {
    PINION_UNROLL for (int r = 0; r < kStreams; ++r) {
      const auto* p = reinterpret_cast<const float*>(data + r * run + i);
      if constexpr (kPrefetch) __builtin_prefetch(reinterpret_cast<const char*>(p) + 8192, 0, 2);
      PINION_UNROLL for (int c = 0; c < 16 / kW; ++c) s[(r + c) % 4] = add(s[(r + c) % 4], F32::load(p + c * kW));
    }
  }
  return hsum(add(add(s[0], s[1]), add(s[2], s[3])));
}

inline float read(const std::byte* data, int64_t bytes, int64_t streams, bool prefetch) {
  switch (streams) {
    case 2:
      return prefetch ? read_streams<2, true>(data, bytes) : read_streams<2, false>(data, bytes);
    case 4:
      return prefetch ? read_streams<4, true>(data, bytes) : read_streams<4, false>(data, bytes);
    case 8:
      return prefetch ? read_streams<8, true>(data, bytes) : read_streams<8, false>(data, bytes);
    default:
      return prefetch ? read_streams<1, true>(data, bytes) : read_streams<1, false>(data, bytes);
  }
}

inline float multiply_add(int64_t rounds) {
  constexpr int kChains = 12;  // latency 4 at two a cycle, with room; fits the 16 registers of the smaller ISAs
  V s[kChains];
  PINION_UNROLL for (int i = 0; i < 8; ++i) s[i] = set1(static_cast<float>(i));
  PINION_UNROLL for (int i = 8; i < kChains; ++i) s[i] = set1(static_cast<float>(i));
  const V a = set1(0.999f), b = set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
    s[0] = fma(s[0], a, b), s[1] = fma(s[1], a, b), s[2] = fma(s[2], a, b), s[3] = fma(s[3], a, b);
    s[4] = fma(s[4], a, b), s[5] = fma(s[5], a, b), s[6] = fma(s[6], a, b), s[7] = fma(s[7], a, b);
    s[8] = fma(s[8], a, b), s[9] = fma(s[9], a, b), s[10] = fma(s[10], a, b), s[11] = fma(s[11], a, b);
  }
  V sum = s[0];
  for (int i = 1; i < kChains; ++i) sum = add(sum, s[i]);
  return hsum(sum);
}
