#include "synth-tasks/core/generator.h"

#include <algorithm>
#include <charconv>

#include "kernels/base/check.h"

namespace weft {

void GeneratorConfig::Visit(ConfigVisitor& v) {
  v.Key("difficulties", difficulties, "training difficulties, ascending",
        Range{1, kLargestDifficulty});
  v.Key("stage_steps", stage_steps,
        "at most so many steps at each difficulty; 0 for the last: until the end", Range{0, 1e12});
  v.Key("promote_accuracy", promote_accuracy,
        "accuracy at which a stage ends early; 0 = only when its steps are used up", Range{0, 1});
  v.Key("shortest", shortest,
        "training samples have a uniform difficulty from here to the stage's; 0 = the stage's",
        Range{0, kLargestDifficulty});
  v.Key("strict_fraction", strict_fraction,
        "part of the training samples without intermediate supervision, as in evaluation",
        Range{0, 1});
}

void LanguageConfig::Visit(ConfigVisitor& v) {
  GeneratorConfig::Visit(v);
  v.Key("loss", loss, "learn every token, or only the answers and intermediate values",
        {"all", "answers"});
}

void TaggingConfig::Visit(ConfigVisitor& v) {
  GeneratorConfig::Visit(v);
  v.Key("supervision", supervision, "training asks for the state after every step, or the last",
        {"every", "last"});
}

std::vector<CurriculumStage> GeneratorConfig::Stages(int64_t max_difficulty) const {
  const auto require = [](bool ok, const auto&... parts) {
    if (!ok) Fail(ExitCode::kUsage, parts...);
  };
  require(!difficulties.empty(), "task.difficulties is empty; expected at least one difficulty");
  require(stage_steps.size() == difficulties.size(), "task.stage_steps has ", stage_steps.size(),
          " entries and task.difficulties ", difficulties.size(), "; expected as many");
  std::vector<CurriculumStage> stages;
  for (size_t i = 0; i < difficulties.size(); ++i) {
    const bool last = i + 1 == difficulties.size();
    const int64_t difficulty = difficulties[i], steps = stage_steps[i];
    require(i == 0 || difficulty > difficulties[i - 1], "task.difficulties[", i, "] = ", difficulty,
            " does not exceed the ", difficulties[i > 0 ? i - 1 : 0],
            " before it; expected an ascending list");
    require(difficulty <= max_difficulty, "task.difficulties[", i, "] = ", difficulty,
            " exceeds the largest difficulty, ", max_difficulty,
            "; lower it, or change the knobs that allow for no more");
    require(last || steps > 0, "task.stage_steps[", i,
            "] = 0 would never end; only the last stage lasts until the end");
    require(!last || steps == 0, "task.stage_steps[", i, "] = ", steps,
            "; the last stage lasts until the end of training, write 0");
    stages.push_back({difficulty, steps, last ? 0.0 : promote_accuracy});
  }
  return stages;
}

void VisitMaxDifficulty(ConfigVisitor& v, int64_t& max_difficulty) {
  v.Key("max_difficulty", max_difficulty,
        "largest difficulty of training and evaluation; sizes the vocabulary",
        Range{1, kLargestDifficulty});
}

int32_t Atoms::Add(const std::string& prefix, const std::vector<std::string>& items,
                   const std::string& suffix) {
  const auto first = static_cast<int32_t>(texts_.size());
  for (const std::string& item : items) texts_.push_back(prefix + item + suffix);
  return first;
}

std::vector<std::string> Numbers(int64_t count) {
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(std::to_string(i));
  return numbers;
}

GeneratedTask::GeneratedTask(const char* name, const GeneratorConfig& config,
                             int64_t max_difficulty, bool learn_all)
    : name_(name),
      learn_all_(learn_all),
      max_difficulty_(max_difficulty),
      shortest_(config.shortest),
      strict_fraction_(config.strict_fraction),
      stages_(config.Stages(max_difficulty)) {}

void GeneratedTask::Generate(uint64_t seed, Split split, uint64_t index, int64_t difficulty,
                             bool strict, Sample& sample) const {
  CheckDifficulty(difficulty);
  Rng rng(seed, split == Split::kTrain ? Purpose::kTrainData : Purpose::kEvalData, index);
  if (!strict && shortest_ > 0) {
    const int64_t low = std::min(shortest_, difficulty);
    difficulty = low + rng.Below(static_cast<uint32_t>(difficulty - low + 1));
  }
  if (!strict && strict_fraction_ > 0) strict = rng.Uniform() < strict_fraction_;
  SampleWriter out(sample, learn_all_);
  Write(out, rng, difficulty, strict);
  out.Finish();
}

double GeneratedTask::Chance(int64_t difficulty) const {
  CheckDifficulty(difficulty);
  return ChanceOf(difficulty);
}

int64_t GeneratedTask::MaxLength(int64_t difficulty) const {
  CheckDifficulty(difficulty);
  int64_t longest = LengthOf(difficulty);
  if (shortest_ > 0) {
    for (int64_t n = shortest_; n < difficulty; ++n) longest = std::max(longest, LengthOf(n));
  }
  return longest;
}

void GeneratedTask::CheckDifficulty(int64_t difficulty) const {
  if (difficulty < 1 || difficulty > max_difficulty_) {
    Fail(ExitCode::kUsage, "difficulty ", difficulty, " of task ", name_, ": expected 1 to ",
         max_difficulty_,
         max_difficulty_ < kLargestDifficulty ? ", or knobs that allow for more" : "");
  }
}

std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t length = std::min(text.find(' '), text.size());
    if (length > 0) words.push_back(text.substr(0, length));
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return words;
}

int64_t IntegerOf(std::string_view digits) {
  int64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  Check(error == std::errc() && stop == end, "expected an integer, found \"", digits, "\"");
  return value;
}

}  // namespace weft
