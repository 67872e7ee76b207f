#include "calibrate/input_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "quant/number_formats.h"
#include "tensor/convert.h"

namespace pinion {

InputCollector::InputCollector(const Graph& graph, int64_t sample_rows) : graph_(graph), sample_rows_(sample_rows) {
  for (const Node& n : graph.nodes()) {
    if (std::holds_alternative<Attention>(n.op) && n.in.size() == 3) cached_[n.in[1].id] = cached_[n.in[2].id] = 0;
    if (!std::holds_alternative<Linear>(n.op)) continue;
    for (const WeightPart& part : n.weights[0].parts) inputs_[part.name] = n.in[0].id;
    InputStatistics& s = values_[n.in[0].id];
    s.cols = std::get<Linear>(n.op).in;
    s.column_absmax.assign(s.cols, 0);
  }
}

void InputCollector::see(size_t node, std::span<const TensorView> outputs) {
  const Node& n = graph_.nodes()[node];
  for (size_t i = 0; i < n.out.size(); ++i) {
    if (const auto cached = cached_.find(n.out[i].id); cached != cached_.end()) {
      for (int64_t k = 0; k < outputs[i].shape.elements(); ++k)
        cached->second = std::max(cached->second, std::fabs(load_f32(outputs[i].data, outputs[i].dtype, k)));
    }
    const auto it = values_.find(n.out[i].id);
    if (it == values_.end()) continue;
    InputStatistics& s = it->second;
    const TensorView& t = outputs[i];
    for (int64_t row = 0; row < t.shape[0]; ++row, ++s.seen) {
      // Reservoir sampling (Vitter's algorithm R): row number `seen` replaces a random one with its due chance.
      int64_t place = s.seen;
      if (place >= sample_rows_) place = std::uniform_int_distribution<int64_t>(0, s.seen)(random_);
      const bool keep = place < sample_rows_;
      if (keep && std::ssize(s.sample) < (place + 1) * s.cols) s.sample.resize((place + 1) * s.cols);
      for (int64_t k = 0; k < s.cols; ++k) {
        const float v = load_f32(t.data, t.dtype, row * s.cols + k);
        s.column_absmax[k] = std::max(s.column_absmax[k], std::fabs(v));
        if (keep) s.sample[place * s.cols + k] = v;
      }
    }
    s.absmax = *std::ranges::max_element(s.column_absmax);
  }
}

const InputStatistics* InputCollector::find(const std::string& weight) const {
  const auto it = inputs_.find(weight);
  if (it == inputs_.end()) return nullptr;
  const auto value = values_.find(it->second);
  return value == values_.end() || value->second.seen == 0 ? nullptr : &value->second;
}

std::map<std::string, float> InputCollector::kv_scales() const {
  std::map<std::string, float> out;
  for (const Node& n : graph_.nodes()) {
    if (!std::holds_alternative<Attention>(n.op) || n.in.size() != 3) continue;
    for (const auto& [i, name] : {std::pair{1, ".k_scale"}, {2, ".v_scale"}}) {
      const float absmax = cached_.at(n.in[i].id);
      out[n.scope + name] = absmax > 0 ? absmax / kE4m3Max : 1;
    }
  }
  return out;
}

namespace {

constexpr std::string_view kFormat = "pinion calibration 2";

std::string sample_name(int32_t value) {
  return fmt::format("value.{}", value);
}
std::string columns_name(int32_t value) {
  return fmt::format("columns.{}", value);
}

}  // namespace

Status InputCollector::save(const std::filesystem::path& file, const std::string& key, int64_t texts) const {
  std::ostringstream random;
  random << random_;
  Json state{{"format", kFormat}, {"key", key}, {"texts", texts}, {"random", random.str()}};
  std::vector<TensorToWrite> tensors;
  for (const auto& [value, s] : values_) {
    state["values"][std::to_string(value)] = {{"seen", s.seen}, {"absmax", s.absmax}};
    tensors.push_back({columns_name(value), DType::f32, {s.cols}, std::as_bytes(std::span(s.column_absmax))});
    if (s.sample.empty()) continue;
    tensors.push_back(
        {sample_name(value), DType::f32, {std::ssize(s.sample) / s.cols, s.cols}, std::as_bytes(std::span(s.sample))});
  }
  for (const auto& [value, absmax] : cached_) state["cached"][std::to_string(value)] = absmax;
  return write_safetensors(file, tensors, {{"state", state.dump()}});
}

Result<int64_t> InputCollector::load(const std::filesystem::path& file, const std::string& key) {
  std::error_code code;
  if (!std::filesystem::exists(file, code)) return int64_t{0};
  const auto foreign = [&](std::string_view what) {
    return fail(Errc::invalid_argument, fmt::format("the file is no state of this calibration: {}", what),
                file.string(), "delete it, or name another");
  };
  PINION_TRY(const SafetensorsFile saved, SafetensorsFile::open(file));
  const auto text = saved.metadata().find("state");
  if (text == saved.metadata().end()) return foreign("it has no \"state\"");
  PINION_TRY(const Json state, parse_json(text->second, file.string()));
  try {
    if (state.at("format") != kFormat) return foreign("its format is another");
    if (state.at("key") != key) return foreign("another model, data set or option");
    auto values = values_;
    for (auto& [value, s] : values) {
      const Json& of = state.at("values").at(std::to_string(value));
      s.seen = of.at("seen"), s.absmax = of.at("absmax");
      const auto columns = saved.tensors().find(columns_name(value));
      if (columns == saved.tensors().end() || columns->second.dtype != DType::f32 ||
          columns->second.shape != std::vector<int64_t>{s.cols}) {
        return foreign("the columns' ranges have another shape");
      }
      std::memcpy(s.column_absmax.data(), saved.data(columns->second).data(), s.cols * sizeof(float));
      const auto t = saved.tensors().find(sample_name(value));
      if (t == saved.tensors().end()) continue;
      if (t->second.dtype != DType::f32 || t->second.shape.size() != 2 || t->second.shape[1] != s.cols ||
          t->second.shape[0] > std::min(sample_rows_, s.seen)) {
        return foreign("a sample has another shape");
      }
      const auto bytes = saved.data(t->second);
      s.sample.resize(bytes.size() / sizeof(float));
      std::memcpy(s.sample.data(), bytes.data(), bytes.size());
    }
    auto cached = cached_;
    for (auto& [value, absmax] : cached) absmax = state.at("cached").at(std::to_string(value));
    std::istringstream random(state.at("random").get<std::string>());
    std::mt19937_64 engine;
    if (!(random >> engine)) return foreign("its random state is damaged");
    const int64_t texts = state.at("texts");
    values_ = std::move(values), cached_ = std::move(cached), random_ = engine;
    return texts;
  } catch (const Json::exception& e) {
    return foreign(e.what());
  }
}

}  // namespace pinion
