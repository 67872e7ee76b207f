#include "cli/models_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <sstream>

#include "backend/all/backends.h"
#include "cli/shard_checkpoint.h"
#include "compiler/compiler.h"
#include "models/families.h"

namespace pinion::cli {
namespace {

// The GPU that is asked about where none is present: kernels say by its numbers alone what they can run.
DeviceInfo device_of(const Backend& backend) {
  const auto devices = backend.probe();
  if (!devices.empty()) return devices[0];
  return {.backend = std::string(backend.name()), .isa = "sm_90", .threads = 132, .memory_bytes = size_t{141} << 30};
}

bool runs(const Graph& graph, const Backend& backend, const DeviceInfo& device, DType dtype) {
  return std::ranges::all_of(graph.nodes(), [&](const Node& node) {
    std::vector<WeightSpec> weights;
    for (const WeightUse& w : node.weights) {
      weights.push_back({.dtype = w.rows == 1 ? DType::f32 : dtype, .rows = w.rows, .cols = w.cols});
    }
    const Call call{.op = &node.op,
                    .rows = 4,
                    .inputs = static_cast<int>(node.in.size()),
                    .weights = weights,
                    .values = {},
                    .kv_dtype = dtype};
    return std::ranges::any_of(backend.kernels(kind(node.op)),
                               [&](const Kernel& k) { return k.why_not(call, device).empty(); });
  });
}

}  // namespace

Result<std::vector<FamilyRow>> family_rows() {
  std::vector<FamilyRow> rows;
  for (const ModelFamily& family : model_families()) {
    FamilyRow row{.architecture = std::string(family.architecture), .options = {}, .backends = {}, .sharding = {}};
    std::istringstream options{std::string(family.options)};
    for (std::string key; options >> key;) row.options.push_back(key);
    PINION_TRY(Model model, build_model(example_config(family.architecture), row.architecture));
    if (plan_ranks(model, 2, 1)) row.sharding.push_back("tensor");
    if (plan_ranks(model, 1, 2)) row.sharding.push_back("pipeline");
    PINION_OK(run_passes(model.graph, {}, nullptr));
    for (const Backend* backend : backends()) {
      if (runs(model.graph, *backend, device_of(*backend), DType::bf16)) row.backends.emplace_back(backend->name());
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string models_markdown(const std::vector<FamilyRow>& rows) {
  std::string text =
      "# Model families\n\n"
      "Written by `pinion doctor --models --markdown` of a build with CUDA; a test compares.\n\n"
      "`config.json` names the architecture; another one is refused, with the nearest family named. Every family "
      "reads\n"
      "both styles of `config.json` (transformers before and after version 5), all rope scalings (default, linear,\n"
      "dynamic, yarn, llama3, longrope) where it rotates, and weights in float32, float16 or bfloat16, in one file or\n"
      "several, fused as published or split. The options are the keys it reads beyond what every decoder has. "
      "Backends\n"
      "are those that have a kernel for each of its operations; sharding is how `pinion convert` divides its "
      "weights.\n\n"
      "| architecture | options | backends | sharding |\n|---|---|---|---|\n";
  for (const FamilyRow& r : rows) {
    text += fmt::format("| {} | {} | {} | {} |\n", r.architecture, fmt::join(r.options, ", "),
                        fmt::join(r.backends, ", "), fmt::join(r.sharding, ", "));
  }
  return text;
}

std::string models_text(const std::vector<FamilyRow>& rows) {
  std::string text;
  for (const FamilyRow& r : rows) {
    text += fmt::format("{:34} {:22} {:18} {}\n", r.architecture, fmt::format("{}", fmt::join(r.backends, ",")),
                        fmt::format("{}", fmt::join(r.sharding, ",")), fmt::join(r.options, " "));
  }
  return text;
}

Json models_json(const std::vector<FamilyRow>& rows) {
  Json list = Json::array();
  for (const FamilyRow& r : rows) {
    list.push_back(
        {{"architecture", r.architecture}, {"options", r.options}, {"backends", r.backends}, {"sharding", r.sharding}});
  }
  return {{"families", list}};
}

}  // namespace pinion::cli
