#include "quant/sources/tensors.h"

#include <fmt/format.h>

#include <cstring>

#include "quant/number_formats.h"
#include "tensor/convert.h"

namespace pinion {

bool QuantTensors::has_dtype(std::string_view name, DType type) const {
  if (!has(name)) return false;
  const auto tensor = checkpoint_->tensor(name);
  return tensor.ok() && tensor->dtype == type;
}

Error QuantTensors::wrong(const std::string& name, std::string_view what) const {
  return fail(Errc::corrupt, fmt::format("the tensor \"{}\" {}", name, what), checkpoint_->dir().string(),
              "the weights and their quantization_config do not belong together");
}

Result<TensorRef> QuantTensors::get(const std::string& name, DType type, int rank) const {
  PINION_TRY(const TensorRef tensor, checkpoint_->tensor(name));
  if (tensor.dtype != type || tensor.shape.rank() != rank) {
    return wrong(name, fmt::format("is {} {}, not {} with {} dimensions", safetensors_name(tensor.dtype),
                                   tensor.shape.str(), safetensors_name(type), rank));
  }
  return tensor;
}

Result<std::vector<float>> QuantTensors::floats(const std::string& name, int64_t count) const {
  PINION_TRY(const TensorRef tensor, checkpoint_->tensor(name));
  if (tensor.shape.elements() != count) {
    return wrong(name, fmt::format("has the shape {}, which is not {} elements", tensor.shape.str(), count));
  }
  std::vector<float> out(count);
  switch (tensor.dtype) {
    case DType::f32:
      std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
      break;
    case DType::f16:
    case DType::bf16:
      for (int64_t i = 0; i < count; ++i) {
        uint16_t v;
        std::memcpy(&v, tensor.data.data() + 2 * i, 2);
        out[i] = tensor.dtype == DType::f16 ? f16_to_f32(v) : bf16_to_f32(v);
      }
      break;
    case DType::f8_e4m3:
      for (int64_t i = 0; i < count; ++i) out[i] = e4m3_to_f32(static_cast<uint8_t>(tensor.data[i]));
      break;
    case DType::f8_e8m0:
    case DType::u8:  // safetensors files from before it knew E8M0
      for (int64_t i = 0; i < count; ++i) out[i] = e8m0_to_f32(static_cast<uint8_t>(tensor.data[i]));
      break;
    default:
      return wrong(name, fmt::format("holds scales of the type {}", safetensors_name(tensor.dtype)));
  }
  return out;
}

Result<float> QuantTensors::scalar(const std::string& name) const {
  PINION_TRY(const std::vector<float> one, floats(name, 1));
  return one[0];
}

Result<std::vector<int32_t>> QuantTensors::ints(const std::string& name, const Shape& shape) const {
  PINION_TRY(const TensorRef tensor, checkpoint_->tensor(name));
  if (!(tensor.shape == shape) || (tensor.dtype != DType::i32 && tensor.dtype != DType::i64)) {
    return wrong(name, fmt::format("is {} {}, not integers of the shape {}", safetensors_name(tensor.dtype),
                                   tensor.shape.str(), shape.str()));
  }
  std::vector<int32_t> out(shape.elements());
  if (tensor.dtype == DType::i32) {
    std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
    return out;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    int64_t v;
    std::memcpy(&v, tensor.data.data() + 8 * i, 8);
    if (v != static_cast<int32_t>(v)) return wrong(name, fmt::format("holds {}, which is out of range", v));
    out[i] = static_cast<int32_t>(v);
  }
  return out;
}

Result<std::vector<uint8_t>> QuantTensors::bytes(const std::string& name, DType type, const Shape& shape) const {
  PINION_TRY(const TensorRef tensor, get(name, type, shape.rank()));
  if (!(tensor.shape == shape)) {
    return wrong(name, fmt::format("has the shape {}, not {}", tensor.shape.str(), shape.str()));
  }
  std::vector<uint8_t> out(tensor.data.size());
  std::memcpy(out.data(), tensor.data.data(), out.size());
  return out;
}

}  // namespace pinion
