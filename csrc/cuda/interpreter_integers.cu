#include "interpret.h"

namespace inplace_ext::cuda {
INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_INSTANTIATE)
} // namespace inplace_ext::cuda
