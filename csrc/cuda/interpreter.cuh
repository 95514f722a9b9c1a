// The kernels that run programs: every thread holds 16 bytes of a tensor in registers and walks the
// instructions, of which all threads run the same one at a time. One kernel for each compute type serves all
// operations and all chains.
//
// Temporaries lie in shared memory, a place of its own for each thread and no barrier: registers cannot be
// chosen by a number known at run time, and local memory would go through the caches of global memory.
#pragma once
#include "arguments.h"
#include "draws.cuh"
#include "inplace_ext/functors.h"
#include "inplace_ext/philox.h"
#include "pack.cuh"
// math.h finds the functions of scalar.cuh by argument-dependent look-up.
#include "inplace_ext/math.h"
#include "inplace_ext/math_erf.h"
#include "inplace_ext/math_exp.h"
#include "inplace_ext/math_log.h"
#include "inplace_ext/math_root.h"
#include "inplace_ext/math_trig.h"

namespace inplace_ext::cuda {

// ---- operations -------------------------------------------------------------------------------------------

// Operations that hardly need registers of their own are written out for all elements; of the others there is
// one copy, past which the packs turn.
template <class Functor, Form F, int Cost, class C, int E>
IE_INLINE void apply_to_all(Pack<C, E>& a, Pack<C, E>& b, Pack<C, E>& c, C d) {
  using V = Vec<C>;
  if constexpr (Cost <= 1) {
    IE_UNROLL(16)
    for (int i = 0; i < E; ++i) a.set(i, apply<Functor, F>(V(a.get(i)), V(b.get(i)), V(c.get(i)), V(d)).v);
  } else {
    IE_NO_UNROLL
    for (int i = 0; i < E; ++i) {
      a.push(apply<Functor, F>(V(a.get(0)), V(b.get(0)), V(c.get(0)), V(d)).v);
      if constexpr (operands_of(F) >= 1) b.turn();
      if constexpr (operands_of(F) >= 2) c.turn();
    }
  }
}

// A scalar of the program.
template <class C>
IE_INLINE C scalar_of(const Code& code, int index) {
  if constexpr (sizeof(C) == 8) {
    return bits_as<C>(code.scalar[index]);
  } else {
    using U =
        std::conditional_t<sizeof(C) == 4, uint32_t, std::conditional_t<sizeof(C) == 2, uint16_t, uint8_t>>;
    return bits_as<C>(static_cast<U>(code.scalar[index]));
  }
}

// An instruction that is an operation: its operands beside b, and the operation.
template <class Functor, Form F, int Cost, class C, int E, class Temporaries>
IE_INLINE void operate(const Code& code, const Instruction& step, const Temporaries& temporaries,
                       Pack<C, E>& a, Pack<C, E>& b) {
  Pack<C, E> c{};
  C d(0);
  if constexpr (operands_of(F) == 2) {
    if (step.c_kind == Operand::temporary) {
      temporaries.load(step.c, c);
    } else {
      c.fill(scalar_of<C>(code, step.c));
    }
  }
  if constexpr (takes_third(F)) d = scalar_of<C>(code, step.to);
  apply_to_all<Functor, F, Cost>(a, b, c, d);
}

template <class C, int E, bool All, class Memory, class Temporaries>
IE_INLINE void interpret(const Code& code, const Memory& memory, const Temporaries& temporaries) {
  constexpr DType kCompute = storage_traits<C>::dtype;
  Pack<C, E> a;
  a.fill(C(0));
  IE_NO_UNROLL
  for (int at = 0; at < code.instructions; ++at) {
    const Instruction& step = code.instruction[at];
    Pack<C, E> b;
    if (step.b_kind == Operand::tensor) {
      memory.load(step.b, b);
    } else if (step.b_kind == Operand::temporary) {
      temporaries.load(step.b, b);
    } else {
      b.fill(scalar_of<C>(code, step.b));
    }
    switch (step.code) {
#define INPLACE_EXT_CASE(CODE, FUNCTOR, FORM, TYPES, COST)                    \
  case CODE:                                                                  \
    if constexpr (has_form(TYPES, kCompute) && (All || is_cheap(FORM, COST))) \
      operate<FUNCTOR, FORM, COST>(code, step, temporaries, a, b);            \
    break;
#define INPLACE_EXT_TABLE_CASE(NAME, FUNCTOR, FORM, TYPES, COST) \
  INPLACE_EXT_CASE(static_cast<int>(Op::NAME), FUNCTOR, Form::FORM, Types::TYPES, COST)
#define INPLACE_EXT_OWN_CASE(NAME, ...) INPLACE_EXT_CASE(kRunOwn, __VA_ARGS__)
      INPLACE_EXT_OPS(INPLACE_EXT_TABLE_CASE)
      INPLACE_EXT_OWN(INPLACE_EXT_OWN_CASE)
#undef INPLACE_EXT_OWN_CASE
#undef INPLACE_EXT_TABLE_CASE
#undef INPLACE_EXT_CASE
      case kLoad:
        a = b;
        break;
      case kKeep:
        temporaries.store(step.to, b);
        break;
      case kStore:
        if (step.to < kMaxTensors) {
          memory.store(step.to, a);
        } else {
          temporaries.store(step.to - kMaxTensors, a);
        }
        break;
      case kRound:
        if constexpr (std::is_floating_point_v<C>) {
          IE_UNROLL(16)
          for (int i = 0; i < E; ++i) a.set(i, rounded(a.get(i), static_cast<DType>(step.to)));
        }
        break;
      default:
        break;
    }
  }
}

// The temporaries of a thread, in the dynamic shared memory of its block.
template <class C, int E, class Shared>
struct Temporaries {
  static constexpr int kParts = Pack<C, E>::kBytes / kAccess<C, E>;
  using Part = Chunk<kAccess<C, E>>;
  Shared shared;
  IE_INLINE int place(int index, int part) const {
    return (index * kParts + part) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  IE_INLINE void load(int index, Pack<C, E>& value) const {
    IE_UNROLL(2)
    for (int i = 0; i < kParts; ++i) {
      const Part part = shared[place(index, i)];
      IE_UNROLL(4)
      for (int j = 0; j < Part::kWords; ++j) value.word[i * Part::kWords + j] = part.word[j];
    }
  }
  IE_INLINE void store(int index, const Pack<C, E>& value) const {
    IE_UNROLL(2)
    for (int i = 0; i < kParts; ++i) {
      Part part;
      IE_UNROLL(4)
      for (int j = 0; j < Part::kWords; ++j)
        part.word[j] = static_cast<typename Part::Word>(value.word[i * Part::kWords + j]);
      shared[place(index, i)] = part;
    }
  }
};

// ---- memory -----------------------------------------------------------------------------------------------

template <class Index>
IE_DEVICE Index quotient_of(Index n, const Divisor<Index>& by) {
  if constexpr (sizeof(Index) == 4) {
    return (__umulhi(n, by.factor) + n) >> by.shift;
  } else {
    return n / by.divisor;
  }
}

// Tensors over an index space. What is drawn begins at the words of `seeds`, in shared memory.
template <class IndexType, class Seeds>
struct SpaceLayout {
  using Index = IndexType;
  const SpaceArguments<Index>& arguments;
  Seeds seeds;

