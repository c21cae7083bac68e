#include "arch/core/mixer.h"

namespace weft {

const MixerSpec& FindMixer(const std::string& name) {
  std::vector<std::string> known;
  for (const MixerSpec& spec : AllMixers()) {
    if (name == spec.name) return spec;
    known.push_back(spec.name);
  }
  Fail(ExitCode::kUsage, "unknown mixer \"", name, "\"; did you mean \"", NearestKey(name, known),
       "\"?");
}

}  // namespace weft
