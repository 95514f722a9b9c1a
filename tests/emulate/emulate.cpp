// The emulated device. It reports, with kernel, block and thread:
//
// - a barrier that not all threads of the block reach, and threads that wait at different ones
// - a shuffle or vote whose mask names a lane that has left, or waits elsewhere, or not the caller; a shuffle
//   from a lane that takes no part
// - an access of global memory outside of what allow() has been told, or written where only reading is
//   allowed; of shared memory outside of its array, or read before it was written; either misaligned
// - two accesses of the same memory by different threads, one of them a write, with no barrier in between
//   (with fibers; where threads are real ThreadSanitizer sees to that, to which a shuffle is a barrier of the
//   warp as well)
// - a launch beyond what devices take
#include "emulate.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "control.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulate {

thread_local constinit Thread* self = nullptr;

namespace {

constexpr int kWarpLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 << 10, kMaxStaticShared = 48 << 10;
constexpr size_t kMaxParameters = 32764; // since CUDA 12.1
constexpr uintptr_t kSector = 32;

// Ends a thread of the device, after a failure of it or of another one.
struct Stopped {};

struct Warp;
struct Worker;

// ---- conflicts --------------------------------------------------------------------------------------------

// Where a thread stands: two accesses of different threads are ordered if a barrier that both take part in
// lies in between.
struct Stamp {
  uint32_t thread = 0; // of the grid, from 1 on; 0: nobody
  uint32_t block_epoch = 0, warp_epoch = 0;
};
// How far apart those are that a stamp stands for.
enum Spread : uint8_t { kOne, kWarpWide, kBlockWide, kGridWide };
struct Cell {
  Stamp writer, reader;
  Spread readers = kOne;
  Access last = Access::write; // of those that write
};

// ---- memory -----------------------------------------------------------------------------------------------

constexpr uintptr_t kPage = 4096;
struct Page {
  std::array<uint8_t, kPage> allowed{}; // 1: read, 2: write as well
  int item = 16;                        // bytes of a cell
  uint64_t launch = 0;                  // of which the cells are
  std::vector<Cell> cells;
};
struct Extent {
  uintptr_t begin, end;
};
struct Memory {
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  std::vector<Extent> extents;
  uint64_t generation = 1;

  // Without a lock, which would order the accesses that ThreadSanitizer is to see unordered.
  Page* find(uintptr_t p) const {
    static thread_local Page* last = nullptr;
    static thread_local uintptr_t last_number = 0;
    static thread_local uint64_t of = 0;
    const uintptr_t number = p / kPage;
    if (of != generation || number != last_number) {
      const auto found = pages.find(number);
      if (found == pages.end()) return nullptr;
      last = found->second.get(), last_number = number, of = generation;
    }
    return last;
  }
} memory;

// ---- the state of a launch --------------------------------------------------------------------------------

struct Operation {
  Meeting kind;
  unsigned mask;
  int argument, width;
  uint64_t value, result;
  const char* file;
  int line;
};

struct Lock {
#if defined(INPLACE_EXT_EMULATE_THREADS)
  std::mutex mutex;
  std::condition_variable changed;
#endif
};

struct Warp : Lock {
  unsigned waiting = 0; // lanes at a meeting
  unsigned left = 0;    // lanes that have ended
  unsigned lanes = 0;   // those there are
  Operation operation[kWarpLanes];
  uint32_t epoch = 0;
  // For the counts: the sectors of each execution of each instruction.
  struct Touch {
    const void* site;
    uint32_t turn;
    uintptr_t sector; // times 2, plus 1 for a write
    bool operator<(const Touch& o) const {
      return std::tie(site, turn, sector) < std::tie(o.site, o.turn, o.sector);
    }
    bool operator==(const Touch& o) const {
      return site == o.site && turn == o.turn && sector == o.sector;
    }
  };
  std::vector<Touch> touched;
};

struct Array {
  std::string name;
  size_t begin, bytes;
};
struct Block : Lock {
  int arrived = 0, left = 0, voted = 0, outcome = 0;
  uint32_t epoch = 0; // barriers passed
  const char* file = nullptr;
  int line = 0;
  // Shared memory, static after dynamic, and the cells of its bytes by fours, for as much as is in use.
  std::unique_ptr<char[]> storage{new char[kMaxShared + kMaxStaticShared + 16]};
  std::vector<Cell> cells;
  size_t used = 0, dynamic = 0;
  void use(size_t bytes) {
    used = bytes;
    if (cells.size() < used / 4 + 1) cells.resize(used / 4 + 1);
  }
  std::map<const void*, Array> arrays;
};

struct Worker : Thread {
  uint32_t number; // in the block
  uint32_t global; // in the grid, from 1 on
  Warp* warp;
  int lane;
  bool ended, waits;
  std::vector<std::pair<const void*, uint32_t>> turns;
  uint64_t bytes_read, bytes_written;
  // A fiber.
  void* stack_pointer;
  char* stack;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack;
#endif
#if !defined(__x86_64__)
  ucontext_t context;
#endif

