// What the tests of the case table share: the seed, the tunings to try, and how near is near enough.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "backend/all/op_cases.h"
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

// Differences are measured against the tensor's largest value: sums of f32 products cancel.
inline void expect_near(const std::vector<float>& want, const std::vector<float>& got, double tolerance) {
  ASSERT_EQ(want.size(), got.size());
  double largest = 1e-3;
  for (float v : want) largest = std::max<double>(largest, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(want[i], got[i], tolerance * largest) << "element " << i << " of " << want.size();
  }
}

inline void expect_cache_near(const OpCase& c, const std::vector<std::byte>& want, const std::vector<std::byte>& got) {
  // A value that was computed before it was rounded may fall to the other side: one unit in the last place.
  const double unit = c.kv_dtype == DType::bf16 ? 1.0 / 128 : c.kv_dtype == DType::f16 ? 1.0 / 1024 : 1e-5;
  const int64_t n = static_cast<int64_t>(want.size()) * 8 / bit_size(c.kv_dtype);
  for (int64_t i = 0; i < n; ++i) {
    const float a = load_f32(want.data(), c.kv_dtype, i), b = load_f32(got.data(), c.kv_dtype, i);
    if (std::isnan(a) && std::isnan(b)) continue;
    ASSERT_NEAR(a, b, unit * std::abs(a) + 2e-6) << "cache element " << i;
  }
}

}  // namespace pinion
