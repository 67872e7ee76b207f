// What a porter reads: a Backend lists devices and kernels, a Device owns memory and makes streams, a Kernel is a row
// of a table. Kernels are chosen once, at build, by name; the run time only calls launch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "graph/ops/ops.h"
#include "tensor/row_layout.h"
#include "tensor/tensor.h"

namespace pinion {

struct DeviceInfo {
  std::string backend;  // "cpu"
  std::string name;     // "Intel(R) Xeon(R) … , 2 threads"
  std::string isa;      // "avx512", "avx2", "scalar"; "sm_90a" on CUDA
  int threads = 1;      // CPU threads, or SMs
  size_t memory_bytes = 0;
  double read_gbps = 20;  // estimates for ranking kernels; bench measures the real ceilings
  double f32_gflops = 50;
};

// How a weight lies in memory. row_major: [rows, cols] dense, as in the checkpoint. packed: quantised, as
// tensor/row_layout.h lays it out. Kernels name the layout they read; one weight has one layout over all its uses.
enum class Layout : uint8_t { row_major, packed };
std::string_view name(Layout layout);

struct WeightSpec {
  DType dtype = DType::f32;  // of a packed weight: what it is expanded to where no kernel reads it packed
  Layout layout = Layout::row_major;
  int64_t rows = 0, cols = 0;  // a vector has rows = 1
  Packing packing;             // of a packed weight
  RowLayout row_layout() const { return packing.layout(rows, cols); }
  size_t bytes() const {
    return layout == Layout::packed ? static_cast<size_t>(row_layout().bytes())
                                    : static_cast<size_t>(rows) * cols * bit_size(dtype) / 8;
  }
};
std::string str(const WeightSpec& spec);  // "bfloat16", "int4 group 128 zeros"

struct WeightView : WeightSpec {
  const void* data = nullptr;  // 64-byte aligned
};

// Up to four numbers that mean something to the kernel that proposed them (tile sizes, splits); all zero: no choice.
struct Tuning {
  std::array<int32_t, 4> value{};
  bool operator==(const Tuning&) const = default;
};

// The element types of an op's inputs and outputs, in its documented order; f32 beyond them. The CPU computes in f32; a
// backend that asks for narrower values (Backend::value_dtype) gets its graph's values typed at build, and an op then
// may mix them: AddRmsNorm adds a bf16 branch to an f32 residual stream.
struct ValueTypes {
  std::array<DType, 4> in{}, out{};
  bool operator==(const ValueTypes&) const = default;
};

// The problem a kernel is asked about at build: the op, the rows of its first input (tokens or outputs), its weights.
struct Call {
  const Op* op = nullptr;
  int64_t rows = 1;  // of the bucket being planned
  int64_t seqs = 1;
  int64_t context = 1024;  // tokens of context to assume for attention
  int inputs = 1;
  std::span<const WeightSpec> weights;  // in the op's documented order
  ValueTypes values;
  DType kv_dtype = DType::f32;
  bool deterministic = false;  // only kernels whose result for a row depends on no other row of the batch
};

// One layer's pages as kernels see them. K of (block b, head h, slot s) starts at element
//   ((h * block_size) + s) * head_dim   of   base + b * block_stride;   V lies v_offset bytes after its K.
// f8_e4m3: x is stored as e4m3(x / scale), with the layer's k_scale or v_scale. i8: as round(x / s), where s is the
// head's absmax / 127 (1 for a row of zeros), f32 number h * block_size + s after all codes of the block's K, or of its
// V.
struct KvView {
  std::byte* base = nullptr;
  int64_t block_stride = 0;  // bytes from one block to the next
  int64_t v_offset = 0;      // bytes from a block's K to its V
  int32_t block_size = 64;   // tokens
  DType dtype = DType::f32;
  float k_scale = 1, v_scale = 1;        // f8_e4m3 alone
  const int32_t* block_table = nullptr;  // [seqs, max_blocks]; -1 where freed behind the window
  int32_t max_blocks = 0;
};

struct RopeTable {
  const float* cos = nullptr;  // [tokens, rotary_dim / 2], attention factor included
  const float* sin = nullptr;
};

// Everything one forward needs, read-only. Numbers and spans are the host's, what the pointers point to the device
// reads. A step that replays a Recording is padded to the recorded sizes: a row of padding belongs to a sequence with
// context_len 0 and blocks of -1; kernels neither read nor write a cache for it, and its outputs may be anything
// finite.
struct BatchView {
  int32_t tokens = 0, seqs = 0, outputs = 0;
  int32_t max_seq_tokens = 0;          // no sequence has more rows in this step: 1 when all of them decode
  int32_t max_context = 0;             // no context_len exceeds it; while recording: the limit of all replays
  const int32_t* token_ids = nullptr;  // [tokens]
  const int32_t* positions = nullptr;  // [tokens]
  const int32_t* row_seq = nullptr;    // [tokens]: the sequence that a row belongs to
  const int32_t* seq_start = nullptr;  // [seqs + 1]: the rows of sequence s are seq_start[s] … seq_start[s + 1] - 1
  const int32_t* context_len =
      nullptr;  // [seqs]: tokens in the cache once this step's are written; the last row's position + 1
  const int32_t* output_rows = nullptr;  // [outputs]
  std::span<const RopeTable> rope;       // by Rope::table
  std::span<const KvView> kv;            // by Attention::layer
  // [tokens], or null: where it is not negative, the token is not token_ids' but earlier_tokens[earlier_row], which the
  // device chose in the step before.
  const int32_t *earlier_row = nullptr, *earlier_tokens = nullptr;
};

struct LaunchArgs {
  const Op* op = nullptr;
  std::span<const TensorView> in, out;  // [rows, width], dense
  std::span<const WeightView> weights;
  std::span<std::byte> workspace;  // as Kernel::workspace asked, 64-byte aligned
  const BatchView* batch = nullptr;
  Tuning tuning;
};

class Stream;

// A little memory for the device, from pinned memory (Device::allocate_pinned); both 16-byte aligned.
struct Upload {
  void* to = nullptr;
  const void* pinned = nullptr;
  size_t bytes = 0;
};

// Launches and copies that a stream recorded instead of running them: one replay runs them all, with the same pointers
// and sizes, over whatever the memory then holds (on CUDA an instantiated graph).
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay(Stream& stream) = 0;
  // The same, with this in place of the upload that the recording begins with.
  virtual void replay(Stream& stream, const Upload& upload) = 0;
};

