#include "server/grpc_call.h"

#include <fmt/format.h>
#include <grpcpp/alarm.h>

#include <deque>
#include <list>

#include "base/log.h"
#include "server/answer_account.h"
#include "server/generation.h"
#include "server/grpc_message.h"
#include "server/kserve.h"

namespace pinion {
namespace {

constexpr std::string_view kInfer = "/inference.GRPCInferenceService/ModelInfer";
constexpr std::string_view kStreamInfer = "/inference.GRPCInferenceService/ModelStreamInfer";
constexpr size_t kMostInferences = 64;  // of one stream at a time; then it is not read until one has ended

const grpc::Status& the_server_ends() {
  static const grpc::Status status(grpc::StatusCode::UNAVAILABLE, "the server ends");
  return status;
}

grpc::StatusCode code_of(int http_status) {
  switch (http_status) {
    case 401:
      return grpc::StatusCode::UNAUTHENTICATED;
    case 404:
      return grpc::StatusCode::NOT_FOUND;
    case 429:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case 499:
      return grpc::StatusCode::CANCELLED;
    case 501:
      return grpc::StatusCode::UNIMPLEMENTED;
    case 503:
      return grpc::StatusCode::UNAVAILABLE;
    case 504:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
  }
  return http_status >= 500 ? grpc::StatusCode::INTERNAL : grpc::StatusCode::INVALID_ARGUMENT;
}

grpc::Status status_of(const ApiError& error) {
  return {code_of(error.status), error.message};
}

std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!buffer.Dump(&slices).ok()) return out;
  out.reserve(buffer.Length());
  for (const grpc::Slice& slice : slices) out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

grpc::ByteBuffer buffer_of(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

// One request of a call, while it is answered.
struct Inference {
  std::string id, request_id;  // the client's and ours
  bool empty_final = false;
  std::unique_ptr<KserveWriter> writer;
  ModelHandle model;
  AnswerAccount account;
  int key = -1;
  AnswerAccount::Clock::time_point arrival;
  std::shared_ptr<Generation> generation = {};
  std::unique_ptr<grpc::Alarm> time_limit = {};
  bool late = false;
};

class Call final : public grpc::ServerGenericBidiReactor, public GrpcCall, public std::enable_shared_from_this<Call> {
 public:
  Call(GrpcContext& context, grpc::GenericCallbackServerContext& rpc)
      : context_(context), state_(context.state), rpc_(rpc), path_(rpc.method()), stream_(path_ == kStreamInfer) {
    request_.method = "gRPC";
    for (const auto& [name, value] : rpc.client_metadata()) {
      const auto text = [&v = value] { return std::string(v.data(), v.size()); };
      if (name == "authorization") request_.authorization = text();
      if (name == "traceparent") request_.traceparent = text();
      if (name == "triton_grpc_error") errors_end_ = text() == "true";
    }
    trace_ = continue_trace(request_.traceparent, state_.spans != nullptr);
    if (!trace_.header.empty()) rpc.AddInitialMetadata("traceparent", trace_.header);
  }

  void begin() {
    self_ = shared_from_this();
    const std::lock_guard lock(mutex_);
    size_t open = 0;
    {
      const std::lock_guard all(context_.mutex);
      place_ = context_.calls.insert(context_.calls.end(), self_);
      open = context_.calls.size();
    }
    if (open > state_.options.max_connections) {
      return finish({grpc::StatusCode::UNAVAILABLE, "too many calls are open"});
    }
    if (context_.stopping) return finish(the_server_ends());
    method_ = find_grpc_method(path_);
    if (method_ != nullptr || path_ == kInfer || stream_) return StartRead(&incoming_);
    const std::string_view extension = unimplemented_grpc_extension(path_);
    finish({grpc::StatusCode::UNIMPLEMENTED,
            extension.empty() ? fmt::format("there is no method {}", path_.substr(0, 256))
                              : fmt::format("the extension '{}' is not supported by this server", extension)});
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      const std::lock_guard lock(mutex_);
      half_closed_ = true;
      if (!stream_) finish({grpc::StatusCode::INVALID_ARGUMENT, "the call has no message"});
      return advance();
    }
    const std::string bytes = bytes_of(incoming_);
    incoming_.Clear();
    try {
      method_ != nullptr ? ask(bytes) : infer(bytes);
    } catch (const std::exception& e) {
      spdlog::error("{}: internal error: {}", path_, e.what());
      const std::lock_guard lock(mutex_);
      finish({grpc::StatusCode::INTERNAL, "internal error"});
    }
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) return leave();
    advance();
  }

