#include "server/model_registry.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/log.h"

namespace pinion {

void ModelRegistry::add(LoadedModel model) {
  auto served = std::make_shared<ServedModel>();
  const std::string name = model.service.name;
  served->metrics = metrics_.model(name, model.version);
  served->loaded = std::move(model);
  ModelHandle old;  // let go of outside the lock: freeing a model takes time
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[name];
  served->stats = entry.stats;
  old = std::exchange(entry.model, std::move(served));
  entry.state = "READY";
  entry.reason.clear();
}

ModelHandle ModelRegistry::find(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : it->second.model;
}

bool ModelRegistry::knows(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  return entries_.contains(name);
}

bool ModelRegistry::is_loading(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  return std::ranges::any_of(entries_, [&](const auto& e) {
    return (name.empty() || e.first == name) && !e.second.model && e.second.state == "LOADING";
  });
}

ModelHandle ModelRegistry::only() const {
  const auto models = all();
  return models.size() == 1 ? models[0] : nullptr;
}

std::vector<ModelHandle> ModelRegistry::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<ModelHandle> out;
  for (const auto& [name, entry] : entries_) {
    if (entry.model) out.push_back(entry.model);
  }
  return out;
}

std::vector<ModelState> ModelRegistry::index() const {
  const std::lock_guard lock(mutex_);
  std::vector<ModelState> out;
  for (const auto& [name, entry] : entries_) {
    out.push_back({.name = name,
                   .version = entry.model ? entry.model->loaded.version : "",
                   .state = entry.state,
                   .reason = entry.reason});
  }
  return out;
}

bool ModelRegistry::ready() const {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry.state == "UNAVAILABLE" && entry.reason != "unloaded") return false;
    if (entry.state == "LOADING" && !entry.model) return false;
  }
  return !entries_.empty() || source_ != nullptr;
}

Status ModelRegistry::load(const std::string& name) {
  if (source_ == nullptr) return fail(Errc::unsupported, "this server serves one model", name);
  const std::lock_guard one_at_a_time(loading_);
  const auto names = source_->names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    return fail(Errc::not_found, "the repository has no such model", name);
  }
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[name];
    entry.state = "LOADING";
    entry.reason.clear();
  }
  auto loaded = source_->load(name);
  if (!loaded && loaded.error().code == Errc::exhausted) loaded = load_in_place(name, loaded.error());
  if (loaded) {
    loaded->service.name = name;
    add(*std::move(loaded));
    return {};
  }
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[name];
  entry.state = entry.model ? "READY" : "UNAVAILABLE";  // the old one goes on
  entry.reason = loaded.error().message;
  return std::move(loaded).error();
}

// Lets go of the model of that name, and of those that share its engine, waits until the last of their requests has
// ended, and loads in its place.
Result<LoadedModel> ModelRegistry::load_in_place(const std::string& name, Error does_not_fit) {
  constexpr std::chrono::milliseconds poll{10}, settle{500};
  constexpr int tries = 5;  // whoever let go last may still be freeing the memory
  std::vector<ModelHandle> old;
  std::weak_ptr<void> engine;
  {
    const std::lock_guard lock(mutex_);
    const ModelHandle& own = entries_[name].model;
    if (!own || !own->loaded.owner) return does_not_fit;
    const std::shared_ptr<void> owner = own->loaded.owner;
    engine = owner;
    for (auto& [other, entry] : entries_) {
      if (!entry.model || entry.model->loaded.owner != owner) continue;
      old.push_back(std::exchange(entry.model, nullptr));
      entry.state = "LOADING";
    }
  }
  spdlog::warn("{}: there is no room for it beside the one that serves, which finishes its requests first", name);
  std::vector<std::string> names;
  for (const ModelHandle& model : old) names.push_back(model->service().name);
  old.clear();
  while (!engine.expired()) std::this_thread::sleep_for(poll);
  auto loaded = source_->load(name);
  for (int i = 1; i < tries && !loaded && loaded.error().code == Errc::exhausted; ++i) {
    std::this_thread::sleep_for(settle);
    loaded = source_->load(name);
  }
  for (const std::string& other : names) {
    if (other == name) continue;
    auto with_it = loaded ? source_->load(other) : Result<LoadedModel>(loaded.error());
    if (with_it) {
      with_it->service.name = other;
      add(*std::move(with_it));
      continue;
    }
    const std::lock_guard lock(mutex_);
    entries_[other].state = "UNAVAILABLE";
    entries_[other].reason = with_it.error().message;
  }
  return loaded;
}

Status ModelRegistry::unload(const std::string& name) {
  if (source_ == nullptr) return fail(Errc::unsupported, "this server serves one model", name);
  const std::lock_guard one_at_a_time(loading_);
  ModelHandle old;
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(name);
  if (it == entries_.end()) return fail(Errc::not_found, "the repository has no such model", name);
  old = std::exchange(it->second.model, nullptr);
  it->second.state = "UNAVAILABLE";
  it->second.reason = "unloaded";
  return {};
}

void ModelRegistry::load_all() {
  for (const std::string& name : source_->names()) {
    if (auto status = load(name); !status) spdlog::error("{}: {}", name, status.error().message);
  }
}

}  // namespace pinion
