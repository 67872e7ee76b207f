// The CPU device itself; what its kernels compute is checked against the reference in backend/all.
#include <gtest/gtest.h>

#include <cmath>

#include "backend/cpu/ceilings.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_stream.h"
#include "backend/cpu/kernel_list.h"

namespace pinion {
namespace {

TEST(CpuBackend, RefusesWhatItLacks) {
  const auto isa = cpu_backend().open({.isa = "neon"});
  ASSERT_FALSE(isa.ok());
  EXPECT_EQ(isa.error().code, Errc::invalid_argument);
  EXPECT_NE(isa.error().message.find("scalar"), std::string::npos) << isa.error().message;
  EXPECT_FALSE(cpu_backend().open({.ordinal = 1}).ok());
  EXPECT_FALSE(cpu_backend().open({.threads = -1}).ok());
}

TEST(CpuBackend, EveryIsaOpensAndSaysSo) {
  for (const cpu::IsaKernels* isa : cpu::available_isas()) {
    const auto device = cpu_backend().open({.threads = 3, .isa = std::string(isa->name)});
    ASSERT_TRUE(device.ok()) << device.error().message;
    EXPECT_EQ((*device)->info().isa, isa->name);
    EXPECT_EQ((*device)->info().threads, 3);
  }
}

TEST(CpuBackend, MemoryIsLazyAlignedAndFinite) {
  const auto device = cpu_backend().open({});
  ASSERT_TRUE(device.ok());
  const auto large = (*device)->allocate(size_t{64} << 30);  // more than many machines have: only touched pages count
  ASSERT_TRUE(large.ok()) << large.error().message;
  (*large)->data()[(size_t{64} << 30) - 1] = std::byte{1};
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*large)->data()) % 64, 0u);
  EXPECT_TRUE((*device)->allocate(0).ok());
  const auto absurd = (*device)->allocate(SIZE_MAX);
  ASSERT_FALSE(absurd.ok());
  EXPECT_EQ(absurd.error().code, Errc::exhausted);
}

TEST(CpuBackend, EveryOpHasAKernelWithAUniqueName) {
  std::vector<std::string_view> names;
  for (int kind = 0; kind < kOpKinds; ++kind) {
    const auto kernels = cpu_backend().kernels(static_cast<OpKind>(kind));
    EXPECT_FALSE(kernels.empty()) << kind;
    for (const Kernel& k : kernels) {
      EXPECT_EQ(static_cast<int>(k.op), kind) << k.name;
      EXPECT_EQ(std::count(names.begin(), names.end(), k.name), 0) << k.name;
      names.push_back(k.name);
    }
  }
}

// Relative to the result itself: the tails of the activations are small, and a difference of near numbers there would
// leave them few true digits.
TEST(Activations, KeepTheDigitsOfSmallResults) {
  const auto exact = [](Activation act, double x) {
    switch (act) {
      case Activation::silu:
        return x / (1 + std::exp(-x));
      case Activation::gelu:
        return 0.5 * x * std::erfc(-x * M_SQRT1_2);
      case Activation::gelu_tanh:
        return x / (1 + std::exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)));
      case Activation::relu:
        return std::max(x, 0.0);
      case Activation::relu2:
        return x > 0 ? x * x : 0;
      case Activation::quick_gelu:
        return x / (1 + std::exp(-1.702 * x));
    }
    return x;
  };
  std::vector<float> x, y;
  for (float v = 1e-6f; v < 8; v *= 1.003f) x.insert(x.end(), {v, -v});
  y.resize(x.size());
  for (const cpu::IsaKernels* isa : cpu::available_isas()) {
    SCOPED_TRACE(isa->name);
    for (size_t a = 0; a < enum_names(Activation{}).size(); ++a) {
      const auto act = static_cast<Activation>(a);
      isa->act(act, x.data(), y.data(), std::ssize(x));
      for (size_t i = 0; i < x.size(); ++i) {
        const double want = exact(act, x[i]);
        ASSERT_NEAR(y[i], want, 2e-5 * std::abs(want)) << enum_names(act)[a] << " of " << x[i];
      }
    }
    isa->soft_cap(x.data(), 1, 2.5f, y.data(), std::ssize(x));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = 2.5 * std::tanh(x[i] / 2.5);
      ASSERT_NEAR(y[i], want, 2e-6 * std::abs(want)) << "soft_cap of " << x[i];
    }
    const float limits[] = {INFINITY, -INFINITY, NAN, 0};
    for (const Activation act : {Activation::gelu, Activation::gelu_tanh, Activation::silu}) {
      float out[4];
      isa->act(act, limits, out, 4);
      EXPECT_EQ(out[0], INFINITY);
      EXPECT_TRUE(std::isnan(out[2])) << "what is no number stays none";
      EXPECT_EQ(out[3], 0);
    }
  }
}

TEST(CpuStream, SlotsNeverOverlapAndEveryItemRunsOnce) {
  cpu::CpuStream stream(*cpu::available_isas()[0], 4);
  std::vector<std::atomic<int>> busy(4), seen(1000);
  std::atomic<int> clashes{0};
  stream.run_slots(1000, [&](int64_t slot, int64_t i) {
    if (busy[slot].fetch_add(1) != 0) ++clashes;
    ++seen[i];
    busy[slot].fetch_sub(1);
  });
  EXPECT_EQ(clashes.load(), 0);
  for (const auto& n : seen) EXPECT_EQ(n.load(), 1);
}

TEST(Ceilings, AreMeasured) {
  const auto ceilings = cpu::measure_ceilings({}, size_t{32} << 20);
  ASSERT_TRUE(ceilings.ok()) << ceilings.error().message;
  EXPECT_GT(ceilings->read_gbps, 0.1);
  EXPECT_GT(ceilings->f32_gflops, 0.1);
  EXPECT_FALSE(cpu::measure_ceilings({.isa = "none"}).ok());
}

}  // namespace
}  // namespace pinion
