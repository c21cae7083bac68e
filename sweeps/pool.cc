#include "sweeps/pool.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <queue>
#include <sstream>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "kernels/base/check.h"
#include "sweeps/children.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr int kMostRequeues = 3;
constexpr double kRefreshSeconds =
    0.5;  // of the progress line, and of looking for cells that others write
constexpr double kIdleSeconds = 60;
constexpr double kUsableMemory = 0.95;  // of what is free on a GPU

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Attempt {
  size_t cell, place;
  pid_t pid;
  int64_t line;  // of a worker's input; 0 = the process is the cell's own
  Clock::time_point start;
  int64_t first_step;
};

// The process that the cells of a shared place have in common; started for the first of them.
struct Worker {
  pid_t pid = 0;
  Descriptor socket, err;
  int64_t lines = 0;   // that it was given
  std::string unread;  // of its answers
  bool stops = false;  // takes no more lines
};

class Pool {
 public:
  Pool(const Study& study, const std::vector<size_t>& cells, const PoolOptions& options)
      : study_(study),
        options_(options),
        total_(cells.size()),
        workers_(options.places.size()),
        requeues_(study.cells.size(), 0),
        alone_(study.cells.size(), false),
        left_(study.cells.size(), 0) {
    for (const size_t i : cells) {
      const CellState state = StateOf(study, study.cells[i]);
      if (state.state == "done") {
        ++done_;
      } else if (state.state == "diverged") {
        Report(i, "diverged before and is left as it is; to run it again, remove " +
                      study.RunDirectoryOf(study.cells[i]));
        ++failed_;
      } else {
        queue_.push_back(i);
        left_[i] = Left(i, state.step);
      }
    }
    std::stable_sort(queue_.begin(), queue_.end(),
                     [&](size_t a, size_t b) { return Urgency(a) < Urgency(b); });
  }

  int Run() {
    if (done_ + failed_ > 0)
      Say(fmt::format("{} of {} cells have ended before", done_ + failed_, total_));
    for (;;) {
      while (children_.stop_signal() == 0 && StartNext()) {
      }
      const bool waits = !queue_.empty() && children_.stop_signal() == 0;
      if (running_.empty() && !waits) break;
      Draw();
      const bool adopted = waits && running_.size() < static_cast<size_t>(options_.slots());
      const bool was_stopping = children_.stop_signal() != 0;
      std::vector<int> answers;
      for (const Worker& worker : workers_) {
        if (worker.pid != 0) answers.push_back(worker.socket.get());
      }
      const auto ended =
          children_.Wait(terminal_ || adopted ? kRefreshSeconds : kIdleSeconds, answers);
      for (Worker& worker : workers_) HearAnswers(worker);
      for (const Children::Ended& one : ended) EndProcess(one);
      if (!was_stopping && children_.stop_signal() != 0 && !running_.empty()) {
        Say(fmt::format("stopping: waiting for the checkpoints of {} cells", running_.size()));
      }
    }
    Say("");
    return children_.stop_signal();
  }

 private:
  // Estimated seconds that the cell has left at that step.
  double Left(size_t i, int64_t step) const {
    const Plan& plan = study_.cells[i].plan;
    return Worked(i, step, std::max<int64_t>(1, plan.steps));
  }

  // Lower comes first: the sweep's order, then what takes longest.
  std::pair<int64_t, double> Urgency(size_t i) const {
    return {study_.cells[i].cell.round, -left_[i]};
  }

  // The place with the fewest cells that has room for this one; null when there is none.
  const Place* FindPlace(size_t i) const {
    const Place* best = nullptr;
    int fewest = 0;
    for (size_t p = 0; p < options_.places.size(); ++p) {
      const Place& place = options_.places[p];
      int cells = 0;
      int64_t bytes = study_.cells[i].plan.memory_bytes;
      double shares = study_.cells[i].plan.gpu_share;
      for (const Attempt& attempt : running_) {
        if (attempt.place != p) continue;
        ++cells;
        bytes += study_.cells[attempt.cell].plan.memory_bytes;
        shares += study_.cells[attempt.cell].plan.gpu_share;
      }
      const bool fits = cells == 0 || ((place.bytes == 0 || bytes <= place.bytes) &&
                                       (place.shares == 0 || shares <= place.shares));
      if (cells == place.slots || !fits || workers_[p].stops || (best && cells >= fewest)) continue;
      best = &place;
      fewest = cells;
    }
    return best;
  }

