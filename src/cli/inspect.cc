// pinion inspect: an engine's manifest, graph, programs and weights as text or JSON.
#include <fmt/format.h>

#include <memory>

#include "cli/verbs.h"
#include "engine/engine.h"
#include "engine/engine_json.h"

namespace pinion::cli {

Verb add_inspect(CLI::App& app) {
  struct Args {
    std::string engine;
    bool json = false;
  };
  auto a = std::make_shared<Args>();
  app.add_option("engine", a->engine, "an engine directory")->required();
  app.add_flag("--json", a->json, "print one JSON object: manifest, graph, programs, arena, weights");
  return [a]() -> Status {
    PINION_TRY(Engine engine, Engine::open(a->engine));
    const EngineContents& c = engine.contents();
    if (!a->json) {
      fmt::print("{}", to_text(c));
      return {};
    }
    Json programs = programs_to_json(c);
    fmt::print("{}\n", Json{{"manifest", to_json(c.manifest)},
                            {"graph", to_json(c.graph)},
                            {"programs", programs["programs"]},
                            {"arena", programs["arena"]},
                            {"weights", weights_to_json(c)["weights"]}}
                           .dump());
    return {};
  };
}

}  // namespace pinion::cli
