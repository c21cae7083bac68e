#include "experiments/bench/step.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "experiments/run/files.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kWarmUp = 3;
constexpr int64_t kStepsPerRound = 5;

// The dense bf16 rate of the generation's fastest GPU, by compute capability.
double PeakFlops([[maybe_unused]] const Stream& stream) {
#ifdef WEFT_CUDA
  if (const auto* cuda = std::get_if<CudaStream>(&stream)) {
    switch (cuda->capability()) {
      case 80:
        return 312e12;  // A100
      case 90:
        return 989e12;  // H100, H200
      case 100:
        return 2250e12;  // B200
    }
  }
#endif
  return 0;
}

// Seconds since the process began, from the kernel's book-keeping.
double SecondsOfProcess() {
  const std::string stat = ReadFile("/proc/self/stat");
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;  // starttime, in clock ticks since boot
  double uptime = 0;
  std::istringstream(ReadFile("/proc/uptime")) >> uptime;
  return uptime - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Times every op between two marks on its stream.
class OpClock : public OpObserver {
 public:
  explicit OpClock(Stream& stream) : stream_(stream) {}
  void Begin(const char* op) override { marks_.push_back({op, Now()}); }
  void End() override { marks_.back().end = Now(); }

  std::vector<StepTimes::Op> Sum() {
    Synchronize(stream_);
    std::map<std::string, StepTimes::Op> sums;
    for (const Mark& mark : marks_) {
      StepTimes::Op& op = sums[mark.op];
      op.name = mark.op;
      ++op.calls;
      op.ms += Between(mark.begin, mark.end);
    }
    std::vector<StepTimes::Op> ops;
    for (auto& [name, op] : sums) ops.push_back(op);
    std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) { return a.ms > b.ms; });
    return ops;
  }

 private:
  struct Time {
    Clock::time_point host;
#ifdef WEFT_CUDA
    std::shared_ptr<CudaEvent> event;
#endif
  };
  struct Mark {
    const char* op;
    Time begin, end = {};
  };
  Time Now() {
    Time now{Clock::now()};
#ifdef WEFT_CUDA
    if (auto* cuda = std::get_if<CudaStream>(&stream_)) {
      now.event = std::make_shared<CudaEvent>();
      now.event->Record(*cuda);
    }
#endif
    return now;
  }
  static double Between(const Time& begin, const Time& end) {
#ifdef WEFT_CUDA
    if (begin.event) return end.event->MillisecondsSince(*begin.event);
#endif
    return std::chrono::duration<double, std::milli>(end.host - begin.host).count();
  }
  Stream& stream_;
  std::vector<Mark> marks_;
};

// Starts steps as a run does; returns when the last is done.
void RunSteps(Trainer& trainer, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    trainer.Start();
    while (trainer.Finish(/*wait=*/trainer.Full())) {
    }
  }
  while (trainer.Finish(/*wait=*/true)) {
  }
}

}  // namespace

StepTimes MeasureStep(const Experiment& e, const Device& device, Stream& stream, int64_t steps) {
  StepTimes times;
  times.device_seconds = SecondsOfProcess();
  Trainer trainer(e, device, stream);
  Synchronize(stream);
  times.trainer_seconds = SecondsOfProcess();
  trainer.Step();
  times.first_step_seconds = SecondsOfProcess();
  RunSteps(trainer, kWarmUp);
  std::vector<double> seconds;
  for (int64_t done = 0; done < steps; done += kStepsPerRound) {
    const int64_t n = std::min(kStepsPerRound, steps - done);
    const auto start = Clock::now();
    RunSteps(trainer, n);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() /
                      static_cast<double>(n));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const RunPlan plan = PlanRun(e, device);
  times.ms = median * 1e3;
  times.tokens_per_second = static_cast<double>(e.train.batch * e.train.length) / median;
  times.flops_per_token = plan.training_flops_per_token;
  times.peak_flops = PeakFlops(stream);
  if (times.peak_flops > 0)
    times.mfu = times.flops_per_token * times.tokens_per_second / times.peak_flops;
  times.allocated_bytes = trainer.allocated_bytes();
  times.planned_bytes = plan.memory_bytes;
#ifdef WEFT_CUDA
  if (device.cuda) times.device_bytes = CudaMemory().total - CudaMemory().free;
#endif
  OpClock clock(stream);
  trainer.StepOpByOp(clock);
  times.ops = clock.Sum();
  return times;
}

AtOnceTimes MeasureAtOnce(const Experiment& e, const Device& device, int trainers, int rounds,
                          double seconds) {
  struct Running {
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Trainer> trainer = nullptr;
    std::thread thread = {};
    std::exception_ptr error = nullptr;
  };
  std::vector<Running> all(static_cast<size_t>(trainers));
  for (Running& one : all) {
    one.stream = OpenStream(device, e.threads);
    one.trainer = std::make_unique<Trainer>(e, device, *one.stream);
    RunSteps(*one.trainer, kWarmUp);
  }
  std::atomic<int64_t> steps = 0;
  std::atomic<bool> stop = false;
  for (Running& one : all) {
    one.thread = std::thread([&, trainer = one.trainer.get()] {
      try {
        while (!stop) {
          trainer->Start();
          while (trainer->Finish(/*wait=*/trainer->Full())) ++steps;
        }
        while (trainer->Finish(/*wait=*/true)) {
        }
      } catch (...) {
        one.error = std::current_exception();
      }
    });
  }
  std::vector<double> rates;
  const auto pause = std::chrono::duration<double>(seconds);
  std::this_thread::sleep_for(pause / 4);
  for (int round = 0; round < rounds; ++round) {
    const int64_t before = steps;
    const auto start = Clock::now();
    std::this_thread::sleep_for(pause);
    const int64_t done = steps - before;
    rates.push_back(static_cast<double>(done) /
                    std::chrono::duration<double>(Clock::now() - start).count());
  }
  stop = true;
  for (Running& one : all) one.thread.join();
  for (const Running& one : all) {
    if (one.error) std::rethrow_exception(one.error);
  }
  std::sort(rates.begin(), rates.end());
  const double rate = rates[rates.size() / 2];
  return {trainers, 1e3 * trainers / rate,
          rate * static_cast<double>(e.train.batch * e.train.length)};
}

}  // namespace weft
