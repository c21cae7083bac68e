#include "arch/core/config.h"
#include "kernels/base/check.h"
#include "synth-tasks/core/task.h"

namespace weft {

std::string Vocabulary::Text(std::span<const int32_t> tokens) const {
  std::string result;
  for (const int32_t token : tokens) {
    Check(token >= 0 && token < size(), "token ", token, " is not in the vocabulary of ", size(),
          " tokens");
    result += texts_[static_cast<size_t>(token)];
  }
  return result;
}

const TaskSpec& FindTask(const std::string& name) {
  std::vector<std::string> names;
  std::string list;
  for (const TaskSpec& spec : AllTasks()) {
    if (spec.name == name) return spec;
    names.emplace_back(spec.name);
    list += (list.empty() ? "" : ", ") + names.back();
  }
  Fail(ExitCode::kUsage, "unknown task \"", name, "\"; the nearest is \"", NearestKey(name, names),
       "\" (tasks: ", list, ")");
}

}  // namespace weft