  IE_INLINE Index n() const {
    return arguments.n;
  }
  IE_INLINE bool across() const {
    return arguments.across;
  }
  IE_INLINE DType dtype(int t) const {
    return arguments.dtype[t];
  }
  IE_INLINE bool vectors(int t) const {
    return arguments.mode[t] & kVector;
  }
  IE_INLINE Index stride(int t) const {
    return arguments.view[t].stride[0];
  }
  IE_INLINE bool is_drawn(int t) const {
    return arguments.mode[t] & kDrawn;
  }
  IE_INLINE Draws draws(int t) const {
    const int i = arguments.mode[t] >> kDrawBits;
    return {seeds[2 * i], seeds[2 * i + 1], nullptr};
  }
  // The element at index i, and how many follow in the same row, itself included.
  IE_INLINE char* find(int t, Index i, Index& row) const {
    const View<Index>& view = arguments.view[t];
    if (arguments.mode[t] & kLinear) {
      row = ~Index(0);
      return view.data + i * view.stride[0];
    }
    Index offset = 0;
    IE_NO_UNROLL
    for (int d = 0; d < arguments.dims; ++d) {
      const Index rest = quotient_of(i, arguments.size[d]), at = i - rest * arguments.size[d].divisor;
      if (d == 0) row = arguments.size[0].divisor - at;
      offset += at * view.stride[d];
      i = rest;
    }
    return view.data + offset;
  }
};

// An item of a list.
struct ListLayout {
  using Index = uint32_t;
  const ListArguments& arguments;
  const uint64_t* words;

