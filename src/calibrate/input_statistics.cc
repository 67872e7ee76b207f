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

namespace {

// Most rows of a sample that one of so many experts keeps.
int64_t expert_rows(int64_t sample_rows, const MoeLinear& op) {
  constexpr int64_t kLeast = 64;
  return std::min(sample_rows, std::max(kLeast, sample_rows * op.top_k / op.experts));
}

std::vector<float> as_floats(const TensorView& t) {
  std::vector<float> out(t.shape.elements());
  for (size_t i = 0; i < out.size(); ++i) out[i] = load_f32(t.data, t.dtype, static_cast<int64_t>(i));
  return out;
}

}  // namespace

InputCollector::InputCollector(const Graph& graph, int64_t sample_rows) : graph_(graph), sample_rows_(sample_rows) {
  const auto collect = [&](const Key& key, int64_t cols) {
    InputStatistics& s = values_[key];
    s.cols = cols;
    s.column_absmax.assign(cols, 0);
  };
  std::map<int32_t, size_t> producer;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& n = graph.nodes()[i];
    for (const Value v : n.out) producer[v.id] = i;
    if (std::holds_alternative<Attention>(n.op) && n.in.size() == 3) cached_[n.in[1].id] = cached_[n.in[2].id] = 0;
    if (const auto* linear = std::get_if<Linear>(&n.op)) {
      for (const WeightPart& part : n.weights[0].parts) inputs_[part.name] = {.value = n.in[0].id};
      collect({.value = n.in[0].id}, linear->in);
    } else if (const auto* moe = std::get_if<MoeLinear>(&n.op)) {
      const int32_t x = n.in[0].id;
      routed_.push_back({.x = n.in[0], .ids = n.in[1], .op = *moe, .rows = {}, .experts = {}});
      routed_.back().x_first = producer.contains(x) && producer[x] < producer[n.in[1].id];
      collect({.value = x}, moe->in);
      for (int32_t e = 0; e < moe->experts; ++e) collect({x, e}, moe->in);
      // Parts are lists of all experts, one after another: all gates, all ups.
      for (size_t i = 0; i < n.weights[0].parts.size(); ++i) {
        const WeightPart& part = n.weights[0].parts[i];
        inputs_[part.name] = {x, part.stack > 0 ? kAll : static_cast<int32_t>(static_cast<int64_t>(i) % moe->experts)};
        if (!part.fused.name.empty()) inputs_[part.fused.name] = {.value = x};
      }
    }
  }
}

// Reservoir sampling (Vitter's algorithm R): row number `seen` replaces a random one with its due chance.
void InputCollector::add_row(InputStatistics& s, int64_t sample_rows, const float* row) {
  int64_t place = s.seen++;
  if (place >= sample_rows) place = std::uniform_int_distribution<int64_t>(0, place)(random_);
  const bool keep = place < sample_rows;
  if (keep && std::ssize(s.sample) < (place + 1) * s.cols) s.sample.resize((place + 1) * s.cols);
  for (int64_t k = 0; k < s.cols; ++k) {
    s.column_absmax[k] = std::max(s.column_absmax[k], std::fabs(row[k]));
    if (keep) s.sample[place * s.cols + k] = row[k];
  }
}

void InputCollector::add_rows(const Key& key, const TensorView& rows) {
  InputStatistics& s = values_.at(key);
  const std::vector<float> values = as_floats(rows);
  for (size_t i = 0; i < values.size(); i += s.cols) add_row(s, sample_rows_, values.data() + i);
  s.absmax = *std::ranges::max_element(s.column_absmax);
}

void InputCollector::add_routed(const Routed& r, std::span<const float> rows, std::span<const int32_t> experts) {
  InputStatistics& all = values_.at({.value = r.x.id});
  std::vector<InputStatistics*> own(r.op.experts);
  for (int32_t e = 0; e < r.op.experts; ++e) own[e] = &values_.at({r.x.id, e});
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    const int64_t e = experts[slot] - r.op.first_expert;
    if (e < 0 || e >= r.op.experts) continue;
    const float* row = rows.data() + (r.op.per_slot ? slot : slot / r.op.top_k) * r.op.in;
    add_row(*own[e], expert_rows(sample_rows_, r.op), row);
    if (r.op.per_slot) add_row(all, sample_rows_, row);  // elsewhere each token's one row is added as it comes
  }
  for (InputStatistics* s : own) s->absmax = *std::ranges::max_element(s->column_absmax);
  all.absmax = *std::ranges::max_element(all.column_absmax);
}

void InputCollector::see(size_t node, std::span<const TensorView> outputs) {
  const Node& n = graph_.nodes()[node];
  for (size_t i = 0; i < n.out.size(); ++i) {
    const TensorView& t = outputs[i];
    if (const auto cached = cached_.find(n.out[i].id); cached != cached_.end()) {
      for (int64_t k = 0; k < t.shape.elements(); ++k)
        cached->second = std::max(cached->second, std::fabs(load_f32(t.data, t.dtype, k)));
    }
    const Key key{.value = n.out[i].id};
    bool slots = false;
    for (Routed& r : routed_) {
      if (n.out[i] == r.x) {
        slots = slots || r.op.per_slot;
        if (r.x_first) {
          r.rows = as_floats(t);
        } else {
          add_routed(r, as_floats(t), r.experts);
        }
      } else if (n.out[i] == r.ids) {
        const auto* ids = t.as<int32_t>();
        r.experts.assign(ids, ids + t.shape.elements());
        if (r.x_first) add_routed(r, r.rows, r.experts);
      }
    }
    if (values_.contains(key) && !slots) add_rows(key, t);
  }
}

const InputStatistics* InputCollector::at(const Key& key, int64_t least) const {
  const auto it = values_.find(key);
  return it == values_.end() || it->second.seen < least ? nullptr : &it->second;
}

const InputStatistics* InputCollector::find(const std::string& weight) const {
  const auto it = inputs_.find(weight);
  if (it == inputs_.end()) return nullptr;
  const InputStatistics* own = it->second.expert == kAll ? nullptr : at(it->second, kLeastExpertRows);
  return own != nullptr ? own : find_layer(weight);
}

const InputStatistics* InputCollector::find_layer(const std::string& weight) const {
  const auto it = inputs_.find(weight);
  return it == inputs_.end() ? nullptr : at({.value = it->second.value}, 1);
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

constexpr std::string_view kFormat = "pinion calibration 3";

// "7" is the value 7, "7.3" what of it went to the expert 3.
std::string key_name(int32_t value, int32_t expert) {
  return expert < 0 ? fmt::format("{}", value) : fmt::format("{}.{}", value, expert);
}
std::string sample_name(const std::string& key) {
  return "value." + key;
}
std::string columns_name(const std::string& key) {
  return "columns." + key;
}

}  // namespace

Status InputCollector::save(const std::filesystem::path& file, const std::string& key, int64_t texts) const {
  std::ostringstream random;
  random << random_;
  Json state{{"format", kFormat}, {"key", key}, {"texts", texts}, {"random", random.str()}};
  std::vector<TensorToWrite> tensors;
  for (const auto& [of, s] : values_) {
    const std::string value = key_name(of.value, of.expert);
    state["values"][value] = {{"seen", s.seen}, {"absmax", s.absmax}};
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
    for (auto& [of, s] : values) {
      const std::string value = key_name(of.value, of.expert);
      const Json& counts = state.at("values").at(value);
      s.seen = counts.at("seen"), s.absmax = counts.at("absmax");
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
