#include "kernels.h"

namespace inplace_ext {
template void add_loops<half_t>(LoopTable&);
template void add_loops<bfloat16_t>(LoopTable&);
} // namespace inplace_ext
