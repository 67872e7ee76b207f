// One client's connection: reads requests one after the other, hands them to the API, writes the answers. Everything
// of a connection runs on its strand; the engine's thread only posts to it.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <memory>

#include "server/api.h"
#include "server/work_queue.h"

namespace pinion {

class Connection {
 public:
  virtual ~Connection() = default;
  virtual void close() = 0;  // thread-safe: cancels what runs and closes
  virtual void wake() = 0;   // thread-safe: looks again whether it may go on
};

// `socket`'s executor is a strand of its own. The connection keeps itself alive until it ends.
// `slow` runs what would block; `metrics_only`: the connection is of the port that has only the metrics.
std::shared_ptr<Connection> start_connection(boost::asio::ip::tcp::socket socket, ServerState& state, WorkQueue& slow,
                                             bool metrics_only = false);

}  // namespace pinion
