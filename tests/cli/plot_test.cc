// links: weft_run
// weft-plot as a user calls it: files, numbers and errors.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "experiments/run/files.h"
#include "experiments/run/h5.h"
#include "kernels/base/check.h"
#include "tests/process.h"
#include "tests/table_rows.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;
using Texts = std::vector<std::string>;

class PlotTest : public testing::Test {
 protected:
  Result Call(const std::string& arguments, const std::string& program = "weft-plot") const {
    return ResultOf(
        root_, {"/bin/sh", "-c", "'" WEFT_SOURCE_DIR "/analysis/" + program + "' " + arguments});
  }
  void ExpectRefused(const std::string& arguments, const Texts& parts, int code = 3) const {
    const Result result = Call(arguments);
    ExpectOneLine(result, code, parts);
    EXPECT_TRUE(result.out.empty()) << result.out;
  }
  void ExpectImages(const std::string& directory, const std::string& name,
                    const Texts& labels) const {
    const std::string png = ReadFile(root_ + "/" + directory + "/" + name + ".png");
    EXPECT_TRUE(png.starts_with("\x89PNG\r\n\x1a\n"));
    EXPECT_EQ(png.substr(png.size() - 8, 4), "IEND");
    EXPECT_GT(png.size(), 10000u);
    const std::string svg = ReadFile(root_ + "/" + directory + "/" + name + ".svg");
    EXPECT_NE(svg.find("<svg"), std::string::npos);
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    for (const std::string& label : labels)
      EXPECT_NE(svg.find(">" + label + "<"), std::string::npos) << label;
  }

  // Two variants, two tasks and text, two seeds: accuracy 1/difficulty of the first seed, 0.1 less
  // of the second.
  void WriteSweep(const std::string& path) const {
    TableRows cells("/cells"), eval("/eval"), train("/train");
    int64_t index = 0;
    for (const char* variant : {"rnn", "attention"}) {
      for (const std::string task : {"recall", "state_tracking", "text"}) {
        for (int64_t seed = 0; seed < 2; ++seed, ++index) {
          cells.Add({{"cell", index}, {"variant", variant}, {"case", task}, {"seed", seed}});
          for (const int64_t step : {500, 1000}) {
            for (const int64_t d : task == "text" ? Integers{0} : Integers{2, 4, 8}) {
              const double accuracy = 1.0 / static_cast<double>(std::max<int64_t>(d, 1)) -
                                      0.1 * static_cast<double>(seed);
              eval.Add({{"cell", index},
                        {"variant", variant},
                        {"case", task},
                        {"seed", seed},
                        {"step", step},
                        {"tokens", step * 64},
                        {"name", task},
                        {"difficulty", d},
                        {"accuracy", step == 500 ? 0.0 : accuracy},
                        {"nll", std::log(2.0) * (step == 500 ? 9 : 2.5)},
                        {"labels", 100},
                        {"chance", task == "text" ? std::nan("") : 0.05}});
            }
          }
          for (int64_t step = 1; step <= 1000; ++step) {
            train.Add({{"cell", index},
                       {"step", step},
                       {"tokens", step * 64},
                       {"loss", 4 / std::sqrt(static_cast<double>(step))}});
          }
        }
      }
    }
    WriteH5(root_ + "/" + path, {cells.table(), eval.table(), train.table()},
            {{"/",
              {{"format", std::string("weft-sweep")},
               {"study", std::string("tour")},
               {"question", std::string("Who?")},
               {"axes", Texts{"seed"}}}}});
  }

