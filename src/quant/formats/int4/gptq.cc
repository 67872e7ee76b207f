#include "quant/formats/int4/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/thread_pool.h"
#include "quant/formats/int4/int4.h"

namespace pinion {
namespace {

constexpr int64_t kMostColumns = 32768;  // the Hessian is a square of doubles: 8 GiB
constexpr int64_t kRowsPerTask = 8;

std::vector<double> hessian_of(const FloatMatrix& x) {
  std::vector<double> h(x.cols * x.cols);
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* row = x.data.data() + t * x.cols;
    for (int64_t i = 0; i < x.cols; ++i) {
      const double a = 2.0 * row[i] / static_cast<double>(x.rows);
      for (int64_t j = 0; j < x.cols; ++j) h[i * x.cols + j] += a * row[j];
    }
  }
  return h;
}

// H = R R^T with R upper triangular, in place (the lower half keeps what it had). False: H is not positive definite.
bool reverse_cholesky(std::vector<double>& h, int64_t k) {
  for (int64_t j = k - 1; j >= 0; --j) {
    const double* rj = h.data() + j * k;
    for (int64_t i = j; i >= 0; --i) {
      double* ri = h.data() + i * k;
      double sum[4] = {};
      int64_t m = j + 1;
      for (; m + 4 <= k; m += 4) {
        for (int l = 0; l < 4; ++l) sum[l] += ri[m + l] * rj[m + l];
      }
      for (; m < k; ++m) sum[0] += ri[m] * rj[m];
      const double rest = ri[j] - (sum[0] + sum[1] + sum[2] + sum[3]);
      if (i == j) {
        if (!(rest > 0)) return false;
        ri[j] = std::sqrt(rest);
      } else {
        ri[j] = rest / rj[j];
      }
    }
  }
  return true;
}

// U = R^-1, upper triangular. Then H^-1 = U^T U, which is the factor GPTQ wants.
std::vector<double> upper_inverse(const std::vector<double>& r, int64_t k) {
  std::vector<double> u(k * k);
  for (int64_t i = k - 1; i >= 0; --i) {
    double* row = u.data() + i * k;
    row[i] = 1;
    for (int64_t m = i + 1; m < k; ++m) {
      const double a = r[i * k + m];
      const double* from = u.data() + m * k;
      for (int64_t j = m; j < k; ++j) row[j] -= a * from[j];
    }
    for (int64_t j = i; j < k; ++j) row[j] /= r[i * k + i];
  }
  return u;
}

}  // namespace

Result<QuantizedMatrix> encode_gptq(const FloatMatrix& w, const EncodeOptions& options,
                                    const Calibration* calibration) {
  PINION_OK(check_encodable(w));
  PINION_TRY(const int32_t group, check_int4_group(w.cols, options.group));
  const int64_t cols = w.cols;
  if (calibration == nullptr || (calibration->hessian.empty() && calibration->inputs.rows == 0)) {
    return fail(Errc::invalid_argument, "GPTQ needs a sample of the linear's inputs", {}, "give --calib_dataset");
  }
  if (cols > kMostColumns) {
    return fail(Errc::unsupported, "GPTQ takes rows of up to 32768 columns", {}, "exclude the module, or use int4_awq");
  }
  std::vector<double> h(calibration->hessian.begin(), calibration->hessian.end());
  if (h.empty()) h = hessian_of(calibration->inputs);
  if (h.size() != static_cast<size_t>(cols * cols)) {
    return fail(Errc::invalid_argument, "the calibration inputs do not have the weight's columns");
  }
  std::vector<float> weight(w.data.begin(), w.data.end());
  double mean = 0;
  for (int64_t k = 0; k < cols; ++k) {
    if (h[k * cols + k] == 0) {  // an input that is always 0: any weight is right
      h[k * cols + k] = 1;
      for (int64_t n = 0; n < w.rows; ++n) weight[n * cols + k] = 0;
    }
    mean += h[k * cols + k] / static_cast<double>(cols);
  }
  std::vector<int64_t> order(cols);
  std::iota(order.begin(), order.end(), 0);
  if (options.act_order) {
    std::ranges::stable_sort(order, std::greater<>{}, [&](int64_t k) { return h[k * cols + k]; });
  }
  std::vector<double> permuted(cols * cols);
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) permuted[i * cols + j] = h[order[i] * cols + order[j]];
    permuted[i * cols + i] += options.damping * mean;
  }
  if (!reverse_cholesky(permuted, cols)) {
    return fail(Errc::invalid_argument, "the calibration inputs' second moments are not positive definite", {},
                "calibrate with more text, or raise the damping");
  }
  const std::vector<double> upper = upper_inverse(permuted, cols);
  const std::vector<float> u(upper.begin(), upper.end());

  QuantizedMatrix m{.scheme = {.bits = 4,
                               .block_rows = 1,
                               .block_cols = group,
                               .zero_points = options.zero_points,
                               .input = options.input},
                    .rows = w.rows,
                    .cols = cols};
  const int64_t groups = cols / group;
  m.codes.resize(weight.size());
  m.scales.resize(w.rows * groups);
  if (options.zero_points) m.zeros.resize(w.rows * groups);
  ThreadPool pool(available_cpus());
  pool.run((w.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t first = task * kRowsPerTask, last = std::min(w.rows, first + kRowsPerTask), rows = last - first;
    std::vector<float> rest(rows * cols);  // in the order of rounding
    std::vector<Int4Group> params(rows * groups);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = weight.data() + (first + r) * cols;
      for (int64_t i = 0; i < cols; ++i) rest[r * cols + i] = row[order[i]];
      for (int64_t g = 0; g < groups && options.act_order; ++g) {
        params[r * groups + g] = int4_group(std::span(row + g * group, group), options.zero_points);
      }
    }
    for (int64_t i = 0; i < cols; ++i) {
      const int64_t g = order[i] / group;
      const float* ui = u.data() + i * cols;
      for (int64_t r = 0; r < rows; ++r) {
        float* row = rest.data() + r * cols;
        Int4Group& p = params[r * groups + g];
        // Without act-order the group's range comes from its weights as the errors of earlier groups left them.
        if (!options.act_order && i % group == 0) p = int4_group(std::span(row + i, group), options.zero_points);
        const int8_t q = p.encode(row[i]);
        m.codes[(first + r) * cols + order[i]] = static_cast<uint8_t>(q);
        const float error = (row[i] - p.decode(q)) / ui[i];
        for (int64_t j = i; j < cols; ++j) row[j] -= error * ui[j];
      }
    }
    for (int64_t i = 0; i < rows * groups; ++i) {
      m.scales[first * groups + i] = params[i].scale;
      if (options.zero_points) m.zeros[first * groups + i] = params[i].zero;
    }
  });
  return m;
}

}  // namespace pinion
