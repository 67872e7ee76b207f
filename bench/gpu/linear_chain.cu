// The linear layers of an 8B Llama as one chain in one CUDA graph, against the read bandwidth measured in the same run.
// 32 layers of qkv, o, gate and up, down, and the head, every weight different: 15 GB, read once a step. First every
// kernel is compared with the plain one on awkward shapes; then each layer's kernels and plans are timed alone, the
// best of each are put into the chain, and cuBLASLt's best make the same chain.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/ceilings.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernels/linear.h"

using namespace pinion;
using namespace pinion::cuda;

namespace {

using Bf16 = __nv_bfloat16;

#define CHECK_CUDA(call) cuda_check((call), #call)

struct Shape {
  const char* name;
  int32_t in, out;
  bool gated, f32_output;
};
constexpr int kLayers = 32;
constexpr Shape kShapes[] = {{"qkv", 4096, 6144, false, false},
                             {"o", 4096, 4096, false, false},
                             {"gate_up", 4096, 28672, true, false},
                             {"down", 14336, 4096, false, false},
                             {"head", 4096, 128256, false, true}};
constexpr int kHead = 4;

struct Candidate {
  std::string name;
  std::function<void(const LinearProblem&)> run;
  bool library = false;
};

__global__ void fill_kernel(Bf16* p, size_t n, uint32_t seed, float scale) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed ^ static_cast<uint32_t>(i >> 32) * 40503u;
    h = (h ^ h >> 15) * 2246822519u, h = (h ^ h >> 13) * 3266489917u, h ^= h >> 16;
    p[i] = __float2bfloat16((static_cast<float>(h & 0xffff) - 32768) * scale / 32768);
  }
}

class Bench {
 public:
  explicit Bench(const ProbedDevice& device) : device_(device.properties), stream_(device_) {
    for (const Shape& s : kShapes) {
      if (&s != &kShapes[kHead]) layer_ += size(s);
    }
    total_ = layer_ * kLayers + size(kShapes[kHead]);
    CHECK_CUDA(cudaMalloc(&weights_, total_ * sizeof(Bf16)));
    CHECK_CUDA(cudaMalloc(&x_, sizeof(Bf16) * 512 * 32768));
    CHECK_CUDA(cudaMalloc(&y_, sizeof(float) * 512 * 131072));
    CHECK_CUDA(cudaMalloc(&gated_, sizeof(Bf16) * 512 * 32768));
    CHECK_CUDA(cudaMalloc(&workspace_, kWorkspace));
    fill_kernel<<<4096, 256>>>(weights_, total_, 7, 0.027f);
    fill_kernel<<<1024, 256>>>(x_, 512 * 32768, 3, 1);
    CHECK_CUDA(cudaDeviceSynchronize());
  }

