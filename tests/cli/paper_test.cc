// links: weft_run
// weft-paper as a user calls it: a PDF whose numbers are those of the files, and no other.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <span>

#include "experiments/run/h5.h"
#include "kernels/base/check.h"
#include "tests/cli/shell.h"
#include "tests/process.h"
#include "tests/table_rows.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Numbers = std::vector<double>;
using Texts = std::vector<std::string>;

class Paper : public testing::Test {
 protected:
  void SetUp() override {
    if (Shell(folder_.path(), "command -v pdflatex").code != 0)
      GTEST_SKIP()
          << "NO LATEX: the paper was not built. Install texlive-latex-base to have it checked";
  }
  ShellResult Build(const std::string& arguments = "--text text") const {
    return Shell(folder_.path(), "'" WEFT_SOURCE_DIR "/analysis/weft-paper' --fit '" +
                                     Program("fit") + "' --data data --out out --bootstrap 10 " +
                                     arguments);
  }
  void ExpectRefused(const Texts& parts, const std::string& arguments = "--text text") const {
    const ShellResult r = Build(arguments);
    EXPECT_EQ(r.code, 3) << r.output;
    EXPECT_NE(("\n" + r.output).find("\nweft paper: " + parts.front()), std::string::npos)
        << parts.front() << " in: " << r.output;
    for (const std::string& part : parts)
      EXPECT_NE(r.output.find(part), std::string::npos) << part << " in: " << r.output;
  }
  // What the pages show, without spaces, dashes as {: the strings of the PDF's own content streams.
  std::string Pages() const {
    const ShellResult r = Shell(folder_.path(), R"sh(/usr/bin/python3 - <<'PYTHON'
import re, zlib
pdf = open("out/weft.pdf", "rb").read()
for stream in re.finditer(rb"stream\r?\n(.*?)endstream", pdf, re.S):
    try:
        page = zlib.decompress(stream[1]).decode("latin-1")
    except zlib.error:
        continue
    for line in re.findall(r"\[(.*?)\]TJ", page, re.S):
        shown = "".join(re.findall(r"\((.*?)(?<!\\)\)", line, re.S))
        print(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), shown), end="")
PYTHON)sh");
    EXPECT_EQ(r.code, 0) << r.output;
    return r.output;
  }
  void ExpectShown(const Texts& parts) const {
    const std::string pages = Pages();
    for (const std::string& part : parts)
      EXPECT_NE(pages.find(part), std::string::npos) << part << " in: " << pages;
  }

  void Write(const std::string& name, const TableRows& cells, const TableRows& eval,
             const TableRows& train, const Texts& axes, const std::string& toml,
             const std::string& base) const {
    fs::create_directories(folder_ / "data");
    WriteH5(folder_ / ("data/" + name), {cells.table(), eval.table(), train.table()},
            {{"/",
              {{"format", std::string("weft-sweep")},
               {"study", std::string("study")},
               {"axes", axes},
               {"sweep_toml", toml},
               {"base_toml", base}}}});
  }
  struct Run {
    std::string variant, size, task;
    int64_t seed = 0;
    double lr = 1e-3;
    std::string state = "done";
  };
  static void AddCell(TableRows& cells, int64_t i, const Run& run, double parameters,
                      double residual) {
    cells.Add({{"cell", i},
               {"variant", run.variant},
               {"case", run.size},
               {"seed", run.seed},
               {"optim.lr", run.lr},
               {"run_id", Cat(run.variant, run.size, run.task, run.seed, run.state)},
               {"state", run.state},
               {"exit_code", 0},
               {"parameters", static_cast<int64_t>(parameters)},
               {"body_parameters", static_cast<int64_t>(parameters)},
               {"flops_per_token", 2 * parameters},
               {"tokens", 1000},
               {"seconds", 36.0},
               {"device", "a_machine"},
               {"commit", "abc123"},
               {"matched_value", 8},
               {"residual_percent", residual}});
  }
  static void AddEval(TableRows& eval, int64_t i, int64_t tokens, const std::string& name,
                      int64_t difficulty, double accuracy, double nll, int64_t step = 1) {
    eval.Add({{"cell", i},
              {"step", step},
              {"tokens", tokens},
              {"decayed", 1},
              {"name", name},
              {"difficulty", difficulty},
              {"accuracy", accuracy},
              {"nll", nll},
              {"labels", 256},
              {"chance", 0.2}});
  }

  // Two variants on the three tasks, two seeds, a learning rate that was planned and never tried;
  // the hybrid's accuracy in state tracking at 64.
  void WriteTables(double accuracy, const std::string& variant = "hybrid_negative") const {
    for (const auto& [file, task] : {std::pair{"olmo_hybrid_table_15.h5", "state_tracking"},
                                     {"olmo_hybrid_table_16.h5", "recall"},
                                     {"olmo_hybrid_table_17.h5", "state_based_recall"}}) {
      TableRows cells("/cells"), eval("/eval"), train("/train");
      int64_t i = 0;
      for (const std::string& v : {std::string("transformer"), variant}) {
        const bool hybrid = v == variant;
        for (int64_t seed = 0; seed < 2; ++seed, ++i) {
          AddCell(cells, i, {v, "", task, seed, 3e-4}, 4e6, std::nan(""));
          for (const int64_t n : {4, 8, 16, 32, 64, 128}) {
            const bool asked = hybrid && task == std::string("state_tracking") && n == 64;
            AddEval(eval, i, 1000, task, n, asked ? accuracy : hybrid ? 1.0 : 0.25, 1);
          }
          train.Add({{"cell", i}, {"step", 1}, {"tokens", 1000}, {"loss", 1.0}});
        }
        AddCell(cells, i++, {v, "", task, 0, 1e-4, "queued"}, 4e6, std::nan(""));
      }
      Write(file, cells, eval, train, {"optim.lr", "seed"},
            Cat("[axes]\noptim.lr = [3e-4, 1e-4]\nseed = [0, 1]\n"),
            Cat("[task]\nname = \"", task, "\"\n[train]\nsteps = 777\n"));
    }
  }

  // Losses of laws with the same exponents: tokens of the hybrid that reach the transformer's loss
  // are `saved` times fewer at every size.
  void WriteLadder(double saved, int64_t seeds = 1, const std::string& name = "ladder_mini.h5",
                   size_t sizes = 4) const {
    TableRows cells("/cells"), eval("/eval"), train("/train");
    const std::pair<const char*, double> all[] = {
        {"small", 1e6}, {"middle", 3e6}, {"large", 1e7}, {"huge", 3e7}};
    int64_t i = 0;
    for (const std::string v :
         {"transformer", "gated_delta", "hybrid", "gated_delta_equal", "hybrid_equal"}) {
      for (const auto& [size, n] : std::span(all).first(sizes)) {
        for (int64_t seed = 0; seed < seeds; ++seed, ++i) {
          AddCell(cells, i, {v, size, "", seed}, n, v.ends_with("_equal") ? 0.25 : std::nan(""));
          for (const double d : {1e8, 4e8, 16e8, 64e8}) {
            const double own = v == "hybrid_equal" ? d * saved : d;
            AddEval(eval, i, static_cast<int64_t>(d), "text", 0, 0.5,
                    1.7 + 400 / std::pow(n, 0.34) + 410 / std::pow(own, 0.28));
          }
          train.Add({{"cell", i}, {"step", 1}, {"tokens", 1000}, {"loss", 1.0}});
        }
      }
    }
    Write(name, cells, eval, train, {"seed"},
          "[variants]\n"
          "transformer = { ladder.lr_factor = 0.125 }\n"
          "hybrid = { ladder.lr_factor = 0.375 }\n"
          "[cases]\nsmall = { model.d_model = 64 }\nlarge = { model.d_model = 128 }\n"
          "[axes]\nseed = [0]\n",
          "[ladder]\nlr_factor = 0.75\n");
  }

  // What a run of a search measured last, at a factor on the learning rate.
  struct Rate {
    std::string variant, size;
    double factor;
    Numbers losses;  // of its evaluations
    int64_t seed = 0;
    std::string state = "done";
  };
  void WriteRates(const std::vector<Rate>& rates) const {
    TableRows cells("/cells"), eval("/eval"), train("/train");
    for (size_t i = 0; i < rates.size(); ++i) {
      const Rate& r = rates[i];
      const auto cell = static_cast<int64_t>(i);
      cells.Add({{"cell", cell},
                 {"variant", r.variant},
                 {"case", r.size},
                 {"ladder.lr_factor", r.factor},
                 {"seed", r.seed},
                 {"run_id", Cat("run", i)},
                 {"state", r.state},
                 {"parameters", 1000},
                 {"tokens", 1000},
                 {"seconds", 36.0}});
      for (size_t step = 0; step < r.losses.size(); ++step)
        AddEval(eval, cell, 1000, "text", 0, 0.5, r.losses[step], static_cast<int64_t>(step));
      train.Add({{"cell", cell}, {"step", 1}, {"tokens", 1000}, {"loss", 1.0}});
    }
    Write("ladder_lr.h5", cells, eval, train, {"ladder.lr_factor", "seed"},
          "[axes]\nladder.lr_factor = [0.25]\n", "");
  }

  // Words of n elements by depth, three seeds of each: one layer has the accuracies `shallow`,
  // deeper ones chance.
  void WriteGroups(const Texts& groups, const Texts& variants, const std::vector<Numbers>& shallow,
                   const std::string& name = "parity_and_groups.h5") const {
    TableRows cells("/cells"), eval("/eval"), train("/train");
    int64_t i = 0;
    for (const std::string& v : variants) {
      for (const std::string& group : groups) {
        for (const int64_t layers : {2, 1, 4}) {
          for (int64_t seed = 0; seed < 3; ++seed, ++i) {
            const Numbers& found = shallow[static_cast<size_t>(seed)];
            const bool diverged = layers == 1 && found.empty();
            cells.Add({{"cell", i},
                       {"variant", v},
                       {"case", group},
                       {"model.layers", layers},
                       {"seed", seed},
                       {"run_id", Cat("run", i)},
                       {"state", diverged ? "diverged" : "done"},
                       {"parameters", 1000},
                       {"tokens", 1000},
                       {"seconds", 36.0},
                       {"state_bytes", 4096 * layers}});
            train.Add({{"cell", i}, {"step", 1}, {"tokens", 1000}, {"loss", 1.0}});
            if (diverged) continue;
            for (size_t d = 0; d < shallow.front().size(); ++d)
              AddEval(eval, i, 1000, "word_problem", 8 << d, layers == 1 ? found[d] : 0.2, 1);
          }
        }
      }
    }
    Write(name, cells, eval, train, {"model.layers", "seed"}, "[axes]\nseed = [0]\n", "");
  }
  void ExpectLines(const std::string& file, const Texts& lines) const {
    const std::string text = Slurp(folder_ / ("out/" + file));
    for (const std::string& line : lines)
      EXPECT_NE(("\n" + text).find("\n" + line + "\n"), std::string::npos)
          << line << " in " << file << ": " << text;
  }

  void CopyText() const { fs::copy(WEFT_SOURCE_DIR "/paper", folder_ / "text"); }
  void Append(const std::string& file, const std::string& text) const {
    std::ofstream(folder_ / ("text/" + file), std::ios::app) << text;
  }

  Scratch folder_;
};

