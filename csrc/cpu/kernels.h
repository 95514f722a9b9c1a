// The two forms in which a functor is compiled: a plain loop for a single operation, and a stage of the
// pipeline for a chain. Instantiated once per storage type (loops) and per compute type (stages) in the
// kernels_*.cpp files, so that they compile side by side.
#pragma once
#include "inplace_ext/functors.h"
#include "inplace_ext/operations.h"
#include "inplace_ext/program.h"
#include "lanes.h"
// math.h finds the vector functions above by argument-dependent look-up.
#include "inplace_ext/math.h"
#include "inplace_ext/math_erf.h"
#include "inplace_ext/math_exp.h"
#include "inplace_ext/math_log.h"
#include "inplace_ext/math_root.h"
#include "inplace_ext/math_trig.h"

namespace inplace_ext {

// convert.cpp
void convert(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t n, bool stream = false);
// softmax.cpp
Path softmax(const Softmax& call, int64_t begin, int64_t end);
// dropout.cpp
Path dropout(const Dropout& call, int64_t begin, int64_t end);
// norm.cpp
double norm_part(const void* x, DType dtype, int64_t n, Norm norm);
// transpose.cpp
void turn(const Turn&);
int64_t square_units(int64_t side, int64_t bytes);
void swap_square(const Matrix&, int64_t begin, int64_t end);
void find_leaders(const Matrix&, uint64_t* leaders, uint64_t* seen);
void move_cycles(const Matrix&, const uint64_t* leaders, int64_t begin, int64_t end);
// index.cpp
bool in_range(const void* index, bool wide, int64_t step, int64_t n, int64_t low, int64_t high);
Path put_indexed(const Indexed& call, int64_t begin, int64_t end);
int64_t count_mask(const Masked& call, int64_t begin, int64_t end);
Path put_masked(const Masked& call, int64_t begin, int64_t end, int64_t taken);

// The loop of a storage type exists where its compute type does; on bool only what means bool.
template <class S>
constexpr bool has_loop(Types types) {
  if (types == Types::kUInt8) return std::is_same_v<S, bool_t>;
  return has_form(types, storage_traits<S>::dtype);
}

// Calls f for each variant that is built of a form: those whose b and c come from numbers where they must.
template <Form F, class Call>
void for_variants(Call f) {
  using std::bool_constant;
  constexpr int kOperands = operands_of(F);
  if constexpr (F == Form::kDrawn) return f(bool_constant<false>{}, bool_constant<true>{});
  if constexpr (!only_numbers(F)) f(bool_constant<false>{}, bool_constant<false>{});
  if constexpr (kOperands == 1 || (kOperands == 2 && !only_numbers(F))) {
    f(bool_constant<true>{}, bool_constant<false>{});
  }
  if constexpr (kOperands == 2) {
    if constexpr (!only_numbers(F)) f(bool_constant<false>{}, bool_constant<true>{});
    f(bool_constant<true>{}, bool_constant<true>{});
  }
}

// ---- plain loops ------------------------------------------------------------------------------------------

// Functors that only touch the sign or choose work on the bits of 16-bit floats as they are: body and tail
// alike, since a conversion would drop the sign and the payload of a NaN.
template <class Functor, class S>
constexpr bool works_on_bits_v =
    is_half_v<S> &&
    (requires(Bits16 h) { Functor::apply_bits(h); } || requires(Bits16 h) { Functor::apply_bits(h, h, h); });

// The same loop over integers: loop<> below with Bits16 for the vectors of the compute type.
template <class Functor, class S, Form F, bool ScalarB, bool ScalarC>
void loop_on_bits(char* x, const char* b, const char* c, const Scalar* scalar, int64_t n) {
  constexpr int kElements = Bits16::N;
  const auto bits_of = [](float f) { return Bits16(static_cast<uint16_t>(to_bits(Vec<float>(f), S{})[0])); };
  Bits16 vb(uint16_t(0)), vc(uint16_t(0));
  if constexpr (F == Form::kMasked && ScalarB) vb = Bits16(static_cast<uint16_t>(scalar[0].d != 0));
  if constexpr (F == Form::kMasked && ScalarC) vc = bits_of(scalar_as<float>(scalar[1]));
  const auto step = [&](Bits16 h) __attribute__((always_inline)) {
    if constexpr (F == Form::kMasked) {
      return Functor::apply_bits(h, vb, vc);
    } else {
      return Functor::apply_bits(h);
    }
  };
  for (; n >= kElements; n -= kElements, x += kVectorBytes) {
    if constexpr (F == Form::kMasked && !ScalarB) vb = widen_bytes<uint16_t>(b), b += kElements;
    if constexpr (F == Form::kMasked && !ScalarC) vc = Bits16::load(c), c += kVectorBytes;
    step(Bits16::load(x)).store(x);
  }
  if (n > 0) {
    const int rest = static_cast<int>(n), bytes = rest * 2;
    if constexpr (F == Form::kMasked && !ScalarB) vb = widen_some_bytes<uint16_t>(b, rest);
    if constexpr (F == Form::kMasked && !ScalarC) vc = Bits16(load_bytes<Bits16::raw>(c, bytes));
    store_bytes(x, step(Bits16(load_bytes<Bits16::raw>(x, bytes))).v, bytes);
  }
}

// How far ahead a long functor asks for its memory, in bytes. Its iterations fill the window in which the
// processor finds later loads by itself, so that the prefetchers of the hardware, which follow those, come
// too late: without this a tanh_ beyond the second-level cache took 1.5 times what it takes inside (Intel).
constexpr int64_t kPrefetchAhead = 2048;
IE_INLINE void prefetch(const char* p) {
  __builtin_prefetch(p + kPrefetchAhead);
}

// Functors that are neither long nor cheap ask for a strip at a time, and so do all of 16-bit floats, whose
// conversions take as long: 1.2 to 2.2 times as fast from memory, but up to a quarter slower from a
// third-level cache, where tensors of fewer bytes than kFarBytes may be. The cheapest gain nothing anywhere
// (Intel).
constexpr int64_t kFarBytes = 32 << 20, kStripBytes = 1024;
template <class S, int Cost>
constexpr bool kInStrips = Cost == 2 || (Cost < 2 && is_half_v<S>);
// Into the second-level cache, from where the processor itself follows one or two arrays into the first.
IE_INLINE void prefetch_lines(const char* p, int64_t bytes) {
  constexpr int64_t kFarAhead = 4096;
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + kFarAhead + line, 0, 2);
}