  // One cell of a study of recall: its accuracies at 4 and 8, none where it is not done.
  struct RecallCell {
    std::string variant;
    double lr;
    int64_t seed;
    Numbers accuracy;
    std::string state = "done";
    double exact_share = 1;  // exact match as a share of the accuracy
    double chance = 0.25;
    std::string of_case = "";
  };
  void WriteRecall(const std::string& path, const std::vector<RecallCell>& cells) const {
    TableRows of_cells("/cells"), eval("/eval"), train("/train");
    for (size_t i = 0; i < cells.size(); ++i) {
      const RecallCell& c = cells[i];
      const auto index = static_cast<int64_t>(i);
      of_cells.Add({{"cell", index},
                    {"variant", c.variant},
                    {"case", c.of_case},
                    {"optim.lr", c.lr},
                    {"seed", c.seed},
                    {"run_id", "run" + std::to_string(i)},
                    {"state", c.state},
                    {"parameters", 1000}});
      for (size_t d = 0; d < c.accuracy.size(); ++d) {
        eval.Add({{"cell", index},
                  {"step", 10},
                  {"tokens", 640},
                  {"name", "recall"},
                  {"difficulty", d == 0 ? 4 : 8},
                  {"accuracy", c.accuracy[d]},
                  {"exact_match", c.exact_share * c.accuracy[d]},
                  {"nll", 1.0},
                  {"labels", 100},
                  {"chance", c.chance}});
        train.Add({{"cell", index}, {"step", 10}, {"tokens", 640}, {"loss", 1.0}});
      }
    }
    WriteH5(root_ + "/" + path, {of_cells.table(), eval.table(), train.table()},
            {{"/",
              {{"format", std::string("weft-sweep")},
               {"study", std::string("recall")},
               {"axes", Texts{"optim.lr", "seed"}}}}});
  }
  // Seed 1 is best at lr 0.01, the others at 0.001; at 0.001 two pass at 4 and one at 8.
  void WriteSearch(const std::string& path) const {
    WriteRecall(path, {{"rnn", 0.001, 0, {1, 0.5}},
                       {"rnn", 0.001, 1, {0.5, 0.25}},
                       {"rnn", 0.001, 2, {0.99, 0.99}},
                       {"rnn", 0.01, 0, {1, 0.25}},
                       {"rnn", 0.01, 1, {0.75, 0.75}},
                       {"rnn", 0.01, 2, {0.5, 0.5}}});
  }
  void WriteRun(const std::string& path, const Texts& pattern, double accuracy, int64_t seed = 0,
                double lr = 0.001) const {
    fs::create_directories(fs::path(root_ + "/" + path).parent_path());
    WriteH5(root_ + "/" + path,
            {{"/train",
              {{"step", "step", Integers{1, 2}},
               {"tokens", "token", Integers{64, 128}},
               {"loss", "nat/label", Numbers{2, 1}}}},
             {"/eval/recall",
              {{"step", "step", Integers{2}},
               {"tokens", "token", Integers{128}},
               {"difficulty", "1", Integers{4}},
               {"accuracy", "1", Numbers{accuracy}},
               {"nll", "nat/label", Numbers{0.5}},
               {"labels", "label", Integers{8}},
               {"chance", "1", Numbers{0.25}}}}},
            {{"/", {{"format", std::string("weft-run")}}},
             {"/settings", {{"model.pattern", pattern}, {"optim.lr", lr}, {"seed", seed}}}});
  }

  Scratch scratch_;
  const std::string root_ = scratch_.path();
};

TEST_F(PlotTest, ASweepBecomesFiguresAndTheTableOfItsLastEvaluations) {
  WriteSweep("sweep.h5");
  const Result output = Call(". --table");
  EXPECT_EQ(output.code, 0) << output.err;
  EXPECT_EQ(
      output.out,
      "recall, accuracy at     seeds  pass rate  95 % interval  median        range  best run  "
      "chance\n"
      "  rnn                2      2      0.000    0.000-0.658   0.450  0.400-0.500     0.500   "
      "0.050\n"
      "  rnn                4      2      0.000    0.000-0.658   0.200  0.150-0.250     0.250   "
      "0.050\n"
      "  rnn                8      2      0.000    0.000-0.658   0.075  0.025-0.125     0.125   "
      "0.050\n"
      "  attention          2      2      0.000    0.000-0.658   0.450  0.400-0.500     0.500   "
      "0.050\n"
      "  attention          4      2      0.000    0.000-0.658   0.200  0.150-0.250     0.250   "
      "0.050\n"
      "  attention          8      2      0.000    0.000-0.658   0.075  0.025-0.125     0.125   "
      "0.050\n"
      "\n"
      "state tracking, accuracy at     seeds  pass rate  95 % interval  median        range  best "
      "run  "
      "chance\n"
      "  rnn                        2      2      0.000    0.000-0.658   0.450  0.400-0.500     "
      "0.500   "
      "0.050\n"
      "  rnn                        4      2      0.000    0.000-0.658   0.200  0.150-0.250     "
      "0.250   "
      "0.050\n"
      "  rnn                        8      2      0.000    0.000-0.658   0.075  0.025-0.125     "
      "0.125   "
      "0.050\n"
      "  attention                  2      2      0.000    0.000-0.658   0.450  0.400-0.500     "
      "0.500   "
      "0.050\n"
      "  attention                  4      2      0.000    0.000-0.658   0.200  0.150-0.250     "
      "0.250   "
      "0.050\n"
      "  attention                  8      2      0.000    0.000-0.658   0.075  0.025-0.125     "
      "0.125   "
      "0.050\n"
      "\n"
      "text, held out  bits/byte\n"
      "  rnn               2.500\n"
      "  attention         2.500\n"
      "\n"
      "A seed passes with an accuracy of at least 0.99, a diverged one does not; intervals are "
      "Wilson's; the best run is the most accurate at the greatest difficulty.\n");
  EXPECT_EQ(output.err, "accuracy.png\naccuracy.svg\nloss.png\nloss.svg\n");
  ExpectImages(".", "accuracy",
               {"recall", "state tracking", "rnn", "attention", "best run", "chance", "accuracy"});
  ExpectImages(".", "loss", {"text", "bits per byte", "tokens", "held out"});
}

