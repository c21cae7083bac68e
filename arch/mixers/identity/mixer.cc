// The control: mixes nothing over time, so every task that needs context must stay at chance.

#include "arch/core/mixer.h"

#include "arch/ops/linear.h"
#include "kernels/qk_norm_rope/qk_norm_rope.h"

namespace weft {
namespace {

class Identity : public Mixer {
 public:
  // A copy: what a mixer gives has memory and a gradient of its own.
  Var Forward(Context& c, Tape& tape, const Var& x, const Documents&, MixerState*) override {
    const Var y = tape.NewVarLike(c, "identity.y", x.x);
    const Var from = SplitLast(x, 1, x.x.dim(-1)), to = SplitLast(y, 1, x.x.dim(-1));
    const QkNormRopeFwd copy{.x = from.x, .y = to.x};
    tape.Run(c, copy, QkNormRopeBwd{copy, to.dx, GradOf(from), {}});
    return y;
  }
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
          [] { return std::unique_ptr<MixerConfig>(std::make_unique<IdentityConfig>()); },
          "0; 0; 0"};
}

}  // namespace weft