  // Starts the first cell of the queue that no other process writes. False when there is none or no
  // room for it.
  bool StartNext() {
    const auto free = std::find_if(queue_.begin(), queue_.end(), [&](size_t i) {
      return !IsBeingWritten(study_.RunDirectoryOf(study_.cells[i]));
    });
    if (free == queue_.end()) return false;
    const size_t i = *free;
    const Place* const place = FindPlace(i);
    if (!place) return false;
    queue_.erase(free);
    const PlannedCell& cell = study_.cells[i];
    const CellState state = StateOf(study_, cell);
    if (state.state == "done") {  // by the process that held it
      ++done_;
      Report(i, "done");
      return true;
    }
    const std::string run = study_.RunDirectoryOf(cell), error_file = study_.ErrorFileOf(cell);
    std::vector<std::string> arguments;
    if (fs::exists(run + "/resolved.toml")) {
      arguments = {"--resume", run, "--set", Cat("threads=", options_.threads)};
    } else {
      arguments = ArgumentsOf(study_, cell, options_.threads);
      arguments.insert(arguments.end(),
                       {"--out", fs::path(study_.directory).parent_path().string()});
    }
    // A file, not a pipe: the cell outlives this process by a checkpoint, and must be able to speak
    // until then.
    const Descriptor output(
        open(error_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644));
    if (output.get() < 0) FailWrite(error_file, "write", errno);
    ClearFailure(study_, cell);
    Attempt attempt{
        i, static_cast<size_t>(place - options_.places.data()), 0, 0, Clock::now(), state.step};
    if (place->shared && !alone_[i]) {
      Worker& worker = workers_[attempt.place];
      if (worker.pid == 0) worker = StartWorker(*place);
      const std::string line = Json{{"arguments", arguments}, {"output", error_file}}.dump() + "\n";
      // When it does not take the line, it has died, and that is heard of where processes end.
      static_cast<void>(send(worker.socket.get(), line.data(), line.size(), MSG_NOSIGNAL));
      attempt.pid = worker.pid, attempt.line = ++worker.lines;
    } else {
      arguments.insert(arguments.begin(), options_.trainer);
      attempt.pid =
          children_.Start(arguments, output.get(), output.get(), -1, EnvironmentOf(*place));
    }
    running_.push_back(attempt);
    return true;
  }

