// The graph's two written forms, both driven by the ops' field lists: text for people, JSON for the engine file.
#include <fmt/format.h>

#include <type_traits>

#include "graph/graph.h"

namespace pinion {
namespace {

template <class T>
std::string field_text(const T& v) {
  if constexpr (std::is_same_v<T, bool>)
    return v ? "true" : "false";
  else if constexpr (std::is_enum_v<T>)
    return std::string(enum_names(v)[static_cast<size_t>(v)]);
  else
    return fmt::format("{}", v);
}

struct JsonWriter {
  Json& j;
  template <class T>
  void operator()(const char* key, const T& v) {
    if constexpr (std::is_enum_v<T>)
      j[key] = enum_names(v)[static_cast<size_t>(v)];
    else
      j[key] = v;
  }
};

struct JsonReader {  // throws Json::exception or std::out_of_range; caught where the graph is read
  const Json& j;
  template <class T>
  void operator()(const char* key, T& v) {
    if constexpr (std::is_enum_v<T>) {
      const auto names = enum_names(v);
      const auto text = j.at(key).get<std::string>();
      for (size_t i = 0; i < names.size(); ++i) {
        if (names[i] == text) {
          v = static_cast<T>(i);
          return;
        }
      }
      throw std::out_of_range("unknown " + std::string(key) + " " + text);
    } else {
      v = j.at(key).get<T>();
    }
  }
};

template <size_t I = 0>
Op op_from_json(std::string_view name, const Json& fields) {
  if constexpr (I == std::variant_size_v<Op>) {
    throw std::out_of_range("unknown op " + std::string(name));
  } else {
    using T = std::variant_alternative_t<I, Op>;
    if (T::kName != name) return op_from_json<I + 1>(name, fields);
    T op;
    op.fields(JsonReader{fields});
    return op;
  }
}

std::vector<int32_t> ids(const std::vector<Value>& values) {
  std::vector<int32_t> out;
  for (Value v : values) out.push_back(v.id);
  return out;
}

std::vector<Value> values(const Json& json) {
  std::vector<Value> out;
  for (int32_t id : json.get<std::vector<int32_t>>()) out.push_back({id});
  return out;
}

Json part_json(const WeightPart& p) {
  Json j{{"name", p.name}, {"rows", p.rows}};
  const FusedRows& f = p.fused;
  if (!f.name.empty()) j["fused"] = {f.name, f.rows, f.first, f.block, f.stride};
  if (p.transposed) j["transposed"] = true;
  if (p.stack > 0) j["stack"] = {p.stack, p.index};
  return j;
}

WeightPart part_from_json(const Json& j) {
  WeightPart p{j.at("name"), j.at("rows"), {}, j.value("transposed", false)};
  if (const auto f = j.find("fused"); f != j.end()) p.fused = {f->at(0), f->at(1), f->at(2), f->at(3), f->at(4)};
  if (const auto s = j.find("stack"); s != j.end()) p.stack = s->at(0), p.index = s->at(1);
  return p;
}

}  // namespace

std::string to_text(const Op& op) {
  std::string text;
  std::visit(
      [&](auto o) {
        o.fields([&](const char* key, const auto& v) {
          text += fmt::format("{}{}={}", text.empty() ? "" : ", ", key, field_text(v));
        });
      },
      op);
  return fmt::format("{}({})", op_name(op), text);
}

std::string to_text(const Graph& g) {
  std::string text;
  for (const Node& n : g.nodes()) {
    std::string outs, ins, weights;
    for (Value v : n.out) {
      outs += fmt::format("{}%{}[{}, {}{}{}]", outs.empty() ? "" : ", ", v.id,
                          g.spec(v).rows == Rows::tokens ? "tokens" : "outputs", g.spec(v).width,
                          g.spec(v).dtype == DType::f32 ? "" : ", ",
                          g.spec(v).dtype == DType::f32 ? "" : name(g.spec(v).dtype));
    }
    for (Value v : n.in) ins += fmt::format(" %{}", v.id);
    for (const WeightUse& w : n.weights) {
      std::string parts;
      for (const WeightPart& p : w.parts) parts += (parts.empty() ? "" : w.interleave ? " ~ " : " + ") + p.name;
      weights += fmt::format("  {}={}", w.role, parts);
    }
    text += fmt::format("{} = {}{}  # {}{}\n", outs, to_text(n.op), ins, n.scope, weights);
  }
  return text;
}

Json to_json(const Graph& g) {
  Json nodes = Json::array(), specs = Json::array(), layers = Json::array(), ropes = Json::array();
  for (const Node& n : g.nodes()) {
    Json fields = Json::object(), weights = Json::array();
    std::visit([&](auto op) { op.fields(JsonWriter{fields}); }, n.op);
    for (const WeightUse& w : n.weights) {
      Json parts = Json::array();
      for (const WeightPart& p : w.parts) parts.push_back(part_json(p));
      weights.push_back(
          {{"role", w.role}, {"rows", w.rows}, {"cols", w.cols}, {"interleave", w.interleave}, {"parts", parts}});
    }
    nodes.push_back({{"op", op_name(n.op)},
                     {"fields", fields},
                     {"in", ids(n.in)},
                     {"out", ids(n.out)},
                     {"scope", n.scope},
                     {"weights", weights}});
  }
  for (int32_t i = 0; i < g.value_count(); ++i) {
    const ValueSpec& spec = g.spec({i});
    specs.push_back({spec.rows == Rows::tokens ? "tokens" : "outputs", spec.width, name(spec.dtype)});
  }
  for (const KvLayer& l : g.kv_layers)
    layers.push_back({{"kv_heads", l.kv_heads},
                      {"head_dim", l.head_dim},
                      {"window", l.window},
                      {"latent", l.latent},
                      {"k_scale", l.k_scale},
                      {"v_scale", l.v_scale}});
  for (const RopeSpec& r : g.ropes) ropes.push_back(to_json(r));
  return {{"nodes", nodes},
          {"values", specs},
          {"kv_layers", layers},
          {"ropes", ropes},
          {"logits", g.logits.id},
          {"vocab_size", g.vocab_size},
          {"context_length", g.context_length}};
}

Result<Graph> graph_from_json(const Json& json, std::string_view where) {
  try {
    Graph g;
    for (const Json& v : json.at("values")) {
      const auto rows = v.at(0).get<std::string>();
      if (rows != "tokens" && rows != "outputs") throw std::out_of_range("unknown rows " + rows);
      const auto dtype = dtype_from_name(v.at(2).get<std::string>());
      if (!dtype) throw std::out_of_range("unknown element type " + v.at(2).get<std::string>());
      g.new_value({rows == "tokens" ? Rows::tokens : Rows::outputs, v.at(1).get<int64_t>(), *dtype});
    }
    for (const Json& l : json.at("kv_layers")) {
      g.kv_layers.push_back({l.at("kv_heads"), l.at("head_dim"), l.at("window"), l.at("latent"),
                             l.at("k_scale").get<float>(), l.at("v_scale").get<float>()});
      for (const float scale : {g.kv_layers.back().k_scale, g.kv_layers.back().v_scale}) {
        if (!(scale > 0) || !(scale < 1e30f)) throw std::out_of_range("a scale of the KV cache is not positive");
      }
    }
    for (const Json& r : json.at("ropes")) {
      PINION_TRY(RopeSpec spec, rope_from_json(r, where));
      g.ropes.push_back(std::move(spec));
    }
    std::vector<Node> nodes;
    for (const Json& n : json.at("nodes")) {
      Node node{op_from_json(n.at("op").get<std::string>(), n.at("fields")),
                values(n.at("in")),
                values(n.at("out")),
                n.at("scope"),
                {}};
      for (const Json& w : n.at("weights")) {
        WeightUse use{w.at("role"), w.at("rows"), w.at("cols"), {}, w.at("interleave")};
        for (const Json& p : w.at("parts")) use.parts.push_back(part_from_json(p));
        node.weights.push_back(std::move(use));
      }
      nodes.push_back(std::move(node));
    }
    g.replace_nodes(std::move(nodes));
    g.logits = {json.at("logits").get<int32_t>()};
    g.vocab_size = json.at("vocab_size");
    g.context_length = json.at("context_length");
    PINION_OK(verify(g));
    return g;
  } catch (const std::exception& e) {
    return fail(Errc::corrupt, std::string("bad graph: ") + e.what(), where, "build the engine again");
  }
}

}  // namespace pinion
