#include "compiler/weight_source.h"

#include <fmt/format.h>

#include <array>
#include <utility>
#include <vector>

#include "tensor/convert.h"

namespace pinion {
namespace {

// A scope of ours and what publishers write instead: the body saved without its head (GPT-2, BLOOM, OPT), and a text
// model inside a vision model, in the order of transformers before and after 4.52.
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kPrefixes{
    {{"transformer.", ""},
     {"model.", ""},
     {"model.", "language_model.model."},
     {"model.", "model.language_model."},
     {"model.", "model.text_model."},
     {"lm_head.", "language_model.lm_head."}}};

// Whether a tensor of `shape` is one of `want`, leading dimensions taken together: [experts, rows, cols] as
// [experts * rows, cols].
bool same(const Shape& shape, const Shape& want) {
  const int extra = shape.rank() - want.rank();
  if (extra < 0) return false;
  int64_t leading = 1;
  for (int i = 0; i <= extra; ++i) leading *= shape[i];
  if (leading != want[0]) return false;
  for (int i = 1; i < want.rank(); ++i) {
    if (shape[i + extra] != want[i]) return false;
  }
  return true;
}

}  // namespace

std::string checkpoint_name(const Checkpoint& checkpoint, const std::string& name) {
  if (checkpoint.contains(name)) return name;
  for (const auto& [ours, theirs] : kPrefixes) {
    if (!name.starts_with(ours)) continue;
    std::string other = std::string(theirs) + name.substr(ours.size());
    if (checkpoint.contains(other)) return other;
  }
  return {};
}

Result<WeightSource> WeightSource::open(const Checkpoint& checkpoint, const WeightPart& part, int64_t cols,
                                        bool vector) {
  WeightSource s;
  s.cols_ = cols;
  s.rows_ = {.rows = part.rows, .block = part.rows, .stride = part.rows};
  s.name_ = part.name;
  if (checkpoint.is_dummy()) {
    s.dummy_width_ = vector ? part.rows : cols;
    return s;
  }
  std::string found = checkpoint_name(checkpoint, part.name);
  if (found.empty() && !part.fused.name.empty()) {
    found = checkpoint_name(checkpoint, part.fused.name);
    if (!found.empty()) s.rows_ = part.fused;
  }
  s.transposed_ = part.transposed && !vector;
  PINION_TRY(s.tensor_, checkpoint.tensor(found.empty() ? part.name : found));  // the error names near misses
  s.name_ = std::move(found);
  const bool stacked = part.stack > 0 && !vector;
  const int64_t matrices = stacked ? part.stack : 1;
  const Shape want = vector          ? Shape{s.rows_.rows}
                     : s.transposed_ ? Shape{matrices * cols, s.rows_.rows}
                                     : Shape{matrices * s.rows_.rows, cols};
  if (stacked) s.offset_ = static_cast<size_t>(part.index * s.rows_.rows * cols) * bit_size(s.tensor_.dtype) / 8;
  if (!same(s.tensor_.shape, want)) {
    return fail(Errc::corrupt,
                fmt::format("the tensor \"{}\" has the shape {}, the configuration makes it {}", s.name_,
                            s.tensor_.shape.str(), want.str()),
                checkpoint.dir().string(), "config.json and the weights do not belong together");
  }
  if (!is_float(s.tensor_.dtype)) {
    return fail(Errc::unsupported, fmt::format("the tensor \"{}\" has the dtype {}", s.name_, name(s.tensor_.dtype)),
                checkpoint.dir().string(), "supported: float32, float16, bfloat16");
  }
  return s;
}

const std::byte* WeightSource::row_bytes(int64_t row) const {
  if (dummy_width_ > 0 || transposed_) return nullptr;
  return tensor_.data.data() + offset_ + rows_.row(row) * cols_ * byte_size(tensor_.dtype);
}

void WeightSource::read(int64_t row, int64_t first, int64_t n, DType dtype, std::byte* out) const {
  if (dummy_width_ > 0) {
    fill_dummy(name_, dtype, {out, n * byte_size(dtype)}, dummy_width_, row * cols_ + first);
    return;
  }
  const size_t element = byte_size(tensor_.dtype);
  if (!transposed_) {
    convert_floats(row_bytes(row) + first * element, tensor_.dtype, out, dtype, n);
    return;
  }
  const std::byte* data = tensor_.data.data() + offset_;
  // Down a column of the tensor. Neighbouring rows share its cache lines.
  for (int64_t i = 0; i < n; ++i) {
    convert_floats(data + ((first + i) * rows_.rows + rows_.row(row)) * element, tensor_.dtype,
                   out + i * byte_size(dtype), dtype, 1);
  }
}

}  // namespace pinion