TEST_F(PlotTest, JsonHasTheNumbersAndTheFilesWhereTheyWereWanted) {
  WriteSweep("some.h5");
  const Json json = Json::parse(Call("some.h5 --json --out deep/figures").out);
  EXPECT_EQ(json["study"], "tour");
  ASSERT_EQ(json["accuracy"].size(), 4u);
  EXPECT_EQ(json["accuracy"][0]["seeds"], 2);
  EXPECT_NEAR(json["accuracy"][0]["accuracy"]["4"].get<double>(), 0.2, 1e-12);
  EXPECT_NEAR(json["text"][1]["bits_per_byte"].get<double>(), 2.5, 1e-12);
  EXPECT_EQ(json["files"][0], "deep/figures/accuracy.png");
  for (const auto& file : json["files"])
    EXPECT_TRUE(fs::exists(root_ + "/" + file.get<std::string>()));
}

TEST_F(PlotTest, RunsWithoutASweepFileAreNamedByTheirPattern) {
  WriteRun("study/0/run.h5", {"attention"}, 0.75);
  WriteRun("study/1/run.h5", {"gated_delta", "gated_delta", "attention"}, 1);
  EXPECT_EQ(Call("study --table").out,
            "recall, 1 seed, accuracy at      4\n"
            "  attention                  0.750\n"
            "  2 gated_delta + attention  1.000\n"
            "  chance                     0.250\n");
  EXPECT_EQ(Call("study/0 --table").out,
            "recall, 1 seed, accuracy at      4\n"
            "  attention                  0.750\n"
            "  chance                     0.250\n");
  ExpectImages("study/0", "accuracy", {"recall"});
  ExpectRefused("study --best-over=optim.lr",
                {"study: is no sweep and has no axis optim.lr to choose the best over"});
}

TEST_F(PlotTest, RunsAreSeedsOfEachOtherOnlyWhereNothingElseDiffers) {
  WriteRun("study/0/run.h5", {"attention"}, 0.5, 0, 0.001);
  WriteRun("study/1/run.h5", {"attention"}, 1, 1, 0.001);
  WriteRun("study/2/run.h5", {"attention"}, 0.75, 0, 0.01);
  WriteRun("study/3/run.h5", {"attention"}, 0.75, 0, 0.01);  // a copy
  const Json rows = Json::parse(Call("study --json").out)["accuracy"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["series"], "attention lr=0.001");
  EXPECT_EQ(rows[0]["evidence"]["4"]["seeds"], 2);
  EXPECT_EQ(rows[0]["evidence"]["4"]["passed"], 1);
  EXPECT_EQ(rows[1]["series"], "attention lr=0.01");
  EXPECT_EQ(rows[1]["evidence"]["4"]["seeds"], 1);
}

