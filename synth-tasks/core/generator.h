#pragma once
// What all generators share: the curriculum and supervision knobs, a vocabulary under construction,
// a writer that keeps the labels beside the tokens, and the parts of a task that do not depend on
// what it asks.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arch/core/config.h"
#include "kernels/base/rng.h"
#include "synth-tasks/core/task.h"

namespace weft {

inline constexpr int64_t kLargestDifficulty = 1024;

// Knobs of every task. Evaluation is strict and has exactly the difficulty that it asks for,
// whatever these say.
struct GeneratorConfig : TaskConfig {
  std::vector<int64_t> difficulties, stage_steps;
  double promote_accuracy = 0;
  int64_t shortest = 0;
  double strict_fraction = 0;

  void Visit(ConfigVisitor& v) override;
  std::vector<CurriculumStage> Stages(int64_t max_difficulty) const;  // checks the knobs together
};

// Knobs of tasks whose labels are the next tokens.
struct LanguageConfig : GeneratorConfig {
  std::string loss = "all";
  void Visit(ConfigVisitor& v) override;
};

// Knobs of tasks that tag their input with the state after every token.
struct TaggingConfig : GeneratorConfig {
  std::string supervision = "every";
  void Visit(ConfigVisitor& v) override;
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

std::vector<std::string> Numbers(int64_t count);  // "0", "1", ..., count of them

// Appends tokens to a sample, and to each position the label that belongs to it.
class SampleWriter {
 public:
  SampleWriter(Sample& sample, bool learn_all) : sample_(sample), learn_all_(learn_all) {
    sample.Clear();
  }
  const std::vector<int32_t>& tokens() const { return sample_.tokens; }
  void StartAgain() { sample_.Clear(); }

  void Put(int32_t token) { Push(token, learn_all_ ? token : kIgnoreLabel); }
  void PutValue(int32_t token) { Push(token, token); }  // always learned
  void PutAnswer(int32_t token) {                       // learned and graded
    sample_.answers.push_back(static_cast<int32_t>(sample_.tokens.size()) - 1);
    Push(token, token);
  }
  // What is to be predicted at the last token instead of the token after it.
  void Tag(int32_t label) { sample_.labels.push_back(label); }
  void TagAnswer(int32_t label) {
    sample_.answers.push_back(static_cast<int32_t>(sample_.tokens.size()) - 1);
    Tag(label);
  }
  void Finish() {
    if (sample_.labels.size() < sample_.tokens.size()) sample_.labels.push_back(kIgnoreLabel);
  }

 private:
  void Push(int32_t token, int32_t label) {
    if (sample_.labels.size() < sample_.tokens.size()) sample_.labels.push_back(label);
    sample_.tokens.push_back(token);
  }
  Sample& sample_;
  bool learn_all_;
};

// Vocabulary, curriculum, streams and the check of the difficulty, 1 to `max_difficulty`. A task
// adds what its samples say.
class GeneratedTask : public Task {
 public:
  const Vocabulary& vocabulary() const final { return vocabulary_; }
  std::vector<CurriculumStage> Curriculum() const final { return stages_; }
  void Generate(uint64_t seed, Split split, uint64_t index, int64_t difficulty, bool strict,
                Sample& sample) const final;
  double Chance(int64_t difficulty) const final;
  int64_t MaxLength(int64_t difficulty) const final;

 protected:
  GeneratedTask(const char* name, const GeneratorConfig& config, int64_t max_difficulty,
                bool learn_all);

  // Writes a whole sample. Allocates nothing.
  virtual void Write(SampleWriter& out, Rng& rng, int64_t n, bool strict) const = 0;
  virtual double ChanceOf(int64_t n) const = 0;
  virtual int64_t LengthOf(int64_t n) const = 0;

  Vocabulary vocabulary_{std::vector<std::string>{}};

 private:
  void CheckDifficulty(int64_t difficulty) const;

  const char* name_;
  bool learn_all_;
  int64_t max_difficulty_, shortest_;
  double strict_fraction_;
  std::vector<CurriculumStage> stages_;
};

// Oracles: the words of a text, which are separated by spaces, and the value of `digits`.
std::vector<std::string_view> Words(std::string_view text);
int64_t IntegerOf(std::string_view digits);  // Error when it is none

}  // namespace weft
