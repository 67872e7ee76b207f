// What the tests of the case table share: the seed, the tunings to try, and how near is near enough.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "backend/all/op_cases.h"
#include "quant/number_formats.h"
#include "tensor/convert.h"

namespace pinion {

// A fresh seed each run, printed on failure; PINION_TEST_SEED repeats one.
inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* fixed = std::getenv("PINION_TEST_SEED");
    return fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : uint64_t{std::random_device{}()};
  }();
  return seed;
}

inline std::vector<Tuning> tunings_of(const Kernel& kernel, const Call& call, const DeviceInfo& info) {
  std::vector<Tuning> list{{}};
  if (kernel.tunings != nullptr) {
    for (const Tuning& t : kernel.tunings(call, info)) list.push_back(t);
  }
  return list;
}

// Differences are measured against the tensor's largest value: sums of f32 products cancel. Where that is far below the
// inputs, which are about 1, the whole tensor is such a difference of near numbers.
inline void expect_near(const std::vector<float>& want, const std::vector<float>& got, double tolerance) {
  ASSERT_EQ(want.size(), got.size());
  double largest = 1e-2;
  for (float v : want) largest = std::max<double>(largest, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(want[i], got[i], tolerance * largest) << "element " << i << " of " << want.size();
  }
}

// A number of the cache and what a unit in its last place is. Of int8 the codes are compared, whose scales lie between
// them: bytes that are equal, or one apart.
inline void expect_cache_near(const OpCase& c, const std::vector<std::byte>& want, const std::vector<std::byte>& got) {
  ASSERT_EQ(want.size(), got.size());
  if (c.kv_dtype == DType::i8) {
    int64_t other = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      other += std::abs(static_cast<int8_t>(want[i]) - static_cast<int8_t>(got[i])) > 1;
    }
    ASSERT_LE(other, std::ssize(want) / 1000) << "the low bytes of scales may differ, codes by one alone";
    return;
  }
  // A value that was computed before it was rounded may fall to the other side: one unit in the last place.
  const bool fp8 = c.kv_dtype == DType::f8_e4m3;
  const double unit = fp8                         ? 1.0 / 8
                      : c.kv_dtype == DType::bf16 ? 1.0 / 128
                      : c.kv_dtype == DType::f16  ? 1.0 / 1024
                                                  : 1e-5;
  const int64_t n = static_cast<int64_t>(want.size()) * 8 / bit_size(c.kv_dtype);
  const auto number = [&](const std::vector<std::byte>& cache, int64_t i) {
    return fp8 ? e4m3_to_f32(static_cast<uint8_t>(cache[i])) : load_f32(cache.data(), c.kv_dtype, i);
  };
  for (int64_t i = 0; i < n; ++i) {
    const float a = number(want, i), b = number(got, i);
    if (std::isnan(a) && std::isnan(b)) continue;
    ASSERT_NEAR(a, b, unit * std::abs(a) + (fp8 ? 2e-3 : 2e-6)) << "cache element " << i;
  }
}

}  // namespace pinion
