#include "calibrate/mixed_precision.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace pinion {

std::vector<std::string> by_gain(const std::vector<LinearReport>& report) {
  struct Gain {
    const LinearReport* linear;
    double per_byte;
  };
  std::vector<Gain> gains;
  for (const LinearReport& l : report) {
    if (l.bytes_8bit <= l.bytes) continue;  // is in 8 bits already
    gains.push_back({&l, (l.error - l.error_8bit) / static_cast<double>(l.bytes_8bit - l.bytes)});
  }
  std::ranges::stable_sort(gains, std::greater<>(), &Gain::per_byte);
  std::vector<std::string> order;
  for (const Gain& g : gains) order.push_back(g.linear->module);
  return order;
}

double bits_with(const std::vector<LinearReport>& report, const std::vector<std::string>& order, size_t n) {
  const std::set<std::string> in_8bit(order.begin(), order.begin() + static_cast<int64_t>(n));
  double bytes = 0, elements = 0;
  for (const LinearReport& l : report) {
    bytes += static_cast<double>(in_8bit.contains(l.module) ? l.bytes_8bit : l.bytes);
    elements += static_cast<double>(l.elements);
  }
  return elements > 0 ? 8 * bytes / elements : 0;
}

Result<size_t> count_for_size(const std::vector<LinearReport>& report, const std::vector<std::string>& order,
                              double bits) {
  if (const double least = bits_with(report, order, 0); least > bits) {
    return fail(Errc::invalid_argument, fmt::format("the format alone takes {:.2f} bits per weight", least),
                "--effective_bits", "ask for more, or take larger groups");
  }
  size_t n = 0;
  while (n < order.size() && bits_with(report, order, n + 1) <= bits) ++n;
  return n;
}

Result<size_t> count_for_loss(size_t total, double most, const std::function<Result<double>(size_t)>& loss_of) {
  PINION_TRY(const double none, loss_of(0));
  if (none <= most) return size_t{0};
  PINION_TRY(const double all, loss_of(total));
  if (all > most) {
    return fail(Errc::invalid_argument, fmt::format("with every linear in 8 bits the loss is still {:.3g}", all),
                "--max_kl", "allow more");
  }
  size_t low = 0, high = total;  // too much, enough
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    PINION_TRY(const double loss, loss_of(middle));
    (loss <= most ? high : low) = middle;
  }
  return high;
}

}  // namespace pinion
