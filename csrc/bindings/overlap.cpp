#include "overlap.h"

#include <algorithm>
#include <numeric>

namespace inplace_ext {
namespace {

// Steps of the search after which memory is taken to be shared.
constexpr int kSearchLimit = 20000;
constexpr int kMaxTerms = 64;

struct Term {
  int64_t coefficient; // bytes, positive
  int64_t bound;       // values 0..bound
};

// Is there a choice of 0 <= v[k] <= bound[k] with low < sum coefficient[k] * v[k] < high?
// Terms are sorted by falling coefficient; `reach[k]` is the largest sum of terms k and after, `divisor[k]`
// the greatest common divisor of their coefficients.
class Search {
 public:
  Search(const Term* terms, int count) : terms_(terms), count_(count) {
    reach_[count] = divisor_[count] = 0;
    for (int k = count - 1; k >= 0; --k) {
      reach_[k] = reach_[k + 1] + terms[k].coefficient * terms[k].bound;
      divisor_[k] = std::gcd(divisor_[k + 1], terms[k].coefficient);
    }
  }
  bool possible(int64_t low, int64_t high) {
    return step(0, low, high);
  }

 private:
  bool step(int k, int64_t low, int64_t high) {
    if (++steps_ > kSearchLimit) return true;
    if (high <= 0 || low >= reach_[k]) return false;
    if (low < 0 || (low < reach_[k] && reach_[k] < high)) return true; // all zero, or all at their bounds
    // Sums are multiples of the divisor: is there one strictly between?
    if ((low / divisor_[k] + 1) * divisor_[k] >= high) return false;
    if (k + 1 == count_) return (low / terms_[k].coefficient + 1) <= terms_[k].bound;
    const Term& t = terms_[k];
    // v must leave a rest that the smaller terms can reach.
    const int64_t least = std::max<int64_t>(0, (low - reach_[k + 1]) / t.coefficient);
    const int64_t most = std::min<int64_t>(t.bound, (high - 1) / t.coefficient);
    for (int64_t v = most; v >= least; --v) {
      if (step(k + 1, low - v * t.coefficient, high - v * t.coefficient)) return true;
    }
    return false;
  }

  const Term* terms_;
  int count_;
  int steps_ = 0;
  int64_t reach_[kMaxTerms + 1];
  int64_t divisor_[kMaxTerms + 1];
};

bool same_places(const at::TensorBase& x, const at::TensorBase& operand) {
  const int64_t missing = x.dim() - operand.dim();
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) == 1) continue;
    if (d < missing || operand.size(d - missing) != x.size(d) || operand.stride(d - missing) != x.stride(d))
      return false;
  }
  return true;
}

} // namespace

int64_t extent(const at::TensorBase& t, int item) {
  int64_t end = item;
  for (int64_t d = 0; d < t.dim(); ++d) end += (t.size(d) - 1) * t.stride(d) * item;
  return end;
}

bool may_overlap_itself(const at::TensorBase& t) {
  if (t.numel() == 0) return false;
  Term dims[kMaxTerms];
  int count = 0;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) == 0 || count == kMaxTerms) return true;
    dims[count++] = {t.stride(d), t.size(d) - 1};
  }
  std::sort(dims, dims + count, [](const Term& a, const Term& b) { return a.coefficient < b.coefficient; });
  int64_t reach = 0;
  for (int k = 0; k < count; ++k) {
    if (dims[k].coefficient <= reach) return true;
    reach += dims[k].coefficient * dims[k].bound;
  }
  return false;
}

bool may_share(const at::TensorBase& x, int item, const at::TensorBase& operand, int operand_item) {
  if (x.numel() == 0 || operand.numel() == 0) return false;
  const auto a = reinterpret_cast<intptr_t>(x.const_data_ptr());
  const auto b = reinterpret_cast<intptr_t>(operand.const_data_ptr());
  if (a + extent(x, item) <= b || b + extent(operand, operand_item) <= a) return false;
  if (a == b && item == operand_item && same_places(x, operand)) return false;

  // An element of x at a + s.i and one of the operand at b + t.j share a byte if
  // -item < (a + s.i) - (b + t.j) < operand_item. With j' = bound - j every coefficient is positive.
  Term terms[kMaxTerms];
  int count = 0;
  int64_t shift = b - a;
  const auto add = [&](const at::TensorBase& t, int size, bool negated) {
    for (int64_t d = 0; d < t.dim(); ++d) {
      const int64_t coefficient = t.stride(d) * size, bound = t.size(d) - 1;
      if (coefficient == 0 || bound == 0) continue;
      if (negated) shift += coefficient * bound;
      int k = 0;
      while (k < count && terms[k].coefficient != coefficient) ++k;
      if (k == kMaxTerms) return false;
      if (k == count) terms[count++] = {coefficient, 0};
      terms[k].bound += bound;
    }
    return true;
  };
  if (!add(x, item, false) || !add(operand, operand_item, true)) return true;
  if (count == 0) return -item < -shift && -shift < operand_item;
  std::sort(terms, terms + count, [](const Term& p, const Term& q) { return p.coefficient > q.coefficient; });
  return Search(terms, count).possible(shift - item, shift + operand_item);
}

} // namespace inplace_ext
