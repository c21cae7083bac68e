// State-based recall: the bit at an address that first has to be followed through n swaps of five
// pointers.
//
//   bits = [0, 1, 1, 0]              n bits, uniform
//   a, b, c, d, e = 2, 0, 3, 3, 1    five pointers, uniform on 0..n-1
//   a, c = c, a                      n such lines, uniform transpositions
//   assert bits[a] == 0
//
// Training samples assert a random variable after every k updates, k uniform on the powers of 2 up
// to n, but not after the last update; a part of them, `strict_fraction`, has no such assertions,
// as in evaluation.
//
// Chance is 1/2; guessing from the five bits that are pointed at gives 11/16
// where no two pointers meet. In theory a transformer needs TC0 = NC1 for it and an RNN more than
// O(log n) bits of state; a hybrid needs neither.
//
// Source: Olmo Hybrid, section 3.5, Definition 2 and Figure 5.

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "kernels/base/check.h"
#include "synth-tasks/core/program.h"

namespace weft {
namespace {

struct StateBasedRecallConfig : LanguageConfig {
  int64_t max_difficulty = 128, longest_list = 0;
  std::string reveal = "bits";

  StateBasedRecallConfig() {
    difficulties = {8, 16, 32, 64};
    stage_steps = {10000, 30000, 30000, 0};
    promote_accuracy = 0.95;
    strict_fraction = 0.2;
  }
  void Visit(ConfigVisitor& v) override {
    VisitMaxDifficulty(v, max_difficulty);
    v.Key("reveal", reveal, "what an intermediate assertion reveals: a pointer or the bit there",
          {"bits", "address"});
    v.LaterKey("longest_list", longest_list, "0",
               "training samples with assertions have uniformly n to so many bits; 0 = n",
               Range{0, kLargestDifficulty});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class StateBasedRecall : public ProgramTask {
 public:
  explicit StateBasedRecall(const StateBasedRecallConfig& config)
      : ProgramTask("state_based_recall", config, config.max_difficulty),
        longest_list_(config.longest_list),
        always_strict_(config.strict_fraction == 1),
        reveal_bits_(config.reveal == "bits") {
    if (longest_list_ > config.max_difficulty)
      Fail(ExitCode::kUsage, "task.longest_list = ", longest_list_,
           " exceeds task.max_difficulty = ", config.max_difficulty,
           ", the number of addresses; raise that or lower this");
    Atoms atoms;
    list_ = BitList(atoms);
    first_pointer_ = atoms.Add("\na, b, c, d, e = ", Numbers(config.max_difficulty));
    pointer_ = atoms.Add(", ", Numbers(config.max_difficulty));
    update_ = UpdateLine(atoms);
    assert_bit_ = atoms.Add("\nassert bits[", VariableNames(), "] ==");
    value_ =
        atoms.Add(" ", Numbers(reveal_bits_ ? 2 : std::max<int64_t>(2, config.max_difficulty)));
    if (!reveal_bits_) assert_address_ = atoms.Add("\nassert ", VariableNames(), " ==");
    vocabulary_ = atoms.Take();
  }

  void Write(SampleWriter& out, Rng& rng, int64_t difficulty, bool strict) const override {
    const auto n = static_cast<uint32_t>(difficulty);
    const uint32_t spacing = strict ? n : 1u << rng.Below(std::bit_width(n));
    const uint32_t bits = strict || longest_list_ <= n
                              ? n
                              : n + rng.Below(static_cast<uint32_t>(longest_list_ - n + 1));
    list_.Write(out, rng, bits);
    std::array<uint32_t, kVariables> pointers;
    for (uint32_t k = 0; k < kVariables; ++k) {
      pointers[k] = rng.Below(bits);
      out.Put((k == 0 ? first_pointer_ : pointer_) + static_cast<int32_t>(pointers[k]));
    }
    const auto ask_bit = [&](uint32_t variable) {
      out.Put(assert_bit_ + static_cast<int32_t>(variable));
      return value_ + static_cast<int32_t>(list_.Bit(out, pointers[variable]));
    };
    const auto ask_address = [&](uint32_t variable) {
      out.Put(assert_address_ + static_cast<int32_t>(variable));
      return value_ + static_cast<int32_t>(pointers[variable]);
    };

    for (uint32_t i = 1; i <= n; ++i) {
      const auto [x, y] = DrawPair(rng);
      update_.Write(out, {x, y}, {y, x});
      std::swap(pointers[x], pointers[y]);
      if (i % spacing != 0 || i == n) continue;
      const uint32_t variable = rng.Below(kVariables);
      out.PutValue(reveal_bits_ ? ask_bit(variable) : ask_address(variable));
    }
    out.PutAnswer(ask_bit(0));
  }

  double ChanceOf(int64_t) const override { return 0.5; }

  int64_t LengthOf(int64_t n) const override {
    const int64_t assertions = always_strict_ ? 0 : n - 1;
    return BitList::TokenCount(std::max(n, longest_list_)) + kVariables + 4 * n + 2 * assertions +
           2;
  }

 private:
  int64_t longest_list_;
  bool always_strict_, reveal_bits_;
  BitList list_;
  UpdateLine update_;
  int32_t first_pointer_, pointer_, assert_bit_, assert_address_ = 0, value_;
};

std::unique_ptr<Task> StateBasedRecallConfig::Make() const {
  return std::make_unique<StateBasedRecall>(*this);
}

}  // namespace

TaskSpec Spec_state_based_recall() {
  return {"state_based_recall",
          "both",
          "the bit at a pointer that n swaps have moved, in a list of n bits",
          "0.5 (0.69 if the five bits are known, but not their order)",
          "n, the number of bits and of swaps (1 to task.max_difficulty)",
          NewConfig<StateBasedRecallConfig>};
}

}  // namespace weft
