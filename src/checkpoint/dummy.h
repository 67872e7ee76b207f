// Weights for `--load_format dummy`: pseudo-random numbers that depend only on the tensor's name and the element's
// index, so any slice can be made alone, in parallel and on any rank, and equals the same slice of the whole tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/dtype.h"

namespace pinion {

// Fills `out` with elements [first_element, first_element + out.size() / element size) of the tensor `name`; `type` is
// f32, f16 or bf16. `row_width` is the length of a row (the input features of a matrix). The scale follows the name, so
// that activations stay finite: norm weights 1 +- 0.1, biases +- 0.02, embeddings uniform with standard deviation 0.02,
// all else uniform with standard deviation 1/sqrt(row_width). The same name and index give the same number in every
// type, up to rounding.
void fill_dummy(std::string_view name, DType type, std::span<std::byte> out, int64_t row_width,
                uint64_t first_element = 0);

}  // namespace pinion
