// The list of passes, run in order; the graph is verified after each, and each can be disabled by name.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "compiler/compiler.h"
#include "compiler/passes/fusion.h"

namespace pinion {
namespace {

constexpr std::array kPasses{Pass{"fuse_qkv", fuse_qkv}, Pass{"fuse_gate_up", fuse_gate_up},
                             Pass{"fuse_add_norm", fuse_add_norm}};

}  // namespace

std::span<const Pass> passes() {
  return kPasses;
}

Status run_passes(Graph& graph, std::span<const std::string> disabled, std::vector<BuildReport::Stage>* stages) {
  for (const std::string& name : disabled) {
    if (std::ranges::find(kPasses, name, &Pass::name) == kPasses.end() && name != "all") {
      std::string known = "all";
      for (const Pass& p : kPasses) known += fmt::format(", {}", p.name);
      return fail(Errc::invalid_argument, "there is no pass \"" + name + "\"", "--disable_pass",
                  "choose from " + known);
    }
  }
  for (const Pass& pass : kPasses) {
    if (std::ranges::any_of(disabled, [&](const std::string& n) { return n == "all" || n == pass.name; })) continue;
    const auto start = std::chrono::steady_clock::now();
    pass.run(graph);
    const Status status = verify(graph);
    check(status.ok(), status.ok() ? "" : fmt::format("after the pass {}: {}", pass.name, status.error().message));
    if (stages)
      stages->push_back(
          {std::string(pass.name), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
  }
  return {};
}

}  // namespace pinion
