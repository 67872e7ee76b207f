// A Triton model repository, <repository>/<model>/config.pbtxt with <model>/<version>/, as a source of models. A model
// of the backend "tensorrtllm" (or "pinion") is an engine or checkpoint; an ensemble, or the "python" model that
// scripts one, answers with the engine of its step; other steps (tokenising before and after) are there, and run inside
// of it.
#pragma once

#include <filesystem>
#include <map>

#include "cli/served_engine.h"
#include "server/pbtxt.h"

namespace pinion::cli {

class ModelRepository final : public ModelSource {
 public:
  // `args`: what a configuration does not set.
  ModelRepository(std::filesystem::path directory, ServeArgs args)
      : directory_(std::move(directory)), args_(std::move(args)) {}

  std::vector<std::string> names() override;
  Result<LoadedModel> load(const std::string& name) override;
  std::vector<std::shared_ptr<ServedEngine>> engines() const;  // that are loaded

 private:
  Result<TritonConfig> read_config(const std::string& name) const;
  Result<std::shared_ptr<ServedEngine>> shared_engine(const std::string& name, const TritonConfig& config);
  Result<std::string> step_with_engine(const std::string& name, const TritonConfig& config) const;
  std::filesystem::path tokenizer(const TritonConfig& config) const;

  const std::filesystem::path directory_;
  const ServeArgs args_;
  std::map<std::string, std::weak_ptr<ServedEngine>> loaded_;  // by what it was loaded from
};

// `pinion triton-repo`: writes a repository of the four models of TensorRT-LLM's backend around an engine.
Status write_triton_repository(const std::filesystem::path& engine, const std::filesystem::path& repository,
                               const std::filesystem::path& tokenizer, bool decoupled);

}  // namespace pinion::cli