// Both ends solve (passed/n - x)^2 = z^2 x(1 - x)/n on either side of the rate, which is how Wilson
// (1927) defines them; the figures are from the closed form with z = 1.959964.
TEST_F(PlotTest, PassRatesHaveWilsonsInterval) {
  struct Known {
    int64_t passed, n;
    double low, high;
  };
  for (const auto& [passed, n, low, high] :
       {Known{0, 1, 0, 0.793450685}, Known{1, 1, 0.206549315, 1}, Known{0, 3, 0, 0.561497032},
        Known{3, 3, 0.438502968, 1}, Known{5, 10, 0.236593091, 0.763406909}}) {
    std::vector<RecallCell> cells;
    for (int64_t seed = 0; seed < n; ++seed)
      cells.push_back({"rnn", 0.001, seed, {seed < passed ? 1 : 0.9899}});
    WriteRecall("sweep.h5", cells);
    const Json row = Json::parse(Call("sweep.h5 --json").out)["accuracy"][0]["evidence"]["4"];
    EXPECT_EQ(row["seeds"], n);
    EXPECT_EQ(row["passed"], passed);
    const double rate = static_cast<double>(passed) / static_cast<double>(n);
    EXPECT_DOUBLE_EQ(row["pass_rate"], rate);
    EXPECT_NEAR(row["pass_low"], low, 1e-9);
    EXPECT_NEAR(row["pass_high"], high, 1e-9);
    EXPECT_TRUE(passed > 0 || row["pass_low"] == 0.0);
    EXPECT_TRUE(passed < n || row["pass_high"] == 1.0);
    for (const char* end : {"pass_low", "pass_high"}) {
      const double x = row[end], z = 1.959963984540054;
      EXPECT_NEAR((rate - x) * (rate - x), z * z * x * (1 - x) / static_cast<double>(n), 1e-14);
    }
  }
}

constexpr const char* kHead =
    "recall, accuracy at     seeds  pass rate  95 % interval  median        range  best run  "
    "chance\n";
constexpr const char* kNote =
    "\nA seed passes with an accuracy of at least 0.99, a diverged one does not; intervals are "
    "Wilson's; the best run is the most accurate at the greatest difficulty.\n";

TEST_F(PlotTest, EveryValueOfASearchedAxisIsShown) {
  WriteSearch("sweep.h5");
  EXPECT_EQ(Call("sweep.h5 --table").out, std::string(kHead) +
                                              "  rnn lr=0.001       4      3      0.667    "
                                              "0.208-0.939   0.990  0.500-1.000     0.990   "
                                              "0.250\n"
                                              "  rnn lr=0.001       8      3      0.333    "
                                              "0.061-0.792   0.500  0.250-0.990     0.990   "
                                              "0.250\n"
                                              "  rnn lr=0.01        4      3      0.333    "
                                              "0.061-0.792   0.750  0.500-1.000     0.750   "
                                              "0.250\n"
                                              "  rnn lr=0.01        8      3      0.000    "
                                              "0.000-0.561   0.500  0.250-0.750     0.750   "
                                              "0.250\n" +
                                              kNote);
  const Json rows = Json::parse(Call("sweep.h5 --json --pass=0.75").out)["accuracy"];
  EXPECT_EQ(rows[1]["evidence"]["4"]["passed"], 2);
  EXPECT_EQ(rows[1]["evidence"]["8"]["passed"], 1);
}

TEST_F(PlotTest, EachValueOfAnAxisHasAPanelInWhichAVariantKeepsItsColour) {
  WriteRecall("sweep.h5", {{"rnn", 0.01, 0, {1, 0.5}},
                           {"attention", 0.01, 0, {0.5, 0.25}},
                           {"rnn", 0.001, 0, {1, 1}},
                           {"attention", 0.001, 0, {0.25, 0.25}}});
  const Json rows = Json::parse(Call("sweep.h5 --json").out)["accuracy"];
  Texts names;
  for (const Json& row : rows) names.push_back(row["series"]);
  EXPECT_EQ(names,
            (Texts{"rnn lr=0.001", "rnn lr=0.01", "attention lr=0.001", "attention lr=0.01"}));
  for (const char* figure : {"accuracy", "loss"}) {
    const std::string svg = ReadFile(root_ + "/" + figure + ".svg");
    ExpectImages(".", figure, {"recall, lr=0.001", "recall, lr=0.01", "rnn", "attention"});
    EXPECT_LT(svg.find("recall, lr=0.001"), svg.find("recall, lr=0.01<"));
    // A line in each of two panels and one in the legend.
    for (const char* colour : {"#0072b2", "#d55e00"}) {
      const std::string stroke = Cat("fill: none; stroke: ", colour);
      int lines = 0;
      for (size_t at = 0; (at = svg.find(stroke, at)) != svg.npos; ++at) ++lines;
      EXPECT_EQ(lines, 3) << figure << colour;
    }
    EXPECT_EQ(svg.find("#009e73"), svg.npos) << "no third colour";
  }
}

