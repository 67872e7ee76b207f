#include "compiler/packed_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/locate_error.h"
#include "compiler/weight_source.h"
#include "quant/packed.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

constexpr int64_t kRows = 256;  // encoded as one matrix: a scale for a whole tensor is one for these rows

// fp4 inputs belong to hardware that multiplies fp4: elsewhere such a format is one of weights alone.
InputRounding input_rounding(InputQuant input) {
  switch (input) {
    case InputQuant::int8_static:
      return InputRounding::int8_static;
    case InputQuant::int8_token:
      return InputRounding::int8_token;
    case InputQuant::e4m3_static:
      return InputRounding::fp8_static;
    case InputQuant::e4m3_token:
      return InputRounding::fp8_token;
    case InputQuant::e4m3_token_group128:
      return InputRounding::fp8_group128;
    case InputQuant::none:
    case InputQuant::e2m1_group16:
      break;
  }
  return InputRounding::none;
}

Packing packing_of(const RowLayout& layout, const QuantizedMatrix& m) {
  Packing p{.kind = layout.kind,
            .group = layout.group,
            .zeros = layout.zeros,
            .offsets = layout.offsets,
            .ordered = layout.ordered};
  p.inputs = input_rounding(m.scheme.input);
  if (is_static(p.inputs)) p.input_scale = m.input_scale;
  return p;
}

// Parts that read one input are one linear: where only its static scale differs, the largest covers all of them.
bool join(Packing& all, Packing part) {
  const float most = std::max(all.input_scale, part.input_scale);
  part.input_scale = all.input_scale;
  if (!(part == all)) return false;
  all.input_scale = most;
  return true;
}

// How a build encodes: of a format that would be calibrated (dummy weights have no inputs), the same codes and scales,
// rounded to nearest.
struct Rounding {
  const QuantFormat* format;
  EncodeOptions options;
};
Result<Rounding> rounding_of(const QuantFormat& format, int64_t cols) {
  Rounding out{&format, format.defaults};
  if (format.needs_inputs) {
    PINION_TRY(out.format, find_quant_format(format.scaling == InputScaling::smooth ? "int8_wo" : "int4_wo"));
  }
  out.options.act_order = false;
  int32_t& group = out.options.group;
  if (group > 0 && cols % group != 0) group = cols % 32 == 0 ? 32 : 0;
  return out;
}

}  // namespace

Result<uint64_t> packed_bytes(const QuantFormat& format, int64_t rows, int64_t cols) {
  PINION_TRY(const Rounding rounding, rounding_of(format, cols));
  const std::vector<float> row(cols, 0);
  PINION_TRY(const QuantizedMatrix m, rounding.format->encode({row, 1, cols}, rounding.options, nullptr));
  const PackedPlan plan = plan_packed(m.scheme, rows, cols);
  if (!plan.why_not.empty()) return fail(Errc::unsupported, plan.why_not, "--qformat", "choose another format");
  return static_cast<uint64_t>(plan.layout.bytes());
}

Result<const QuantFormat*> build_format(const std::string& qformat, bool dummy) {
  PINION_TRY(const QuantFormat* format, find_quant_format(qformat));
  if (!format->needs_inputs || dummy) return format;
  return fail(Errc::invalid_argument, fmt::format("{} needs a calibration set, which a build has not", qformat),
              "--qformat", "make a quantised checkpoint with pinion quantize, and build that");
}

bool is_quantizable(const Graph& graph, const Node& node) {
  if (std::holds_alternative<MoeLinear>(node.op)) return true;
  if (!std::holds_alternative<Linear>(node.op) || graph.spec(node.out[0]).rows == Rows::outputs) return false;
  return std::ranges::none_of(graph.nodes(), [&](const Node& other) {
    return std::holds_alternative<MoeRoute>(other.op) && other.in[0] == node.out[0];
  });
}

WeightPacker::WeightPacker(const QuantizedCheckpoint& checkpoint, const QuantFormat* format, ThreadPool& pool)
    : quantized_(checkpoint), checkpoint_(checkpoint), format_(format), pool_(pool) {}

Result<std::vector<QuantizedPart>> WeightPacker::encode(const WeightPart& part, int64_t cols) {
  PINION_TRY(const WeightSource source, WeightSource::open(checkpoint_.checkpoint(), part, cols, false));
  PINION_TRY(const Rounding rounding, rounding_of(*format_, cols));
  const int64_t chunks = (part.rows + kRows - 1) / kRows;
  std::vector<Result<QuantizedMatrix>> made(chunks, QuantizedMatrix{});
  pool_.run(chunks, [&](int64_t i) {
    const int64_t first = i * kRows, rows = std::min(kRows, part.rows - first);
    std::vector<float> values(rows * cols);
    for (int64_t r = 0; r < rows; ++r) {
      source.read(first + r, 0, cols, DType::f32, reinterpret_cast<std::byte*>(values.data() + r * cols));
    }
    made[i] = rounding.format->encode({values, rows, cols}, rounding.options, nullptr);
  });
  std::vector<QuantizedPart> out;
  for (auto& m : made) {
    if (!m.ok()) return locate_error(m.error(), part.name);
    auto matrix = std::make_shared<QuantizedMatrix>(*std::move(m));
    matrix->scheme.input = rounding.options.input;
    const int64_t rows = matrix->rows;
    out.push_back({std::move(matrix), {.rows = rows, .block = rows, .stride = rows}, 0});
  }
  return out;
}

Result<std::optional<std::vector<QuantizedPart>>> WeightPacker::parts_of(const WeightPart& part, int64_t cols) {
  if (format_ != nullptr) {
    PINION_TRY(std::vector<QuantizedPart> parts, encode(part, cols));
    return std::optional(std::move(parts));
  }
  PINION_TRY(std::optional<QuantizedPart> found, quantized_.find(part, cols));
  if (!found) return std::optional<std::vector<QuantizedPart>>();
  return std::optional(std::vector<QuantizedPart>{*std::move(found)});
}

