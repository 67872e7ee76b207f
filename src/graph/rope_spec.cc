#include "graph/rope_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace pinion {
namespace {

constexpr std::array<std::string_view, 6> kNames{"default", "linear", "dynamic", "yarn", "llama3", "longrope"};

// yarn's magnitude correction (Peng et al. 2023, section 3.4): 0.1 a ln(s) + 1.
double yarn_magnitude(double scale, double a) {
  return scale <= 1 ? 1 : 0.1 * a * std::log(scale) + 1;
}

void yarn(const RopeSpec& s, std::vector<double>& inverse, double& attention) {
  const double m = s.original_max_position ? s.original_max_position : s.max_position;
  const int r = s.rotary_dim;
  auto correction = [&](double rotations) {
    return r * std::log(m / (rotations * 2 * std::numbers::pi)) / (2 * std::log(s.theta));
  };
  double low = correction(s.beta_fast), high = correction(s.beta_slow);
  if (s.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, r - 1.0);
  if (low == high) high += 0.001;  // no division by zero
  for (int i = 0; i < r / 2; ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    inverse[i] = inverse[i] / s.factor * ramp + inverse[i] * (1 - ramp);
  }
  if (s.attention_factor > 0)
    attention = s.attention_factor;
  else if (s.mscale != 0 && s.mscale_all_dim != 0)
    attention = yarn_magnitude(s.factor, s.mscale) / yarn_magnitude(s.factor, s.mscale_all_dim);
  else
    attention = yarn_magnitude(s.factor, 1);
}

double llama3(const RopeSpec& s, double inverse) {
  const double wavelength = 2 * std::numbers::pi / inverse, m = s.original_max_position;
  if (wavelength < m / s.high_freq_factor) return inverse;
  if (wavelength > m / s.low_freq_factor) return inverse / s.factor;
  const double t = (m / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return inverse * ((1 - t) / s.factor + t);
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeSpec& s, int64_t prompt_length) {
  const int r = s.rotary_dim;
  double theta = s.theta, attention = 1;
  if (s.type == RopeType::dynamic && s.max_position > 0 && prompt_length > s.max_position) {
    theta *= std::pow(s.factor * prompt_length / s.max_position - (s.factor - 1), r / (r - 2.0));
  }
  std::vector<double> inverse(r / 2);
  for (int i = 0; i < r / 2; ++i) inverse[i] = std::pow(theta, -2.0 * i / r);
  switch (s.type) {
    case RopeType::plain:
    case RopeType::dynamic:
      break;
    case RopeType::linear:
      for (double& f : inverse) f /= s.factor;
      break;
    case RopeType::yarn:
      yarn(s, inverse, attention);
      break;
    case RopeType::llama3:
      for (double& f : inverse) f = llama3(s, f);
      break;
    case RopeType::longrope: {
      const auto& by = prompt_length > s.original_max_position ? s.long_factor : s.short_factor;
      for (int i = 0; i < r / 2; ++i) inverse[i] /= by[i];
      const double scale = static_cast<double>(s.max_position) / s.original_max_position;
      attention = s.attention_factor > 0 ? s.attention_factor
                  : scale <= 1           ? 1
                                         : std::sqrt(1 + std::log(scale) / std::log(s.original_max_position));
      break;
    }
  }
  RopeFrequencies out;
  out.inverse.assign(inverse.begin(), inverse.end());
  out.attention_factor = static_cast<float>(attention);
  return out;
}

uint64_t rope_variant(const RopeSpec& s, int64_t prompt_length) {
  if (s.type == RopeType::dynamic && prompt_length > s.max_position) return prompt_length;
  if (s.type == RopeType::longrope) return prompt_length > s.original_max_position;
  return 0;
}

Status validate(const RopeSpec& s, std::string_view where) {
  auto bad = [&](std::string what) {
    return fail(Errc::corrupt, "bad rope settings: " + what, where, "fix them in config.json");
  };
  if (s.rotary_dim < 2 || s.rotary_dim % 2) return bad("the rotary dimension must be even and at least 2");
  if (!(s.theta > 1) || !std::isfinite(s.theta)) return bad("rope_theta must be above 1");
  if (!(s.factor > 0) || !std::isfinite(s.factor)) return bad("the scaling factor must be above 0");
  if (s.type == RopeType::dynamic && (s.rotary_dim < 4 || s.max_position < 1))
    return bad("dynamic needs max_position_embeddings");
  if (s.type == RopeType::yarn && s.original_max_position < 1 && s.max_position < 1)
    return bad("yarn needs original_max_position_embeddings");
  if (s.type == RopeType::yarn && (!(s.beta_fast > 0) || !(s.beta_slow > 0)))
    return bad("beta_fast and beta_slow must be above 0");
  if (s.type == RopeType::llama3 &&
      (s.original_max_position < 1 || !(s.low_freq_factor > 0) || !(s.high_freq_factor > s.low_freq_factor)))
    return bad("llama3 needs original_max_position_embeddings and low_freq_factor < high_freq_factor");
  if (s.type == RopeType::longrope) {
    const size_t n = s.rotary_dim / 2;
    if (s.short_factor.size() != n || s.long_factor.size() != n)
      return bad("short_factor and long_factor need one number per pair");
    for (const auto* list : {&s.short_factor, &s.long_factor}) {
      for (double f : *list) {
        if (!(f > 0)) return bad("short_factor and long_factor must be above 0");
      }
    }
    if (s.original_max_position < 2) return bad("longrope needs original_max_position_embeddings");
  }
  return {};
}

std::string_view name(RopeType type) {
  return kNames[static_cast<size_t>(type)];
}

Json to_json(const RopeSpec& s) {
  Json j{{"rope_type", name(s.type)},
         {"rotary_dim", s.rotary_dim},
         {"theta", s.theta},
         {"factor", s.factor},
         {"max_position", s.max_position},
         {"original_max_position", s.original_max_position}};
  if (s.type == RopeType::llama3) j["low_freq_factor"] = s.low_freq_factor, j["high_freq_factor"] = s.high_freq_factor;
  if (s.type == RopeType::yarn) {
    j["beta_fast"] = s.beta_fast, j["beta_slow"] = s.beta_slow, j["mscale"] = s.mscale;
    j["mscale_all_dim"] = s.mscale_all_dim, j["truncate"] = s.truncate;
  }
  if (s.type == RopeType::longrope) j["short_factor"] = s.short_factor, j["long_factor"] = s.long_factor;
  if (s.attention_factor > 0) j["attention_factor"] = s.attention_factor;
  return j;
}

Result<RopeSpec> rope_from_json(const Json& j, std::string_view where) {
  try {
    RopeSpec s;
    const auto type = std::ranges::find(kNames, j.at("rope_type").get<std::string>());
    if (type == kNames.end()) return fail(Errc::corrupt, "unknown rope type", where);
    s.type = static_cast<RopeType>(type - kNames.begin());
    s.rotary_dim = j.at("rotary_dim");
    s.theta = j.at("theta");
    s.factor = j.at("factor");
    s.max_position = j.at("max_position");
    s.original_max_position = j.at("original_max_position");
    s.low_freq_factor = j.value("low_freq_factor", s.low_freq_factor);
    s.high_freq_factor = j.value("high_freq_factor", s.high_freq_factor);
    s.beta_fast = j.value("beta_fast", s.beta_fast);
    s.beta_slow = j.value("beta_slow", s.beta_slow);
    s.mscale = j.value("mscale", s.mscale);
    s.mscale_all_dim = j.value("mscale_all_dim", s.mscale_all_dim);
    s.truncate = j.value("truncate", s.truncate);
    s.attention_factor = j.value("attention_factor", s.attention_factor);
    s.short_factor = j.value("short_factor", s.short_factor);
    s.long_factor = j.value("long_factor", s.long_factor);
    PINION_OK(validate(s, where));
    return s;
  } catch (const Json::exception& e) {
    return fail(Errc::corrupt, std::string("bad rope entry: ") + e.what(), where, "build the engine again");
  }
}

}  // namespace pinion
