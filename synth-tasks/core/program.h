#pragma once
// What tasks share whose samples are Python programs with assertions: atoms of their lines, and the
// oracle.
//
// Every atom carries the separators that belong to it, so that lines are short, every value after
// "==" is one token, all texts of a vocabulary differ, and the longest match at every place of a
// text gives its tokens back.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "synth-tasks/core/generator.h"

namespace weft {

inline constexpr uint32_t kVariables = 5;  // a, b, c, d, e
const std::vector<std::string>& VariableNames();

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
  uint32_t Bit(const SampleWriter& out, uint32_t index) const {
    return static_cast<uint32_t>(out.tokens()[1 + index] - bits_) & 1;
  }

 private:
  int32_t open_ = 0, bits_ = 0;
};

class ProgramTask : public GeneratedTask {
 public:
  std::string Oracle(const std::string& text_before_answer) const final;

 protected:
  ProgramTask(const char* name, const LanguageConfig& config, int64_t max_difficulty)
      : GeneratedTask(name, config, max_difficulty, config.loss == "all") {}
};

}  // namespace weft
