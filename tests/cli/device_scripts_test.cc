// links: weft_flags
// tests/gpu_laws.sh and tests/gpu_sanitize.sh on test programs, a device and a sanitizer that only
// talk: what counts as held.

#include <gtest/gtest.h>

#include "kernels/base/check.h"
#include "tests/cli/shell.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class DeviceScripts : public testing::Test {
 protected:
  DeviceScripts() {
    fs::create_directories(folder_ / "house/tests");
    for (const char* script : {"tests/gpu_laws.sh", "tests/gpu_sanitize.sh"})
      fs::copy_file(fs::path(WEFT_SOURCE_DIR) / script, folder_ / Cat("house/", script));
    SpillDeep(folder_ / "house/kernels/op.cu", "");
    Program("path/nvidia-smi", "echo 'GPU 0'\n");
    // --tool TOOL --port PORT [--kernel-name NAME] PROGRAM FILTER
    Program("path/compute-sanitizer",
            "tool=$2; shift 4; [ $1 = --kernel-name ] && shift 2\n"
            "\"$@\"\necho \"========= ERROR SUMMARY: ${FOUND:-0} errors\"\n");
  }
  void Program(const std::string& name, const std::string& text) const {
    SpillDeep(folder_ / name, "#!/bin/bash\n" + text);
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }
  // So many laws in suites of ten, each flushed as GoogleTest does; the shards share them.
  void TestProgram(const std::string& name, int laws, const std::string& held = "OK") const {
    Program("bin/" + name, Cat(R"(
filter='*'
for a in "$@"; do [[ $a == --gtest_filter=* ]] && filter=${a#*=}; done
wanted() { local f IFS=:; for f in ${filter%%-*}; do [[ Gpu$1.Law$2 == $f ]] && return; done; return 1; }
n=0
for ((i = 0; i < )",
                               laws, R"(; ++i)); do
  wanted $((i / 10)) $i || continue
  if [[ " $* " == *" --gtest_list_tests "* ]]; then
    [ $((i % 10)) -gt 0 ] || /bin/echo "Gpu$((i / 10))." || exit 1
    /bin/echo "  Law$i" || exit 1
  elif [ $((n++ % ${GTEST_TOTAL_SHARDS:-1})) -eq ${GTEST_SHARD_INDEX:-0} ]; then
    printf '[ %8s ] %s (1 ms)\n' )",
                               held, R"( "Gpu$((i / 10)).Law$i"
  fi
done
)"));
  }
  ShellResult Run(const std::string& command) const {
    return Shell(folder_.path(), "export PATH=$PWD/path:$PATH\n" + command);
  }
  void ExpectRun(const std::string& command, int code, const std::string& part) const {
    const ShellResult r = Run(command);
    EXPECT_EQ(r.code, code) << command << ": " << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << part << " in: " << r.output;
  }
  bool HasReceipt() const { return fs::exists(folder_ / "house/tests/gpu_receipt.txt"); }

  Scratch folder_;
};

TEST_F(DeviceScripts, AReceiptNeedsEveryLawThatIsListed) {
  TestProgram("long_test", 40);
  TestProgram("short_test", 3);
  for (int again = 0; again < 3; ++again)
    ExpectRun("cd bin && ../house/tests/gpu_laws.sh .", 0, "43 of 43 passed\n");
  EXPECT_NE(Slurp(folder_ / "house/tests/gpu_receipt.txt").find("tests    43\n"),
            std::string::npos);
  ExpectRun("house/tests/gpu_laws.sh --check", 0, "");
  fs::remove(folder_ / "house/tests/gpu_receipt.txt");

  TestProgram("short_test", 3, "SKIPPED");
  ExpectRun("house/tests/gpu_laws.sh bin", 1, "40 of 43 passed\n");
  Program("bin/short_test", "exit 127\n");
  ExpectRun("house/tests/gpu_laws.sh bin", 1, "bin/short_test does not say which laws it has\n");
  ExpectRun("house/tests/gpu_laws.sh gone/bin", 1, "does not say which laws it has\n");
  for (const char* wrong : {"--chek", "--check bin", "bin bin"})
    ExpectRun(Cat("house/tests/gpu_laws.sh ", wrong), 2, Cat("found: ", wrong, "\n"));
  EXPECT_FALSE(HasReceipt());
}

TEST_F(DeviceScripts, ASanitizerThatSawNoLawFails) {
  TestProgram("a_test", 12);
  const std::string script = "LOGS=logs house/tests/gpu_sanitize.sh ";
  ExpectRun(script + "bin", 0, "memcheck: 12 of 12 laws held, 0 findings\n");
  ExpectRun("FOUND=2 " + script + "bin", 1, "memcheck: 12 of 12 laws held, 8 findings\n");
  ExpectRun("LAWS='Gpu0.*' TOOLS=memcheck " + script + "bin 60", 0, "10 of 10 laws held");
  // What held in a run before does not hold again by itself.
  TestProgram("a_test", 12, "FAILED");
  ExpectRun("BATCH=9 " + script + "bin", 1, "memcheck: 0 of 12 laws held, 0 findings\n");
  ExpectRun("LAWS=Gpv* " + script + "bin", 1, "is called Gpv*\n");
  ExpectRun(script + "gone/bin", 1, "does not say which laws it has\n");
  for (const char* wrong : {"bin 10m", "bin 0", "--help", "bin 1 2"})
    ExpectRun(script + wrong, 2, Cat("found: ", wrong, "\n"));
}

TEST_F(DeviceScripts, InitcheckLeavesOutProducts) {
  Program("bin/a_test", R"sh(
[[ $* == *--gtest_list_tests* ]] && printf 'Gpu_add.\n  T1\nGpu_matmul.\n  T1\n' && exit
for law in Gpu_add.T1 Gpu_matmul.T1; do [[ $* == *$law* ]] && echo "[       OK ] $law (1 ms)"; done
)sh");
  const std::string script = "TOOLS='initcheck memcheck' house/tests/gpu_sanitize.sh bin";
  ExpectRun(script, 0, "initcheck: 1 of 1 laws held, 0 findings\n");
  ExpectRun(script, 0, "memcheck: 2 of 2 laws held, 0 findings\n");
}

}  // namespace
}  // namespace weft
