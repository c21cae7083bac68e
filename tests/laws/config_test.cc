// links: weft_config
#include "arch/core/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "tests/errors.h"

namespace weft {
namespace {

using Strings = std::vector<std::string>;

struct Model {
  int64_t d_model = 64;
  double dropout = 0;
  std::vector<std::string> pattern = {"attention"};
  void Visit(ConfigVisitor& v) {
    v.Key("d_model", d_model, "width", Range{1, 65536});
    v.Key("dropout", dropout, "dropped share", Range{0, 1});
    v.Key("pattern", pattern, "mixer of each layer, repeated");
  }
};

struct LocalAttention {
  int64_t window = 128;
  void Visit(ConfigVisitor& v) { v.Key("window", window, "tokens seen", Range{1, 1e9}); }
};

struct Everything {
  bool flag = false;
  int64_t seed = 0;
  double number = 0.5;
  std::string name = "run";
  std::string optimizer = "adamw";
  std::vector<int64_t> ints = {1, 2};
  std::vector<double> doubles = {1, 2.5};
  Model model;
  LocalAttention local;
  void Visit(ConfigVisitor& v) {
    v.Key("flag", flag, "a flag");
    v.Key("seed", seed, "seed");
    v.Key("number", number, "a number");
    v.Section("model", model);
    v.Key("name", name, "a name");
    v.Key("optimizer", optimizer, "optimizer", {"adamw", "muon"});
    v.Key("ints", ints, "integers", Range{-1e300, 1e300});
    v.Key("doubles", doubles, "numbers");
    v.Section("mixer.attention-local", local);
  }
};

std::vector<ConfigField> FieldsOf(Everything& config) {
  ConfigVisitor visitor;
  config.Visit(visitor);
  return visitor.fields();
}

Everything Read(const std::string& toml) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  Apply(ParseToml(toml, "x.toml"), fields);
  return config;
}

Everything Override(const std::string& flag) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  Apply({ParseOverride(flag, "--" + flag.substr(0, flag.find('=')))}, fields);
  return config;
}

std::string ReadError(const std::string& toml) {
  return UsageError([&] { Read(toml); });
}
std::string OverrideError(const std::string& flag) {
  return UsageError([&] { Override(flag); });
}

void ExpectRoundTrip(Everything written) {
  const std::vector<ConfigField> fields = FieldsOf(written);
  for (const bool with_origins : {false, true}) {
    std::map<std::string, std::string> origins;
    for (const ConfigField& field : fields) origins[field.path] = "a # \"strange\"\nfile.toml:1";
    const std::string toml = WriteToml(fields, with_origins ? &origins : nullptr);
    Everything read;
    read.ints = {7};
    std::vector<ConfigField> read_fields = FieldsOf(read);
    const auto read_origins = Apply(ParseToml(toml, "x.toml"), read_fields);
    for (size_t i = 0; i < fields.size(); ++i) {
      EXPECT_EQ(ValueOf(fields[i]), ValueOf(read_fields[i])) << fields[i].path << "\n" << toml;
      EXPECT_NE(read_origins.at(fields[i].path), "default") << fields[i].path;
    }
    EXPECT_EQ(std::signbit(written.number), std::signbit(read.number)) << toml;
    EXPECT_EQ(HashOf(fields), HashOf(read_fields));
  }
}

TEST(Config, WriteThenReadIsIdentity) {
  ExpectRoundTrip({});
  const std::vector<double> numbers = {-0.0,
                                       0.0,
                                       1e-300,
                                       -1e300,
                                       0.1,
                                       1.0,
                                       1e20,
                                       123456789012345678.0,
                                       std::numeric_limits<double>::denorm_min(),
                                       std::numeric_limits<double>::max(),
                                       std::numeric_limits<double>::infinity(),
                                       -std::numeric_limits<double>::infinity(),
                                       std::nextafter(1.0, 2.0)};
  for (const double x : numbers) {
    Everything config;
    config.number = x;
    ExpectRoundTrip(config);
  }
  for (const int64_t i : {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(),
                          int64_t{-1}, (int64_t{1} << 53) + 1}) {
    Everything config;
    config.seed = i;
    config.ints = {i, 0, i};
    ExpectRoundTrip(config);
  }
  for (const char* text :
       {"", " ", "a\"b\\c", "two\nlines\r\n\ttab", "héllo → 世界 🙂", "'''", "\"\"\"",
        "# no comment", "true", "12", "\x01\x1f\x7f\b\f", "[x]"}) {
    Everything config;
    config.name = text;
    config.model.pattern = {text, "attention", text};
    ExpectRoundTrip(config);
  }
  Everything config;
  config.flag = true;
  config.ints = {};
  config.doubles = numbers;
  config.model.pattern = {};
  config.local.window = 7;
  ExpectRoundTrip(config);
}

