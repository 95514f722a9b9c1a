// The executor: walks an index space in pieces on which every tensor is a contiguous array of the type that
// is computed in, and hands each piece to the plain loop (one operation) or to the pipeline (a chain).
//
// A tensor that is not such an array on a piece is staged: gathered into a small buffer that stays in L1, and
// scattered from it if the program changes it. So strides, broadcasts and dtypes are known here and nowhere
// else, and each element is still read once and written once.
#include "draws.h"
#include "kernels.h"
#include "turn.h"

namespace inplace_ext {

namespace {
Tables& mutable_tables() {
  static Tables* const instance = [] {
    static Tables t{};
    add_loops<float>(t.loop);
    add_loops<double>(t.loop);
    add_loops<half_t>(t.loop);
    add_loops<bfloat16_t>(t.loop);
    add_loops<uint8_t>(t.loop);
    add_loops<int8_t>(t.loop);
    add_loops<int16_t>(t.loop);
    add_loops<int32_t>(t.loop);
    add_loops<int64_t>(t.loop);
    add_loops<bool_t>(t.loop);
    add_stages<float>(t.stages[static_cast<int>(DType::f32)]);
    add_stages<double>(t.stages[static_cast<int>(DType::f64)]);
    add_stages<uint8_t>(t.stages[static_cast<int>(DType::u8)]);
    add_stages<int8_t>(t.stages[static_cast<int>(DType::i8)]);
    add_stages<int16_t>(t.stages[static_cast<int>(DType::i16)]);
    add_stages<int32_t>(t.stages[static_cast<int>(DType::i32)]);
    add_stages<int64_t>(t.stages[static_cast<int>(DType::i64)]);
    return &t;
  }();
  return *instance;
}
void set_operation(int code, const OpKernels& kernels) {
  Tables& t = mutable_tables();
  operations[code] = kernels.info;
  std::memcpy(t.loop[code], kernels.loop, sizeof(kernels.loop));
  for (int d = 0; d < kDTypes; ++d)
    std::memcpy(t.stages[d].op[code], kernels.stage[d], sizeof(kernels.stage[d]));
}
} // namespace

const Tables& kernel_tables() {
  return mutable_tables();
}

namespace {

// Rows shorter than this are not worth a call each: pieces then span rows, through staging where needed. A
// row that needs staging anyway, or a number of its own, must be longer to be worth a piece of its own.
constexpr int64_t kShortStagedRow = 64, kShortNumberedRow = 48, kShortCopiedRow = 2048;
// Rows of this many bytes ask for memory ahead while they are filled.
constexpr int64_t kLongFilledRow = 2048;
// Where permutations put the numbers of rows into a buffer, that is worth it for rows shorter than this; than
// kShortStagedRow for rows of whole vectors of a tensor that the second-level cache holds.
constexpr int64_t kMaxRepeated = 128, kCachedBytes = 1 << 20;
// The longest row that is repeated in a buffer.
constexpr int64_t kMaxPeriod = 128;
// The block in which a transposed tensor is turned: kBlockRows elements fill at least half a cache line.
constexpr int64_t kBlockRows = 16, kBlockColumns = 64;
// Numbers that are drawn together.
constexpr int64_t kDrawn = 512;
constexpr int kMaxItem = 8;
// How far ahead elements with gaps between them are fetched, in bytes.
constexpr int64_t kNearAhead = 2048;
// And memory that is only written, since a store that misses the caches asks for its line and nothing does
// before. (Chains ask for all of theirs with each tile.)
constexpr int64_t kPieceAhead = 4096;
// The bytes of a row from which on a chain does so, where what follows it is not the next one.
constexpr int64_t kStreamedRow = 1 << 14;
// Memory that a piece of elements with gaps between them spans, unless it holds fewer than so many.
constexpr int64_t kStridedBytes = 4096, kMinStrided = 128;

int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// A block of elements in memory: `rows` rows of `columns`, with their strides in bytes.
struct Patch {
  char* p;
  int64_t columns, column_stride;
  int64_t rows, row_stride;
  // Where a row of the space ends in memory, and how far from there the next one begins.
  const char* end = nullptr;
  int64_t gap = 0;
};

#if defined(INPLACE_EXT_AVX512)
// Elements at every Step-th place: permutations gather a vector of them from Step vectors of memory and
// scatter it to them. What lies between the elements is not written, and what lies behind the last one not
// read.
template <class T, int Step>
struct NearPlaces {
  static constexpr int kLanes = Vec<T>::N;
  using raw = typename Vec<T>::raw;
  using lanes = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;
  // The lanes of the elements that lie in vector k of memory, of the elements and there.
  static constexpr lanes of_elements(int k) {
    int mask = 0;
    for (int i = 0; i < kLanes; ++i) mask |= (i * Step / kLanes == k) << i;
    return static_cast<lanes>(mask);
  }
  static constexpr lanes in_memory(int k) {
    int mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= ((k * kLanes + lane) % Step == 0) << lane;
    return static_cast<lanes>(mask);
  }
  // The same of the first n elements.
  static IE_INLINE lanes in_memory(int k, int n) {
    const int end = (n - 1) * Step + 1 - k * kLanes;
    return in_memory(k) & static_cast<lanes>(end <= 0 ? 0 : end >= kLanes ? -1 : (1 << end) - 1);
  }
  static IE_INLINE __m512i load(lanes m, const T* p) {
    if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_epi32(m, p);
    if constexpr (sizeof(T) == 8) return _mm512_maskz_loadu_epi64(m, p);
  }
  static IE_INLINE void store(T* p, lanes m, __m512i v) {
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(p, m, v);
    if constexpr (sizeof(T) == 8) _mm512_mask_storeu_epi64(p, m, v);
  }
  static IE_INLINE __m512i permute(__m512i old, lanes m, raw index, __m512i v) {
    if constexpr (sizeof(T) == 4) return _mm512_mask_permutexvar_epi32(old, m, (__m512i)index, v);
    if constexpr (sizeof(T) == 8) return _mm512_mask_permutexvar_epi64(old, m, (__m512i)index, v);
  }
  // What comes soon is fetched meanwhile, here or in the next row: while a piece is computed and put back,
  // nothing else would ask for it.
  static __attribute__((noinline)) void gather(T* out, const T* p, int64_t n, const char* end, int64_t gap) {
    raw index;
    for (int i = 0; i < kLanes; ++i) index[i] = i * Step % kLanes;
    for (; n > kLanes; n -= kLanes, p += Step * kLanes, out += kLanes) {
      const char* next = reinterpret_cast<const char*>(p) + kNearAhead;
      if (next >= end) next += gap;
      __m512i v = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int k = 0; k < Step; ++k) {
        __builtin_prefetch(next + k * kVectorBytes);
        v = permute(v, of_elements(k), index, _mm512_loadu_si512(p + k * kLanes));
      }
      _mm512_storeu_si512(out, v);
    }
    const int rest = static_cast<int>(n);
    __m512i v = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int k = 0; k < Step; ++k) {
      v = permute(v, of_elements(k), index, load(in_memory(k, rest), p + k * kLanes));
    }
    if (rest == kLanes) {
      _mm512_storeu_si512(out, v);
    } else {
      store_bytes(out, v, rest * static_cast<int>(sizeof(T)));
    }
  }
  static __attribute__((noinline)) void scatter(T* p, const T* in, int64_t n) {
    raw index[Step];
#pragma GCC unroll 8
    for (int k = 0; k < Step; ++k) {
      for (int lane = 0; lane < kLanes; ++lane) index[k][lane] = (k * kLanes + lane) / Step;
    }
    for (; n >= kLanes; n -= kLanes, p += Step * kLanes, in += kLanes) {
      const __m512i v = _mm512_loadu_si512(in);
      // Stores that miss the caches ask for their lines too late: ahead of them they take two thirds of the
      // time.
      for (int k = 0; k < Step; ++k)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + kNearAhead + k * kVectorBytes, 1);
#pragma GCC unroll 8
      for (int k = 0; k < Step; ++k) store(p + k * kLanes, in_memory(k), permute(v, -1, index[k], v));
    }
    if (n == 0) return;
    const int rest = static_cast<int>(n);
    const __m512i v = load_bytes<__m512i>(in, rest * static_cast<int>(sizeof(T)));
#pragma GCC unroll 8
    for (int k = 0; k < Step; ++k) store(p + k * kLanes, in_memory(k, rest), permute(v, -1, index[k], v));
  }
};
template <class T>
constexpr bool kHasNearPlaces = sizeof(T) >= 4;
// Calls f with the NearPlaces of a stride in bytes; false where it is none of theirs.
template <class T, class F>
IE_INLINE bool near_places(int64_t stride, F f) {
  if constexpr (kHasNearPlaces<T>) {
    switch (stride) {
      case 2 * sizeof(T):
        return f(NearPlaces<T, 2>{}), true;
      case 3 * sizeof(T):
        return f(NearPlaces<T, 3>{}), true;
      case 4 * sizeof(T):
        return f(NearPlaces<T, 4>{}), true;
      case 5 * sizeof(T):
        return f(NearPlaces<T, 5>{}), true;
      case 6 * sizeof(T):
        return f(NearPlaces<T, 6>{}), true;
      case 7 * sizeof(T):
        return f(NearPlaces<T, 7>{}), true;
      case 8 * sizeof(T):
        return f(NearPlaces<T, 8>{}), true;
    }
  }
  return false;
}
// Rows that are shorter than a vector, from memory side by side and back: a load and a store for each. What
// is stored beyond a row the next one writes over; back in memory nothing is.
inline bool gather_short_rows(char* out, const char* p, int64_t bytes, int64_t rows, int64_t step) {
  if (bytes >= kVectorBytes) return false;
  const __mmask64 mask = (__mmask64(1) << bytes) - 1;
  for (int64_t left = rows * bytes; left > 0; left -= bytes, p += step, out += bytes) {
    const __m512i v = _mm512_maskz_loadu_epi8(mask, p);
    if (left >= kVectorBytes) {
      _mm512_storeu_si512(out, v);
    } else {
      store_bytes(out, v, static_cast<int>(bytes));
    }
  }
  return true;
}
inline bool scatter_short_rows(char* p, const char* in, int64_t bytes, int64_t rows, int64_t step) {
  if (bytes >= kVectorBytes) return false;
  const __mmask64 mask = (__mmask64(1) << bytes) - 1;
  for (; rows > 0; --rows, p += step, in += bytes) {
    _mm512_mask_storeu_epi8(p, mask, _mm512_maskz_loadu_epi8(mask, in));
  }
  return true;
}
#else
template <class T>
constexpr bool kHasNearPlaces = false;
template <class T, class F>
IE_INLINE bool near_places(int64_t, F) {
  return false;
}
inline bool gather_short_rows(char*, const char*, int64_t, int64_t, int64_t) {
  return false;
}
inline bool scatter_short_rows(char*, const char*, int64_t, int64_t, int64_t) {
  return false;
}
#endif