Result<bool> WeightPacker::pack(const WeightUse& use, WeightSpec& spec, const WhyNot& why_not,
                                std::vector<std::byte>& out) {
  why_.clear();
  if (use.rows == 1) return false;
  struct Placed {
    QuantizedPart part;
    int64_t rows, first, step;
  };
  std::vector<Placed> placed;
  std::optional<Packing> packing;
  int64_t done = 0;
  for (size_t p = 0; p < use.parts.size(); ++p) {
    const bool second = use.interleave && p >= use.parts.size() / 2;
    if (use.interleave && p == use.parts.size() / 2) done = 0;  // the second half goes between the first's rows
    PINION_TRY(auto parts, parts_of(use.parts[p], use.cols));
    if (!parts) {
      if (p > 0) why_ = "some of its parts are quantised, others are not";
      return false;
    }
    const int64_t step = use.interleave ? 2 : 1;
    for (QuantizedPart& part : *parts) {
      const PackedPlan plan = plan_packed(*part.matrix);
      if (!plan.why_not.empty()) {
        why_ = plan.why_not;
      } else if (const Packing own = packing_of(plan.layout, *part.matrix); packing && !join(*packing, own)) {
        why_ = "its parts are quantised in different ways";
      } else if (!placed.empty() && placed[0].part.matrix->column_group != part.matrix->column_group) {
        why_ = "its parts have their columns in different orders (act-order)";
      } else {
        if (!packing) packing = own;
        const int64_t rows = format_ != nullptr ? part.matrix->rows : use.parts[p].rows;
        placed.push_back({std::move(part), rows, done * step + (second ? 1 : 0), step});
        done += rows;
      }
      if (!why_.empty()) {
        if (format_ == nullptr) return false;
        return fail(Errc::unsupported, fmt::format("{} cannot be packed: {}", use.parts[p].name, why_), "--qformat",
                    "choose another format");
      }
    }
  }
  WeightSpec wanted{spec.dtype, Layout::packed, spec.rows, spec.cols, *packing};
  if (why_ = why_not(wanted); !why_.empty()) {
    if (format_ == nullptr) return false;
    return fail(Errc::unsupported, fmt::format("no kernel reads {} as {}: {}", use.parts[0].name, str(wanted), why_),
                "--qformat", "choose another format or target");
  }
  const RowLayout layout = wanted.row_layout();
  out.assign(static_cast<size_t>(layout.bytes()), std::byte{0});
  pack_order(*placed[0].part.matrix, layout, out);
  for (const Placed& p : placed) {
    pool_.run((p.rows + kRows - 1) / kRows, [&](int64_t chunk) {
      for (int64_t r = chunk * kRows; r < std::min(p.rows, (chunk + 1) * kRows); ++r) {
        pack_row(*p.part.matrix, p.part.offset + p.part.rows.row(r), layout, p.first + r * p.step, out);
      }
    });
  }
  spec = wanted;
  return true;
}

std::vector<std::byte> expand_packed(const WeightSpec& spec, std::span<const std::byte> packed) {
  const RowLayout layout = spec.row_layout();
  const size_t row_bytes = spec.cols * byte_size(spec.dtype);
  std::vector<std::byte> out(spec.rows * row_bytes);
  ThreadPool pool(available_cpus());
  pool.run((spec.rows + kRows - 1) / kRows, [&](int64_t chunk) {
    std::vector<float> row(spec.cols);
    for (int64_t r = chunk * kRows; r < std::min(spec.rows, (chunk + 1) * kRows); ++r) {
      decode_packed(layout, packed, r, r + 1, row);
      convert_floats(reinterpret_cast<const std::byte*>(row.data()), DType::f32, out.data() + r * row_bytes, spec.dtype,
                     spec.cols);
    }
  });
  return out;
}

void fill_packed(const RowLayout& layout, std::span<std::byte> out) {
  uint32_t state = 12345;
  const auto codes = out.first(layout.scales_offset());
  for (size_t i = 0; i < codes.size(); ++i) {
    state = state * 1664525 + 1013904223;
    const auto byte = static_cast<uint8_t>(state >> 24);
    codes[i] = static_cast<std::byte>(layout.kind == PackedKind::fp8 ? byte & 0xbf : byte);  // far from NaN
  }
  const int64_t scales = layout.rows * layout.groups();
  constexpr float kScale = 1.0f / 64;
  for (int64_t i = 0; i < scales; ++i) {
    std::byte* at = out.data() + layout.scales_offset() + i * layout.scale_bytes();
    if (layout.kind == PackedKind::nvfp4) *at = std::byte{0x38};  // 1
    if (layout.kind == PackedKind::mxfp4) *at = std::byte{121};   // 2^-6
    if (layout.scale_bytes() == 4) std::memcpy(at, &kScale, 4);
  }
  for (int64_t i = 0; layout.zeros && i < scales; ++i) out[layout.zeros_offset() + i] = std::byte{0};
  for (int64_t i = 0; layout.offsets && i < scales; ++i) {
    std::memcpy(out.data() + layout.offsets_offset() + i * 4, &kScale, 4);
  }
  for (int64_t i = 0; layout.ordered && i < layout.cols; ++i) {
    const auto place = static_cast<int32_t>(i);
    std::memcpy(out.data() + layout.order_offset() + i * 4, &place, 4);
  }
  for (int64_t i = 0; layout.kind == PackedKind::nvfp4 && i < layout.rows; ++i) {
    std::memcpy(out.data() + layout.factors_offset() + i * 4, &kScale, 4);
  }
}

}  // namespace pinion
