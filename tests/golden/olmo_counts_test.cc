// links: weft_train weft_sweeps
// Counts of the released Olmo models and of their ladder (arXiv:2604.03444, Tables 1 and 22 and
// appendix D.4; OLMo-core fa6c501, num_params and WSDSChinchillaRunConfigurator).

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "experiments/train/match.h"
#include "experiments/train/trainer.h"
#include "sweeps/sweep.h"
#include "tests/cli/shell.h"

namespace weft {
namespace {

RunPlan PlanOf(const char* config) {
  return PlanRun(*Experiment::Load(std::string(WEFT_SOURCE_DIR "/experiments/") + config, {}),
                 Device{});
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

std::unique_ptr<Experiment> ExperimentOf(const Sweep& sweep, const Settings& settings) {
  Settings all = ReadTomlFile(sweep.base);
  all.insert(all.end(), settings.begin(), settings.end());
  return Experiment::FromSettings(all);
}

struct Size {
  const char* name;
  int64_t d, h, l;
  double batch, lr, tokens;  // as printed: thousands, 1e-3, billions at 8xC
};
constexpr Size kSizes[] = {
    {"60M", 384, 8, 8, 215, 2.90, 9.2},      {"100M", 512, 8, 12, 315, 2.40, 16.3},
    {"190M", 768, 12, 12, 478, 1.95, 30.5},  {"370M", 1024, 16, 16, 746, 1.56, 59.4},
    {"600M", 1280, 16, 16, 968, 1.37, 87.7}, {"760M", 1536, 16, 16, 1200, 1.23, 121.3},
    {"1B", 2048, 16, 16, 1700, 1.03, 204.7},
};
const Size& SizeOf(const Cell& cell) {
  for (const Size& size : kSizes) {
    if (cell.case_name == size.name) return size;
  }
  throw std::runtime_error("no such size: " + cell.case_name);
}
// Table 22: millions of parameters without the embedding, in the order of kSizes.
const std::map<std::string, std::vector<int64_t>> kTable22 = {
    {"transformer", {57, 102, 190, 371, 548, 758, 1279}},
    {"gated_delta", {78, 140, 276, 574, 780, 1011, 1549}},
    {"hybrid_1_1", {68, 121, 233, 472, 664, 885, 1414}},
    {"hybrid_3_1", {73, 130, 254, 523, 722, 948, 1482}},
    {"hybrid_7_1", {75, 133, 262, 548, 751, 980, 1516}},
    {"hybrid_middle", {70, 127, 247, 510, 707, 932, 1465}},
};

class Ladder : public testing::Test {
 protected:
  const Sweep sweep_ = ReadSweep(WEFT_SOURCE_DIR "/experiments/ladder/published.toml");
};

TEST_F(Ladder, CountsAreThoseOfTable22) {
  std::map<std::string, int> seen;
  for (const Cell& cell : sweep_.cells) {
    const auto e = ExperimentOf(sweep_, cell.settings);
    const Size* size = &SizeOf(cell);
    const Model::Counts n = ModelOf(*e).Count();
    EXPECT_EQ(std::llround(static_cast<double>(n.body + n.head) / 1e6),
              kTable22.at(cell.variant)[static_cast<size_t>(size - kSizes)])
        << cell.name;
    ++seen[cell.variant];

    // N_attn and N_GDN of appendix D.4, with the norm over one head's values as in the code.
    const int64_t d = size->d, h = size->h, k = h * 128, v = 2 * k, common = 3 * d * 4 * d + 2 * d;
    int64_t total = 2 * 100352 * d + d;
    for (int64_t i = 0; i < size->l; ++i) {
      const bool attention = e->model.LabelOf(i).starts_with("attention");
      total += common + (attention ? 4 * d * d + 2 * d
                                   : d * (2 * k + v + 2 * h) + 2 * h + 4 * (2 * k + v) + d * v +
                                         256 + v * d);
    }
    EXPECT_EQ(n.total, total) << cell.name;
  }
  EXPECT_EQ(seen.size(), kTable22.size());
  for (const auto& [variant, count] : seen) EXPECT_EQ(count, 7) << variant;
}

// M_attn with s_eff = (s + 1) / 2 visible keys, and M_GDN,recurrent, of appendix D.4.
TEST_F(Ladder, FlopsAreThoseOfAppendixD4) {
  for (const Cell& cell : sweep_.cells) {
    if (cell.variant == "transformer") continue;  // has sliding windows, which the formula lacks
    const auto e = ExperimentOf(sweep_, cell.settings);
    const double d = static_cast<double>(e->model.d_model), s = 8192, h_g = 128;
    const double h = static_cast<double>(SizeOf(cell).h);
    const double k = h * h_g, v = 2 * k, mlp = 3 * d * 4 * d;
    double sum = d * 100352;
    for (int64_t i = 0; i < e->model.layers; ++i) {
      // The input projection has 2 k + 2 v + 2 h rows in the formula; ours computes whole 64.
      const double rows = static_cast<double>(RoundUpRows(static_cast<int64_t>(2 * (k + v + h))));
      sum += mlp + (e->model.LabelOf(i) == "attention"
                        ? 4 * d * d + d * (s + 1)
                        : d * rows + 4 * (2 * k + v) + d * v + 3 * h * h_g * 2 * h_g);
    }
    EXPECT_NEAR(QuantityOf(*e, "flops"), 2 * sum, 1e-9 * sum) << cell.name;
  }
}

TEST_F(Ladder, BatchRateAndTokensFollowFromTheSize) {
  for (const Cell& cell : sweep_.cells) {
    const auto e = ExperimentOf(sweep_, cell.settings);
    const Size* size = &SizeOf(cell);
    const double batch = static_cast<double>(e->train.batch * e->train.length);
    const double row = static_cast<double>(e->train.length);
    EXPECT_NEAR(batch, size->batch * 1e3, 0.6 * row + 5e-3 * batch) << cell.name;
    EXPECT_NEAR(e->optim.lr * 1e3, size->lr, 0.0051) << cell.name;
    // N is the transformer's, for every architecture of the size.
    const Cell& transformer = sweep_.cells[static_cast<size_t>(size - kSizes)];
    const Model::Counts n = ModelOf(*ExperimentOf(sweep_, transformer.settings)).Count();
    ASSERT_EQ(transformer.variant, "transformer");
    EXPECT_EQ(e->ladder.parameters, n.body + n.head) << cell.name;
    const double parameters = static_cast<double>(e->ladder.parameters);
    ASSERT_EQ(DecaysOf(e->optim).size(), 5u);
    double multiple = 0.5;
    for (const Decay& decay : DecaysOf(e->optim)) {
      EXPECT_NEAR(static_cast<double>(e->TokensAfter(decay.end)), multiple * 20 * parameters,
                  batch / 2)
          << cell.name;
      // A tenth of the period.
      EXPECT_NEAR(static_cast<double>(decay.end - decay.begin) * batch,
                  2 * parameters * (multiple == 0.5 ? 0.5 : multiple / 2), batch);
      multiple *= 2;
    }
    EXPECT_NEAR(static_cast<double>(e->TokensAfter(e->train.steps)) / 1e9, size->tokens,
                0.05 + batch / 1e9);
    EXPECT_NEAR(static_cast<double>(e->optim.warmup) * batch, parameters, batch / 2);
    EXPECT_EQ(e->optim.beta2, batch >= 524288 ? 0.95 : 0.99);
    EXPECT_DOUBLE_EQ(LearningRate(e->optim, e->train.steps - 1, e->train.steps),
                     e->optim.lr / static_cast<double>(DecaysOf(e->optim).back().end -
                                                       DecaysOf(e->optim).back().begin));
  }
}

TEST_F(Ladder, GivenKeysWinOverTheRules) {
  const std::string base = sweep_.base;
  const auto e = Experiment::Load(base, {"optim.lr=1e-4", "train.batch=7", "ladder.multiples=1,3"});
  EXPECT_EQ(e->optim.lr, 1e-4);
  EXPECT_EQ(e->train.batch, 7);
  EXPECT_EQ(e->train.batch % e->train.accumulate, 0);
  EXPECT_EQ(e->origins().at("optim.warmup"), "ladder.parameters");
  EXPECT_EQ(e->train.steps, std::llround(3 * 20 * 57422208.0 / (7 * 8192)));
  EXPECT_DOUBLE_EQ(Experiment::Load(base, {"ladder.lr_factor=0.25"})->optim.lr,
                   Experiment::Load(base, {})->optim.lr / 4);
  const auto cosine = Experiment::Load(base, {"optim.schedule=cosine"});
  EXPECT_EQ(cosine->train.steps, 43136);
  // What was resolved resolves to itself.
  const auto again = Experiment::FromToml(WriteToml(e->Fields()), "again");
  EXPECT_EQ(HashOf(again->Fields()), HashOf(e->Fields()));
}

// The ladder for one GPU: sizes as its names say, N as the rules want it, bodies equal to half a
// per cent.
TEST(MiniLadder, IsMatched) {
  const Sweep sweep = ReadSweep(WEFT_SOURCE_DIR "/experiments/ladder/mini.toml");
  double least = 1e18, most = 0;
  int matched = 0;
  for (const Cell& cell : sweep.cells) {
    const auto e = ExperimentOf(sweep, cell.settings);
    const Model::Counts n = ModelOf(*e).Count();
    if (cell.variant == "transformer") {
      EXPECT_EQ(e->ladder.parameters, n.body + n.head) << cell.name;
      EXPECT_NEAR(static_cast<double>(n.body) / 1e6, std::stod(cell.case_name),
                  0.05 * static_cast<double>(n.body) / 1e6);
      least = std::min(least, static_cast<double>(n.body));
      most = std::max(most, static_cast<double>(n.body));
    }
    if (cell.reference.empty()) continue;
    ++matched;
    const Match match =
        SolveMatch(*e, *ExperimentOf(sweep, cell.reference),
                   {sweep.match.quantity, sweep.match.by, 0.5, sweep.match.multiple});
    EXPECT_EQ(match.value % 8, 0);
  }
  EXPECT_EQ(matched, 14);
  EXPECT_LT(least, 0.6e6);
  EXPECT_GT(most, 28e6);
}

// The sweeps that are run on it differ from it in seeds, rates, multiples and the text alone.
TEST(MiniLadder, ItsSweepsHaveItsSizes) {
  const std::set<std::string> own = {
      "ladder.multiples", "ladder.lr_factor", "optim.rewind",          "seed",
      "eval.rows",        "train.log_every",  "train.checkpoint_every"};
  const auto models = [&](const char* file) {
    std::map<std::string, std::set<std::string>> settings;  // by variant and case
    for (const Cell& cell : ReadSweep(Cat(WEFT_SOURCE_DIR, file)).cells) {
      for (const Setting& s : cell.settings) {
        if (!own.contains(s.path) && !s.path.starts_with("data."))
          settings[cell.variant + "/" + cell.case_name.substr(0, cell.case_name.find(','))].insert(
              s.path + "=" + ToToml(s.value));
      }
    }
    return settings;
  };
  auto ladder = models("/experiments/ladder/mini.toml");
  for (const char* file : {"/sweeps/ladder_mini.toml", "/sweeps/ladder_lr.toml"}) {
    for (const auto& [cell, settings] : models(file)) EXPECT_EQ(ladder[cell], settings) << cell;
  }
}

// The programs say the same.
TEST(MiniLadder, PlanSaysSo) {
  Scratch scratch;
  const ShellResult result =
      Shell(scratch.path(), "'" WEFT_BIN_DIR "/weft-sweep' plan '" WEFT_SOURCE_DIR
                            "/experiments/ladder/mini.toml' --json");
  ASSERT_EQ(result.code, 0) << result.output;
  const auto plan = nlohmann::json::parse(result.output);
  ASSERT_EQ(plan.at("cells").size(), 35u);
  std::map<std::string, double> bodies;  // of the transformers, by case
  for (const auto& cell : plan.at("cells")) {
    const double body = cell.at("parameters").at("body");
    if (cell.at("variant") == "transformer") bodies[cell.at("case")] = body;
    ASSERT_EQ(cell.at("decayed_tokens").size(), 5u);
    EXPECT_LT(cell.at("decayed_tokens").back(), cell.at("tokens"));  // decays are taken back
    if (!cell.contains("match")) continue;
    const auto& match = cell.at("match");
    EXPECT_EQ(match.at("reference"), bodies.at(cell.at("case")));
    EXPECT_EQ(match.at("matched"), body);
    EXPECT_LT(std::abs(match.at("residual_percent").get<double>()), 0.5);
    EXPECT_EQ(cell.at("set").back(), Cat("model.d_ff=", match.at("value").get<int64_t>()));
  }
}

// The models of Table 14 and the search of appendix C. A task's own config and its case of the
// sweep say the same.
TEST(Tables15To17, AreThePublishedModelsAndSearch) {
  const Sweep sweep = ReadSweep(WEFT_SOURCE_DIR "/sweeps/olmo_hybrid_tables_15_17.toml");
  constexpr int64_t d = 256, k = 4 * 64, v = 4 * 128, kMlpAndNorms = 3 * d * 1024 + 2 * d;
  constexpr int64_t kAttention = 4 * d * d + 2 * d + kMlpAndNorms;
  constexpr int64_t kGatedDelta =
      d * (2 * k + v) + 2 * d * 4 + 2 * d * v + 2 * 4 + 4 * (2 * k + v) + 128 + kMlpAndNorms;
  std::map<std::string, std::set<std::string>> searched;  // by case
  for (const Cell& cell : sweep.cells) {
    const auto e = ExperimentOf(sweep, cell.settings);
    const int64_t deltas = cell.variant == "transformer"         ? 0
                           : cell.variant.starts_with("hybrid_") ? 3
                                                                 : 4;
    EXPECT_EQ(ModelOf(*e).Count().body, deltas * kGatedDelta + (4 - deltas) * kAttention + d);
    EXPECT_EQ(e->train.batch, 32);
    EXPECT_EQ(e->optim.warmup, 250);
    EXPECT_EQ(e->eval.samples, 256);
    EXPECT_EQ(e->eval.difficulties, (std::vector<int64_t>{4, 8, 16, 32, 64, 128}));
    searched[cell.case_name].insert(Cat(e->optim.schedule, " ", e->optim.lr));
    if (cell.case_name == "state_based_recall_answers" ||
        cell.case_name == "state_based_recall_all_addresses")
      continue;  // ours

    const auto task =
        Experiment::Load(Cat(WEFT_SOURCE_DIR "/experiments/", cell.case_name, ".toml"), {});
    EXPECT_EQ(task->train.length, e->train.length) << cell.case_name;
    EXPECT_EQ(ModelOf(*task).Count().body, 3 * kGatedDelta + kAttention + d);
  }
  EXPECT_EQ(searched["state_tracking"].size(), 6u);
  EXPECT_EQ(searched["recall"].size(), 6u);
  EXPECT_EQ(searched["state_based_recall"].size(), 4u);
  EXPECT_EQ(searched["state_based_recall_answers"].size(), 1u);
  EXPECT_EQ(searched["state_based_recall_all_addresses"].size(), 1u);
  EXPECT_EQ(searched.size(), 5u);
}

// The figure sets accuracy at the greatest difficulty against the decode state of train.length
// tokens.
TEST(Mqar, TheHardestSampleHasTheLengthOfTheDecodeState) {
  const auto e = Experiment::Load(WEFT_SOURCE_DIR "/experiments/mqar.toml", {});
  EXPECT_EQ(e->task->Make()->MaxLength(e->eval.difficulties.back()), e->train.length);
}

TEST(Studies, CanAllBePlanned) {
  for (const char* name : {"olmo_hybrid_tables_15_17", "parity_and_groups", "mqar",
                           "recall_lengths", "code_execution"}) {
    Scratch scratch;
    const ShellResult result =
        Shell(scratch.path(), Cat("'" WEFT_BIN_DIR "/weft-sweep' plan '" WEFT_SOURCE_DIR "/sweeps/",
                                  name, ".toml' --json"));
    EXPECT_EQ(result.code, 0) << result.output;
  }
}

}  // namespace
}  // namespace weft