TEST_F(PlotTest, TheBestOverAnAxisIsChosenPerSeedAndSaysSo) {
  WriteSearch("sweep.h5");
  EXPECT_EQ(
      Call("sweep.h5 --table --best-over=optim.lr").out,
      std::string(kHead) +
          "  rnn                4      3      0.667    0.208-0.939   0.990  0.750-1.000     0.990  "
          " "
          "0.250\n"
          "  rnn                8      3      0.333    0.061-0.792   0.750  0.500-0.990     0.990  "
          " "
          "0.250\n" +
          kNote +
          "Shown is each seed with its best optim.lr, chosen on this evaluation: rates and medians "
          "are optimistic.\n");
  for (const char* figure : {"accuracy", "loss"})
    ExpectImages(".", figure, {"each seed with its best optim.lr, chosen on this evaluation"});
  ExpectRefused("sweep.h5 --best-over=optim.beta2",
                {"sweep.h5: has no axis optim.beta2", "it has optim.lr"});
  ExpectRefused("sweep.h5 --best-over=seed", {"sweep.h5: has no axis seed"});
  for (const char* bar : {"0", "1.01", "nan", "all"}) {
    const Result refused = Call(std::string("sweep.h5 --pass=") + bar);
    EXPECT_EQ(refused.code, 2);
    EXPECT_NE(refused.err.find(Cat("is ", bar, ", expected an accuracy in (0, 1]")),
              std::string::npos)
        << refused.err;
  }
}

TEST_F(PlotTest, ADivergedSeedDidNotPassAndAQueuedOneDoesNotCount) {
  WriteRecall("sweep.h5", {{"rnn", 0.001, 0, {1, 1}},
                           {"rnn", 0.001, 1, {}, "diverged"},
                           {"rnn", 0.001, 2, {}, "queued"},
                           {"attention", 0.001, 0, {}, "diverged"}});
  EXPECT_EQ(Call("sweep.h5 --table").out, std::string(kHead) +
                                              "  rnn                4      2      0.500    "
                                              "0.095-0.905   1.000  1.000-1.000     1.000   "
                                              "0.250\n"
                                              "  rnn                8      2      0.500    "
                                              "0.095-0.905   1.000  1.000-1.000     1.000   "
                                              "0.250\n"
                                              "  attention          4      1      0.000    "
                                              "0.000-0.793       -            -         -   "
                                              "0.250\n"
                                              "  attention          8      1      0.000    "
                                              "0.000-0.793       -            -         -   "
                                              "0.250\n" +
                                              kNote +
                                              "3 of 4 cells are not done: 2 diverged, 1 queued.\n");
  // What a run that is under way has measured so far counts, and is said to.
  WriteRecall("early.h5", {{"rnn", 0.001, 0, {1, 1}}, {"rnn", 0.001, 1, {0.5, 0.5}, "running"}});
  const Json early = Json::parse(Call("early.h5 --json").out);
  EXPECT_EQ(early["accuracy"][0]["evidence"]["8"]["passed"], 1);
  EXPECT_EQ(early["notes"].back(),
            "1 of 2 cells are not done: 1 running; of 1 the last evaluation so far counts.");
  // A seed whose other learning rate did well has its result.
  WriteRecall("search.h5", {{"rnn", 0.001, 0, {1, 1}},
                            {"rnn", 0.01, 0, {}, "diverged"},
                            {"rnn", 0.001, 1, {}, "diverged"},
                            {"rnn", 0.01, 1, {}, "diverged"}});
  const Json row = Json::parse(Call("search.h5 --json --best-over=optim.lr").out)["accuracy"][0];
  EXPECT_EQ(row["evidence"]["8"]["seeds"], 2);
  EXPECT_EQ(row["evidence"]["8"]["passed"], 1);
  // A variant that had more to choose from is at an advantage.
  const auto notes = [&](const std::vector<RecallCell>& cells) {
    WriteRecall("searched.h5", cells);
    return Json::parse(Call("searched.h5 --json --best-over=optim.lr").out)["notes"].dump();
  };
  const std::vector<RecallCell> alike = {{"rnn", 0.001, 0, {1, 1}},
                                         {"rnn", 0.01, 0, {1, 1}},
                                         {"attention", 0.001, 0, {1, 1}},
                                         {"attention", 0.01, 0, {}, "diverged"}};
  EXPECT_EQ(notes(alike).find("alike"), std::string::npos);
  EXPECT_NE(notes({alike.begin(), alike.end() - 1})
                .find("Not every variant was searched alike: runs are 2 of rnn, 1 of attention."),
            std::string::npos);
  // What it was measured at before it diverged is no result.
  WriteRecall("partial.h5", {{"rnn", 0.001, 0, {0.5, 0.5}}, {"rnn", 0.001, 1, {1, 1}, "diverged"}});
  const Json before = Json::parse(Call("partial.h5 --json").out)["accuracy"][0]["evidence"]["8"];
  EXPECT_EQ(before["seeds"], 2);
  EXPECT_EQ(before["passed"], 0);
  EXPECT_EQ(before["best_run"], 0.5);
}

