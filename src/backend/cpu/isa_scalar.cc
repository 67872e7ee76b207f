// The kernels for the baseline: the generic sources in their own namespace, compiled with this machine's baseline
// flags.
#include <bit>
#include <cmath>

#include "backend/cpu/isa.h"
#include "tensor/convert.h"

#define PINION_ISA_NAME "scalar"

namespace pinion::cpu {
namespace scalar {
// clang-format off
#include "backend/cpu/generic/loops.h"
#include "backend/cpu/generic/vec_scalar.h"
#include "backend/cpu/generic/tile.h"
#include "backend/cpu/generic/math.h"
#include "backend/cpu/generic/linear.h"
#include "backend/cpu/generic/decode_scalar.h"
#include "backend/cpu/generic/packed.h"
#include "backend/cpu/generic/kv8.h"
#include "backend/cpu/generic/attention.h"
#include "backend/cpu/generic/rows.h"
#include "backend/cpu/generic/moe.h"
#include "backend/cpu/generic/mla.h"
#include "backend/cpu/generic/measure.h"
#include "backend/cpu/generic/table.h"
// clang-format on
}  // namespace scalar

const IsaKernels kScalar = scalar::kTable;

}  // namespace pinion::cpu
