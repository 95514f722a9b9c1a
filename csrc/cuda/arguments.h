// What travels to the interpreter kernels as their parameter: a program in a small form, and tensors.
#pragma once
#include <cstddef>
#include <cstdint>

#include "inplace_ext/program.h"
#include "inplace_ext/target.h"

namespace inplace_ext::cuda {

constexpr int kBlock = 256; // threads of a block

// X(name, functor, form, types, cost): the operation of one's own that a library holds beside the table
// (operation.cuh). Most hold none.
#ifndef INPLACE_EXT_OWN
#define INPLACE_EXT_OWN(X)
#endif
constexpr OpInfo kOwn[] = {
#define INPLACE_EXT_INFO(NAME, FUNCTOR, FORM, TYPES, COST) {NAME, FORM, TYPES, COST},
    INPLACE_EXT_OWN(INPLACE_EXT_INFO)
#undef INPLACE_EXT_INFO
        {nullptr, Form::kUnary, Types{}, 0}};
constexpr bool kHasOwn = kOwn[0].name != nullptr;

// Operations that are in the interpreter of cheap ones. The others need twice its registers, and so halve the
// threads of a processor; they are bound by arithmetic.
constexpr bool is_cheap(Form form, int cost) {
  return cost <= 3 && form != Form::kDrawn;
}
constexpr bool is_cheap(const OpInfo& op) {
  return is_cheap(op.form, op.cost);
}

// What an instruction does once its operand b is there: an operation of the table or the library's own, or a
// stage beside them.
// kKeep puts the operand into a temporary: of two tensors the second waits there while the first is fetched,
// so that while a thread waits for memory it holds no more than the accumulator; and what is read more than
// once stays there.
enum InstructionCode : uint8_t { kRunOwn = kFirstAdded, kKeep = kStageCodes };
static_assert(kStageCodes < 0xff);

struct Instruction {
  uint8_t code;
  Operand b_kind, c_kind; // c is no tensor
  uint8_t b, c;
  uint8_t to; // of kStore the tensor, or kMaxTensors + temporary, of kKeep the temporary, of kRound the
              // dtype, of an operation the number that is its third operand
};

constexpr int kMaxInstructions = 2 * kMaxStages;

struct Code {
  int instructions;
  int slots; // of temporaries that are in use, from 0 on
  Instruction instruction[kMaxInstructions];
  uint64_t scalar[kMaxScalars]; // the bits of a number of the compute type
};

// Quotients by a number that is known before the launch. 32 bits: by a product and a shift, for numbers below
// 2^31.
template <class Index>
struct Divisor {
  Index divisor;
};
template <>
struct Divisor<uint32_t> {
  uint32_t divisor, factor, shift;
};

// How the elements of a tensor lie in the space.
enum Mode : uint8_t {
  kLinear = 1, // one after the other, or all at one place
  kVector = 2, // any E of them from a multiple of E on are neighbours in memory, and aligned
  kDrawn = 4,  // no memory but random numbers; addresses are places in their mask
};
constexpr int kDrawBits = 4; // from here on the index of the draws

template <class Index>
struct View {
  char* data;
  Index stride[kMaxDims]; // bytes
};
// Tensors over an index space: the parameter of run_space. Indices and offsets fit into Index.
template <class Index>
struct SpaceArguments {
  Code code;
  Index n;
  int dims;
  bool across; // a thread's elements are kBlock apart, not neighbours
  DType dtype[kMaxTensors];
  uint8_t mode[kMaxTensors];
  uint8_t draws, in_memory; // how many, and a bit for each whose seed is a Draws::state
  struct {
    uint64_t seed, offset;
  } draw[kMaxDraws];
  Divisor<Index> size[kMaxDims];
  View<Index> view[kMaxTensors];
};
static_assert(sizeof(SpaceArguments<uint64_t>) <= 4096); // what a kernel may always have

// Lists of contiguous tensors, a program for each element of the lists: the parameter of run_list.
constexpr int kListItems = 512, kListWords = 1536;
constexpr int kTilesPerBlock = 4;
struct ListArguments {
  Code code;
  int items, tensors;
  DType dtype[kMaxTensors];
  // Of each item the addresses of its tensors, and twice the number of elements of each, plus 1 where
  // addresses are not aligned.
  uint64_t word[kListWords];
  uint32_t first_block[kListItems + 1];
};
static_assert(sizeof(ListArguments) <= 32764); // what a kernel may have from compute capability 7.0 on

} // namespace inplace_ext::cuda