// Kernels and copies of one stream run in order. The defaults serve devices that compute in the host's memory, where a
// launch returns when its work is done.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void synchronize() = 0;  // throws DeviceError for what failed since the last one

  // Asynchronous where the host memory is pinned (Device::allocate_pinned).
  virtual void copy_to_device(void* to, const void* host, size_t bytes);
  virtual void copy_to_host(void* host, const void* from, size_t bytes);
  virtual void copy_on_device(void* to, const void* from, size_t bytes);
  virtual void fill(void* to, uint8_t value, size_t bytes);
  // Ordered as copy_to_device is; first in a recording it is what each replay may replace.
  virtual void upload(const Upload& upload) {
    if (upload.bytes > 0) copy_to_device(upload.to, upload.pinned, upload.bytes);
  }

  // From begin_recording on nothing runs until end_recording returns what was launched. False: this stream cannot.
  virtual bool begin_recording() { return false; }
  virtual std::unique_ptr<Recording> end_recording() { return nullptr; }

  // A place in the stream, and waiting until the device has come there: what the stream took later may still run.
  // Throws as synchronize does. At most kMarks marks are waited for at a time; an older one may be forgotten.
  static constexpr uint64_t kMarks = 16;
  virtual uint64_t mark() { return 0; }
  virtual void wait(uint64_t /*mark*/) { synchronize(); }
  // What the device took from one mark to a later one, both waited for and not forgotten; 0 where nothing measures it.
  virtual double seconds_between(uint64_t /*from*/, uint64_t /*to*/) { return 0; }
};

struct Kernel {
  std::string_view name;  // "cpu.linear.gemv"; the ISA is no part of it: variants of one layout bind at load
  OpKind op;
  Layout layout = Layout::row_major;                               // of its matrix weights
  bool batch_invariant = true;                                     // see Call::deterministic
  std::string (*why_not)(const Call&, const DeviceInfo&);          // empty: can run
  std::vector<Tuning> (*tunings)(const Call&, const DeviceInfo&);  // null: one, all zero
  double (*estimate_us)(const Call&, const Tuning&, const DeviceInfo&);
  size_t (*workspace)(const Call&, const Tuning&, const DeviceInfo&);  // null: none; monotone in rows and seqs
  void (*launch)(const LaunchArgs&, Stream&);
};

class Buffer {  // owns memory; the host may touch data() only where Device::host_visible() or when it is pinned
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size() const = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  virtual Result<std::unique_ptr<Buffer>> allocate(size_t bytes) = 0;  // touched lazily; 64-byte aligned
  virtual std::unique_ptr<Stream> make_stream() = 0;
  // Whether the host reads and writes allocate()'s memory in place; if not, streams copy.
  virtual bool host_visible() const { return true; }
  // Host memory that the device copies from and to without a detour.
  virtual Result<std::unique_ptr<Buffer>> allocate_pinned(size_t bytes) { return allocate(bytes); }
  virtual size_t free_bytes() const { return info().memory_bytes; }  // that allocate could still give
};

struct DeviceOptions {
  int ordinal = 0;
  int threads = 0;  // CPU: 0 means all this process may use
  std::string isa;  // CPU: force "avx2", "avx512" or "scalar"; empty: the best
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual std::vector<DeviceInfo> probe() const = 0;  // no device present: empty
  virtual Result<std::unique_ptr<Device>> open(const DeviceOptions& options) const = 0;
  virtual std::span<const Kernel> kernels(OpKind kind) const = 0;  // priority order, reference last
  // The element type of the graph's values between ops, for matrix weights of this type. Logits are f32 everywhere.
  virtual DType value_dtype(DType /*weights*/) const { return DType::f32; }
};

// What a KV cache may hold.
constexpr bool is_kv_dtype(DType t) {
  return is_float(t) || t == DType::f8_e4m3 || t == DType::i8;
}

// Why a backend that computes in f32 cannot take the call's values; empty when it can.
std::string why_not_f32_values(const Call& call);

const Kernel* find_kernel(const Backend& backend, std::string_view name);

}  // namespace pinion
