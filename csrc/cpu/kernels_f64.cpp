#include "kernels.h"

namespace inplace_ext {
template void add_loops<double>(LoopTable&);
template void add_stages<double>(StageTable&);
} // namespace inplace_ext
