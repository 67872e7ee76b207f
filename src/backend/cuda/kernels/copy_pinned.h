// A copy from pinned host memory by a kernel, which a graph may hold and replace.
#pragma once

#include <cuda_runtime.h>

#include "backend/backend.h"

namespace pinion::cuda {

void copy_pinned(const Upload& upload, Stream& stream);

// In an instantiated graph, `node` of whose graph was recorded by copy_pinned.
void replace_upload(cudaGraphExec_t exec, cudaGraphNode_t node, const Upload& upload);

}  // namespace pinion::cuda
