// Recall: the bit at an address of a list that was read before.
//
//   bits = [0, 1, 1, 0]          m bits, uniform
//   a = 2                        uniform on 0..m-1
//   assert bits[a] == 1
//
// With queries > 1 a training sample goes on with more addresses and assertions. With literal
// addresses the last two lines are one, as the appendix's "assert bits[i] == _" may mean:
//
//   assert bits[2] == 1
//
// Then the address is next to its bit, and one layer can look it up; otherwise it has to be carried
// to the assertion first, or the bit after.
//
// Chance is 1/2. No RNN with O(log m) bits of state can do it; attention can.
//
// Source: Olmo Hybrid, section 3.5 and appendix C.

#include "synth-tasks/core/program.h"

namespace weft {
namespace {

struct RecallConfig : LanguageConfig {
  int64_t max_difficulty = 128;
  int64_t queries = 1;
  std::string address = "variable";

  RecallConfig() {
    difficulties = {128};
    stage_steps = {0};
  }
  void Visit(ConfigVisitor& v) override {
    VisitMaxDifficulty(v, max_difficulty);
    v.Key("queries", queries, "addresses asked for in a training sample; strict samples ask once",
          Range{1, 1024});
    v.LaterKey("address", address, "\"variable\"", "an assertion names a variable, or the address",
               {"variable", "literal"});
    LanguageConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Recall : public ProgramTask {
 public:
  explicit Recall(const RecallConfig& config)
      : ProgramTask("recall", config, config.max_difficulty),
        queries_(config.queries),
        literal_(config.address == "literal") {
    const std::vector<std::string> addresses = Numbers(config.max_difficulty);
    Atoms atoms;
    list_ = BitList(atoms);
    address_ =
        literal_ ? atoms.Add("\nassert bits[", addresses, "] ==") : atoms.Add("\na = ", addresses);
    if (!literal_) assert_ = atoms.Add("\nassert bits[a] ==");
    value_ = atoms.Add(" ", Numbers(2));
    vocabulary_ = atoms.Take();
  }

  void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const override {
    list_.Write(out, rng, n);
    const int64_t queries = strict ? 1 : queries_;
    for (int64_t i = 0; i < queries; ++i) {
      const uint32_t address = rng.Below(static_cast<uint32_t>(n));
      out.Put(address_ + static_cast<int32_t>(address));
      if (!literal_) out.Put(assert_);
      const int32_t bit = value_ + static_cast<int32_t>(list_.Bit(out, address));
      i + 1 < queries ? out.PutValue(bit) : out.PutAnswer(bit);
    }
  }

  double ChanceOf(int64_t) const override { return 0.5; }

  int64_t LengthOf(int64_t n) const override {
    return BitList::TokenCount(n) + (literal_ ? 2 : 3) * queries_;
  }

 private:
  int64_t queries_;
  bool literal_;
  BitList list_;
  int32_t address_, assert_ = 0, value_;
};

std::unique_ptr<Task> RecallConfig::Make() const { return std::make_unique<Recall>(*this); }

}  // namespace

TaskSpec Spec_recall() {
  return {"recall",
          "recall",
          "the bit at a given address of a list of m bits",
          "0.5",
          "m, the number of bits (1 to task.max_difficulty)",
          NewConfig<RecallConfig>};
}

}  // namespace weft
