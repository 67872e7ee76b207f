// Where weights and graph meet: by tensor name. Parts are read, checked against the shape the graph expects, converted
// and stacked (or interleaved) into the layout that the kernels read. Dummy checkpoints are filled instead.
#include <fmt/format.h>

#include <cstring>

#include "base/thread_pool.h"
#include "compiler/compiler.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

// Converts n elements from unaligned `from` into `to`.
void convert(const std::byte* from, DType from_type, std::byte* to, DType to_type, int64_t n) {
  if (from_type == to_type) {
    std::memcpy(to, from, n * byte_size(to_type));
    return;
  }
  constexpr int64_t kChunk = 256;
  alignas(64) std::byte buffer[kChunk * 4];
  for (int64_t i = 0; i < n; i += kChunk) {
    const int64_t m = std::min(kChunk, n - i);
    std::memcpy(buffer, from + i * byte_size(from_type), m * byte_size(from_type));
    for (int64_t k = 0; k < m; ++k) store_f32(to + i * byte_size(to_type), to_type, k, load_f32(buffer, from_type, k));
  }
}

}  // namespace

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

Status pack_weight(const Checkpoint& checkpoint, const WeightUse& use, const WeightSpec& spec,
                   std::span<std::byte> out) {
  const bool vector = use.rows == 1;
  const int64_t cols = vector ? 1 : use.cols;  // of one row of a part
  const size_t row_bytes = cols * byte_size(spec.dtype);
  ThreadPool pool(available_cpus());
  int64_t done = 0;
  for (size_t p = 0; p < use.parts.size(); ++p) {
    const WeightPart& part = use.parts[p];
    TensorRef tensor;
    if (!checkpoint.is_dummy()) {
      PINION_TRY(tensor, checkpoint.tensor(part.name));
      const Shape want = vector ? Shape{part.rows} : Shape{part.rows, cols};
      if (!(tensor.shape == want)) {
        return fail(Errc::corrupt,
                    fmt::format("the tensor \"{}\" has the shape {}, the configuration makes it {}", part.name,
                                tensor.shape.str(), want.str()),
                    checkpoint.dir().string(), "config.json and the weights do not belong together");
      }
      if (!is_float(tensor.dtype)) {
        return fail(Errc::unsupported, fmt::format("the tensor \"{}\" has the dtype {}", part.name, name(tensor.dtype)),
                    checkpoint.dir().string(), "supported: float32, float16, bfloat16");
      }
    }
    const int64_t step = use.interleave ? 2 : 1, first = use.interleave ? static_cast<int64_t>(p) : done;
    constexpr int64_t kRows = 256;
    pool.run((part.rows + kRows - 1) / kRows, [&](int64_t chunk) {
      for (int64_t r = chunk * kRows; r < std::min(part.rows, (chunk + 1) * kRows); ++r) {
        const std::span<std::byte> to = out.subspan((first + r * step) * row_bytes, row_bytes);
        if (checkpoint.is_dummy()) {
          fill_dummy(part.name, spec.dtype, to, vector ? part.rows : cols, r * cols);
        } else {
          convert(tensor.data.data() + r * cols * byte_size(tensor.dtype), tensor.dtype, to.data(), spec.dtype, cols);
        }
      }
    });
    done += part.rows;
  }
  return {};
}

}  // namespace pinion
