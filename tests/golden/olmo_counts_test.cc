// links: weft_train
// Parameter counts of the released Olmo models (arXiv:2604.03444; OLMo-core fa6c501, num_params).

#include <gtest/gtest.h>

#include "experiments/train/trainer.h"

namespace weft {
namespace {

RunPlan PlanOf(const char* config) {
  return PlanRun(*Experiment::Load(std::string(WEFT_SOURCE_DIR "/experiments/") + config, {}), Device{});
}

TEST(OlmoCounts, Hybrid7B) {
  const RunPlan plan = PlanOf("olmo_hybrid_7b.toml");
  EXPECT_EQ(plan.parameters.total, 7430870688);
  EXPECT_EQ(plan.parameters.embedding, 100352 * 3840);
  EXPECT_EQ(plan.parameters.head, 100352 * 3840);
  constexpr int64_t d = 3840, h = 30, k = 30 * 96, v = 30 * 192, head_v = 192, d_mlp = 11008;
  constexpr int64_t kMlpAndNorms = 3 * d * d_mlp + 2 * d;
  constexpr int64_t kGatedDelta =
      d * (2 * k + v) + 2 * d * h + 2 * d * v + 2 * h + 4 * (2 * k + v) + head_v;
  constexpr int64_t kAttention = 4 * d * d + 2 * d;  // with the two QK-norms over all heads
  for (size_t i = 0; i < plan.block_parameters.size(); ++i) {
    EXPECT_EQ(plan.block_parameters[i], (i % 4 == 3 ? kAttention : kGatedDelta) + kMlpAndNorms)
        << "block " << i;
  }
}

TEST(OlmoCounts, Olmo3_7B) {
  const RunPlan plan = PlanOf("olmo3_7b.toml");
  EXPECT_EQ(plan.parameters.total, 7298617344);
  constexpr int64_t d = 4096, d_mlp = 11008;
  for (const int64_t block : plan.block_parameters)
    EXPECT_EQ(block, 4 * d * d + 2 * d + 3 * d * d_mlp + 2 * d);
}

// Table 1 of the paper: one GDN layer keeps 0.55M state elements, beside the last inputs of the
// convolution.
TEST(OlmoCounts, DecodeState) {
  const RunPlan plan = PlanOf("olmo_hybrid_7b.toml");
  constexpr int64_t kState = 30 * 96 * 192, kHistory = 3 * 30 * (96 + 96 + 192),
                    kCache = 2 * 30 * 128 * 8192;
  EXPECT_EQ(plan.state_bytes, 4 * (24 * (kState + kHistory) + 8 * kCache));
  EXPECT_NEAR(kState, 0.55e6, 0.005e6);
}

}  // namespace
}  // namespace weft