  Stamp stamp(uint32_t block_epoch) const {
    return {global, block_epoch, warp->epoch};
  }
};

struct Grid {
  std::string kernel;
  dim3 blocks, threads;
  uint32_t size; // of a block
  void (*body)(const void*);
  const void* closure;
  size_t dynamic;
  uint64_t number = 0; // of the launch
  std::vector<Worker> workers;
  std::vector<Warp> warps;
  Block block;
  std::mutex failing;
  std::atomic<bool> failed{false};
  std::string failure;
  std::atomic<int> running{0}; // threads that do not wait
  Launch counts;
};
Grid* grid = nullptr;
std::mutex one_at_a_time;
uint64_t launches_so_far = 0;
std::vector<Launch> launches;
bool counting = true;
Order order = Order::forward;

Worker& me() {
  return *static_cast<Worker*>(self);
}

std::string at(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}
std::string at(const uint3& d) {
  return at(dim3{d.x, d.y, d.z});
}
std::string place(const char* file, int line) {
  const std::string name(file);
  return name.substr(name.rfind('/') + 1) + ":" + std::to_string(line);
}

void note_failure(const std::string& what) {
  const std::lock_guard<std::mutex> lock(grid->failing);
  if (grid->failure.empty()) {
    grid->failure = "emulated device: " + grid->kernel + ", block " + at(me().block) + ", thread " +
                    at(me().thread) + ": " + what;
  }
  grid->failed.store(true, std::memory_order_relaxed);
}
[[noreturn]] void fail(const std::string& what) {
  note_failure(what);
  throw Stopped{};
}

// ---- fibers, or threads -----------------------------------------------------------------------------------

#if defined(INPLACE_EXT_EMULATE_THREADS)

// Waits until ready() holds, which is asked with the lock held.
template <class F>
void wait(Lock& lock, std::unique_lock<std::mutex>& held, F ready) {
  while (!ready()) {
    if (grid->failed.load(std::memory_order_relaxed)) throw Stopped{};
    lock.changed.wait_for(held, std::chrono::milliseconds(100));
  }
}
struct Holder {
  std::unique_lock<std::mutex> lock;
  explicit Holder(Lock& l) : lock(l.mutex) {}
};
void wake(Lock& lock) {
  lock.changed.notify_all();
}
// Bookkeeping whose locks order nothing that a kernel does. ThreadSanitizer is not to see them: threads that
// come one after the other would seem to wait for each other, and their conflicts would go unseen.
#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
struct Unordered {
  Unordered() {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unordered() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
  Unordered(const Unordered&) = delete;
};
#endif

#else

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 << 10;
#else
constexpr size_t kStack = 128 << 10;
#endif

#if defined(__x86_64__)
// Keeps what a call keeps on the stack of the fiber, and goes on where the other one was left.
extern "C" void inplace_ext_emulate_switch(void** from, void* to);
asm(R"(
.text
.type inplace_ext_emulate_switch, @function
inplace_ext_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size inplace_ext_emulate_switch, .-inplace_ext_emulate_switch
)");
void* scheduler_pointer = nullptr;
#else
ucontext_t scheduler_context;
#endif

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
void* scheduler_fake = nullptr;
#endif

char* stacks = nullptr;

// From a fiber to the scheduler.
void leave(Worker& w, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &w.fake_stack, scheduler_stack, scheduler_size);
#else
  static_cast<void>(for_good);
#endif
#if defined(__x86_64__)
  inplace_ext_emulate_switch(&w.stack_pointer, scheduler_pointer);
#else
  swapcontext(&w.context, &scheduler_context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(w.fake_stack, &scheduler_stack, &scheduler_size);
#endif
}
void end_thread(Worker& w);
void fiber() {
  Worker& w = me();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  try {
    grid->body(grid->closure);
    end_thread(w);
  } catch (const Stopped&) {
  }
  w.ended = true;
  leave(w, true);
  std::abort();
}
// From the scheduler to a fiber.
void enter(Worker& w) {
  self = &w;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, w.stack, kStack);
#endif
#if defined(__x86_64__)
  inplace_ext_emulate_switch(&scheduler_pointer, w.stack_pointer);
#else
  swapcontext(&scheduler_context, &w.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}
void prepare(Worker& w) {
#if defined(__SANITIZE_ADDRESS__)
  // The frames that the last fiber on this stack has not left: fiber() and leave(), at its top.
  constexpr size_t kTop = 16 << 10;
  __asan_unpoison_memory_region(w.stack + kStack - kTop, kTop);
#endif
#if defined(__x86_64__)
  // Six registers, where to return to, and a return address for fiber() itself, which never returns: with
  // it the stack is aligned as after a call.
  void** top = reinterpret_cast<void**>(w.stack + kStack) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(fiber);
  w.stack_pointer = top;
#else
  getcontext(&w.context);
  w.context.uc_stack.ss_sp = w.stack;
  w.context.uc_stack.ss_size = kStack;
  w.context.uc_link = nullptr;
  makecontext(&w.context, fiber, 0);
#endif
}

template <class F>
void wait(Lock&, int, F ready) {
  Worker& w = me();
  while (!ready()) {
    if (grid->failed.load(std::memory_order_relaxed)) throw Stopped{};
    w.waits = true;
    leave(w, false);
    self = &w;
  }
  w.waits = false;
}
struct Holder {
  int lock = 0;
  explicit Holder(Lock&) {}
};
void wake(Lock&) {}

#endif

#if !defined(__SANITIZE_THREAD__)
struct Unordered {
  Unordered() {} // so that it counts as used
};
#endif

// One thread less that runs. With none left, those that wait do so for ever.
void start_waiting(const std::string& what) {
  if (grid->running.fetch_sub(1, std::memory_order_relaxed) == 1) fail(what);
}

// ---- the warp ---------------------------------------------------------------------------------------------

const char* name_of(Meeting kind) {
  switch (kind) {
    case Meeting::sync_warp:
      return "__syncwarp";
    case Meeting::any:
    case Meeting::all:
    case Meeting::ballot:
      return "vote";
    default:
      return "shuffle";
  }
}

// The lane whose value `lane` asks for; itself where the segment has none.
int source_of(const Operation& o, int lane) {
  const int start = lane / o.width * o.width, within = lane - start;
  switch (o.kind) {
    case Meeting::shuffle:
      return start + (o.argument & (o.width - 1));
    case Meeting::shuffle_up:
      return within - o.argument < 0 ? lane : lane - o.argument;
    case Meeting::shuffle_down:
      return within + o.argument >= o.width ? lane : lane + o.argument;
    default: {
      const int other = lane ^ o.argument;
      return other >= start + o.width ? lane : other;
    }
  }
}

// All lanes of the mask are there: what each of them gets.
void conclude(Warp& w, unsigned mask) {
  unsigned votes = 0;
  for (int l = 0; l < kWarpLanes; ++l) {
    if ((mask >> l & 1) != 0 && w.operation[l].value != 0) votes |= 1u << l;
  }
  for (int l = 0; l < kWarpLanes; ++l) {
    if ((mask >> l & 1) == 0) continue;
    Operation& o = w.operation[l];
    switch (o.kind) {
      case Meeting::sync_warp:
        break;
      case Meeting::any:
        o.result = votes != 0;
        break;
      case Meeting::all:
        o.result = votes == mask;
        break;
      case Meeting::ballot:
        o.result = votes;
        break;
      default: {
        const int source = source_of(o, l);
        if (source < 0 || source >= kWarpLanes || (mask >> source & 1) == 0) {
          fail("shuffle at " + place(o.file, o.line) + ": lane " + std::to_string(l) + " reads lane " +
               std::to_string(source) + ", which takes no part");
        }
        o.result = w.operation[source].value;
      }
    }
  }
  if (w.operation[__builtin_ctz(mask)].kind == Meeting::sync_warp && mask == w.lanes) ++w.epoch;
}

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "%08x", mask);
  return text;
}

} // namespace

