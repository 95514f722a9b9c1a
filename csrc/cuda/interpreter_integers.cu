#include "interpret.h"

namespace inplace_ext::cuda {
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_INSTANTIATE)
} // namespace inplace_ext::cuda
