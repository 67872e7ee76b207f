// Fills a case with data and runs kernels on it.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <numeric>
#include <random>

#include "backend/all/op_cases.h"
#include "quant/number_formats.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Widths of the inputs and outputs of an op.
void widths(const OpCase& c, std::vector<int64_t>& in, std::vector<int64_t>& out) {
  std::visit(
      [&]<class T>(const T& op) {
        if constexpr (std::is_same_v<T, Linear>) {
          in = {op.in}, out = {op.output_width()};
        } else if constexpr (std::is_same_v<T, LayerNorm>) {
          in = {op.groups * op.width}, out = in;
        } else if constexpr (std::is_same_v<T, Rope>) {
          in = {op.heads * op.head_dim}, out = in;
        } else if constexpr (std::is_same_v<T, Attention>) {
          in = {op.heads * op.head_dim}, out = in;
          if (c.inputs == 3) in.insert(in.end(), 2, op.kv_heads * op.head_dim);
        } else if constexpr (std::is_same_v<T, RopeKvWrite>) {
          in = {(op.heads + 2 * op.kv_heads) * op.head_dim}, out = {op.heads * op.head_dim};
        } else if constexpr (std::is_same_v<T, MoeRoute>) {
          in = {op.experts}, out = {op.top_k, op.top_k};
        } else if constexpr (std::is_same_v<T, MoeLinear>) {
          in = {op.input_width(), op.top_k}, out = {op.top_k * op.slot_width()};
        } else if constexpr (std::is_same_v<T, MoeCombine>) {
          in = {op.top_k * op.width, op.top_k, op.width, 1}, out = {op.width};
          in.resize(c.inputs);
        } else if constexpr (std::is_same_v<T, MlaKvWrite>) {
          in = {op.heads * (op.nope + op.rope), op.rank + op.rope}, out = {in[0]};
        } else if constexpr (std::is_same_v<T, MlaAttention>) {
          in = {op.heads * (op.nope + op.rope)}, out = {op.heads * op.v};
        } else {
          in.assign(c.inputs, op.width), out = {op.width};
          if constexpr (std::is_same_v<T, AddRmsNorm>) out.push_back(op.width);
        }
      },
      c.op);
}

struct CacheShape {
  int64_t kv_heads = 0, head_dim = 0, rotary = 0;
  int32_t window = 0;
  int64_t planes = 2;  // K and V, or one latent

  // Of a plane of a block.
  int64_t rows(int32_t block_size) const { return kv_heads * block_size; }
  int64_t plane_bytes(DType type, int32_t block_size) const {
    const int64_t scales = type == DType::i8 ? rows(block_size) * int64_t{sizeof(float)} : 0;
    return rows(block_size) * head_dim * bit_size(type) / 8 + scales;
  }
};

// Row `row` of a plane: random numbers, or what makes every result NaN, where the type has that.
void fill_row(std::byte* plane, DType type, int64_t rows, int64_t row, int64_t d,
              const std::function<float()>& number) {
  for (int64_t i = row * d; i < (row + 1) * d; ++i) {
    const float v = number();
    if (type == DType::f8_e4m3) {
      plane[i] = static_cast<std::byte>(std::isnan(v) ? 0x7f : f32_to_e4m3(v * 100));
    } else if (type == DType::i8) {
      plane[i] = static_cast<std::byte>(std::isnan(v) ? 1 : static_cast<int8_t>(v * 60));
    } else {
      store_f32(plane, type, i, v);
    }
  }
  const float scale = std::isnan(number()) ? kNan : 0.02f + 0.001f * static_cast<float>(row % 7);
  if (type == DType::i8) std::memcpy(plane + rows * d + row * sizeof(float), &scale, sizeof scale);
}

// The op's integers: the experts that a router chose.
DType input_type(const Op& op, size_t input) {
  return std::holds_alternative<MoeLinear>(op) && input == 1 ? DType::i32 : DType::f32;
}
DType output_type(const Op& op, size_t output) {
  return std::holds_alternative<MoeRoute>(op) && output == 0 ? DType::i32 : DType::f32;
}

