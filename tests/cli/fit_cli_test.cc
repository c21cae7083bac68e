// links: weft_run
// weft-fit as a user calls it: CSV files good and bad, sweeps with cells that failed, tables, JSON;
// and weft-report, which draws what it says, in a browser where there is one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "experiments/run/h5.h"
#include "kernels/base/check.h"
#include "tests/cli/shell.h"
#include "tests/process.h"
#include "tests/table_rows.h"

namespace weft {
namespace {

using Json = nlohmann::json;

Result Fit(const Scratch& scratch, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), Program("fit"));
  return ResultOf(scratch.path(), arguments);
}

// A law and losses of it at some sizes and token counts.
double Loss(double n, double d, double B) {
  return 1.7 + 400 / std::pow(n, 0.34) + B / std::pow(d, 0.28);
}
const double kSizes[] = {1e7, 3e7, 1e8, 3e8}, kTokens[] = {1e9, 4e9, 16e9, 64e9};

std::string Csv(const std::string& extra_heading = "", const std::string& extra_cell = "") {
  std::string text = "architecture,n,d,loss" + extra_heading + "\n";
  for (const auto& [name, B] : {std::pair{"slow", 410.0}, std::pair{"fast", 370.0}}) {
    for (const double n : kSizes) {
      for (const double d : kTokens)
        text += Cat(name, ",", n, ",", d, ",", std::hexfloat, std::defaultfloat) +
                std::to_string(Loss(n, d, B)) + extra_cell + "\n";
    }
  }
  return text;
}

// What is wrong with a file, and what the one line on stderr says.
struct BadFile {
  const char* name;
  std::string csv;
  int code;
  std::vector<const char*> parts;
  std::vector<std::string> arguments = {};
};
void PrintTo(const BadFile& bad, std::ostream* out) { *out << bad.name; }

const std::string kGood = Csv();
// kGood with its line `number` (the heading is 1) replaced.
std::string With(int number, const std::string& line) {
  std::vector<std::string> lines = Lines(kGood);
  lines[static_cast<size_t>(number - 1)] = line;
  std::string text;
  for (const std::string& one : lines) text += one + "\n";
  return text;
}
std::string First(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += Lines(kGood)[static_cast<size_t>(i)] + "\n";
  return text;
}

