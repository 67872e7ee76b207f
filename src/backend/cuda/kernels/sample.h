// A token per row of logits, chosen on the GPU (backend/sampling.h).
#pragma once

#include "backend/sampling.h"

namespace pinion::cuda {

struct SampleParams {
  const float* logits = nullptr;  // [rows, vocab]
  const RowSampling* sampling = nullptr;
  int32_t* tokens = nullptr;
  int32_t vocab = 0;
};

void sample_rows(const SampleParams& p, int64_t rows, Stream& stream);

}  // namespace pinion::cuda