template <class Functor, class S, Form F, int Cost, bool ScalarB, bool ScalarC>
void loop(void* x_, const void* b_, const void* c_, const Scalar* scalar, int64_t n) {
  using C = ComputeOf<S>;
  using V = Vec<C>;
  using G = Group<S>;
  constexpr int kOperands = operands_of(F);
  constexpr bool kReadB = kOperands >= 1 && !ScalarB, kReadC = kOperands >= 2 && !ScalarC;
  // Cheap functors hide the latency of memory and of the loop with several vectors at a time; long ones have
  // parallelism of their own and would only spill.
  constexpr int kUnroll = Cost <= 2 ? 4 / G::kVectors : 1;
  constexpr int64_t kStep = kVectorBytes, kStepB = F == Form::kMasked ? G::kElements : kStep;
  char* x = static_cast<char*>(x_);
  const char* b = static_cast<const char*>(b_);
  const char* c = static_cast<const char*>(c_);
  if constexpr (works_on_bits_v<Functor, S>) {
    return loop_on_bits<Functor, S, F, ScalarB, ScalarC>(x, b, c, scalar, n);
  }
  const auto load_b = [](const char* p) __attribute__((always_inline)) {
    if constexpr (F == Form::kMasked) {
      return load_mask<S>(p);
    } else {
      return load_group<S>(p);
    }
  };
  G gb, gc;
  for (int i = 0; i < G::kVectors; ++i) gb.v[i] = gc.v[i] = V(C(0));
  V d(C(0));
  if constexpr (takes_third(F)) d = V(scalar_as<C>(scalar[2]));
  if constexpr (kOperands >= 1 && ScalarB) {
    for (int i = 0; i < G::kVectors; ++i) gb.v[i] = V(scalar_as<C>(scalar[0]));
  }
  if constexpr (kOperands >= 2 && ScalarC) {
    for (int i = 0; i < G::kVectors; ++i) gc.v[i] = V(scalar_as<C>(scalar[1]));
  }
  const auto step = [&](G g) __attribute__((always_inline)) {
    for (int i = 0; i < G::kVectors; ++i) g.v[i] = apply<Functor, F>(g.v[i], gb.v[i], gc.v[i], d);
    return g;
  };

  constexpr int64_t kStrip = kStripBytes / static_cast<int64_t>(sizeof(S));
  const bool far = kInStrips<S, Cost> && n * static_cast<int64_t>(sizeof(S)) >= kFarBytes;
  int64_t rest;
  do {
    rest = far && n >= 2 * kStrip ? n - kStrip : 0;
    if (rest > 0) {
      prefetch_lines(x, kStripBytes);
      if constexpr (kReadB && F != Form::kMasked) prefetch_lines(b, kStripBytes);
      if constexpr (kReadC) prefetch_lines(c, kStripBytes);
    }
    for (; n - rest >= kUnroll * G::kElements; n -= kUnroll * G::kElements) {
      G g[kUnroll];
#pragma GCC unroll 4
      for (int i = 0; i < kUnroll; ++i) {
        if constexpr (Cost > 2) {
          prefetch(x + i * kStep);
          if constexpr (kReadB) prefetch(b + i * kStepB);
          if constexpr (kReadC) prefetch(c + i * kStep);
        }
        if constexpr (kReadB) gb = load_b(b + i * kStepB);
        if constexpr (kReadC) gc = load_group<S>(c + i * kStep);
        g[i] = step(load_group<S>(x + i * kStep));
      }
#pragma GCC unroll 4
      for (int i = 0; i < kUnroll; ++i) store_group<S>(x + i * kStep, g[i]);
      x += kUnroll * kStep;
      if constexpr (kReadB) b += kUnroll * kStepB;
      if constexpr (kReadC) c += kUnroll * kStep;
    }
  } while (rest > 0);
  if constexpr (kUnroll > 1) {
    for (; n >= G::kElements; n -= G::kElements) {
      if constexpr (kReadB) gb = load_b(b);
      if constexpr (kReadC) gc = load_group<S>(c);
      store_group<S>(x, step(load_group<S>(x)));
      x += kStep;
      if constexpr (kReadB) b += kStepB;
      if constexpr (kReadC) c += kStep;
    }
  }
  IE_ASSERT(n >= 0 && n < G::kElements);
  if (n > 0) {
    const int rest = static_cast<int>(n);
    if constexpr (kReadB && F == Form::kMasked) gb = load_mask_partial<S>(b, rest);
    if constexpr (kReadB && F != Form::kMasked) gb = load_partial<S>(b, rest);
    if constexpr (kReadC) gc = load_partial<S>(c, rest);
    store_partial<S>(x, step(load_partial<S>(x, rest)), rest);
  }
}