// clang-format off
const std::vector<BadFile> kBadFiles = {
    {"Empty", "", 3, {"a.csv: is empty", "n, d and loss"}},
    {"HeadingAlone", "n,d,loss\n", 3, {"holds no points"}},
    {"MissingLoss", "n,d,los\n1,2,3\n", 3, {"a.csv: has no column loss, it has n, d, los", "--column loss="}},
    {"MissingTokens", "n,loss\n1,2\n", 3, {"has no column d, it has n, loss"}},
    {"ColumnTwice", "n,d,loss,n\n1,2,3,4\n", 3, {"a.csv:1: column n is there twice"}},
    {"TextInNumber", With(5, "slow,3e7,many,3.1"), 3, {"a.csv:5: d is \"many\", expected a number"}},
    {"NumberWithUnit", With(5, "slow,3e7,1e9 tokens,3.1"), 3, {"a.csv:5: d is \"1e9 tokens\""}},
    {"EmptyCell", With(5, "slow,3e7,1e9,"), 3, {"a.csv:5: loss is \"\", expected a number"}},
    {"NaN", With(7, "slow,3e7,1e9,nan"), 3, {"a.csv:7: loss is \"nan\", expected a finite number"}},
    {"Infinite", With(7, "slow,inf,1e9,3"), 3, {"a.csv:7: n is \"inf\", expected a finite number"}},
    {"ZeroLoss", With(4, "slow,3e7,1e9,0"), 3, {"a.csv:4: loss is 0, expected a number above 0"}},
    {"NegativeLoss", With(4, "slow,3e7,1e9,-2.5"), 3, {"a.csv:4: loss is -2.5, expected a number above 0"}},
    {"ZeroTokens", With(4, "slow,3e7,0,3"), 3, {"a.csv:4: d is 0, expected a number above 0"}},
    {"HugeSize", With(4, "slow,1e300,1e9,3"), 3, {"a.csv:4: n is 1e300, expected a number from 1e-09 to 1e+40"}},
    {"RowTooShort", With(6, "slow,3e7,1e9"), 3, {"a.csv:6: has 3 cells, expected 4"}},
    {"RowTooLong", With(6, "slow,3e7,1e9,3,4"), 3, {"a.csv:6: has 5 cells, expected 4"}},
    {"OpenQuote", With(6, "\"slow,3e7,1e9,3"), 3, {"a.csv:6: a quotation mark is never closed"}},
    {"FractionalSeed", "n,d,loss,seed\n1e8,1e9,3,0.5\n", 3, {"a.csv:2: seed is 0.5, expected an integer"}},
    {"DuplicateRow", kGood + Lines(kGood)[3] + "\n", 3, {"a.csv:34: is there twice", "a.csv:4", "column seed"}},
    {"DuplicateSeed", "n,d,loss,seed\n1e8,1e9,3,0\n1e8,1e9,3.1,0\n", 3, {"a.csv:3: is there twice", "seed 0 are those of", "a.csv:2"}},
    {"TwoPoints", First(3), 3, {"slow: found 2 points, expected at least 5"}},
    {"OneSize", First(5) + "slow,1e7,2e9,3.9\n", 3, {"found 1 size, expected at least 3, or give --alpha"}},
    {"OneTokenCount", "n,d,loss\n1e7,1e9,4\n2e7,1e9,3.9\n3e7,1e9,3.8\n4e7,1e9,3.7\n5e7,1e9,3.6\n", 3, {"found 1 token count, expected at least 3"}},
    {"Semicolons", "n;d;loss\n1e8;1e9;3\n", 3, {"a.csv: has no column n, it has n;d;loss alone; columns are separated by commas"}},
    {"OneEndlessLine", std::string(1000, 'x') + "\x1b[2J,d,loss", 3, {"it has xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., d, loss; name it"}},
    {"NotText", std::string("\x89HDF\r\n\x1a\n\0\0", 10), 3, {"has no column"}},
    {"FilterKeepsNothing", kGood, 3, {"holds no points"}, {"--where=loss>100"}},
    {"NoSeeds", kGood, 3, {"no n and d has several seeds"}, {"--resample=seeds"}},
    {"NoBudgets", First(4), 3, {"found 0 of 3 budgets"}, {"--form=isoflop"}},
    {"NoUnique", kGood, 3, {"a.csv:2: has no unique tokens"}, {"--form=data-constrained"}},
    {"MappedColumnMissing", kGood, 3, {"has no column tokens, it has architecture, n, d, loss"}, {"--column=d=tokens"}},
    {"UnknownMappedColumn", kGood, 2, {"--column names \"tokens\", expected one of"}, {"--column=tokens=d"}},
    {"MappingWithoutHeading", kGood, 2, {"--column is \"d\", expected NAME=HEADING"}, {"--column=d"}},
    {"BrokenFilter", kGood, 2, {"--where is \"loss=4\", expected a column"}, {"--where=loss=4"}},
    {"FilterOfText", kGood, 2, {"--where is \"architecture<4\""}, {"--where=architecture<4"}},
    {"UnknownForm", kGood, 2, {"--form", "chinchilla", "--help"}, {"--form=kaplan"}},
    {"UnknownReference", kGood, 2, {"--reference is \"fats\", expected one of slow, fast"}, {"--reference=fats", "--flops=1e20"}},
    {"SizeAlone", kGood, 2, {"--n needs --d or --loss"}, {"--n=1B"}},
    {"NotANumber", kGood, 2, {"--n is \"1X\", expected a number above 0 such as 7e9, 7B"}, {"--n=1X"}},
    {"NegativeTokens", kGood, 2, {"--d is \"-1\""}, {"--n=1B", "--d=-1"}},
    {"QuestionOfOtherForm", kGood, 2, {"--loss does not go with --form isoflop"}, {"--form=isoflop", "--loss=3"}},
    {"ExponentOutOfRange", kGood, 2, {"--alpha", "--help"}, {"--alpha=5"}},
    {"FilterOfNaN", kGood, 2, {"--where is \"loss<nan\""}, {"--where=loss<nan"}},
    {"DeltaIsNaN", kGood, 2, {"--delta: Value nan not in range 1e-12 to 1e+06"}, {"--delta=nan"}},
    {"LevelIsNaN", kGood, 2, {"--level: Value nan not in range 0.01 to 0.9999"}, {"--level=nan"}},
    {"ExponentIsNaN", kGood, 2, {"--alpha: Value nan not in range 0.01 to 2"}, {"--alpha=nan"}},
    {"UnknownFlag", kGood, 2, {"--bootstraps"}, {"--bootstraps=3"}},
};
// clang-format on

class BadPoints : public testing::TestWithParam<BadFile> {};