// top_k different experts of the model per row, ascending; some lie before and after those that the op holds.
void choose_experts(const MoeLinear& op, int64_t rows, int32_t* ids, std::mt19937_64& random) {
  std::vector<int32_t> all(op.first_expert > 0 ? op.first_expert + op.experts + 1 : op.experts);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t t = 0; t < rows; ++t, ids += op.top_k) {
    std::shuffle(all.begin(), all.end(), random);
    std::copy_n(all.begin(), op.top_k, ids);
    std::sort(ids, ids + op.top_k);
  }
}

// Random codes, those past the last column too, that are no NaN; scales that make outputs about one.
void fill_packed(const RowLayout& l, std::span<std::byte> out, std::mt19937_64& random) {
  for (std::byte& b : out.first(l.scales_offset())) {
    do {
      b = static_cast<std::byte>(random());
    } while (l.kind == PackedKind::fp8 && (static_cast<uint8_t>(b) & 0x7f) == 0x7f);
  }
  const float unit = (l.kind == PackedKind::int8   ? 1 / 100.0f
                      : l.kind == PackedKind::fp8  ? 1 / 200.0f
                      : l.kind == PackedKind::int4 ? 1 / 8.0f
                                                   : 1 / 4.0f) /
                     std::sqrt(static_cast<float>(l.cols));
  const auto put = [&](int64_t offset, int64_t i, float v) { std::memcpy(out.data() + offset + 4 * i, &v, sizeof v); };
  const auto scale = [&] { return unit * (0.5f + static_cast<float>(random() % 1000) / 1000); };
  for (int64_t i = 0; i < l.rows * l.groups(); ++i) {
    if (l.kind == PackedKind::nvfp4) {
      out[l.scales_offset() + i] = static_cast<std::byte>(random() % 0x48);  // subnormal ones too
    } else if (l.kind == PackedKind::mxfp4) {
      out[l.scales_offset() + i] = static_cast<std::byte>(120 + random() % 8);
    } else {
      put(l.scales_offset(), i, scale());
    }
    if (l.zeros) out[l.zeros_offset() + i] = static_cast<std::byte>(static_cast<int>(random() % 16) - 8);
    if (l.offsets) put(l.offsets_offset(), i, scale());
  }
  for (int64_t i = 0; l.kind == PackedKind::nvfp4 && i < l.rows; ++i) put(l.factors_offset(), i, scale());
  if (!l.ordered) return;
  std::vector<int32_t> order(l.cols);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::memcpy(out.data() + l.order_offset(), order.data(), order.size() * 4);
}

CacheShape cache_shape(const Op& op) {
  if (const auto* a = std::get_if<Attention>(&op)) return {a->kv_heads, a->head_dim, 0, a->window};
  if (const auto* r = std::get_if<RopeKvWrite>(&op)) return {r->kv_heads, r->head_dim, r->rotary_dim, 0};
  if (const auto* r = std::get_if<Rope>(&op)) return {0, 0, r->rotary_dim, 0};
  if (const auto* m = std::get_if<MlaKvWrite>(&op)) return {1, m->rank + m->rope, m->rope, 0, 1};
  if (const auto* m = std::get_if<MlaAttention>(&op)) return {1, m->rank + m->rope, 0, 0, 1};
  return {};
}

}  // namespace

template <class T>
T* OpProblem::Allocator<T>::allocate(size_t n) {
  const size_t bytes = std::max<size_t>(n * sizeof(T), 1), page = bytes >= (4u << 20) ? 2u << 20 : 64;
  void* p = std::aligned_alloc(page, (bytes + page - 1) / page * page);
  if (p == nullptr) throw std::bad_alloc();
  if (page > 64) madvise(p, bytes, MADV_HUGEPAGE);
  return static_cast<T*>(p);
}

