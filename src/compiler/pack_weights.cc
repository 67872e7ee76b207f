// Where weights and graph meet: by tensor name. Parts are read (weight_source.h, quantized_weights.h),
// converted and stacked (or interleaved) into the layout that the kernels read.
#include <algorithm>
#include <atomic>

#include "base/thread_pool.h"
#include "compiler/compiler.h"
#include "compiler/quantized_weights.h"
#include "compiler/weight_source.h"
#include "tensor/f16_range.h"

namespace pinion {
void list_weights(const Graph& graph, DType dtype, std::vector<PackedWeight>& weights,
                  std::vector<std::vector<int32_t>>& node_weights, std::vector<const WeightUse*>& uses) {
  for (const Node& n : graph.nodes()) {
    std::vector<int32_t> ids;
    for (const WeightUse& use : n.weights) {
      // Vectors (norms, biases) stay in f32: they are small, and kernels read them without a conversion.
      const DType type = use.rows == 1 ? DType::f32 : dtype;
      int32_t id = 0;
      while (id < std::ssize(uses) && !(uses[id]->parts == use.parts && uses[id]->interleave == use.interleave &&
                                        uses[id]->rows == use.rows && uses[id]->cols == use.cols)) {
        ++id;
      }
      if (id == std::ssize(uses)) {
        uses.push_back(&use);
        weights.push_back({use.parts[0].name, {type, Layout::row_major, use.rows, use.cols}});
      }
      ids.push_back(id);
    }
    node_weights.push_back(std::move(ids));
  }
}

Status pack_weight(const QuantizedCheckpoint& checkpoint, const WeightUse& use, const WeightSpec& spec,
                   std::span<std::byte> out) {
  const bool vector = use.rows == 1;
  const int64_t cols = vector ? 1 : use.cols;  // of one row of a part
  const size_t row_bytes = cols * byte_size(spec.dtype);
  ThreadPool pool(available_cpus());
  QuantizedWeights quantized(checkpoint);
  int64_t done = 0;
  for (size_t p = 0; p < use.parts.size(); ++p) {
    if (use.interleave && p == use.parts.size() / 2) done = 0;  // the second half goes between the first's rows
    const WeightPart& part = use.parts[p];
    std::optional<QuantizedPart> packed;
    if (!vector) {
      PINION_TRY(packed, quantized.find(part, cols));
    }
    std::optional<WeightSource> source;
    if (!packed) {
      PINION_TRY(source, WeightSource::open(checkpoint.checkpoint(), part, cols, vector));
    }
    const int64_t step = use.interleave ? 2 : 1,
                  first = done * step + (use.interleave && p >= use.parts.size() / 2 ? 1 : 0);
    constexpr int64_t kRows = 256;
    std::atomic<bool> overflow = false;
    pool.run((part.rows + kRows - 1) / kRows, [&](int64_t chunk) {
      for (int64_t r = chunk * kRows; r < std::min(part.rows, (chunk + 1) * kRows); ++r) {
        std::byte* to = out.data() + (first + r * step) * row_bytes;
        if (packed) {
          packed->read(r, spec.dtype, to);
        } else {
          source->read(r, 0, cols, spec.dtype, to);
        }
        if (spec.dtype == DType::f16 && has_f16_infinity({to, row_bytes})) overflow = true;
      }
    });
    if (overflow) {
      return fail(Errc::invalid_argument,
                  "the tensor \"" + part.name + "\" holds values beyond 65504, the largest of float16", "--dtype",
                  "choose bfloat16 or float32");
    }
    done += part.rows;
  }
  return {};
}

}  // namespace pinion
