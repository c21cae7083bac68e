// links: weft_run
// HDF5 and safetensors: what is written is what others read, and what is broken is refused.

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "experiments/run/files.h"
#include "experiments/run/h5.h"
#include "experiments/run/safetensors.h"
#include "tests/faults/faults.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<H5Table> SomeTables(size_t rows) {
  std::vector<int64_t> step(rows);
  std::iota(step.begin(), step.end(), int64_t{-2});
  std::vector<double> loss(rows);
  std::vector<std::string> name(rows);
  for (size_t r = 0; r < rows; ++r) {
    loss[r] = 1.0 / (static_cast<double>(r) + 3);
    name[r] = r % 2 == 0 ? "é" : std::string(r % 7, 'n');
  }
  if (rows > 2) {
    step[1] = std::numeric_limits<int64_t>::min();
    loss[0] = std::nan("");
    loss[1] = -kInfinity;
  }
  return {{"/eval/a b", {{"step", "step", step}, {"loss", "nat/token", loss}}},
          {"/train", {{"loss", "nat", loss}, {"name", "1", name}, {"step", "step", step}}}};
}

void ExpectSame(const H5Table& a, const H5Table& b) {
  EXPECT_EQ(a.name, b.name);
  ASSERT_EQ(a.columns.size(), b.columns.size());
  for (size_t c = 0; c < a.columns.size(); ++c) {
    EXPECT_EQ(a.columns[c].name, b.columns[c].name);
    EXPECT_EQ(a.columns[c].unit, b.columns[c].unit);
    ASSERT_EQ(a.columns[c].values.index(), b.columns[c].values.index());
    if (const auto* x = std::get_if<std::vector<double>>(&a.columns[c].values)) {
      const auto& y = std::get<std::vector<double>>(b.columns[c].values);
      ASSERT_EQ(x->size(), y.size());
      for (size_t r = 0; r < x->size(); ++r) {
        ASSERT_EQ(std::memcmp(&(*x)[r], &y[r], sizeof(double)), 0) << r;
      }
    } else {
      EXPECT_EQ(a.columns[c].values, b.columns[c].values);
    }
  }
}

TEST(H5, TablesAndAttributesRoundTrip) {
  const Scratch scratch;
  const std::string path = scratch / "a.h5";
  const Attributes attributes = {{"a", true},
                                 {"b", false},
                                 {"c", int64_t{-3}},
                                 {"d", 1.0},
                                 {"e/f", std::string("é\n")},
                                 {"g", std::string()},
                                 {"h", std::vector<int64_t>{1, -2}},
                                 {"i", std::vector<int64_t>{}},
                                 {"j", std::vector<double>{0.5}},
                                 {"k", std::vector<std::string>{"x", "", "é"}},
                                 {"l", std::vector<std::string>{}},
                                 {"m", std::string(100'000, 'x')}};
  for (const size_t rows : {0, 1, 2, 63, 4096, 10'001}) {
    const std::vector<H5Table> tables = SomeTables(rows);
    WriteH5(path, tables,
            {{"/", {{"v", int64_t{1}}}},
             {"/deep/group", attributes},
             {"/train", {{"note", std::string("n")}}}});
    EXPECT_EQ(ListTables(path), (std::vector<std::string>{"/eval/a b", "/train"}));
    for (const H5Table& table : tables) ExpectSame(ReadTable(path, table.name), table);
    EXPECT_EQ(ReadAttributes(path, "/deep/group"), attributes);
    EXPECT_EQ(ReadAttributes(path, "/"), (Attributes{{"v", int64_t{1}}}));
  }
  EXPECT_EQ(ReadTable(path, "/train").Numbers("step").size(), 10'001u);
  EXPECT_EQ(NamesIn(scratch.path()), std::vector<std::string>{"a.h5"});
}

TEST(H5, EqualContentGivesEqualBytes) {
  const Scratch scratch;
  WriteH5(scratch / "a.h5", SomeTables(100), {});
  WriteH5(scratch / "b.h5", SomeTables(100), {});
  EXPECT_EQ(ReadFile(scratch / "a.h5"), ReadFile(scratch / "b.h5"));
}

TEST(H5, ErrorsNameFileTableAndColumn) {
  const Scratch scratch;
  const std::string path = scratch / "a.h5";
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": cannot read: No such file");
  Spill(path, "not HDF5");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": cannot read file: HDF5: ");
  Spill(path, "");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train"); }), path + ": ");
  WriteH5(path, SomeTables(3), {{"/settings", {}}});
  EXPECT_HAS(DataError([&] { ReadTable(path, "/none"); }), "cannot open table /none: HDF5: ");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/settings"); }), "/settings");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train").Column("lost"); }),
             "table /train has no column lost, it has loss, name, step");
  EXPECT_HAS(DataError([&] { ReadTable(path, "/train").Numbers("name"); }), "expected numbers");
  std::vector<H5Table> uneven = SomeTables(3);
  uneven[1].columns[1].values = std::vector<int64_t>{1};
  EXPECT_HAS(ErrorOf(ExitCode::kFailure, [&] { WriteH5(path, uneven, {}); }),
             "column name of table /train has 1 rows, expected 3");
  EXPECT_HAS(ErrorOf(ExitCode::kFailure,
                     [&] {
                       WriteH5(path, {SomeTables(1)[1], SomeTables(1)[1]}, {});
                     }),
             "cannot create table /train: HDF5: ");
  ExpectSame(ReadTable(path, "/train"), SomeTables(3)[1]);
  const std::string whole = ReadFile(path);
  for (size_t size = 0; size < whole.size(); size += 97) {
    Spill(path, whole.substr(0, size));
    DataError([&] { ReadTable(path, "/train"); });
  }
}