TEST_F(Paper, NumbersFollowTheData) {
  CopyText();
  WriteTables(0.97265625);
  fs::copy_file(folder_ / "data/olmo_hybrid_table_16.h5", folder_ / "data/mqar.h5");
  ShellResult r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_NE(r.output.find("no data yet in data/ladder_mini*.h5: left out\n"), std::string::npos)
      << r.output;
  EXPECT_NE(r.output.find("out/weft.pdf\n"), std::string::npos) << r.output;
  // The hybrid's median and best at 64, published 1; what is read from the settings.
  ExpectShown({".97(.97", ".97(1.00)", "777", "128/128(128)", "12runs", "seedsofeach:2", "amachine",
               "abc123", "6of18cellsarenotdone:6queued", "wesearchedisnothing"});
  ExpectShown(
      {"thesizeofthedecodestate", "Thereare4runsof", "hybridnegative{128/1281282/2[.34,1.00]"});
  EXPECT_EQ(Pages().find("needfewertokens"), std::string::npos) << "a section without data";

  WriteTables(0.5);
  fs::remove(folder_ / "data/olmo_hybrid_table_16.h5");
  ASSERT_EQ(Build().code, 0);
  ExpectShown({".50(.50", ".50(1.00)", "32/32(128)", "8runs", "Statetrackingafter"});
  for (const char* gone : {".97(.97", "Recallofone"})
    EXPECT_EQ(Pages().find(gone), std::string::npos) << gone;

  fs::remove_all(folder_ / "data");
  WriteLadder(1.37);
  r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  ExpectShown({"hybridneedsfewertokens(afactorof1.37[1.37,1.37])", "0.250"});
  WriteLadder(0.5);
  ASSERT_EQ(Build().code, 0);
  ExpectShown({"hybridneedsmoretokens(afactorof0.50[0.50,0.50])"});
  // Twice the same bytes.
  const std::string first = Slurp(folder_ / "out/weft.pdf");
  ASSERT_EQ(Build().code, 0);
  EXPECT_TRUE(first == Slurp(folder_ / "out/weft.pdf"));
}

