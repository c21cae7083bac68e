// Modular arithmetic: the value of an expression modulo m, without brackets or with.
//
//   2+1*4-3=3            digits below m and + - *, with the usual precedence
//   ((2+-1)*(4))=4       brackets = true: every operation has its own
//
// An expression has n symbols. Without brackets digits and operators alternate, all uniform, and an
// even n adds one. With brackets an expression of 1 to 4 symbols is d, -d, (d) or (-d), and a
// longer one is (left op right), with 1 to n - 4 symbols on the left, uniform.
//
// Chance is the most frequent value's probability: 0, which products prefer; computed. Without
// multiplication it is 1/m.
//
// Class. Without brackets the language is regular and its monoid solvable, hence in TC0; the sum so
// far and the product that may still grow are the state, and a product with 0 cannot be undone.
// With brackets it is NC1-complete, since 1 - x and x * y evaluate boolean formulas; without
// multiplication it is in TC0, a sum with signs that the brackets turn.
//
// Source: Deletang et al., arXiv:2207.02098, appendix A, and its code, whose generators they are;
// Grazzi et al., arXiv:2411.12537, Table 3, use them with m = 5 and lengths 3-40 in training
// (difficulties = [40], shortest = 3), 40-256 in the test. In its code expressions with brackets
// have no multiplication unless a config says so, and a length counts three symbols more: "=",
// the value and a padding.

#include <algorithm>

#include "synth-tasks/core/probabilities.h"
#include "synth-tasks/core/expression.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

struct ModularArithmeticConfig : LanguageConfig {
  int64_t modulus = 5;
  bool brackets = false, multiplication = true;

