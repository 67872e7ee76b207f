#include "compiler/dense_weight.h"

#include <algorithm>
#include <atomic>

#include "tensor/f16_range.h"

namespace pinion {
namespace {

constexpr size_t kPackBytes =
    size_t{1} << 20;  // what a thread packs at a time: some of its cache, and no lock each row

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

Error beyond_f16(const std::string& tensor) {
  return fail(Errc::invalid_argument, "the tensor \"" + tensor + "\" holds values beyond 65504, the largest of float16",
              "--dtype", "choose bfloat16 or float32");
}

}  // namespace

Result<DenseWeight> DenseWeight::open(const QuantizedCheckpoint& checkpoint, const WeightUse& use,
                                      const WeightSpec& spec) {
  const bool vector = use.rows == 1;
  DenseWeight w;
  w.dtype_ = spec.dtype;
  w.cols_ = vector ? 1 : use.cols;
  w.step_ = use.interleave ? 2 : 1;
  QuantizedWeights quantized(checkpoint);
  int64_t done = 0;
  for (size_t p = 0; p < use.parts.size(); ++p) {
    if (use.interleave && p == use.parts.size() / 2) done = 0;  // the second half goes between the first's rows
    const bool second = use.interleave && p >= use.parts.size() / 2;
    Part part{.name = use.parts[p].name,
              .quantized = {},
              .source = {},
              .rows = use.parts[p].rows,
              .first = done * w.step_ + (second ? 1 : 0)};
    if (!vector) {
      PINION_TRY(part.quantized, quantized.find(use.parts[p], w.cols_));
    }
    if (!part.quantized) {
      PINION_TRY(part.source, WeightSource::open(checkpoint.checkpoint(), use.parts[p], w.cols_, vector));
    }
    done += part.rows;
    w.rows_ += part.rows;
    w.parts_.push_back(std::move(part));
  }
  return w;
}

std::vector<RowRun> DenseWeight::runs(int64_t first, int64_t n) const {
  std::vector<RowRun> out;
  for (size_t p = 0; p < parts_.size(); ++p) {
    const Part& part = parts_[p];
    const int64_t from = ceil_div(std::max<int64_t>(0, first - part.first), step_),
                  end = std::min(part.rows, ceil_div(std::max<int64_t>(0, first + n - part.first), step_));
    if (from < end) out.push_back({p, from, end - from, part.first + from * step_ - first, step_});
  }
  return out;
}

void DenseWeight::read(const Part& part, int64_t row, std::byte* out) const {
  if (part.quantized) {
    part.quantized->read(row, dtype_, out);
  } else {
    part.source->read(row, 0, cols_, dtype_, out);
  }
}

Status DenseWeight::pack(int64_t first, int64_t n, std::span<std::byte> out, ThreadPool& pool) const {
  check(out.size() == static_cast<size_t>(n) * row_bytes(), "rows of another size are packed");
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kPackBytes / row_bytes()));
  std::vector<RowRun> tasks;
  for (const RowRun& run : runs(first, n)) {
    for (int64_t i = 0; i < run.rows; i += most) {
      tasks.push_back({run.part, run.from + i, std::min(most, run.rows - i), run.first + i * run.step, run.step});
    }
  }
  std::atomic<size_t> overflow = parts_.size();  // the part, if any
  pool.run(std::ssize(tasks), [&](int64_t t) {
    const RowRun& task = tasks[t];
    for (int64_t i = 0; i < task.rows; ++i) {
      std::byte* to = out.data() + (task.first + i * task.step) * row_bytes();
      read(parts_[task.part], task.from + i, to);
      if (dtype_ == DType::f16 && has_f16_infinity({to, row_bytes()})) overflow = task.part;
    }
  });
  if (overflow < parts_.size()) return beyond_f16(parts_[overflow].name);
  return {};
}

const WeightSource* DenseWeight::stored(size_t part) const {
  const auto& source = parts_[part].source;
  return source && source->row_bytes(0) != nullptr ? &*source : nullptr;
}

bool DenseWeight::converts() const {
  bool some = false;
  for (size_t p = 0; p < parts_.size(); ++p) {
    if (stored(p) == nullptr) return false;
    some |= stored(p)->tensor().dtype != dtype_;
  }
  return some;
}

}  // namespace pinion
