// The kernels for AVX2: the generic sources in their own namespace, compiled with this ISA's flags.
#include <immintrin.h>

#include "backend/cpu/isa.h"

#define PINION_ISA_NAME "avx2"

namespace pinion::cpu {
namespace avx2 {
// clang-format off
#include "backend/cpu/generic/loops.h"
#include "backend/cpu/generic/vec_avx2.h"
#include "backend/cpu/generic/tile.h"
#include "backend/cpu/generic/math.h"
#include "backend/cpu/generic/linear.h"
#include "backend/cpu/generic/decode_avx2.h"
#include "backend/cpu/generic/packed.h"
#include "backend/cpu/generic/kv8.h"
#include "backend/cpu/generic/attention.h"
#include "backend/cpu/generic/rows.h"
#include "backend/cpu/generic/moe.h"
#include "backend/cpu/generic/mla.h"
#include "backend/cpu/generic/measure.h"
#include "backend/cpu/generic/table.h"
// clang-format on
}  // namespace avx2

const IsaKernels kAvx2 = avx2::kTable;

}  // namespace pinion::cpu