TEST_F(Paper, MoreSeedsMayBeInAFileOfTheirOwn) {
  CopyText();
  WriteLadder(1.37);
  WriteLadder(1.37, 3, "ladder_mini_seeds.h5", 2);
  ASSERT_EQ(Build().code, 0);
  // Of 5 variants 4 sizes and 2 more seeds of 2 sizes: runs that both files have count once.
  ExpectShown({"Thereare40runs(seedsofeachsize:1to3)", "160points", "afactorof1.37[1.37,1.37]"});
}

// What is done stands where a file from before has it under way; other settings are no other seed.
TEST_F(Paper, OfRunsInTwoFilesTheDoneOneCountsAndOtherSettingsAreRefused) {
  const std::string name = "data/parity_and_groups", first = name + ".h5", second = name + "_2.h5";
  const auto write = [&](const std::string& file, const std::string& id, const std::string& state,
                         double accuracy, int64_t cell = 0) {
    TableRows cells("/cells"), eval("/eval"), train("/train");
    cells.Add({{"cell", 0},
               {"variant", "hybrid"},
               {"case", "s3"},
               {"seed", 0},
               {"run_id", id},
               {"state", state},
               {"parameters", 1000},
               {"tokens", 1000},
               {"seconds", 36.0},
               {"state_bytes", 4096}});
    AddEval(eval, cell, 1000, "word_problem", 8, accuracy, 1);
    train.Add({{"cell", 0}, {"step", 1}, {"tokens", 1000}, {"loss", 1.0}});
    Write(file.substr(5), cells, eval, train, {"seed"}, "[axes]\nseed = [0]\n", "");
  };
  CopyText();
  write(first, "one", "stopped", 0.5);
  write(second, "one", "done", 1);
  ShellResult r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  ExpectLines("groups-evidence.tex",
              {R"(hybrid & 4.1k & 8 / 8 & 8 & 1/1 [.21, 1.00] & 1.00 (1.00--1.00) & 1.00 \\)"});
  ExpectLines("numbers.tex",
              {R"(\setnumber{groups/runs}{1})", R"(\setnumber{groups/caveats}{})"});
  write(first, "two", "done", 0.5);
  ExpectRefused({second + ": its run of hybrid s3 0 has other settings than that of " + first});
  write(second, "two", "done", 1, 7);
  ExpectRefused({second + ": /eval names a cell that /cells, with 1 rows, does not have"});
  fs::copy_file(folder_ / first, folder_ / (name + "_3.h5"));
  WriteH5(folder_ / second, {{"/cells", {{"cell", "1", std::vector<int64_t>{0}}}}},
          {{"/", {{"format", std::string("weft-sweep")}, {"axes", Texts{"seed"}}}}});
  ExpectRefused({second + ": table /cells has no column variant"});
  WriteRates({{"hybrid", "", 0.5, {1}}});
  fs::rename(folder_ / "data/ladder_lr.h5", folder_ / second);
  ExpectRefused({second + ": has the axes ladder.lr_factor, seed, " + first + " has seed"});
}

