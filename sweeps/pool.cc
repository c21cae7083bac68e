#include "sweeps/pool.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <deque>
#include <filesystem>
#include <functional>
#include <queue>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "kernels/base/check.h"
#include "sweeps/children.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kMostRequeues = 3;
constexpr double kRefreshSeconds =
    0.5;  // of the progress line, and of looking for cells that others write
constexpr double kIdleSeconds = 60;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Attempt {
  size_t cell;
  pid_t pid;
  Clock::time_point start;
  int64_t first_step;
};

class Pool {
 public:
  Pool(const Study& study, const std::vector<size_t>& cells, const PoolOptions& options)
      : study_(study),
        options_(options),
        total_(cells.size()),
        requeues_(study.cells.size(), 0),
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
      while (children_.stop_signal() == 0 && running_.size() < static_cast<size_t>(options_.jobs) &&
             StartNext()) {
      }
      const bool waits = !queue_.empty() && children_.stop_signal() == 0;
      if (running_.empty() && !waits) break;
      Draw();
      const bool adopted = waits && running_.size() < static_cast<size_t>(options_.jobs);
      const bool was_stopping = children_.stop_signal() != 0;
      for (const Children::Ended& ended :
           children_.Wait(terminal_ || adopted ? kRefreshSeconds : kIdleSeconds))
        End(ended);
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

  // Starts the first cell of the queue that no other process writes. False when there is none.
  bool StartNext() {
    const auto free = std::find_if(queue_.begin(), queue_.end(), [&](size_t i) {
      return !IsBeingWritten(study_.RunDirectoryOf(study_.cells[i]));
    });
    if (free == queue_.end()) return false;
    const size_t i = *free;
    queue_.erase(free);
    const PlannedCell& cell = study_.cells[i];
    const CellState state = StateOf(study_, cell);
    if (state.state == "done") {  // by the process that held it
      ++done_;
      Report(i, "done");
      return true;
    }
    const std::string run = study_.RunDirectoryOf(cell), error_file = study_.ErrorFileOf(cell);
    std::vector<std::string> argv = {options_.trainer};
    if (fs::exists(run + "/resolved.toml")) {
      argv.insert(argv.end(), {"--resume", run, "--set", Cat("threads=", options_.threads)});
    } else {
      const auto arguments = ArgumentsOf(study_, cell, options_.threads);
      argv.insert(argv.end(), arguments.begin(), arguments.end());
      argv.insert(argv.end(), {"--out", fs::path(study_.directory).parent_path().string()});
    }
    // A file, not a pipe: the cell outlives this process by a checkpoint, and must be able to speak
    // until then.
    const Descriptor output(
        open(error_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644));
    if (output.get() < 0) FailWrite(error_file, "write", errno);
    ClearFailure(study_, cell);
    running_.push_back(
        {i, children_.Start(argv, output.get(), output.get()), Clock::now(), state.step});
    return true;
  }

  void End(const Children::Ended& ended) {
    const auto attempt = std::find_if(running_.begin(), running_.end(),
                                      [&](const Attempt& a) { return a.pid == ended.pid; });
    const size_t i = attempt->cell;
    const double seconds = SecondsSince(attempt->start);
    busy_seconds_ += seconds;
    const int64_t first_step = attempt->first_step;
    running_.erase(attempt);
    const PlannedCell& cell = study_.cells[i];
    const CellState state = StateOf(study_, cell);
    worked_ += Worked(i, first_step, state.step);

    const bool stopped =
        children_.stop_signal() != 0 && ended.exit_code >= static_cast<int>(ExitCode::kRequeue);
    if (ended.exit_code == 0 && state.state == "done") {
      ++done_;
      unlink(study_.ErrorFileOf(cell).c_str());
      Report(i, "done in " + DurationText(seconds));
    } else if (stopped) {
      unlink(study_.ErrorFileOf(cell).c_str());
      Report(i, fmt::format("stopped at step {} of {}", state.step, state.steps));
    } else if (ended.exit_code == static_cast<int>(ExitCode::kRequeue) &&
               ++requeues_[i] <= kMostRequeues) {
      left_[i] = Left(i, state.step);
      queue_.push_front(i);
      Report(i, fmt::format("asked to be run again at step {} of {}", state.step, state.steps));
    } else {
      ++failed_;
      std::string error = LastLine(ReadFile(study_.ErrorFileOf(cell)));
      if (ended.exit_code == 0) error = "the trainer exited with 0, but the run is not done";
      if (ended.exit_code > 128 && ended.exit_code != static_cast<int>(ExitCode::kInterrupted)) {
        error = fmt::format("killed by signal {}{}{}", ended.exit_code - 128,
                            error.empty() ? "" : "; it last said: ", error);
      }
      const int code =
          ended.exit_code == 0 ? static_cast<int>(ExitCode::kFailure) : ended.exit_code;
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
  void Say(const std::string& line) const {
    if (terminal_) fmt::print(stderr, "\r\033[K");
    if (!line.empty()) fmt::print(stderr, "{}\n", line);
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
        DurationText(slowness * Makespan(running, queued, options_.jobs)), cells);
    winsize window = {};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1)
      line.resize(std::min<size_t>(line.size(), window.ws_col - 1u));
    fmt::print(stderr, "\r\033[K{}", line);
    std::fflush(stderr);
  }

  const Study& study_;
  const PoolOptions& options_;
  const size_t total_;
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  Children children_;
  std::deque<size_t> queue_;  // of cells, the most urgent first
  std::vector<Attempt> running_;
  std::vector<int> requeues_;
  std::vector<double> left_;  // estimated seconds, of each cell in the queue
  int done_ = 0, failed_ = 0;
  double worked_ = 0;        // estimated seconds of the work that ended cells did
  double busy_seconds_ = 0;  // real seconds that they took for it
};

}  // namespace

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