TEST_F(PlotTest, ACaseOfWhichEveryRunDivergedIsShown) {
  const auto cell = [](const std::string& of_case, int64_t seed, const Numbers& accuracy,
                       const std::string& state) {
    return RecallCell{"rnn", 0.001, seed, accuracy, state, 1, 0.25, of_case};
  };
  WriteRecall("sweep.h5", {cell("cold", 0, {1, 1}, "done"), cell("hot", 0, {0.5, 0.5}, "diverged"),
                           cell("hot", 1, {}, "diverged"), cell("unknown", 0, {}, "queued")});
  const Json json = Json::parse(Call("sweep.h5 --json").out);
  ASSERT_EQ(json["accuracy"].size(), 2u);
  EXPECT_EQ(json["accuracy"][0]["task"], "recall, cold");
  EXPECT_EQ(json["accuracy"][1]["task"], "recall, hot");
  for (const char* difficulty : {"4", "8"}) {
    const Json& hot = json["accuracy"][1]["evidence"][difficulty];
    EXPECT_EQ(hot["seeds"], 2);
    EXPECT_EQ(hot["passed"], 0);
    EXPECT_NEAR(hot["pass_high"], 0.6576, 1e-4);
    EXPECT_TRUE(hot["median"].is_null());
  }
  ExpectImages(".", "accuracy", {"recall, cold", "recall, hot"});
  WriteRecall("lost.h5", {cell("", 0, {0.5, 0.5}, "diverged"), cell("", 1, {}, "diverged")});
  const Json lost = Json::parse(Call("lost.h5 --json").out)["accuracy"];
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0]["evidence"]["8"]["seeds"], 2);
  EXPECT_EQ(lost[0]["chance"]["8"], 0.25);
  EXPECT_EQ(Json::parse(Call("lost.h5 --json --metric=scaled").out)["accuracy"][0]["chance"]["8"],
            0.0);
}

TEST_F(PlotTest, ChanceIsThatOfTheSeriesOwnTask) {
  WriteRecall("sweep.h5", {{"two", 0.001, 0, {0.5, 0.5}, "done", 1, 0.5},
                           {"many", 0.001, 0, {0.5, 0.5}, "done", 1, 0.017}});
  EXPECT_EQ(Call("sweep.h5 --table").out,
            "recall, 1 seed, accuracy at      4      8\n"
            "  two                        0.500  0.500\n"
            "    chance                   0.500  0.500\n"
            "  many                       0.500  0.500\n"
            "    chance                   0.017  0.017\n");
  WriteRecall("seeds.h5", {{"two", 0.001, 0, {0.5, 0.5}, "done", 1, 0.5},
                           {"two", 0.001, 1, {0.5, 0.5}, "done", 1, 0.5},
                           {"many", 0.001, 0, {0.5, 0.5}, "done", 1, 0.017},
                           {"lost", 0.001, 0, {0.5, 0.5}, "diverged", 1, 0.1},
                           {"never", 0.001, 0, {}, "diverged"}});
  const Json rows = Json::parse(Call("seeds.h5 --json").out)["accuracy"];
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0]["chance"]["8"], 0.5);
  EXPECT_EQ(rows[1]["chance"]["8"], 0.017);
  EXPECT_EQ(rows[2]["chance"]["8"], 0.1);
  EXPECT_TRUE(rows[3]["chance"]["8"].is_null());  // those of the others differ
  ExpectImages(".", "accuracy", {"recall"});
}