OpProblem::OpProblem(const OpCase& c, uint64_t seed) : case_(c) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto fill = [&](Memory& memory, DType type, int64_t n, float scale) {
    memory.resize(static_cast<size_t>(n) * bit_size(type) / 8);
    std::byte* p = memory.data();
    for (int64_t i = 0; i < n; ++i) store_f32(p, type, i, uniform(random) * scale);
  };
  for (const WeightSpec& w : c.weights) {
    if (w.layout == Layout::packed) {
      Memory& memory = weight_data_.emplace_back();
      memory.resize(w.bytes());
      fill_packed(w.row_layout(), memory, random);
      continue;
    }
    fill(weight_data_.emplace_back(), w.dtype, w.rows * w.cols,
         w.rows > 1 ? 1.7f / std::sqrt(static_cast<float>(w.cols)) : 1);
  }
  widths(c, input_widths_, output_widths_);
  const int64_t rows = c.rows();
  for (int64_t w : input_widths_) fill(input_data_.emplace_back(), DType::f32, rows * w, 3);
  if (const auto* m = std::get_if<MoeLinear>(&c.op))
    choose_experts(*m, rows, reinterpret_cast<int32_t*>(input_data_[1].data()), random);
  for (int64_t w : output_widths_) output_data_.emplace_back(rows * w * sizeof(float));

  starts_ = {0};
  int64_t blocks = 0;
  for (const CaseSequence& s : c.seqs) {
    row_seq_.insert(row_seq_.end(), s.tokens, static_cast<int32_t>(contexts_.size()));
    for (int32_t i = 0; i < s.tokens; ++i) positions_.push_back(s.context - s.tokens + i);
    starts_.push_back(starts_.back() + s.tokens);
    contexts_.push_back(s.context);
    const int32_t n = (s.context + c.block_size - 1) / c.block_size;
    blocks += n, max_blocks_ = std::max(max_blocks_, n);
  }
  const auto* embed = std::get_if<Embed>(&c.op);
  for (int64_t i = 0; i < rows; ++i) {
    ids_.push_back(embed != nullptr ? static_cast<int32_t>(random() % embed->vocab) : 0);
    output_rows_.push_back(static_cast<int32_t>(random() % rows));
  }

  const CacheShape shape = cache_shape(c.op);
  for (int64_t i = 0; i < rows * shape.rotary / 2; ++i) {
    const float angle = uniform(random) * 3;
    cos_.push_back(std::cos(angle)), sin_.push_back(std::sin(angle));
  }
  // A block: K of all heads, then V. One block more than needed stays NaN.
  std::vector<int32_t> free(blocks + 1);
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), random);
  const int64_t plane = shape.plane_bytes(c.kv_dtype, c.block_size), plane_rows = shape.rows(c.block_size);
  const auto fill_cache = [&](int64_t block, int64_t p, int64_t row, const std::function<float()>& number) {
    std::byte* at = cache_.data() + (block * shape.planes + p) * plane;
    fill_row(at, c.kv_dtype, plane_rows, row, shape.head_dim, number);
  };
  cache_.resize((blocks + 1) * shape.planes * plane);
  for (int64_t i = 0; i < (blocks + 1) * shape.planes * plane_rows; ++i) {
    fill_cache(i / plane_rows / shape.planes, i / plane_rows % shape.planes, i % plane_rows, [] { return kNan; });
  }
  table_.assign(c.seqs.size() * max_blocks_, -1);
  for (size_t s = 0; s < c.seqs.size(); ++s) {
    const int64_t oldest = c.seqs[s].context - c.seqs[s].tokens;  // the position of the step's first row
    const int64_t live = shape.window > 0 ? std::max<int64_t>(0, oldest - shape.window + 1) : 0;
    for (int64_t j = 0; j < c.seqs[s].context; ++j) {
      int32_t& block = table_[s * max_blocks_ + j / c.block_size];
      if (j / c.block_size < live / c.block_size) continue;  // freed behind the window
      if (block < 0) block = free.back(), free.pop_back();
      if (j < live || (j >= oldest && c.inputs == 3)) continue;  // dead, or the kernel writes it
      for (int64_t h = 0; h < shape.planes * shape.kv_heads; ++h) {
        fill_cache(block, h / shape.kv_heads, h % shape.kv_heads * c.block_size + j % c.block_size,
                   [&] { return uniform(random) * 2; });
      }
    }
  }
}