TEST(Config, FloatsAreShortestAndStayFloats) {
  EXPECT_EQ(ToToml(Setting::Value(0.1)), "0.1");
  EXPECT_EQ(ToToml(Setting::Value(1.0)), "1.0");
  EXPECT_EQ(ToToml(Setting::Value(-0.0)), "-0.0");
  EXPECT_EQ(ToToml(Setting::Value(1e-300)), "1e-300");
  EXPECT_TRUE(std::holds_alternative<double>(ParseValue("1e20", "x")));
}

TEST(Config, ReadsEveryFormOfAKey) {
  EXPECT_EQ(Read("model.d_model = 3").model.d_model, 3);
  EXPECT_EQ(Read("[model]\nd_model = 3").model.d_model, 3);
  EXPECT_EQ(Read("model = { d_model = 3 }").model.d_model, 3);
  EXPECT_EQ(Read("\"model.d_model\" = 3").model.d_model, 3);
  EXPECT_EQ(Read("[mixer.attention-local]\nwindow = 3").local.window, 3);
  EXPECT_EQ(Read("[mixer.\"attention-local\"]\nwindow = 3").local.window, 3);
  EXPECT_EQ(Read("mixer.\"attention-local\".window = 3").local.window, 3);
  EXPECT_EQ(Read("\xEF\xBB\xBF# comment\r\nseed = 0x10\r\n").seed, 16);
  EXPECT_EQ(Read("").seed, 0);
}

TEST(Config, OnlyIntegersConvertToNumbers) {
  EXPECT_EQ(Read("number = 3").number, 3.0);
  EXPECT_EQ(Read("doubles = [1, 2]").doubles, (std::vector<double>{1, 2}));
  EXPECT_EQ(Read("doubles = [1, 2.5]").doubles, (std::vector<double>{1, 2.5}));
  EXPECT_EQ(Read("doubles = []").doubles, std::vector<double>{});
  EXPECT_EQ(Read("model.pattern = []").model.pattern, Strings{});

  EXPECT_EQ(ReadError("\nseed = 1.0"), "x.toml:2: seed = 1.0 is a number, expected an integer");
  EXPECT_EQ(ReadError("seed = \"1\""), "x.toml:1: seed = \"1\" is a string, expected an integer");
  EXPECT_EQ(ReadError("flag = 1"), "x.toml:1: flag = 1 is an integer, expected true or false");
  EXPECT_EQ(ReadError("number = true"),
            "x.toml:1: number = true is true or false, expected a number");
  EXPECT_EQ(ReadError("name = 3"), "x.toml:1: name = 3 is an integer, expected a string");
  EXPECT_EQ(ReadError("ints = 3"), "x.toml:1: ints = 3 is an integer, expected a list of integers");
  EXPECT_EQ(ReadError("ints = [1.5]"),
            "x.toml:1: ints = [1.5] is a list of numbers, expected a list of integers");
  EXPECT_EQ(ReadError("model.pattern = \"a,b\""),
            "x.toml:1: model.pattern = \"a,b\" is a string, expected a list of strings");
  EXPECT_NE(ReadError("seed = 2020-01-01").find("x.toml:1: seed is a date"), std::string::npos);
  for (const char* list : {"[1, \"a\"]", "[[1], [2]]", "[true]", "[{a = 1}]"}) {
    EXPECT_NE(ReadError(Cat("\n\nints = ", list)).find("x.toml:3: ints is a list of mixed"),
              std::string::npos);
  }
}

TEST(Config, UnknownKeyNamesTheNearest) {
  EXPECT_EQ(ReadError("seed = 1\n[model]\nd_modle = 3"),
            "x.toml:3: unknown key \"model.d_modle\"; did you mean \"model.d_model\"?");
  EXPECT_EQ(ReadError("d_model = 3"),
            "x.toml:1: unknown key \"d_model\"; did you mean \"model.d_model\"?");
  EXPECT_EQ(OverrideError("sed=1"), "--sed: unknown key \"sed\"; did you mean \"seed\"?");
  EXPECT_EQ(ReadError("[mixer.attention_local]\nwindow = 1"),
            "x.toml:2: unknown key \"mixer.attention_local.window\"; did you mean "
            "\"mixer.attention-local.window\"?");
}

