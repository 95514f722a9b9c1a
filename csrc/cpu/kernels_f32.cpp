#include "kernels.h"

namespace inplace_ext {
template void add_loops<float>(LoopTable&);
template void add_stages<float>(StageTable&);
} // namespace inplace_ext
