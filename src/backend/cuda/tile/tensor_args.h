// From LaunchArgs to kernel parameters.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/tile/values.h"

namespace pinion::cuda {

inline Values values(const TensorView& t) {
  return {t.data, t.dtype};
}
inline ConstValues const_values(const TensorView& t) {
  return {t.data, t.dtype};
}
inline ConstValues const_values(const WeightView& w) {
  return {w.data, w.dtype};
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace pinion::cuda
