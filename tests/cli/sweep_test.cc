// links: weft_sweeps
// weft-sweep as a user calls it: plans, refusals, and runs on this machine.

#include "sweeps/sweep.h"

#include <cmath>
#include <map>
#include <sstream>

#include "sweeps/pool.h"
#include "tests/sweeps.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Plan

TEST_F(SweepTest, CellsAreVariantsTimesCasesTimesAxesInTheOrderOfTheFile) {
  Write("s.toml", kHead +
                      "[variants]\nz = { model.pattern = [\"a\", \"b\"], model.d_model = 8 }\na = "
                      "{ \"model.pattern\" = [\"c\"] }\n"
                      "[cases]\nlong = { train.steps = 9 }\nshort = { train.steps = 3 "
                      "}\n[axes]\nseed = [0, 1]\noptim.lr = [1e-4]\n");
  const Sweep sweep = ReadSweep(scratch_ / "s.toml");
  EXPECT_EQ(sweep.study, "s");
  EXPECT_EQ(sweep.base, scratch_ / "base.toml");
  EXPECT_EQ(sweep.axes, (std::vector<std::string>{"seed", "optim.lr"}));
  std::vector<std::string> names;
  for (const Cell& cell : sweep.cells) names.push_back(cell.name);
  EXPECT_EQ(names, (std::vector<std::string>{"z/long/seed=0", "z/long/seed=1", "z/short/seed=0",
                                             "z/short/seed=1", "a/long/seed=0", "a/long/seed=1",
                                             "a/short/seed=0", "a/short/seed=1"}));
  const Settings& first = sweep.cells.front().settings;
  ASSERT_EQ(first.size(), 5u);
  EXPECT_EQ(first[0].path, "model.pattern");
  EXPECT_EQ(ToToml(first[0].value), "[\"a\", \"b\"]");
  EXPECT_EQ(first[2].path, "train.steps");
}

TEST_F(SweepTest, CellsAreStartedInTheOrderThatTheSweepNames) {
  Write("s.toml",
        kHead + "order = [\"seed\", \"case\"]\n" + kVariants +
            "[cases]\nshort = { train.steps = 3 }\nlong = { train.steps = 9, axes.seed = [5, 1, 0] "
            "}\n[axes]\nseed = [1, 0]\n");
  const Result run = Call("run s.toml --jobs 1");
  ASSERT_EQ(run.code, 0) << run.err;
  std::vector<size_t> places;
  for (const char* name :
       {"/short/seed=1", "/long/seed=5", "/short/seed=0", "/long/seed=1", "/long/seed=0"}) {
    for (const char* variant : {"rnn", "attention"}) {
      places.push_back(run.err.find(std::string(variant) + name));
      ASSERT_NE(places.back(), std::string::npos) << variant << name << " in:\n" << run.err;
    }
  }
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end())) << run.err;
  EXPECT_EQ(Plan()["cells"][0]["round"], 0);
}

TEST_F(SweepTest, ACaseMayHaveValuesOfItsOwnForAnAxis) {
  Write("s.toml", kHead + "[variants]\na = { model.pattern = [\"c\"] }\n" +
                      "[cases]\nsmall = { train.steps = 3 }\nlarge = { train.steps = 9, axes.seed "
                      "= [7, 8] }\n[axes]\nseed = [0]\noptim.lr = [1e-4, 1e-3]\n");
  std::vector<std::string> names;
  for (const Cell& cell : ReadSweep(scratch_ / "s.toml").cells) {
    names.push_back(cell.name);
    EXPECT_EQ(cell.axes.size(), 2u);
  }
  EXPECT_EQ(names,
            (std::vector<std::string>{"a/small/seed=0/lr=0.0001", "a/small/seed=0/lr=0.001",
                                      "a/large/seed=7/lr=0.0001", "a/large/seed=7/lr=0.001",
                                      "a/large/seed=8/lr=0.0001", "a/large/seed=8/lr=0.001"}));
}