uint64_t meet_warp(Meeting kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                   int line) {
  Worker& w = me();
  Warp& warp = *w.warp;
  const std::string what = std::string(name_of(kind)) + " at " + place(file, line);
  // What a mask says beyond the last lane of the block's last warp is not minded.
  if (kind != Meeting::sync_warp && (mask & ~warp.lanes) != 0) {
    fail(what + ": the mask " + hex(mask) + " names lanes that there are not");
  }
  mask &= warp.lanes;
  if ((mask >> w.lane & 1) == 0) fail(what + ": the caller is not in its mask " + hex(mask));
  if (width < 1 || width > kWarpLanes || (width & (width - 1)) != 0) {
    fail(what + ": the width " + std::to_string(width) + " is no power of two up to 32");
  }
  Holder holder(warp);
  if (const unsigned gone = mask & warp.left; gone != 0) {
    fail(what + ": the mask " + hex(mask) + " names lane " + std::to_string(__builtin_ctz(gone)) +
         ", which has left the kernel");
  }
  const unsigned bit = 1u << w.lane;
  Operation& mine = warp.operation[w.lane];
  mine = {kind, mask, argument, width, value, 0, file, line};
  warp.waiting |= bit;
  bool all = (warp.waiting & mask) == mask;
  for (int l = 0; all && l < kWarpLanes; ++l) {
    if ((mask >> l & 1) == 0) continue;
    const Operation& o = warp.operation[l];
    if (o.mask != mask || o.kind != kind) {
      fail(what + ": lane " + std::to_string(l) + " is at " + name_of(o.kind) + " with mask " + hex(o.mask) +
           " at " + place(o.file, o.line) + ", this one at mask " + hex(mask));
    }
  }
  if (all) {
    conclude(warp, mask);
    warp.waiting &= ~mask;
    grid->running.fetch_add(__builtin_popcount(mask) - 1, std::memory_order_relaxed);
    wake(warp);
  } else {
    start_waiting(what + ": waits for lanes that never come");
    wait(warp, holder.lock, [&] { return (warp.waiting & bit) == 0; });
  }
  return mine.result;
}

