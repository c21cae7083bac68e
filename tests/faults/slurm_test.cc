// links: weft_sweeps
// A sweep on a real Slurm: a controller and two nodes on this machine, which listen on 127.0.0.1
// alone. Tasks are killed, preempted and told that their time is up, and the runs are to the bit
// those of a sweep without a cluster.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "sweeps/study.h"
#include "tests/cli/shell.h"
#include "tests/runs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::chrono_literals;

constexpr const char* kBase = R"(threads = 1
[data]
path = "text"
held_out = 0.2
piece_bytes = 256
[train]
steps = 1500
batch = 4
length = 64
checkpoint_every = 100
log_every = 1000
[eval]
rows = 8
)";
constexpr const char* kSweep = R"(base = "base.toml"
[variants]
transformer = { model.pattern = ["attention"] }
hybrid      = { model.pattern = ["gated_delta", "attention"] }
[axes]
seed = [0, 1, 2]
)";

std::string FindDaemon(const std::string& name) {
  for (const char* folder : {"/usr/sbin/", "/usr/local/sbin/", "/usr/bin/"}) {
    if (fs::exists(folder + name)) return folder + name;
  }
  return "";
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

class Slurm : public testing::Test {
 protected:
  void SetUp() override {
    const std::string controller = FindDaemon("slurmctld"), node = FindDaemon("slurmd");
    if (controller.empty() || node.empty()) {
      std::cerr << "\n*** NOT TESTED: no slurmctld and slurmd here. Sweeps on a cluster are tested "
                   "where Slurm is: apt-get install --no-install-recommends slurm-wlm ***\n\n";
      GTEST_SKIP() << "Slurm is not installed";
    }
    for (const char* folder : {"state", "log", "spool.n1", "spool.n2"})
      fs::create_directories(scratch_ / folder);
    const std::string user = Shell(scratch_.path(), "id -un").output;
    std::string conf = "ClusterName=loop\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=" +
                       std::to_string(FreePort()) + "\nSlurmUser=" + user + "SlurmdUser=" + user;
    conf += R"(CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/none
CredType=cred/none
StateSaveLocation=WORK/state
SlurmdSpoolDir=WORK/spool.%n
SlurmctldPidFile=WORK/ctld.pid
SlurmdPidFile=WORK/d.%n.pid
SlurmctldLogFile=WORK/log/ctld.log
SlurmdLogFile=WORK/log/d.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
KillWait=10
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
)";
    for (const char* name : {"n1", "n2"}) {
      conf += Cat("NodeName=", name, " NodeHostname=localhost NodeAddr=127.0.0.1 Port=", FreePort(),
                  " CPUs=1 RealMemory=500 State=UNKNOWN\n");
    }
    conf +=
        "PartitionName=test Nodes=n1,n2 Default=YES MaxTime=30 State=UP PriorityTier=1\n"
        "PartitionName=urgent Nodes=n1,n2 MaxTime=30 State=UP PriorityTier=9\n";
    for (size_t at; (at = conf.find("WORK")) != conf.npos;) conf.replace(at, 4, scratch_.path());
    Spill(scratch_ / "slurm.conf", conf);
    setenv("SLURM_CONF", (scratch_ / "slurm.conf").c_str(), 1);

    fs::create_directories(scratch_ / "ctld");
    daemons_.push_back(
        std::make_unique<Process>(scratch_ / "ctld", std::vector<std::string>{controller, "-D"}));
    for (const char* name : {"n1", "n2"}) {
      fs::create_directories(scratch_ / name);
      daemons_.push_back(std::make_unique<Process>(
          scratch_ / name, std::vector<std::string>{node, "-D", "-N", name}));
    }
    ASSERT_TRUE(Within(60s, [&] { return Say("sinfo -h -o '%D %t'") == "2 idle\n"; }))
        << Slurp(scratch_ / "log/ctld.log");

    Spill(scratch_ / "base.toml", std::string(kBase) + kSmallModel);
    Spill(scratch_ / "text", Squares(2000));
    Spill(scratch_ / "s.toml", kSweep);
  }
  void TearDown() override {
    if (daemons_.empty()) return;
    Say("scancel --user=$(id -un)");
    Within(20s, [&] { return Say("squeue -h").empty(); });
    for (auto daemon = daemons_.rbegin(); daemon != daemons_.rend(); ++daemon) {
      (*daemon)->Send(SIGTERM);
      (*daemon)->Wait();
    }
  }

  std::string Say(const std::string& command) const {
    return Shell(scratch_.path(), command).output;
  }
  std::string Sweep(const std::string& arguments) const {
    return Say("'" WEFT_BIN_DIR "/weft-sweep' " + arguments);
  }
  Json Counts() const {
    return Json::parse(Sweep("status s.toml --json"), nullptr, false).value("counts", Json());
  }
  std::string LogOf(int task) const {
    return Slurp(scratch_ / Cat("runs/s/slurm/0/task-", task, ".log"));
  }
  // "%i", "%N" ... of squeue for a task of the first submission.
  std::string OfTask(int task, const char* format) const {
    std::string text = Say(Cat("squeue -h -r -o '", format, "|%K' | grep '|", task, "$'"));
    return text.substr(0, text.find('|'));
  }
  // The run of the task's cell that makes steps; "" when there is none.
  std::string RunOf(int task) const {
    const Json tasks = Json::parse(Slurp(scratch_ / "runs/s/slurm/0/tasks.json"));
    for (const std::string id : tasks.at(static_cast<size_t>(task))) {
      const std::string run = scratch_ / ("runs/s/" + id);
      if (IsBeingWritten(run) && fs::exists(run + "/checkpoints")) return run;
    }
    return "";
  }
  // Slurm holds a requeued job back for two minutes; here it need not.
  bool QueueEmpties() const {
    return Within(200s, [&] {
      Say("squeue -h -r -t PENDING -o '%A %r' | awk '/BeginTime/ {print $1}' |"
          "xargs -r -I ID scontrol update JobId=ID StartTime=now");
      return Say("squeue -h").empty();
    });
  }
  std::string WhatSlurmDid() const {
    return Say("grep -v update_job log/ctld.log") + Sweep("status s.toml") + LogOf(0) + LogOf(1) +
           LogOf(2);
  }

  Scratch scratch_;
  std::vector<std::unique_ptr<Process>> daemons_;
};

