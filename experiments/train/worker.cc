#include "experiments/train/worker.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <list>
#include <nlohmann/json.hpp>
#include <thread>

#include "experiments/run/files.h"
#include "kernels/base/stream.h"

namespace weft {
namespace {

using Json = nlohmann::json;

// After an illegal access every call fails, of this run and of all others in the process.
bool DeviceIsBroken() {
#ifdef WEFT_CUDA
  try {
    if (CudaDevices() > 0) CudaMemory();
  } catch (const Error&) {
    return true;
  }
#endif
  return false;
}

class Server {
 public:
  Server(int in, int out, int at_once, const RunProcess& run)
      : in_(in), out_(out), at_once_(static_cast<size_t>(at_once)), run_(run) {
    Check(ended_.get() >= 0, "cannot create an eventfd: ", std::strerror(errno));
    // Signals wake the loop below and nothing else; threads inherit that they are blocked.
    sigset_t blocked;
    sigemptyset(&blocked);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGHUP}) sigaddset(&blocked, signal);
    pthread_sigmask(SIG_BLOCK, &blocked, &unblocked_);
  }
  ~Server() {
    for (Running& one : running_) one.thread.join();
    pthread_sigmask(SIG_SETMASK, &unblocked_, nullptr);
  }

  int Serve() {
    bool more = true;
    while (more || !running_.empty()) {
      pollfd wanted[2] = {{ended_.get(), POLLIN, 0}, {in_, POLLIN, 0}};
      const bool reads = more && running_.size() < at_once_;
      if (reads && StartNext()) continue;
      if (ppoll(wanted, reads ? 2 : 1, nullptr, &unblocked_) < 0 && errno != EINTR)
        Fail(ExitCode::kFailure, "poll: ", std::strerror(errno));
      Join();
      if (StopSignal() != 0) more = false;
      if (more && wanted[1].revents != 0 && reads) more = Read();
    }
    return static_cast<int>(StopSignal() == 0 ? ExitCode::kOk : CodeOf(StopSignal()));
  }

 private:
  struct Running {
    std::atomic<bool> ended = false;
    std::thread thread;
  };

  // False at the end of the input.
  bool Read() {
    char bytes[1 << 16];
    const ssize_t n = read(in_, bytes, sizeof bytes);
    if (n < 0 && errno != EINTR) FailRead("standard input", errno);
    if (n > 0) unread_.append(bytes, static_cast<size_t>(n));
    return n != 0;
  }

  // Starts the run of the next whole line; false when there is none.
  bool StartNext() {
    const size_t end = unread_.find('\n');
    if (end == std::string::npos) return false;
    const std::string line = unread_.substr(0, end);
    unread_.erase(0, end + 1);
    const int64_t number = ++lines_;
    std::vector<std::string> arguments;
    std::string output;
    try {
      const Json json = Json::parse(line);
      arguments = json.at("arguments").get<std::vector<std::string>>();
      output = json.at("output").get<std::string>();
    } catch (const Json::exception& error) {
      Fail(ExitCode::kUsage, "--worker: line ", number, ": ", error.what());
    }
    Running& one = running_.emplace_back();
    one.thread = std::thread([this, &one, number, arguments, output] {
      const int code = RunOne(arguments, output);
      if (code == static_cast<int>(ExitCode::kFailure) && DeviceIsBroken()) {
        std::fprintf(stderr, "weft train: line %lld has broken the device\n",
                     static_cast<long long>(number));
        _exit(code);
      }
      const std::string answer = Cat(number, " ", code, "\n");
      if (write(out_, answer.data(), answer.size()) < 0)
        std::fprintf(stderr, "weft train: nobody hears that line %s", answer.c_str());
      one.ended = true;
      eventfd_write(ended_.get(), 1);
    });
    return true;
  }

  int RunOne(const std::vector<std::string>& arguments, const std::string& output) const {
    std::FILE* const file = std::fopen(output.c_str(), "ae");
    if (!file) {
      std::fprintf(stderr, "weft train: %s: cannot open: %s\n", output.c_str(),
                   std::strerror(errno));
      return static_cast<int>(ExitCode::kFailure);
    }
    const int code = run_(arguments, {file, file});
    std::fclose(file);
    return code;
  }

  void Join() {
    eventfd_t count;
    eventfd_read(ended_.get(), &count);
    running_.remove_if([](Running& one) {
      if (!one.ended) return false;
      one.thread.join();
      return true;
    });
  }

  const int in_, out_;
  const size_t at_once_;
  const RunProcess& run_;
  const StopSignals signals_;
  sigset_t unblocked_;
  const Descriptor ended_{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::string unread_;
  int64_t lines_ = 0;
  std::list<Running> running_;
};

}  // namespace

int ServeRuns(int in, int out, int at_once, const RunProcess& run) {
  return Server(in, out, at_once, run).Serve();
}

}  // namespace weft