// ---- the block --------------------------------------------------------------------------------------------

int meet_block(bool value, const char* file, int line) {
  Block& b = grid->block;
  const std::string what = "__syncthreads at " + place(file, line);
  Holder holder(b);
  if (b.left > 0) fail(what + ": " + std::to_string(b.left) + " threads of the block have left the kernel");
  if (b.arrived > 0 && (b.line != line || std::strcmp(b.file, file) != 0))
    fail(what + ": other threads of the block wait at " + place(b.file, b.line));
  b.file = file, b.line = line;
  b.voted += value;
  if (++b.arrived < static_cast<int>(grid->size)) {
    const uint32_t epoch = b.epoch;
    start_waiting(what + ": waits for threads that never come");
    wait(b, holder.lock, [&] { return b.epoch != epoch; });
    return b.outcome;
  }
  b.outcome = b.voted;
  b.voted = b.arrived = 0;
  ++b.epoch;
  grid->running.fetch_add(static_cast<int>(grid->size) - 1, std::memory_order_relaxed);
  wake(b);
  return b.outcome;
}

namespace {

// The kernel has returned. Nobody may wait for this thread.
void end_thread(Worker& w) {
  const Unordered unseen;
  {
    Holder holder(*w.warp);
    w.warp->left |= 1u << w.lane;
    for (int l = 0; l < kWarpLanes; ++l) {
      const Operation& o = w.warp->operation[l];
      if ((w.warp->waiting >> l & 1) == 0 || (o.mask >> w.lane & 1) == 0) continue;
      fail(std::string("left the kernel, and the mask ") + hex(o.mask) + " of lane " + std::to_string(l) +
           " names it: " + name_of(o.kind) + " at " + place(o.file, o.line));
    }
  }
  Holder holder(grid->block);
  Block& b = grid->block;
  ++b.left;
  if (b.arrived > 0) {
    fail("left the kernel, and " + std::to_string(b.arrived) +
         " threads of the block wait for it: " + "__syncthreads at " + place(b.file, b.line));
  }
  grid->running.fetch_sub(1, std::memory_order_relaxed);
}

// ---- accesses ---------------------------------------------------------------------------------------------

#if !defined(INPLACE_EXT_EMULATE_THREADS)

bool same_warp(uint32_t a, uint32_t b) {
  const uint32_t warps = (grid->size + kWarpLanes - 1) / kWarpLanes;
  const auto warp = [&](uint32_t t) {
    return (t - 1) / grid->size * warps + (t - 1) % grid->size / kWarpLanes;
  };
  return warp(a) == warp(b);
}
bool same_block(uint32_t a, uint32_t b) {
  return (a - 1) / grid->size == (b - 1) / grid->size;
}
// How far the thread is from those the stamp stands for.
Spread distance(const Stamp& of, Spread spread, uint32_t thread) {
  Spread d = of.thread == thread             ? kOne
             : same_warp(of.thread, thread)  ? kWarpWide
             : same_block(of.thread, thread) ? kBlockWide
                                             : kGridWide;
  return std::max(d, spread);
}
bool ordered(const Stamp& before, Spread spread, const Stamp& now) {
  if (before.thread == 0) return true;
  switch (distance(before, spread, now.thread)) {
    case kOne:
      return true;
    case kWarpWide:
      return before.warp_epoch < now.warp_epoch || before.block_epoch < now.block_epoch;
    case kBlockWide:
      return before.block_epoch < now.block_epoch;
    default:
      return false;
  }
}
std::string thread_named(uint32_t global) {
  const uint32_t block = (global - 1) / grid->size, t = (global - 1) % grid->size;
  return "thread " + std::to_string(t) + " of block " + std::to_string(block);
}

// Remembers the access; false if it conflicts with one before, of which `other` is told.
bool check_order(Cell& c, const Stamp& now, Access access, Stamp& other) {
  const bool writes = access != Access::read;
  const bool together = access == c.last && (access == Access::atomic || access == Access::same);
  if (!together && !ordered(c.writer, kOne, now)) {
    other = c.writer;
    return false;
  }
  if (!writes) {
    if (ordered(c.reader, c.readers, now)) {
      c.reader = now, c.readers = kOne;
    } else {
      c.readers = distance(c.reader, c.readers, now.thread);
      c.reader = now;
    }
    return true;
  }
  if (!ordered(c.reader, c.readers, now)) {
    other = c.reader;
    return false;
  }
  c.writer = now;
  c.last = access;
  return true;
}
#endif

const char* verb(Access access) {
  return access == Access::read ? "reads " : access == Access::atomic ? "updates " : "writes ";
}

std::string where(uintptr_t p) {
  const Extent* nearest = nullptr;
  uintptr_t best = ~uintptr_t{0};
  for (const Extent& e : memory.extents) {
    const uintptr_t d = p < e.begin ? e.begin - p : p >= e.end ? p - e.end + 1 : 0;
    if (d < best) best = d, nearest = &e;
  }
  if (nearest == nullptr) return "where there is no tensor";
  const std::string size = " of a tensor of " + std::to_string(nearest->end - nearest->begin) + " bytes";
  if (best == 0) return "at byte " + std::to_string(p - nearest->begin) + size;
  if (p < nearest->begin) return std::to_string(best) + " bytes before the start" + size;
  return std::to_string(best - 1) + " bytes beyond the end" + size;
}

void count(Worker& w, uintptr_t p, size_t bytes, Access access, const void* site) {
  uint32_t turn = 0;
  size_t i = 0;
  while (i < w.turns.size() && w.turns[i].first != site) ++i;
  if (i == w.turns.size()) {
    w.turns.emplace_back(site, 0);
  } else {
    turn = ++w.turns[i].second;
  }
  const bool writes = access != Access::read;
  (writes ? w.bytes_written : w.bytes_read) += bytes;
  if (access == Access::atomic) w.bytes_read += bytes;
  for (uintptr_t s = p / kSector; s <= (p + bytes - 1) / kSector; ++s)
    w.warp->touched.push_back({site, turn, s * 2 + writes});
  int& widest = writes ? grid->counts.widest_write : grid->counts.widest_read;
  widest = std::max(widest, static_cast<int>(bytes));
}
void add_counts() {
  for (Warp& w : grid->warps) {
    auto& t = w.touched;
    std::sort(t.begin(), t.end());
    t.erase(std::unique(t.begin(), t.end()), t.end());
    for (size_t i = 0; i < t.size(); ++i) {
      ++(t[i].sector % 2 != 0 ? grid->counts.sectors_written : grid->counts.sectors_read);
      grid->counts.instructions += i == 0 || t[i].site != t[i - 1].site || t[i].turn != t[i - 1].turn;
    }
    t.clear();
  }
  for (Worker& w : grid->workers) {
    grid->counts.bytes_read += w.bytes_read;
    grid->counts.bytes_written += w.bytes_written;
  }
}

} // namespace

