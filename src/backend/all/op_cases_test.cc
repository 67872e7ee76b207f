// Every kernel of every backend that accepts a case, on every ISA of this machine, against the reference.
#include <gtest/gtest.h>

#include "backend/all/backends.h"
#include "backend/all/case_expectations.h"
#include "backend/all/op_cases.h"

namespace pinion {
namespace {

struct Target {
  const Backend* backend;
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  std::string label() const {
    return device->info().backend + " " + device->info().isa + " x" + std::to_string(device->info().threads);
  }
};

// Three threads, so that work is divided even on a machine with one core; and one, where nothing is.
std::vector<Target> targets() {
  std::vector<Target> list;
  for (const Backend* backend : backends()) {
    if (backend->name() == "reference" || backend->probe().empty()) continue;
    for (const char* isa : {"amx", "avx512", "avx2", "scalar", ""}) {
      if ((*isa == 0) == (backend->name() == "cpu")) continue;
      for (int threads : {3, 1}) {
        auto device = backend->open({.threads = threads, .isa = isa});
        if (!device.ok() || !(*device)->host_visible()) continue;  // others: device_cases_test.cc
        auto stream = (*device)->make_stream();
        list.push_back({backend, *std::move(device), std::move(stream)});
      }
    }
  }
  return list;
}

class OpCases : public testing::TestWithParam<int> {};

TEST_P(OpCases, EveryKernelAgreesWithTheReference) {
  const auto kind = static_cast<OpKind>(GetParam());
  const Backend& reference = *find_backend("reference");
  const Kernel& oracle = reference.kernels(kind)[0];
  auto oracle_device = reference.open({});
  ASSERT_TRUE(oracle_device.ok());
  auto oracle_stream = (*oracle_device)->make_stream();
  const auto all = targets();
  ASSERT_FALSE(all.empty());
  uint64_t seed = test_seed();
  for (const OpCase& c : op_cases(kind, CaseSet::correctness)) {
    OpProblem problem(c, ++seed);
    const auto want = problem.run(oracle, {}, (*oracle_device)->info(), *oracle_stream);
    for (const Target& t : all) {
      int ran = 0;
      for (const Kernel& kernel : t.backend->kernels(kind)) {
        if (!kernel.why_not(c.call(), t.device->info()).empty()) continue;
        EXPECT_GT(kernel.estimate_us(c.call(), {}, t.device->info()), 0) << kernel.name;
        for (const Tuning& tuning : tunings_of(kernel, c.call(), t.device->info())) {
          SCOPED_TRACE(c.name + ": " + std::string(kernel.name) + " on " + t.label() + " tuning " +
                       std::to_string(tuning.value[0]) + ", PINION_TEST_SEED=" + std::to_string(test_seed()));
          const auto got = problem.run(kernel, tuning, t.device->info(), *t.stream);
          for (size_t i = 0; i < want.out.size(); ++i) expect_near(want.out[i], got.out[i], 2e-5);
          expect_cache_near(c, want.cache, got.cache);
          if (HasFatalFailure()) return;
          ++ran;
        }
      }
      EXPECT_GT(ran, 0) << "no kernel of " << t.label() << " takes " << c.name;
    }
  }
}

// A row computed alone has the same bits, whatever kernel and tuning are chosen for the smaller batch, since the CPU
// promises one order of summation for all kernels of an op.
TEST_P(OpCases, RowsDoNotDependOnTheirBatch) {
  const auto kind = static_cast<OpKind>(GetParam());
  if (kind == OpKind::select_rows) GTEST_SKIP() << "chooses among rows";
  const auto all = targets();
  uint64_t seed = test_seed();
  for (const OpCase& c : op_cases(kind, CaseSet::correctness)) {
    if (c.rows() == 0 || c.inputs == 3) continue;
    OpProblem problem(c, ++seed);
    for (const Target& t : all) {
      if (t.device->info().threads == 1) continue;  // one division of work is enough here
      const DeviceInfo& info = t.device->info();
      for (const Kernel& kernel : t.backend->kernels(kind)) {
        if (!kernel.batch_invariant || !kernel.why_not(c.call(), info).empty()) continue;
        SCOPED_TRACE(c.name + ": " + std::string(kernel.name) + " on " + t.label() +
                     ", PINION_TEST_SEED=" + std::to_string(test_seed()));
        const auto whole = problem.run(kernel, {}, info, *t.stream);
        int64_t row = 0;
        for (size_t s = 0; s < c.seqs.size(); row += c.seqs[s++].tokens) {
          for (int64_t i = 0, n = 0; i < c.seqs[s].tokens; i += n) {
            n = std::min<int64_t>(1 + i / 2, c.seqs[s].tokens - i);  // pieces of 1, 1, 2, 3, 4 …
            OpProblem part = problem.rows_of(s, i, i + n);
            for (const Kernel& other : t.backend->kernels(kind)) {
              if (!other.batch_invariant || !other.why_not(part.description().call(), info).empty()) continue;
              const auto got = part.run(other, {}, info, *t.stream);
              for (size_t o = 0; o < got.out.size(); ++o) {
                const size_t width = whole.out[o].size() / c.rows();
                for (size_t e = 0; e < n * width; ++e) {
                  ASSERT_EQ(whole.out[o][(row + i) * width + e], got.out[o][e]) << other.name << " row " << row + i;
                }
              }
            }
          }
        }
      }
    }
  }
}

std::string case_name(const testing::TestParamInfo<int>& info) {
  return std::string(find_backend("reference")->kernels(static_cast<OpKind>(info.param))[0].name.substr(10));
}

INSTANTIATE_TEST_SUITE_P(Ops, OpCases, testing::Range(0, kOpKinds), case_name);

TEST(Backends, AreFoundByName) {
  EXPECT_NE(find_backend("cpu"), nullptr);
  EXPECT_NE(find_backend("reference"), nullptr);
  EXPECT_EQ(find_backend("abacus"), nullptr);
  EXPECT_EQ(find_kernel(*find_backend("cpu"), "cpu.linear.gemv")->op, OpKind::linear);
}

}  // namespace
}  // namespace pinion
