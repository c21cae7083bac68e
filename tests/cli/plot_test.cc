// links: weft_run
// weft-plot as a user calls it: files, numbers and errors.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "experiments/run/files.h"
#include "experiments/run/h5.h"
#include "tests/process.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;
using Texts = std::vector<std::string>;

struct Output {
  int exit_code;
  std::string out, err;
};

class PlotTest : public testing::Test {
 protected:
  Output Call(const std::string& arguments) const {
    const std::string command = "cd '" + root_ + "' && '" WEFT_SOURCE_DIR "/analysis/weft-plot' " +
                                arguments + " >out.txt 2>err.txt";
    const int status = std::system(command.c_str());
    return {WEXITSTATUS(status), ReadFile(root_ + "/out.txt"), ReadFile(root_ + "/err.txt")};
  }
  void ExpectRefused(const std::string& arguments, const Texts& parts, int exit_code = 3) const {
    const Output output = Call(arguments);
    EXPECT_EQ(output.exit_code, exit_code) << output.err;
    EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1) << output.err;
    EXPECT_TRUE(output.out.empty()) << output.out;
    for (const std::string& part : parts)
      EXPECT_NE(output.err.find(part), std::string::npos) << part << " in: " << output.err;
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
    Integers cell, seed, step, tokens, difficulty, labels, index, seeds, train_cell, train_step,
        train_tokens;
    Texts variant, task, name, variants, cases;
    Numbers accuracy, nll, chance, loss;
    for (const char* v : {"rnn", "attention"}) {
      for (const char* c : {"recall", "state_tracking", "text"}) {
        for (const int64_t s : {0, 1}) {
          const auto i = static_cast<int64_t>(variants.size());
          index.push_back(i), variants.push_back(v), cases.push_back(c), seeds.push_back(s);
          for (const int64_t at : {500, 1000}) {
            for (const int64_t d : c == std::string("text") ? Integers{0} : Integers{2, 4, 8}) {
              cell.push_back(i), variant.push_back(v), task.push_back(c), seed.push_back(s),
                  step.push_back(at);
              tokens.push_back(at * 64), name.push_back(c), difficulty.push_back(d),
                  labels.push_back(100);
              accuracy.push_back(at == 500 ? 0
                                           : 1.0 / static_cast<double>(d == 0 ? 1 : d) -
                                                 0.1 * static_cast<double>(s));
              nll.push_back(std::log(2.0) * (at == 500 ? 9 : 2.5));
              chance.push_back(c == std::string("text") ? std::nan("") : 0.05);
            }
          }
          for (int64_t at = 1; at <= 1000; ++at) {
            train_cell.push_back(i), train_step.push_back(at), train_tokens.push_back(at * 64);
            loss.push_back(4 / std::sqrt(static_cast<double>(at)));
          }
        }
      }
    }
    WriteH5(root_ + "/" + path,
            {{"/cells",
              {{"cell", "1", index},
               {"variant", "1", variants},
               {"case", "1", cases},
               {"seed", "1", seeds}}},
             {"/eval",
              {{"cell", "1", cell},
               {"variant", "1", variant},
               {"case", "1", task},
               {"seed", "1", seed},
               {"step", "step", step},
               {"tokens", "token", tokens},
               {"name", "1", name},
               {"difficulty", "1", difficulty},
               {"accuracy", "1", accuracy},
               {"nll", "nat/label", nll},
               {"labels", "label", labels},
               {"chance", "1", chance}}},
             {"/train",
              {{"cell", "1", train_cell},
               {"step", "step", train_step},
               {"tokens", "token", train_tokens},
               {"loss", "nat/label", loss}}}},
            {{"/",
              {{"format", std::string("weft-sweep")},
               {"study", std::string("tour")},
               {"question", std::string("Who?")},
               {"axes", Texts{"seed"}}}}});
  }
  void WriteRun(const std::string& path, const Texts& pattern, double accuracy) const {
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
             {"/settings", {{"model.pattern", pattern}, {"seed", int64_t{0}}}}});
  }

  Scratch scratch_;
  const std::string root_ = scratch_.path();
};

TEST_F(PlotTest, ASweepBecomesFiguresAndTheTableOfItsLastEvaluations) {
  WriteSweep("sweep.h5");
  const Output output = Call(". --table");
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(output.out,
            "recall, accuracy at      2      4      8\n"
            "  rnn                0.450  0.200  0.075\n"
            "  attention          0.450  0.200  0.075\n"
            "  chance             0.050  0.050  0.050\n"
            "\n"
            "state tracking, accuracy at      2      4      8\n"
            "  rnn                        0.450  0.200  0.075\n"
            "  attention                  0.450  0.200  0.075\n"
            "  chance                     0.050  0.050  0.050\n"
            "\n"
            "text, held out  bits/byte\n"
            "  rnn               2.500\n"
            "  attention         2.500\n");
  EXPECT_EQ(output.err, "accuracy.png\naccuracy.svg\nloss.png\nloss.svg\n");
  ExpectImages(".", "accuracy",
               {"recall", "state tracking", "rnn", "attention", "chance", "accuracy"});
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
            "recall, accuracy at              4\n"
            "  attention                  0.750\n"
            "  2 gated_delta + attention  1.000\n"
            "  chance                     0.250\n");
  EXPECT_EQ(Call("study/0 --table").out,
            "recall, accuracy at      4\n  attention          0.750\n  chance             0.250\n");
  ExpectImages("study/0", "accuracy", {"recall"});
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

TEST_F(PlotTest, AnOutThatIsAFileIsOneLine) {
  WriteSweep("sweep.h5");
  std::ofstream(root_ + "/file") << "";
  ExpectRefused("sweep.h5 --out file", {"file: cannot write"}, 1);
}

}  // namespace
}  // namespace weft