void fail_assertion(const char* message) {
  fail(std::string("device-side assertion failed: ") + message);
}

__attribute__((noinline)) void global_access(const void* pointer, size_t bytes, Access access,
                                             const void* value) {
  const void* const site = __builtin_return_address(0);
  Worker& w = me();
  const auto p = reinterpret_cast<uintptr_t>(pointer);
  const auto what = [&] {
    return std::string(verb(access)) + std::to_string(bytes) + " bytes of global memory ";
  };
  if (p % bytes != 0) fail(what() + "misaligned, " + where(p));
  const uint8_t needed = access == Access::read ? 1 : 2;
  Page* const page = memory.find(p);
  if (page == nullptr) fail(what() + "out of bounds, " + where(p));
  for (size_t i = 0; i < bytes; ++i) {
    const uint8_t allowed = page->allowed[p % kPage + i];
    if (allowed < needed) {
      fail(what() + (allowed == 0 ? "out of bounds, " : "that is only to be read, ") + where(p + i));
    }
  }
#if !defined(INPLACE_EXT_EMULATE_THREADS)
  const auto item = static_cast<uintptr_t>(page->item);
  if (page->launch != grid->number) {
    page->cells.assign(kPage / item, Cell{});
    page->launch = grid->number;
  }
  const Stamp now = w.stamp(grid->block.epoch);
  for (uintptr_t c = p % kPage / item; c <= (p % kPage + bytes - 1) / item; ++c) {
    Stamp other = page->cells[c].writer;
    const bool differs = access == Access::same && page->cells[c].last == access &&
                         !ordered(other, kOne, now) && std::memcmp(pointer, value, bytes) != 0;
    if (!check_order(page->cells[c], now, access, other) || differs) {
      fail(what() + "that " + thread_named(other.thread) + " touches, with no barrier in between, " +
           where(p));
    }
  }
  if (counting) count(w, p, bytes, access, site);
#else
  static_cast<void>(w), static_cast<void>(site), static_cast<void>(value);
#endif
}