  // The client went away, its deadline passed, or the server stops.
  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    leave();
  }

  void OnDone() override {
    {
      const std::lock_guard all(context_.mutex);
      context_.calls.erase(place_);
    }
    self_.reset();
  }

  void wake() override {
    const std::lock_guard lock(mutex_);
    const auto stalled = std::chrono::steady_clock::now() - write_began_;
    if (state_.draining && writing_ && !finished_ && stalled > state_.options.write_timeout) {
      return rpc_.TryCancel();  // a reader that takes nothing would hold up the end for ever
    }
    advance();
  }

 private:
  // A method with one answer, which REST knows.
  void ask(const std::string& bytes) {
    const auto http = method_->request(bytes);
    if (!http) return answer(ApiError{.message = "the message is not this method's"});
    HttpRequest request = *http;
    request.authorization = request_.authorization;
    request.request_id = random_id();
    auto reply = handle_kserve(state_, request);
    if (auto* slow = std::get_if<SlowReply>(&reply->content)) {
      {
        const std::lock_guard lock(mutex_);
        asking_ = true;
        ++state_.in_flight;
      }
      return context_.slow.push(
          [self = shared_from_this(), work = std::move(*slow)] { self->answer(self->method_->answer(work())); });
    }
    answer(method_->answer(std::get<HttpResponse>(reply->content)));
  }

  void answer(const std::variant<std::string, ApiError>& message) {
    const auto* error = std::get_if<ApiError>(&message);
    state_.metrics.http_request("gRPC", error ? error->status : 200);
    const std::lock_guard lock(mutex_);
    if (std::exchange(asking_, false)) --state_.in_flight;
    if (error) return finish(status_of(*error));
    outgoing_.push_back(std::get<std::string>(message));
    advance();
  }

  void infer(const std::string& bytes) {
    const auto arrival = AnswerAccount::Clock::now();
    std::string id;
    auto prepared = prepare(bytes, id, arrival);
    const std::lock_guard lock(mutex_);
    read_next_ = true;
    if (const auto* error = std::get_if<ApiError>(&prepared)) {
      state_.metrics.http_request("gRPC", error->status);
      refuse(id, *error);
      return advance();
    }
    if (finished_) return;
    auto& [inference, requests] = std::get<Prepared>(prepared);
    inference.generation = std::make_shared<Generation>(
        *inference.model->service().generator,
        inference.writer->streams() ? state_.options.max_output_bytes : std::numeric_limits<size_t>::max(),
        [self = shared_from_this()] { self->context_.post([self] { self->wake(); }); });
    if (auto started = inference.generation->start(std::move(requests)); !started) {
      inference.account.refused(started.error());
      state_.metrics.http_request("gRPC", api_error(started.error()).status);
      refuse(id, api_error(started.error()));
      return advance();
    }
    ++state_.in_flight;
    inferences_.push_back(std::move(inference));
    limit_time(inferences_.back());
    advance();
  }

  struct Prepared {
    Inference inference;
    std::vector<Request> requests;
  };
  std::variant<ApiError, Prepared> prepare(const std::string& bytes, std::string& id,
                                           AnswerAccount::Clock::time_point arrival) {
    if (!authorized(state_, request_)) {
      return ApiError{.status = 401,
                      .message =
                          "the API key is missing or wrong: send it as metadata, "
                          "authorization: Bearer KEY"};
    }
    auto read = read_grpc_infer(bytes, id);
    if (!read) return kserve_api_error(read.error());
    auto model = find_kserve_model(state_, read->model, read->version);
    if (auto* error = std::get_if<ApiError>(&model)) return std::move(*error);
    const auto& handle = std::get<ModelHandle>(model);
    HttpRequest request = request_;
    request.request_id = random_id();
    auto started = start_kserve(state_, request, handle, read->model, read->message, KserveWriter::Form::infer, stream_,
                                "ModelStreamInfer: ModelInfer answers exactly once");
    if (auto* error = std::get_if<ApiError>(&started)) return std::move(*error);
    auto& [reply, writer] = std::get<KserveInference>(started);
    AnswerAccount account(state_, reply, writer->sequences(), arrival);
    return Prepared{.inference = {.id = id,
                                  .request_id = request.request_id,
                                  .empty_final = read->empty_final,
                                  .writer = std::move(writer),
                                  .model = handle,
                                  .account = std::move(account),
                                  .key = reply.key,
                                  .arrival = arrival},
                    .requests = std::move(reply.requests)};
  }

  void limit_time(Inference& inference) {
    const auto limit = state_.options.request_timeout;
    if (limit.count() == 0) return;
    inference.time_limit = std::make_unique<grpc::Alarm>();
    inference.time_limit->Set(std::chrono::system_clock::now() + limit,
                              [self = shared_from_this(), generation = inference.generation](bool passed) {
                                if (passed) self->expire(generation);
                              });
  }

  void expire(const std::shared_ptr<Generation>& generation) {
    const std::lock_guard lock(mutex_);
    for (Inference& i : inferences_) {
      if (i.generation == generation) i.late = true;
    }
    advance();
  }

  // Everything below: with the lock held.

  // A drain watches what is in flight: an answer passes from those that are made to those that are sent in between.
  void advance() {
    ++state_.in_flight;
    step();
    count_sending();
    --state_.in_flight;
  }

  void count_sending() {
    const bool sending = !finished_ && (writing_ || !outgoing_.empty());
    if (sending == sending_) return;
    sending_ = sending;
    sending ? ++state_.in_flight : --state_.in_flight;
  }

  // Writes the next message, or ends the call when there will be none.
  void step() {
    read_more();
    if (finished_ || writing_) return;
    if (outgoing_.empty()) collect();
    if (finished_) return;
    if (!outgoing_.empty()) {
      written_ = buffer_of(outgoing_.front());
      outgoing_.pop_front();
      writing_ = true;
      write_began_ = std::chrono::steady_clock::now();
      if (stream_) return StartWrite(&written_);
      finished_ = true;
      return StartWriteAndFinish(&written_, grpc::WriteOptions(), grpc::Status::OK);
    }
    if (stream_ && half_closed_ && inferences_.empty()) return finish(grpc::Status::OK);
    if (context_.stopping && inferences_.empty() && !asking_) return finish(the_server_ends());
    read_more();  // collect() may have ended one
  }

  // The next request of a stream, unless enough are being answered or answers wait for a slow reader.
  void read_more() {
    if (!stream_ || !read_next_ || half_closed_ || finished_) return;
    if (inferences_.size() >= kMostInferences || outgoing_.size() >= kMostInferences) return;
    read_next_ = false;
    StartRead(&incoming_);
  }

  // Takes what the engine has made since the last time.
  void collect() {
    for (auto i = inferences_.begin(); !finished_ && i != inferences_.end();) {
      auto events = i->generation->take();
      if (i->generation->overflowed()) {
        return finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "the client reads too slowly"});
      }
      for (auto& event : events) {
        if (i->writer->failed()) break;
        i->account.add(event.sequence, event.piece);
        const bool news = i->writer->take(event.sequence, std::move(event.piece));
        const bool last = i->writer->done() && !i->writer->failed();
        if (i->writer->streams() && (news || last)) {
          std::vector<KserveTensor> tensors;
          if (news || !i->empty_final) tensors = i->writer->tensors(event.sequence);
          write(*i, tensors, last);
        }
      }
      const bool late = !i->writer->done() && (i->late || state_.expired);
      if (late || i->writer->failed()) {
        const ApiError error = late ? too_late(state_) : *i->writer->failed();
        end(*i, late ? AnswerAccount::End::late : AnswerAccount::End::answered);
        const std::string id = i->id;
        i = inferences_.erase(i);
        refuse(id, error);
      } else if (i->writer->done()) {
        if (!i->writer->streams()) write(*i, i->writer->tensors(), true);
        end(*i, AnswerAccount::End::answered);
        i = inferences_.erase(i);
      } else {
        ++i;
      }
    }
  }

  void write(const Inference& i, const std::vector<KserveTensor>& tensors, bool last) {
    GrpcInferResponse response{
        .model = i.writer->model(), .version = i.writer->version(), .id = i.id, .tensors = tensors, .final = {}};
    if (stream_) response.final = last;
    outgoing_.push_back(stream_ ? grpc_stream_response(response) : grpc_infer_response(response));
  }

  // An error of one request: the end of a unary call, a message of a stream.
  void refuse(const std::string& id, const ApiError& error) {
    if (!stream_ || errors_end_) return finish(status_of(error));
    outgoing_.push_back(grpc_stream_error(id, error.message));
  }

  void end(Inference& i, AnswerAccount::End how) {
    i.generation->stop();
    AccessRecord record{.request_id = i.request_id, .trace_id = trace_.trace_id, .method = request_.method};
    record.model = i.model->service().name;
    i.account.end(how, *i.writer, record);
    log_answer(state_, record, trace_, stream_ ? "ModelStreamInfer" : "ModelInfer", i.key, i.arrival);
    --state_.in_flight;
  }

  void leave() { finish(grpc::Status::CANCELLED); }

  void finish(const grpc::Status& status) {
    for (Inference& i : inferences_) end(i, AnswerAccount::End::left);
    inferences_.clear();
    outgoing_.clear();
    if (std::exchange(finished_, true)) return;
    count_sending();
    Finish(status);
  }

  GrpcContext& context_;
  ServerState& state_;
  grpc::GenericCallbackServerContext& rpc_;  // valid while an operation is under way
  const std::string path_;
  const bool stream_;
  const GrpcMethod* method_ = nullptr;  // null: it infers
  HttpRequest request_;                 // its key, trace and id
  TraceContext trace_;
  bool errors_end_ = false;  // an error ends a stream with its status
  std::shared_ptr<Call> self_;
  std::list<std::weak_ptr<GrpcCall>>::iterator place_;  // among the context's calls

  std::mutex mutex_;
  grpc::ByteBuffer incoming_, written_;
  std::chrono::steady_clock::time_point write_began_;
  bool read_next_ = false;  // the last message is dealt with
  bool half_closed_ = false, writing_ = false, finished_ = false;
  bool asking_ = false;   // its one answer is being made
  bool sending_ = false;  // and counted as in flight
  std::list<Inference> inferences_;
  std::deque<std::string> outgoing_;
};

}  // namespace

grpc::ServerGenericBidiReactor* start_grpc_call(GrpcContext& context, grpc::GenericCallbackServerContext& rpc) {
  const auto call = std::make_shared<Call>(context, rpc);
  call->begin();
  return call.get();
}

}  // namespace pinion
