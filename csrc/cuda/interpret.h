// Programs on the device: choosing the kernel, and what travels to it. Runs on the host; no torch here.
#pragma once
#include <algorithm>
#include <cstring>

#include "interpreter.cuh"

namespace inplace_ext::cuda {

// X(compute type, elements of a thread, whether it has all operations)
//
// As many elements as fill 16 bytes of the widest tensor. 16-bit floats have 8 in float32, the small integers
// 4 where wider tensors take part.
#define INPLACE_EXT_FLOATING_INTERPRETERS(X) \
  X(float, 4, false)                         \
  X(float, 4, true)                          \
  X(float, 8, false)                         \
  X(float, 8, true)                          \
  X(double, 2, false)                        \
  X(double, 2, true)
#define INPLACE_EXT_INTEGER_INTERPRETERS(X) \
  X(uint8_t, 16, true)                      \
  X(uint8_t, 4, true)                       \
  X(int8_t, 16, true)                       \
  X(int8_t, 4, true)                        \
  X(int16_t, 8, true)                       \
  X(int16_t, 4, true)                       \
  X(int32_t, 4, true)                       \
  X(int64_t, 2, true)

// Whether there is an interpreter: of a library that has an operation of its own those that can run it.
template <class C, bool All>
constexpr bool kIsBuilt =
    !kHasOwn || (has_form(kOwn[0].types, storage_traits<C>::dtype) && (is_cheap(kOwn[0]) || All));

// The launches of one interpreter, compiled where it is instantiated.
template <class C, int E, bool All>
struct Interpreter {
  static size_t shared_bytes(const Code& code) {
    return static_cast<size_t>(code.slots) * kBlock * E * sizeof(C);
  }
  template <class Index>
  static cudaError_t run(const SpaceArguments<Index>& arguments, dim3 grid, cudaStream_t stream);
  template <int = 0>
  static cudaError_t run(const ListArguments& arguments, dim3 grid, cudaStream_t stream);
};
template <class C, int E, bool All>
template <class Index>
cudaError_t Interpreter<C, E, All>::run(const SpaceArguments<Index>& arguments, dim3 grid,
                                        cudaStream_t stream) {
  return launch(run_space<C, E, All, Index>, grid, dim3(kBlock), shared_bytes(arguments.code), stream,
                arguments);
}
template <class C, int E, bool All>
template <int>
cudaError_t Interpreter<C, E, All>::run(const ListArguments& arguments, dim3 grid, cudaStream_t stream) {
  return launch(run_list<C, E, All>, grid, dim3(kBlock), shared_bytes(arguments.code), stream, arguments);
}

// Compiled one by one, in interpreter_*.cu.
#define INPLACE_EXT_INSTANTIATE(C, E, ALL)                                                               \
  template cudaError_t Interpreter<C, E, ALL>::run(const SpaceArguments<uint32_t>&, dim3, cudaStream_t); \
  template cudaError_t Interpreter<C, E, ALL>::run(const SpaceArguments<uint64_t>&, dim3, cudaStream_t); \
  template cudaError_t Interpreter<C, E, ALL>::run(const ListArguments&, dim3, cudaStream_t);
#define INPLACE_EXT_ELSEWHERE(C, E, ALL)                                                         \
  extern template cudaError_t Interpreter<C, E, ALL>::run(const SpaceArguments<uint32_t>&, dim3, \
                                                          cudaStream_t);                         \
  extern template cudaError_t Interpreter<C, E, ALL>::run(const SpaceArguments<uint64_t>&, dim3, \
                                                          cudaStream_t);                         \
  extern template cudaError_t Interpreter<C, E, ALL>::run(const ListArguments&, dim3, cudaStream_t);

// ---- the choice -------------------------------------------------------------------------------------------

// What a program becomes: its instructions, and which interpreter runs them.
struct Compiled {
  bool served; // whether there are interpreters of its operations
  Code code;
  DType compute;
  int elements; // of a thread
  bool all;
  // Of each tensor; a move between tensors of one dtype reads and writes integers of its size.
  DType dtype[kMaxTensors];
};

inline DType integer_of_size(int size) {
  return size == 1 ? DType::u8 : size == 2 ? DType::i16 : size == 4 ? DType::i32 : DType::i64;
}

// Of an operation of the table, or the library's own.
inline const OpInfo& info_of(int code) {
  return code < kOps ? kOpInfo[code] : kOwn[0];
}
inline bool is_operation(int code) {
  return code < kOpCodes;
}

class Compiler {
 public:
  Compiler(const Program& program, const DType* dtypes, int tensors, Compiled& out)
      : program_(program), tensors_(tensors), out_(out) {
    std::copy(dtypes, dtypes + tensors, out.dtype);
    const int own = own_code(program);
    out.served = own == kNoOwn || (own >= 0 && kHasOwn && has_form(kOwn[0].types, program.compute));
    out.compute = program.compute;
    out.code.instructions = out.code.slots = 0;
    out.all = !is_floating(program.compute);
    is_move() ? choose_move() : find_slots();
    choose_elements();
    write_scalars();
    const bool rounds = rounds_integers();
    if (!rounds) choose_kept();
    keep_ = out.code.slots;
    for (int i = 0; i < program.stages; ++i) add(program.stage[i], rounds);
  }