// Means of the last losses over the seeds of what is done; the best factor is of those that every
// size has tried.
TEST_F(Paper, RatesAreShownByFactorWithTheLeastInBold) {
  CopyText();
  WriteLadder(1.37);
  WriteRates({{"transformer", "small", 0.5, {0.5, 1.39}, 0},
              {"transformer", "small", 0.5, {0.5, 1.41}, 1},
              {"transformer", "small", 0.25, {1.5}},
              {"transformer", "small", 1, {1.3}},
              {"transformer", "large", 0.25, {1.2}},
              {"transformer", "large", 0.5, {1.35}},
              {"transformer", "large", 0.25, {0.1}, 1, "stopped"},
              {"hybrid", "small", 0.5, {1.25}},
              {"gated_delta", "small", 0.25, {1.5}},
              {"gated_delta", "large", 0.25, {1.5}}});
  const ShellResult r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  const std::string text = Slurp(folder_ / "out/rates-losses.tex");
  EXPECT_NE(text.find(R"( & 0.250 & 0.500 & 1.00 \\
\hline
\multicolumn{4}{l}{\emph{small}} \\*
transformer & 1.500 & 1.400 & \textbf{1.300} \\
hybrid & -- & \textbf{1.250} & -- \\
gated delta & \textbf{1.500} & -- & -- \\
\hline
\multicolumn{4}{l}{\emph{large}} \\*
transformer & \textbf{1.200} & 1.350 & -- \\
hybrid & -- & -- & -- \\
gated delta & \textbf{1.500} & -- & -- \\
)"),
            std::string::npos)
      << text;
  // Of the search, and of the ladder: its variants' own, or its base config's.
  ExpectLines("numbers.tex",
              {R"(\setnumber{rates/sizes}{2})", R"(\setnumber{rates/transformer}{0.250})",
               R"(\setnumber{rates/hybrid}{--})", R"(\setnumber{rates/runs}{9})",
               R"(\setnumber{ladder/transformer/lr-factor}{0.125})",
               R"(\setnumber{ladder/hybrid/lr-factor}{0.375})",
               R"(\setnumber{ladder/gated_delta/lr-factor}{0.750})"});
  ExpectShown({"times0.125forthetransformer,0.750forthegateddeltanetworkand0.375forthehybrid",
               "0.250,0.250and{(Table"});
}