void OpProblem::bind() {
  const int64_t rows = case_.rows();
  weights_.clear(), in_.clear(), out_.clear();
  for (size_t i = 0; i < case_.weights.size(); ++i) weights_.push_back({case_.weights[i], weight_data_[i].data()});
  for (size_t i = 0; i < input_widths_.size(); ++i) {
    in_.push_back({input_data_[i].data(), input_type(case_.op, i), {rows, input_widths_[i]}});
  }
  for (size_t i = 0; i < output_widths_.size(); ++i) {
    out_.push_back({output_data_[i].data(), output_type(case_.op, i), {rows, output_widths_[i]}});
  }
  const CacheShape shape = cache_shape(case_.op);
  const int64_t half = shape.plane_bytes(case_.kv_dtype, case_.block_size);
  ropes_ = {{cos_.data(), sin_.data()}};
  kv_ = {{.base = cache_.data(),
          .block_stride = shape.planes * half,
          .v_offset = (shape.planes - 1) * half,
          .block_size = case_.block_size,
          .dtype = case_.kv_dtype,
          .k_scale = case_.kv_dtype == DType::f8_e4m3 ? 0.01f : 1,
          .v_scale = case_.kv_dtype == DType::f8_e4m3 ? 0.0125f : 1,
          .block_table = table_.data(),
          .max_blocks = max_blocks_}};
  batch_ = {.tokens = static_cast<int32_t>(rows),
            .seqs = static_cast<int32_t>(case_.seqs.size()),
            .outputs = static_cast<int32_t>(rows),
            .max_seq_tokens = 1,
            .max_context = 1,
            .token_ids = ids_.data(),
            .positions = positions_.data(),
            .row_seq = row_seq_.data(),
            .seq_start = starts_.data(),
            .context_len = contexts_.data(),
            .output_rows = output_rows_.data(),
            .rope = ropes_,
            .kv = kv_};
  for (const CaseSequence& s : case_.seqs) {
    batch_.max_seq_tokens = std::max(batch_.max_seq_tokens, s.tokens);
    batch_.max_context = std::max(batch_.max_context, s.context);
  }
}

void OpProblem::round_inputs(const ValueTypes& types) {
  for (size_t i = 0; i < input_data_.size(); ++i) {
    if (types.in[i] == DType::i32) continue;
    auto* x = reinterpret_cast<float*>(input_data_[i].data());
    for (size_t k = 0; k < input_data_[i].size() / sizeof(float); ++k) {
      alignas(float) std::byte narrow[sizeof(float)];
      store_f32(narrow, types.in[i], 0, x[k]);
      x[k] = load_f32(narrow, types.in[i], 0);
    }
  }
}

LaunchArgs OpProblem::args(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device) {
  bind();
  const size_t bytes = kernel.workspace == nullptr ? 0 : kernel.workspace(case_.call(), tuning, device);
  workspace_.assign(bytes, std::byte{0xff});  // NaN
  return {.op = &case_.op,
          .in = in_,
          .out = out_,
          .weights = weights_,
          .workspace = {workspace_.data(), bytes},
          .batch = &batch_,
          .tuning = tuning};
}

OpProblem::Outcome OpProblem::run(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device,
                                  Stream& stream) {
  const Memory before = cache_;
  const LaunchArgs launch = args(kernel, tuning, device);
  for (size_t i = 0; i < out_.size(); ++i) std::fill_n(out_[i].as<float>(), out_[i].shape.elements(), kNan);
  kernel.launch(launch, stream);
  stream.synchronize();
  Outcome outcome;
  for (const TensorView& v : out_) {
    auto& out = outcome.out.emplace_back(v.as<float>(), v.as<float>() + v.shape.elements());
    if (v.dtype == DType::i32) std::copy_n(v.as<int32_t>(), v.shape.elements(), out.begin());
  }
  outcome.cache.assign(cache_.begin(), cache_.end());
  std::copy(before.begin(), before.end(), cache_.begin());
  return outcome;
}

double OpProblem::time(const Kernel& kernel, const Tuning& tuning, const DeviceInfo& device, Stream& stream,
                       double min_seconds, size_t cold_bytes) {
  const LaunchArgs launch = args(kernel, tuning, device);
  while (!weight_data_.empty() && (cold_.size() + 1) * weight_data_[0].size() < cold_bytes) {
    cold_.push_back(weight_data_[0]);
  }
  double best = std::numeric_limits<double>::infinity(), total = 0;
  for (size_t i = 0; i < 5 || (total < min_seconds && i < 10000); ++i) {
    if (!cold_.empty()) weights_[0].data = cold_[i % cold_.size()].data();
    const auto start = std::chrono::steady_clock::now();
    kernel.launch(launch, stream);
    stream.synchronize();
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) best = std::min(best, s);  // the first touches pages
    total += s;
  }
  return best;
}

