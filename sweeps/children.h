#pragma once
// Child processes, and the signals that a process with children has to pass on.

#include <sys/types.h>

#include <string>
#include <vector>

#include "experiments/run/files.h"

namespace weft {

// Holds SIGCHLD, SIGINT, SIGTERM, SIGUSR1 and, unless it is ignored as under nohup, SIGHUP as long
// as it lives. The first is waited for, the others are passed on to the children: SIGINT as it is,
// the rest as SIGTERM. SIGPIPE is ignored. A child gets SIGTERM when this process dies, whatever
// kills it.
class Children {
 public:
  Children();
  ~Children();  // ends the children that are left and waits for them
  Children(const Children&) = delete;

  struct Ended {
    pid_t pid;
    int exit_code;  // 128 + signal when a signal ended it
  };

  // Runs argv[0] in a process group of its own, so that Ctrl-C reaches it only through here. stdin
  // is `in`, or /dev/null. `environment` is added to this process's: "NAME=VALUE".
  pid_t Start(const std::vector<std::string>& argv, int out, int err, int in = -1,
              const std::vector<std::string>& environment = {});
  // Sleeps until a child ends, a signal arrives, there is something to be read from one of `files`
  // or `seconds` have passed.
  std::vector<Ended> Wait(double seconds, const std::vector<int>& files = {});
  // The signal that asked this process to stop; 0 = none.
  int stop_signal() const { return stop_signal_; }

 private:
  void SignalAll(int signal) const;
  sigset_t held_, before_;
  void (*pipe_before_)(int);
  Descriptor signals_;
  std::vector<pid_t> pids_;
  int stop_signal_ = 0;
};

// A file without a name, for what a child prints; with `text`, for what it reads.
Descriptor MakeCapture(const std::string& text = "");
std::string ReadCapture(const Descriptor& capture);
// The last line that is not empty.
std::string LastLine(const std::string& text);

// Cores that this process may use.
int CoresOfProcess();

}  // namespace weft
