// Times every kernel of a backend on the case table's timing half, against the machine's measured ceilings: the floor
// of a case is the slower of moving its bytes and doing its arithmetic.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <optional>

#include "backend/all/backends.h"
#include "backend/all/ceilings.h"
#include "backend/all/device_problem.h"
#include "backend/all/op_cases.h"

using namespace pinion;

namespace {

struct Options {
  std::string target = "cpu", op, isa, kernel, filter;
  int threads = 0;
  double seconds = 0.3;
  int64_t cold_mb = 1024;
  bool json = false;
};

void report(const Options& o, const OpProblem& p, const Kernel& k, const Tuning& t, double s, double floor) {
  const auto& v = t.value;
  const char* form = o.json ? "{\"case\":\"%s\",\"kernel\":\"%.*s\",\"tuning\":[%d,%d,%d,%d],\"us\":%.2f,\"gbps\":%.2f,"
                              "\"gflops\":%.2f,\"of_floor\":%.3f}\n"
                            : "%-58s %-18.*s %3d,%4d,%3d,%d %11.1f us %7.1f GB/s %8.1f GFLOP/s %5.1f %% of the floor\n";
  std::printf(form, p.description().name.c_str(), static_cast<int>(k.name.size()), k.name.data(), v[0], v[1], v[2],
              v[3], s * 1e6, p.bytes() / s * 1e-9, p.flops() / s * 1e-9, (o.json ? 1 : 100) * floor / s);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Time a backend's kernels against the machine's measured ceilings."};
  Options o;
  app.add_option("--target", o.target, "backend: cpu or cuda")->capture_default_str();
  app.add_option("--op", o.op, "only this op: linear, attention, rms_norm …");
  app.add_option("--filter", o.filter, "only cases whose name contains this");
  app.add_option("--kernel", o.kernel, "only this kernel");
  app.add_option("--isa", o.isa, "amx, avx512, avx2 or scalar (default: the best)");
  app.add_option("--threads", o.threads, "default: all");
  app.add_option("--seconds", o.seconds, "at least this long per measurement");
  app.add_option("--cold_mb", o.cold_mb,
                 "read weights from copies of this many MiB together, more than the caches hold");
  app.add_flag("--json", o.json, "a JSON object a line");
  CLI11_PARSE(app, argc, argv);

  const DeviceOptions device_options{.threads = o.threads, .isa = o.isa};
  const Backend* found = find_backend(o.target);
  if (found == nullptr) {
    std::fprintf(stderr, "error: this build has no backend %s\n", o.target.c_str());
    return 2;
  }
  const Backend& backend = *found;
  auto device = backend.open(device_options);
  if (!device.ok()) {
    std::fprintf(stderr, "error: %s\n", device.error().message.c_str());
    return 2;
  }
  const auto ceilings = measure_ceilings(**device, device_options, size_t{2} << 30);
  if (!ceilings.ok()) {
    std::fprintf(stderr, "error: %s\n", ceilings.error().message.c_str());
    return 2;
  }
  const DeviceInfo& info = (*device)->info();
  std::printf(o.json
                  ? "{\"device\":\"%s\",\"isa\":\"%s\",\"read_gbps\":%.2f,\"f32_gflops\":%.1f,\"matrix_gflops\":%.1f}\n"
                  : "%s, %s: reads %.1f GB/s, f32 %.1f GFLOP/s, matrix units %.1f GFLOP/s\n",
              info.name.c_str(), info.isa.c_str(), ceilings->read_gbps, ceilings->f32_gflops, ceilings->matrix_gflops);
  auto stream = (*device)->make_stream();
  for (int kind = 0; kind < kOpKinds; ++kind) {
    for (const OpCase& c : op_cases(static_cast<OpKind>(kind), CaseSet::timing)) {
      if ((!o.op.empty() && op_name(c.op) != o.op) || c.name.find(o.filter) == std::string::npos) continue;
      OpProblem problem(c, 1);
      const auto floor_of = [&](const Kernel& k) {  // on a CPU only these kernels use the matrix units
        const bool f32 = (*device)->host_visible() && k.name.find("matrix") == std::string_view::npos;
        const double gflops = f32 ? ceilings->f32_gflops : ceilings->matrix_gflops;
        return std::max(problem.bytes() / (ceilings->read_gbps * 1e9), problem.flops() / (gflops * 1e9));
      };
      // On a device of its own the values are of the weights' type, as in a model.
      const bool on_host = (*device)->host_visible();
      const auto types = value_types(c);
      Call call = c.call();
      if (!on_host && types.size() > 1) call.values = types[1];
      std::optional<DeviceProblem> on_device;
      if (!on_host) on_device.emplace(problem, **device, *stream, call.values);
      for (const Kernel& k : backend.kernels(static_cast<OpKind>(kind))) {
        if ((!o.kernel.empty() && k.name != o.kernel) || !k.why_not(call, info).empty()) continue;
        const auto tunings = k.tunings != nullptr ? k.tunings(call, info) : std::vector<Tuning>{{}};
        for (const Tuning& t : tunings) {
          const size_t cold = static_cast<size_t>(o.cold_mb) << 20;
          const double s =
              on_host ? problem.time(k, t, info, *stream, o.seconds, cold) : on_device->time(k, t, o.seconds, cold);
          report(o, problem, k, t, s, floor_of(k));
        }
      }
    }
  }
  return 0;
}
