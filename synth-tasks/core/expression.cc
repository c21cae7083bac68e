#include "synth-tasks/core/expression.h"

#include <array>

#include "kernels/base/check.h"

namespace weft {
namespace {

class Evaluator {
 public:
  Evaluator(std::string_view text, int64_t modulus) : text_(text), rest_(text), modulus_(modulus) {}

  int64_t Infix() { return Whole(Operation(0)); }
  int64_t Polish() { return Whole(Prefix()); }

 private:
  static constexpr std::array<std::string_view, 4> kOperators = {"|", "&", "+-", "*"};

  int64_t Whole(int64_t value) {
    Check(rest_.empty(), "unexpected \"", rest_, "\" in expression ", text_);
    return value;
  }
  // The next character if it is one of these, otherwise 0.
  char Take(std::string_view any) {
    if (rest_.empty() || any.find(rest_.front()) == any.npos) return 0;
    const char taken = rest_.front();
    rest_.remove_prefix(1);
    return taken;
  }
  int64_t Apply(char op, int64_t x, int64_t y) const {
    switch (op) {
      case '|':
        return x | y;
      case '&':
        return x & y;
      case '+':
        return (x + y) % modulus_;
      case '-':
        return (x - y + modulus_) % modulus_;
      default:
        return x * y % modulus_;
    }
  }
  int64_t Operation(size_t level) {
    if (level == kOperators.size()) return Operand();
    int64_t value = Operation(level + 1);
    while (const char op = Take(kOperators[level])) value = Apply(op, value, Operation(level + 1));
    return value;
  }
  int64_t Operand() {
    if (Take("-")) return (modulus_ - Operand()) % modulus_;
    if (Take("(")) {
      const int64_t value = Operation(0);
      Check(Take(")"), "expected \")\" before \"", rest_, "\" in expression ", text_);
      return value;
    }
    return Digit();
  }
  int64_t Prefix() {
    const char op = Take("|&+-*");
    if (!op) return Digit();
    const int64_t first = Prefix();
    return Apply(op, first, Prefix());
  }
  int64_t Digit() {
    const char digit = Take("0123456789");
    Check(digit, "expected a digit before \"", rest_, "\" in expression ", text_);
    return (digit - '0') % modulus_;
  }

  std::string_view text_, rest_;
  int64_t modulus_;
};

}  // namespace

int64_t EvaluateInfix(std::string_view text, int64_t modulus) {
  return Evaluator(text, modulus).Infix();
}

int64_t EvaluatePolish(std::string_view text, int64_t modulus) {
  return Evaluator(text, modulus).Polish();
}

}  // namespace weft
