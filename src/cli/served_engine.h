// An engine with everything that answering for it needs: what `pinion serve` serves, alone or
// from a model repository.
#pragma once

#include <memory>
#include <string>

#include "cli/model.h"
#include "runtime/engine_loop.h"
#include "server/engine_service.h"
#include "server/model_registry.h"

namespace pinion::cli {

struct ServeArgs {
  ModelArgs model;
  std::string tool_call_parser = "auto", reasoning_parser = "auto";
  std::string policy = "max_utilization";
  int32_t max_queue = 512, chunk_tokens = 512;
  bool no_prefix_reuse = false, exclude_input = false;
};

class ServedEngine {
 public:
  // Opens, or builds first. Errors: as open_model, or that there is no tokenizer.
  static Result<std::shared_ptr<ServedEngine>> load(const ServeArgs& args);

  Status warm_up();  // before the first client comes

  // Borrows from the engine, which must be kept.
  ModelService service(const std::string& name) const;
  const OpenModel& model() const { return model_; }
  EngineLoop& loop() { return *loop_; }
  // Once nothing is asked any more: waits, then checks that every block came back.
  Status drain();

 private:
  ServedEngine() = default;
  ServeArgs args_;
  OpenModel model_;
  std::unique_ptr<EngineLoop> loop_;
  std::unique_ptr<EngineGenerator> generator_;
  std::unique_ptr<ModelText> text_;
};

}  // namespace pinion::cli
