#include "kernels.h"

namespace inplace_ext {
template void add_loops<int32_t>(LoopTable&);
template void add_stages<int32_t>(StageTable&);
template void add_loops<int64_t>(LoopTable&);
template void add_stages<int64_t>(StageTable&);
} // namespace inplace_ext
