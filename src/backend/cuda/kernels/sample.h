// A token per row of logits, chosen on the GPU (backend/sampling.h).
#pragma once

#include "backend/sampling.h"

namespace pinion::cuda {

struct SampleParams {
  float* logits = nullptr;  // [rows, vocab]
  LargestLogits largest;
  const RowSampling* sampling = nullptr;
  SamplingMemory memory;
  SampledTokens to;
  int32_t vocab = 0;
  int32_t blocks = 1;  // of a cluster, per row; sample_rows sets it
};

void sample_rows(SampleParams p, int64_t rows, Stream& stream);

}  // namespace pinion::cuda