  // The median time of a graph of what `record` launches, in milliseconds.
  float time(const std::function<void()>& record, int runs) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaStreamBeginCapture(stream_.handle(), cudaStreamCaptureModeGlobal));
    record();
    CHECK_CUDA(cudaStreamEndCapture(stream_.handle(), &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t start, stop;
    CHECK_CUDA(cudaEventCreate(&start));
    CHECK_CUDA(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < runs + 2; ++i) {
      CHECK_CUDA(cudaEventRecord(start, stream_.handle()));
      CHECK_CUDA(cudaGraphLaunch(exec, stream_.handle()));
      CHECK_CUDA(cudaEventRecord(stop, stream_.handle()));
      CHECK_CUDA(cudaEventSynchronize(stop));
      float ms;
      CHECK_CUDA(cudaEventElapsedTime(&ms, start, stop));
      if (i >= 2) times.push_back(ms);
    }
    CHECK_CUDA(cudaEventDestroy(start));
    CHECK_CUDA(cudaEventDestroy(stop));
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2];
  }

  LinearProblem problem(int shape, int layer, int tokens) const {
    const Shape& s = kShapes[shape];
    const Bf16* w = weights_ + (shape == kHead ? layer_ * kLayers : layer_ * layer);
    for (int i = 0; i < shape && shape != kHead; ++i) w += size(kShapes[i]);
    LinearProblem p{.weight = w, .x = shape == 3 ? gated_ : x_, .in = s.in};
    p.output.y = s.gated        ? Values{gated_, DType::bf16}
                 : s.f32_output ? Values{y_, DType::f32}
                                : Values{y_, DType::bf16};
    p.output.out = s.out, p.output.tokens = tokens, p.output.gated_silu = s.gated;
    return p;
  }

  // The kernels that take the problem, less those whose name begins with one of `without`.
  std::vector<Candidate> candidates(const LinearProblem& p, bool all_plans) {
    std::vector<Candidate> c = all_candidates(p, all_plans);
    std::erase_if(c, [&](const Candidate& one) {
      return std::any_of(without.begin(), without.end(), [&](const auto& w) { return one.name.starts_with(w); });
    });
    return c;
  }
  std::vector<std::string> without;
  bool verbose = false;

  std::vector<Candidate> all_candidates(const LinearProblem& p, bool all_plans) {
    const int64_t tokens = p.output.tokens, in = p.in, out = p.output.out;
    std::vector<Candidate> c;
    if (linear_gemv_why_not(p.type, tokens, in).empty()) {
      for (const GemvPlan& plan : linear_gemv_plans(in, out, device_.multiprocessors)) {
        c.push_back({"gemv " + std::to_string(plan.warps) + (plan.narrow != 0 ? " narrow" : ""),
                     [this, plan](const LinearProblem& q) { linear_gemv(q, plan, stream_); }});
      }
    }
    if (linear_stream_why_not(p.type, tokens, in, out, device_.multiprocessors).empty()) {
      for (const StreamPlan& plan : linear_stream_plans(tokens, in, out, device_.multiprocessors)) {
        c.push_back({"stream " + std::to_string(plan.slice) + "x" + std::to_string(plan.warps) +
                         (plan.narrow != 0 ? " narrow" : ""),
                     [this, plan](const LinearProblem& q) { linear_stream(q, plan, stream_); }});
      }
    }
    if (linear_wgmma_why_not(p.type, tokens, in).empty()) {
      auto plans = linear_wgmma_plans(tokens, in, out, device_.multiprocessors);
      if (all_plans) {
        std::erase_if(plans, [](const WgmmaPlan& plan) { return plan.rows == 0; });
        for (int groups = 1; groups <= 4; ++groups) {
          for (int splits : {1, 2, 3, 4, 6, 8}) {
            for (int share : {1, 2}) {
              if (splits * share > 8 || 8 * share > std::max<int64_t>(tokens, 16)) continue;
              plans.push_back({groups, splits, share});
            }
          }
        }
      }
      for (const WgmmaPlan& plan : plans) {
        c.push_back({"wgmma " + std::to_string(plan.groups) + "g " + std::to_string(plan.splits) + "s " +
                         std::to_string(plan.share) + (plan.rows ? " " + std::to_string(plan.rows) + "r" : ""),
                     [this, plan](const LinearProblem& q) { linear_wgmma(q, plan, stream_); }});
      }
    }
    const int wide_for = all_plans ? 1 : device_.multiprocessors;  // one SM's tiles: of small matrices too
    if (p.output.bias.data == nullptr && linear_wide_why_not(p, wide_for).empty()) {
      for (const WidePlan& plan : linear_wide_plans(out, wide_for)) {
        c.push_back({"wide " + std::to_string(plan.rows),
                     [this, plan](const LinearProblem& q) { linear_wide(q, plan, stream_); }});
      }
    }
    if (linear_portable_why_not(p.type, in).empty()) {
      c.push_back({"portable", [this](const LinearProblem& q) { linear_portable(q, stream_); }});
    }
    if (linear_large_why_not().empty()) {
      int i = 0;
      for (const LargePlan& plan : linear_large_plans(p, device_.ordinal)) {
        c.push_back({"cublaslt " + std::to_string(i++),
                     [this, plan](const LinearProblem& q) {
                       linear_large(q, plan, {workspace_, kWorkspace}, stream_);
                     },
                     true});
      }
    }
    return c;
  }

  // Largest ||y - plain|| / ||plain|| over all kernels; prints those above the tolerance.
  bool correct(int32_t in, int32_t out, int tokens, bool gated, bool bias, bool f32_output) {
    LinearProblem p{.weight = weights_, .x = x_, .in = in};
    const int64_t n = int64_t{tokens} * (gated ? out / 2 : out);
    p.output = {.y = {y_, f32_output ? DType::f32 : DType::bf16}, .out = out, .tokens = tokens, .gated_silu = gated};
    if (bias) p.output.bias = {x_ + 8 * 32768, DType::bf16};
    const auto result = [&](const Candidate& c, const LinearProblem& q) {
      CHECK_CUDA(cudaMemsetAsync(y_, 0xff, (n + 64) * 4, stream_.handle()));
      c.run(q);
      stream_.synchronize();
      std::vector<uint8_t> raw((n + 64) * 4);
      CHECK_CUDA(cudaMemcpy(raw.data(), y_, raw.size(), cudaMemcpyDeviceToHost));
      std::vector<double> v(n);
      const bool f32 = q.output.y.dtype == DType::f32;
      for (int64_t i = 0; i < n; ++i) {
        v[i] = f32 ? reinterpret_cast<float*>(raw.data())[i] : __bfloat162float(reinterpret_cast<Bf16*>(raw.data())[i]);
      }
      const size_t written = n * (f32 ? 4 : 2);
      for (size_t i = written; i < written + 64; ++i) {
        if (raw[i] != 0xff) v[0] = NAN;  // it wrote past the end
      }
      return v;
    };
    LinearProblem reference = p;
    reference.output.y.dtype = DType::f32;
    const auto plain = result({"plain", [this](const LinearProblem& q) { linear_plain(q, stream_); }}, reference);
    double norm = 0;
    for (double v : plain) norm += v * v;
    bool good = true;
    for (const Candidate& c : candidates(p, true)) {
      double worst = 0;
      std::string what = c.name;
      if (verbose) std::fprintf(stderr, "%s: %d tokens, %d x %d\n", c.name.c_str(), tokens, out, in);
      try {
        const auto y = result(c, p);
        double error = 0;
        for (int64_t i = 0; i < n; ++i) error += (y[i] - plain[i]) * (y[i] - plain[i]);
        worst = std::sqrt(error / norm);
      } catch (const DeviceError& e) {
        what += std::string(": ") + e.what();
        worst = NAN;
      }
      if (!(worst < (f32_output && !(c.library && gated) ? 2e-5 : c.library ? 6e-3 : 3e-3))) {
        std::printf("WRONG %s at %d tokens, %d x %d%s%s: %.2e\n", what.c_str(), tokens, out, in, gated ? " gated" : "",
                    bias ? " bias" : "", worst);
        good = false;
      }
    }
    return good;
  }

  double gigabytes() const { return static_cast<double>(total_) * 2e-9; }
  static size_t size(const Shape& s) { return static_cast<size_t>(s.in) * s.out; }

 private:
  static constexpr size_t kWorkspace = 64u << 20;
  DeviceProperties device_;
  CudaStream stream_;
  size_t layer_ = 0, total_ = 0;
  Bf16 *weights_ = nullptr, *x_ = nullptr, *gated_ = nullptr;
  float* y_ = nullptr;
  std::byte* workspace_ = nullptr;
};