// Numbers that are each taken `columns` times in turn: an operand with one number a row, as rows see it that
// are shorter than a piece. A row at a time this is a handful of stores and a loop each; a permutation of a
// register of numbers serves every length of the rows alike, a whole vector at a time from any place in a
// row. The controls that it takes hold for every kRows rows, and are made once.
template <class T>
struct Repeat {
  using V = Vec<T>;
  using raw = typename V::raw;
  // The numbers that one permutation reaches.
#if defined(INPLACE_EXT_AVX512)
  static constexpr int kRows = sizeof(T) == 1 ? 16 : V::N;
#elif defined(INPLACE_EXT_AVX2)
  static constexpr int kRows = sizeof(T) >= 4 ? V::N : 16 / sizeof(T);
#else
  static constexpr int kRows = 1; // no permutation by a register
#endif
  // The shortest rows of which they fill a vector wherever it begins.
  static constexpr int kMinColumns = kRows > 1 ? (V::N - 1 + kRows - 2) / (kRows - 1) : kMaxRepeated;

  // What makes a lane take number i.
  static T control(int i) {
#if defined(INPLACE_EXT_AVX512)
    return static_cast<T>(i);
#else
    if constexpr (sizeof(T) == 2) return static_cast<T>(0x100 + i * 0x202);                     // bytes
    if constexpr (sizeof(T) == 8) return static_cast<T>((uint64_t(2 * i + 1) << 32) | (2 * i)); // words
    return static_cast<T>(i);
#endif
  }
  // The controls of the first `rows` rows.
  static void prepare(T* controls, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      const V v(control(static_cast<int>(r)));
      for (int64_t c = 0; c < columns; c += V::N) v.store(controls + r * columns + c);
    }
  }
  static IE_INLINE raw permute(raw v, raw control) {
#if defined(INPLACE_EXT_AVX512)
    if constexpr (sizeof(T) == 1) return (raw)_mm512_shuffle_epi8((__m512i)v, (__m512i)control);
    if constexpr (sizeof(T) == 2) return (raw)_mm512_permutexvar_epi16((__m512i)control, (__m512i)v);
    if constexpr (sizeof(T) == 4) return (raw)_mm512_permutexvar_epi32((__m512i)control, (__m512i)v);
    if constexpr (sizeof(T) == 8) return (raw)_mm512_permutexvar_epi64((__m512i)control, (__m512i)v);
#elif defined(INPLACE_EXT_AVX2)
    if constexpr (sizeof(T) <= 2) return (raw)_mm256_shuffle_epi8((__m256i)v, (__m256i)control);
    return (raw)_mm256_permutevar8x32_epi32((__m256i)v, (__m256i)control);
#else
    (void)v;
    return control;
#endif
  }
  // kRows numbers, or the fewer that there are.
  static IE_INLINE raw load(const T* p, int64_t rows) {
    constexpr int kBytes = kRows * sizeof(T);
    if (kBytes == kVectorBytes && rows >= kRows) return V::load(p).v;
    if constexpr (kBytes == kVectorBytes) return load_bytes<raw>(p, static_cast<int>(rows * sizeof(T)));
    // A part of a register, the same in each: the permutation does not cross them.
    T part[kRows] = {};
    std::memcpy(part, p, min(rows, kRows) * sizeof(T));
    raw v;
    for (int i = 0; i < V::N; i += kRows) std::memcpy(reinterpret_cast<T*>(&v) + i, part, kBytes);
    return v;
  }
  // n elements from the one in column `at` of the first row on; `rows` numbers lie at src. What lies at
  // `ahead` comes into the cache meanwhile, a line with each vector: all at once would wait for one another.
  static void run(T* out, const T* src, int64_t rows, int64_t columns, int64_t at, int64_t n,
                  const T* controls, const char* ahead) {
    const int64_t block = kRows * columns;
    for (;;) {
      const raw v = load(src, rows);
      const int64_t whole = min(n, block - at) & -static_cast<int64_t>(V::N);
#pragma GCC unroll 4
      for (int64_t i = 0; i < whole; i += V::N) {
        __builtin_prefetch(ahead + i * sizeof(T));
        V(permute(v, V::load(controls + at + i).v)).store(out + i);
      }
      ahead += whole * sizeof(T);
      n -= whole, at += whole, out += whole;
      if (n < V::N && at + n <= block) {
        if (n > 0) store_bytes(out, permute(v, V::load(controls + at).v), static_cast<int>(n * sizeof(T)));
        return;
      }
      const int64_t done = at == block ? kRows : static_cast<uint32_t>(at) / static_cast<uint32_t>(columns);
      src += done, rows -= done, at -= done * columns;
    }
  }
};

template <class T>
void gather(char* dst, const Patch& from) {
  T* out = reinterpret_cast<T*>(dst);
  constexpr int64_t kItem = sizeof(T);
  if (from.column_stride == kItem && from.rows > 1 &&
      gather_short_rows(dst, from.p, from.columns * kItem, from.rows, from.row_stride))
    return;
  for (int64_t r = 0; r < from.rows; ++r) {
    const char* p = from.p + r * from.row_stride;
    if (from.column_stride == 2 * static_cast<int64_t>(sizeof(T)) && !kHasNearPlaces<T>) {
      // Every other element: the one stride that is common and that shuffles serve.
      const T* in = reinterpret_cast<const T*>(p);
      for (int64_t c = 0; c < from.columns; ++c) out[c] = in[2 * c];
      out += from.columns;
      continue;
    }
    if (from.column_stride == static_cast<int64_t>(sizeof(T))) {
      copy_run(reinterpret_cast<char*>(out), p, from.columns * sizeof(T));
    } else if (from.column_stride == 0) {
      T value;
      std::memcpy(&value, p, sizeof(T));
      // In whole vectors as long as the rows to come write over what is too much.
      int64_t c = 0;
      const Vec<T> v(value);
      const bool room = (from.rows - r - 1) * from.columns >= Vec<T>::N;
      for (; room && c < from.columns; c += Vec<T>::N) v.store(out + c);
      for (; c < from.columns; ++c) out[c] = value;
    } else if (!near_places<T>(from.column_stride, [&](auto near) {
                 near.gather(out, reinterpret_cast<const T*>(p), from.columns, from.end, from.gap);
               })) {
#pragma GCC unroll 4
      for (int64_t c = 0; c < from.columns; ++c, p += from.column_stride) std::memcpy(out + c, p, sizeof(T));
    }
    out += from.columns;
  }
}
// in[c] to p[2 c], as many whole vectors as there are, without touching what lies between; how many elements
// that were. Only AVX-512 has stores that choose their elements at the speed of others.
template <class T>
int64_t scatter_every_other(T* p, const T* in, int64_t n) {
#if defined(INPLACE_EXT_AVX512)
  if constexpr (sizeof(T) == 2) {
    constexpr int kLanes = Vec<T>::N;
    using raw = typename Vec<T>::raw;
    using index = typename raw_vector<int16_t, kLanes>::type;
    index low, high;
    for (int i = 0; i < kLanes; ++i) low[i] = i / 2, high[i] = kLanes / 2 + i / 2;
    const auto store = [](T* to, raw v) __attribute__((always_inline)) {
      _mm512_mask_storeu_epi16(to, 0x55555555, (__m512i)v);
    };
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      const raw v = Vec<T>::load(in + c).v;
      store(p + 2 * c, __builtin_shuffle(v, low));
      store(p + 2 * c + kLanes, __builtin_shuffle(v, high));
    }
    return c;
  }
