// State tracking: which value does a variable hold after n simultaneous updates of two out of five
// variables?
//
//   a, b, c, d, e = range(5)
//   a, c = c, a                  n such lines
//   assert a == 2
//
// update = "swap": a uniform transposition per line; the word problem of S5, which is NC1-complete.
// update = "assign": two different targets take the values of two different sources, all uniform:
// `a, c = c, e`. Values get lost: after 32 lines all five are equal in 19 of 20 samples, and later
// lines change nothing.
//
// Training samples assert a value after every `interval` updates, but not after the
// last one, where it would give the answer away.
//
// Chance. Followed backwards from the end, the queried variable is touched by a line with
// probability 2/5. A swap then moves it to one of the 4 others, an assignment to one of all 5. The
// answer is therefore its own first value with probability 1/5 + 4/5 r^n, r = 1/2 or 3/5; r^n is
// below 0.004 from n = 8 or 11 on. If any variable may be queried, no constant beats 1/5.
//
// Source: Olmo Hybrid, section 3.5 and Figure 4. Intermediate assertions: Siems et al.,
// arXiv:2602.14814.

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "synth-tasks/core/program.h"

namespace weft {
namespace {

struct StateTrackingConfig : LanguageConfig {
  std::string update = "swap";
  std::string query = "a";
  std::string reveal = "any";
  int64_t interval = 0;

  StateTrackingConfig() {
    difficulties = {8, 16, 32, 64};
    stage_steps = {500, 1000, 2000, 0};
  }
  void Visit(ConfigVisitor& v) override {
    v.Key("update", update, "exchange two variables, or assign two variables to two others",
          {"swap", "assign"});
    v.Key("query", query, "variable of the final assertion", {"a", "any"});
    v.Key("interval", interval,
          "updates between intermediate assertions; 0 = n/8, at least 1; n or more = none",
          Range{0, kLargestDifficulty});
    v.Key("reveal", reveal, "variables that an intermediate assertion reveals",
          {"a", "any", "all"});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class StateTracking : public ProgramTask {
 public:
  explicit StateTracking(const StateTrackingConfig& config)
      : ProgramTask("state_tracking", config, kLargestDifficulty),
        swap_(config.update == "swap"),
        query_any_(config.query == "any"),
        reveal_any_(config.reveal == "any"),
        revealed_(config.reveal == "all" ? kVariables : 1),
        interval_(config.interval) {
    Atoms atoms;
    start_ = atoms.Add("a, b, c, d, e = range(5)");
    update_ = UpdateLine(atoms);
    assert_ = atoms.Add("\nassert ", VariableNames(), " ==");
    value_ = atoms.Add(" ", Numbers(kVariables));
    vocabulary_ = atoms.Take();
  }

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    std::array<uint32_t, kVariables> values = {0, 1, 2, 3, 4};
    const auto ask = [&](uint32_t variable) {
      out.Put(assert_ + static_cast<int32_t>(variable));
      return value_ + static_cast<int32_t>(values[variable]);
    };

    out.Put(start_);
    const int64_t interval = strict ? n : Interval(n);
    for (int64_t i = 1; i <= n; ++i) {
      const auto targets = DrawPair(rng);
      const auto sources = swap_ ? std::pair{targets.second, targets.first} : DrawPair(rng);
      update_.Write(out, targets, sources);
      const std::pair moved = {values[sources.first], values[sources.second]};
      values[targets.first] = moved.first;
      values[targets.second] = moved.second;
      if (i % interval == 0 && i < n) {
        const uint32_t first = reveal_any_ ? rng.Below(kVariables) : 0;
        for (uint32_t k = 0; k < revealed_; ++k) out.PutValue(ask(first + k));
      }
    }
    out.PutAnswer(ask(query_any_ ? rng.Below(kVariables) : 0));
  }

  double ChanceOf(int64_t n) const override {
    const double kept = query_any_ ? 0 : std::pow(swap_ ? 0.5 : 0.6, n);
    return 0.2 + 0.8 * kept;
  }

  int64_t LengthOf(int64_t n) const override {
    const int64_t assertions = (n - 1) / Interval(n) * revealed_;
    return 1 + 4 * n + 2 * assertions + 2;
  }

 private:
  int64_t Interval(int64_t n) const {
    return interval_ > 0 ? interval_ : std::max<int64_t>(1, n / 8);
  }

  bool swap_, query_any_, reveal_any_;
  uint32_t revealed_;
  int64_t interval_;
  int32_t start_, assert_, value_;
  UpdateLine update_;
};

std::unique_ptr<Task> StateTrackingConfig::Make() const {
  return std::make_unique<StateTracking>(*this);
}

}  // namespace

TaskSpec Spec_state_tracking() {
  return {"state_tracking",
          "state",
          "value of a variable after n swaps among five variables",
          "0.2 (+ 0.8/2^n, since a variable may stay in its place)",
          "n, the number of update lines (1 to 1024)",
          NewConfig<StateTrackingConfig>};
}

}  // namespace weft