TEST_F(SweepTest, PlanListsEveryCellAndWritesNothing) {
  Write("s.toml",
        kHead + kVariants + "[axes]\nmodel.d_model = [8, 32]\ntask.name = [\"recall\"]\n");
  const Result table = Call("plan s.toml");
  EXPECT_EQ(table.code, 0) << table.err;
  ExpectParts(table.out, {"Who wins?", "rnn/d_model=8", "attention/d_model=32", "3200", "3180",
                          "1.00M", "4 cells"});
  const Json json = Json::parse(Call("plan s.toml --json --jobs 2").out);
  ASSERT_EQ(json["cells"].size(), 4u);
  EXPECT_EQ(json["cells"][1]["axes"]["model.d_model"], 32);
  EXPECT_EQ(json["cells"][1]["parameters"]["total"], 3200);
  EXPECT_EQ(json["cells"][3]["variant"], "attention");
  EXPECT_EQ(json["totals"]["seconds"], 4.0);  // four cells of two seconds, two at a time
  EXPECT_FALSE(Exists("runs"));
}

TEST_F(SweepTest, AnAxisMayHoldLists) {
  Write("s.toml", kHead +
                      "[variants]\nx = { model.d_model = 8 }\n[axes]\nmodel.pattern = [[\"a\"], "
                      "[\"a\", \"b\"]]\n");
  const Json json = Plan();
  ASSERT_EQ(json["cells"].size(), 2u);
  EXPECT_EQ(json["cells"][1]["axes"]["model.pattern"], (Json{"a", "b"}));
}

TEST_F(SweepTest, TheBaseIsLookedForBesideTheSweepThenInTheWorkingDirectory) {
  Write("sweeps/s.toml", std::string("base = \"../base.toml\"\n") + kVariants);
  EXPECT_EQ(Call("plan sweeps/s.toml").code, 0);
  Write("sweeps/s.toml", kHead + kVariants);
  EXPECT_EQ(Call("plan sweeps/s.toml").code, 0);
  Write("sweeps/base.toml", "nonsense = 1\n");
  EXPECT_EQ(Call("plan sweeps/s.toml").code, 2);
}

TEST(Makespan, IsThatOfWorkersThatTakeTheNextCell) {
  EXPECT_EQ(Makespan({}, {}, 4), 0);
  EXPECT_EQ(Makespan({}, {5, 3, 3}, 2), 6);
  EXPECT_EQ(Makespan({10, 1}, {2, 2}, 2), 10);
  EXPECT_EQ(Makespan({1}, {7}, 1), 8);
}

// Bad input

TEST_F(SweepTest, RefusesASweepFileThatIsMissing) {
  const Result output = Call("plan none.toml");
  EXPECT_EQ(output.code, 2);
  EXPECT_EQ(output.err, "weft sweep: none.toml: there is no such sweep file\n");
}
TEST_F(SweepTest, RefusesTextThatIsNotToml) {
  ExpectRefused("base = \n", {"s.toml:1", "not TOML"});
}
TEST_F(SweepTest, RefusesAKeyTwice) {
  ExpectRefused(kHead + kVariants + "[axes]\nseed = [1]\nseed = [2]\n",
                {"s.toml:8", "seed", "twice"});
}
TEST_F(SweepTest, RefusesAnUnknownTopLevelKey) {
  ExpectRefused(std::string("questoin = \"x\"\n") + kHead + kVariants,
                {"s.toml:1", "questoin", "\"question\""});
}
TEST_F(SweepTest, RefusesAnOrderOfWhatIsNotThere) {
  ExpectRefused(std::string("order = [\"sed\"]\n") + kHead + kVariants + "[axes]\nseed = [0, 1]\n",
                {"s.toml:1", "\"sed\"", "\"seed\""});
  ExpectRefused(std::string("order = 3\n") + kHead + kVariants, {"s.toml:1", "list of axes"});
}
TEST_F(SweepTest, RefusesAMatchThatDoesNotFit) {
  const auto expect = [&](const std::string& match, const std::vector<std::string>& parts) {
    ExpectRefused(kHead + "match = { " + match + " }\n" + kVariants, parts);
  };
  expect("quantity = \"parameters\"", {"s.toml:3", "match.to is missing"});
  expect("quantity = \"flops\", to = \"rnn\"", {"s.toml:3", "match.by is missing"});
  const std::string whole = "quantity = \"flops\", to = \"rnn\", by = \"model.d_model\"";
  expect("quantity = \"flops\", to = \"rmn\", by = \"model.d_model\"",
         {"s.toml:3", "\"rmn\"", "did you mean \"rnn\"?"});
  expect(whole + ", variant = [\"attention\"]", {"match.variant", "\"match.variants\"?"});
  expect(whole + ", variants = [\"rnn\"]", {"match.variants holds match.to"});
  expect(whole + ", variants = 3", {"expected a list of variants"});
  expect(whole + ", multiple = 0", {"match.multiple is 0, expected a positive number"});
  for (const char* tolerance : {"'much'", "0", "-1", "-0.5", "nan", "inf"}) {
    expect(Cat(whole, ", tolerance = ", tolerance),
           {"s.toml:3", Cat("match.tolerance is ", tolerance), "expected a positive number"});
  }
  ExpectRefused(kHead + "match = { " + whole + " }\n" + kVariants + "[axes]\nmodel.d_model = [8]\n",
                {"s.toml:3", "match.by = \"model.d_model\" is also set at", "s.toml:8: axes"});
  expect("quantity = \"flops\", to = \"rnn\", by = \"train.steps\"",
         {"s.toml:3: match: cell attention: no value of train.steps"});
}

