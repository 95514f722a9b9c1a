#include "kernels.h"

namespace inplace_ext {
template void add_loops<uint8_t>(LoopTable&);
template void add_stages<uint8_t>(StageTable&);
template void add_loops<int8_t>(LoopTable&);
template void add_stages<int8_t>(StageTable&);
template void add_loops<int16_t>(LoopTable&);
template void add_stages<int16_t>(StageTable&);
template void add_loops<bool_t>(LoopTable&);
} // namespace inplace_ext