using LoopRow = LoopFn[kDTypes][kLoopVariants];
using LoopTable = LoopRow[kOpCodes];

template <class Functor, class S, Form F, Types T, int Cost>
void add_loop(LoopRow& row) {
  if constexpr (has_loop<S>(T) && F != Form::kDrawn) {
    LoopFn* f = row[static_cast<int>(storage_traits<S>::dtype)];
    for_variants<F>(
        [&](auto b, auto c) { f[b * kScalarB + c * kScalarC] = loop<Functor, S, F, Cost, b, c>; });
  }
}
// Enters the loops of storage type S.
template <class S>
void add_loops(LoopTable& table) {
#define INPLACE_EXT_ADD(NAME, FUNCTOR, FORM, TYPES, COST) \
  add_loop<FUNCTOR, S, Form::FORM, Types::TYPES, COST>(table[static_cast<int>(Op::NAME)]);
  INPLACE_EXT_OPS(INPLACE_EXT_ADD)
#undef INPLACE_EXT_ADD
}

// ---- the threaded pipeline --------------------------------------------------------------------------------

constexpr int kTileVectors = 8;
template <class C>
constexpr int kTile = kTileVectors * Vec<C>::N;
// Elements of eight bytes that are staged at a time, of smaller ones as many bytes; a multiple of every tile.
constexpr int kChunk = 512;