TEST_P(BadPoints, AreRefused) {
  const BadFile& bad = GetParam();
  Scratch scratch;
  Spill(scratch / "a.csv", bad.csv);
  std::vector<std::string> arguments = {"a.csv", "--bootstrap=20"};
  arguments.insert(arguments.end(), bad.arguments.begin(), bad.arguments.end());
  const Result r = Fit(scratch, arguments);
  EXPECT_EQ(r.code, bad.code) << r.err;
  ASSERT_FALSE(Lines(r.err).empty());
  const std::string last = Lines(r.err).back();
  EXPECT_TRUE(last.starts_with("weft fit: ")) << last;
  for (const char* part : bad.parts) {
    EXPECT_NE(last.find(part), last.npos) << "\"" << part << "\" is not in:\n" << r.err;
  }
}
INSTANTIATE_TEST_SUITE_P(Cli, BadPoints, testing::ValuesIn(kBadFiles),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(FitCli, MissingFilesAreNamed) {
  Scratch scratch;
  Result r = Fit(scratch, {"none.csv"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("none.csv: cannot read: No such file"), r.err.npos) << r.err;
  r = Fit(scratch, {scratch.path()});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("has no sweep.h5"), r.err.npos) << r.err;
  Spill(scratch / "a.h5", "no HDF5");
  EXPECT_EQ(Fit(scratch, {"a.h5"}).code, 3);
  Spill(scratch / "a.json", "{\"fits\": [{\"E\": 1}]}");
  r = Fit(scratch, {"a.json"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("a.json: is no file of laws"), r.err.npos) << r.err;
  const std::string law = R"({"architecture": "x", "E": 1, "A": 1, "alpha": 1, "B": 1, "beta": 1})";
  Spill(scratch / "a.json", "{\"fits\": [" + law + ", " + law + "]}");
  r = Fit(scratch, {"a.json", "--flops=1e20"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("a.json: has two laws of \"x\""), r.err.npos) << r.err;
  EXPECT_EQ(Fit(scratch, {}).code, 2);
}

TEST(FitCli, AFileIsFittedAndAnswers) {
  Scratch scratch;
  Spill(scratch / "a.csv", Csv());
  const Result r = Fit(scratch, {"a.csv", "--bootstrap=50", "--json", "--n", "7B,70B", "--loss",
                                 "2.2", "--flops=1e21", "--d=1T"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  ASSERT_EQ(json["fits"].size(), 2u);
  const Json& slow = json["fits"][0];
  EXPECT_EQ(slow["architecture"], "slow");
  EXPECT_EQ(slow["points"], 16);
  EXPECT_NEAR(slow["alpha"], 0.34, 1e-3);  // losses have six decimals
  EXPECT_NEAR(slow["B"], 410, 4);
  EXPECT_LE(slow["intervals"]["beta"]["low"], slow["beta"]);
  EXPECT_GE(slow["intervals"]["beta"]["high"], slow["beta"]);
  EXPECT_EQ(slow["left_out"].size(), 4u);
  EXPECT_GE(slow["minima"].size(), 1u);
  ASSERT_EQ(json["tokens"].size(), 4u);
  const double savings = std::pow(410.0 / 370, 1 / 0.28);
  EXPECT_NEAR(json["tokens"][1]["savings"], savings, 0.01);
  EXPECT_LE(json["tokens"][1]["savings_low"], json["tokens"][1]["savings"]);
  EXPECT_EQ(json["tokens"][0]["savings"], "");
  EXPECT_NEAR(json["optimal"][0]["n"].get<double>() * json["optimal"][0]["d"].get<double>(),
              1e21 / 6, 1e12);
  EXPECT_EQ(json["loss"].size(), 4u);
  EXPECT_NEAR(json["loss"][1]["savings"], savings, 0.01);
  EXPECT_EQ(json["points"]["count"], 32);
  EXPECT_EQ(json["points"]["xxh3"].get<std::string>().size(), 16u);
  EXPECT_NE(r.err.find("extrapolation: n 70B is"), r.err.npos) << r.err;

  // Twice the same bytes; its JSON is a file of laws that gives the same answers.
  const Result again = Fit(scratch, {"a.csv", "--bootstrap=50", "--json", "--n", "7B,70B", "--loss",
                                     "2.2", "--flops=1e21", "--d=1T", "--threads=1"});
  EXPECT_EQ(r.out, again.out);
  Spill(scratch / "laws.json", r.out);
  const Result laws = Fit(scratch, {"laws.json", "--json", "--n=7B", "--loss=2.2"});
  ASSERT_EQ(laws.code, 0) << laws.err;
  EXPECT_EQ(Json::parse(laws.out)["tokens"][1]["d"], json["tokens"][1]["d"]);
}

TEST(FitCli, TablesAreForPeople) {
  Scratch scratch;
  Spill(scratch / "a.csv", Csv());
  const Result r = Fit(scratch, {"a.csv", "--bootstrap=20", "--loss=2.2", "--n=7B"});
  ASSERT_EQ(r.code, 0) << r.err;
  for (const char* part : {"32 points of a.csv", "architecture  points", "slow", "savings",
                           "1.44x [", "a size left out is predicted with"}) {
    EXPECT_NE(r.out.find(part), r.out.npos) << part << " is not in:\n" << r.out;
  }
  for (const std::string& line : Lines(r.out)) EXPECT_FALSE(line.ends_with(' '));
}

TEST(FitCli, ColumnsFiltersAndQuotesAreRead) {
  Scratch scratch;
  std::string text = "\xEF\xBB\xBF\"Model Size\",note,\"Training FLOP\",final loss\r\n";
  for (const double n : kSizes) {
    for (const double d : kTokens)
      text +=
          Cat(n, ",\"a, \"\"b\"\"\",", 6 * n * d, ", ", std::to_string(Loss(n, d, 410)), "\r\n");
  }
  text += "\r\n1e7,outlier,1e18,9\r\n";
  Spill(scratch / "a.csv", text);
  const Result r = Fit(scratch, {"--column", "n=Model Size", "--column=flops=Training FLOP",
                                 "--column=loss=final loss", "--where", "loss<8", "--json",
                                 "--bootstrap=0", "a.csv"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  EXPECT_NEAR(json["fits"][0]["beta"], 0.28, 1e-3);
  EXPECT_EQ(json["points"]["count"], 16);
  EXPECT_EQ(json["points"]["filters"][0], "loss<8");
  ASSERT_EQ(json["points"]["excluded"].size(), 1u);
  EXPECT_EQ(json["points"]["excluded"][0]["what"], "a.csv:19");
  EXPECT_NE(r.err.find("D = flops / (6 N)"), r.err.npos);
}

TEST(FitCli, MixedTokenCountsAndUnitsAreNoted) {
  Scratch scratch;
  std::string text = "n,d,loss,seed\n";
  for (const double n : kSizes) {
    for (const double d : kTokens) {
      for (int seed = 0; seed < 2; ++seed) {
        if (seed == 1 && d == kTokens[3] && n == kSizes[1]) continue;
        text += Cat(n, ",", d, ",") + std::to_string(Loss(n, d, 400) + 0.01 * seed) +
                Cat(",", seed, "\n");
      }
    }
  }
  Spill(scratch / "a.csv", text);
  Result r = Fit(scratch, {"a.csv", "--bootstrap=20", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.err.find("mixed token counts: the seeds of 1 size (such as n = 3e+07)"), r.err.npos)
      << r.err;
  EXPECT_EQ(Json::parse(r.out)["options"]["resample"], "both");
  Spill(scratch / "a.csv", text + "1e8,1,6,7\n");
  r = Fit(scratch, {"a.csv", "--bootstrap=0"});
  EXPECT_NE(r.err.find("are n and d in the same unit"), r.err.npos) << r.err;
}

TEST(FitCli, OtherFormsAreFitted) {
  Scratch scratch;
  std::string isoflop = "n,d,loss,flops\n", repeated = "n,d,loss,unique\n";
  for (int b = 0; b < 4; ++b) {
    for (int i = -3; i <= 3; ++i) {
      const double flops = 1e19 * std::pow(10, b), n = 0.1 * std::sqrt(flops) * std::exp(0.4 * i);
      isoflop += Cat(n, ",", flops / (6 * n), ",", 3 - 0.2 * b + 0.03 * i * i, ",", flops, "\n");
    }
  }
  for (const double n : kSizes) {
    for (const double d : kTokens) {
      repeated += Cat(n, ",", d, ",") + std::to_string(Loss(n, d, 400)) + ",1e12\n";
      repeated += Cat(n, ",", d, ",") + std::to_string(Loss(n, d, 500)) + ",5e8\n";
    }
  }
  Spill(scratch / "iso.csv", isoflop);
  Result r =
      Fit(scratch, {"iso.csv", "--form=isoflop", "--bootstrap=20", "--json", "--flops=1e24"});
  ASSERT_EQ(r.code, 0) << r.err;
  Json json = Json::parse(r.out);
  EXPECT_NEAR(json["frontier"][0]["a"], 0.5, 1e-4);
  EXPECT_NEAR(json["optimal"][0]["n"], 1e11, 1e8);
  EXPECT_EQ(json["budgets"].size(), 4u);

  Spill(scratch / "repeated.csv", repeated);
  r = Fit(scratch, {"repeated.csv", "--form=data-constrained", "--bootstrap=5", "--json", "--n=1B",
                    "--d=100B", "--unique=1B"});
  ASSERT_EQ(r.code, 0) << r.err;
  json = Json::parse(r.out);
  EXPECT_GT(json["fits"][0]["R_D"], 0.0);
  EXPECT_LT(json["loss"][0]["effective_d"], 100e9);
  Spill(scratch / "laws.json", r.out);
  const Result laws = Fit(scratch, {"laws.json", "--form=data-constrained", "--json", "--n=1B",
                                    "--d=100B", "--unique=1B"});
  ASSERT_EQ(laws.code, 0) << laws.err;
  EXPECT_EQ(Json::parse(laws.out)["loss"], json["loss"]);
}

// Sweeps

using Numbers = std::vector<double>;
using Texts = std::vector<std::string>;

struct Cell {
  std::string variant;
  int64_t n, tokens, seed;
  std::string state = "done";
  double factor = 1;  // on the loss of the last evaluation
  int64_t seen = 0;   // tokens at the last evaluation; 0 = all
  int64_t labels = 4096;
  bool decays = false;  // before every evaluation, not only the last
  double rate = 1e-3;
  double training_flops = 0;  // per token; 0 = not counted
};

// sweep.h5 as weft sweep collect writes it, two evaluations and losses per cell.
void WriteSweep(const std::string& path, const std::vector<Cell>& cells,
                const char* rate = "optim.lr") {
  TableRows of_cells("/cells"), eval("/eval"), train("/train");
  for (size_t i = 0; i < cells.size(); ++i) {
    const Cell& c = cells[i];
    const auto index = static_cast<int64_t>(i);
    of_cells.Add({{"cell", index},
                  {"variant", c.variant},
                  {"case", ""},
                  {"seed", c.seed},
                  {"run_id", Cat("run", i)},
                  {"state", c.state},
                  {"exit_code", c.state == "done"     ? 0
                                : c.state == "queued" ? -1
                                                      : 1},
                  {"parameters", c.n},
                  {"body_parameters", c.n / 2},
                  {"tokens", c.tokens},
                  {"flops_per_token", 2 * static_cast<double>(c.n)},
                  {"training_flops_per_token", c.training_flops},
                  {rate, c.rate},
                  {"seconds", 10.0}});
    if (c.state == "queued") continue;
    for (int64_t half = 1; half <= 2; ++half) {
      const int64_t d = half == 1 ? c.tokens / 2 : c.seen > 0 ? c.seen : c.tokens;
      const double B = c.variant == "gdn" ? 360 : 410;
      const double loss =
          Loss(static_cast<double>(c.n), static_cast<double>(d), B) * (half == 2 ? c.factor : 1);
      eval.Add({{"cell", index},
                {"variant", c.variant},
                {"case", ""},
                {"step", half},
                {"tokens", d},
                {"decayed", half == 2 || c.decays ? 1 : 0},
                {"name", "text"},
                {"difficulty", 0},
                {"accuracy", 0.5},
                {"nll", loss},
                {"labels", c.labels},
                {"chance", NAN}});
      train.Add({{"cell", index}, {"step", half}, {"tokens", d}, {"loss", loss}});
    }
  }
  WriteH5(path, {of_cells.table(), eval.table(), train.table()},
          {{"/",
            {{"format", std::string("weft-sweep")},
             {"study", std::string("ladder")},
             {"question", std::string("Which needs fewer tokens?")},
             {"axes", Texts{"seed", std::string(rate)}}}}});
}

std::vector<Cell> Cells(const Numbers& sizes = {std::begin(kSizes), std::end(kSizes)},
                        const Numbers& token_counts = {std::begin(kTokens), std::end(kTokens)}) {
  std::vector<Cell> cells;
  for (const char* variant : {"attention", "gdn"}) {
    for (const double n : sizes) {
      for (const double d : token_counts) {
        for (int64_t seed = 0; seed < 2; ++seed) {
          cells.push_back({variant, static_cast<int64_t>(n), static_cast<int64_t>(d), seed});
          cells.back().factor = 1 + 0.001 * static_cast<double>(seed);
        }
      }
    }
  }
  return cells;
}

TEST(FitCli, ASweepIsFittedWithoutItsUnfinishedCells) {
  Scratch scratch;
  std::vector<Cell> cells = Cells();
  cells[3].state = "failed", cells[3].factor = 5;
  cells[10].state = "running", cells[10].factor = 5;
  cells[17].state = "queued";
  cells[20].state = "diverged", cells[20].factor = NAN;
  cells[25].factor = NAN;
  cells[30].seen = cells[30].tokens - 1000;
  WriteSweep(scratch / "sweep.h5", cells);
  const Result r =
      Fit(scratch, {scratch.path(), "--bootstrap=20", "--json", "--parity", "--flops=1e20"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  EXPECT_EQ(json["points"]["count"], 58);
  ASSERT_EQ(json["points"]["excluded"].size(), 6u);
  const char* why[] = {
      "failed, exit code 1",      "running", "queued", "diverged", "its loss is nan",
      "its last evaluation is at"};
  for (size_t i = 0; i < 6; ++i) {
    const std::string said = json["points"]["excluded"][i]["why"];
    EXPECT_NE(said.find(why[i]), said.npos) << said;
    EXPECT_NE(r.err.find(said), r.err.npos) << r.err;
  }
  EXPECT_EQ(json["points"]["excluded"][0]["what"], "cell 3 (attention seed=1)");
  EXPECT_NEAR(json["fits"][0]["alpha"], 0.34, 0.01);
  EXPECT_NEAR(json["fits"][1]["B"], 360, 40);
  EXPECT_EQ(json["options"]["resample"], "both");
  EXPECT_GE(json["parity"].size(), 4u);

  // Another count of N: the same losses at half the size.
  const Result body =
      Fit(scratch, {"sweep.h5", "--bootstrap=0", "--json", "--count=body_parameters"});
  ASSERT_EQ(body.code, 0) << body.err;
  const Json half = Json::parse(body.out);
  EXPECT_NEAR(half["fits"][0]["A"].get<double>() / json["fits"][0]["A"].get<double>(),
              std::pow(0.5, json["fits"][0]["alpha"].get<double>()), 1e-4);
  const Result unknown = Fit(scratch, {"sweep.h5", "--count=params"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("expected one of parameters, body_parameters"), unknown.err.npos)
      << unknown.err;
  const Result eval = Fit(scratch, {"sweep.h5", "--eval=recall"});
  EXPECT_EQ(eval.code, 3);
  EXPECT_NE(eval.err.find("sweep.h5: has no evaluation recall, it has text; choose with --eval"),
            eval.err.npos)
      << eval.err;
}

// A schedule that decays at several token counts yields a point at each, another one at its end.
TEST(FitCli, EveryDecayOfARunIsAPoint) {
  Scratch scratch;
  std::vector<Cell> cells = Cells();
  for (Cell& cell : cells) cell.decays = cell.seed == 1;
  WriteSweep(scratch / "sweep.h5", cells);
  const Result r = Fit(scratch, {"sweep.h5", "--bootstrap=0", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(Json::parse(r.out)["points"]["count"], cells.size() * 3 / 2);
}

TEST(FitCli, ComputeIsThatOfTheRuns) {
  Scratch scratch;
  std::vector<Cell> cells = Cells();
  for (Cell& cell : cells) {
    if (cell.variant == "gdn")
      cell.training_flops = 40 * std::pow(static_cast<double>(cell.n), 0.9);
  }
  WriteSweep(scratch / "sweep.h5", cells);
  Result r = Fit(scratch, {"sweep.h5", "--bootstrap=10", "--json", "--flops=1e20"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  EXPECT_EQ(json["fits"][0]["k"], 6.0);
  EXPECT_EQ(json["fits"][0]["g"], 1.0);
  EXPECT_NEAR(json["fits"][1]["k"], 40, 1e-6);
  EXPECT_NEAR(json["fits"][1]["g"], 0.9, 1e-9);
  for (const Json& row : json["points"]["rows"]) {
    const double n = row["n"], d = row["d"];
    const double flops = row["architecture"] == "gdn" ? 40 * std::pow(n, 0.9) * d : 6 * n * d;
    EXPECT_NEAR(row["flops"].get<double>() / flops, 1, 1e-12);
  }
  const Json& best = json["optimal"][1];
  EXPECT_NEAR(40 * std::pow(best["n"].get<double>(), 0.9) * best["d"].get<double>() / 1e20, 1,
              1e-6);
  Spill(scratch / "laws.json", r.out);
  r = Fit(scratch, {"laws.json", "--json", "--flops=1e20"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(Json::parse(r.out)["optimal"][1]["n"], best["n"]);

  for (Cell& cell : cells) cell.training_flops = 1e20 / static_cast<double>(cell.n);
  WriteSweep(scratch / "sweep.h5", cells);
  r = Fit(scratch, {"sweep.h5", "--bootstrap=0"});
  EXPECT_EQ(r.code, 0);
  EXPECT_NE(r.err.find("FLOPs per token do not grow with n"), r.err.npos) << r.err;
}

TEST(FitCli, OfSeveralLearningRatesTheBestIsTaken) {
  Scratch scratch;
  const std::vector<Cell> best = Cells();
  std::vector<Cell> cells = best;
  for (Cell cell : best) {
    cell.rate = 2e-3, cell.factor *= 1.01;
    cells.push_back(cell);
    cell.rate = 5e-4, cell.factor *= 0.5;  // better, but of one seed only
    if (cell.seed == 0 && cell.variant == "gdn") cells.push_back(cell);
  }
  WriteSweep(scratch / "sweep.h5", best);
  const Result alone = Fit(scratch, {"sweep.h5", "--bootstrap=0", "--json", "--parity"});
  const Json expected = Json::parse(alone.out);
  for (const char* rate : {"optim.lr", "ladder.lr_factor"}) {
    WriteSweep(scratch / "sweep.h5", cells, rate);
    const Result r = Fit(scratch, {"sweep.h5", "--bootstrap=0", "--json", "--parity"});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.err.find(Cat(rate, ": of ", cells.size(), " points the ", best.size(),
                             " of the best rate are kept")),
              r.err.npos)
        << r.err;
    EXPECT_NE(r.err.find("in 16 of them it is the lowest or the highest"), r.err.npos) << r.err;
    const Json json = Json::parse(r.out);
    EXPECT_EQ(json["fits"], expected["fits"]);
    EXPECT_EQ(json["parity"], expected["parity"]);
  }
}

TEST(FitCli, ASweepWithoutFinishedCellsOrWithOtherTextIsRefused) {
  Scratch scratch;
  std::vector<Cell> cells = Cells();
  cells[5].labels = 2048;
  WriteSweep(scratch / "sweep.h5", cells);
  Result r = Fit(scratch, {"sweep.h5"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("different numbers of held-out labels: cell 5 (attention seed=1) over 2048, "
                       "others over 4096"),
            r.err.npos)
      << r.err;
  for (Cell& cell : cells) cell.state = "failed";
  WriteSweep(scratch / "sweep.h5", cells);
  r = Fit(scratch, {"sweep.h5"});
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.err.find("and 52 more"), r.err.npos) << r.err;
  EXPECT_NE(r.err.find("holds no points to fit"), r.err.npos) << r.err;
}

// From configs to laws: a sweep of real runs, collected by the pool.
TEST(FitCli, ASweepThatWasRunIsFitted) {
  Scratch scratch;
  std::string text;
  for (int i = 0; i < 6000; ++i) text += std::to_string(i * i) + " ";
  Spill(scratch / "text", text);
  Spill(scratch / "base.toml", R"(threads = 1
[data]
path = "text"
held_out = 0.2
piece_bytes = 256
[model]
layers = 1
pattern = ["attention"]
[mixer.attention]
heads = 1
[mixer.gated_delta]
heads = 1
[optim]
lr = 0.01
[train]
batch = 4
length = 32
log_every = 1000
[eval]
rows = 8
)");
  Spill(scratch / "ladder.toml", R"(question = "Does the pipe hold?"
base = "base.toml"
[variants]
attention = { model.pattern = ["attention"] }
gdn = { model.pattern = ["gated_delta"] }
[axes]
model.d_model = [8, 16, 32]
train.steps = [4, 16, 64]
)");
  const ShellResult sweep =
      Shell(scratch.path(), "'" + Program("sweep") + "' run ladder.toml --jobs 2");
  ASSERT_EQ(sweep.code, 0) << sweep.output;
  const Result r =
      Fit(scratch, {"runs/ladder", "--bootstrap=20", "--json", "--count=body_parameters"});
  ASSERT_EQ(r.code, 0) << r.err;
  const Json json = Json::parse(r.out);
  EXPECT_EQ(json["points"]["count"], 18);
  EXPECT_EQ(json["points"]["excluded"].size(), 0u);
  ASSERT_EQ(json["fits"].size(), 2u);
  EXPECT_GT(json["fits"][0]["r_squared"], 0.5);
}

// The report

Result Report(const Scratch& scratch, std::vector<std::string> arguments) {
  const std::vector<std::string> head = {WEFT_SOURCE_DIR "/analysis/weft-report", "--fit",
                                         Program("fit")};
  arguments.insert(arguments.begin(), head.begin(), head.end());
  return ResultOf(scratch.path(), arguments);
}

// One cell failed; sizes and token counts such that budgets have several sizes.
void WriteLadder(const Scratch& scratch) {
  std::vector<Cell> cells = Cells({1.5e7, 3e7, 6e7, 1.2e8}, {1e9, 2e9, 4e9, 8e9});
  cells[3].state = "failed";
  std::filesystem::create_directories(scratch / "ladder");
  WriteSweep(scratch / "ladder/sweep.h5", cells);
  SpillDeep(scratch / "ladder/run0/resolved.toml", "seed = 0  # <default>\n");
  SpillDeep(scratch / "ladder/run0/environment.json", "{\"git_commit\": \"0123\"}\n");
}

const std::set<std::string> kFigures = {"loss",    "loss-tokens", "loss-flops", "surface",
                                        "savings", "isoflop",     "cost"};

std::set<std::string> Matches(const std::string& text, const char* pattern) {
  std::set<std::string> all;
  const std::regex regex(pattern);
  for (std::sregex_iterator m(text.begin(), text.end(), regex), end; m != end; ++m)
    all.insert((*m)[1]);
  return all;
}

TEST(Report, HoldsFiguresTablesSettingsAndNothingFromTheNetwork) {
  Scratch scratch;
  WriteLadder(scratch);
  const Result r = Report(scratch, {"ladder", "-o", "out/report.html", "--bootstrap", "20"});
  ASSERT_EQ(r.code, 0) << r.err;
  const std::string page = Slurp(scratch / "out/report.html");
  EXPECT_EQ(Matches(page, "data-figure=\"([a-z-]+)\""), kFigures);
  EXPECT_EQ(Matches(page, "data-table=\"([a-z-]+)\""),
            (std::set<std::string>{"excluded", "frontier", "laws", "left-out", "match", "parity",
                                   "points", "runs", "savings", "text", "tokens"}));
  EXPECT_EQ(Matches(page, "((?:src|href)=\"[^#][^\"]*)"), std::set<std::string>());
  EXPECT_EQ(page.find("<script"), page.npos);
  EXPECT_EQ(page.find("@import"), page.npos);
  for (const char* part : {"Which needs fewer tokens?", "64 cells: 63 done, 1 failed.",
                           "failed, exit code 1", "seed = 0  # &lt;default&gt;",
                           "&quot;git_commit&quot;", "run63", "gdn needs fewer tokens: after "}) {
    EXPECT_NE(page.find(part), page.npos) << part;
  }
  // Its law is weft fit's.
  const Result fit = Fit(scratch, {"ladder", "--bootstrap=20", "--json"});
  const double beta = Json::parse(fit.out)["fits"][1]["beta"];
  EXPECT_NE(page.find("<td title=\"" + Json(beta).dump().substr(0, 12)), page.npos) << beta;
  // Twice the same bytes.
  Report(scratch, {"ladder", "-o", "again.html", "--bootstrap", "20"});
  EXPECT_EQ(page, Slurp(scratch / "again.html"));
}

TEST(Report, WeftPlotDrawsTheSameFiguresFromTheFileAlone) {
  Scratch scratch;
  WriteLadder(scratch);
  std::filesystem::rename(scratch / "ladder/sweep.h5", scratch / "small.h5");
  for (const std::string& figure : kFigures) {
    Process process(scratch.path(),
                    {WEFT_SOURCE_DIR "/analysis/weft-plot", "small.h5", "--fit", Program("fit"),
                     "--bootstrap", "5", "--figure", figure, "-o", figure + ".svg"});
    ASSERT_EQ(process.Wait(), 0) << figure << ": " << process.err();
    EXPECT_TRUE(Slurp(scratch / (figure + ".svg")).ends_with("</svg>\n"));
  }
}

TEST(Report, ErrorsAreOneLine) {
  Scratch scratch;
  WriteLadder(scratch);
  std::filesystem::create_directories(scratch / "empty");
  Spill(scratch / "file", "");
  for (const auto& [arguments, code, part] :
       {std::tuple{std::vector<std::string>{"none"}, 3, "none: there is no such file"},
        {{"empty"}, 3, "empty: has no sweep.h5"},
        {{"ladder", "--reference=gdm"}, 2, "ladder: --reference is \"gdm\", expected one of"},
        {{"ladder", "--count=size"}, 2, "ladder: --count is \"size\", expected one of"},
        {{"ladder", "--bootstrap=-1"}, 2, "--bootstrap: Value -1 not in range"},
        {{"ladder", "-o", "empty"}, 1, "empty: cannot write"},
        {{"ladder", "-o", "file/report.html"}, 1, "file/report.html: cannot write"}}) {
    const Result r = Report(scratch, arguments);
    EXPECT_EQ(r.code, code) << r.err;
    EXPECT_EQ(Lines(r.err).size(), 1u) << r.err;
    EXPECT_NE(r.err.find(part), r.err.npos) << r.err;
  }
}

TEST(Report, APipeIsWrittenToAndNotReplaced) {
  Scratch scratch;
  WriteLadder(scratch);
  const std::string report = Cat(WEFT_SOURCE_DIR "/analysis/weft-report --bootstrap 5 --fit ",
                                 Program("fit"), " ladder -o pipe");
  Process process(scratch.path(),
                  {"/bin/bash", "-c",
                   "mkfifo pipe; timeout 60 cat pipe > copy & " + report + "; wait; test -p pipe"});
  EXPECT_EQ(process.Wait(), 0) << process.err();
  EXPECT_TRUE(Slurp(scratch / "copy").ends_with("</html>\n"));
}

TEST(Report, ASweepThatCannotBeFittedSaysWhy) {
  Scratch scratch;
  WriteSweep(scratch / "sweep.h5", Cells({1e8}, {1e9, 2e9}));
  const Result r = Report(scratch, {scratch.path(), "--bootstrap", "5"});
  ASSERT_EQ(r.code, 0) << r.err;
  const std::string page = Slurp(scratch / "report.html");
  EXPECT_NE(page.find("No law was fitted: architecture attention: found 4 points"), page.npos);
  EXPECT_EQ(Matches(page, "data-figure=\"([a-z-]+)\""), (std::set<std::string>{"loss", "cost"}));
}

// Three sizes of decode state, two seeds: what has no law.
void WriteRecall(const std::string& path) {
  TableRows cells("/cells"), eval("/eval"), train("/train");
  int64_t i = 0;
  for (const std::string variant : {"rnn", "attention"}) {
    for (const int64_t width : {16, 32, 64}) {
      for (int64_t seed = 0; seed < 2; ++seed, ++i) {
        cells.Add({{"cell", i},
                   {"variant", variant},
                   {"case", ""},
                   {"model.d_model", width},
                   {"seed", seed},
                   {"run_id", "run"},
                   {"state", "done"},
                   {"parameters", width * width},
                   {"state_bytes", 4 * width}});
        for (const int64_t difficulty : {8, 64}) {
          eval.Add({{"cell", i},
                    {"step", 1},
                    {"tokens", 64},
                    {"name", "recall"},
                    {"difficulty", difficulty},
                    {"accuracy", 0.3 + 0.3 * static_cast<double>(seed)},
                    {"nll", 1.0},
                    {"labels", 100},
                    {"chance", 0.25}});
        }
        train.Add({{"cell", i}, {"step", 1}, {"tokens", 64}, {"loss", 1.0}});
      }
    }
  }
  WriteH5(path, {cells.table(), eval.table(), train.table()},
          {{"/",
            {{"format", std::string("weft-sweep")},
             {"axes", std::vector<std::string>{"model.d_model", "seed"}}}}});
}

// Every figure has a place on the page and marks within it, as the browser lays them out.
TEST(Report, ABrowserDrawsEveryFigure) {
  Scratch scratch;
  const std::string browser =
      Shell(scratch.path(),
            "for b in chromium-headless-shell chromium chromium-browser google-chrome; do "
            "command -v $b && break; done || true")
          .output;
  if (browser.empty()) {
    GTEST_SKIP()
        << "NO BROWSER: the report was not looked at. Install chromium to have its figures checked";
  }
  WriteLadder(scratch);
  WriteRecall(scratch / "recall.h5");
  const Result r = Report(scratch, {"ladder", "recall.h5", "--bootstrap", "5"});
  ASSERT_EQ(r.code, 0) << r.err;
  Spill(scratch / "seen.html", Slurp(scratch / "report.html") + R"(<pre id="seen"></pre><script>
const seen = document.getElementById("seen");
for (const figure of document.querySelectorAll("figure[data-figure]")) {
  const box = figure.querySelector("svg").getBoundingClientRect();
  let marks = 0;
  for (const mark of figure.querySelectorAll("svg path, svg use, svg text")) {
    const m = mark.getBoundingClientRect();
    if (m.width + m.height > 0 && m.right > box.left && m.left < box.right && m.bottom > box.top &&
        m.top < box.bottom) ++marks;
  }
  if (box.width > 200 && box.height > 100 && marks > 20) seen.textContent += "[" + figure.dataset.figure + "]";
}
</script>)");
  const ShellResult dom = Shell(
      scratch.path(),
      "timeout 120 " + browser.substr(0, browser.find('\n')) +
          " --headless --no-sandbox --disable-gpu --dump-dom file://$PWD/seen.html 2>/dev/null");
  ASSERT_EQ(dom.code, 0) << dom.output.substr(0, 2000);
  const size_t at = dom.output.find("<pre id=\"seen\">");
  ASSERT_NE(at, dom.output.npos);
  const std::string all =
      Shell(scratch.path(), "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH='" WEFT_SOURCE_DIR
                            "/analysis' /usr/bin/python3 -c "
                            "'from studies.figures import FIGURES; print(*FIGURES)'")
          .output;
  EXPECT_EQ(Matches(dom.output.substr(at, dom.output.find("</pre>", at) - at), "\\[([a-z-]+)\\]"),
            Matches(all, "([a-z-]+)"));
}

}  // namespace
}  // namespace weft
