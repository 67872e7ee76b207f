#include "backend/cuda/cuda_stream.h"

#include "backend/cuda/cuda_error.h"
#include "backend/cuda/kernels/copy_pinned.h"

namespace pinion::cuda {
namespace {

class CudaRecording final : public Recording {
 public:
  // Takes both. `upload`: the node of the graph that it begins with, or null.
  CudaRecording(cudaGraph_t graph, cudaGraphExec_t exec, cudaGraphNode_t upload)
      : graph_(graph), exec_(exec), upload_(upload) {}
  ~CudaRecording() override {
    (void)cudaGraphExecDestroy(exec_);
    (void)cudaGraphDestroy(graph_);
  }
  CudaRecording(const CudaRecording&) = delete;
  CudaRecording& operator=(const CudaRecording&) = delete;

  void replay(Stream& stream) override {
    const CudaStream& cuda = cuda_stream(stream);
    cuda.activate();
    cuda_check(cudaGraphLaunch(exec_, cuda.handle()), "cudaGraphLaunch");
  }
  void replay(Stream& stream, const Upload& upload) override {
    check(upload_ != nullptr, "the recording does not begin with an upload");
    cuda_stream(stream).activate();
    replace_upload(exec_, upload_, upload);  // of launches from now on: one under way keeps its own
    replay(stream);
  }

 private:
  cudaGraph_t graph_;  // nodes of the other one are named by its own
  cudaGraphExec_t exec_;
  cudaGraphNode_t upload_;
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

// Recorded as a kernel: a copy by the copy engine would wait for the kernels before it and be waited for by those
// behind, which between short steps takes longer than the copy. The kernel behind it must not start early: some kernels
// read a step's lengths before they wait.
void CudaStream::upload(const Upload& upload) {
  if (!recording_) return copy_to_device(upload.to, upload.pinned, upload.bytes);
  check(!begins_with_upload_, "a recording has one upload");
  begins_with_upload_ = true;
  copy_pinned(upload, *this);
  whole_ = true;
}

// Thread-local capture: other threads (uploads, another executor) may go on calling CUDA meanwhile.
bool CudaStream::begin_recording() {
  activate();
  cuda_check(cudaStreamBeginCapture(handle_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  recording_ = true, begins_with_upload_ = false;
  return true;
}

std::unique_ptr<Recording> CudaStream::end_recording() {
  recording_ = whole_ = false;
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamEndCapture(handle_, &graph), "cudaStreamEndCapture");
  cudaGraphNode_t first = nullptr;
  size_t firsts = 1;
  if (begins_with_upload_) cuda_check(cudaGraphGetRootNodes(graph, &first, &firsts), "cudaGraphGetRootNodes");
  check(firsts == 1, "a recording begins in one place");
  cudaGraphExec_t exec = nullptr;
  if (const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0); status != cudaSuccess) {
    (void)cudaGraphDestroy(graph);
    cuda_check(status, "cudaGraphInstantiate");
  }
  auto recording = std::make_unique<CudaRecording>(graph, exec, first);
  cuda_check(cudaGraphUpload(exec, handle_), "cudaGraphUpload");
  return recording;
}

}  // namespace pinion::cuda
