#include "compiler/quantized_weights.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <vector>

#include "compiler/weight_source.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

// What a tensor "X.weight" is called when X is quantised; one of them tells under which prefix the checkpoint has X.
constexpr std::array<std::string_view, 4> kQuantizedNames{".qweight", ".weight_packed", "_blocks", ".weight"};

}  // namespace

void QuantizedPart::read(int64_t row, DType dtype, std::byte* out) const {
  thread_local std::vector<float> values;
  values.resize(matrix->cols);
  const int64_t n = offset + rows.row(row);
  decode_rows(*matrix, n, n + 1, values);
  if (dtype == DType::f32) {
    std::memcpy(out, values.data(), values.size() * sizeof(float));
    return;
  }
  for (int64_t k = 0; k < matrix->cols; ++k) {
    const uint16_t v = dtype == DType::f16 ? f32_to_f16(values[k]) : f32_to_bf16(values[k]);
    std::memcpy(out + 2 * k, &v, 2);
  }
}

Result<std::shared_ptr<const QuantizedMatrix>> QuantizedWeights::read(const std::string& tensor) {
  const std::string prefix = tensor.ends_with(".weight") ? tensor.substr(0, tensor.size() - 7) : tensor;
  if (prefix == last_prefix_) return last_;
  for (const std::string_view suffix : kQuantizedNames) {
    const std::string found = checkpoint_name(checkpoint_->checkpoint(), prefix + std::string(suffix));
    if (found.empty()) continue;
    PINION_TRY(std::optional<QuantizedMatrix> m, checkpoint_->read(found.substr(0, found.size() - suffix.size())));
    if (!m) continue;
    last_prefix_ = prefix;
    last_ = std::make_shared<QuantizedMatrix>(std::move(*m));
    return last_;
  }
  return std::shared_ptr<const QuantizedMatrix>();
}

Result<std::optional<QuantizedPart>> QuantizedWeights::find(const WeightPart& part, int64_t cols) {
  if (!checkpoint_->is_quantized()) return std::optional<QuantizedPart>();
  QuantizedPart out;
  out.rows = {.rows = part.rows, .block = part.rows, .stride = part.rows};
  PINION_TRY(out.matrix, read(part.name));
  if (!out.matrix && !part.fused.name.empty()) {
    PINION_TRY(out.matrix, read(part.fused.name));
    out.rows = part.fused;
  }
  if (!out.matrix) return std::optional<QuantizedPart>();
  const int64_t matrices = std::max<int64_t>(1, part.stack);
  out.offset = part.stack > 0 ? part.index * out.rows.rows : 0;
  if (out.matrix->rows != matrices * out.rows.rows || out.matrix->cols != cols) {
    return fail(Errc::corrupt,
                fmt::format("the quantised tensor \"{}\" has the shape [{}, {}], the configuration makes it [{}, {}]",
                            part.name, out.matrix->rows, out.matrix->cols, matrices * out.rows.rows, cols),
                checkpoint_->checkpoint().dir().string(), "config.json and the weights do not belong together");
  }
  return std::optional(std::move(out));
}

}  // namespace pinion
