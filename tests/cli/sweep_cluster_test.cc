// links: weft_sweeps
// weft-sweep on a cluster whose sbatch, squeue and scontrol are scripts; tests/faults/slurm_test.cc
// has the real ones.

#include "sweeps/slurm.h"
#include "tests/sweeps.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class SweepClusterTest : public SweepTest {
 protected:
  SweepClusterTest() {
    Write("s.toml", kHead + kVariants + "[axes]\nseed = [0, 1, 2]\n");
    // sbatch runs every task at once; squeue tells what the test wants it to.
    Script("sbatch", R"([ "$1" != --version ] || exit 0
[ ! -e refuse ] || { echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1; }
tasks=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' $2)
[ -e wait ] || for task in $(seq 0 $tasks); do SLURM_ARRAY_TASK_ID=$task bash $2; done 2>&1
echo '7;cluster'
)");
    Script("squeue",
           "[ ! -e refuse ] || { echo 'squeue: error: no answer' >&2; exit 1; }\n"
           "cat queue 2>/dev/null; true\n");
    Script("scontrol", "echo \"$@\" >>scontrol.txt\n");
  }
  void Script(const std::string& name, const std::string& text) const {
    Write("bin/" + name, "#!/bin/bash\n" + text);
    fs::permissions(scratch_ / "bin/" + name, fs::perms::owner_all);
  }
  Result Submit(const std::string& arguments = "") const {
    return Call("submit s.toml --cluster=slurm " + arguments, "PATH=$PWD/bin:$PATH");
  }
};

TEST(Pack, TasksHoldSeveralCells) {
  Study study;
  for (const double seconds : {50, 20, 20, 90, 10}) {
    study.cells.emplace_back();
    study.cells.back().plan.seconds = seconds;
  }
  using Tasks = std::vector<std::vector<size_t>>;
  SlurmOptions options;
  options.task_minutes = 1;
  EXPECT_EQ(Pack(study, {0, 1, 2, 3, 4}, options), (Tasks{{0}, {1, 2}, {3}, {4}}));
  options.jobs = 2;
  EXPECT_EQ(Pack(study, {0, 1, 2, 3, 4}, options), (Tasks{{0, 1, 2}, {3, 4}}));
  options.cells_per_task = 2;
  EXPECT_EQ(Pack(study, {0, 1, 3, 4}, options), (Tasks{{0, 1}, {3, 4}}));
  EXPECT_EQ(Pack(study, {}, options), Tasks{});
  options.cells_per_task = 1;
  std::vector<size_t> many(2500, 0);
  EXPECT_LE(Pack(study, many, options).size(), kMostTasks);
}

TEST_F(SweepClusterTest, SubmitsWhatIsNotDoneAndNothingTwice) {
  const Result dry = Submit("--dry-run --cells-per-task=4 --limit=3 --sbatch=--time=5");
  EXPECT_EQ(dry.code, 0) << dry.err;
  ExpectParts(dry.out, {"# task 1: attention/seed=2", "#SBATCH --array=0-1%3\n",
                        "#SBATCH --time=5\n", "#SBATCH --requeue\n", "#SBATCH --signal=B:USR1@"});
  EXPECT_FALSE(Exists("runs"));

  Write("wait", "");  // in the queue
  const Result first = Submit("--cells-per-task=4");
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(first.out, "7\n");
  EXPECT_HAS(first.err, "6 of 6 cells in 2 tasks");
  const std::string script = Read("runs/s/slurm/0/job.sh");
  const size_t at = script.find("--job-name=") + 11;
  const std::string name = script.substr(at, script.find('\n', at) - at);
  Write("queue", name + " 0 PENDING\n" + name + " 1 RUNNING\nother 0 RUNNING\n");
  EXPECT_HAS(Submit().err, "every cell is done, running or in the queue");

  // Task 0 is over without a result.
  Write("queue", name + " 0 COMPLETING\n" + name + " 1 RUNNING\n");
  fs::remove(scratch_ / "wait");
  const Result second = Submit();
  EXPECT_HAS(second.err, "4 of 6 cells in 1 tasks");
  EXPECT_EQ(Status()["counts"], (Json{{"done", 4}, {"queued", 2}}));
  Write("queue", "");
  EXPECT_HAS(Submit().err, "2 of 6 cells");
  EXPECT_EQ(Status()["counts"], (Json{{"done", 6}}));
  EXPECT_EQ(Call("collect s.toml").code, 0);
}

TEST_F(SweepClusterTest, ATaskThatRunsOutOfTimeIsRequeued) {
  Write("base.toml", "[fault]\nstep_ms = 100\n[train]\nsteps = 50\n");
  Write("wait", "");
  ASSERT_EQ(Submit("--cells-per-task=3").code, 0);
  Process task =
      Start("task runs/s/slurm/0 --task 1 --jobs 1",
            "SLURM_ARRAY_JOB_ID=12 SLURM_ARRAY_TASK_ID=1 SLURM_JOB_ID=12 PATH=$PWD/bin:$PATH");
  ASSERT_TRUE(Within(20s, [&] { return Status()["counts"].contains("running"); }));
  task.Send(SIGUSR1);
  EXPECT_EQ(task.Wait(), 75);
  EXPECT_EQ(Read("scontrol.txt"), "requeue 12_1\n");
  EXPECT_EQ(Status()["counts"], (Json{{"queued", 5}, {"stopped", 1}}));
  EXPECT_EQ(Status()["cells"][3]["state"], "stopped");
}

TEST_F(SweepClusterTest, RefusesByName) {
  ExpectOneLine(Call("submit s.toml"), 2, {"name the cluster with --cluster=slurm"});
  ExpectOneLine(Call("submit s.toml --cluster=pbs"), 2, {"--cluster: pbs not in {slurm}"});
  ExpectOneLine(Call("submit s.toml --cluster=slurm", "PATH=/nowhere"), 1,
                {"there is no sbatch in PATH", "weft sweep run"});
  EXPECT_FALSE(Exists("runs"));
  Write("refuse", "");
  ExpectOneLine(Submit(), 1,
                {"sbatch refuses the job: sbatch: error: Unable to contact slurm controller"});
  ExpectOneLine(Submit(), 1, {"squeue says nothing", "runs/s", "no answer"});
  fs::remove(scratch_ / "refuse");
  ASSERT_EQ(Submit("--cells-per-task=6").code, 0);
  ExpectOneLine(Call("task runs/s/slurm/1 --task 1"), 2,
                {"runs/s/slurm/1: has tasks 0 to 0, not 1"});
  ExpectOneLine(Call("task runs/s --task 0"), 3, {"runs/s/tasks.json: is missing"});
  Write("runs/s/slurm/1/tasks.json", "[[\"no such run\"]]");
  ExpectOneLine(Call("task runs/s/slurm/1 --task 0"), 3,
                {"1 of the 1 cells of task 0 are no longer in"});
  Write("runs/s/slurm/1/tasks.json", "[[");
  ExpectOneLine(Call("task runs/s/slurm/1 --task 0"), 3, {"tasks.json: is broken"});
}

}  // namespace
}  // namespace weft