TEST_F(SweepTest, MatchedCellsRunWithTheValueThatWasSolved) {
  Write("s.toml",
        kHead + "match = { quantity = \"parameters\", to = \"rnn\", by = \"model.d_model\" }\n" +
            kVariants + "[cases]\nr = { train.steps = 3 }\n[axes]\nseed = [0, 1]\n");
  const Sweep sweep = ReadSweep(scratch_ / "s.toml");
  EXPECT_TRUE(sweep.cells[0].reference.empty());
  ASSERT_EQ(sweep.cells[3].reference.size(), 3u);
  EXPECT_EQ(ToToml(sweep.cells[3].reference[0].value), "[\"gated_delta\"]");
  EXPECT_EQ(sweep.cells[3].reference[2].path, "seed");
  const Result plan = Call("plan s.toml");
  ExpectParts(plan.out, {"matched by", "residual", "model.d_model=48", "+0.250 %"});
  ASSERT_EQ(Call("run s.toml").code, 0);
  const H5Table cells = Collected("/cells");
  EXPECT_EQ(cells.Numbers("matched_value"), (std::vector<double>{0, 0, 48, 48}));
  EXPECT_EQ(cells.Numbers("residual_percent")[3], 0.25);
  EXPECT_TRUE(std::isnan(cells.Numbers("residual_percent")[0]));
  const std::string id = Status()["cells"][3]["run_id"];
  EXPECT_HAS(Read("runs/s/" + id + "/resolved.toml"), "d_model = 48");
}