  Worker StartWorker(const Place& place) {
    int ends[2];
    Check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0,
          "cannot create a pair of sockets: ", std::strerror(errno));
    Worker worker;
    worker.socket = Descriptor(ends[0]);
    const Descriptor its(ends[1]);
    worker.err = MakeCapture();
    worker.pid = children_.Start({options_.trainer, Cat("--worker=", place.slots)}, its.get(),
                                 worker.err.get(), its.get(), EnvironmentOf(place));
    return worker;
  }

  static std::vector<std::string> EnvironmentOf(const Place& place) {
    if (place.gpu.empty()) return {};
    return {Cat("CUDA_VISIBLE_DEVICES=", place.gpu)};
  }

  // "LINE EXIT_CODE" for every cell of the worker that has ended.
  void HearAnswers(Worker& worker) {
    if (worker.pid == 0) return;
    char bytes[4096];
    for (ssize_t n; (n = recv(worker.socket.get(), bytes, sizeof bytes, MSG_DONTWAIT)) > 0;)
      worker.unread.append(bytes, static_cast<size_t>(n));
    for (size_t end; (end = worker.unread.find('\n')) != std::string::npos;) {
      std::istringstream answer(worker.unread.substr(0, end));
      worker.unread.erase(0, end + 1);
      int64_t line = 0;
      int exit_code = 0;
      answer >> line >> exit_code;
      const auto attempt = std::find_if(running_.begin(), running_.end(), [&](const Attempt& a) {
        return a.pid == worker.pid && a.line == line;
      });
      Check(answer && attempt != running_.end(), options_.trainer, " --worker answers \"",
            answer.str(), "\", expected the number of a line and an exit code");
      // It has had a signal, and would lose what it is still given.
      worker.stops = worker.stops || exit_code >= static_cast<int>(ExitCode::kRequeue);
      End(Take(attempt), exit_code);
    }
    if (worker.stops) shutdown(worker.socket.get(), SHUT_WR);
  }

  // Of a cell, or of a worker with all cells that it has not answered for.
  void EndProcess(const Children::Ended& ended) {
    std::string last_words;
    for (Worker& worker : workers_) {
      if (worker.pid != ended.pid) continue;
      HearAnswers(worker);
      last_words = LastLine(ReadCapture(worker.err));
      worker = Worker();
    }
    for (;;) {
      const auto found = std::find_if(running_.begin(), running_.end(),
                                      [&](const Attempt& a) { return a.pid == ended.pid; });
      if (found == running_.end()) return;
      const Attempt attempt = Take(found);
      if (attempt.line == 0 || children_.stop_signal() != 0 ||
          ended.exit_code == static_cast<int>(ExitCode::kRequeue)) {
        End(attempt, ended.exit_code);
        continue;
      }
      const size_t i = attempt.cell;
      alone_[i] = true;
      left_[i] = Left(i, StateOf(study_, study_.cells[i]).step);
      queue_.push_front(i);
      Report(i,
             fmt::format("the process that it shared {}{}{}; it is run again in its own",
                         DeathText(ended.exit_code), last_words.empty() ? "" : ": ", last_words));
    }
  }

  static std::string DeathText(int exit_code) {
    return exit_code > 128 ? fmt::format("was killed by signal {}", exit_code - 128)
                           : fmt::format("ended with exit code {}", exit_code);
  }

  Attempt Take(std::vector<Attempt>::const_iterator attempt) {
    const Attempt taken = *attempt;
    running_.erase(attempt);
    return taken;
  }

  void End(const Attempt& attempt, int exit_code) {
    const size_t i = attempt.cell;
    const double seconds = SecondsSince(attempt.start);
    busy_seconds_ += seconds;
    const PlannedCell& cell = study_.cells[i];
    const CellState state = StateOf(study_, cell);
    worked_ += Worked(i, attempt.first_step, state.step);

    const bool stopped =
        children_.stop_signal() != 0 && exit_code >= static_cast<int>(ExitCode::kRequeue);
    if (exit_code == 0 && state.state == "done") {
      ++done_;
      unlink(study_.ErrorFileOf(cell).c_str());
      Report(i, "done in " + DurationText(seconds));
    } else if (stopped) {
      unlink(study_.ErrorFileOf(cell).c_str());
      Report(i, fmt::format("stopped at step {} of {}", state.step, state.steps));
    } else if (exit_code == static_cast<int>(ExitCode::kRequeue) &&
               ++requeues_[i] <= kMostRequeues) {
      left_[i] = Left(i, state.step);
      queue_.push_front(i);
      Report(i, fmt::format("asked to be run again at step {} of {}", state.step, state.steps));
    } else {
      ++failed_;
      std::string error = LastLine(ReadFile(study_.ErrorFileOf(cell)));
      if (exit_code == 0) error = "the trainer exited with 0, but the run is not done";
      if (exit_code > 128 && exit_code != static_cast<int>(ExitCode::kInterrupted)) {
        error = fmt::format("killed by signal {}{}{}", exit_code - 128,
                            error.empty() ? "" : "; it last said: ", error);
      }
      const int code = exit_code == 0 ? static_cast<int>(ExitCode::kFailure) : exit_code;
      WriteFailure(study_, cell, code, error);
      Report(i, fmt::format("failed with exit code {}: {}", code, error));
    }
  }

  double Worked(size_t i, int64_t from, int64_t to) const {
    const Plan& plan = study_.cells[i].plan;
    return plan.seconds * static_cast<double>(std::max<int64_t>(0, to - from)) /
           static_cast<double>(std::max<int64_t>(1, plan.steps));
  }

  // One line per cell that ended.
  void Report(size_t i, const std::string& what) const {
    Say(fmt::format("[{}/{}] {}: {}", done_ + failed_, total_, study_.cells[i].cell.name, what));
  }
  // Not fmt: it throws when stderr is gone, and a sweep outlives its terminal.
  void Say(const std::string& line) const {
    std::fprintf(stderr, "%s%s%s", terminal_ ? "\r\033[K" : "", line.c_str(),
                 line.empty() ? "" : "\n");
    std::fflush(stderr);
  }

  // On a terminal: done, running, failed, time left, and where each running cell is.
  void Draw() const {
    if (!terminal_) return;
    double worked = worked_, busy = busy_seconds_;
    std::vector<double> running, queued;
    std::string cells;
    for (const Attempt& attempt : running_) {
      const CellState state = StateOf(study_, study_.cells[attempt.cell]);
      worked += Worked(attempt.cell, attempt.first_step, state.step);
      busy += SecondsSince(attempt.start);
      running.push_back(Left(attempt.cell, state.step));
      cells +=
          fmt::format("  {} {}/{}", study_.cells[attempt.cell].cell.name, state.step, state.steps);
    }
    for (const size_t i : queue_) queued.push_back(left_[i]);
    // Until a cell has made a step, the trainer's estimates are all there is to go by.
    const double slowness = worked > 0 ? busy / worked : 1;
    std::string line = fmt::format(
        "{}/{} done, {} running, {} failed, {} left{}", done_, total_, running_.size(), failed_,
        DurationText(slowness * Makespan(running, queued, options_.slots())), cells);
    winsize window = {};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1)
      line.resize(std::min<size_t>(line.size(), window.ws_col - 1u));
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
  }

  const Study& study_;
  const PoolOptions& options_;
  const size_t total_;
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  Children children_;
  std::deque<size_t> queue_;  // of cells, the most urgent first
  std::vector<Attempt> running_;
  std::vector<Worker> workers_;  // of the places
  std::vector<int> requeues_;
  std::vector<bool> alone_;   // cells that get a process of their own
  std::vector<double> left_;  // estimated seconds, of each cell in the queue
  int done_ = 0, failed_ = 0;
  double worked_ = 0;        // estimated seconds of the work that ended cells did
  double busy_seconds_ = 0;  // real seconds that they took for it
};

