// The HTTP server: the OpenAI API and the KServe v2 protocol over one model, or over those of a repository.
//
// A request is read, checked, templated and tokenised on one of `threads` threads, generated on the generator's, and
// written by the connection that asked. A client that goes away, or that reads too slowly, has its request cancelled.
// The client's half-close counts as going away.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "server/service.h"

namespace pinion {

class ModelSource;

struct ApiKey {
  std::string key, name;                                  // name: what the access log calls it
  double requests_per_minute = 0, tokens_per_minute = 0;  // 0: no limit
  int32_t priority = 0;                                   // added to its requests' own; higher runs first
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;                  // 0: any free one
  std::optional<uint16_t> metrics_port;  // one more port, with /metrics alone; 0: any free one
  std::optional<uint16_t> grpc_port;     // one more port, with the KServe protocol over gRPC; 0: any free one
  int threads = 2;
  bool ready = true;                       // false: generation is refused with 503 until set_ready(true), after warm-up
  std::vector<ApiKey> api_keys;            // empty: no key is asked for; /health and /metrics never ask
  std::string tls_certificate, tls_key;    // PEM files; both empty: plain HTTP
  std::string access_log;                  // a file, or "-": standard error; empty: none
  std::string otlp_traces_endpoint;        // http://host:port[/path] of a collector of spans; empty: none are sent
  std::string cors_origin;                 // Access-Control-Allow-Origin; empty: none is sent
  std::string metrics_prefix = "pinion_";  // "vllm:" serves dashboards made for vLLM
  bool strict_model_name = false;          // KServe paths: refuse names other than the model's
  bool strict_fields = false;              // refuse unknown request fields, which are otherwise ignored
  size_t max_body_bytes = size_t{16} << 20;
  size_t max_header_bytes = size_t{32} << 10;
  size_t max_headers = 100, max_uri_bytes = size_t{8} << 10;
  size_t max_connections = 4096;              // one more is answered 503
  size_t max_output_bytes = size_t{1} << 20;  // waiting for one slow reader; then its request is cancelled
  int32_t max_choices = 128;                  // sequences of one request
  std::chrono::milliseconds header_timeout{10'000}, body_timeout{30'000};  // the body also gets 1 s per KiB it brings
  std::chrono::milliseconds keep_alive_timeout{75'000}, write_timeout{30'000}, ping_interval{15'000};
  std::chrono::milliseconds request_timeout{0};  // of one answer, then it is cancelled with 504; 0: no limit
  std::chrono::milliseconds drain_timeout{0};    // then what still runs is cancelled; 0: no limit
};

class Server {
 public:
  // The service is borrowed and outlives the server. Errors: the address is in use, or not ours.
  static Result<std::unique_ptr<Server>> start(ServerOptions options, const ModelService& service);
  // Models of a source, which is borrowed too; load_models() loads what it has.
  static Result<std::unique_ptr<Server>> start(ServerOptions options, ModelSource& source);
  ~Server();  // stop()

  uint16_t port() const;
  uint16_t metrics_port() const;  // 0: there is none
  uint16_t grpc_port() const;     // too
  static bool has_grpc();         // false: this program was built without it, and grpc_port is refused
  // Blocks for as long as models take to load. Again: each is replaced without dropping a request, see ModelRegistry.
  void load_models();
  void set_ready(bool ready);
  // Readiness turns false, new requests get 503, accepted ones are finished, then as stop(). Blocks.
  void drain();
  void stop();  // cancels what runs and closes every connection. Blocks. Neither is for the server's own threads.
  void wait();  // until stopped

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pinion