// With twice the tokens' worth from each, the line through the losses L(32e8) after 16e8 tokens and
// L(128e8) after 64e8 has the reference's last, L(64e8), where 1/(1 + 2^-0.28) of the logarithm of
// their ratio is gone. Losses differ by 410 (2^-0.28 - 1) D^-0.28.
TEST_F(Paper, TokensToParityAndDifferencesAreReadOffTheLosses) {
  CopyText();
  WriteLadder(2, 3);
  const ShellResult r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  const double u = std::pow(2, -0.28);
  const auto share = static_cast<int64_t>(std::round(1000 * std::pow(4, 1 / (1 + u)) / 4));
  const std::string cell = Cat(share / 10, ".", share % 10),
                    interval = Cat(" & ", cell, R"( \% [)", cell, ", ", cell, "]");
  ExpectLines("ladder-parity.tex",
              {Cat("hybrid equal", interval, interval, interval, interval, R"( \\)")});
  Numbers gaps;
  for (const double d : {1e8, 4e8, 16e8, 64e8})
    gaps.push_back(1000 * 410 * (1 - u) * std::pow(d, -0.28));
  const auto less = [](double x) { return Cat("$-$", static_cast<int64_t>(std::round(x))); };
  const std::string gap = Cat(" & ", less((gaps[0] + gaps[1] + gaps[2] + gaps[3]) / 4), " (",
                              less(gaps.front()), " to ", less(gaps.back()), ")");
  ExpectLines(
      "ladder-differences.tex",
      {Cat("hybrid equal", gap, gap, gap, gap, R"( \\)"),
       R"(hybrid & 0.0 (0.0 to 0.0) & 0.0 (0.0 to 0.0) & 0.0 (0.0 to 0.0) & 0.0 (0.0 to 0.0) \\)"});
  // Half as much from each never gets there.
  WriteLadder(0.5);
  ASSERT_EQ(Build().code, 0);
  ExpectLines("ladder-parity.tex", {R"(hybrid equal & -- & -- & -- & -- \\)"});
}