TEST_F(SweepTest, RefusesASweepWithoutVariants) {
  ExpectRefused(kHead, {"s.toml", "no variants", "[variants]"});
  ExpectRefused(kHead + "[variants]\n", {"no variants"});
}
TEST_F(SweepTest, RefusesAnEmptyVariant) {
  ExpectRefused(kHead + "[variants]\nbig = {}\n", {"s.toml:4", "variants.big is empty"});
  ExpectRefused(kHead + "[variants]\nbig = { model = {} }\n",
                {"s.toml:4", "variants.big is empty"});
}
TEST_F(SweepTest, RefusesAVariantThatIsNoTable) {
  ExpectRefused(kHead + "[variants]\nbig = 3\n",
                {"s.toml:4", "variants.big is 3", "expected settings"});
}
TEST_F(SweepTest, RefusesAnEmptyCase) {
  ExpectRefused(kHead + kVariants + "[cases]\nlong = {}\n", {"s.toml:7", "cases.long is empty"});
}
TEST_F(SweepTest, RefusesAnAxisWithoutValues) {
  ExpectRefused(kHead + kVariants + "[axes]\nseed = []\n",
                {"s.toml:7", "axes.seed is an empty list"});
  ExpectRefused(kHead + kVariants + "[axes]\nseed = 3\n",
                {"s.toml:7", "axes.seed is 3", "expected a list"});
}
TEST_F(SweepTest, RefusesADateAndATable) {
  ExpectRefused(kHead + kVariants + "[axes]\nseed = [2026-01-01]\n",
                {"s.toml:7", "axes.seed", "2026-01-01"});
  ExpectRefused(kHead + kVariants + "[axes]\nseed = [{ a = 1 }]\n",
                {"s.toml:7", "axes.seed", "a = 1"});
}
TEST_F(SweepTest, RefusesAKeySetByAVariantAndAnAxis) {
  ExpectRefused(kHead + "[variants]\na = { seed = 3 }\n[axes]\nseed = [0, 1]\n",
                {"s.toml:6", "axes.seed", "also set at", "s.toml:4: variants.a"});
}
TEST_F(SweepTest, RefusesAKeySetByAVariantAndACase) {
  ExpectRefused(kHead + "[variants]\na = { seed = 3 }\n[cases]\nc = { seed = 4 }\n",
                {"s.toml:6: cases.c.seed", "also set at", "s.toml:4: variants.a"});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfAnAxisWithItsPlaceAndTheNearestKey) {
  ExpectRefused(
      kHead + kVariants + "[axes]\nmodel.d_modle = [8]\n",
      {"s.toml:7: axes", "unknown key \"model.d_modle\"", "did you mean \"model.d_model\""});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfAVariant) {
  ExpectRefused(kHead + "[variants]\na = { modle.pattern = [\"x\"] }\n",
                {"s.toml:4: variants.a", "unknown key \"modle.pattern\"", "model.pattern"});
}
TEST_F(SweepTest, RefusesAnUnknownKeyOfACase) {
  ExpectRefused(kHead + kVariants + "[cases]\nc = { task.nam = \"recall\" }\n",
                {"s.toml:7: cases.c", "task.nam", "task.name"});
}
TEST_F(SweepTest, AnOptionOfTheTrainerIsNoConfigKey) {
  ExpectRefused(kHead + kVariants + "[axes]\nout = [\"elsewhere\"]\n",
                {"s.toml:7: axes", "unknown key \"out\""});
}
TEST_F(SweepTest, RefusesAValueOutOfRange) {
  ExpectRefused(kHead + kVariants + "[axes]\nmodel.d_model = [8, 4096]\n",
                {"s.toml:7: axes", "4096", "out of range"});
}
TEST_F(SweepTest, RefusesAWrongType) {
  ExpectRefused(kHead + kVariants + "[axes]\nseed = [0.5]\n",
                {"s.toml:7: axes", "seed = 0.5", "an integer"});
}
TEST_F(SweepTest, RefusesStudyAsAnAxis) {
  ExpectRefused(kHead + kVariants + "[axes]\nstudy = [\"a\", \"b\"]\n",
                {"s.toml:7: axes.study", "at the top"});
}
TEST_F(SweepTest, RefusesAnAxisThatOnlyACaseHas) {
  const std::string cases = kHead + kVariants + "[cases]\nlarge = { train.steps = 9, ";
  ExpectRefused(cases + "axes.optim.lr = [1e-4] }\n[axes]\nseed = [0]\n",
                {"s.toml:7: cases.large.axes.optim.lr", "is not in [axes]"});
  ExpectRefused(cases + "axes.seed = [] }\n[axes]\nseed = [0]\n",
                {"s.toml:7", "cases.large.axes.seed is an empty list"});
  ExpectRefused(cases + "axes.seed = 3 }\n[axes]\nseed = [0]\n",
                {"s.toml:7", "cases.large.axes.seed is 3", "expected a list"});
}
TEST_F(SweepTest, RefusesAStudyThatIsNoFolder) {
  ExpectRefused(kHead + "study = \"../x\"\n" + kVariants,
                {"s.toml:3", "\"../x\"", "cannot be a folder"});
}
TEST_F(SweepTest, RefusesCellsThatAreTheSameRun) {
  ExpectRefused(kHead + "[variants]\na = { model.d_model = 8 }\nb = { model.d_model = 8 }\n",
                {"s.toml: cells a and b are the same run"});
  ExpectRefused(kHead + kVariants + "[axes]\nseed = [1, 2, 1]\n", {"rnn/seed=1 and rnn/seed=1"});
}
TEST_F(SweepTest, RefusesABaseThatDoesNotExistOrIsNotNamed) {
  ExpectRefused(std::string("base = \"gone.toml\"\n") + kVariants,
                {"s.toml:1", "\"gone.toml\" does not exist"});
  ExpectRefused(kVariants, {"s.toml", "base is missing"});
  ExpectRefused(std::string("base = 3\n") + kVariants, {"s.toml:1", "base is 3"});
}
TEST_F(SweepTest, RefusesABaseWithAnUnknownKey) {
  Write("base.toml", "[model]\nwidth = 3\n");
  ExpectRefused(kHead + kVariants, {"s.toml: cell rnn: ", "base.toml:2", "model.width"});
}
TEST_F(SweepTest, RefusesAnUnknownActionAndConfigKeys) {
  Write("s.toml", kHead + kVariants);
  EXPECT_EQ(Call("start s.toml").code, 2);
  EXPECT_EQ(Call("plan").code, 2);
  EXPECT_EQ(Call("plan s.toml --jobs 0").code, 2);
  EXPECT_EQ(Call("plan s.toml --seed=3").code, 2);
  for (const auto& [options, part] :
       {std::pair{"--jobs=2 --per-device=2", "--jobs excludes --per-device"},
        {"--per-device=0", "--per-device"},
        {"--per-device=many", "many"},
        {"--devices=0,x", "--devices"},
        {"--devices=0", "--devices: the cells run on the CPU"}}) {
    ExpectOneLine(Call(std::string("run s.toml ") + options), 2, {part});
  }
}
TEST_F(SweepTest, SaysWhenTheTrainerIsMissing) {
  fs::remove(scratch_ / "bin/weft-train");
  ExpectRefused(kHead + kVariants, {"weft-train: is missing", "build it"}, 1);
}
TEST_F(SweepTest, StatusAndCollectNeedASweepThatWasStarted) {
  Write("s.toml", kHead + kVariants);
  for (const char* action : {"status s.toml", "collect s.toml"}) {
    ExpectOneLine(Call(action), 3, {"runs/s/sweep.json: is missing"});
  }
  Write("runs/s/sweep.json", "{\"study\":");
  Write("runs/s/sweep.toml", "");
  EXPECT_EQ(Call("status s.toml").code, 3);
}
TEST_F(SweepTest, AnUnwritableOutIsOneLine) {
  Write("s.toml", kHead + kVariants);
  Write("file", "");
  ExpectOneLine(Call("run s.toml --out file"), 1, {"file"});
}

