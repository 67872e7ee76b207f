// Linear through cuBLASLt. In its column-major terms y^T [out, tokens] = (W^T)^T x^T: A is the weight, transposed, B is
// x. An algorithm is written into a plan as the numbers that cuBLASLt builds it from again, so that an engine can store
// it and use it for any number of tokens.
#include <cublasLt.h>
#include <dlfcn.h>

#include <mutex>

#include "backend/cuda/kernels/linear.h"
#include "backend/cuda/launch.h"

namespace pinion::cuda {
namespace {

constexpr size_t kLibraryWorkspace = 32u << 20;  // what cuBLAS's documentation recommends for Hopper
constexpr int kCandidates = 8;

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The functions used, by name, from the library of the CUDA version that this was compiled with.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulAlgoInit) algo_init = nullptr;
  decltype(&cublasLtMatmulAlgoCheck) algo_check = nullptr;
  decltype(&cublasLtMatmulAlgoConfigSetAttribute) algo_set = nullptr;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get = nullptr;
  std::string failure;  // why there is none
};

Library load() {
  Library l;
  const std::string file = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    l.failure = file + " cannot be loaded (" + (why != nullptr ? why : "no reason given") +
                "): install the CUDA toolkit's cuBLAS or set LD_LIBRARY_PATH";
    return l;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && l.failure.empty()) l.failure = file + " has no " + name;
  };
  find(l.create, "cublasLtCreate");
  find(l.matmul, "cublasLtMatmul");
  find(l.desc_create, "cublasLtMatmulDescCreate");
  find(l.desc_destroy, "cublasLtMatmulDescDestroy");
  find(l.desc_set, "cublasLtMatmulDescSetAttribute");
  find(l.layout_create, "cublasLtMatrixLayoutCreate");
  find(l.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(l.preference_create, "cublasLtMatmulPreferenceCreate");
  find(l.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(l.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(l.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(l.algo_init, "cublasLtMatmulAlgoInit");
  find(l.algo_check, "cublasLtMatmulAlgoCheck");
  find(l.algo_set, "cublasLtMatmulAlgoConfigSetAttribute");
  find(l.algo_get, "cublasLtMatmulAlgoConfigGetAttribute");
  return l;
}

const Library& library() {
  static const Library l = load();
  return l;
}

void lt_check(cublasStatus_t status, std::string_view call, std::source_location at = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(std::string(call) + " returned status " + std::to_string(status), cudaErrorUnknown, at);
}

// One handle a device, for the life of the program: making one takes device memory and milliseconds.
cublasLtHandle_t handle_of(int device) {
  static std::mutex mutex;
  static std::array<cublasLtHandle_t, kMaxDevices> handles{};
  const std::lock_guard lock(mutex);
  if (handles[device] == nullptr) {
    cuda_check(cudaSetDevice(device), "cudaSetDevice");
    lt_check(library().create(&handles[device]), "cublasLtCreate");
  }
  return handles[device];
}

cudaDataType_t cuda_type(DType type) {
  return type == DType::f32 ? CUDA_R_32F : type == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

// The problem in cuBLASLt's words.
class Description {
 public:
  Description(const LinearProblem& p, DType y_type) : l_(library()), type_(p.type), y_type_(y_type) {
    const auto m = static_cast<uint64_t>(p.output.out), n = static_cast<uint64_t>(p.output.tokens);
    const auto k = static_cast<uint64_t>(p.in);
    lt_check(l_.desc_create(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const cublasOperation_t transpose = CUBLAS_OP_T;
    lt_check(l_.desc_set(op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)),
             "cublasLtMatmulDescSetAttribute");
    lt_check(l_.layout_create(&a, cuda_type(type_), k, m, static_cast<int64_t>(k)), "cublasLtMatrixLayoutCreate");
    lt_check(l_.layout_create(&b, cuda_type(type_), k, n, static_cast<int64_t>(k)), "cublasLtMatrixLayoutCreate");
    lt_check(l_.layout_create(&d, cuda_type(y_type_), m, n, static_cast<int64_t>(m)), "cublasLtMatrixLayoutCreate");
  }
  ~Description() {
    if (op != nullptr) l_.desc_destroy(op);
    for (cublasLtMatrixLayout_t layout : {a, b, d}) {
      if (layout != nullptr) l_.layout_destroy(layout);
    }
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, int count) const {
    cublasLtMatmulPreference_t preference = nullptr;
    lt_check(l_.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
    const size_t bytes = kLibraryWorkspace;
    const uint32_t alignment = 16;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      return l_.preference_set(preference, what, &value, sizeof(value));
    };
    std::vector<cublasLtMatmulHeuristicResult_t> found(count);
    int n = 0;
    cublasStatus_t status = prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
    for (const auto what : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      if (status == CUBLAS_STATUS_SUCCESS) status = prefer(what, alignment);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = l_.heuristic(handle, op, a, b, d, d, preference, count, found.data(), &n);
    }
    l_.preference_destroy(preference);
    lt_check(status, "cublasLtMatmulAlgoGetHeuristic");
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < n; ++i) {
      if (found[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(found[i].algo);
    }
    return algorithms;
  }

  LargePlan plan(const cublasLtMatmulAlgo_t& algorithm) const {
    const auto get = [&](cublasLtMatmulAlgoConfigAttributes_t what, auto value) {
      size_t written = 0;
      lt_check(l_.algo_get(&algorithm, what, &value, sizeof(value), &written), "cublasLtMatmulAlgoConfigGetAttribute");
      return static_cast<uint32_t>(value);
    };
    const auto pack = [](uint32_t low, uint32_t high) { return static_cast<int32_t>(low | high << 16); };
    return {{pack(get(CUBLASLT_ALGO_CONFIG_ID, int32_t{}), get(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32_t{})),
             pack(get(CUBLASLT_ALGO_CONFIG_TILE_ID, uint32_t{}), get(CUBLASLT_ALGO_CONFIG_STAGES_ID, uint32_t{})),
             pack(get(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32_t{}) |
                      get(CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, uint32_t{}) << 8,
                  get(CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, uint16_t{})),
             pack(get(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, uint32_t{}),
                  get(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, uint16_t{}))}};
  }

  // False where the planned algorithm does not take this problem.
  bool restore(cublasLtHandle_t handle, const LargePlan& plan, cublasLtMatmulAlgo_t& algorithm) const {
    const auto& v = plan.algorithm;
    if (v == LargePlan{}.algorithm) return false;
    const cudaDataType_t type = cuda_type(type_), y = cuda_type(y_type_);
    if (l_.algo_init(handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, type, type, y, y, v[0] & 0xffff, &algorithm) !=
        CUBLAS_STATUS_SUCCESS) {
      return false;
    }
    const auto high = [](int32_t packed) { return static_cast<uint32_t>(packed) >> 16; };
    bool ok = true;
    const auto put = [&](cublasLtMatmulAlgoConfigAttributes_t what, const auto value) {
      ok = ok && l_.algo_set(&algorithm, what, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS;
    };
    put(CUBLASLT_ALGO_CONFIG_TILE_ID, static_cast<uint32_t>(v[1] & 0xffff));
    put(CUBLASLT_ALGO_CONFIG_STAGES_ID, high(v[1]));
    put(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, static_cast<int32_t>(high(v[0])));
    put(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, static_cast<uint32_t>(v[2] & 0xff));
    put(CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, static_cast<uint32_t>(v[2] >> 8 & 0xff));
    put(CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, static_cast<uint16_t>(high(v[2])));
    put(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, static_cast<uint32_t>(v[3] & 0xffff));
    put(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, static_cast<uint16_t>(high(v[3])));
    if (!ok) return false;
    cublasLtMatmulHeuristicResult_t result{};
    return l_.algo_check(handle, op, a, b, d, d, &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kLibraryWorkspace;
  }

  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;

 private:
  const Library& l_;
  DType type_, y_type_;
};

// The type of what cuBLASLt writes: y's, or with a gate the weight's, which linear_finish reads.
DType product_type(const LinearProblem& p) {
  return p.output.gated_silu ? p.type : p.output.y.dtype;
}

}  // namespace

std::string linear_large_why_not() {
  return library().failure;
}

size_t linear_large_workspace(DType type, int64_t tokens, int64_t out, bool gated_silu) {
  return kLibraryWorkspace + (gated_silu ? aligned(static_cast<size_t>(tokens * out) * byte_size(type)) : 0);
}

std::vector<LargePlan> linear_large_plans(const LinearProblem& p, int device) {
  const Description description(p, product_type(p));
  std::vector<LargePlan> plans;
  for (const cublasLtMatmulAlgo_t& algorithm : description.candidates(handle_of(device), kCandidates)) {
    plans.push_back(description.plan(algorithm));
  }
  return plans;
}

void linear_large(const LinearProblem& p, const LargePlan& plan, std::span<std::byte> workspace, Stream& stream) {
  const CudaStream& cuda = cuda_stream(stream);
  const cublasLtHandle_t handle = handle_of(cuda.device().ordinal);
  cuda.activate();
  const Description description(p, product_type(p));
  cublasLtMatmulAlgo_t algorithm;
  if (!description.restore(handle, plan, algorithm)) {
    const auto found = description.candidates(handle, 1);
    if (found.empty()) lt_check(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic");
    algorithm = found[0];
  }
  void* product = p.output.gated_silu ? workspace.data() + kLibraryWorkspace : p.output.y.data;
  const float one = 1, zero = 0;
  lt_check(library().matmul(handle, description.op, &one, p.weight, description.a, p.x, description.b, &zero, product,
                            description.d, product, description.d, &algorithm, workspace.data(), kLibraryWorkspace,
                            cuda.handle()),
           "cublasLtMatmul");
  if (p.output.gated_silu || p.output.bias.data != nullptr) {
    linear_finish({product, product_type(p)}, p.output, stream);
  }
}

}  // namespace pinion::cuda
