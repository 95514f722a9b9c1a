// Tensors whose data is rearranged where it lies.
#pragma once
#include <ATen/core/Tensor.h>

namespace inplace_ext {

// Rearranges the data of a plain tensor and gives it the strides of a contiguous one, or of one in
// channels_last, which has four or five dims. False, and nothing done, where the kernels do not take it;
// throws where elements of x share memory. Who else reads the storage is the caller's affair.
bool rearrange(const at::Tensor& x, bool channels_last);

// The memory that it takes to transpose matrices of blocks of so many bytes.
int64_t scratch_bytes(int64_t batch, int64_t rows, int64_t columns, int64_t bytes);

} // namespace inplace_ext
