#include "quant/formats/int4/awq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/thread_pool.h"
#include "quant/formats/int4/int4.h"

namespace pinion {
namespace {

constexpr int kSteps = 20;            // of the exponent, 0 … 0.95
constexpr int kClips = 10;            // ranges 1, 0.95, … 0.55
constexpr int64_t kMostTokens = 512;  // of the sample that the searches see
constexpr int64_t kRowsPerTask = 16;

// [cols][tokens], so that inner loops run over tokens.
std::vector<float> transposed(const FloatMatrix& x, int64_t tokens) {
  std::vector<float> out(x.cols * tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < x.cols; ++k) out[k * tokens + t] = x.data[t * x.cols + k];
  }
  return out;
}

// Sum over rows and tokens of (x (Q(W s) / s - W)^T)^2.
double output_error(ThreadPool& pool, const FloatMatrix& w, std::span<const float> scale, const std::vector<float>& xt,
                    int64_t tokens, int32_t group, bool zero_points) {
  const int64_t tasks = (w.rows + kRowsPerTask - 1) / kRowsPerTask;
  std::vector<double> sums(tasks);
  pool.run(tasks, [&](int64_t task) {
    std::vector<float> scaled(group), error(tokens);
    for (int64_t n = task * kRowsPerTask; n < std::min(w.rows, (task + 1) * kRowsPerTask); ++n) {
      std::ranges::fill(error, 0.0f);
      const float* row = w.data.data() + n * w.cols;
      for (int64_t k0 = 0; k0 < w.cols; k0 += group) {
        for (int64_t i = 0; i < group; ++i) scaled[i] = row[k0 + i] * scale[k0 + i];
        const Int4Group g = int4_group(scaled, zero_points);
        for (int64_t i = 0; i < group; ++i) {
          const float d = g.round(scaled[i]) / scale[k0 + i] - row[k0 + i];
          const float* x = xt.data() + (k0 + i) * tokens;
          for (int64_t t = 0; t < tokens; ++t) error[t] += d * x[t];
        }
      }
      for (const float e : error) sums[task] += static_cast<double>(e) * e;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

AwqScales awq_search_scales(std::span<const FloatMatrix> linears, const FloatMatrix& inputs, int32_t group,
                            bool zero_points) {
  const int64_t cols = inputs.cols, tokens = std::min(inputs.rows, kMostTokens);
  const std::vector<float> xt = transposed(inputs, tokens);
  std::vector<double> w_mean(cols), x_mean(cols);
  int64_t rows = 0;
  for (const FloatMatrix& w : linears) {
    rows += w.rows;
    for (int64_t begin = 0; begin < std::ssize(w.data); begin += group) {
      float absmax = 0;
      for (int64_t i = 0; i < group; ++i) absmax = std::max(absmax, std::fabs(w.data[begin + i]));
      for (int64_t i = 0; i < group; ++i) {
        w_mean[(begin + i) % cols] += std::fabs(w.data[begin + i]) / (absmax + 1e-6f);
      }
    }
  }
  for (int64_t k = 0; k < cols; ++k) {
    w_mean[k] /= static_cast<double>(rows);
    for (int64_t t = 0; t < tokens; ++t) x_mean[k] += std::fabs(xt[k * tokens + t]);
    x_mean[k] /= static_cast<double>(tokens);
  }

  ThreadPool pool(available_cpus());
  AwqScales best;
  const auto try_scales = [&](std::vector<float> scale, bool plain) {
    double loss = 0;
    for (const FloatMatrix& w : linears) loss += output_error(pool, w, scale, xt, tokens, group, zero_points);
    loss /= static_cast<double>(rows * tokens);
    if (plain) best.plain_loss = loss;
    if (best.scale.empty() || loss < best.loss) {
      best.loss = loss;
      best.scale = std::move(scale);
    }
  };
  try_scales(std::vector<float>(cols, 1.0f), true);
  for (int step = 0; step < kSteps; ++step) {
    const double r = static_cast<double>(step) / kSteps;
    std::vector<float> scale(cols);
    for (int64_t k = 0; k < cols; ++k) {
      scale[k] = static_cast<float>(std::max(std::pow(x_mean[k], r) / (std::pow(w_mean[k], 1 - r) + 1e-4), 1e-4));
    }
    const auto [low, high] = std::ranges::minmax(scale);
    const float middle = std::sqrt(low * high);
    for (float& s : scale) s = std::isfinite(s / middle) ? s / middle : 1;
    try_scales(std::move(scale), false);
  }
  return best;
}

void awq_clip(std::span<float> weight, int64_t rows, int64_t cols, const FloatMatrix& inputs, int32_t group,
              bool zero_points) {
  const int64_t tokens = std::min(inputs.rows, kMostTokens);
  const std::vector<float> xt = transposed(inputs, tokens);
  ThreadPool pool(available_cpus());
  pool.run((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    std::vector<float> clamped(group), best(group), error(tokens);
    for (int64_t n = task * kRowsPerTask; n < std::min(rows, (task + 1) * kRowsPerTask); ++n) {
      for (int64_t k0 = 0; k0 < cols; k0 += group) {
        const std::span<float> w = weight.subspan(n * cols + k0, group);
        float absmax = 0;
        for (const float v : w) absmax = std::max(absmax, std::fabs(v));
        double least = -1;
        for (int clip = 0; clip < kClips; ++clip) {
          const float limit = absmax * (1 - static_cast<float>(clip) / 20);
          for (int64_t i = 0; i < group; ++i) clamped[i] = std::clamp(w[i], -limit, limit);
          const Int4Group g = int4_group(clamped, zero_points);
          std::ranges::fill(error, 0.0f);
          for (int64_t i = 0; i < group; ++i) {
            const float d = g.round(clamped[i]) - w[i];
            const float* x = xt.data() + (k0 + i) * tokens;
            for (int64_t t = 0; t < tokens; ++t) error[t] += d * x[t];
          }
          double sum = 0;
          for (const float e : error) sum += static_cast<double>(e) * e;
          if (least < 0 || sum < least) {
            least = sum;
            best = clamped;
          }
        }
        std::ranges::copy(best, w.begin());
      }
    }
  });
}

Result<QuantizedMatrix> encode_awq(const FloatMatrix& w, const EncodeOptions& options, const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  PINION_TRY(const int32_t group, check_int4_group(w.cols, options.group));
  if (calibration == nullptr || calibration->inputs.rows == 0 || calibration->inputs.cols != w.cols) {
    return fail(Errc::invalid_argument, "AWQ needs a sample of the linear's inputs", {}, "give --calib_dataset");
  }
  const FloatMatrix& x = calibration->inputs;
  const AwqScales found = awq_search_scales(std::span(&w, 1), x, group, options.zero_points);
  std::vector<float> scaled(w.data.begin(), w.data.end()), inputs(x.data.begin(), x.data.end());
  for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= found.scale[i % w.cols];
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i] /= found.scale[i % w.cols];
  awq_clip(scaled, w.rows, w.cols, {inputs, x.rows, x.cols}, group, options.zero_points);
  PINION_TRY(QuantizedMatrix m, encode_int4({scaled, w.rows, w.cols}, options, nullptr));
  for (const float s : found.scale) m.input_multiplier.push_back(1 / s);
  return m;
}

}  // namespace pinion