#endif
  (void)p, (void)in, (void)n;
  return 0;
}
template <class T>
void scatter(const Patch& to, const char* src) {
  const T* in = reinterpret_cast<const T*>(src);
  constexpr int64_t kItem = sizeof(T);
  if (to.column_stride == kItem && to.rows > 1 &&
      scatter_short_rows(to.p, src, to.columns * kItem, to.rows, to.row_stride))
    return;
  for (int64_t r = 0; r < to.rows; ++r) {
    char* p = to.p + r * to.row_stride;
    if (to.column_stride == 2 * static_cast<int64_t>(sizeof(T)) && !kHasNearPlaces<T>) {
      T* const out = reinterpret_cast<T*>(p);
      for (int64_t c = scatter_every_other(out, in, to.columns); c < to.columns; ++c) out[2 * c] = in[c];
      in += to.columns;
      continue;
    }
    if (to.column_stride == static_cast<int64_t>(sizeof(T))) {
      copy_run(p, reinterpret_cast<const char*>(in), to.columns * sizeof(T));
      in += to.columns;
      continue;
    }
    if (!near_places<T>(to.column_stride,
                        [&](auto near) { near.scatter(reinterpret_cast<T*>(p), in, to.columns); })) {
#pragma GCC unroll 4
      for (int64_t c = 0; c < to.columns; ++c, p += to.column_stride) std::memcpy(p, in + c, sizeof(T));
    }
    in += to.columns;
  }
}
// A patch into an array and back.
void gather(int item, char* dst, const Patch& from) {
  if (from.column_stride == item && from.rows == 1) {
    std::memcpy(dst, from.p, from.columns * item);
  } else if (item == 1) {
    gather<uint8_t>(dst, from);
  } else if (item == 2) {
    gather<uint16_t>(dst, from);
  } else if (item == 4) {
    gather<uint32_t>(dst, from);
  } else {
    gather<uint64_t>(dst, from);
  }
}
void scatter(int item, const Patch& to, const char* src) {
  if (to.column_stride == item && to.rows == 1) {
    std::memcpy(to.p, src, to.columns * item);
  } else if (item == 1) {
    scatter<uint8_t>(to, src);
  } else if (item == 2) {
    scatter<uint16_t>(to, src);
  } else if (item == 4) {
    scatter<uint32_t>(to, src);
  } else {
    scatter<uint64_t>(to, src);
  }
}

// For repeated numbers the same, by the size of an element.
template <class F>
IE_INLINE auto for_item(int item, const F& f) {
  switch (item) {
    case 1:
      return f(Repeat<uint8_t>{});
    case 2:
      return f(Repeat<uint16_t>{});
    case 4:
      return f(Repeat<uint32_t>{});
    default:
      return f(Repeat<uint64_t>{});
  }
}

// How a tensor's elements on a piece reach the arithmetic: where they lie, as one number, from a buffer that
// repeats a short row, or through a buffer that is filled for the piece.
enum class Kind : uint8_t { direct, splat, periodic, staged };

// One tensor of the program as the executor sees it.
struct Slot {
  const TensorArg* arg;
  DType want;    // the dtype that the loop or the first stage reads
  int item;      // bytes of an element in memory
  int want_item; // and of one of `want`
  bool used, read;
  bool reread;    // after the program has written it
  bool linear;    // contiguous over the whole space
  bool constant;  // one element for the whole space
  bool converted; // dtype != want
  bool repeated;  // one number for each row, repeated by a permutation
  // Of a splat in a chain: whether operations take it as a number, and whether a load takes it as an array.
  bool as_number, as_array;
  int64_t period; // where the inner dims repeat over all the others: their number of elements; else 0
  Kind kind;
};

class Executor {
 public:
  Executor(const Program& program, const Space& space) : program_(program), space_(space) {
    single_ = program.stages == 3 && program.stage[0].code == kLoad &&
              program.stage[0].b_kind == Operand::tensor && program.stage[1].code < kOpCodes &&
              program.stage[2].code == kStore && program.stage[0].b == program.stage[2].b;
    // {load b; store a} with nothing between is conversion and layout only, with no compute type in the
    // middle.
    move_ = program.stages == 2 && program.stage[0].code == kLoad && program.stage[1].code == kStore;
    link();
  }

  Path run(int64_t begin, int64_t end) {
    if (begin >= end) return path_;
    if (fills() && space_.dims > 0 && !blocked_) {
      const Slot& x = slot_[program_.stage[1].b];
      const bool apart = x.arg->stride[0] > 8 * x.item || (x.arg->stride[0] > x.item && space_.size[0] < 16);
      if (apart && !x.linear) {
        with_word(x.want, [&](auto word) { fill_apart<decltype(word)>(x, begin, end); });
        return path_;
      }
    }
    repeat_rows();
    repeat_numbers(end - begin);
    if (!blocked_) {
      pieces(begin, end);
      return path_;
    }
    // Whole rows in blocks, what is left of a row before and after them by itself.
    const int64_t row = space_.size[0], first = (begin + row - 1) / row, last = end / row;
    if (first >= last) {
      pieces(begin, end);
    } else {
      pieces(begin, first * row);
      blocks(first, last);
      pieces(last * row, end);
    }
    return path_;
  }

 private:
  // Decides for each tensor what its consumers want to read, and how the space is cut.
  void link() {
    const Program& p = program_;
    for (int t = 0; t < space_.tensors; ++t) {
      const TensorArg& a = space_.tensor[t];
      slot_[t] = {};
      slot_[t].arg = &a;
      slot_[t].want = a.dtype;
      slot_[t].item = item_size(a.dtype);
      slot_[t].linear = a.drawn == nullptr && is_linear(a);
      slot_[t].constant = a.drawn == nullptr && is_constant(a);
    }
    const StageTable& stages = kernel_tables().stages[static_cast<int>(p.compute)];
    bool as_operand[kMaxTensors] = {};
    bool written[kMaxTensors] = {};
    for (int i = 0; i < p.stages; ++i) {
      const Stage& s = p.stage[i];
      if (s.b_kind == Operand::tensor) {
        slot_[s.b].used = true;
        if (s.code < kOpCodes) as_operand[s.b] = true;
        if (s.code == kStore) {
          written[s.b] = true;
        } else {
          (written[s.b] ? slot_[s.b].reread : slot_[s.b].read) = true;
        }
      }
      if (s.c_kind == Operand::tensor) {
        slot_[s.c].used = as_operand[s.c] = true;
        (written[s.c] ? slot_[s.c].reread : slot_[s.c].read) = true;
      }
    }
    if (single_ && !choose_loop()) single_ = false; // no plain loop of this type: a chain of one
    if (!single_ && !move_) {
      for (int t = 0; t < space_.tensors; ++t) {
        const int d = static_cast<int>(slot_[t].want);
        const bool direct =
            !as_operand[t] && stages.load[d] != nullptr && (!written[t] || stages.store[d] != nullptr);
        if (!direct) slot_[t].want = p.compute;
      }
    }
    cut();
    path_ = move_      ? Path::move
            : !single_ ? Path::program
            : blocked_ ? Path::blocked
            : plain_   ? Path::loop
                       : Path::staged;
    pipeline_ = !single_ && !move_;
    if (pipeline_) compile(stages);
  }

  // Whether a number is written everywhere.
  bool fills() const {
    return move_ && program_.stage[0].b_kind == Operand::scalar;
  }

