// pinion triton-repo: a Triton model repository around an engine, for `pinion serve --model_repository`.
#include <fmt/format.h>

#include <memory>

#include "cli/model_repository.h"
#include "cli/verbs.h"

namespace pinion::cli {

Verb add_triton_repo(CLI::App& app) {
  struct Args {
    std::string engine, repository, tokenizer;
    bool no_decoupled = false;
  };
  auto a = std::make_shared<Args>();
  app.add_option("--engine_dir", a->engine, "the engine, or a checkpoint that is compiled when served")->required();
  app.add_option("--model_repo,--model_repository", a->repository, "the directory to write: new, or empty")->required();
  app.add_option("--tokenizer,--tokenizer_dir", a->tokenizer,
                 "directory of the tokenizer files, when not the engine's");
  app.add_flag("--no_decoupled", a->no_decoupled, "write decoupled: false");
  return [a]() -> Status {
    PINION_OK(write_triton_repository(a->engine, a->repository, a->tokenizer, !a->no_decoupled));
    fmt::print("{}\n", a->repository);
    return {};
  };
}

}  // namespace pinion::cli