// Run

TEST_F(SweepTest, RunsAllCellsCollectsThemAndRunsThemOnlyOnce) {
  Write("s.toml", kHead + kVariants +
                      "[cases]\nr = { task.name = \"recall\" }\nt = { task.name = "
                      "\"state_tracking\" }\n[axes]\nseed = [0, 1]\n");
  const Result first = Call("run s.toml --jobs 3");
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.out, "runs/s/sweep.h5\n");
  EXPECT_EQ(std::count(first.err.begin(), first.err.end(), '\n'), 8) << first.err;
  EXPECT_HAS(first.err, "[8/8] ");
  EXPECT_EQ(Status()["counts"]["done"], 8);
  EXPECT_EQ(Read("runs/s/sweep.toml"), Read("s.toml"));

  const std::string path = scratch_ / "runs/s/sweep.h5";
  EXPECT_EQ(ListTables(path), (std::vector<std::string>{"/cells", "/eval", "/train"}));
  const H5Table cells = Collected("/cells"), eval = Collected("/eval"), train = Collected("/train");
  EXPECT_EQ(cells.rows(), 8);
  EXPECT_EQ(eval.rows(), 16);
  EXPECT_EQ(train.rows(), 32);
  const auto texts = [](const H5Table& table, const char* column) {
    return std::get<std::vector<std::string>>(table.Column(column).values);
  };
  EXPECT_EQ(texts(cells, "variant")[7], "attention");
  EXPECT_EQ(texts(cells, "case")[7], "t");
  EXPECT_EQ(texts(cells, "state")[7], "done");
  EXPECT_EQ(cells.Numbers("seed")[7], 1);
  EXPECT_EQ(cells.Numbers("parameters")[7], 1600);
  EXPECT_EQ(cells.Numbers("seconds")[7], 2);
  EXPECT_EQ(texts(eval, "name")[15], "state_tracking");
  EXPECT_EQ(eval.Numbers("cell")[15], 7);
  EXPECT_EQ(eval.Numbers("accuracy")[15], 1.0 / 9);
  EXPECT_EQ(eval.Numbers("exact_match")[15], 0.25);
  EXPECT_EQ(eval.Column("nll").unit, "nat/label");
  EXPECT_EQ(train.Numbers("loss")[31], 0.25);
  for (const auto& [name, value] : ReadAttributes(path, "/")) {
    if (name == "question") {
      EXPECT_EQ(std::get<std::string>(value), "Who wins?");
    } else if (name == "axes") {
      EXPECT_EQ(std::get<std::vector<std::string>>(value), (std::vector<std::string>{"seed"}));
    }
  }

  const std::string log = "runs/s/" + texts(cells, "run_id")[0] + "/log.txt", before = Read(log);
  EXPECT_EQ(Call("run s.toml").code, 0);
  EXPECT_EQ(Read(log), before);
}