  // Decides how the space is cut into pieces, and with that how each tensor is read on a piece.
  void cut() {
    plain_ = true;
    bool repeats = true, converts = false, strides = false, numbers = false;
    int64_t longest = 0; // stride
    int64_t widest = single_ || move_ ? 1 : item_size(program_.compute);
    blocked_ = false;
    for (int t = 0; t < space_.tensors; ++t) {
      Slot& s = slot_[t];
      if (!s.used) continue;
      s.want_item = item_size(s.want);
      s.converted = s.arg->dtype != s.want;
      widest = max(widest, max(s.item, s.want_item));
      if (s.arg->drawn != nullptr) {
        plain_ = repeats = false;
        continue;
      }
      s.period = s.arg->mutated ? 0 : period_of(*s.arg);
      const bool simple = s.linear || s.constant;
      plain_ &= simple && !s.converted;
      repeats &= simple || s.period > 0;
      converts |= s.converted && !s.constant;
      numbers |= !simple && s.arg->stride[0] == 0;
      if (!simple && s.arg->stride[0] != 0 && s.arg->stride[0] != s.item) {
        strides = true;
        longest = max(longest, s.arg->stride[0]);
      }
      blocked_ |=
          space_.dims > 1 && !simple && is_transposed(s) && space_.size[0] >= 4 && space_.size[1] >= 4;
    }
    const int64_t row = space_.dims > 0 ? space_.size[0] : 1;
    // As much as the buffers hold: what a piece costs beside its elements is felt.
    chunk_ = kChunk * (kMaxItem / widest);
    // Elements far apart: fewer, so that their lines are still near when they are put back.
    if (single_ && row >= kShortStagedRow && longest > 0)
      chunk_ = min(chunk_, max(kStridedBytes / longest & -kMinStrided, kMinStrided));
    chunk_rows_ = space_.dims > 1 ? chunk_ / row : 0;
    chunk_rest_ = chunk_ - chunk_rows_ * row;
    const int64_t worth = fills() && !strides                                      ? kVectorBytes / widest
                          : numbers && (single_ || move_) && !converts && !strides ? short_numbered_row(row)
                          : converts || strides || !single_                        ? kShortStagedRow
                                                                                   : short_row(widest);
    const bool worth_a_call = row >= worth;
    by_row_ = !plain_ && (blocked_ || space_.dims == 1 || (!repeats && worth_a_call));
    staged_ = gathers_ = false;
    int repeated_item = 0;
    for (int t = 0; t < space_.tensors; ++t) {
      Slot& s = slot_[t];
      if (!s.used) continue;
      const int64_t inner = by_row_ ? s.arg->stride[0] : -1;
      if (s.arg->drawn != nullptr) {
        s.kind = Kind::staged;
      } else if ((s.constant || inner == 0) && !s.arg->mutated) {
        s.kind = Kind::splat;
      } else if (!by_row_ && s.period > 0) {
        s.kind = Kind::periodic;
      } else {
        s.kind = !s.converted && (s.linear || inner == s.item) ? Kind::direct : Kind::staged;
      }
      gathers_ |= s.kind == Kind::staged && !s.linear;
      // All from one table of controls, which holds for elements of one size.
      s.repeated = s.kind == Kind::staged && !s.arg->mutated && s.arg->drawn == nullptr && !by_row_ &&
                   s.arg->stride[0] == 0 && row < kMaxRepeated &&
                   (repeated_item == 0 || repeated_item == s.item) &&
                   for_item(s.item, [&](auto repeat) { return row >= repeat.kMinColumns; });
      if (s.repeated) {
        repeated_item = s.item;
      } else if (s.kind == Kind::direct && ahead_of_ < 0) {
        ahead_of_ = t;
      }
      staged_ |= s.kind == Kind::staged || s.kind == Kind::periodic;
    }
    if (repeated_item == 0 || (ahead_of_ >= 0 && slot_[ahead_of_].item != repeated_item)) ahead_of_ = -1;
    // A move between an array and elements that are not one needs no buffer between them.
    unbuffered_ = false;
    if (move_ && program_.stage[0].b_kind == Operand::tensor) {
      const Slot &from = slot_[program_.stage[0].b], &to = slot_[program_.stage[1].b];
      unbuffered_ = from.want == to.want && ((from.kind == Kind::staged && to.kind == Kind::direct) ||
                                             (from.kind == Kind::direct && to.kind == Kind::staged));
    }
  }