using AnyFn = void (*)();

// A stage ready to run: its function, then where its operands are.
struct Linked {
  AnyFn fn;
  uint8_t b, c;   // slots of Tile::ptr
  int64_t b_step; // bytes that the operand moves per element of the chunk; 0 for a temporary
  int64_t c_step;
  Scalar kb, kc, kd;
};
// Where the tile at hand lies: slots of the tensors, then of the temporaries.
struct Tile {
  char* ptr[kMaxTensors + kMaxTemporaries];
  int64_t offset; // of the tile in its chunk, in elements
  // The tensors whose memory is asked for ahead of the tile, and the bytes of an element of each.
  int streams;
  uint8_t stream[kMaxTensors], stream_item[kMaxTensors];
};

// Eight vectors travel from stage to stage in registers; each stage ends in a jump to the next.
template <class V>
using StageFn = void (*)(V, V, V, V, V, V, V, V, const Linked*, Tile*);

#define IE_STAGE_PARAMS V v0, V v1, V v2, V v3, V v4, V v5, V v6, V v7, const Linked *ip, Tile *tile
#define IE_STAGE_NEXT reinterpret_cast<StageFn<V>>(ip[1].fn)(v0, v1, v2, v3, v4, v5, v6, v7, ip + 1, tile)

template <class V>
void stage_end(V, V, V, V, V, V, V, V, const Linked*, Tile*) {}

template <class S, class V>
void stage_load(IE_STAGE_PARAMS) {
  const char* p = tile->ptr[ip->b] + tile->offset * ip->b_step;
  constexpr int kStep = V::N * static_cast<int>(sizeof(S));
  const auto next = [&](int i) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<S, uint8_t> && std::is_same_v<V, Vec<float>>) {
      return convert<float>(load_int32(reinterpret_cast<const uint8_t*>(p + i * kStep)));
    } else {
      return load<S>(p + i * kStep);
    }
  };
  v0 = next(0), v1 = next(1), v2 = next(2), v3 = next(3);
  v4 = next(4), v5 = next(5), v6 = next(6), v7 = next(7);
  return IE_STAGE_NEXT;
}
template <class V>
void stage_load_scalar(IE_STAGE_PARAMS) {
  v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = V(scalar_as<typename V::lane>(ip->kb));
  return IE_STAGE_NEXT;
}
template <class S, class V>
void stage_store(IE_STAGE_PARAMS) {
  char* p = tile->ptr[ip->b] + tile->offset * ip->b_step;
  constexpr int kStep = V::N * static_cast<int>(sizeof(S));
  store<S>(p, v0), store<S>(p + kStep, v1), store<S>(p + 2 * kStep, v2), store<S>(p + 3 * kStep, v3);
  store<S>(p + 4 * kStep, v4), store<S>(p + 5 * kStep, v5), store<S>(p + 6 * kStep, v6);
  store<S>(p + 7 * kStep, v7);
  return IE_STAGE_NEXT;
}
// Into the buffer of a tensor of another dtype that is read again: what comes back is what that dtype holds.
// Rare, so by way of memory.
template <class V>
void stage_store_converted(IE_STAGE_PARAMS) {
  using C = typename V::lane;
  constexpr DType compute = storage_traits<C>::dtype;
  alignas(64) char raw[kTile<C> * 8];
  char* p = tile->ptr[ip->b] + tile->offset * ip->b_step;
  const V v[kTileVectors] = {v0, v1, v2, v3, v4, v5, v6, v7};
  for (int i = 0; i < kTileVectors; ++i) v[i].store(p + i * kVectorBytes);
  convert(raw, static_cast<DType>(ip->kb.i), p, compute, kTile<C>);
  convert(p, compute, raw, static_cast<DType>(ip->kb.i), kTile<C>);
  return IE_STAGE_NEXT;
}
// Through the bits of storage type S and back, in registers.
template <class S, class V>
IE_INLINE V rounded(V v) {
  if constexpr (is_half_v<S>) {
    if constexpr (std::is_same_v<V, Vec<float>>) {
      return from_bits(to_bits(v, S{}), S{});
    } else {
      DoublePair p{v, v};
      return widen(from_bits(to_bits(narrow(p), S{}), S{})).lo;
    }
  } else if constexpr (std::is_same_v<S, float> && std::is_same_v<V, Vec<double>>) {
    return widen(narrow(DoublePair{v, v})).lo;
  } else {
    return v;
  }
}
template <class S, class V>
void stage_round(IE_STAGE_PARAMS) {
  v0 = rounded<S>(v0), v1 = rounded<S>(v1), v2 = rounded<S>(v2), v3 = rounded<S>(v3);
  v4 = rounded<S>(v4), v5 = rounded<S>(v5), v6 = rounded<S>(v6), v7 = rounded<S>(v7);
  return IE_STAGE_NEXT;
}