// The names of the GPUs that are visible here, as CUDA_VISIBLE_DEVICES has them.
std::string VisibleName(size_t device) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) return Cat(device);
  std::istringstream names(visible);
  std::string name;
  for (size_t i = 0; i <= device; ++i) std::getline(names, name, ',');
  return name;
}

}  // namespace

int PoolOptions::slots() const {
  return std::accumulate(places.begin(), places.end(), 0,
                         [](int sum, const Place& place) { return sum + place.slots; });
}

std::vector<Place> PlacesOnGpus(const std::string& trainer, int slots,
                                const std::vector<int>& devices) {
  Children children;
  const Descriptor out = MakeCapture(), err = MakeCapture();
  children.Start({trainer, "--devices"}, out.get(), err.get());
  std::vector<Children::Ended> ended;
  while (ended.empty() && children.stop_signal() == 0) ended = children.Wait(kIdleSeconds);
  if (children.stop_signal() != 0) {
    Fail(children.stop_signal() == SIGINT ? ExitCode::kInterrupted : ExitCode::kRequeue,
         "stopped before any cell was started");
  }
  if (ended.front().exit_code != 0)
    Fail(ExitCode::kFailure, trainer, " --devices: ", LastLine(ReadCapture(err)));
  std::vector<Place> all;
  std::istringstream lines(ReadCapture(out));
  for (std::string line; std::getline(lines, line);) {
    const Json json = Json::parse(line, nullptr, false);
    const auto bytes = static_cast<int64_t>(kUsableMemory * json.value("free_bytes", 0.0));
    all.push_back({slots > 0 ? slots : kCellsPerGpu, /*shared=*/true, VisibleName(all.size()),
                   bytes, slots > 0 ? 0.0 : 1.0});
  }
  std::vector<int> chosen = devices;
  if (chosen.empty()) {
    chosen.resize(all.size());
    std::iota(chosen.begin(), chosen.end(), 0);
  }
  std::vector<Place> places;
  for (const int device : chosen) {
    if (device < 0 || static_cast<size_t>(device) >= all.size()) {
      Fail(ExitCode::kUsage, "--devices: GPU ", device, " is not there, found ", all.size(),
           "; choose others or --jobs");
    }
    places.push_back(all[static_cast<size_t>(device)]);
  }
  if (places.empty())
    Fail(ExitCode::kUsage, "the cells ask for a GPU and none is there; set device = \"cpu\"");
  return places;
}

double Makespan(const std::vector<double>& running, const std::vector<double>& queued, int jobs) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free_at(running.begin(),
                                                                           running.end());
  double last = 0;
  for (const double r : running) last = std::max(last, r);
  while (free_at.size() < static_cast<size_t>(jobs)) free_at.push(0);
  for (const double seconds : queued) {
    const double end = free_at.top() + seconds;
    free_at.pop();
    free_at.push(end);
    last = std::max(last, end);
  }
  return last;
}

int RunPool(const Study& study, const std::vector<size_t>& cells, const PoolOptions& options) {
  Pool pool(study, cells, options);
  return pool.Run();
}

}  // namespace weft
