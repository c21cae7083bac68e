#include "synth-tasks/core/program.h"

#include "kernels/base/check.h"
#include "synth-tasks/core/python.h"

namespace weft {

void ProgramConfig::Visit(ConfigVisitor& v) {
  v.Key("difficulties", difficulties, "training difficulties, ascending",
        Range{1, kLargestDifficulty});
  v.Key("stage_steps", stage_steps,
        "at most so many steps at each difficulty; 0 for the last: until the end", Range{0, 1e12});
  v.Key("promote_accuracy", promote_accuracy,
        "accuracy at which a stage ends early; 0 = only when its steps are used up", Range{0, 1});
  v.Key("loss", loss, "learn every token, or only the values of assertions", {"all", "answers"});
}

std::vector<CurriculumStage> ProgramConfig::Stages(int64_t max_difficulty) const {
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
            "; lower it or raise task.max_difficulty");
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

const std::vector<std::string>& VariableNames() {
  static const std::vector<std::string> names = {"a", "b", "c", "d", "e"};
  return names;
}

std::vector<std::string> Numbers(int64_t count) {
  std::vector<std::string> numbers;
  for (int64_t i = 0; i < count; ++i) numbers.push_back(std::to_string(i));
  return numbers;
}

void SampleWriter::Finish() {
  sample_.labels.erase(sample_.labels.begin());  // the label of a position is the token after it
  sample_.labels.push_back(kIgnoreLabel);
  sample_.answer = sample_.tokens.back();
  sample_.answer_position = static_cast<int32_t>(sample_.tokens.size()) - 2;
}

std::pair<uint32_t, uint32_t> DrawPair(Rng& rng) {
  const uint32_t first = rng.Below(kVariables), second = rng.Below(kVariables - 1);
  return {first, second + (second >= first)};
}

UpdateLine::UpdateLine(Atoms& atoms) : first_(atoms.Add("\n", VariableNames(), ",")) {
  atoms.Add(" ", VariableNames(), " =");
  atoms.Add(" ", VariableNames(), ",");
  atoms.Add(" ", VariableNames());
}

BitList::BitList(Atoms& atoms)
    : open_(atoms.Add("bits = [")), bits_(atoms.Add("", {"0, ", "1, ", "0]", "1]"})) {}

void BitList::Write(SampleWriter& out, Rng& rng, int64_t length) const {
  out.Put(open_);
  for (int64_t i = 0; i < length; ++i) {
    out.Put(bits_ + (i + 1 == length ? 2 : 0) + static_cast<int32_t>(rng.Below(2)));
  }
}

ProgramTask::ProgramTask(const char* name, const ProgramConfig& config, int64_t max_difficulty)
    : name_(name),
      learn_all_(config.loss == "all"),
      max_difficulty_(max_difficulty),
      stages_(config.Stages(max_difficulty)) {}

std::string ProgramTask::Oracle(const std::string& text_before_answer) const {
  return CompletePython(text_before_answer);
}

void ProgramTask::CheckDifficulty(int64_t difficulty) const {
  if (difficulty < 1 || difficulty > max_difficulty_) {
    Fail(ExitCode::kUsage, "difficulty ", difficulty, " of task ", name_, ": expected 1 to ",
         max_difficulty_,
         max_difficulty_ < kLargestDifficulty ? ", or a larger task.max_difficulty" : "");
  }
}

}  // namespace weft