  IE_INLINE Index n() const {
    return static_cast<Index>(words[arguments.tensors] >> 1);
  }
  IE_INLINE bool across() const {
    return words[arguments.tensors] & 1;
  }
  IE_INLINE DType dtype(int t) const {
    return arguments.dtype[t];
  }
  IE_INLINE bool vectors(int) const {
    return true;
  }
  IE_INLINE Index stride(int t) const {
    return static_cast<Index>(item_size(dtype(t)));
  }
  IE_INLINE bool is_drawn(int) const {
    return false;
  }
  IE_INLINE Draws draws(int) const {
    return {};
  }
  IE_INLINE char* find(int t, Index i, Index& row) const {
    row = ~Index(0);
    return reinterpret_cast<char*>(words[t]) + static_cast<uint64_t>(i) * stride(t);
  }
};

// A block of philox.h, a round at a time: the keys of all of them would take the registers of a thread.
struct RandomBlock {
  uint32_t word[philox::kWords];
  IE_INLINE RandomBlock(const Draws& draws, uint64_t index) {
    philox::Block<uint64_t> block = philox::counter(draws.offset + index);
    uint32_t key[2] = {static_cast<uint32_t>(draws.seed), static_cast<uint32_t>(draws.seed >> 32)};
    IE_NO_UNROLL
    for (int r = 0; r < philox::kRounds; ++r) {
      const uint64_t wide[2] = {key[0], key[1]};
      block = philox::mix<uint64_t>(block, wide, philox::multiplier(0), philox::multiplier(1));
      for (uint64_t& w : block.word) w &= 0xffffffff;
      for (int i = 0; i < 2; ++i) key[i] += philox::step(i);
    }
    for (int i = 0; i < philox::kWords; ++i) word[i] = static_cast<uint32_t>(block.word[i]);
  }
  IE_INLINE uint32_t number(unsigned i) const {
    const uint32_t low = i & 1 ? word[1] : word[0], high = i & 1 ? word[3] : word[2];
    return (i & 2 ? high : low) & philox::kMaxDraw;
  }
};

// The E elements of a thread: neighbours from `first` on, or kBlock apart.
template <class C, int E, bool All, class Layout>
struct Elements {
  using Index = typename Layout::Index;
  const Layout& layout;
  Index first;

  IE_INLINE Index step() const {
    return layout.across() ? static_cast<Index>(kBlock) : Index(1);
  }
  IE_INLINE bool whole() const {
    return !layout.across() && first + E <= layout.n();
  }
  // Calls f(address) for one after the other, and g() for those past the end.
  template <class F, class G>
  IE_INLINE void for_each(int t, char* p, Index row, const F& f, const G& g) const {
    const Index stride = layout.stride(t);
    Index i = first;
    IE_NO_UNROLL
    for (int k = 0; k < E; ++k, i += step()) {
      if (i >= layout.n()) {
        g();
        continue;
      }
      if (row == 0) p = layout.find(t, i, row);
      f(p);
      p += step() * stride;
      row = row > step() ? row - step() : 0; // what is left of the row from the next element on
    }
  }

