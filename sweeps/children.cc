#include "sweeps/children.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"

namespace weft {

Children::Children() {
  sigemptyset(&held_);
  for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGUSR1}) sigaddset(&held_, signal);
  struct sigaction hangup;
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&held_, SIGHUP);
  sigprocmask(SIG_BLOCK, &held_, &before_);
  pipe_before_ = signal(SIGPIPE, SIG_IGN);
  signals_ = Descriptor(signalfd(-1, &held_, SFD_CLOEXEC | SFD_NONBLOCK));
  Check(signals_.get() >= 0, "signalfd: ", std::strerror(errno));
}

Children::~Children() {
  SignalAll(SIGTERM);
  for (const pid_t pid : pids_) waitpid(pid, nullptr, 0);
  signal(SIGPIPE, pipe_before_);
  sigprocmask(SIG_SETMASK, &before_, nullptr);
}

void Children::SignalAll(int signal) const {
  for (const pid_t pid : pids_) kill(pid, signal);
}

pid_t Children::Start(const std::vector<std::string>& argv, int out, int err, int in,
                      const std::vector<std::string>& environment) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  const Descriptor nothing(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const pid_t parent = getpid();
  const pid_t pid = fork();
  Check(pid >= 0, "cannot start ", argv[0], ": ", std::strerror(errno));
  if (pid == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
      _exit(static_cast<int>(ExitCode::kRequeue));  // it died before the line above
    dup2(in >= 0 ? in : nothing.get(), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    signal(SIGPIPE, pipe_before_);
    sigprocmask(SIG_SETMASK, &before_, nullptr);
    for (const std::string& variable : environment) putenv(const_cast<char*>(variable.c_str()));
    execv(arguments[0], arguments.data());
    const std::string error = Cat("cannot start ", argv[0], ": ", std::strerror(errno), "\n");
    if (write(STDERR_FILENO, error.data(), error.size()) < 0) _exit(126);
    _exit(127);
  }
  pids_.push_back(pid);
  return pid;
}

std::vector<Children::Ended> Children::Wait(double seconds, const std::vector<int>& files) {
  std::vector<pollfd> wanted = {{signals_.get(), POLLIN, 0}};
  for (const int file : files) wanted.push_back({file, POLLIN, 0});
  poll(wanted.data(), wanted.size(), static_cast<int>(std::ceil(seconds * 1e3)));
  signalfd_siginfo info;
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    const auto signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGCHLD) continue;
    stop_signal_ = signal;
    SignalAll(signal == SIGINT ? SIGINT : SIGTERM);
  }
  std::vector<Ended> ended;
  std::erase_if(pids_, [&](pid_t pid) {
    int status = 0;
    if (waitpid(pid, &status, WNOHANG) != pid) return false;
    ended.push_back({pid, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status)});
    return true;
  });
  return ended;
}

Descriptor MakeCapture(const std::string& text) {
  Descriptor file(memfd_create("output", MFD_CLOEXEC));
  Check(file.get() >= 0, "cannot create a file in memory: ", std::strerror(errno));
  for (size_t begin = 0; begin < text.size();) {
    const ssize_t n =
        pwrite(file.get(), text.data() + begin, text.size() - begin, static_cast<off_t>(begin));
    Check(n > 0, "cannot write a file in memory: ", std::strerror(errno));
    begin += static_cast<size_t>(n);
  }
  return file;
}

std::string ReadCapture(const Descriptor& capture) {
  return ReadFile(Cat("/proc/self/fd/", capture.get()));
}

std::string LastLine(const std::string& text) {
  const size_t end = text.find_last_not_of(" \r\n");
  if (end == std::string::npos) return "";
  const size_t begin = text.find_last_of("\r\n", end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1,
                     end - (begin == std::string::npos ? 0 : begin + 1) + 1);
}

int CoresOfProcess() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

}  // namespace weft
