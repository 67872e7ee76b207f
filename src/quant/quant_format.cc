#include "quant/quant_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "quant/formats/fp8/fp8.h"
#include "quant/formats/int4/awq.h"
#include "quant/formats/int4/gptq.h"
#include "quant/formats/int4/int4.h"
#include "quant/formats/int8/int8.h"
#include "quant/formats/int8/smoothquant.h"
#include "quant/formats/mxfp4/mxfp4.h"
#include "quant/formats/nvfp4/nvfp4.h"
#include "quant/number_formats.h"

namespace pinion {
namespace {

constexpr InputScaling kNone = InputScaling::none;

constexpr std::array kFormats{
    QuantFormat{"fp8",
                "e4m3 weights with a scale per channel, fp8 inputs scaled per token",
                false,
                kNone,
                {.input = InputQuant::e4m3_token},
                encode_fp8},
    QuantFormat{"int8_wo", "int8 weights with a scale per channel", false, kNone, {}, encode_int8},
    QuantFormat{
        "int4_wo", "int4 weights in groups, rounded to nearest", false, kNone, {.zero_points = true}, encode_int4},
    QuantFormat{"int4_awq",
                "int4 weights in groups, scaled and clipped by AWQ",
                true,
                InputScaling::awq,
                {.zero_points = true},
                encode_awq},
    QuantFormat{"int4_gptq", "int4 weights in groups, rounded by GPTQ", true, kNone, {.act_order = true}, encode_gptq},
    QuantFormat{"int8_sq",
                "SmoothQuant: int8 weights per channel, int8 inputs scaled per token",
                true,
                InputScaling::smooth,
                {.input = InputQuant::int8_token},
                encode_int8_sq},
    QuantFormat{"w4a8_awq",
                "int4 weights by AWQ, fp8 inputs scaled per token",
                true,
                InputScaling::awq,
                {.zero_points = true, .input = InputQuant::e4m3_token},
                encode_awq},
    QuantFormat{"nvfp4", "fp4 weights with an fp8 scale per 16 columns", false, kNone, {}, encode_nvfp4},
    QuantFormat{"mxfp4", "fp4 weights with a power of two per 32 columns", false, kNone, {}, encode_mxfp4},
};

}  // namespace

std::span<const QuantFormat> quant_formats() {
  return kFormats;
}

Result<const QuantFormat*> find_quant_format(std::string_view name) {
  const auto it = std::ranges::find(kFormats, name, &QuantFormat::name);
  if (it != kFormats.end()) return &*it;
  std::string known;
  for (const QuantFormat& f : kFormats) known += fmt::format("{}{}", known.empty() ? "" : ", ", f.name);
  return fail(Errc::invalid_argument, fmt::format("the quantised format \"{}\" is not known", name), "--qformat",
              "known: " + known);
}

Status set_input_scale(QuantizedMatrix& m, const Calibration* calibration) {
  const bool fp8 = m.scheme.input == InputQuant::e4m3_static;
  if (!fp8 && m.scheme.input != InputQuant::int8_static) return {};
  if (calibration == nullptr || !(calibration->absmax > 0)) {
    return fail(Errc::invalid_argument, "static inputs need their calibrated range", {},
                "give --calib_dataset, or take per-token inputs");
  }
  m.input_scale = calibration->absmax / (fp8 ? kE4m3Max : 127);
  return {};
}

Status check_encodable(const FloatMatrix& w) {
  if (w.rows <= 0 || w.cols <= 0 || w.data.size() != static_cast<size_t>(w.rows * w.cols)) {
    return fail(Errc::invalid_argument, fmt::format("a weight of [{}, {}] cannot be quantised", w.rows, w.cols));
  }
  const auto bad = std::ranges::find_if(w.data, [](float v) { return !std::isfinite(v); });
  if (bad == w.data.end()) return {};
  const int64_t i = bad - w.data.begin();
  return fail(Errc::corrupt, fmt::format("the weight is {} at row {}, column {}", *bad, i / w.cols, i % w.cols), {},
              "a weight must be finite");
}

}  // namespace pinion