TEST_F(Paper, GroupsAreShownByDepthOnAsManyPagesAsTheyNeed) {
  CopyText();
  const Texts variants = {"transformer", "gated_delta_negative", "gated_delta_positive"};
  WriteGroups({"z2", "s3", "a5", "s5", "s5_swaps", "z3", "z5"}, variants,
              {{1, 0.995, 1}, {0.99, 0.98, 0.75}, {}});
  WriteGroups({"lists"}, {"hybrid"}, {{1, 1}, {1, 1}, {1, 0.5}}, "recall_lengths.h5");
  WriteGroups({"literal"}, {"first", "last"}, {{1, 1}, {1, 1}, {1, 0.5}}, "recall_layers.h5");
  const ShellResult r = Build();
  ASSERT_EQ(r.code, 0) << r.output;
  // Of three seeds one diverged: at 32 one passes, and (1 + 0.75)/2 is the median of the others.
  const std::string text = Slurp(folder_ / "out/groups-evidence.tex");
  EXPECT_NE(text.find(R"(\multicolumn{7}{l}{\emph{word problem, s3}} \\*
transformer, layers=1 & 4.1k & 8 / 32 & 32 & 1/3 [.06, .79] & .88 (.75--1.00) & 1.00 \\
transformer, layers=2 & 8.19k & none / none & 32 & 0/3 [.00, .56] & .20 (.20--.20) & .20 \\
transformer, layers=4 & 16.4k & none / none & 32 & 0/3 [.00, .56] & .20 (.20--.20) & .20 \\
gated delta negative, layers=1 & 4.1k & )"),
            std::string::npos)
      << text;
  ExpectLines("numbers.tex", {R"(\setnumber{groups/seeds}{2 to 3})",
                              R"(\setnumber{groups/runs}{168})", R"(\setnumber{lengths/runs}{9})"});
  ExpectLines(
      "lengths-evidence.tex",
      {R"(hybrid, layers=1 & 4.1k & 16 / 16 & 16 & 2/3 [.21, .94] & 1.00 (.50--1.00) & 1.00 \\)"});
  const std::string log = Slurp(folder_ / "out/weft.log");
  for (const char* cut : {"Float too large for page", "Overfull", "multiply"})
    EXPECT_EQ(log.find(cut), std::string::npos) << log.substr(log.find(cut), 200);
  ExpectShown(
      {"Liststhatteachrecall", "Whereattentionlearnstolookup", "gateddeltapositive,layers=4"});
}