  ModularArithmeticConfig() {
    difficulties = {8, 16, 40};
    stage_steps = {1000, 2000, 0};
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("modulus", modulus, "m, the number of values", Range{2, 10});
    v.Key("brackets", brackets, "bracket every operation");
    v.Key("multiplication", multiplication, "operators + - *; otherwise + -");
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class ModularArithmetic : public GeneratedTask {
 public:
  explicit ModularArithmetic(const ModularArithmeticConfig& config)
      : GeneratedTask("modular_arithmetic", config, kLargestDifficulty, config.loss == "all"),
        modulus_(static_cast<uint32_t>(config.modulus)),
        operators_(config.multiplication ? 3 : 2),
        brackets_(config.brackets) {
    Atoms atoms;
    digit_ = atoms.Add("", Numbers(config.modulus));
    operator_ = config.multiplication ? atoms.Add("", {"+", "-", "*"}) : atoms.Add("", {"+", "-"});
    open_ = atoms.Add("(");
    close_ = atoms.Add(")");
    equals_ = atoms.Add("=");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    std::string_view expression = text_before_answer;
    expression.remove_suffix(1);
    return std::to_string(EvaluateInfix(expression, modulus_));
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const uint32_t value =
        brackets_ ? Bracketed(out, rng, static_cast<uint32_t>(n)) : Plain(out, rng, n | 1);
    out.Put(equals_);
    out.PutAnswer(digit_ + static_cast<int32_t>(value));
  }

  uint32_t Apply(uint32_t op, uint32_t x, uint32_t y) const {
    return (op == 0 ? x + y : op == 1 ? x + modulus_ - y : x * y) % modulus_;
  }
  uint32_t Digit(SampleWriter& out, Rng& rng) const {
    const uint32_t value = rng.Below(modulus_);
    out.Put(digit_ + static_cast<int32_t>(value));
    return value;
  }
  uint32_t Operator(SampleWriter& out, Rng& rng) const {
    const uint32_t op = rng.Below(operators_);
    out.Put(operator_ + static_cast<int32_t>(op));
    return op;
  }

  uint32_t Plain(SampleWriter& out, Rng& rng, int64_t n) const {
    uint32_t sum = 0, product = Digit(out, rng);
    for (int64_t i = 1; i + 1 < n; i += 2) {
      const uint32_t op = Operator(out, rng), digit = Digit(out, rng);
      if (op == 2) {
        product = Apply(2, product, digit);
      } else {
        sum = Apply(0, sum, product);
        product = Apply(op, 0, digit);
      }
    }
    return Apply(0, sum, product);
  }

  uint32_t Bracketed(SampleWriter& out, Rng& rng, uint32_t n) const {
    if (n < 3) {
      if (n == 2) out.Put(operator_ + 1);
      const uint32_t value = Digit(out, rng);
      return n == 2 ? Apply(1, 0, value) : value;
    }
    out.Put(open_);
    uint32_t value;
    if (n < 5) {
      value = Bracketed(out, rng, n - 2);
    } else {
      const uint32_t left_length = 1 + rng.Below(n - 4);
      const uint32_t left = Bracketed(out, rng, left_length), op = Operator(out, rng);
      value = Apply(op, left, Bracketed(out, rng, n - 3 - left_length));
    }
    out.Put(close_);
    return value;
  }

  double ChanceOf(int64_t n) const override {
    const Probabilities uniform(modulus_, 1.0 / modulus_);
    const Probabilities values =
        brackets_ ? BracketedValues(uniform, static_cast<size_t>(n)) : PlainValues(uniform, n | 1);
    return std::ranges::max(values);
  }

  // Follows the joint distribution of the sum that is complete and of the product, with its sign,
  // that may still grow.
  Probabilities PlainValues(const Probabilities& uniform, int64_t n) const {
    std::vector<Probabilities> now(modulus_, Probabilities(modulus_));  // [sum][product]
    now[0] = uniform;
    for (int64_t i = 1; i + 1 < n; i += 2) {
      std::vector<Probabilities> next(modulus_, Probabilities(modulus_));
      for (uint32_t sum = 0; sum < modulus_; ++sum) {
        for (uint32_t product = 0; product < modulus_; ++product) {
          const double share = now[sum][product] / (operators_ * modulus_);
          for (uint32_t digit = 0; digit < modulus_; ++digit) {
            if (operators_ == 3) next[sum][Apply(2, product, digit)] += share;
            for (const uint32_t op : {0u, 1u}) {
              next[Apply(0, sum, product)][Apply(op, 0, digit)] += share;
            }
          }
        }
      }
      now = std::move(next);
    }
    Probabilities values(modulus_);
    for (uint32_t sum = 0; sum < modulus_; ++sum) {
      for (uint32_t product = 0; product < modulus_; ++product) {
        values[Apply(0, sum, product)] += now[sum][product];
      }
    }
    return values;
  }

  Probabilities BracketedValues(const Probabilities& uniform, size_t n) const {
    std::vector<Probabilities> of_length(n + 1, uniform);  // up to 4 symbols: one digit
    for (size_t length = 5; length <= n; ++length) {
      Probabilities values(modulus_);
      for (size_t left = 1; left + 4 <= length; ++left) {
        for (uint32_t op = 0; op < operators_; ++op) {
          Add(values,
              Combine(of_length[left], of_length[length - 3 - left],
                      [&](size_t x, size_t y) {
                        return Apply(op, static_cast<uint32_t>(x), static_cast<uint32_t>(y));
                      }),
              1.0 / (operators_ * static_cast<double>(length - 4)));
        }
      }
      of_length[length] = values;
    }
    return of_length[n];
  }

  int64_t LengthOf(int64_t n) const override { return (brackets_ ? n : n | 1) + 2; }

  uint32_t modulus_, operators_;
  bool brackets_;
  int32_t digit_, operator_, open_, close_, equals_;
};

std::unique_ptr<Task> ModularArithmeticConfig::Make() const {
  return std::make_unique<ModularArithmetic>(*this);
}

}  // namespace

TaskSpec Spec_modular_arithmetic() {
  return {"modular_arithmetic",
          "state",
          "value of an expression of n symbols modulo m, with brackets or without",
          "computed, above 1/m since products are often 0",
          "n, the number of symbols (1 to 1024)",
          NewConfig<ModularArithmeticConfig>};
}

}  // namespace weft