TEST_F(SweepTest, GpusShareTheCells) {
  Write("s.toml", kHead +
                      "[variants]\nx = { fault.gpu = true, fault.step_ms = 50 }\n[axes]\nseed = "
                      "[0, 1, 2, 3, 4, 5, 6, 7]\n");
  // The GPUs that ran cells, and the most that one had at a time.
  const auto used = [&](const std::string& options) {
    fs::remove_all(scratch_ / "runs");
    fs::remove(scratch_ / "gpus.txt");
    const Result output = Call("run s.toml " + options, "CUDA_VISIBLE_DEVICES=4,7");
    EXPECT_EQ(output.code, 0) << output.err;
    std::istringstream lines(Read("gpus.txt"));
    std::map<std::string, int> most, cells;
    std::string gpu;
    for (int at_once; lines >> gpu >> at_once; ++cells[gpu])
      most[gpu] = std::max(most[gpu], at_once);
    int all = 0;
    for (const auto& [name, count] : cells) all += count;
    EXPECT_EQ(all, 8);
    return most;
  };
  using Most = std::map<std::string, int>;
  EXPECT_EQ(used(""), (Most{{"4", 2}, {"7", 2}}));  // each keeps 0.4 of a GPU busy
  EXPECT_EQ(used("--per-device=3"), (Most{{"4", 3}, {"7", 3}}));
  EXPECT_EQ(used("--per-device=1 --devices=1"), (Most{{"7", 1}}));
  ExpectOneLine(Call("run s.toml --devices=2"), 2, {"--devices: GPU 2 is not there, found 2"});
}

TEST_F(SweepTest, ASweepThatGrewRunsTheNewCellsOnly) {
  Write("s.toml", kHead + kVariants + "[axes]\nseed = [0]\n");
  ASSERT_EQ(Call("run s.toml").code, 0);
  Write("s.toml", kHead + kVariants + "[axes]\nseed = [0, 1]\n");
  EXPECT_HAS(Call("status s.toml").err, "has changed");
  const Result output = Call("run s.toml");
  EXPECT_EQ(output.code, 0);
  EXPECT_HAS(output.err, "2 of 4 cells have ended before");
  EXPECT_EQ(Status()["counts"]["done"], 4);
}

TEST_F(SweepTest, SaysWhatHasChangedSinceItWasStarted) {
  const std::string sweep = kHead + kVariants, base = Read("base.toml");
  Write("s.toml", sweep);
  ASSERT_EQ(Call("run s.toml").code, 0);
  const auto expect = [&](const std::vector<std::string>& changed) {
    for (const char* action : {"status", "collect"}) {
      const Result result = Call(Cat(action, " s.toml"));
      EXPECT_EQ(result.code, 0);
      const std::vector<std::string> lines = Lines(result.err);
      ASSERT_EQ(lines.size(), changed.size()) << result.err;
      for (size_t i = 0; i < lines.size(); ++i)
        EXPECT_HAS(lines[i], "weft sweep: " + changed[i] + " changed since the sweep was started");
    }
  };
  expect({});
  Write("base.toml", base + "seed = 3\n");
  expect({"base.toml, the base of the sweep, has"});
  Write("s.toml", sweep + "# longer\n");
  expect({"s.toml has", "base.toml, the base of the sweep, has"});
  Write("base.toml", base);
  expect({"s.toml has"});
}