OpProblem OpProblem::rows_of(int64_t seq, int64_t first, int64_t last) const {
  OpProblem part = *this;
  const int64_t at = starts_[seq] + first, n = last - first;
  part.case_.seqs = {{static_cast<int32_t>(n), static_cast<int32_t>(positions_[at + n - 1] + 1)}};
  for (size_t i = 0; i < input_data_.size(); ++i) {
    const std::byte* from = input_data_[i].data() + at * input_widths_[i] * sizeof(float);
    std::memcpy(part.input_data_[i].data(), from, n * input_widths_[i] * sizeof(float));
  }
  part.positions_.assign(positions_.begin() + at, positions_.begin() + at + n);
  part.row_seq_.assign(n, 0);
  part.ids_.assign(ids_.begin() + at, ids_.begin() + at + n);
  const int64_t half = cache_shape(case_.op).rotary / 2;
  part.cos_.assign(cos_.begin() + at * half, cos_.begin() + (at + n) * half);
  part.sin_.assign(sin_.begin() + at * half, sin_.begin() + (at + n) * half);
  part.starts_ = {0, static_cast<int32_t>(n)};
  part.contexts_ = {part.case_.seqs[0].context};
  part.table_.assign(table_.begin() + seq * max_blocks_, table_.begin() + (seq + 1) * max_blocks_);
  return part;
}

double OpProblem::bytes() const {
  double total = 0;
  for (const WeightSpec& w : case_.weights) total += static_cast<double>(w.bytes());
  if (const auto* m = std::get_if<MoeLinear>(&case_.op)) {  // of the weights, the experts that are chosen
    std::vector<bool> hit(m->experts, false);
    const auto* ids = reinterpret_cast<const int32_t*>(input_data_[1].data());
    for (int64_t i = 0; i < case_.rows() * m->top_k; ++i) {
      if (ids[i] >= m->first_expert && ids[i] < m->first_expert + m->experts) hit[ids[i] - m->first_expert] = true;
    }
    total *= static_cast<double>(std::ranges::count(hit, true)) / static_cast<double>(m->experts);
  }
  for (int64_t w : input_widths_) total += 4.0 * case_.rows() * w;
  for (int64_t w : output_widths_) total += 4.0 * case_.rows() * w;
  if (const auto* a = std::get_if<Attention>(&case_.op)) {
    for (const auto& s : case_.seqs) {
      const double keys = a->window > 0 ? std::min(s.context, a->window + s.tokens - 1) : s.context;
      total += keys * 2.0 * a->kv_heads * a->head_dim * bit_size(case_.kv_dtype) / 8;
    }
  }
  if (const auto* m = std::get_if<MlaAttention>(&case_.op)) {
    for (const auto& s : case_.seqs)
      total += static_cast<double>(s.context * (m->rank + m->rope)) * bit_size(case_.kv_dtype) / 8;
  }
  return total;
}

double OpProblem::flops() const {
  if (const auto* l = std::get_if<Linear>(&case_.op)) return 2.0 * case_.rows() * l->in * l->out;
  if (const auto* a = std::get_if<Attention>(&case_.op)) {
    double scores = 0;
    for (int32_t p : positions_) scores += a->window > 0 ? std::min(p + 1, a->window) : p + 1;
    return 4.0 * scores * a->heads * a->head_dim;
  }
  if (const auto* m = std::get_if<MoeLinear>(&case_.op)) return 2.0 * case_.rows() * m->top_k * m->in * m->out;
  if (const auto* m = std::get_if<MlaAttention>(&case_.op)) {  // what scores and sums take once keys are there
    double scores = 0;
    for (int32_t p : positions_) scores += p + 1;
    return 2.0 * scores * m->heads * (m->nope + m->rope + m->v);
  }
  return 0;
}

}  // namespace pinion