template <class Functor, Form F, int Cost, bool ScalarB, bool ScalarC, class V>
void stage_op(IE_STAGE_PARAMS) {
  using C = typename V::lane;
  constexpr int kOperands = operands_of(F);
  const char* pb = nullptr;
  const char* pc = nullptr;
  V vb(C(0)), vc(C(0)), vd(C(0));
  if constexpr (takes_third(F)) vd = V(scalar_as<C>(ip->kd));
  if constexpr (kOperands >= 1 && ScalarB) vb = V(scalar_as<C>(ip->kb));
  if constexpr (kOperands >= 2 && ScalarC) vc = V(scalar_as<C>(ip->kc));
  if constexpr (kOperands >= 1 && !ScalarB) pb = tile->ptr[ip->b] + tile->offset * ip->b_step;
  if constexpr (kOperands >= 2 && !ScalarC) pc = tile->ptr[ip->c] + tile->offset * ip->c_step;
  const auto step = [&](V a, int i) __attribute__((always_inline)) {
    if constexpr (kOperands >= 1 && !ScalarB) vb = V::load(pb + i * kVectorBytes);
    if constexpr (kOperands >= 2 && !ScalarC) vc = V::load(pc + i * kVectorBytes);
    return apply<Functor, F>(a, vb, vc, vd);
  };
  if constexpr (Cost <= 2) {
    v0 = step(v0, 0), v1 = step(v1, 1), v2 = step(v2, 2), v3 = step(v3, 3);
    v4 = step(v4, 4), v5 = step(v5, 5), v6 = step(v6, 6), v7 = step(v7, 7);
  } else {
    // One vector at a time from memory: eight inlined copies of a long functor would spill.
    V v[kTileVectors] = {v0, v1, v2, v3, v4, v5, v6, v7};
    for (int i = 0; i < kTileVectors; ++i) v[i] = step(v[i], i);
    v0 = v[0], v1 = v[1], v2 = v[2], v3 = v[3], v4 = v[4], v5 = v[5], v6 = v[6], v7 = v[7];
  }
  return IE_STAGE_NEXT;
}
// The stages of one compute type. Loads, stores and rounding are indexed by the storage dtype.
struct StageTable {
  AnyFn op[kOpCodes][kLoopVariants];
  AnyFn load[kDTypes], store[kDTypes], round[kDTypes];
  AnyFn load_scalar, store_converted, end;
  void (*run_tiles)(const Linked*, Tile*, int64_t tiles);
  int tile;
};

// The bytes of a tensor from which on a chain asks for memory ahead, since what the second-level cache may
// hold needs none.
constexpr int64_t kStreamedBytes = 1 << 20;
// Asks for the memory of a tile that lies ahead: some lines with each tile, since more than the processor has
// buffers for lines on their way would wait for one another. Of more than two arrays the processor loses
// track, and their lines go into its first cache. (Measured on an Intel processor with AVX-512, arrays of 64
// MiB: AdamW takes 18 ms for 21.5, three operations 5.3 for 6.2.)
template <class C>
IE_INLINE void prefetch_ahead(const Tile* tile) {
  const bool few = tile->streams <= 2;
  for (int k = 0; k < tile->streams; ++k) {
    const int item = tile->stream_item[k];
    const char* const p = tile->ptr[tile->stream[k]] + tile->offset * item;
    if (few) prefetch_lines(p, kTile<C> * item);
    for (int line = 0; !few && line < kTile<C> * item; line += 64) prefetch(p + line);
  }
}