TEST_F(SweepTest, OutlivesItsTerminal) {
  Write("s.toml", kHead + "[variants]\na = { seed = 1 }\nb = { seed = 2 }\n");
  for (const char* gone : {"2>/dev/full | true", "2>&1 | true"}) {
    fs::remove_all(scratch_ / "runs");
    Call(Cat("run s.toml --jobs 1 ", gone));
    EXPECT_EQ(Status()["counts"]["done"], 2) << gone;
  }
}

TEST_F(SweepTest, AFailedCellStopsNoOtherAndIsTriedAgain) {
  Write("s.toml", kHead +
                      "[variants]\ngood = { seed = 1 }\nbad = { fault.exit_code = 1 }\nworse = { "
                      "fault.kill_at = 1 }\nfine = { seed = 2 }\n");
  const Result output = Call("run s.toml --jobs 1");
  EXPECT_EQ(output.code, 1);
  EXPECT_HAS(output.err, "bad: failed with exit code 1: weft train: the fault that was asked for");
  EXPECT_HAS(output.err, "worse: failed with exit code 137: killed by signal 9");
  EXPECT_HAS(output.err, "these cells failed:");
  const Json status = Status();
  EXPECT_EQ(status["counts"]["done"], 2);
  EXPECT_EQ(status["counts"]["failed"], 2);
  EXPECT_EQ(status["cells"][1]["exit_code"], 1);
  EXPECT_EQ(status["cells"][2]["exit_code"], 137);
  const std::string path = scratch_ / "runs/s/sweep.h5";
  EXPECT_EQ(std::get<std::vector<std::string>>(Collected("/cells").Column("state").values)[1],
            "failed");
  // Named, excluded, counted.
  EXPECT_HAS(output.err, "2 of 4 cells are left out:\n  bad: failed, the fault that was asked");
  EXPECT_EQ(Collected("/eval").rows(), 4);
  EXPECT_EQ(Collected("/train").rows(), 8);
  std::map<std::string, Setting::Value> attributes;
  for (const auto& [name, value] : ReadAttributes(path, "/")) attributes[name] = value;
  EXPECT_EQ(std::get<int64_t>(attributes["cells_done"]), 2);
  EXPECT_EQ(std::get<int64_t>(attributes["cells_left_out"]), 2);
  EXPECT_EQ(Call("collect s.toml --unfinished").code, 0);
  EXPECT_EQ(Collected("/train").rows(), 8 + 2 + 1);

  // Both faults strike at a step that lies behind the resumed runs.
  EXPECT_EQ(Call("resume s.toml").code, 0);
  EXPECT_EQ(Status()["counts"]["done"], 4);
}

TEST_F(SweepTest, ASlimFileHasMeansOfTheCurvesAndEverythingElse) {
  Write("s.toml", kHead + kVariants + "[axes]\ntrain.steps = [40, 300]\n");
  ASSERT_EQ(Call("run s.toml").code, 0);
  const std::string path = scratch_ / "runs/s/sweep.h5";
  const H5Table whole = Collected("/train"), cells = Collected("/cells"), eval = Collected("/eval");
  ASSERT_EQ(whole.rows(), 2 * (40 + 300));
  ASSERT_EQ(Call("collect s.toml --slim").code, 0);
  const H5Table slim = Collected("/train");
  std::map<double, std::vector<size_t>> rows;
  const auto cell = slim.Numbers("cell"), step = slim.Numbers("step"),
             tokens = slim.Numbers("tokens"), loss = slim.Numbers("loss");
  const auto all_cells = whole.Numbers("cell"), all_steps = whole.Numbers("step"),
             all_tokens = whole.Numbers("tokens"), all_losses = whole.Numbers("loss");
  for (size_t r = 0; r < cell.size(); ++r) rows[cell[r]].push_back(r);
  ASSERT_EQ(rows.size(), 4u);
  for (const auto& [c, of_cell] : rows) {
    const double steps = cells.Numbers("train.steps")[static_cast<size_t>(c)];
    if (steps == 40) {  // short enough to stay as it is
      EXPECT_EQ(of_cell.size(), 40u);
    }
    ASSERT_LE(of_cell.size(), 64u);
    EXPECT_GT(of_cell.size(), 32u);
    EXPECT_EQ(step[of_cell.back()], steps);
    // Each row holds the means of the steps after the row before it.
    double from = 1;
    for (const size_t r : of_cell) {
      double sum_tokens = 0, sum_loss = 0, count = 0;
      for (size_t w = 0; w < all_steps.size(); ++w) {
        if (all_cells[w] != c || all_steps[w] < from || all_steps[w] > step[r]) continue;
        sum_tokens += all_tokens[w], sum_loss += all_losses[w], ++count;
      }
      ASSERT_EQ(count, step[r] - from + 1);
      EXPECT_NEAR(tokens[r], sum_tokens / count, 0.5);
      EXPECT_NEAR(loss[r], sum_loss / count, 1e-12);
      from = step[r] + 1;
    }
  }
  EXPECT_EQ(Collected("/eval").Numbers("accuracy"), eval.Numbers("accuracy"));
  EXPECT_EQ(Collected("/cells").Numbers("memory_bytes"), cells.Numbers("memory_bytes"));
}

