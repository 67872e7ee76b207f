// The attention kernels against the read bandwidth measured in the same run. First every kernel is compared with a
// plain one on random pages (unwritten slots hold NaN) over awkward batches; then decoding and prefill are timed as
// chains of layers with caches of their own in one CUDA graph, so that nothing is read from L2 twice.
//   bench_attention [check|time|all] [--json FILE] [--only PART]   PART: of a case's line, "decode", "hopper", "x128"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/ceilings.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/kernels/attention_task.h"

using namespace pinion;
using namespace pinion::cuda;

namespace {

#define CHECK_CUDA(call) cuda_check((call), #call)

struct Seq {
  int32_t tokens, context;  // context 0: padding
};

struct Case {
  std::string name;
  std::vector<Seq> seqs;
  int64_t heads = 32, kv_heads = 8, head_dim = 128;
  DType type = DType::bf16;
  int32_t block_size = 64, window = 0;
  float softcap = 0, alibi = 0;
  bool sinks = false;
  int layers = 1;
};

__device__ float random_value(uint64_t i, uint32_t seed) {
  uint32_t h = static_cast<uint32_t>(i) * 2654435761u ^ seed ^ static_cast<uint32_t>(i >> 32) * 40503u;
  h = (h ^ h >> 15) * 2246822519u, h = (h ^ h >> 13) * 3266489917u, h ^= h >> 16;
  return (static_cast<float>(h & 0xffff) - 32768) / 32768;
}

__global__ void fill_kernel(Values v, int64_t n, uint32_t seed, float scale) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    store(v, i, random_value(i, seed) * scale);
  }
}

// Writes the keys that a sequence may see; the pages hold NaN before.
__global__ void fill_cache_kernel(AttentionTask task, DType type, uint32_t seed) {
  const int s = blockIdx.y, context = task.context_len[s], tokens = task.seq_start[s + 1] - task.seq_start[s];
  for (int key = blockIdx.x; key < context; key += gridDim.x) {
    if (key < first_key(task.window, context - tokens)) continue;
    const int block = task.block_table[static_cast<int64_t>(s) * task.max_blocks + key / task.block_size];
    std::byte* page = const_cast<std::byte*>(task.cache) + block * task.block_stride;
    for (int i = threadIdx.x; i < task.kv_heads * task.head_dim; i += blockDim.x) {
      const int head = i / task.head_dim;
      const int64_t at =
          (static_cast<int64_t>(head) * task.block_size + key % task.block_size) * task.head_dim + i % task.head_dim;
      const uint64_t index = (static_cast<uint64_t>(s) * 1000003 + key) * 8192 + i;
      store(Values{page, type}, at, random_value(index, seed));
      store(Values{page + task.v_offset, type}, at, random_value(index, seed + 1));
    }
  }
}