TEST(Config, KeyGivenTwiceIsRefused) {
  EXPECT_EQ(ReadError("seed = 1\nseed = 2"), "x.toml:2: key \"seed\" is given twice");
  EXPECT_EQ(ReadError("seed = 1\n[model] # m\nd_model = 1\n# c\nd_model = 1"),
            "x.toml:5: key \"model.d_model\" is given twice");
  EXPECT_EQ(ReadError("[model]\nd_model = 1\n[model]\ndropout = 0"),
            "x.toml:3: key \"model\" is given twice");
  EXPECT_EQ(ReadError("model.d_model = 1\n\"model.d_model\" = 2"),
            "x.toml:2: key \"model.d_model\" is given twice, first at x.toml:1");
  EXPECT_NE(ReadError("seed = 1\nseed.x = 2").find("x.toml:2: "), std::string::npos);
}

TEST(Config, SyntaxErrorNamesTheLine) {
  EXPECT_EQ(ReadError("seed = 1\nflag = maybe").rfind("x.toml:2: not TOML: ", 0), 0u);
  EXPECT_EQ(ReadError("[\n").rfind("x.toml:", 0), 0u);
  EXPECT_EQ(ReadError("seed = 99999999999999999999").rfind("x.toml:1: ", 0), 0u);
  EXPECT_EQ(ReadError("name = \"\xff\"").rfind("x.toml:1: ", 0), 0u);
}

TEST(Config, OutOfRangeNamesKeyValueAndRange) {
  EXPECT_EQ(ReadError("model.d_model = 0"),
            "x.toml:1: model.d_model = 0 is out of range, expected 1 to 65536");
  EXPECT_EQ(ReadError("model.dropout = 1.0000001"),
            "x.toml:1: model.dropout = 1.0000001 is out of range, expected 0 to 1");
  EXPECT_EQ(ReadError("number = nan"),
            "x.toml:1: number = nan is out of range, expected any number but NaN");
  EXPECT_EQ(ReadError("doubles = [0, nan]"),
            "x.toml:1: doubles = [0.0, nan] is out of range, expected any number but NaN");
  EXPECT_EQ(OverrideError("optimizer=mun"),
            "--optimizer: optimizer = \"mun\" is not one of adamw, muon; did you mean \"muon\"?");
  EXPECT_EQ(Read("model.d_model = 1").model.d_model, 1);
  EXPECT_EQ(Read("model.d_model = 65536").model.d_model, 65536);
}

TEST(Config, RefusedSettingLeavesTheFieldAlone) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  UsageError([&] { Apply(ParseToml("model.d_model = 0", "x.toml"), fields); });
  EXPECT_EQ(config.model.d_model, 64);
}

TEST(Config, Overrides) {
  EXPECT_EQ(Override("model.d_model=512").model.d_model, 512);
  EXPECT_EQ(Override("number=3").number, 3.0);
  EXPECT_EQ(Override("number=3e-4").number, 3e-4);
  EXPECT_EQ(Override("flag=true").flag, true);
  EXPECT_EQ(Override("mixer.attention-local.window=9").local.window, 9);
  for (const char* name : {"recall", "007", "1,2", "true", "2020-01-01", "a=b", "x # y", "3 # y",
                           "1]\nseed = [2", "", "a,", "http://x/y?z=[1]"}) {
    EXPECT_EQ(Override(Cat("name=", name)).name, name);
  }
  EXPECT_EQ(Override("name=\"quoted\"").name, "quoted");
  EXPECT_EQ(Override("name='12'").name, "12");
  const Strings two = {"attention", "gated_delta"};
  EXPECT_EQ(Override("model.pattern=[\"attention\",\"gated_delta\"]").model.pattern, two);
  EXPECT_EQ(Override("model.pattern=attention,gated_delta").model.pattern, two);
  EXPECT_EQ(Override("model.pattern=attention, gated_delta").model.pattern, two);
  EXPECT_EQ(Override("model.pattern=attention").model.pattern, Strings{"attention"});
  EXPECT_EQ(Override("model.pattern=[]").model.pattern, Strings{});
  EXPECT_EQ(Override("ints=3,-4").ints, (std::vector<int64_t>{3, -4}));
  EXPECT_EQ(Override("ints=3").ints, (std::vector<int64_t>{3}));
  EXPECT_EQ(Override("doubles=1,2.5").doubles, (std::vector<double>{1, 2.5}));

  EXPECT_EQ(OverrideError("seed=3x"), "--seed: seed = \"3x\" is a string, expected an integer");
  EXPECT_EQ(OverrideError("seed=3,4"), "--seed: seed = \"3,4\" is a string, expected an integer");
  EXPECT_EQ(OverrideError("seed="), "--seed: seed = \"\" is a string, expected an integer");
  EXPECT_EQ(OverrideError("seed"), "--seed: found \"seed\", expected key=value");
  EXPECT_EQ(OverrideError("ints=3,x").rfind("--ints: [3,\"x\"] is not true, false,", 0), 0u);
  EXPECT_NE(OverrideError("ints=x").find("expected a list of integers"), std::string::npos);
  OverrideError("=3");
  OverrideError("model.pattern=[\"attention\"");
  OverrideError("model.pattern=[attention]");
  OverrideError("ints=[1],[2]");
  OverrideError("name=\"open");
  OverrideError("name=\xff");
  OverrideError("seed={a=1}");
}