 private:
  bool is_move() const {
    return program_.stages == 2 && program_.stage[0].code == kLoad && program_.stage[1].code == kStore &&
           program_.stage[1].b_kind == Operand::tensor;
  }
  // A move converts at once from one dtype to the other, not by way of a third: it is computed in that of the
  // wider tensor, whose conversions hold all that the other one can.
  void choose_move() {
    const Stage& from = program_.stage[0];
    DType& to = out_.dtype[program_.stage[1].b];
    if (from.b_kind != Operand::tensor) return;
    DType& source = out_.dtype[from.b];
    if (source == to) {
      source = to = out_.compute = integer_of_size(item_size(to));
    } else {
      out_.compute = compute_dtype(item_size(source) >= item_size(to) ? source : to);
    }
    out_.all = !is_floating(out_.compute);
  }
  void find_slots() {
    const auto use = [&](Operand kind, int index) {
      if (kind == Operand::temporary) out_.code.slots = std::max(out_.code.slots, index + 1);
    };
    for (int i = 0; i < program_.stages; ++i) {
      const Stage& s = program_.stage[i];
      use(s.b_kind, s.b), use(s.c_kind, s.c);
      if (is_operation(s.code)) out_.all |= !is_cheap(info_of(s.code));
    }
  }
  void choose_elements() {
    int widest = 1;
    for (int t = 0; t < tensors_; ++t) {
      if (program_.drawn(t) == nullptr) widest = std::max(widest, item_size(out_.dtype[t]));
    }
    const int size = item_size(out_.compute);
    out_.elements = size >= 4 ? 16 / size : widest <= size ? 16 / size : 4;
    // Twice as many registers, and 8 temporaries take more shared memory than every device has.
    if (out_.compute == DType::f32 && widest <= 2 && out_.code.slots < 6) out_.elements = 8;
  }
  // Tensors that would be read more than once stay in temporaries, those that are read most often first, up
  // to four slots: of 16 bytes a thread those leave shared memory for all blocks of any processor, of 32 for
  // those that registers leave room for, or three quarters of them.
  void choose_kept() {
    constexpr int kMostSlots = 4;
    bool stored[kMaxTensors] = {};
    int spared[kMaxTensors] = {};
    const auto read = [&](Operand kind, int t) {
      if (kind != Operand::tensor || program_.drawn(t) != nullptr) return;
      spared[t] += ++reads_[t] > 1 || stored[t];
    };
    for (int i = 0; i < program_.stages; ++i) {
      const Stage& s = program_.stage[i];
      if (s.code == kStore) {
        if (s.b_kind == Operand::tensor) stored[s.b] = true;
      } else {
        read(s.b_kind, s.b), read(s.c_kind, s.c);
      }
    }
    while (out_.code.slots < kMostSlots) {
      const int t = static_cast<int>(std::max_element(spared, spared + tensors_) - spared);
      // Every instruction beside the two of a stage is one of the first that keep something.
      if (spared[t] == 0 || 2 * program_.stages + kMostSlots > kMaxInstructions) return;
      kept_[t] = static_cast<int8_t>(out_.code.slots++);
      spared[t] = 0;
    }
  }
  // Integers that meet a 16-bit float are rounded to its dtype first, as torch's promotion does. In a chain
  // they are computed in float32 like everything else.
  bool rounds_integers() const {
    const Stage* s = program_.stage;
    if (program_.stages != 3 || s[0].code != kLoad || !is_operation(s[1].code) || s[2].code != kStore ||
        s[0].b_kind != Operand::tensor || s[2].b_kind != Operand::tensor || s[0].b != s[2].b)
      return false;
    const DType own = out_.dtype[s[0].b];
    if (!is_reduced_floating(own)) return false;
    const bool masked = info_of(s[1].code).form == Form::kMasked;
    for (int t = 0; t < tensors_; ++t) {
      const bool mask = masked && s[1].b_kind == Operand::tensor && t == s[1].b;
      if (!mask && is_floating(out_.dtype[t]) && out_.dtype[t] != own) return false;
    }
    return true;
  }
  void write_scalars() {
    for (int i = 0; i < kMaxScalars; ++i) out_.code.scalar[i] = 0;
    bool used[kMaxScalars] = {};
    for (int i = 0; i < program_.stages; ++i) {
      const Stage& s = program_.stage[i];
      if (s.b_kind == Operand::scalar) used[s.b] = true;
      if (s.c_kind == Operand::scalar) used[s.c] = true;
      if (is_operation(s.code) && takes_third(info_of(s.code).form)) used[s.d] = true;
    }
    const bool truth = is_move() && out_.dtype[program_.stage[1].b] == DType::b8;
    for (int i = 0; i < kMaxScalars; ++i) {
      if (!used[i]) continue;
      const Scalar s = program_.scalar[i];
      uint64_t& bits = out_.code.scalar[i];
      if (out_.compute == DType::f32) {
        const auto f = static_cast<float>(s.d);
        std::memcpy(&bits, &f, sizeof(f));
      } else {
        bits = truth ? s.i != 0 : static_cast<uint64_t>(s.i); // doubles by their bits
      }
    }
  }

