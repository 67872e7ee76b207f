// Every kernel of devices with memory of their own, in every type of values, against the reference. Without such a
// device there is nothing to run: the test says so and is skipped.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "backend/all/backends.h"
#include "backend/all/case_expectations.h"
#include "backend/all/device_problem.h"

namespace pinion {
namespace {

struct Target {
  const Backend* backend;
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
};

std::vector<Target> targets() {
  std::vector<Target> list;
  for (const Backend* backend : backends()) {
    if (backend->probe().empty()) continue;
    auto device = backend->open({});
    if (!device.ok() || (*device)->host_visible()) continue;
    auto stream = (*device)->make_stream();
    list.push_back({backend, *std::move(device), std::move(stream)});
  }
  return list;
}

// PINION_TEST_KERNEL: only kernels whose name contains it.
bool wanted(const Kernel& kernel) {
  const char* only = std::getenv("PINION_TEST_KERNEL");
  return only == nullptr || kernel.name.find(only) != std::string_view::npos;
}

// What the kernel proposes for the call, the best guess first. (A kernel that proposes tunings need not run without
// one.)
std::vector<Tuning> proposed(const Kernel& kernel, const Call& call, const DeviceInfo& info) {
  auto list = kernel.tunings == nullptr ? std::vector<Tuning>{{}} : kernel.tunings(call, info);
  EXPECT_FALSE(list.empty()) << kernel.name << " accepts a call for which it has no tuning";
  return list;
}

struct Tally {
  int ran = 0, failed = 0;
};

// A backend may leave out packed weights, which are then expanded when an engine is built, and caches of 8 bits.
bool may_be_left_out(const OpCase& c) {
  return byte_size(c.kv_dtype) == 1 ||
         std::ranges::any_of(c.weights, [](const WeightSpec& w) { return w.layout == Layout::packed; });
}

class DeviceCases : public testing::TestWithParam<int> {
 protected:
  // One line per kernel of the op, so that a log's end says what was compared.
  static void report(const std::map<std::string_view, Tally>& tallies) {
    for (const auto& [name, t] : tallies) fmt::print("  {:44} {:6} runs, {} failed\n", name, t.ran, t.failed);
  }
};

TEST_P(DeviceCases, EveryKernelAgreesWithTheReference) {
  const auto kind = static_cast<OpKind>(GetParam());
  const auto all = targets();
  if (all.empty()) GTEST_SKIP() << "no device with memory of its own";
  const Backend& reference = *find_backend("reference");
  const Kernel& oracle = reference.kernels(kind)[0];
  auto oracle_device = reference.open({});
  ASSERT_TRUE(oracle_device.ok());
  auto oracle_stream = (*oracle_device)->make_stream();
  std::map<std::string_view, Tally> tallies;
  uint64_t seed = test_seed();
  for (const OpCase& c : op_cases(kind, CaseSet::correctness)) {
    ++seed;
    for (const ValueTypes& types : value_types(c)) {
      OpProblem problem(c, seed);
      problem.round_inputs(types);
      const auto want = problem.run(oracle, {}, (*oracle_device)->info(), *oracle_stream);
      Call call = c.call();
      call.values = types;
      for (const Target& t : all) {
        if (t.backend->kernels(kind).empty()) continue;
        DeviceProblem on_device(problem, *t.device, *t.stream, types);
        bool accepted = false;
        for (const Kernel& kernel : t.backend->kernels(kind)) {
          if (!kernel.why_not(call, t.device->info()).empty()) continue;
          accepted = true;
          if (!wanted(kernel)) continue;
          Tally& tally = tallies[kernel.name];
          for (const Tuning& tuning : proposed(kernel, call, t.device->info())) {
            EXPECT_GT(kernel.estimate_us(call, tuning, t.device->info()), 0) << kernel.name;
            const auto& v = tuning.value;
            SCOPED_TRACE(fmt::format("{}: {} {} tuning {} {} {} {}, PINION_TEST_SEED={}", c.name, kernel.name,
                                     to_text(types, c), v[0], v[1], v[2], v[3], test_seed()));
            const auto got = on_device.run(kernel, tuning);
            const auto failures = [] {
              return testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
            };
            const int before = failures();
            for (size_t i = 0; i < want.out.size(); ++i) expect_near(want.out[i], got.out[i], tolerance(types));
            expect_cache_near(c, want.cache, got.cache);
            ++tally.ran;
            if (failures() != before) ++tally.failed;
          }
        }
        EXPECT_TRUE(accepted || may_be_left_out(c))
            << "no kernel of " << t.backend->name() << " takes " << c.name << ", " << to_text(types, c);
      }
    }
  }
  report(tallies);
}

// A kernel that says so gives a row the same bits alone and in a batch.
TEST_P(DeviceCases, RowsDoNotDependOnTheirBatch) {
  const auto kind = static_cast<OpKind>(GetParam());
  if (kind == OpKind::select_rows) GTEST_SKIP() << "chooses among rows";
  const auto all = targets();
  if (all.empty()) GTEST_SKIP() << "no device with memory of its own";
  std::map<std::string_view, Tally> tallies;
  uint64_t seed = test_seed();
  for (const OpCase& c : op_cases(kind, CaseSet::correctness)) {
    if (c.rows() == 0 || c.inputs == 3) continue;
    const ValueTypes types = value_types(c).back();
    OpProblem problem(c, ++seed);
    problem.round_inputs(types);
    Call call = c.call();
    call.values = types;
    for (const Target& t : all) {
      if (t.backend->kernels(kind).empty()) continue;
      DeviceProblem whole_problem(problem, *t.device, *t.stream, types);
      // The first rows of every sequence, the last, and a piece of the middle.
      std::vector<std::tuple<int64_t, OpProblem>> parts;
      int64_t row = 0;
      for (size_t s = 0; s < c.seqs.size(); row += c.seqs[s++].tokens) {
        const int64_t n = c.seqs[s].tokens;
        for (auto [first, last] : {std::pair<int64_t, int64_t>{0, 1}, {n - 1, n}, {n / 3, n / 3 + (n + 2) / 3}}) {
          if (last <= n) parts.emplace_back(row + first, problem.rows_of(static_cast<int64_t>(s), first, last));
        }
      }
      for (const Kernel& kernel : t.backend->kernels(kind)) {
        if (!kernel.batch_invariant || !wanted(kernel) || !kernel.why_not(call, t.device->info()).empty()) continue;
        const auto tunings = proposed(kernel, call, t.device->info());
        if (tunings.empty()) continue;
        const auto whole = whole_problem.run(kernel, tunings[0]);
        Tally& tally = tallies[kernel.name];
        for (auto& [at, part] : parts) {
          Call small = part.description().call();
          small.values = types;
          if (!kernel.why_not(small, t.device->info()).empty()) continue;
          const auto own = proposed(kernel, small, t.device->info());
          if (own.empty()) continue;
          const auto got = DeviceProblem(part, *t.device, *t.stream, types).run(kernel, own[0]);
          ++tally.ran;
          bool same = true;
          for (size_t o = 0; o < got.out.size(); ++o) {
            const auto from = whole.out[o].begin() + static_cast<int64_t>(at * (whole.out[o].size() / c.rows()));
            same = same && std::equal(got.out[o].begin(), got.out[o].end(), from);
          }
          tally.failed += same ? 0 : 1;
          EXPECT_TRUE(same) << c.name << ": " << kernel.name << " rows from " << at << ", " << part.description().rows()
                            << " alone, PINION_TEST_SEED=" << test_seed();
        }
      }
    }
  }
  report(tallies);
}

std::string case_name(const testing::TestParamInfo<int>& info) {
  return std::string(find_backend("reference")->kernels(static_cast<OpKind>(info.param))[0].name.substr(10));
}

INSTANTIATE_TEST_SUITE_P(Ops, DeviceCases, testing::Range(0, kOpKinds), case_name);

}  // namespace
}  // namespace pinion