  IE_INLINE void load(int t, Pack<C, E>& value) const {
    if constexpr (All && std::is_floating_point_v<C>) {
      if (layout.is_drawn(t)) return draw(t, layout.draws(t), value);
    }
    Index row = 0;
    const DType dtype = layout.dtype(t);
    char* const p = layout.find(t, first, row);
    if (whole()) {
      if (layout.vectors(t)) return read_converted(value, dtype, p);
      if (layout.stride(t) == 0 && row >= E) return value.fill(read_element<C>(dtype, p));
    }
    for_each(
        t, p, row, [&](const char* at) { value.push(read_element<C>(dtype, at)); },
        [&] { value.push(C(0)); });
  }
  // The address of an element is its place in the mask.
  static IE_INLINE Index place(const char* p) {
    return static_cast<Index>(reinterpret_cast<uintptr_t>(p));
  }
  IE_INLINE void draw(int t, const Draws& draws, Pack<C, E>& value) const {
    constexpr unsigned kTogether = E < philox::kWords ? E : philox::kWords;
    Index row = 0;
    char* const p = layout.find(t, first, row);
    if (whole() && row >= E && layout.stride(t) == 1 && place(p) % kTogether == 0) {
      IE_NO_UNROLL
      for (unsigned k = 0; k < E; k += kTogether) {
        const RandomBlock block(draws, (place(p) + k) / philox::kWords);
        IE_UNROLL(4)
        for (unsigned i = 0; i < kTogether; ++i)
          value.push(static_cast<C>(block.number((place(p) + i) % philox::kWords)));
      }
      return;
    }
    // A block for each, since there are no registers to keep one in.
    for_each(
        t, p, row,
        [&](const char* at) {
          const RandomBlock block(draws, place(at) / philox::kWords);
          value.push(static_cast<C>(block.number(place(at) % philox::kWords)));
        },
        [&] { value.push(C(0)); });
  }
  IE_INLINE void store(int t, Pack<C, E> value) const {
    Index row = 0;
    const DType dtype = layout.dtype(t);
    char* const p = layout.find(t, first, row);
    if (whole() && layout.vectors(t)) return write_converted(value, dtype, p);
    for_each(
        t, p, row,
        [&](char* at) {
          write_element(value.get(0), dtype, at);
          value.turn();
        },
        [] {});
  }
};

// ---- kernels ----------------------------------------------------------------------------------------------

// All the blocks that a processor takes, by its architecture.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
constexpr int kAllBlocks = 2048 / kBlock;
#elif __CUDA_ARCH__ == 750
constexpr int kAllBlocks = 1024 / kBlock;
#else
constexpr int kAllBlocks = 1536 / kBlock;
#endif
// The blocks that registers are to be left for: all of them where 32 do for a thread. Division of doubles
// takes 40, two packs of 16 bytes or 64-bit indices 64, and the long operations up to 80; those are bound by
// arithmetic.
template <class C, int E, bool All, class Index>
constexpr int kWantedBlocks = All && std::is_floating_point_v<C> && (E == 8 || sizeof(C) == 8) ? 3
                              : All || E * sizeof(C) > 16 || sizeof(Index) > 4                 ? 4
                              : sizeof(C) == 8                                                 ? 6
                                                                                               : 8;
template <class C, int E, bool All, class Index>
constexpr int kBlocks =
    kWantedBlocks<C, E, All, Index> < kAllBlocks ? kWantedBlocks<C, E, All, Index> : kAllBlocks;

template <class C, int E, bool All, class Index>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kBlock, (kBlocks<C, E, All, Index>))
    run_space(IE_GRID_CONSTANT const SpaceArguments<Index> arguments) {
  IE_DYNAMIC_SHARED(Chunk<(kAccess<C, E>)>, shared);
  const Temporaries<C, E, std::remove_cv_t<decltype(shared)>> temporaries{shared};
  IE_SHARED(uint64_t, seeds, 2 * kMaxDraws);
  if constexpr (All && std::is_floating_point_v<C>) {
    if (arguments.draws > 0) { // which all threads agree on
      if (const unsigned i = threadIdx.x; i < arguments.draws) {
        const auto& draw = arguments.draw[i];
        const bool in_memory = arguments.in_memory >> i & 1;
        const Draws from = resolved(
            {draw.seed, draw.offset, in_memory ? reinterpret_cast<const int64_t*>(draw.seed) : nullptr});
        seeds[2 * i] = from.seed;
        seeds[2 * i + 1] = from.offset;
      }
      __syncthreads();
    }
  }
  const SpaceLayout<Index, decltype(seeds + 0)> layout{arguments, seeds + 0};
  constexpr Index kTile = kBlock * E;
  for (Index begin = blockIdx.x * kTile; begin < arguments.n; begin += gridDim.x * kTile) {
    const Index first = begin + threadIdx.x * (arguments.across ? 1 : E);
    const Elements<C, E, All, std::remove_cv_t<decltype(layout)>> elements{layout, first};
    interpret<C, E, All>(arguments.code, elements, temporaries);
  }
}

template <class C, int E, bool All>
IE_GLOBAL void IE_LAUNCH_BOUNDS(kBlock, (kBlocks<C, E, All, uint32_t>))
    run_list(IE_GRID_CONSTANT const ListArguments arguments) {
  IE_DYNAMIC_SHARED(Chunk<(kAccess<C, E>)>, shared);
  const Temporaries<C, E, std::remove_cv_t<decltype(shared)>> temporaries{shared};
  // The item of this block.
  int item = 0, end = arguments.items;
  while (item + 1 < end) {
    const int middle = (item + end) / 2;
    (arguments.first_block[middle] <= blockIdx.x ? item : end) = middle;
  }
  const ListLayout layout{arguments, arguments.word + item * (arguments.tensors + 1)};
  constexpr uint32_t kTile = kBlock * E;
  const uint32_t begin = (blockIdx.x - arguments.first_block[item]) * (kTilesPerBlock * kTile);
  const uint32_t stop =
      layout.n() - begin < kTilesPerBlock * kTile ? layout.n() : begin + kTilesPerBlock * kTile;
  for (uint32_t at = begin; at < stop; at += kTile) {
    const uint32_t first = at + threadIdx.x * (layout.across() ? 1 : E);
    interpret<C, E, All>(arguments.code, Elements<C, E, All, ListLayout>{layout, first}, temporaries);
  }
}

} // namespace inplace_ext::cuda