  Instruction& emit(int code, Operand kind = Operand::none, int index = 0, int to = 0) {
    Instruction& made = out_.code.instruction[out_.code.instructions++];
    made = {static_cast<uint8_t>(code),  kind, Operand::none,
            static_cast<uint8_t>(index), 0,    static_cast<uint8_t>(to)};
    return made;
  }
  int keep_slot(int i) {
    out_.code.slots = std::max(out_.code.slots, keep_ + i + 1);
    return keep_ + i;
  }
  // A tensor that is kept is read from its temporary, where it is put when it is first read.
  void take(Operand& kind, int& t) {
    if (kind != Operand::tensor || kept_[t] < 0) return;
    const bool last = --reads_[t] == 0;
    if (!held_[t]) {
      if (last) return;
      emit(kKeep, Operand::tensor, t, kept_[t]);
      held_[t] = true;
    }
    kind = Operand::temporary, t = kept_[t];
  }
  void add(const Stage& s, bool rounds) {
    if (s.code == kLoad) {
      Operand kind = s.b_kind;
      int b = s.b;
      take(kind, b);
      if (!rounds) emit(kLoad, kind, b); // else after the operands
    } else if (s.code == kStore) {
      emit(kStore, Operand::none, 0, s.b_kind == Operand::tensor ? s.b : kMaxTensors + s.b);
      if (s.b_kind != Operand::tensor || kept_[s.b] < 0) return;
      // What memory holds now, unless it has been rounded on the way.
      held_[s.b] = reads_[s.b] > 0 && out_.dtype[s.b] == out_.compute;
      if (held_[s.b]) emit(kStore, Operand::none, 0, kMaxTensors + kept_[s.b]);
    } else if (s.code == kRound) {
      emit(kRound, Operand::none, 0, s.b);
    } else {
      Operand b_kind = s.b_kind, c_kind = s.c_kind;
      int b = s.b, c = s.c;
      if (rounds) {
        keep_rounded(s, b_kind, b, 0);
        keep_rounded(s, c_kind, c, 1);
        emit(kLoad, Operand::tensor, program_.stage[0].b);
      }
      take(b_kind, b), take(c_kind, c);
      if (c_kind == Operand::tensor) {
        emit(kKeep, Operand::tensor, c, keep_slot(rounds));
        c_kind = Operand::temporary, c = keep_slot(rounds);
      }
      Instruction& made = emit(s.code < kOps ? s.code : kRunOwn, b_kind, b, s.d);
      made.c_kind = c_kind;
      made.c = static_cast<uint8_t>(c);
    }
  }
  void keep_rounded(const Stage& s, Operand& kind, int& index, int i) {
    if (kind != Operand::tensor || is_floating(out_.dtype[index])) return;
    if (i == 0 && info_of(s.code).form == Form::kMasked) return;
    emit(kLoad, Operand::tensor, index);
    emit(kRound, Operand::none, 0, static_cast<int>(out_.dtype[program_.stage[0].b]));
    emit(kStore, Operand::none, 0, kMaxTensors + keep_slot(i));
    kind = Operand::temporary, index = keep_slot(i);
  }