TEST(Config, OriginsAndPrecedence) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  Settings settings = ParseToml("seed = 1\n\n[model]\nd_model = 2\n", "base.toml");
  settings.push_back(ParseOverride("seed=5", "--seed"));
  const auto origins = Apply(settings, fields);
  EXPECT_EQ(config.seed, 5);
  EXPECT_EQ(origins.at("seed"), "--seed");
  EXPECT_EQ(origins.at("model.d_model"), "base.toml:4");
  EXPECT_EQ(origins.at("model.dropout"), "default");
  EXPECT_EQ(origins.size(), fields.size());
  EXPECT_NE(WriteToml(fields, &origins).find("d_model = 2  # from base.toml:4\n"),
            std::string::npos);
}

TEST(Config, HashIsStableAndDependsOnEveryValueButNotOnOrder) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  const std::string hash = HashOf(fields);
  EXPECT_EQ(hash, "dd46f979ca29");
  std::reverse(fields.begin(), fields.end());
  EXPECT_EQ(HashOf(fields), hash);
  for (const char* change :
       {"flag = true", "seed = 1", "number = -0.5", "name = \"rum\"", "ints = [2, 1]",
        "doubles = [1, 2.25]", "model.pattern = []", "mixer.attention-local.window = 129"}) {
    Everything other = Read(change);
    EXPECT_NE(HashOf(FieldsOf(other)), hash) << change;
  }
}

TEST(Config, AKeyThatCameLaterLeavesTheNamesOfRunsWithoutIt) {
  Everything config;
  std::vector<ConfigField> fields = FieldsOf(config);
  const std::string before = HashOf(fields), written = WriteToml(fields);
  int64_t positions = 0;
  ConfigVisitor later;
  later.LaterKey("positions", positions, "0", "", Range{0, 8});
  fields.push_back(later.fields().front());
  EXPECT_EQ(HashOf(fields), before);
  EXPECT_EQ(WriteToml(fields), written);
  positions = 8;
  EXPECT_NE(HashOf(fields), before);
  EXPECT_HAS(WriteToml(fields), "positions = 8\n");
  fields.pop_back();
  std::string address = "variable";
  later.LaterKey("address", address, "\"variable\"", "", {"variable", "literal"});
  fields.push_back(later.fields().back());
  EXPECT_EQ(HashOf(fields), before);
  address = "literal";
  EXPECT_NE(HashOf(fields), before);
}

TEST(Config, HelpShowsDefaultRangeAndChoices) {
  Everything config;
  const std::string help = HelpText(FieldsOf(config));
  EXPECT_NE(help.find("model.d_model = 64"), std::string::npos) << help;
  EXPECT_NE(help.find("width (1 to 65536)\n"), std::string::npos) << help;
  EXPECT_NE(help.find("optimizer (adamw, muon)\n"), std::string::npos) << help;
}

TEST(Config, ReadsFilesAndNamesThemWhenItCannot) {
  const std::string path = testing::TempDir() + "weft_config_test.toml";
  std::ofstream(path) << "seed = 3\nseed = 4\n";
  EXPECT_EQ(UsageError([&] { ReadTomlFile(path); }), path + ":2: key \"seed\" is given twice");
  std::ofstream(path) << "seed = 3\n";
  EXPECT_EQ(ReadTomlFile(path).at(0).origin, path + ":1");
  std::filesystem::remove(path);
  EXPECT_EQ(UsageError([&] { ReadTomlFile(path); }),
            path + ": cannot read: No such file or directory");
  EXPECT_EQ(UsageError([] { ReadTomlFile("/"); }), "/: cannot read: Is a directory");
}

TEST(Config, KeyDeclaredTwiceIsAProgrammingError) {
  struct Twice {
    int64_t a = 0;
    void Visit(ConfigVisitor& v) {
      v.Key("a", a, "");
      v.Key("a", a, "");
    }
  } twice;
  ConfigVisitor visitor;
  twice.Visit(visitor);
  EXPECT_THROW(Apply({}, visitor.fields()), Error);
}

}  // namespace
}  // namespace weft
