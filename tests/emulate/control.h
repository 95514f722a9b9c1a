// What the tests ask of the emulated device: which memory the kernels may touch, and what they did.
#pragma once
#include <vector_types.h>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulate {

// Memory that kernels may read, or read and write, until clear_memory(). Everything else is out of bounds.
// `item` is the size of the elements, by which conflicts between threads are told.
void allow(const void* p, size_t bytes, int item, bool writable);
void clear_memory();

// The order in which the threads of a block get their turn. What is computed must not depend on it.
enum class Order { forward, backward, shuffled };
void set_order(Order order);

// What one launch did. A sector is 32 bytes; those that one instruction of a warp touches count once.
struct Launch {
  std::string kernel;
  dim3 grid, block;
  uint64_t bytes_read = 0, bytes_written = 0, sectors_read = 0, sectors_written = 0;
  uint64_t instructions = 0; // accesses of global memory by a warp
  int widest_read = 0, widest_write = 0;
};
// The launches since the last call.
std::vector<Launch> take_launches();
// Sectors are counted only where somebody wants to know.
void set_counting(bool counting);

} // namespace emulate