TEST_F(PlotTest, AnswersMayBeGradedBySampleAndFromChance) {
  WriteRecall("sweep.h5",
              {{"rnn", 0.001, 0, {1, 0.7}, "done", 1}, {"rnn", 0.001, 1, {0.8, 0.7}, "done", 0.5}});
  const std::string head =
      "recall, accuracy at     seeds  pass rate  95 % interval  median        range  best run  ";
  const std::string both = Call("sweep.h5 --table").out;
  EXPECT_EQ(both.substr(0, both.find('\n')), head + "chance  exact match");
  EXPECT_NE(both.find("0.900  0.800-1.000     1.000   0.250        0.700"), std::string::npos)
      << both;
  const Json exact = Json::parse(Call("sweep.h5 --json --metric=exact_match").out);
  const Json at4 = exact["accuracy"][0]["evidence"]["4"];
  EXPECT_EQ(at4["passed"], 1);
  EXPECT_DOUBLE_EQ(at4["min"], 0.4);
  EXPECT_TRUE(exact["accuracy"][0]["chance"]["4"].is_null());
  EXPECT_EQ(exact["notes"][0],
            "Accuracy is here the share of samples whose answers are all right.");
  const Json scaled = Json::parse(Call("sweep.h5 --json --metric=scaled").out)["accuracy"][0];
  EXPECT_NEAR(scaled["evidence"]["8"]["median"], 0.6, 1e-12);
  EXPECT_EQ(scaled["chance"]["8"], 0.0);
}

