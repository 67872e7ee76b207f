// The models that a server serves, by name: found per request, loaded and unloaded while others are served. A request
// holds its model, so that one that is replaced or unloaded is freed after the last request that uses it.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/kserve_writer.h"
#include "server/metrics.h"
#include "server/service.h"

namespace pinion {

struct LoadedModel {
  // Its name is the model's. Without a generator it is only there: a step of a pipeline that runs inside of another.
  ModelService service;
  std::string version = "1";
  std::shared_ptr<void> owner;  // of what the service borrows; null: it outlives the server
};

// Where models come from that are loaded by name: a model repository. Called by one thread at a time.
class ModelSource {
 public:
  virtual ~ModelSource() = default;
  virtual std::vector<std::string> names() = 0;  // what could be loaded now
  // Takes seconds. Errc::exhausted: there is no room for it beside those that are loaded.
  virtual Result<LoadedModel> load(const std::string& name) = 0;
  virtual bool by_clients() const { return true; }  // clients may load and unload; false: only whoever runs the server
};

struct ServedModel {
  LoadedModel loaded;
  std::shared_ptr<ModelMetrics> metrics;
  std::shared_ptr<KserveStats> stats;  // both of the name and version: kept over reloads

  const ModelService& service() const { return loaded.service; }
  bool generates() const { return loaded.service.generator != nullptr; }
  std::string failure() const { return generates() ? loaded.service.generator->failure() : std::string(); }
};
using ModelHandle = std::shared_ptr<const ServedModel>;

struct ModelState {
  std::string name, version, state, reason;  // state: READY, UNAVAILABLE, LOADING, UNLOADING or "" (never loaded)
};

class ModelRegistry {
 public:
  explicit ModelRegistry(ServerMetrics& metrics, ModelSource* source = nullptr) : metrics_(metrics), source_(source) {}

  void add(LoadedModel model);  // or replaces the one of that name
  ModelHandle find(std::string_view name) const;
  bool knows(std::string_view name) const;  // loaded or not
  ModelHandle only() const;                 // the one model, when there is exactly one
  std::vector<ModelHandle> all() const;
  std::vector<ModelState> index() const;
  bool clients_may_load() const { return source_ != nullptr && source_->by_clients(); }
  bool is_loading(std::string_view name) const;  // and there is none of that name meanwhile; "": any

  // Load replaces a model of that name without dropping a request: the old one serves until the new one is there. Where
  // both do not fit, the old one finishes what it has first, and is_loading() until the new one is there.
  // Errors: not_found, or why it does not load. Block; thread-safe.
  Status load(const std::string& name);
  Status unload(const std::string& name);
  void load_all();     // what the source has; what does not load is in the index with its reason
  bool ready() const;  // no model failed to load

 private:
  struct Entry {
    ModelHandle model;
    std::string state, reason;
    std::shared_ptr<KserveStats> stats = std::make_shared<KserveStats>();
  };

  Result<LoadedModel> load_in_place(const std::string& name, Error does_not_fit);

  ServerMetrics& metrics_;
  ModelSource* const source_;
  std::mutex loading_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace pinion
