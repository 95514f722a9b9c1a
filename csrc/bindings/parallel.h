// How the work of a call is shared among threads.
#pragma once
#include <Python.h>

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace inplace_ext {

// Elements of a cheap operation that are worth a second thread, as in torch.
constexpr int64_t kGrain = 32768;
// Work below this many element-costs is over before another thread could take the GIL.
constexpr int64_t kKeepGil = 8192;

// Runs f over [0, n), on several threads where the work is worth it, without the GIL where it is long. The
// dispatcher's operators are called without it.
template <class F>
void parallel(int64_t n, int64_t cost, const F& f) {
  if (n * cost <= kKeepGil) {
    if (n > 0) f(0, n); // an empty tensor may have no memory to point to
    return;
  }
  PyThreadState* state = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
  const auto restore = [&] {
    if (state != nullptr) PyEval_RestoreThread(state);
  };
  try {
    at::parallel_for(0, n, std::max<int64_t>(kGrain / cost, 1), f);
  } catch (...) {
    restore();
    throw;
  }
  restore();
}

} // namespace inplace_ext
