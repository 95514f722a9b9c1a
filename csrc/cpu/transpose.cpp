// What the transposition of matrices in place is made of: blocks turned from one place to another, squares
// swapped across the diagonal, and blocks moved along the cycles of the permutation. Nothing is computed: an
// element is so many bytes.
#include "turn.h"

namespace inplace_ext {
namespace {

// Bytes of a block that is moved along its cycle at a time.
constexpr int64_t kPiece = 4096;
// Steps along a cycle by which the blocks are fetched ahead.
constexpr int kAhead = 3;

int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// A square matrix, in tiles that are small enough for two of them to stay in L1 and whose rows are at least
// whole cache lines.
template <int Bytes>
struct Tiles {
  static constexpr int64_t kSide = Bytes <= 2 ? 64 : Bytes == 4 ? 32 : 16;
  static constexpr int64_t kLine = 64;

  // Asks for the tile that comes after this one, on both sides of the diagonal: a hardware prefetcher follows
  // no row into the next tile.
  static void fetch(const char* upper, const char* lower, int64_t pitch) {
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t at = 0; at < kSide * Bytes; at += kLine) {
        __builtin_prefetch(upper + i * pitch + at, 1);
        __builtin_prefetch(lower + i * pitch + at, 1);
      }
    }
  }
  static void swap(char* data, int64_t side, int64_t row, int64_t column) {
    alignas(64) char turned[kSide * kSide * Bytes];
    const int64_t pitch = side * Bytes, rows = min(kSide, side - row), columns = min(kSide, side - column);
    char* const upper = data + row * pitch + column * Bytes;
    char* const lower = data + column * pitch + row * Bytes;
    if (column + 2 * kSide <= side) fetch(upper + kSide * Bytes, lower + kSide * pitch, pitch);
    turn(Bytes, turned, rows * Bytes, upper, pitch, rows, columns);
    if (row != column) turn(Bytes, upper, pitch, lower, pitch, columns, rows);
    for (int64_t j = 0; j < columns; ++j)
      copy_run(lower + j * pitch, turned + j * rows * Bytes, rows * Bytes);
  }
};

// Blocks of any other size, exchanged one by one.
void swap_blocks(char* data, int64_t side, int64_t bytes, int64_t row) {
  alignas(64) char kept[kPiece];
  for (int64_t column = row + 1; column < side; ++column) {
    char* const upper = data + (row * side + column) * bytes;
    char* const lower = data + (column * side + row) * bytes;
    for (int64_t at = 0; at < bytes; at += kPiece) {
      const int64_t n = min(kPiece, bytes - at);
      copy_run(kept, upper + at, n);
      copy_run(upper + at, lower + at, n);
      copy_run(lower + at, kept, n);
    }
  }
}

template <int Bytes>
void swap_tiles(char* data, int64_t side, int64_t begin, int64_t end) {
  using T = Tiles<Bytes>;
  const int64_t tiles = (side + T::kSide - 1) / T::kSide;
  // Tile rows, each from the diagonal on.
  int64_t row = 0, first = 0;
  while (row < tiles && first + tiles - row <= begin) first += tiles - row++;
  for (int64_t tile = begin; tile < end; ++tile) {
    if (tile == first + tiles - row) first += tiles - row++;
    T::swap(data, side, row * T::kSide, (row + tile - first) * T::kSide);
  }
}

// The cycles of the permutation that a transposition is. Place p of the result takes the block from
// `source(p)`; places are counted row by row.
template <class Index>
struct Places {
  Index rows, columns; // of the matrix before it is transposed
  Index source(Index p) const {
    return p % rows * columns + p / rows;
  }
  // Whether p is the least place of a cycle of more than one.
  bool leads(Index p) const {
    Index q = source(p);
    if (q == p) return false;
    while (q > p) q = source(q);
    return q == p;
  }
};

