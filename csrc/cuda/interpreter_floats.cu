#include "interpret.h"

namespace inplace_ext::cuda {
INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_INSTANTIATE)
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
} // namespace inplace_ext::cuda