// One block a (row, head) of `rows`: two passes over the keys in f32.
__global__ void plain_kernel(AttentionTask task, DType type, const int2* rows, float* scores, int64_t pitch,
                             float* out) {
  __shared__ float reduced[256];
  const int token = rows[blockIdx.x].x, head = rows[blockIdx.x].y, s = task.row_seq[token];
  const int position = task.context_len[s] - (task.seq_start[s + 1] - token);
  const int kv_head = head / task.group, first = first_key(task.window, position), thread = threadIdx.x;
  float* mine = scores + blockIdx.x * pitch;
  const auto page = [&](int key) {
    return task.cache +
           task.block_table[static_cast<int64_t>(s) * task.max_blocks + key / task.block_size] * task.block_stride;
  };
  const auto element = [&](int key) {
    return (static_cast<int64_t>(kv_head) * task.block_size + key % task.block_size) * task.head_dim;
  };
  float largest = -INFINITY;
  for (int key = first + thread; key <= position; key += blockDim.x) {
    float dot = 0, a[1], b[1];
    for (int i = 0; i < task.head_dim; ++i) {
      load<1>(task.q, (static_cast<int64_t>(token) * task.heads + head) * task.head_dim + i, a);
      load<1>(ConstValues{page(key), type}, element(key) + i, b);
      dot += a[0] * b[0];
    }
    float x = dot * task.score_scale;
    if (task.softcap > 0) x = task.softcap * tanhf(x);
    if (task.alibi > 0) x += slope_log2(task, head) * (key - position);
    mine[key - first] = x, largest = fmaxf(largest, x);
  }
  const auto reduce = [&](float x, bool sum) {
    reduced[thread] = x;
    __syncthreads();
    for (int d = 128; d > 0; d /= 2) {
      if (thread < d) {
        reduced[thread] = sum ? reduced[thread] + reduced[thread + d] : fmaxf(reduced[thread], reduced[thread + d]);
      }
      __syncthreads();
    }
    const float all = reduced[0];
    __syncthreads();
    return all;
  };
  largest = reduce(largest, false);
  float sink[1] = {-INFINITY};
  if (task.sinks.data != nullptr) load<1>(task.sinks, head, sink), sink[0] *= 1.4426950408889634f;
  largest = fmaxf(largest, sink[0]);
  float sum = 0;
  for (int key = first + thread; key <= position; key += blockDim.x) {
    mine[key - first] = exp2f(mine[key - first] - largest);
    sum += mine[key - first];
  }
  sum = reduce(sum, true) + exp2f(sink[0] - largest);
  for (int i = thread; i < task.head_dim; i += blockDim.x) {
    float all = 0, v[1];
    for (int key = first; key <= position; ++key) {
      load<1>(ConstValues{page(key) + task.v_offset, type}, element(key) + i, v);
      all += mine[key - first] * v[0];
    }
    out[static_cast<int64_t>(blockIdx.x) * task.head_dim + i] = all / sum;
  }
}