  // The row from which on a row is worth a call: with AVX-512, where a load and a store put a shorter one
  // into a buffer and back, a whole vector.
  static int64_t short_row(int64_t item) {
    return kVectorBytes == 64 ? kVectorBytes / item : 8;
  }
  // The row from which on a row with a number of its own is worth a piece of its own.
  int64_t short_numbered_row(int64_t row) const {
    const Slot& x = slot_[move_ ? program_.stage[1].b : program_.stage[0].b];
    if (!x.linear) return move_ ? kShortStagedRow : kShortNumberedRow;
    if (move_) return kShortCopiedRow;
    const bool cached = space_.numel() * x.item <= kCachedBytes;
    return Repeat<float>::kRows == 1                    ? kShortNumberedRow
           : cached && row * x.item % kVectorBytes == 0 ? kShortStagedRow
                                                        : kMaxRepeated;
  }
  // The number of elements after which a tensor repeats itself to the end of the space.
  int64_t period_of(const TensorArg& a) const {
    int64_t period = 1;
    int d = 0;
    for (; d < space_.dims && a.stride[d] != 0; ++d) period *= space_.size[d];
    for (int outer = d; outer < space_.dims; ++outer) {
      if (a.stride[outer] != 0) return 0;
    }
    return d == space_.dims || period > kMaxPeriod ? 0 : period;
  }
  // Fills the buffers of the tensors that repeat: one chunk, and one period more so that any start fits.
  void repeat_rows() {
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (!s.used || s.kind != Kind::periodic) continue;
      int64_t index[kMaxDims] = {};
      fill_from(s, buffer_[t], s.arg->data, s.period, index, 0);
      const int64_t bytes = s.period * s.want_item, whole = (chunk_ + s.period) * s.want_item;
      for (int64_t i = bytes; i < whole; ++i) buffer_[t][i] = buffer_[t][i - bytes];
    }
  }

  // Fills the controls by which the numbers of rows are repeated: as many as n elements need.
  void repeat_numbers(int64_t n) {
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (!s.used || !s.repeated) continue;
      for_item(s.item, [&](auto repeat) {
        const int64_t rows = min(n / space_.size[0] + 2, repeat.kRows);
        using T = typename decltype(repeat)::V::lane;
        repeat.prepare(reinterpret_cast<T*>(controls_), rows, space_.size[0]);
      });
      return; // the others are of the same size
    }
  }
  // Decides which loop a single operation runs as; false if there is none.
  bool choose_loop() {
    const Program& p = program_;
    // The loop of the tensor's own dtype if the others are of it as well, else that of the compute type. An
    // integer beside a 16-bit float is first rounded to that float, as promotion has it. A mask is read as it
    // is.
    const Stage& op = p.stage[1];
    const int mask = op_info(op.code).form == Form::kMasked && op.b_kind == Operand::tensor ? op.b : -1;
    const DType own = slot_[p.stage[0].b].arg->dtype;
    bool same = compute_dtype(own) == p.compute;
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (!s.used || s.constant || s.arg->dtype == own || t == mask) continue;
      same &= is_reduced_floating(own) && !is_floating(s.arg->dtype);
    }
    dtype_ = same ? own : p.compute;
    for (int t = 0; t < space_.tensors; ++t) slot_[t].want = t == mask ? DType::b8 : dtype_;
    // Forms of numbers alone have only the last variant.
    const LoopFn* const loop = kernel_tables().loop[op.code][static_cast<int>(dtype_)];
    const Form form = op_info(op.code).form;
    const int variant = !only_numbers(form)     ? kTensorOperands
                        : form == Form::kNumber ? kScalarB
                                                : kScalarB | kScalarC;
    return loop[variant] != nullptr;
  }

  bool is_linear(const TensorArg& a) const {
    int64_t expected = item_size(a.dtype);
    for (int d = 0; d < space_.dims; ++d) {
      if (a.stride[d] != expected) return false;
      expected *= space_.size[d];
    }
    return true;
  }
  bool is_constant(const TensorArg& a) const {
    for (int d = 0; d < space_.dims; ++d) {
      if (a.stride[d] != 0) return false;
    }
    return true;
  }
  void compile(const StageTable& table) {
    const Program& p = program_;
    for (int i = 0; i < p.stages; ++i) {
      const Stage& s = p.stage[i];
      Linked& out = linked_[i];
      out.b = slot_of(s.b_kind, s.b);
      out.c = slot_of(s.c_kind, s.c);
      out.b_step = step_of(s.b_kind, s.b);
      out.c_step = step_of(s.c_kind, s.c);
      int variant = 0;
      if (s.b_kind == Operand::scalar) {
        out.kb = p.scalar[s.b];
        variant |= kScalarB;
      }
      if (s.c_kind == Operand::scalar) {
        out.kc = p.scalar[s.c];
        variant |= kScalarC;
      }
      if (s.code < kOpCodes && takes_third(op_info(s.code).form)) out.kd = p.scalar[s.d];
      // An operand that is one number on each piece is read as one.
      const auto is_splat = [&](Operand kind, uint8_t index) {
        return s.code < kOpCodes && kind == Operand::tensor && slot_[index].kind == Kind::splat;
      };
      if (is_splat(s.b_kind, s.b)) variant |= kScalarB, slot_[s.b].as_number = true;
      if (is_splat(s.c_kind, s.c)) variant |= kScalarC, slot_[s.c].as_number = true;
      if (s.code == kLoad && s.b_kind == Operand::tensor) slot_[s.b].as_array = true;
      const auto memory_dtype = [&] {
        return static_cast<int>(s.b_kind == Operand::tensor ? slot_[s.b].want : p.compute);
      };
      if (s.code == kLoad) {
        out.fn = s.b_kind == Operand::scalar ? table.load_scalar : table.load[memory_dtype()];
      } else if (s.code == kStore) {
        out.fn = table.store[memory_dtype()];
        if (s.b_kind == Operand::tensor && slot_[s.b].converted && slot_[s.b].reread) {
          out.fn = table.store_converted;
          out.kb.i = static_cast<int64_t>(slot_[s.b].arg->dtype);
        }
      } else if (s.code == kRound) {
        out.fn = table.round[s.b];
      } else {
        out.fn = table.op[s.code][variant];
      }
    }
    linked_[p.stages].fn = table.end;
    tile_ = table.tile;
    run_tiles_ = table.run_tiles;
    tile_state_.streams = 0;
    for (int t = 0; t < space_.tensors; ++t) {
      if (!is_streamed(slot_[t])) continue;
      tile_state_.stream[tile_state_.streams] = static_cast<uint8_t>(t);
      tile_state_.stream_item[tile_state_.streams++] = static_cast<uint8_t>(slot_[t].item);
    }
    for (int t = 0; t < kMaxTemporaries; ++t) tile_state_.ptr[kMaxTensors + t] = temporary_[t];
  }
  // Whether what comes soon of a tensor lies ahead of a tile in memory, and in no near cache.
  bool is_streamed(const Slot& s) const {
    if (!s.used || s.kind != Kind::direct || blocked_) return false;
    return s.linear ? space_.numel() * s.item >= kStreamedBytes : space_.size[0] * s.item >= kStreamedRow;
  }
  static uint8_t slot_of(Operand kind, uint8_t index) {
    return kind == Operand::temporary ? kMaxTensors + index : kind == Operand::tensor ? index : 0;
  }
  int64_t step_of(Operand kind, uint8_t index) const {
    return kind == Operand::tensor ? slot_[index].want_item : 0;
  }

  // ---- pieces ----

  // Where linear index i lies: the coordinate of each dim.
  void seek(int64_t i, int64_t* index) const {
    for (int d = 0; d < space_.dims; ++d) {
      index[d] = i % space_.size[d];
      i /= space_.size[d];
    }
  }
  // A chunk further: a division for each dim would be felt.
  void next_chunk(int64_t* index) const {
    index[0] += chunk_rest_;
    if (space_.dims == 1) return;
    index[1] += chunk_rows_;
    for (int d = 0; d + 1 < space_.dims; ++d) {
      if (index[d] < space_.size[d]) {
        if (d > 0) return;
        continue;
      }
      const int64_t carry = index[d] < 2 * space_.size[d] ? 1 : index[d] / space_.size[d];
      index[d] -= carry * space_.size[d];
      index[d + 1] += carry;
    }
  }
  char* address(const Slot& s, const int64_t* index) const {
    int64_t offset = 0;
    for (int d = 0; d < space_.dims; ++d) offset += index[d] * s.arg->stride[d];
    return s.arg->data + offset;
  }

  // Elements [begin, end) in pieces: rows, or chunks of the whole.
  void pieces(int64_t begin, int64_t end) {
    if (begin >= end) return;
    const bool in_chunks = staged_ || pipeline_; // through buffers, which hold a chunk
    const int64_t chunk = unbuffered_ ? end - begin : chunk_;
    int64_t index[kMaxDims];
    char* base[kMaxTensors];
    seek(begin, index);
    for (int t = 0; t < space_.tensors; ++t) base[t] = slot_[t].used ? address(slot_[t], index) : nullptr;
    if (!by_row_) {
      if (!in_chunks) {
        compute(base, end - begin);
        return;
      }
      for (int64_t i = begin; i < end; i += chunk) {
        if (i > begin && gathers_) next_chunk(index);
        piece(base, min(chunk, end - i), index, i - begin, i);
      }
      return;
    }
    for (int64_t i = begin; i < end;) {
      if (!pipeline_ && !staged_ && index[0] == 0 && space_.dims > 1) {
        const int64_t rows = min((end - i) / space_.size[0], space_.size[1] - index[1]);
        if (rows > 0) {
          single_ ? single_rows(base, rows) : move_rows(base, rows);
          index[1] += rows - 1;
          for (int t = 0; t < space_.tensors; ++t) {
            if (slot_[t].used) base[t] += (rows - 1) * slot_[t].arg->stride[1];
          }
          i += rows * space_.size[0];
          if (i < end) next_row(index, base);
          continue;
        }
      }
      const int64_t n = min(end - i, space_.size[0] - index[0]);
      if (!in_chunks) {
        compute(base, n);
      } else {
        for (int64_t done = 0; done < n; done += chunk) piece(base, min(chunk, n - done), index, done, 0);
      }
      i += n;
      if (i < end) next_row(index, base);
    }
  }
  // To the beginning of the next row.
  void next_row(int64_t* index, char** base) const {
    for (int t = 0; t < space_.tensors; ++t) {
      if (slot_[t].used) base[t] -= index[0] * slot_[t].arg->stride[0];
    }
    index[0] = 0;
    for (int d = 1; d < space_.dims; ++d) {
      const bool carry = ++index[d] == space_.size[d];
      for (int t = 0; t < space_.tensors; ++t) {
        if (slot_[t].used)
          base[t] += carry ? -(index[d] - 1) * slot_[t].arg->stride[d] : slot_[t].arg->stride[d];
      }
      if (!carry) return;
      index[d] = 0;
    }
  }

  // n elements that begin `done` elements after `base`; across rows, at coordinate `index` and linear index
  // i.
  void piece(char* const* base, int64_t n, const int64_t* index, int64_t done, int64_t i) {
    if (unbuffered_) return move_piece(base, n, index, done);
    char* ptr[kMaxTensors];
    for (int t = 0; t < space_.tensors; ++t) {
      if (slot_[t].used) ptr[t] = reach(t, base[t], n, index, done, i);
    }
    compute(ptr, n);
    for (int t = 0; t < space_.tensors; ++t) {
      if (slot_[t].used) put_back(t, base[t], n, index, done);
    }
  }
  void move_piece(char* const* base, int64_t n, const int64_t* index, int64_t done) {
    const int from = program_.stage[0].b, to = program_.stage[1].b;
    const Slot &source = slot_[from], &dst = slot_[to];
    if (source.kind == Kind::staged) {
      fill_from(source, base[to] + done * dst.item, base[from], n, index, done);
    } else {
      drain_to(dst, base[to], base[from] + done * source.item, n, index, done);
    }
  }
  // Where the arithmetic finds the elements of tensor t.
  char* reach(int t, char* base, int64_t n, const int64_t* index, int64_t done, int64_t i) {
    const Slot& s = slot_[t];
    switch (s.kind) {
      case Kind::direct: {
        // The memory of the next piece comes while this one fills buffers.
        char* const here = base + done * s.item;
        char* const next = here + n * s.item;
        if (t == ahead_of_) {
          ahead_ = next;
        } else if (pipeline_) {
          // asks with each tile
        } else if (!s.read) {
          for (int64_t line = 0; line < n * s.item; line += 64)
            __builtin_prefetch(here + kPieceAhead + line, 1);
        } else if (gathers_) {
          for (int64_t line = 0; line < n * s.item; line += 128) __builtin_prefetch(next + line);
        }
        return here;
      }
      case Kind::splat:
        // The single loop takes it as a number, and so do the operations of a chain, which get it once a row;
        // a load reads it from a buffer, filled once a row: the first piece of a row is the longest.
        if (!pipeline_) return base;
        if (done == 0 && s.as_number) give_number(t, read_splat(s, base));
        if (done == 0 && s.as_array) splat(buffer_[t], s.want, base, s.arg->dtype, n);
        return buffer_[t];
      case Kind::periodic:
        return buffer_[t] + i % s.period * s.want_item;
      case Kind::staged:
        if (s.read) fill_from(s, buffer_[t], base, n, index, done);
        return buffer_[t];
    }
    return nullptr;
  }
  void give_number(int t, Scalar number) {
    for (int i = 0; i < program_.stages; ++i) {
      const Stage& s = program_.stage[i];
      if (s.code >= kOpCodes) continue;
      if (s.b_kind == Operand::tensor && s.b == t) linked_[i].kb = number;
      if (s.c_kind == Operand::tensor && s.c == t) linked_[i].kc = number;
    }
  }
  // And from there to memory, what was changed in a buffer.
  void put_back(int t, char* base, int64_t n, const int64_t* index, int64_t done) {
    const Slot& s = slot_[t];
    if (s.arg->mutated && s.kind == Kind::staged) drain_to(s, base, buffer_[t], n, index, done);
  }

  // Calls f(patch, position) for the patches that make up the n elements, in order.
  template <class F>
  void patches(const Slot& s, char* base, int64_t n, const int64_t* index, int64_t done, F f) const {
    if (by_row_ || s.linear) {
      const int64_t stride = s.linear ? s.item : s.arg->stride[0];
      const char* const end = base + (space_.size[0] - index[0]) * stride;
      const int64_t gap = space_.dims > 1 ? s.arg->stride[1] - space_.size[0] * stride : 0;
      const Patch patch{base + done * stride, n, stride, 1, 0, end, gap};
      IE_ASSERT(lies_in_tensor(s, patch));
      f(patch, int64_t{0});
      return;
    }
    // Across rows: the rest of a row, then as many whole rows as the next dim has, then the begin of a row.
    int64_t at[kMaxDims];
    for (int d = 0; d < space_.dims; ++d) at[d] = index[d];
    const int64_t columns = space_.size[0];
    for (int64_t position = 0; position < n;) {
      Patch patch{address(s, at), min(n - position, columns - at[0]), s.arg->stride[0], 1, 0};
      if (patch.columns == columns && space_.dims > 1) {
        patch.rows = min((n - position) / columns, space_.size[1] - at[1]);
        patch.row_stride = s.arg->stride[1];
      }
      IE_ASSERT(lies_in_tensor(s, patch) && position + patch.columns * patch.rows <= n);
      f(patch, position);
      position += patch.columns * patch.rows;
      at[0] += patch.columns;
      if (at[0] < columns) return;
      at[0] = 0;
      if (space_.dims > 1) at[1] += patch.rows;
      for (int d = 1; d + 1 < space_.dims && at[d] == space_.size[d]; ++d) {
        at[d] = 0;
        ++at[d + 1];
      }
    }
  }
  // Contiguous in memory on this piece, so that it converts without being gathered.
  bool is_run(const Slot& s) const {
    return s.linear || (by_row_ && s.arg->stride[0] == s.item);
  }

  void fill_from(const Slot& s, char* buffer, char* base, int64_t n, const int64_t* index, int64_t done) {
    if (s.arg->drawn != nullptr) {
      const Generator generator(s.arg->drawn->seed);
      patches(s, base, n, index, done, [&](const Patch& patch, int64_t position) {
        s.want == DType::f64 ? draw<double>(s, generator, buffer, patch, position)
                             : draw<float>(s, generator, buffer, patch, position);
      });
      return;
    }
    if (s.converted && is_run(s)) {
      IE_ASSERT(lies_in_tensor(s, {base + done * s.item, n, s.item, 1, 0}));
      convert(buffer, s.want, base + done * s.item, s.arg->dtype, n);
      return;
    }
    char* const raw = s.converted ? raw_ : buffer;
    if (s.repeated) {
      for_item(s.item, [&](auto repeat) { fill_repeated<decltype(repeat)>(s, raw, n, index); });
    } else {
      patches(s, base, n, index, done,
              [&](const Patch& patch, int64_t position) { gather(s.item, raw + position * s.item, patch); });
    }
    if (s.converted) convert(buffer, s.want, raw, s.arg->dtype, n);
  }
  // The draws of a patch, as numbers that the arithmetic reads.
  template <class C>
  void draw(const Slot& s, const Generator& generator, char* buffer, const Patch& patch, int64_t position) {
    alignas(64) int32_t number[kDrawn + philox::kWords + kBatchWords];
    const uint64_t offset = s.arg->drawn->offset;
    C* out = reinterpret_cast<C*>(buffer) + position;
    for (int64_t r = 0; r < patch.rows; ++r) {
      auto place = static_cast<uint64_t>(patch.p - s.arg->data + r * patch.row_stride);
      const auto step = static_cast<uint64_t>(patch.column_stride);
      for (int64_t left = patch.columns; left > 0;) {
        const int64_t some = min(left, kDrawn);
        const auto lead = step == 1 ? static_cast<int64_t>(place % philox::kWords) : 0;
        if (step == 1) {
          generator(number, offset + place / philox::kWords, lead + some);
        } else if (step == 0) {
          generator.spread(number, offset, place, step, 1);
          for (int64_t i = 1; i < some; ++i) number[i] = number[0];
        } else {
          generator.spread(number, offset, place, step, some);
        }
        for (int64_t i = 0; i < some; ++i) out[i] = static_cast<C>(number[lead + i]);
        out += some, left -= some, place += step * static_cast<uint64_t>(some);
      }
    }
  }
  template <class R>
  void fill_repeated(const Slot& s, char* buffer, int64_t n, const int64_t* index) {
    using T = typename R::V::lane;
    const int64_t columns = space_.size[0], step = s.arg->stride[1];
    // Fetches the next piece of a tensor that is read where it lies: once, and else nothing new.
    const char* ahead = ahead_ != nullptr ? ahead_ : buffer;
    ahead_ = nullptr;
    const auto repeat = [&](char* out, const char* p, int64_t rows, int64_t column, int64_t m) {
      const T* numbers = reinterpret_cast<const T*>(p);
      T gathered[kChunk];
      if (step != s.item) {
        gather(s.item, reinterpret_cast<char*>(gathered), {const_cast<char*>(p), rows, step, 1, 0});
        numbers = gathered;
      }
      R::run(reinterpret_cast<T*>(out), numbers, rows, columns, column, m,
             reinterpret_cast<const T*>(controls_), ahead + (out - buffer));
    };
    // The rows that follow in dim 1, as many as there is room to gather where their numbers do not lie side
    // by side; mostly that is all.
    const int64_t most = step == s.item ? space_.size[1] : kChunk;
    const int64_t rows = min(most, space_.size[1] - index[1]), end = index[0] + n;
    if (end <= rows * columns) {
      const char* const p = address(s, index); // whatever the column: its stride is 0
      repeat(buffer, p, (end + columns - 1) / columns, index[0], n);
      return;
    }
    int64_t at[kMaxDims];
    for (int d = 0; d < space_.dims; ++d) at[d] = index[d];
    for (char* out = buffer; n > 0;) {
      const int64_t left = min(most, space_.size[1] - at[1]), m = min(n, left * columns - at[0]);
      const int64_t whole = (at[0] + m) / columns, rest = at[0] + m - whole * columns;
      repeat(out, address(s, at), whole + (rest > 0), at[0], m);
      out += m * sizeof(T), n -= m;
      at[0] = rest, at[1] += whole;
      for (int d = 1; d + 1 < space_.dims && at[d] == space_.size[d]; ++d) {
        at[d] = 0;
        ++at[d + 1];
      }
    }
  }
  void drain_to(const Slot& s, char* base, char* buffer, int64_t n, const int64_t* index, int64_t done) {
    if (s.converted && is_run(s)) {
      IE_ASSERT(lies_in_tensor(s, {base + done * s.item, n, s.item, 1, 0}));
      convert(base + done * s.item, s.arg->dtype, buffer, s.want, n);
      return;
    }
    char* const raw = s.converted ? raw_ : buffer;
    if (s.converted) convert(raw, s.arg->dtype, buffer, s.want, n);
    patches(s, base, n, index, done,
            [&](const Patch& patch, int64_t position) { scatter(s.item, patch, raw + position * s.item); });
  }

  // ---- blocks: rows [first, last), with at least one tensor laid out across them ----

  void blocks(int64_t first, int64_t last) {
    const int64_t columns = space_.size[0], rows = space_.size[1];
    int64_t index[kMaxDims];
    for (int64_t r = first; r < last;) {
      // Rows of one block share all outer coordinates.
      const int64_t count = min(min(kBlockRows, last - r), rows - r % rows);
      for (int64_t c = 0; c < columns; c += kBlockColumns) {
        seek(r * columns + c, index);
        block(count, min(kBlockColumns, columns - c), index);
      }
      r += count;
    }
  }
  bool is_transposed(const Slot& s) const {
    return s.arg->drawn == nullptr && s.arg->stride[1] == s.item && s.arg->stride[0] > s.item * 4;
  }
  void block(int64_t rows, int64_t columns, const int64_t* index) {
    char* base[kMaxTensors];
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (!s.used) continue;
      base[t] = address(s, index);
      if (is_transposed(s) && s.read) turn_in(s, turned_[t], base[t], rows, columns);
    }
    for (int64_t r = 0; r < rows; ++r) {
      char* ptr[kMaxTensors];
      for (int t = 0; t < space_.tensors; ++t) {
        const Slot& s = slot_[t];
        if (!s.used) continue;
        ptr[t] = is_transposed(s) ? turned_[t] + r * kBlockColumns * s.want_item
                                  : reach(t, base[t] + r * s.arg->stride[1], columns, index, 0, 0);
      }
      compute(ptr, columns);
      for (int t = 0; t < space_.tensors; ++t) {
        const Slot& s = slot_[t];
        if (s.used && !is_transposed(s)) put_back(t, base[t] + r * s.arg->stride[1], columns, index, 0);
      }
    }
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (s.used && s.arg->mutated && is_transposed(s)) turn_out(s, base[t], turned_[t], rows, columns);
    }
  }
  // Columns of the block are contiguous in memory: as rows of a block of its own they are turned into the
  // buffer's rows, and back; converted on the way where the buffer is of another type.
  void turn_in(const Slot& s, char* buffer, const char* base, int64_t rows, int64_t columns) {
    const int64_t stride = s.arg->stride[0], to_stride = kBlockColumns * s.want_item;
    // Each column lies in a page of its own, where no hardware prefetcher follows.
    for (int64_t c = 0; c < columns; ++c) __builtin_prefetch(base + (kBlockColumns + c) * stride);
    if (!s.converted) {
      turn(s.item, buffer, to_stride, base, stride, columns, rows);
      return;
    }
    char column[kBlockRows * kMaxItem];
    for (int64_t c = 0; c < columns; ++c) {
      convert(column, s.want, base + c * stride, s.arg->dtype, rows);
      scatter(s.want_item, {buffer + c * s.want_item, rows, to_stride, 1, 0}, column);
    }
  }
  void turn_out(const Slot& s, char* base, char* buffer, int64_t rows, int64_t columns) {
    const int64_t stride = s.arg->stride[0], from_stride = kBlockColumns * s.want_item;
    if (!s.converted) {
      turn(s.item, base, stride, buffer, from_stride, rows, columns);
      return;
    }
    char column[kBlockRows * kMaxItem];
    for (int64_t c = 0; c < columns; ++c) {
      gather(s.want_item, column, {buffer + c * s.want_item, rows, from_stride, 1, 0});
      convert(base + c * stride, s.arg->dtype, column, s.want, rows);
    }
  }

  // ---- what IE_ASSERT asks ----

  bool lies_in_tensor(const Slot& s, const Patch& patch) const {
    if (s.arg->drawn != nullptr) return true; // no memory
    const char *low = s.arg->data, *high = low + s.item;
    for (int d = 0; d < space_.dims; ++d) {
      const int64_t reach = (space_.size[d] - 1) * s.arg->stride[d];
      (reach < 0 ? low : high) += reach;
    }
    const int64_t row = (patch.rows - 1) * patch.row_stride,
                  column = (patch.columns - 1) * patch.column_stride;
    const char* const first = patch.p + min(row, 0) + min(column, 0);
    const char* const last = patch.p + max(row, 0) + max(column, 0);
    return first >= low && last + s.item <= high;
  }
  // Whether n elements at p are of tensor t, or of one of its buffers.
  bool is_reachable(int t, const char* p, int64_t n) const {
    const Slot& s = slot_[t];
    if (!s.used) return true;
    const auto lies_in = [&](const auto& buffer) {
      return p >= buffer && p + n * s.want_item <= buffer + sizeof(buffer);
    };
    if (lies_in(buffer_[t]) || lies_in(turned_[t])) return true;
    const int64_t elements = s.kind == Kind::splat ? 1 : n;
    return lies_in_tensor(s, {const_cast<char*>(p), elements, s.item, 1, 0});
  }
  bool all_reachable(char* const* ptr, int64_t n) const {
    for (int t = 0; t < space_.tensors; ++t) {
      if (slot_[t].used && !is_reachable(t, ptr[t], n)) return false;
    }
    return true;
  }

  // ---- arithmetic on n elements of contiguous arrays ----

  void compute(char* const* ptr, int64_t n) {
    IE_ASSERT(all_reachable(ptr, n));
    if (single_) {
      compute_single(ptr, n);
    } else if (move_) {
      compute_move(ptr, n);
    } else {
      compute_program(ptr, n);
    }
  }
  void compute_single(char* const* ptr, int64_t n) {
    const Stage& s = program_.stage[1];
    Scalar scalar[3];
    scalar[2] = program_.scalar[s.d];
    int variant = 0;
    const char* b = operand(s.b_kind, s.b, ptr, scalar[0], variant, kScalarB);
    const char* c = operand(s.c_kind, s.c, ptr, scalar[1], variant, kScalarC);
    kernel_tables().loop[s.code][static_cast<int>(dtype_)][variant](ptr[program_.stage[0].b], b, c, scalar,
                                                                    n);
  }
  const char* operand(Operand operand_kind, int index, char* const* ptr, Scalar& scalar, int& variant,
                      int bit) const {
    if (operand_kind == Operand::scalar) {
      scalar = program_.scalar[index];
      variant |= bit;
    } else if (operand_kind == Operand::tensor) {
      const Slot& s = slot_[index];
      if (s.kind != Kind::splat) return ptr[index];
      scalar = read_splat(s, ptr[index]);
      variant |= bit;
    }
    return nullptr;
  }
  Scalar read_splat(const Slot& s, const char* p) const {
    if (is_reduced_floating(s.want) && !is_floating(s.arg->dtype)) {
      uint64_t rounded = 0;
      convert(&rounded, s.want, p, s.arg->dtype, 1);
      return read_scalar(&rounded, s.want, program_.compute);
    }
    return read_scalar(p, s.arg->dtype, program_.compute);
  }
  // Whole rows along dim 1 with nothing staged: what compute_single decides is decided once for all of them.
  void single_rows(char* const* base, int64_t rows) const {
    const Stage& s = program_.stage[1];
    Scalar scalar[3];
    scalar[2] = program_.scalar[s.d];
    int variant = 0;
    const int x = program_.stage[0].b;
    char* const b = const_cast<char*>(operand(s.b_kind, s.b, base, scalar[0], variant, kScalarB));
    char* const c = const_cast<char*>(operand(s.c_kind, s.c, base, scalar[1], variant, kScalarC));
    const LoopFn loop = kernel_tables().loop[s.code][static_cast<int>(dtype_)][variant];
    const int64_t x_step = slot_[x].arg->stride[1];
    const int64_t b_step = s.b_kind == Operand::tensor ? slot_[s.b].arg->stride[1] : 0;
    const int64_t c_step = s.c_kind == Operand::tensor ? slot_[s.c].arg->stride[1] : 0;
    const bool read_b = s.b_kind == Operand::tensor && (variant & kScalarB);
    const bool read_c = s.c_kind == Operand::tensor && (variant & kScalarC);
    // The call of each short row hides the loads of the next from the processor.
    constexpr int64_t kAhead = 1024, kLongRow = 1024;
    const int64_t bytes = space_.size[0] * slot_[x].item, fetched = bytes < kLongRow ? bytes : 0;
    for (int64_t r = 0; r < rows; ++r) {
      char* const at = base[x] + r * x_step;
      for (int64_t line = 0; line < fetched; line += 64) __builtin_prefetch(at + kAhead + line);
      if (read_b) scalar[0] = read_splat(slot_[s.b], base[s.b] + r * b_step);
      if (read_c) scalar[1] = read_splat(slot_[s.c], base[s.c] + r * c_step);
      IE_ASSERT(is_reachable(x, at, space_.size[0]));
      loop(at, b + r * b_step, c + r * c_step, scalar, space_.size[0]);
    }
  }
  void compute_move(char* const* ptr, int64_t n) {
    const Stage& source = program_.stage[0];
    const Slot& dst = slot_[program_.stage[1].b];
    char* const out = ptr[program_.stage[1].b];
    if (source.b_kind == Operand::scalar) {
      // Converted once, and a buffer that is put back keeps what it was filled with.
      if (!filling_) fill(&value_, dst.want, program_.scalar[source.b], 1);
      filling_ = true;
      if (dst.kind != Kind::staged || n > filled_) splat(out, dst.want, &value_, dst.want, n);
      if (dst.kind == Kind::staged) filled_ = max(filled_, n);
    } else if (slot_[source.b].kind == Kind::splat) {
      splat(out, dst.want, ptr[source.b], slot_[source.b].want, n);
    } else {
      convert(out, dst.want, ptr[source.b], slot_[source.b].want, n);
    }
  }
  // Elements far apart, or few in a row: vectors that put the value between what is there do not pay.
  template <class W>
  void fill_apart(const Slot& x, int64_t begin, int64_t end) {
    W value;
    fill(&value, x.want, program_.scalar[program_.stage[0].b], 1);
    int64_t index[kMaxDims];
    seek(begin, index);
    char* base[kMaxTensors] = {};
    const int t = program_.stage[1].b;
    base[t] = address(x, index);
    const int64_t row = space_.size[0], step = x.arg->stride[0];
    const int64_t rows = space_.dims > 1 ? space_.size[1] : 1,
                  row_step = space_.dims > 1 ? x.arg->stride[1] : 0;
    const auto store = [&](char* p, int64_t n) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) std::memcpy(p + i * step, &value, sizeof(W));
    };
    for (int64_t i = begin; i < end;) {
      if (index[0] > 0 || end - i < row || space_.dims == 1) {
        const int64_t n = min(end - i, row - index[0]);
        IE_ASSERT(lies_in_tensor(x, {base[t], n, step, 1, 0}));
        store(base[t], n);
        i += n;
      } else {
        const int64_t whole = min((end - i) / row, rows - index[1]);
        IE_ASSERT(lies_in_tensor(x, {base[t], row, step, whole, row_step}));
        for (int64_t r = 0; r < whole; ++r) store(base[t] + r * row_step, row);
        i += whole * row;
        index[1] += whole - 1;
        base[t] += (whole - 1) * row_step;
      }
      if (i < end) next_row(index, base);
    }
  }
  // Whole rows along dim 1 with nothing staged.
  void move_rows(char* const* base, int64_t rows) {
    const Stage& source = program_.stage[0];
    const int to = program_.stage[1].b, from = source.b;
    const Slot &dst = slot_[to], &src = slot_[from];
    const bool copies = source.b_kind == Operand::tensor && src.kind != Kind::splat && src.want == dst.want;
    const int64_t bytes = space_.size[0] * dst.want_item, to_step = dst.arg->stride[1];
    const int64_t from_step = source.b_kind == Operand::tensor ? src.arg->stride[1] : 0;
    char* ptr[kMaxTensors];
    ptr[to] = base[to];
    if (fills() && bytes < kLongFilledRow) {
      alignas(64) char pattern[kVectorBytes];
      fill(pattern, dst.want, program_.scalar[from], kVectorBytes / dst.want_item);
      const auto v = Vec<uint8_t>::load(pattern);
      IE_ASSERT(lies_in_tensor(dst, {base[to], space_.size[0], dst.item, rows, to_step}));
      for (int64_t r = 0; r < rows; ++r) {
        char* const row = base[to] + r * to_step;
        if (bytes < 2 * kVectorBytes && bytes >= kVectorBytes) {
          v.store(row), v.store(row + bytes - kVectorBytes);
        } else {
          fill_row(row, pattern, bytes, dst.want_item);
        }
      }
      return;
    }
    if (source.b_kind == Operand::tensor) ptr[from] = base[from];
    for (int64_t r = 0; r < rows; ++r) {
      if (copies) {
        std::memcpy(ptr[to], ptr[from], bytes);
      } else {
        compute_move(ptr, space_.size[0]);
      }
      ptr[to] += to_step;
      if (source.b_kind == Operand::tensor) ptr[from] += from_step;
    }
  }
  void compute_program(char* const* ptr, int64_t n) {
    for (int t = 0; t < space_.tensors; ++t) tile_state_.ptr[t] = slot_[t].used ? ptr[t] : nullptr;
    const int64_t tiles = n / tile_;
    run_tiles_(linked_, &tile_state_, tiles);
    const int64_t rest = n - tiles * tile_;
    if (rest == 0) return;
    // The last tile is padded: arrays that end here move into the buffers for it.
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (!s.used) continue;
      char* const at = ptr[t] + tiles * tile_ * s.want_item;
      tile_state_.ptr[t] = last_[t];
      std::memset(last_[t], 0, tile_ * s.want_item);
      if (s.read) std::memcpy(last_[t], at, rest * s.want_item);
    }
    run_tiles_(linked_, &tile_state_, 1);
    for (int t = 0; t < space_.tensors; ++t) {
      const Slot& s = slot_[t];
      if (s.used && s.arg->mutated)
        std::memcpy(ptr[t] + tiles * tile_ * s.want_item, last_[t], rest * s.want_item);
    }
  }

  const Program& program_;
  const Space& space_;
  Slot slot_[kMaxTensors];
  bool single_ = false, move_ = false, pipeline_ = false;
  bool filling_ = false;                    // a fill, whose value has been converted
  uint64_t value_ = 0;                      // in the dtype that is filled
  int64_t filled_ = 0;                      // elements of a staged fill's buffer
  bool plain_ = false;                      // every tensor is an array over the whole space, or one element
  bool by_row_ = false;                     // pieces do not cross rows
  bool staged_ = false;                     // some tensor is read through a buffer
  bool gathers_ = false;                    // and some of them not from an array
  bool unbuffered_ = false;                 // a move whose elements go from place to place by themselves
  int ahead_of_ = -1;                       // the tensor whose next piece comes while numbers are repeated
  const char* ahead_ = nullptr;             // and that piece, until it has been asked for
  int64_t chunk_ = kChunk;                  // elements of a piece at most
  int64_t chunk_rows_ = 0, chunk_rest_ = 0; // the same in whole rows and elements
  bool blocked_ = false;                    // some tensor is laid out across the rows
  Path path_ = Path::loop;
  DType dtype_ = DType::f32;
  // A chain, ready to run.
  Linked linked_[kMaxStages + 1];
  Tile tile_state_;
  int tile_ = 0;
  void (*run_tiles_)(const Linked*, Tile*, int64_t) = nullptr;

  // Buffers of a piece, on the stack of the thread that runs it; only those of tensors that need one are
  // touched.
  alignas(64) char buffer_[kMaxTensors][(kChunk + kMaxPeriod) * kMaxItem];
  alignas(64) char last_[kMaxTensors][kChunk * kMaxItem];
  alignas(64) char turned_[kMaxTensors][kBlockRows * kBlockColumns * kMaxItem];
  alignas(64) char raw_[kChunk * kMaxItem];
  // Controls of as many rows as a permutation reaches, and what is stored or read beyond them.
  alignas(64) char controls_[(kMaxRepeated + 2) * kVectorBytes];
  alignas(64) char temporary_[kMaxTemporaries][kChunk * kMaxItem];
};

} // namespace

