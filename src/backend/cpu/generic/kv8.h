// A KV cache in 8 bits: one head's key or value to codes and back. fp8 has a scale per layer; int8 one per head and
// token, f32 number head * block_size + slot after a plane's codes (a plane: a block's K, or its V).

inline bool is_kv8(DType type) {
  return type == DType::f8_e4m3 || type == DType::i8;
}

inline uint32_t bits_of_float(float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits;
}

// To nearest even, saturating; NaN stays NaN.
inline uint8_t e4m3_code(float v) {
  const uint32_t u = bits_of_float(v), a = u & 0x7fffffffu, sign = (u >> 24) & 0x80;
  uint32_t code;
  if (a > 0x7f800000u) {
    code = 0x7f;
  } else if (a >= 0x43e00000u) {  // 448 and more
    code = 0x7e;
  } else if (a < 0x3c800000u) {  // below 2^-6: multiples of 2^-9, which adding 1.5 * 2^23 rounds to
    code = bits_of_float(float_of_bits(a) * 512.0f + 12582912.0f) & 0xff;
  } else {
    code = (a - (120u << 23) + 0x7ffffu + ((a >> 20) & 1)) >> 20;
  }
  return static_cast<uint8_t>(sign | code);
}

inline void store_head8(const KvView& kv, char* plane, int64_t kv_heads, int64_t d, int64_t head, int64_t slot,
                        float scale, const float* x) {
  const int64_t row = head * kv.block_size + slot;
  auto* to = reinterpret_cast<uint8_t*>(plane) + row * d;
  if (kv.dtype == DType::f8_e4m3) {
    for (int64_t i = 0; i < d; ++i) to[i] = e4m3_code(x[i] / scale);
    return;
  }
  float absmax = 0;
  for (int64_t i = 0; i < d; ++i) {
    const float a = x[i] < 0 ? -x[i] : x[i];
    absmax = a > absmax ? a : absmax;
  }
  // As quant/formats/kv_cache has it, to the bit: a product with 1 / own would round other ties the other way.
  float own = absmax / 127.0f;
  own = absmax > 0 ? (own > 1e-30f ? own : 1e-30f) : 1.0f;
  float rounded[kW];
  for (int64_t i = 0; i < d; i += kW) {
    const int lanes = static_cast<int>(least(kW, d - i));
    F32::store(rounded, round_nearest(div(F32::load_partial(x + i, lanes), set1(own))));
    for (int l = 0; l < lanes; ++l) to[i + l] = static_cast<uint8_t>(static_cast<int8_t>(rounded[l]));
  }
  __builtin_memcpy(plane + kv_heads * kv.block_size * d + row * 4, &own, sizeof own);
}

inline void load_head8(const KvView& kv, const char* plane, int64_t kv_heads, int64_t d, int64_t head, int64_t slot,
                       float scale, float* out) {
  const int64_t row = head * kv.block_size + slot, whole = d / 32 * 32;
  const auto* from = reinterpret_cast<const uint8_t*>(plane) + row * d;
  if (kv.dtype == DType::f8_e4m3) {
    for (int64_t i = 0; i < whole; i += 32) decode_fp8(from + i, scale, out + i);
    for (int64_t i = whole; i < d; ++i) {
      const uint32_t b = from[i];
      out[i] = float_of_bits((b & 0x80) << 24 | (b & 0x7f) << 20) * 0x1p120f * scale;
    }
    return;
  }
  float own;
  __builtin_memcpy(&own, plane + kv_heads * kv.block_size * d + row * 4, sizeof own);
  const auto* codes = reinterpret_cast<const int8_t*>(from);
  for (int64_t i = 0; i < whole; i += 16) decode_int8(codes + i, own, 0, out + i);
  for (int64_t i = whole; i < d; ++i) out[i] = static_cast<float>(codes[i]) * own;
}