TEST_F(Slurm, KilledPreemptedAndTimedOutTasksLoseNothing) {
  // The shell that submits is killed as soon as it has.
  Process shell(scratch_.path(),
                {"/bin/bash", "-c",
                 "'" WEFT_BIN_DIR "/weft-sweep' submit s.toml --cluster=slurm --cells-per-task=2 "
                 "--limit=2 --sbatch=--partition=test && kill -9 $$"});
  ASSERT_EQ(shell.Wait(), 128 + SIGKILL) << shell.err();
  EXPECT_NE(shell.err().find("6 of 6 cells in 3 tasks"), std::string::npos) << shell.err();
  EXPECT_FALSE(shell.out().empty());
  // No cell is given away twice.
  EXPECT_NE(
      Sweep("submit s.toml --cluster=slurm").find("every cell is done, running or in the queue"),
      std::string::npos);
  EXPECT_TRUE(Within(20s, [&] {
    return Say("squeue -h -r -o '%r'").find("JobArrayTaskLimit") != std::string::npos;
  }));
  ASSERT_TRUE(Within(60s, [&] { return !RunOf(0).empty() && !RunOf(1).empty(); }))
      << LogOf(0) << LogOf(1);

  // Task 1 is preempted by a job of a partition that goes first.
  const std::string node = OfTask(1, "%N");
  Say("sbatch -p urgent -w " + node + " -o /dev/null --wrap 'sleep 1'");
  EXPECT_TRUE(Within(30s, [&] { return LogOf(1).find("stopped at step") != std::string::npos; }))
      << LogOf(1) << Say("squeue; tail log/ctld.log");

  // Task 0 is killed.
  const Json status = Json::parse(Slurp(RunOf(0) + "/status.json"));
  const std::string trainer = std::to_string(status.at("pid").get<int>());
  const std::string worker = Say("ps -o ppid= -p " + trainer);
  EXPECT_NE(Say("ps -o args= -p " + worker).find("weft-sweep task"), std::string::npos);
  Say("kill -9 " + worker);
  EXPECT_TRUE(Within(30s, [&] { return OfTask(0, "%i").empty(); })) << Say("squeue");

  // Task 2 hears that its time is up.
  ASSERT_TRUE(Within(60s, [&] { return !RunOf(2).empty(); })) << LogOf(2) << Say("squeue");
  Say("scancel --batch --signal=USR1 " + OfTask(2, "%i"));
  EXPECT_TRUE(Within(30s, [&] { return LogOf(2).find("stopped at step") != std::string::npos; }))
      << LogOf(2);

  ASSERT_TRUE(QueueEmpties()) << WhatSlurmDid();
  EXPECT_EQ(Counts(), (Json{{"done", 4}, {"queued", 1}, {"stopped", 1}})) << WhatSlurmDid();

  // What the killed task left is given by another submit.
  const std::string again = Sweep("submit s.toml --cluster=slurm");
  EXPECT_NE(again.find("2 of 6 cells in 1 tasks"), std::string::npos) << again;
  ASSERT_TRUE(Within(300s, [&] {
    return Counts() == Json{{"done", 6}};
  })) << Sweep("status s.toml");

  EXPECT_EQ(Sweep("collect s.toml"), "runs/s/sweep.h5\n");
  const std::string local = Sweep("run s.toml --out local --jobs 2");
  EXPECT_NE(local.find("[6/6]"), std::string::npos) << local;
  const Study study = ReadStudy(scratch_ / "local/s");
  ASSERT_EQ(study.cells.size(), 6u);
  for (const PlannedCell& cell : study.cells) {
    SCOPED_TRACE(cell.cell.name);
    ExpectSameRuns(scratch_ / ("runs/s/" + cell.plan.run_id), study.RunDirectoryOf(cell));
  }
}

TEST_F(Slurm, AnOptionThatTheClusterRefusesIsOneLine) {
  const ShellResult result = Shell(
      scratch_.path(),
      "'" WEFT_BIN_DIR "/weft-sweep' submit s.toml --cluster=slurm --sbatch=--partition=none");
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.output.find("weft sweep: sbatch refuses the job: "), std::string::npos);
  EXPECT_NE(result.output.find("partition"), std::string::npos) << result.output;
  EXPECT_EQ(Counts(), (Json{{"queued", 6}}));
}

}  // namespace
}  // namespace weft
