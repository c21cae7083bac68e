// The control: mixes nothing over time, so every task that needs context must stay at chance.

#include "arch/core/mixer.h"

namespace weft {
namespace {

class Identity : public Mixer {
 public:
  Var Forward(Context&, Tape&, const Var& x, const Documents&, MixerState*) override { return x; }
  MixerState NewState(Context&, int64_t, int64_t capacity) const override {
    return {{}, 0, capacity};
  }
  MixerCost Cost(int64_t) const override { return {0, 0}; }
};

struct IdentityConfig : MixerConfig {
  void VisitOwn(ConfigVisitor&) override {}
  std::unique_ptr<Mixer> Make(ParamRegistry&, const std::string&, int64_t, double) const override {
    return std::make_unique<Identity>();
  }
};

}  // namespace

MixerSpec Spec_identity() {
  return {"identity", "passes its input on; the control that must stay at chance",
          [] { return std::unique_ptr<MixerConfig>(std::make_unique<IdentityConfig>()); }};
}

}  // namespace weft