Path run(const Program& program, const Space& space, int64_t begin, int64_t end) {
  return Executor(program, space).run(begin, end);
}

// What an executor finds out follows from everything but the places, and is found out once.
static Path run_each(const Program& program, Space& space, char* const* data, int64_t count) {
  Executor executor(program, space);
  const int64_t n = space.numel();
  Path path{};
  for (int64_t i = 0; i < count; ++i) {
    for (int t = 0; t < space.tensors; ++t) space.tensor[t].data = *data++;
    path = executor.run(0, n);
  }
  return path;
}

} // namespace inplace_ext

extern "C" __attribute__((visibility("default"))) const inplace_ext::CpuKernels* inplace_ext_cpu_kernels() {
  using namespace inplace_ext;
  static const CpuKernels kernels = {kAbiVersion,
                                     table_fingerprint(),
                                     kVectorBytes,
                                     kCapability,
                                     kernel_tables().loop,
                                     run,
                                     fill,
                                     convert,
                                     contains_zero,
                                     softmax,
                                     dropout,
                                     set_operation,
                                     norm_part,
                                     turn,
                                     square_units,
                                     swap_square,
                                     find_leaders,
                                     move_cycles,
                                     in_range,
                                     put_indexed,
                                     count_mask,
                                     put_masked,
                                     run_each};
  return &kernels;
}