template <class T>
class Memory {
 public:
  explicit Memory(size_t n) : n_(n) { CHECK_CUDA(cudaMalloc(&data_, std::max<size_t>(n * sizeof(T), 256))); }
  explicit Memory(const std::vector<T>& v) : Memory(v.size()) {
    CHECK_CUDA(cudaMemcpy(data_, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { (void)cudaFree(data_); }
  T* data() const { return data_; }
  size_t bytes() const { return n_ * sizeof(T); }
  std::vector<T> read() const {
    std::vector<T> v(n_);
    CHECK_CUDA(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

float to_float(uint16_t v, DType type) {
  return type == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(v)) : __half2float(__ushort_as_half(v));
}

class Problem {
 public:
  Problem(const Case& c, const DeviceInfo& info) : c_(c), info_(info) {
    std::mt19937 random(7);
    std::vector<int32_t> starts{0}, contexts, row_seq, positions, table;
    int32_t blocks = 0, max_blocks = 1;
    for (const Seq& s : c.seqs) {
      for (int32_t i = 0; i < s.tokens; ++i) {
        row_seq.push_back(static_cast<int32_t>(contexts.size()));
        positions.push_back(std::max(0, s.context - s.tokens + i));
      }
      starts.push_back(starts.back() + s.tokens), contexts.push_back(s.context);
      const int32_t n = (s.context + c.block_size - 1) / c.block_size;
      blocks += n, max_blocks = std::max(max_blocks, n);
      max_tokens_ = std::max(max_tokens_, s.tokens), max_context_ = std::max(max_context_, s.context);
    }
    std::vector<int32_t> free(blocks + 1);
    for (int32_t i = 0; i <= blocks; ++i) free[i] = i;
    std::shuffle(free.begin(), free.end(), random);
    for (const Seq& s : c.seqs) {
      for (int32_t b = 0; b < max_blocks; ++b) {
        const int32_t low = c.window > 0 ? std::max(0, s.context - s.tokens - c.window + 1) : 0;
        const bool live = b * c.block_size < s.context && (b + 1) * c.block_size > low;
        table.push_back(live ? free.back() : -1);
        if (live) free.pop_back();
      }
    }
    tokens_ = starts.back();
    const int64_t half = c.kv_heads * c.block_size * c.head_dim * 2;
    cache_bytes_ = (blocks + 1) * 2 * half;
    cache_ = std::make_unique<Memory<std::byte>>(cache_bytes_ * c.layers);
    CHECK_CUDA(cudaMemset(cache_->data(), 0xff, cache_->bytes()));
    starts_ = std::make_unique<Memory<int32_t>>(starts), contexts_ = std::make_unique<Memory<int32_t>>(contexts);
    row_seq_ = std::make_unique<Memory<int32_t>>(row_seq), positions_ = std::make_unique<Memory<int32_t>>(positions);
    table_ = std::make_unique<Memory<int32_t>>(table);
    q_ = std::make_unique<Memory<uint16_t>>(tokens_ * c.heads * c.head_dim);
    out_ = std::make_unique<Memory<uint16_t>>(tokens_ * c.heads * c.head_dim);
    sinks_ = std::make_unique<Memory<float>>(c.heads);
    fill_kernel<<<1024, 256>>>(Values{q_->data(), c.type}, tokens_ * c.heads * c.head_dim, 3, 4.0f);
    fill_kernel<<<1, 256>>>(Values{sinks_->data(), DType::f32}, c.heads, 5, 3.0f);
    for (int l = 0; l < c.layers; ++l) {
      kv_.push_back({.base = cache_->data() + l * cache_bytes_,
                     .block_stride = 2 * half,
                     .v_offset = half,
                     .block_size = c.block_size,
                     .dtype = c.type,
                     .block_table = table_->data(),
                     .max_blocks = max_blocks});
      ops_.push_back(Attention{.heads = c.heads,
                               .kv_heads = c.kv_heads,
                               .head_dim = c.head_dim,
                               .scale = 1 / std::sqrt(static_cast<float>(c.head_dim)),
                               .window = c.window,
                               .layer = l,
                               .softcap = c.softcap,
                               .alibi = c.alibi,
                               .alibi_heads = c.alibi > 0 ? c.heads : 0,
                               .sinks = c.sinks});
    }
    batch_ = {.tokens = static_cast<int32_t>(tokens_),
              .seqs = static_cast<int32_t>(c.seqs.size()),
              .outputs = 0,
              .max_seq_tokens = max_tokens_,
              .max_context = max_context_,
              .positions = positions_->data(),
              .row_seq = row_seq_->data(),
              .seq_start = starts_->data(),
              .context_len = contexts_->data(),
              .kv = kv_};
    sinks_spec_ = {.dtype = DType::f32, .rows = 1, .cols = c.heads};
    weight_ = WeightView{sinks_spec_, sinks_->data()};
    in_ = {q_->data(), c.type, {tokens_, c.heads * c.head_dim}};
    result_ = {out_->data(), c.type, {tokens_, c.heads * c.head_dim}};
    for (int l = 0; l < c.layers; ++l) {
      fill_cache_kernel<<<dim3(256, c.seqs.size()), 128>>>(attention_task(args(l)), c.type, 11 + 2 * l);
    }
    CHECK_CUDA(cudaDeviceSynchronize());
  }

  Call call() const {
    Call call{.op = &ops_[0],
              .rows = tokens_,
              .seqs = static_cast<int64_t>(c_.seqs.size()),
              .context = max_context_,
              .kv_dtype = c_.type};
    call.values.in[0] = call.values.out[0] = c_.type;
    if (c_.sinks) call.weights = {&sinks_spec_, 1};
    return call;
  }

  void launch(const Kernel& k, int layer, Stream& stream) {
    const size_t bytes = k.workspace == nullptr ? 0 : k.workspace(call(), {}, info_);
    if (workspace_ == nullptr || workspace_->bytes() < bytes) {
      workspace_ = std::make_unique<Memory<std::byte>>(bytes);
      CHECK_CUDA(cudaMemset(workspace_->data(), 0xff, bytes));
    }
    k.launch(args(layer), stream);
  }

  // The largest relative error ‖out - plain‖ / ‖plain‖; NaN or inf: something was not written, or read that may not be.
  double error(const Kernel& k, Stream& stream) {
    CHECK_CUDA(cudaMemset(out_->data(), 0xff, out_->bytes()));
    launch(k, 0, stream);
    stream.synchronize();
    const std::vector<uint16_t> first = out_->read();
    launch(k, 0, stream);
    stream.synchronize();
    const std::vector<uint16_t> got = out_->read();
    if (first != got) return -1;  // the same step twice
    const std::vector<int32_t> row_seq = row_seq_->read();
    std::vector<int2> rows;
    std::mt19937 random(9);
    const int64_t all = tokens_ * c_.heads;
    for (int64_t i = 0; i < std::min<int64_t>(all, 1024); ++i) {
      const int64_t at = all <= 1024 ? i : static_cast<int64_t>(random() % all);
      if (c_.seqs[row_seq[at / c_.heads]].context > 0)
        rows.push_back({static_cast<int>(at / c_.heads), static_cast<int>(at % c_.heads)});
    }
    for (uint16_t v : got) {
      if (!std::isfinite(to_float(v, c_.type))) return NAN;
    }
    const Memory<int2> device_rows(rows);
    const Memory<float> scores(rows.size() * max_context_), plain(rows.size() * c_.head_dim);
    plain_kernel<<<rows.size(), 256>>>(attention_task(args(0)), c_.type, device_rows.data(), scores.data(),
                                       max_context_, plain.data());
    CHECK_CUDA(cudaDeviceSynchronize());
    const std::vector<float> want = plain.read();
    double difference = 0, norm = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t i = 0; i < c_.head_dim; ++i) {
        const double w = want[r * c_.head_dim + i];
        const double g =
            to_float(got[(static_cast<int64_t>(rows[r].x) * c_.heads + rows[r].y) * c_.head_dim + i], c_.type);
        difference += (g - w) * (g - w), norm += w * w;
      }
    }
    return std::sqrt(difference / norm);
  }

  // Microseconds a layer: the median of replays of one graph over all layers.
  double time(const Kernel& k, Stream& stream, int replays = 15) {
    launch(k, 0, stream);
    stream.synchronize();
    stream.begin_recording();
    for (int l = 0; l < c_.layers; ++l) launch(k, l, stream);
    const auto recording = stream.end_recording();
    cudaEvent_t a, b;
    CHECK_CUDA(cudaEventCreate(&a));
    CHECK_CUDA(cudaEventCreate(&b));
    std::vector<float> times;
    for (int i = 0; i < replays + 2; ++i) {
      CHECK_CUDA(cudaEventRecord(a, cuda_stream(stream).handle()));
      recording->replay(stream);
      CHECK_CUDA(cudaEventRecord(b, cuda_stream(stream).handle()));
      CHECK_CUDA(cudaEventSynchronize(b));
      float ms = 0;
      CHECK_CUDA(cudaEventElapsedTime(&ms, a, b));
      if (i >= 2) times.push_back(ms);
    }
    CHECK_CUDA(cudaEventDestroy(a));
    CHECK_CUDA(cudaEventDestroy(b));
    std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
    return times[times.size() / 2] * 1e3 / c_.layers;
  }

  double bytes() const {  // a layer: keys and values that are seen, queries, results
    double n = 4.0 * tokens_ * c_.heads * c_.head_dim;
    for (const Seq& s : c_.seqs) n += 4.0 * s.context * c_.kv_heads * c_.head_dim;
    return n;
  }
  double flops() const {
    double scores = 0;
    for (const Seq& s : c_.seqs) {
      for (int32_t i = 0; i < s.tokens; ++i) scores += s.context - s.tokens + i + 1;
    }
    return 4.0 * scores * c_.heads * c_.head_dim;
  }

 private:
  LaunchArgs args(int layer) {
    op_ = ops_[layer];
    return {.op = &op_,
            .in = {&in_, 1},
            .out = {&result_, 1},
            .weights = c_.sinks ? std::span<const WeightView>(&weight_, 1) : std::span<const WeightView>{},
            .workspace = workspace_ ? std::span(workspace_->data(), workspace_->bytes()) : std::span<std::byte>{},
            .batch = &batch_};
  }

  Case c_;
  DeviceInfo info_;
  int64_t tokens_ = 0, cache_bytes_ = 0;
  int32_t max_tokens_ = 1, max_context_ = 1;
  std::unique_ptr<Memory<std::byte>> cache_, workspace_;
  std::unique_ptr<Memory<int32_t>> starts_, contexts_, row_seq_, positions_, table_;
  std::unique_ptr<Memory<uint16_t>> q_, out_;
  std::unique_ptr<Memory<float>> sinks_;
  std::vector<KvView> kv_;
  std::vector<Op> ops_;
  Op op_;
  BatchView batch_;
  WeightSpec sinks_spec_;
  WeightView weight_;
  TensorView in_, result_;
};

std::vector<Case> check_cases() {
  std::vector<Case> cases;
  const std::vector<Seq> decode{{1, 1}, {1, 17}, {1, 1024}, {1, 1025}, {1, 3000}, {1, 64}, {1, 5}};
  const std::vector<Seq> prompt{{129, 129}, {300, 300}, {64, 1100}, {20, 40}};
  const std::vector<Seq> mixed{{1, 700}, {200, 900}, {1, 33}, {3, 130}, {130, 130}, {1, 2500}, {4, 0}, {1, 0}, {40, 0}};
  for (DType type : {DType::bf16, DType::f16}) {
    for (int64_t dim : {64, 80, 96, 128, 256}) {
      cases.push_back({.name = "decode", .seqs = decode, .heads = 8, .kv_heads = 2, .head_dim = dim, .type = type});
      cases.push_back({.name = "prompt",
                       .seqs = prompt,
                       .heads = 4,
                       .kv_heads = 2,
                       .head_dim = dim,
                       .type = type,
                       .block_size = 32});
      cases.push_back(
          {.name = "mixed", .seqs = mixed, .heads = 8, .kv_heads = 2, .head_dim = dim, .type = type, .block_size = 16});
      cases.push_back(
          {.name = "few", .seqs = {{1, 2000}, {1, 33}}, .heads = 32, .kv_heads = 8, .head_dim = dim, .type = type});
    }
  }
  for (int64_t dim : {64, 128}) {
    cases.push_back({.name = "window", .seqs = mixed, .heads = 6, .kv_heads = 2, .head_dim = dim, .window = 100});
    cases.push_back({.name = "window",
                     .seqs = prompt,
                     .heads = 6,
                     .kv_heads = 2,
                     .head_dim = dim,
                     .block_size = 16,
                     .window = 190});
    cases.push_back({.name = "softcap", .seqs = mixed, .heads = 4, .kv_heads = 2, .head_dim = dim, .softcap = 5});
    cases.push_back({.name = "alibi", .seqs = mixed, .heads = 12, .kv_heads = 12, .head_dim = dim, .alibi = 1});
    cases.push_back(
        {.name = "sinks", .seqs = mixed, .heads = 8, .kv_heads = 1, .head_dim = dim, .window = 128, .sinks = true});
    cases.push_back({.name = "few sinks",
                     .seqs = {{1, 1900}, {1, 0}, {2, 700}},
                     .heads = 6,
                     .kv_heads = 2,
                     .head_dim = dim,
                     .window = 300,
                     .sinks = true});
    cases.push_back({.name = "few softcap",
                     .seqs = {{1, 1281}},
                     .heads = 12,
                     .kv_heads = 12,
                     .head_dim = dim,
                     .softcap = 5,
                     .alibi = 1});
  }
  cases.push_back({.name = "few, long", .seqs = {{1, 9000}, {1, 2100}}, .heads = 32, .kv_heads = 8, .head_dim = 64});
  cases.push_back({.name = "multi-query", .seqs = mixed, .heads = 71, .kv_heads = 1, .head_dim = 64});
  cases.push_back(
      {.name = "speculation", .seqs = {{5, 2000}, {4, 100}, {8, 1031}, {1, 77}}, .heads = 16, .kv_heads = 4});
  cases.push_back({.name = "small heads", .seqs = mixed, .heads = 4, .kv_heads = 2, .head_dim = 32});
  cases.push_back({.name = "many", .seqs = std::vector<Seq>(200, {1, 300})});
  return cases;
}

std::vector<Case> timed_cases(bool prefill) {
  const auto decode = [](int n, int32_t context) {
    const double mb = 4096e-6 * n * context;
    return Case{.name = "decode " + std::to_string(n) + "x" + std::to_string(context / 1024) + "k",
                .seqs = std::vector<Seq>(n, {1, context}),
                .layers = std::clamp(static_cast<int>(std::ceil(1000 / mb)), 2, 64)};
  };
  const auto prompt = [](int32_t tokens, int32_t context, int64_t dim, int layers) {
    return Case{
        .name = "prefill " + std::to_string(tokens) + "@" + std::to_string(context) + " x" + std::to_string(dim),
        .seqs = {{tokens, context}},
        .head_dim = dim,
        .layers = layers};
  };
  if (!prefill) {
    std::vector<Case> cases{decode(1, 1024),  decode(1, 8192),  decode(1, 32768),  decode(8, 1024),
                            decode(32, 1024), decode(64, 1024), decode(128, 1024), decode(16, 8192)};
    Case uneven{.name = "decode 64 of 64..8k", .layers = 2};
    for (int i = 0; i < 64; ++i) uneven.seqs.push_back({1, 64 + 130 * i});
    cases.push_back(uneven);
    return cases;
  }
  std::vector<Case> cases{prompt(2048, 2048, 128, 8), prompt(8192, 8192, 128, 4), prompt(32768, 32768, 128, 2),
                          prompt(8192, 8192, 64, 4), prompt(512, 8192, 128, 8)};
  Case mixed{.name = "mixed 64x1k + 512@1k", .seqs = std::vector<Seq>(64, {1, 1024}), .layers = 4};
  mixed.seqs.push_back({512, 1024});
  cases.push_back(mixed);
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "all";
  std::string json, only;
  for (int i = 2; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    if (std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
  }
  const auto wanted = [&](const Case& c, const Kernel& k) {
    const std::string line = c.name + " x" + std::to_string(c.head_dim) + " " + std::string(k.name);
    return k.name.find("reference") == std::string_view::npos && line.find(only) != std::string::npos;
  };
  auto opened = open_device(0);
  if (!opened) {
    std::printf("%s\n", opened.error().message.c_str());
    return 1;
  }
  Device& device = **opened;
  const auto stream = device.make_stream();
  const auto list = kernels(OpKind::attention);
  int failures = 0;
  if (mode == "check" || mode == "all") {
    int checked = 0;
    for (const Case& c : check_cases()) {
      Problem problem(c, device.info());
      for (const Kernel& k : list) {
        if (!wanted(c, k) || !k.why_not(problem.call(), device.info()).empty()) continue;
        const double error = problem.error(k, *stream);
        const double bound = c.type == DType::bf16 ? 8e-3 : 1.5e-3;
        ++checked;
        const bool bad = !(error >= 0 && error < bound);
        failures += bad;
        std::printf("%s %-12s %s x%-3d %-26s %.2e%s\n", bad ? "FAIL" : "ok  ", c.name.c_str(),
                    c.type == DType::bf16 ? "bf16" : "f16 ", static_cast<int>(c.head_dim), std::string(k.name).c_str(),
                    error, error == -1 ? " differs from run to run" : "");
        std::fflush(stdout);
      }
    }
    std::printf("%d checks, %d failures\n", checked, failures);
  }
  if (mode == "time" || mode == "all") {
    const auto ceilings = measure_ceilings(device);
    if (!ceilings.ok()) {
      std::printf("%s\n", ceilings.error().message.c_str());
      return 1;
    }
    const double ceiling = ceilings->read_gbps * 1e-3;
    std::printf("read ceiling %.3f TB/s\n", ceiling);
    std::ofstream out;
    if (!json.empty()) out.open(json);
    out << "{\"read_tbps\": " << ceiling << ", \"cases\": {";
    bool first = true;
    for (const bool prefill : {false, true}) {
      for (const Case& c : timed_cases(prefill)) {
        Problem problem(c, device.info());
        for (const Kernel& k : list) {
          if (!wanted(c, k) || !k.why_not(problem.call(), device.info()).empty()) continue;
          const double error = problem.error(k, *stream);
          const double us = problem.time(k, *stream);
          const double tbps = problem.bytes() / us * 1e-6, tflops = problem.flops() / us * 1e-6;
          std::printf("%-24s %-26s %9.2f us  %6.3f TB/s = %.3f  %6.1f TFLOP/s  error %.1e\n", c.name.c_str(),
                      std::string(k.name).c_str(), us, tbps, tbps / ceiling, tflops, error);
          std::fflush(stdout);
          out << (first ? "" : ", ") << "\"" << c.name << " " << k.name << "\": {\"us\": " << us
              << ", \"tbps\": " << tbps << ", \"tflops\": " << tflops << ", \"error\": " << error << "}";
          first = false;
        }
      }
    }
    out << "}}\n";
  }
  return failures > 0;
}