template <class C>
void run_tiles(const Linked* first, Tile* tile, int64_t tiles) {
  using V = Vec<C>;
  const V zero(C(0));
  for (int64_t i = 0; i < tiles; ++i) {
    tile->offset = i * kTile<C>;
    prefetch_ahead<C>(tile);
    reinterpret_cast<StageFn<V>>(first->fn)(zero, zero, zero, zero, zero, zero, zero, zero, first, tile);
  }
}

template <class Functor, Form F, Types T, int Cost, class C>
void add_stage(AnyFn (&f)[kLoopVariants]) {
  if constexpr (has_form(T, storage_traits<C>::dtype)) {
    using V = Vec<C>;
    for_variants<F>([&](auto b, auto c) {
      const StageFn<V> fn = stage_op<Functor, F, Cost, b, c, V>;
      f[b * kScalarB + c * kScalarC] = reinterpret_cast<AnyFn>(fn);
    });
  }
}

template <class S, class C>
void add_load_stage(StageTable& table) {
  using V = Vec<C>;
  constexpr int d = static_cast<int>(storage_traits<S>::dtype);
  table.load[d] = reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_load<S, V>));
}
template <class S, class C>
void add_memory_stages(StageTable& table) {
  using V = Vec<C>;
  constexpr int d = static_cast<int>(storage_traits<S>::dtype);
  add_load_stage<S, C>(table);
  table.store[d] = reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_store<S, V>));
}
template <class S, class C>
void add_rounding_stage(StageTable& table) {
  using V = Vec<C>;
  table.round[static_cast<int>(storage_traits<S>::dtype)] =
      reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_round<S, V>));
}

// Fills the table of compute type C.
template <class C>
void add_stages(StageTable& table) {
  using V = Vec<C>;
#define INPLACE_EXT_ADD(NAME, FUNCTOR, FORM, TYPES, COST) \
  add_stage<FUNCTOR, Form::FORM, Types::TYPES, COST, C>(table.op[static_cast<int>(Op::NAME)]);
  INPLACE_EXT_OPS(INPLACE_EXT_ADD)
#undef INPLACE_EXT_ADD
  add_memory_stages<C, C>(table);
  if constexpr (std::is_same_v<C, float>) {
    add_memory_stages<half_t, float>(table);
    add_memory_stages<bfloat16_t, float>(table);
    add_load_stage<uint8_t, float>(table); // images
  }
  if constexpr (std::is_floating_point_v<C>) {
    add_rounding_stage<double, C>(table);
    add_rounding_stage<float, C>(table);
    add_rounding_stage<half_t, C>(table);
    add_rounding_stage<bfloat16_t, C>(table);
  }
  table.load_scalar = reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_load_scalar<V>));
  table.store_converted = reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_store_converted<V>));
  table.end = reinterpret_cast<AnyFn>(static_cast<StageFn<V>>(stage_end<V>));
  table.run_tiles = run_tiles<C>;
  table.tile = kTile<C>;
}

// ---- moves (convert.cpp) ----------------------------------------------------------------------------------

void fill(void* x, DType dtype, Scalar value, int64_t n, bool stream = false);
// Fills with the element at `value`, converted.
void splat(void* x, DType dtype, const void* value, DType value_dtype, int64_t n, bool stream = false);
bool contains_zero(const void* x, DType dtype, int64_t n);
// The element at p, converted to the compute type.
Scalar read_converted(const void* p, DType dtype, DType compute);
inline Scalar read_scalar(const void* p, DType dtype, DType compute) {
  if (dtype == DType::f32 && compute == DType::f32) { // once a row: worth a short way
    float f;
    std::memcpy(&f, p, sizeof(f));
    Scalar s;
    s.d = f;
    return s;
  }
  return read_converted(p, dtype, compute);
}

// ---- the executor (execute.cpp) ---------------------------------------------------------------------------

struct Tables {
  LoopTable loop;
  StageTable stages[kDTypes]; // by compute dtype
};
const Tables& kernel_tables();
Path run(const Program& program, const Space& space, int64_t begin, int64_t end);

} // namespace inplace_ext