struct Best {
  float us = 1e9f;
  Candidate candidate;
};

int run(int argc, char** argv) {
  bool all_plans = false, check_only = false, verbose = false;
  std::vector<std::string> chains;  // kernels for the five layers, in order, separated by commas
  std::vector<int> counts;
  std::vector<std::string> without;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--all_plans") == 0) {
      all_plans = true;
    } else if (std::strcmp(argv[i], "--check") == 0) {
      check_only = true;
    } else if (std::strcmp(argv[i], "--verbose") == 0) {
      verbose = true;
    } else if (std::strcmp(argv[i], "--chain") == 0 && i + 1 < argc) {
      chains.emplace_back(argv[++i]);
    } else if (std::strcmp(argv[i], "--without") == 0 && i + 1 < argc) {
      without.emplace_back(argv[++i]);
    } else if (std::atoi(argv[i]) > 0 && std::atoi(argv[i]) <= 512) {
      counts.push_back(std::atoi(argv[i]));
    } else {
      std::fprintf(stderr,
                   "usage: linear_chain [--check] [--verbose] [--all_plans] [--without KERNEL]… "
                   "[--chain QKV,O,GATE_UP,DOWN,HEAD]… [tokens]…\n"
                   "tokens: 1 to 512 (default 1 8 16 32 64 128)\n");
      return 2;
    }
  }
  if (counts.empty()) counts = {1, 8, 16, 32, 64, 128};
  const auto devices = probe_devices();
  if (devices.empty()) {
    std::fprintf(stderr, "error: no NVIDIA GPU or no driver\n");
    return 2;
  }
  Bench bench(devices[0]);
  bench.without = without, bench.verbose = verbose;
  std::printf("%s; cuBLASLt: %s\n", devices[0].info.name.c_str(),
              linear_large_why_not().empty() ? "yes" : linear_large_why_not().c_str());

  int wrong = 0, checked = 0;
  for (int tokens : {1, 2, 5, 8, 9, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 200}) {
    struct {
      int32_t in, out;
      bool gated, bias, f32;
    } const cases[] = {
        {4096, 192, false, false, true}, {14336, 272, false, true, false}, {1024, 1000, true, false, false},
        {136, 70, false, true, false},   {256, 4098, true, true, true},    {3584, 130, false, false, false},
        {896, 36, false, false, true},   {576, 488, true, false, false},   {200, 1000, false, false, true}};
    for (const auto& c : cases) ++checked, wrong += !bench.correct(c.in, c.out, tokens, c.gated, c.bias, c.f32);
  }
  std::printf("correctness: %d of %d problems wrong\n", wrong, checked);
  if (check_only) return wrong == 0 ? 0 : 1;

  const auto device = open_device(devices[0].properties.ordinal);
  const auto ceilings = device.ok() ? measure_ceilings(**device) : Result<Ceilings>(device.error());
  if (!ceilings.ok()) {
    std::fprintf(stderr, "error: %s\n", ceilings.error().message.c_str());
    return 1;
  }
  const double ceiling = ceilings->read_gbps * 1e-3, gb = bench.gigabytes();
  std::printf("read ceiling %.3f TB/s\n", ceiling);
  std::string table;
  char line[256];
  for (int tokens : counts) {
    Best ours[5], library[5];
    for (int s = 0; s < 5; ++s) {
      const int layers = s == kHead ? 1 : kLayers;
      for (const Candidate& c : bench.candidates(bench.problem(s, 0, tokens), all_plans)) {
        float ms = 0;
        try {
          ms = bench.time(
              [&] {
                for (int l = 0; l < layers; ++l) c.run(bench.problem(s, l, tokens));
              },
              5);
        } catch (const DeviceError& e) {
          std::printf("%3d %-8s %-18s fails: %s\n", tokens, kShapes[s].name, c.name.c_str(), e.what());
          return 1;
        }
        const float us = ms * 1e3f / static_cast<float>(layers);
        const double tbs = static_cast<double>(Bench::size(kShapes[s])) * 2 / us * 1e-6;
        std::printf("%3d %-8s %-18s %8.2f us %6.3f TB/s %5.1f %%\n", tokens, kShapes[s].name, c.name.c_str(), us, tbs,
                    100 * tbs / ceiling);
        Best& best = c.library ? library[s] : ours[s];
        if (us < best.us) best = {us, c};
      }
    }
    const auto chain = [&](const Best(&best)[5]) {
      for (const Best& b : best) {
        if (!b.candidate.run) return 0.0f;
      }
      return bench.time(
          [&] {
            for (int l = 0; l < kLayers; ++l) {
              for (int s = 0; s < kHead; ++s) best[s].candidate.run(bench.problem(s, l, tokens));
            }
            best[kHead].candidate.run(bench.problem(kHead, 0, tokens));
          },
          15);
    };
    const float mine = chain(ours), peer = chain(library);
    std::snprintf(line, sizeof(line), "%3d tokens  %6.3f ms  %.3f TB/s  %5.1f %%   cublaslt %6.3f ms %5.1f %%  |",
                  tokens, mine, gb / mine, 100 * gb / mine / ceiling, peer, peer > 0 ? 100 * gb / peer / ceiling : 0.0);
    table += line;
    for (const Best& b : ours) table += " " + b.candidate.name + ";";
    table += "\n";
    for (const std::string& names : chains) {
      Best chosen[5];
      size_t at = 0;
      for (int s = 0; s < 5; ++s) {
        const size_t comma = std::min(names.find(',', at), names.size());
        for (const Candidate& c : bench.candidates(bench.problem(s, 0, tokens), true)) {
          if (c.name == std::string_view(names).substr(at, comma - at)) chosen[s].candidate = c;
        }
        at = std::min(comma + 1, names.size());
      }
      if (const float ms = chain(chosen); ms > 0) {
        std::snprintf(line, sizeof(line), "%3d tokens  %6.3f ms  %5.1f %%  %s\n", tokens, ms, 100 * gb / ms / ceiling,
                      names.c_str());
        table += line;
      }
    }
    std::fflush(stdout);
  }
  std::printf("\n8B chain, %.2f GB, read ceiling %.3f TB/s\n%s", gb, ceiling, table.c_str());
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const DeviceError& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