  const Program& program_;
  const int tensors_;
  Compiled& out_;
  int keep_ = 0; // the first slot that is neither a temporary of the program nor keeps a tensor
  // Of each tensor the slot that keeps it, or -1, whether it is there, and how often it is still read.
  int8_t kept_[kMaxTensors] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  bool held_[kMaxTensors] = {};
  int reads_[kMaxTensors] = {};
};

// Calls f(Interpreter<...>{}) with the one that the program needs.
template <class F>
cudaError_t with_interpreter(const Compiled& compiled, const F& f) {
#define INPLACE_EXT_CHOOSE(C, E, ALL)                                                                  \
  if constexpr (kIsBuilt<C, ALL>) {                                                                    \
    if (compiled.compute == storage_traits<C>::dtype && compiled.elements == E && compiled.all == ALL) \
      return f(Interpreter<C, E, ALL>{});                                                              \
  }
  if (!compiled.served) return cudaErrorInvalidValue;
  INPLACE_EXT_FLOATING_INTERPRETERS(INPLACE_EXT_CHOOSE)
  INPLACE_EXT_INTEGER_INTERPRETERS(INPLACE_EXT_CHOOSE)
#undef INPLACE_EXT_CHOOSE
  return cudaErrorInvalidValue;
}

inline bool serves(const Program& program, const DType* dtypes, int tensors) {
  Compiled compiled;
  const Compiler compiler(program, dtypes, tensors, compiled);
  return with_interpreter(compiled, [](auto) { return cudaSuccess; }) == cudaSuccess;
}

// ---- an index space ---------------------------------------------------------------------------------------

inline Divisor<uint32_t> divisor_of(int64_t d, uint32_t) {
  // Granlund and Montgomery: n / d = (high word of n * factor, plus n) >> shift, for n < 2^31.
  const auto divisor = static_cast<uint32_t>(d);
  uint32_t shift = 0;
  while (shift < 31 && (uint32_t{1} << shift) < divisor) ++shift;
  const uint64_t one = 1, factor = ((one << 32) * ((one << shift) - divisor)) / divisor + 1;
  return {divisor, static_cast<uint32_t>(factor), shift};
}
inline Divisor<uint64_t> divisor_of(int64_t d, uint64_t) {
  return {static_cast<uint64_t>(d)};
}

// A space of at least one dim, whose tensors' strides are in bytes, or places of what is drawn.
struct Layout {
  int dims;
  int64_t n, size[kMaxDims];
  uint8_t mode[kMaxTensors];
  bool across = false, linear = true, narrow = true;

