// The list of model families. A family turns config.json into a graph; adding one is a file here and a line in
// family_list.h (docs/howto/add-model.md).
#pragma once

#include <span>
#include <string_view>

#include "base/json.h"
#include "graph/graph.h"
#include "models/config.h"

namespace pinion {

class Builder;

struct ModelFamily {
  std::string_view architecture;  // config.json's "architectures"[0]
  Result<ModelConfig> (*config)(const ConfigReader&, const ModelOverrides&);
  void (*build)(Builder&, const ModelConfig&);
  std::string_view options;  // the keys it reads beyond what every decoder has, separated by spaces
};

std::span<const ModelFamily> model_families();

// A small configuration that every family accepts, for tests and for asking what a family needs.
Json example_config(std::string_view architecture);

struct Model {
  ModelConfig config;
  Graph graph;
};

// Finds the family by "architectures" (else "model_type"), reads the config and builds the verified graph. An unknown
// architecture is refused by name, with the nearest known one. `where` names the config file.
Result<Model> build_model(const Json& config, std::string_view where, const ModelOverrides& overrides = {});

}  // namespace pinion
