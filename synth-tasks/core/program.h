#pragma once
// What tasks that write Python programs share: knobs, atoms, update lines, bit lists, and a writer
// that keeps the labels beside the tokens.
//
// Every atom carries the separators that belong to it, so that lines are short, every value after
// "==" is one token, all texts of a vocabulary differ, and the longest match at every place of a
// text gives its tokens back.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "arch/core/config.h"
#include "kernels/base/rng.h"
#include "synth-tasks/core/task.h"

namespace weft {

inline constexpr int64_t kLargestDifficulty = 1024;
inline constexpr uint32_t kVariables = 5;  // a, b, c, d, e

// Knobs of every task: the curriculum, and which positions are learned.
struct ProgramConfig : TaskConfig {
  std::vector<int64_t> difficulties, stage_steps;
  double promote_accuracy = 0;
  std::string loss = "all";

  void Visit(ConfigVisitor& v) override;
  std::vector<CurriculumStage> Stages(int64_t max_difficulty) const;  // checks the knobs together
};

// The "max_difficulty" knob of tasks whose vocabulary grows with it.
void VisitMaxDifficulty(ConfigVisitor& v, int64_t& max_difficulty);

// Collects the texts of a vocabulary.
class Atoms {
 public:
  int32_t Add(const std::string& text) { return Add(text, {""}); }
  // Adds prefix + item + suffix for every item; returns the first token, the others follow it.
  int32_t Add(const std::string& prefix, const std::vector<std::string>& items,
              const std::string& suffix = "");
  Vocabulary Take() { return Vocabulary(std::move(texts_)); }

 private:
  std::vector<std::string> texts_;
};

const std::vector<std::string>& VariableNames();
std::vector<std::string> Numbers(int64_t count);  // "0", "1", ..., count of them

class SampleWriter {
 public:
  SampleWriter(Sample& sample, bool learn_all) : sample_(sample), learn_all_(learn_all) {
    sample.Clear();
  }
  void Put(int32_t token) { Push(token, learn_all_ ? token : kIgnoreLabel); }
  void PutValue(int32_t token) { Push(token, token); }  // of an assertion, always learned
  void Finish();                                        // the last token is the answer

 private:
  void Push(int32_t token, int32_t label) {
    sample_.tokens.push_back(token);
    sample_.labels.push_back(label);
  }
  Sample& sample_;
  bool learn_all_;
};

// Two different numbers out of {0, ..., kVariables-1}, uniform over ordered pairs.
std::pair<uint32_t, uint32_t> DrawPair(Rng& rng);

// "\nx, y = z, w" in four tokens.
class UpdateLine {
 public:
  UpdateLine() = default;
  explicit UpdateLine(Atoms& atoms);
  void Write(SampleWriter& out, std::pair<uint32_t, uint32_t> targets,
             std::pair<uint32_t, uint32_t> sources) const {
    out.Put(first_ + static_cast<int32_t>(targets.first));
    out.Put(first_ + static_cast<int32_t>(kVariables + targets.second));
    out.Put(first_ + static_cast<int32_t>(2 * kVariables + sources.first));
    out.Put(first_ + static_cast<int32_t>(3 * kVariables + sources.second));
  }

 private:
  int32_t first_ = 0;
};

// "bits = [0, 1, 1]" in 1 + length tokens, at the start of a sample.
class BitList {
 public:
  BitList() = default;
  explicit BitList(Atoms& atoms);
  void Write(SampleWriter& out, Rng& rng, int64_t length) const;
  static int64_t TokenCount(int64_t length) { return 1 + length; }
  uint32_t Bit(const Sample& sample, uint32_t index) const {
    return static_cast<uint32_t>(sample.tokens[1 + index] - bits_) & 1;
  }

 private:
  int32_t open_ = 0, bits_ = 0;
};

// Vocabulary, oracle, curriculum and streams. A task adds what its programs say.
class ProgramTask : public Task {
 public:
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::string Oracle(const std::string& text_before_answer) const override;
  std::vector<CurriculumStage> Curriculum() const override { return stages_; }

 protected:
  ProgramTask(const char* name, const ProgramConfig& config, int64_t max_difficulty);

  void CheckDifficulty(int64_t difficulty) const;
  SampleWriter Writer(Sample& sample) const { return SampleWriter(sample, learn_all_); }
  static Rng Stream(uint64_t seed, Split split, uint64_t index) {
    return Rng(seed, split == Split::kTrain ? Purpose::kTrainData : Purpose::kEvalData, index);
  }

  Vocabulary vocabulary_{std::vector<std::string>{}};

 private:
  const char* name_;
  bool learn_all_;
  int64_t max_difficulty_;
  std::vector<CurriculumStage> stages_;
};

}  // namespace weft