// ---- shared memory ----------------------------------------------------------------------------------------

SharedArray static_shared_bytes(const void* site, const char* name, size_t bytes, size_t alignment) {
  const Unordered unseen;
  Block& b = grid->block;
  const Holder holder(b);
  auto found = b.arrays.find(site);
  if (found == b.arrays.end()) {
    const size_t begin = (b.used + alignment - 1) / alignment * alignment;
    if (begin + bytes > kMaxStaticShared + b.dynamic)
      fail(std::string("shared array ") + name + ": more static shared memory than 48 KiB");
    b.use(begin + bytes);
    found = b.arrays.emplace(site, Array{name, begin, bytes}).first;
  }
  return {b.storage.get() + found->second.begin, bytes, name};
}
SharedArray dynamic_shared_bytes(const char* name) {
  return {grid->block.storage.get(), grid->block.dynamic, name};
}
void shared_access(const SharedArray& array, int64_t offset, size_t bytes, Access access) {
  const auto what = [&] {
    return std::string(verb(access)) + std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
           " of the shared array " + array.name + " of " + std::to_string(array.bytes) + " bytes";
  };
  if (offset < 0 || static_cast<size_t>(offset) + bytes > array.bytes) fail(what() + ", out of bounds");
  if (static_cast<size_t>(offset) % bytes != 0) fail(what() + ", misaligned");
#if !defined(INPLACE_EXT_EMULATE_THREADS)
  Block& b = grid->block;
  const size_t at = static_cast<size_t>(array.data - b.storage.get() + offset);
  const Stamp now = me().stamp(b.epoch);
  for (size_t c = at / 4; c <= (at + bytes - 1) / 4; ++c) {
    Cell& cell = b.cells[c];
    if (access == Access::read && cell.writer.thread == 0) fail(what() + ", which nobody has written");
    Stamp other;
    if (!check_order(cell, now, access, other))
      fail(what() + ", which " + thread_named(other.thread) + " touches, with no barrier in between");
  }
#endif
}

