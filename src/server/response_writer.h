// What a generating request writes: pieces of sequences go in, the text of the stream or the whole answer comes out.
// One implementation per API; connection.cc and grpc_call.cc know only this.
#pragma once

#include <string>

#include "runtime/request.h"
#include "server/http_message.h"

namespace pinion {

// "stop", "length", "error" or "cancelled"; of a sequence that has not ended "cancelled" too: it was cut off.
std::string_view finish_name(FinishReason reason);

class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  virtual bool streams() const = 0;
  // Takes one piece of sequence `sequence`; when streaming appends events to `out`. A piece with an error: failed().
  virtual void add(size_t sequence, OutputPiece piece, std::string& out) = 0;
  virtual bool done() const = 0;               // every sequence has ended
  virtual const ApiError* failed() const = 0;  // a sequence ended by an error
  virtual void end(std::string& out) = 0;      // the last events of a stream
  virtual std::string error_event(const ApiError&) const = 0;
  virtual HttpResponse error(const ApiError&) const = 0;  // before anything was sent
  virtual HttpResponse response() = 0;                    // of a request that does not stream

  struct Totals {
    int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  };
  virtual Totals totals() const = 0;
  virtual std::string_view finish(size_t sequence) const = 0;  // for metrics: "stop", "length", …
  virtual size_t sequences() const = 0;
};

}  // namespace pinion