struct Weights {
  std::vector<float> a = std::vector<float>(6, 1.5f);
  std::vector<double> b = {1, -2, std::nan(""), kInfinity};
  std::vector<uint8_t> c = {1, 2, 3};

  std::vector<NamedTensor> Tensors() const {
    return {{"layer.0.w", "F32", {2, 3}, a.data()},
            {"scale", "F64", {4}, b.data()},
            {"c \"é\"", "U8", {3, 1}, c.data()},
            {"empty", "BF16", {0, 7}, nullptr},
            {"scalar", "I32", {}, a.data()}};
  }
  int32_t scalar = 0;
  std::vector<TensorTarget> Targets() {
    return {{"scalar", "I32", {}, &scalar},
            {"layer.0.w", "F32", {2, 3}, a.data()},
            {"scale", "F64", {4}, b.data()},
            {"c \"é\"", "U8", {3, 1}, c.data()},
            {"empty", "BF16", {0, 7}, nullptr}};
  }
};

TEST(Safetensors, RoundTripsAndIsTheFormatOfOthers) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const Weights written;
  WriteSafetensors(path, written.Tensors(), {{"architecture", "hybrid \"1\""}});
  Weights read;
  for (auto& x : read.a) x = 0;
  for (auto& x : read.b) x = 0;
  for (auto& x : read.c) x = 0;
  const SafetensorsFile file(path);
  file.Load(read.Targets());
  EXPECT_EQ(read.a, written.a);
  EXPECT_EQ(read.c, written.c);
  EXPECT_EQ(std::memcmp(read.b.data(), written.b.data(), 32), 0);
  EXPECT_EQ(std::memcmp(&read.scalar, written.a.data(), 4), 0);
  EXPECT_EQ(file.metadata(),
            (std::map<std::string, std::string>{{"architecture", "hybrid \"1\""}}));
  EXPECT_EQ(file.entries().size(), 5u);
  EXPECT_HAS(DataError([&] { file.At("none"); }), path + ": tensor none is missing");

  const std::string out = Python(scratch, R"(
import json, struct
b = open(')" + path + R"(', 'rb').read()
n, = struct.unpack('<Q', b[:8])
h = json.loads(b[8:8 + n])
assert n % 8 == 0 and all(isinstance(v, str) for v in h.pop('__metadata__').values())
assert h['layer.0.w']['dtype'] == 'F32' and h['layer.0.w']['shape'] == [2, 3]
begin, end = h['scale']['data_offsets']
assert struct.unpack('<4d', b[8 + n + begin:8 + n + end])[1] == -2
assert h['scalar']['shape'] == [] and h['empty']['shape'] == [0, 7]
print('ok')
)");
  EXPECT_EQ(out, "ok\n");
}

