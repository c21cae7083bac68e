// Formula evaluation: the value of a boolean formula, or of an integer one modulo m.
//
//   ((1&0)|(1&1))=1       kind = "boolean", notation = "infix"
//   |&10&11=1             the same in Polish notation
//   ((2+1)*(4-3))=3       kind = "integer"
//
// A formula has n leaves, constants. Its root splits them uniformly, 1 to n - 1 on the left, and so
// on; operators and constants are uniform, out of & | or + - *. Negations can be pushed to the
// leaves, so boolean formulas have none.
//
// Chance. A boolean formula is true as often as false, by duality: 1/2. Integer formulas prefer 0;
// computed.
//
// Class. Boolean formulas are NC1-complete (Buss 1987), hence beyond fixed-depth transformers
// unless TC0 = NC1; in Polish notation a suffix can ask for any of n bits that came before, so a
// recurrence needs more than O(log n) bits of state. A hybrid needs neither. Integer formulas
// are PNC1-complete over the integers (Caussinus et al. 1998); modulo a fixed m, as here, they are
// NC1-complete, since 1 - x and x * y are boolean operations.
//
// Source: Olmo Hybrid (arXiv:2604.03444), section 3 and Corollary 3.1, which gives no distribution;
// this one is ours. Random trees are about log n deep, and "&" and "|" often settle a value
// near the root, so that a part of a boolean formula says more than chance.

#include <algorithm>

#include "synth-tasks/core/probabilities.h"
#include "synth-tasks/core/expression.h"
#include "synth-tasks/core/generator.h"

namespace weft {
namespace {

struct FormulaConfig : LanguageConfig {
  std::string kind = "boolean";
  std::string notation = "infix";
  int64_t modulus = 5;

  FormulaConfig() {
    difficulties = {4, 8, 16, 32};
    stage_steps = {1000, 2000, 4000, 0};
    loss = "answers";
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("kind", kind, "bits with & and |, or integers with + - *", {"boolean", "integer"});
    v.Key("notation", notation, "bracketed operators between their operands, or before them",
          {"infix", "polish"});
    v.Key("modulus", modulus, "integers are taken modulo this", Range{2, 10});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Formula : public GeneratedTask {
 public:
  explicit Formula(const FormulaConfig& config)
      : GeneratedTask("formula", config, kLargestDifficulty, config.loss == "all"),
        boolean_(config.kind == "boolean"),
        infix_(config.notation == "infix"),
        values_(boolean_ ? 2 : static_cast<uint32_t>(config.modulus)),
        operators_(boolean_ ? 2 : 3) {
    Atoms atoms;
    digit_ = atoms.Add("", Numbers(values_));
    operator_ = boolean_ ? atoms.Add("", {"&", "|"}) : atoms.Add("", {"+", "-", "*"});
    open_ = atoms.Add("(");
    close_ = atoms.Add(")");
    equals_ = atoms.Add("=");
    vocabulary_ = atoms.Take();
  }

  std::string Oracle(const std::string& text_before_answer) const override {
    std::string_view formula = text_before_answer;
    formula.remove_suffix(1);
    return std::to_string(infix_ ? EvaluateInfix(formula, values_)
                                 : EvaluatePolish(formula, values_));
  }

 private:
  void Write(SampleWriter& out, Rng& rng, int64_t n, bool) const override {
    const uint32_t value = Node(out, rng, static_cast<uint32_t>(n));
    out.Put(equals_);
    out.PutAnswer(digit_ + static_cast<int32_t>(value));
  }

  uint32_t Node(SampleWriter& out, Rng& rng, uint32_t leaves) const {
    if (leaves == 1) {
      const uint32_t value = rng.Below(values_);
      out.Put(digit_ + static_cast<int32_t>(value));
      return value;
    }
    const uint32_t left_leaves = 1 + rng.Below(leaves - 1), op = rng.Below(operators_);
    const int32_t symbol = operator_ + static_cast<int32_t>(op);
    out.Put(infix_ ? open_ : symbol);
    const uint32_t left = Node(out, rng, left_leaves);
    if (infix_) out.Put(symbol);
    const uint32_t right = Node(out, rng, leaves - left_leaves);
    if (infix_) out.Put(close_);
    return Apply(op, left, right);
  }

  uint32_t Apply(uint32_t op, uint32_t x, uint32_t y) const {
    if (boolean_) return op == 0 ? x & y : x | y;
    return (op == 0 ? x + y : op == 1 ? x + values_ - y : x * y) % values_;
  }

  double ChanceOf(int64_t n) const override {
    if (boolean_) return 0.5;
    const auto count = static_cast<size_t>(n);
    std::vector<Probabilities> of_leaves(count + 1, Probabilities(values_, 1.0 / values_));
    for (size_t leaves = 2; leaves <= count; ++leaves) {
      Probabilities values(values_);
      for (size_t left = 1; left < leaves; ++left) {
        for (uint32_t op = 0; op < operators_; ++op) {
          Add(values,
              Combine(of_leaves[left], of_leaves[leaves - left],
                      [&](size_t x, size_t y) {
                        return Apply(op, static_cast<uint32_t>(x), static_cast<uint32_t>(y));
                      }),
              1.0 / (operators_ * static_cast<double>(leaves - 1)));
        }
      }
      of_leaves[leaves] = values;
    }
    return std::ranges::max(of_leaves[count]);
  }

  int64_t LengthOf(int64_t n) const override { return (infix_ ? 4 * n - 3 : 2 * n - 1) + 2; }

  bool boolean_, infix_;
  uint32_t values_, operators_;
  int32_t digit_, operator_, open_, close_, equals_;
};

std::unique_ptr<Task> FormulaConfig::Make() const { return std::make_unique<Formula>(*this); }

}  // namespace

TaskSpec Spec_formula() {
  return {"formula",
          "both",
          "value of a boolean or integer formula of n leaves, in infix or Polish notation",
          "0.5, or computed for integers",
          "n, the number of leaves (1 to 1024)",
          NewConfig<FormulaConfig>};
}

}  // namespace weft
