// Programs on the emulated device.
#include "programs.h"

#include <deque>
#include <vector>

#include "interpret.h"

// Compiled beside this.
namespace inplace_ext::cuda {
INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_ELSEWHERE)
} // namespace inplace_ext::cuda

namespace inplace_ext {

ProgramsAs programs_as = ProgramsAs::chosen;
const OwnOperation* own_operations[kOpCodes] = {};
bool seed_in_memory = false;

namespace {

// Those of the operation of one's own that is in the program; null where there is none.
const OwnOperation* own_operation(const Program& program) {
  const int own = cuda::own_code(program);
  if (own == cuda::kSeveralOwn)
    throw std::runtime_error("emulated device: no kernel has two such operations");
  return own < 0 ? nullptr : own_operations[own];
}

// Items from one element to many tiles, the last one what is left; false where the space is no list.
bool run_as_list(const Program& program, const Space& space, bool long_items) {
  const int64_t n = space.numel();
  if (space.dims > 1 || !cuda::fits_list(program, n)) return false;
  DType dtypes[kMaxTensors];
  for (int t = 0; t < space.tensors; ++t) {
    dtypes[t] = space.tensor[t].dtype;
    if (space.dims == 1 && space.tensor[t].stride[0] != item_size(dtypes[t])) return false;
  }
  std::vector<uint64_t> words;
  int64_t items = 0;
  constexpr int64_t kLong = 10048; // no multiple of a tile
  for (int64_t at = 0, length = long_items ? kLong : 1; at < n; ++items) {
    const int64_t count = std::min(length, n - at);
    for (int t = 0; t < space.tensors; ++t)
      words.push_back(reinterpret_cast<uint64_t>(space.tensor[t].data + at * item_size(dtypes[t])));
    words.push_back(static_cast<uint64_t>(count));
    at += count;
    if (!long_items) length = length * 5 + 4;
  }
  const cuda::List list{&program, space.tensors, dtypes, items, words.data()};
  const OwnOperation* const own = own_operation(program);
  check(own == nullptr ? cuda::run_listed(list, nullptr) : own->run_list(list));
  return true;
}

} // namespace

Path run_program(const Program& program, const Space& space, int64_t begin, int64_t) {
  if (begin > 0) return Path::flat; // the thread with the first part does it all
  const Memory memory;
  for (int t = 0; t < space.tensors; ++t) {
    const TensorArg& a = space.tensor[t];
    if (a.drawn != nullptr) continue;
    allow_view(a.data, space.size, a.stride, space.dims, item_size(a.dtype), a.mutated);
  }
  Path path = Path::listed;
  const bool long_items = programs_as == ProgramsAs::long_lists, wide = programs_as == ProgramsAs::wide;
  if ((programs_as == ProgramsAs::lists || long_items) && run_as_list(program, space, long_items))
    return path;
  std::deque<State> states;
  Program with_state = program;
  for (int i = 0; i < program.draws; ++i)
    with_state.draw[i].from = states.emplace_back(program.draw[i].from).draws;
  const OwnOperation* const own = own_operation(program);
  check(own == nullptr ? cuda::run(with_state, space, device, nullptr, path, wide)
                       : own->run(with_state, space, device, path, wide));
  return path;
}

void convert_all(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t n, bool) {
  const auto with = [](DType dtype, const auto& f) {
    switch (dtype) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  case DType::NAME:                              \
    return f(STORAGE{});
      INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
    }
  };
  with(dst_dtype, [&](auto to) {
    with(src_dtype, [&](auto from) {
      for (int64_t i = 0; i < n; ++i)
        static_cast<decltype(to)*>(dst)[i] = cast<decltype(to)>(static_cast<const decltype(from)*>(src)[i]);
    });
  });
}
bool contains_zero(const void* x, DType dtype, int64_t n) {
  std::vector<int64_t> values(n);
  convert_all(values.data(), DType::i64, x, dtype, n, false);
  return !is_floating(dtype) && std::find(values.begin(), values.end(), 0) != values.end();
}

} // namespace inplace_ext