TEST(Safetensors, EveryTruncationAndEveryFlippedByteIsRefused) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  Weights weights;
  WriteSafetensors(path, weights.Tensors(), {{"note", "n"}});
  const std::string whole = ReadFile(path);
  const auto load = [&] { SafetensorsFile(path).Load(weights.Targets()); };
  load();
  for (size_t size = 0; size < whole.size(); ++size) {
    Spill(path, whole.substr(0, size));
    EXPECT_HAS(DataError(load), path + ": ");
  }
  Spill(path, whole + "x");
  EXPECT_HAS(DataError(load), "longer than its tensors");
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int bit : {0, 1, 5, 7}) {
      std::string flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Spill(path, flipped);
      EXPECT_HAS(DataError(load), path + ": ");
    }
  }
  std::string flipped = whole;
  flipped[whole.size() - 1] ^= 1;
  Spill(path, flipped);
  EXPECT_HAS(DataError(load), "tensor scalar: is corrupted: checksum ");

  WriteSafetensors(path, {});
  EXPECT_EQ(SafetensorsFile(path).entries().size(), 0u);
}

std::string Foreign(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\x01');
}

TEST(Safetensors, ReadsFilesOfOthersStrictly) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}";
  };
  const std::string a = entry("a", "U8", "[2]", "[0,2]");
  Spill(path, Foreign("{" + entry("b", "I16", "[1]", "[2,4]") + "," + a +
                          ",\"__metadata__\":{\"format\":\"pt\"}}   ",
                      4));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.entries()[0].name, "a");
  uint8_t bytes[2] = {};
  file.Read(file.At("a"), bytes);
  EXPECT_EQ(bytes[1], 1);
  EXPECT_EQ(file.metadata().at("format"), "pt");

  const auto refuses = [&](const std::string& header, size_t data_bytes, const std::string& part) {
    Spill(path, Foreign(header, data_bytes));
    EXPECT_HAS(DataError([&] { SafetensorsFile{path}; }), part);
  };
  refuses("{" + a + "," + entry("b", "U8", "[2]", "[1,3]") + "}", 3, "tensor b: begins at byte 1");
  refuses("{" + a + "," + entry("b", "U8", "[2]", "[3,5]") + "}", 5, "(leaves a hole)");
  refuses("{" + a + "}", 3, "has 3 bytes of data, expected 2: longer");
  refuses("{" + a + "}", 1, "has 1 bytes of data, expected 2: truncated, the last is a");
  refuses("{" + a + "," + a + "}", 2, "name \"a\" is given twice");
  refuses("{" + entry("a", "U9", "[2]", "[0,2]") + "}", 2, "tensor a: unknown dtype \"U9\"");
  refuses("{" + entry("a", "F32", "[2]", "[0,2]") + "}", 2, "expected 8 bytes for F32 [2]");
  refuses("{" + entry("a", "U8", "[-2]", "[0,2]") + "}", 2, "found -2, expected a size");
  refuses("{" + entry("a", "U8", "[2.0]", "[0,2]") + "}", 2, "expected a size");
  refuses("{" + entry("a", "U8", "[2]", "[2,0]") + "}", 2, "data_offsets 2 to 0");
  refuses("{" + entry("a", "U8", "[2]", "[0,2,3]") + "}", 2, "expected two data_offsets");
  refuses("{" + entry("a", "U8", "[4294967296,4294967296,2]", "[0,2]") + "}", 2, "not a size");
  refuses("{" + entry("a", "U8", "[9223372036854775808]", "[0,2]") + "}", 2, "expected a size");
  refuses("{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, "tensor a: expected dtype, shape");
  refuses("{\"a\":3}", 2, "tensor a: ");
  refuses("[]", 0, "not a JSON object");
  refuses("{\"__metadata__\":{\"n\":3}}", 0, "broken header");
  refuses("{", 0, "broken header");
  refuses("", 0, "broken header");
  std::string huge = Foreign("{}", 0);
  huge[6] = 1;
  Spill(path, huge);
  EXPECT_HAS(DataError([&] { SafetensorsFile{path}; }), "the header claims 281474976710658 bytes");
}

TEST(Safetensors, WriterRefusesBadNames) {
  const Scratch scratch;
  const std::string path = scratch / "a.safetensors";
  const float x = 0;
  const auto write = [&](std::vector<NamedTensor> tensors) {
    return [&path, tensors = std::move(tensors)] { WriteSafetensors(path, tensors); };
  };
  ErrorOf(ExitCode::kFailure, write({{"a", "F32", {}, &x}, {"a", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"__metadata__", "F32", {}, &x}}));
  ErrorOf(ExitCode::kFailure, write({{"\xff", "F32", {}, &x}}));
  ErrorOf(ExitCode::kData, write({{"a", "float", {}, &x}}));
  ErrorOf(ExitCode::kFailure, [&] { WriteSafetensors(path, {}, {{"xxh3", "0"}}); });
  EXPECT_TRUE(NamesIn(scratch.path()).empty());
}

}  // namespace
}  // namespace weft
