// Recall: the bit at an address of a list that was read before.
//
//   bits = [0, 1, 1, 0]          m bits, uniform
//   a = 2                        uniform on 0..m-1
//   assert bits[a] == 1
//
// With queries > 1 a training sample goes on with more addresses and assertions.
// Chance is 1/2. No RNN with O(log m) bits of state can do it; attention can.
//
// Source: Olmo Hybrid, section 3.5 and appendix C.

#include "synth-tasks/core/program.h"

namespace weft {
namespace {

struct RecallConfig : ProgramConfig {
  int64_t max_difficulty = 128;
  int64_t queries = 1;

  RecallConfig() {
    difficulties = {128};
    stage_steps = {0};
  }
  void Visit(ConfigVisitor& v) override {
    VisitMaxDifficulty(v, max_difficulty);
    v.Key("queries", queries, "addresses asked for in a training sample; strict samples ask once",
          Range{1, 1024});
    ProgramConfig::Visit(v);
  }
  std::unique_ptr<Task> Make() const override;
};

class Recall : public ProgramTask {
 public:
  explicit Recall(const RecallConfig& config)
      : ProgramTask("recall", config, config.max_difficulty), queries_(config.queries) {
    Atoms atoms;
    list_ = BitList(atoms);
    address_ = atoms.Add("\na = ", Numbers(config.max_difficulty));
    assert_ = atoms.Add("\nassert bits[a] ==");
    value_ = atoms.Add(" ", Numbers(2));
    vocabulary_ = atoms.Take();
  }

  void Generate(uint64_t seed, Split split, uint64_t index, int64_t difficulty, bool strict,
                Sample& sample) const override {
    CheckDifficulty(difficulty);
    SampleWriter out = Writer(sample);
    Rng rng = Stream(seed, split, index);
    list_.Write(out, rng, difficulty);
    const int64_t queries = strict ? 1 : queries_;
    for (int64_t i = 0; i < queries; ++i) {
      const uint32_t address = rng.Below(static_cast<uint32_t>(difficulty));
      out.Put(address_ + static_cast<int32_t>(address));
      out.Put(assert_);
      out.PutValue(value_ + static_cast<int32_t>(list_.Bit(sample, address)));
    }
    out.Finish();
  }

  double Chance(int64_t difficulty) const override {
    CheckDifficulty(difficulty);
    return 0.5;
  }

  int64_t MaxLength(int64_t difficulty) const override {
    CheckDifficulty(difficulty);
    return BitList::TokenCount(difficulty) + 3 * queries_;
  }

 private:
  int64_t queries_;
  BitList list_;
  int32_t address_, assert_, value_;
};

std::unique_ptr<Task> RecallConfig::Make() const { return std::make_unique<Recall>(*this); }

}  // namespace

TaskSpec Spec_recall() {
  return {"recall", "the bit at a given address of a list of m bits", "0.5",
          "m, the number of bits (1 to task.max_difficulty)",
          []() -> std::unique_ptr<TaskConfig> { return std::make_unique<RecallConfig>(); }};
}

}  // namespace weft