  Layout(const Program& program, const Space& space, const Compiled& compiled)
      : dims(std::max(space.dims, 1)), n(space.numel()) {
    for (int d = 0; d < dims; ++d) size[d] = space.dims == 0 ? 1 : space.size[d];
    narrow = n <= INT32_MAX;
    for (int t = 0; t < space.tensors; ++t) {
      const bool drawn = program.drawn(t) != nullptr;
      const int item = drawn ? 1 : item_size(compiled.dtype[t]);
      int64_t last = 0, expected = item, apart = 0;
      bool follows = true, broadcasts = false;
      for (int d = 0; d < dims; ++d) {
        const int64_t stride = stride_of(space, t, d, item);
        last += (size[d] - 1) * stride;
        follows &= stride == expected;
        broadcasts |= stride == 0 && size[d] > 1;
        if (d > 0) apart |= stride;
        expected *= size[d];
      }
      narrow &= last <= INT32_MAX;
      const bool constant = last == 0;
      mode[t] = follows || constant ? kLinear : 0;
      linear &= follows || constant;
      if (drawn) {
        mode[t] |= kDrawn;
        continue;
      }
      const int bytes = item * compiled.elements;
      const bool in_rows = stride_of(space, t, 0, item) == item && size[0] % compiled.elements == 0;
      const auto address = reinterpret_cast<uintptr_t>(space.tensor[t].data);
      if (bytes <= 16 && address % bytes == 0 && !constant && (follows || (in_rows && apart % bytes == 0)))
        mode[t] |= kVector;
      else if (!broadcasts && !(n == 1))
        across = true;
    }
  }
  static int64_t stride_of(const Space& space, int t, int d, int item) {
    return space.dims == 0 ? item : space.tensor[t].stride[d];
  }
};

template <class Index>
void fill_space(SpaceArguments<Index>& out, const Program& program, const Space& space,
                const Compiled& compiled, const Layout& layout) {
  out.code = compiled.code;
  out.n = static_cast<Index>(layout.n);
  out.dims = layout.dims;
  out.across = layout.across;
  for (int d = 0; d < layout.dims; ++d) out.size[d] = divisor_of(layout.size[d], Index());
  for (int t = 0; t < space.tensors; ++t) {
    const TensorArg& arg = space.tensor[t];
    const Draws* const drawn = program.drawn(t);
    out.dtype[t] = compiled.dtype[t];
    out.mode[t] = layout.mode[t];
    out.view[t].data = drawn == nullptr ? arg.data : nullptr;
    for (int d = 0; d < layout.dims; ++d)
      out.view[t].stride[d] = static_cast<Index>(Layout::stride_of(space, t, d, item_size(out.dtype[t])));
  }
  out.draws = static_cast<uint8_t>(program.draws);
  out.in_memory = 0;
  for (int i = 0; i < program.draws; ++i) {
    const Draws& from = program.draw[i].from;
    const bool in_memory = from.state != nullptr;
    out.in_memory |= static_cast<uint8_t>(in_memory << i);
    out.draw[i] = {in_memory ? reinterpret_cast<uint64_t>(from.state) : from.seed, from.offset};
    out.mode[program.draw[i].tensor] |= static_cast<uint8_t>(i << kDrawBits);
  }
}

// As many blocks as there is work for, and no more than keep the device busy.
inline dim3 blocks_for(int64_t tiles, const Device& device) {
  constexpr int64_t kRounds = 4;
  const int64_t most = kRounds * device.processors * std::max(1, device.threads_per_processor / kBlock);
  return dim3(static_cast<unsigned>(std::min(tiles, most)));
}

// Runs the program on the space, which has elements; `path` says how. With `wide` indices have 64 bits though
// 32 would do.
inline cudaError_t run(const Program& program, const Space& space, const Device& device, cudaStream_t stream,
                       Path& path, bool wide = false) {
  DType dtypes[kMaxTensors];
  for (int t = 0; t < space.tensors; ++t) dtypes[t] = space.tensor[t].dtype;
  Compiled compiled;
  const Compiler compiler(program, dtypes, space.tensors, compiled);
  Layout layout(program, space, compiled);
  layout.narrow &= !wide;
  path = !layout.narrow  ? Path::wide
         : layout.across ? Path::across
         : layout.linear ? Path::flat
                         : Path::strided;
  const int64_t tile = int64_t{kBlock} * compiled.elements;
  const dim3 grid = blocks_for((layout.n + tile - 1) / tile, device);
  return with_interpreter(compiled, [&](auto interpreter) {
    if (layout.narrow) {
      SpaceArguments<uint32_t> arguments;
      fill_space(arguments, program, space, compiled, layout);
      return interpreter.run(arguments, grid, stream);
    }
    SpaceArguments<uint64_t> arguments;
    fill_space(arguments, program, space, compiled, layout);
    return interpreter.run(arguments, grid, stream);
  });
}

// ---- lists ------------------------------------------------------------------------------------------------

inline cudaError_t run_listed(const List& list, cudaStream_t stream) {
  Compiled compiled;
  const Compiler compiler(*list.program, list.dtypes, list.tensors, compiled);
  const int stride = list.tensors + 1, most = std::min(kListItems, kListWords / stride);
  const int64_t tile = int64_t{kBlock} * compiled.elements, of_block = kTilesPerBlock * tile;
  ListArguments arguments;
  arguments.code = compiled.code;
  arguments.tensors = list.tensors;
  std::copy(compiled.dtype, compiled.dtype + list.tensors, arguments.dtype);
  for (int64_t i = 0; i < list.items;) {
    arguments.items = 0;
    uint32_t blocks = 0;
    for (; i < list.items && arguments.items < most && blocks < (1u << 30); ++i) {
      const uint64_t* const from = list.words + i * stride;
      const uint64_t n = from[list.tensors];
      if (n == 0) continue;
      uint64_t* const to = arguments.word + arguments.items * stride;
      bool aligned = true;
      for (int t = 0; t < list.tensors; ++t) {
        const auto bytes = static_cast<uint64_t>(item_size(compiled.dtype[t])) * compiled.elements;
        aligned &= bytes <= 16 && from[t] % bytes == 0;
        to[t] = from[t];
      }
      to[list.tensors] = n << 1 | !aligned;
      arguments.first_block[arguments.items++] = blocks;
      blocks += static_cast<uint32_t>((n + of_block - 1) / of_block);
    }
    arguments.first_block[arguments.items] = blocks;
    if (blocks == 0) continue;
    const cudaError_t error = with_interpreter(
        compiled, [&](auto interpreter) { return interpreter.run(arguments, dim3(blocks), stream); });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

} // namespace inplace_ext::cuda
