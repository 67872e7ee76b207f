#include "backend/cuda/cuda_stream.h"

#include "backend/cuda/cuda_error.h"

namespace pinion::cuda {
namespace {

class CudaRecording final : public Recording {
 public:
  explicit CudaRecording(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaRecording() override { (void)cudaGraphExecDestroy(graph_); }
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;

  void replay(Stream& stream) override {
    const CudaStream& cuda = cuda_stream(stream);
    cuda.activate();
    cuda_check(cudaGraphLaunch(graph_, cuda.handle()), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t graph_;
};

}  // namespace

void activate_device(int ordinal) {
  thread_local int current = -1;  // asking CUDA each time costs more than a launch should
  if (current == ordinal) return;
  cuda_check(cudaSetDevice(ordinal), "cudaSetDevice");
  current = ordinal;
}

CudaStream::CudaStream(const DeviceProperties& device) : device_(device) {
  activate();
  cuda_check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  cuda_check(cudaMalloc(&tickets_, kTickets * sizeof(unsigned)), "cudaMalloc of a stream's tickets");
  cuda_check(cudaMemsetAsync(tickets_, 0, kTickets * sizeof(unsigned), handle_), "cudaMemsetAsync of tickets");
  for (cudaEvent_t& e : marks_) cuda_check(cudaEventCreate(&e), "cudaEventCreate");
}

CudaStream::~CudaStream() {
  for (cudaEvent_t e : marks_) (void)cudaEventDestroy(e);
  (void)cudaFree(tickets_);
  (void)cudaStreamDestroy(handle_);
}

void CudaStream::synchronize() {
  cuda_check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize");
}

uint64_t CudaStream::mark() {
  activate();
  cuda_check(cudaEventRecord(marks_[marked_ % kMarks], handle_), "cudaEventRecord");
  return marked_++;
}

void CudaStream::wait(uint64_t mark) {
  cuda_check(cudaEventSynchronize(marks_[mark % kMarks]), "cudaEventSynchronize");
}

double CudaStream::seconds_between(uint64_t from, uint64_t to) {
  float ms = 0;
  cuda_check(cudaEventElapsedTime(&ms, marks_[from % kMarks], marks_[to % kMarks]), "cudaEventElapsedTime");
  return ms * 1e-3;
}

void CudaStream::copy_to_device(void* to, const void* host, size_t bytes) {
  if (bytes == 0) return;
  activate();
  cuda_check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, handle_), "cudaMemcpyAsync to the device");
}

void CudaStream::copy_to_host(void* host, const void* from, size_t bytes) {
  if (bytes == 0) return;
  activate();
  cuda_check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, handle_), "cudaMemcpyAsync to the host");
}

void CudaStream::copy_on_device(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  activate();
  cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, handle_), "cudaMemcpyAsync on the device");
}

void CudaStream::fill(void* to, uint8_t value, size_t bytes) {
  if (bytes == 0) return;
  activate();
  cuda_check(cudaMemsetAsync(to, value, bytes, handle_), "cudaMemsetAsync");
}

// Thread-local capture: other threads (uploads, another executor) may go on calling CUDA meanwhile.
bool CudaStream::begin_recording() {
  activate();
  cuda_check(cudaStreamBeginCapture(handle_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  return true;
}

std::unique_ptr<Recording> CudaStream::end_recording() {
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamEndCapture(handle_, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  (void)cudaGraphDestroy(graph);
  cuda_check(status, "cudaGraphInstantiate");
  cuda_check(cudaGraphUpload(exec, handle_), "cudaGraphUpload");
  return std::make_unique<CudaRecording>(exec);
}

}  // namespace pinion::cuda