TEST_F(PlotTest, AReportHasTheSameEvidence) {
  WriteSearch("sweep.h5");
  const Result output = Call(". --best-over=optim.lr", "weft-report");
  ASSERT_EQ(output.code, 0) << output.err;
  const std::string page = ReadFile(root_ + "/report.html");
  for (const char* part : {"<th>pass rate</th><th>pass low</th><th>pass high</th><th>median</th>",
                           "<td title=\"0.75\">",
                           "dotted the best run. Shown is each seed with its best optim.lr, chosen "
                           "on this evaluation.",
                           "intervals are Wilson&#x27;s", "rates and medians are optimistic"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  const std::string high = Json::parse(Call("sweep.h5 --json --best-over=optim.lr")
                                           .out)["accuracy"][0]["evidence"]["8"]["pass_high"]
                               .dump();
  EXPECT_NE(page.find("<td title=\"" + high.substr(0, 14)), std::string::npos) << high;
}

TEST_F(PlotTest, AnyFigureGoesIntoTheFileThatWasAskedFor) {
  WriteSearch("sweep.h5");
  const Result svg = Call("sweep.h5 --figure pass-rate --best-over=optim.lr -o deep/rate.svg");
  EXPECT_EQ(svg.code, 0) << svg.err;
  EXPECT_EQ(svg.err, "deep/rate.svg\n");
  const std::string text = ReadFile(root_ + "/deep/rate.svg");
  for (const char* label : {">rnn<", ">share of seeds \u2265 0.99<", ">difficulty<"})
    EXPECT_NE(text.find(label), std::string::npos) << label;
  EXPECT_EQ(Call("sweep.h5 --figure accuracy -o a.pdf").code, 0);
  EXPECT_TRUE(ReadFile(root_ + "/a.pdf").starts_with("%PDF"));
  EXPECT_EQ(Call("sweep.h5 --figure accuracy -o again.pdf").code, 0);
  EXPECT_EQ(ReadFile(root_ + "/a.pdf"), ReadFile(root_ + "/again.pdf"));
  EXPECT_EQ(Call("sweep.h5 --figure loss").err, "loss.svg\n");
  ExpectRefused("sweep.h5 --figure state", {"sweep.h5: has nothing to draw as state"});
  ExpectRefused("sweep.h5 --figure savings --fit '" WEFT_BIN_DIR "/weft-fit'",
                {"sweep.h5: has nothing to draw as savings: table /cells has no column exit_code"});
  ExpectRefused("sweep.h5 --figure savings --fit gone/weft-fit",
                {"gone/weft-fit: is not there; build it with: ./weft build"});
  EXPECT_EQ(Call("sweep.h5 --figure all").code, 2);
  const Result ending = Call("sweep.h5 --figure loss -o loss.jpg");
  EXPECT_EQ(ending.code, 2);
  EXPECT_NE(ending.err.find("is loss.jpg, expected a name that ends in .svg, .pdf, .png"),
            std::string::npos)
      << ending.err;
}

TEST_F(PlotTest, AFigureOfLawsNeedsText) {
  ExpectRefused("'" WEFT_SOURCE_DIR "/paper/data/mqar.h5' --figure loss-tokens",
                {"has nothing to draw as loss-tokens: ", "has no evaluation text, it has mqar"});
}

TEST_F(PlotTest, AFullDiskIsOneLine) {
  WriteSearch("sweep.h5");
  for (const char* kind : {"pdf", "svg", "png"}) {
    const std::string call = Cat("ulimit -f 1; exec '" WEFT_SOURCE_DIR
                                 "/analysis/weft-plot' sweep.h5 --figure accuracy -o a.",
                                 kind);
    ExpectOneLine(ResultOf(root_, {"/bin/sh", "-c", call}), 1,
                  {Cat("a.", kind), "cannot write: File too large"});
  }
  for (const auto& entry : fs::directory_iterator(root_))
    EXPECT_FALSE(entry.path().filename().string().starts_with('.')) << entry.path();
  EXPECT_FALSE(fs::exists(root_ + "/a.pdf"));
}

TEST_F(PlotTest, BrokenOrMissingFilesAreOneLine) {
  ExpectRefused("gone.h5", {"gone.h5: there is no such file"});
  fs::create_directory(root_ + "/empty");
  ExpectRefused("empty", {"empty: has neither sweep.h5 nor a run.h5"});
  std::ofstream(root_ + "/text.h5") << "not HDF5";
  ExpectRefused("text.h5", {"text.h5: cannot be read as HDF5"});
  std::ofstream(root_ + "/zero.h5");
  ExpectRefused("zero.h5", {"zero.h5: cannot be read as HDF5"});
  WriteSweep("whole.h5");
  const std::string bytes = ReadFile(root_ + "/whole.h5");
  std::ofstream(root_ + "/half.h5") << bytes.substr(0, bytes.size() / 2);
  ExpectRefused("half.h5", {"half.h5"});
  EXPECT_FALSE(fs::exists(root_ + "/accuracy.png"));
}

TEST_F(PlotTest, WrongTablesAreOneLine) {
  const H5Object root{"/", {{"format", std::string("weft-sweep")}, {"axes", Texts{"seed"}}}};
  WriteH5(root_ + "/none.h5", {}, {root});
  ExpectRefused("none.h5", {"none.h5: has no table /cells"});
  WriteH5(root_ + "/column.h5",
          {{"/cells",
            {{"cell", "1", Integers{0}}, {"variant", "1", Texts{"a"}}, {"case", "1", Texts{""}}}}},
          {root});
  ExpectRefused("column.h5",
                {"column.h5: table /cells has no column seed, it has cell, variant, case"});
  WriteH5(root_ + "/run.h5", {}, {{"/", {{"format", std::string("weft-run")}}}});
  ExpectRefused("run.h5", {"run.h5: has neither /train nor /eval"});
}

TEST_F(PlotTest, EndsWithoutATraceback) {
  WriteSweep("sweep.h5");
  const auto lines = [&](const std::string& redirected) {
    return Call("sweep.h5 --table 2>both " + redirected + "; grep -v '[.][ps][nv]g$' both").out;
  };
  EXPECT_EQ(lines("| true"), "");
  EXPECT_EQ(lines(">/dev/full"), "weft plot: standard output: No space left on device\n");
  Process interrupted(
      root_, {"/usr/bin/env", "PYTHONPATH=" WEFT_SOURCE_DIR "/analysis", "/usr/bin/python3", "-Bc",
              "import os, signal, studies.results\n"
              "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
              "studies.results.run_program('p', interrupt)"});
  EXPECT_EQ(interrupted.Wait(), 130);
  EXPECT_EQ(interrupted.err(), "");
}

TEST_F(PlotTest, AnOutThatIsAFileIsOneLine) {
  WriteSweep("sweep.h5");
  std::ofstream(root_ + "/file") << "";
  ExpectRefused("sweep.h5 --out file", {"file: cannot write"}, 1);
}

}  // namespace
}  // namespace weft