template <class Index>
void move_cycle(const Places<Index>& places, char* data, int64_t bytes, Index leader, int64_t n) {
  alignas(64) char kept[kPiece];
  const auto at = [&](Index p) { return data + static_cast<int64_t>(p) * bytes; };
  copy_run(kept, at(leader), n);
  Index ahead = leader;
  for (int i = 0; i < kAhead; ++i) ahead = places.source(ahead);
  for (Index p = leader;;) {
    const Index q = places.source(p);
    if (q == leader) return copy_run(at(p), kept, n);
    ahead = places.source(ahead);
    const char* const next = at(ahead);
    for (int64_t line = 0; line < n; line += 64) __builtin_prefetch(next + line, 1);
    copy_run(at(p), at(q), n);
    p = q;
  }
}

template <class Index>
void move_cycles(const Matrix& m, const uint64_t* leaders, int64_t begin, int64_t end) {
  const Places<Index> places{static_cast<Index>(m.rows), static_cast<Index>(m.columns)};
  const int64_t blocks = m.rows * m.columns;
  for (int64_t from = begin; from < end; from += kPiece) {
    const int64_t n = min(kPiece, end - from);
    const auto move = [&](int64_t p) {
      move_cycle(places, m.data + from, m.bytes, static_cast<Index>(p), n);
    };
    if (leaders == nullptr) {
      for (int64_t p = 1; p < blocks - 1; ++p) {
        if (places.leads(static_cast<Index>(p))) move(p);
      }
      continue;
    }
    for (int64_t word = 0; word * 64 < blocks; ++word) {
      for (uint64_t bits = leaders[word]; bits != 0; bits &= bits - 1)
        move(word * 64 + __builtin_ctzll(bits));
    }
  }
}

bool is_narrow(const Matrix& m) {
  return m.rows * m.columns <= INT32_MAX;
}

template <class Index>
void find_leaders(const Matrix& m, uint64_t* leaders, uint64_t* seen) {
  const Places<Index> places{static_cast<Index>(m.rows), static_cast<Index>(m.columns)};
  const Index blocks = places.rows * places.columns;
  const auto bit = [](Index p) { return uint64_t(1) << (p % 64); };
  for (Index p = 1; p + 1 < blocks; ++p) {
    if (seen[p / 64] & bit(p)) continue;
    Index q = places.source(p);
    if (q != p) leaders[p / 64] |= bit(p);
    for (; q != p; q = places.source(q)) seen[q / 64] |= bit(q);
  }
}

} // namespace

void turn(const Turn& t) {
  turn(t.bytes, t.to, t.to_stride, t.from, t.from_stride, t.rows, t.columns);
}

int64_t square_units(int64_t side, int64_t bytes) {
  const auto pairs = [&](int64_t tile) {
    const int64_t tiles = (side + tile - 1) / tile;
    return tiles * (tiles + 1) / 2;
  };
  switch (bytes) {
    case 1:
      return pairs(Tiles<1>::kSide);
    case 2:
      return pairs(Tiles<2>::kSide);
    case 4:
      return pairs(Tiles<4>::kSide);
    case 8:
      return pairs(Tiles<8>::kSide);
    case 16:
      return pairs(Tiles<16>::kSide);
    default:
      return side;
  }
}

void swap_square(const Matrix& m, int64_t begin, int64_t end) {
  switch (m.bytes) {
    case 1:
      return swap_tiles<1>(m.data, m.rows, begin, end);
    case 2:
      return swap_tiles<2>(m.data, m.rows, begin, end);
    case 4:
      return swap_tiles<4>(m.data, m.rows, begin, end);
    case 8:
      return swap_tiles<8>(m.data, m.rows, begin, end);
    case 16:
      return swap_tiles<16>(m.data, m.rows, begin, end);
    default:
      for (int64_t row = begin; row < end; ++row) swap_blocks(m.data, m.rows, m.bytes, row);
  }
}

void find_leaders(const Matrix& m, uint64_t* leaders, uint64_t* seen) {
  is_narrow(m) ? find_leaders<uint32_t>(m, leaders, seen) : find_leaders<uint64_t>(m, leaders, seen);
}

void move_cycles(const Matrix& m, const uint64_t* leaders, int64_t begin, int64_t end) {
  is_narrow(m) ? move_cycles<uint32_t>(m, leaders, begin, end)
               : move_cycles<uint64_t>(m, leaders, begin, end);
}

} // namespace inplace_ext
