#include "synth-tasks/core/program.h"

#include "synth-tasks/core/python.h"

namespace weft {

const std::vector<std::string>& VariableNames() {
  static const std::vector<std::string> names = {"a", "b", "c", "d", "e"};
  return names;
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

std::string ProgramTask::Oracle(const std::string& text_before_answer) const {
  return CompletePython(text_before_answer);
}

}  // namespace weft