TEST_F(SweepTest, ADivergedCellIsAFailureThatIsNotRepeated) {
  Write("s.toml", kHead + "[variants]\nbad = { fault.exit_code = 4 }\ngood = { seed = 1 }\n");
  EXPECT_EQ(Call("run s.toml").code, 1);
  EXPECT_EQ(Status()["cells"][0]["state"], "diverged");
  const Result again = Call("run s.toml");
  EXPECT_EQ(again.code, 1);
  EXPECT_HAS(again.err, "bad: diverged before");
  EXPECT_EQ(Status()["cells"][0]["step"], 2);
}

TEST_F(SweepTest, ACellThatFailsBeforeItHasADirectoryIsReported) {
  Write("s.toml", kHead + kVariants);
  ASSERT_EQ(Call("plan s.toml").code, 0);
  const std::string id = Plan()["cells"][0]["run_id"];
  Write("runs/s/" + id, "a file where the directory should be");
  const Result output = Call("run s.toml");
  EXPECT_EQ(output.code, 1);
  const Json status = Status();
  EXPECT_EQ(status["cells"][0]["state"], "failed");
  EXPECT_HAS(status["cells"][0]["message"].get<std::string>(), id);
  EXPECT_EQ(status["cells"][1]["state"], "done");
}

TEST_F(SweepTest, ACellThatAsksToBeRunAgainIs) {
  Write("s.toml", kHead + "[variants]\na = { fault.requeue_at = 2 }\nb = { seed = 1 }\n");
  const Result output = Call("run s.toml");
  EXPECT_EQ(output.code, 0) << output.err;
  EXPECT_HAS(output.err, "a: asked to be run again at step 2 of 4");
}

TEST_F(SweepTest, ABrokenJournalIsNamedAndTheOthersAreCollected) {
  Write("s.toml", kHead + kVariants);
  ASSERT_EQ(Call("run s.toml").code, 0);
  const std::string id = Status()["cells"][0]["run_id"];
  const std::string journal = Read("runs/s/" + id + "/journal.jsonl");
  Write("runs/s/" + id + "/journal.jsonl", "nonsense\n" + journal);
  const Result output = Call("collect s.toml");
  EXPECT_EQ(output.code, 3);
  EXPECT_HAS(output.err, id + "/journal.jsonl");
  EXPECT_EQ(Collected("/eval").rows(), 2);
}

TEST_F(SweepTest, ABrokenStatusIsThatCellsFailure) {
  Write("s.toml", kHead + kVariants);
  ASSERT_EQ(Call("run s.toml").code, 0);
  const std::string id = Status()["cells"][0]["run_id"];
  Write("runs/s/" + id + "/status.json", "{\"state\"");
  EXPECT_EQ(Status()["cells"][0]["state"], "failed");
  EXPECT_HAS(Status()["cells"][0]["message"].get<std::string>(), id + "/status.json");
  EXPECT_EQ(Status()["cells"][1]["state"], "done");
}

TEST_F(SweepTest, ACellThatAsksTooOftenFails) {
  Write("s.toml", kHead + "[variants]\na = { fault.always_requeue = true }\n");
  const Result output = Call("run s.toml");
  EXPECT_EQ(output.code, 1);
  EXPECT_HAS(output.err, "a: failed with exit code 75");
}

}  // namespace
}  // namespace weft