// ---- launches ---------------------------------------------------------------------------------------------

namespace {

std::string name_of_kernel(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) return "kernel";
  int status = 0;
  char* const text = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : info.dli_sname;
  std::free(text);
  // Neither the type of the result nor the parameters.
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) {
      name.resize(i);
      break;
    }
  }
  if (name.starts_with("void ")) name.erase(0, 5);
  return name;
}

void begin_block(Grid& g, const uint3& block, uint32_t index) {
  Block& b = g.block;
  b.arrived = b.left = b.voted = 0;
  b.epoch = 0;
  b.arrays.clear();
  b.dynamic = g.dynamic;
  b.cells.clear();
  b.use((g.dynamic + 15) / 16 * 16);
  g.running.store(static_cast<int>(g.size), std::memory_order_relaxed);
  for (Warp& w : g.warps) {
    w.waiting = w.left = 0;
    w.epoch = 0;
  }
  for (Worker& w : g.workers) {
    w.block = block;
    w.global = index * g.size + w.number + 1;
    w.ended = w.waits = false;
    w.turns.clear();
    w.bytes_read = w.bytes_written = 0;
  }
}

#if defined(INPLACE_EXT_EMULATE_THREADS)

void run_block(Grid& g) {
  std::vector<std::thread> threads;
  threads.reserve(g.size);
  for (Worker& w : g.workers) {
    threads.emplace_back([&g, &w] {
      self = &w;
      try {
        g.body(g.closure);
        end_thread(w);
      } catch (const Stopped&) {
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

#else

void run_block(Grid& g) {
  std::vector<uint32_t> turn(g.size);
  for (uint32_t i = 0; i < g.size; ++i) turn[i] = order == Order::backward ? g.size - 1 - i : i;
  std::minstd_rand random(static_cast<unsigned>(g.number));
  if (order == Order::shuffled) std::shuffle(turn.begin(), turn.end(), random);
  for (Worker& w : g.workers) prepare(w);
  Thread* const before = self;
  for (uint32_t left = g.size; left > 0;) {
    for (const uint32_t i : turn) {
      Worker& w = g.workers[i];
      if (w.ended) continue;
      enter(w);
      left -= w.ended;
    }
  }
  self = before;
}

#endif

void check_launch(const Grid& g, size_t parameter_bytes) {
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error("emulated device: " + g.kernel + ": a launch with " + what);
  };
  if (g.size == 0 || g.size > kMaxThreads || g.threads.z > 64)
    refuse("blocks of " + at(g.threads) + " threads");
  const auto blocks = static_cast<uint64_t>(g.blocks.x) * g.blocks.y * g.blocks.z;
  if (blocks == 0 || g.blocks.x > 0x7fffffffu || g.blocks.y > 65535 || g.blocks.z > 65535)
    refuse("a grid of " + at(g.blocks) + " blocks");
  if (g.dynamic > kMaxShared) refuse(std::to_string(g.dynamic) + " bytes of shared memory");
  if (parameter_bytes > kMaxParameters) refuse(std::to_string(parameter_bytes) + " bytes of parameters");
}

} // namespace

void run(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes, size_t parameter_bytes,
         void (*body)(const void*), const void* closure) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Grid g;
  g.kernel = name_of_kernel(kernel);
  g.blocks = blocks, g.threads = threads;
  g.size = threads.x * threads.y * threads.z;
  g.body = body, g.closure = closure;
  g.dynamic = shared_bytes;
  check_launch(g, parameter_bytes);
  g.number = ++launches_so_far;
  g.counts.kernel = g.kernel, g.counts.grid = blocks, g.counts.block = threads;
  g.warps = std::vector<Warp>((g.size + kWarpLanes - 1) / kWarpLanes);
  g.workers = std::vector<Worker>(g.size);
#if !defined(INPLACE_EXT_EMULATE_THREADS)
  if (stacks == nullptr) {
    void* const p = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("emulated device: no memory for stacks");
    stacks = static_cast<char*>(p);
  }
#endif
  for (uint32_t t = 0; t < g.size; ++t) {
    Worker& w = g.workers[t];
    w.thread = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
    w.threads = threads, w.blocks = blocks;
    w.number = t;
    w.warp = &g.warps[t / kWarpLanes];
    w.lane = static_cast<int>(t % kWarpLanes);
    w.warp->lanes |= 1u << w.lane;
#if !defined(INPLACE_EXT_EMULATE_THREADS)
    w.stack = stacks + kStack * t;
#endif
  }
  grid = &g;
  uint32_t index = 0;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        begin_block(g, {x, y, z}, index++);
        run_block(g);
        add_counts();
        if (g.failed.load()) {
          grid = nullptr;
          throw std::runtime_error(g.failure);
        }
      }
    }
  }
  grid = nullptr;
  if (counting) launches.push_back(std::move(g.counts));
}

// ---- control ----------------------------------------------------------------------------------------------

void allow(const void* pointer, size_t bytes, int item, bool writable) {
  const auto begin = reinterpret_cast<uintptr_t>(pointer);
  if (!memory.extents.empty() && memory.extents.back().end == begin) {
    memory.extents.back().end += bytes;
  } else {
    memory.extents.push_back({begin, begin + bytes});
  }
  for (uintptr_t p = begin; p < begin + bytes;) {
    auto& page = memory.pages[p / kPage];
    if (page == nullptr) page = std::make_unique<Page>();
    page->item = std::min(page->item, item);
    page->launch = 0;
    for (; p < begin + bytes; ++p) {
      uint8_t& allowed = page->allowed[p % kPage];
      allowed = std::max<uint8_t>(allowed, writable ? 2 : 1);
      if ((p + 1) % kPage == 0) {
        ++p;
        break;
      }
    }
  }
}
void clear_memory() {
  memory.pages.clear();
  memory.extents.clear();
  ++memory.generation;
}
void set_order(Order o) {
  order = o;
}
void set_counting(bool on) {
  counting = on;
}
std::vector<Launch> take_launches() {
  return std::exchange(launches, {});
}

} // namespace emulate