TEST_F(Paper, TheBarIsShownInFullAndSharesWithoutTheirZero) {
  CopyText();
  WriteGroups({"lists"}, {"hybrid"}, {{1}, {0.5}, {0.995}}, "recall_lengths.h5");
  const ShellResult r = Build("--text text --pass 0.996");
  ASSERT_EQ(r.code, 0) << r.output;
  ExpectLines(
      "lengths-evidence.tex",
      {R"(hybrid, layers=1 & 4.1k & none / 8 & 8 & 1/3 [.06, .79] & .99 (.50--1.00) & 1.00 \\)"});
  ExpectLines("numbers.tex", {R"(\setnumber{lengths/pass}{0.996})"});
}

TEST_F(Paper, ANumberTypedByHandIsRefused) {
  for (const auto& [line, found] :
       {std::pair{"The hybrid saves 1.49 times.", "\"1\" was typed by hand"},
        {"Only $1{,}5$ of them, \\emph{at .97}", "typed by hand"},
        {"5 in each", "\"5\" was typed by hand"},
        {"\\texttt{0.93}, \\textbf{more}", "typed by hand"},
        {"all of the five seeds", "\"five\" was typed by hand"},
        {"Twenty runs % 20", "\"Twenty\" was typed by hand"}}) {
    CopyText();
    WriteTables(1);
    Append("tables.tex", std::string("% 3 runs, \\vspace{2pt}\n") + line + "\n");
    const auto lines = Lines(Slurp(folder_ / "text/tables.tex")).size();
    ExpectRefused({"text/tables.tex:" + std::to_string(lines) + ": ", found});
    fs::remove_all(folder_ / "text");
  }
}

TEST_F(Paper, WhatTheDataDoNotGiveIsRefusedByName) {
  CopyText();
  ExpectRefused(
      {"no data yet: expected one of data/olmo_hybrid_table*.h5, ", "data/ladder_mini*.h5"});
  WriteTables(1, "mamba");
  ASSERT_EQ(Build().code, 0) << "a variant that was not published has nothing beside it";
  WriteTables(1);
  Append("tables.tex", "\\n{tables/nothing}\n");
  ExpectRefused({"text/tables.tex:", "\\n{tables/nothing}: data/olmo_hybrid_table_15.h5, ",
                 "olmo_hybrid_table_17.h5 gives no such number"});
  fs::remove_all(folder_ / "text");
  CopyText();
  Append("tables.tex", "\\figurefile{tables-gone}{}\n");
  ExpectRefused({"LaTeX: ", "tables-gone", "out/weft.log"});
  fs::remove_all(folder_ / "data");
  WriteGroups({"s3"}, {"hybrid"}, {{1}, {1}, {1}}, "olmo_hybrid_tables.h5");
  ExpectRefused(
      {"data/olmo_hybrid_tables.h5: has results of word problem, "
       "expected some of state_tracking, recall, state_based_recall"});
  fs::remove_all(folder_ / "data");
  WriteLadder(1);
  fs::rename(folder_ / "data/ladder_mini.h5", folder_ / "data/mqar.h5");
  ExpectRefused({"data/mqar.h5: has no evaluation of a task"});
  Spill(folder_ / "data/quickstart.h5", "");
  ExpectRefused({"data/quickstart.h5: belongs to no study of the paper"});
  fs::remove(folder_ / "data/quickstart.h5");
  fs::remove(folder_ / "data/mqar.h5");
  Spill(folder_ / "data/ladder_mini.h5", "not HDF5");
  ExpectRefused({"data/ladder_mini.h5: cannot be read as HDF5"});
}

// What is committed: a paper from its data, or no data at all.
TEST_F(Paper, ThePaperOfThisRepositoryIsWhole) {
  const ShellResult r = Shell(folder_.path(), "'" WEFT_SOURCE_DIR "/analysis/weft-paper' --fit '" +
                                                  Program("fit") + "' --out out --bootstrap 50");
  const fs::path data = WEFT_SOURCE_DIR "/paper/data";
  const bool has_data = fs::exists(data) && !fs::is_empty(data);
  EXPECT_EQ(r.code, has_data ? 0 : 3) << r.output;
  EXPECT_EQ(r.output.find("no data yet: ") != std::string::npos, !has_data) << r.output;
}

}  // namespace
}  // namespace weft
