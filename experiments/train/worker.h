#pragma once
// Many runs in one process: each in a thread of its own, with its own stream, graph and arenas, so
// that it ends with the bits of a process of its own.

#include <functional>
#include <string>
#include <vector>

#include "experiments/train/run_loop.h"

namespace weft {

// Does what a program with these arguments would do; returns its exit code.
using RunProcess = std::function<int(const std::vector<std::string>& arguments, const RunIo& io)>;

// Reads lines from `in`, a file descriptor, until its end:
//   {"arguments": ["CONFIG", "--set", "KEY=VALUE", ...], "output": FILE}
// Each is a run, which gets the next free one of `at_once` threads; both its outputs are appended
// to FILE. When it has ended, a line goes to `out`: its number, from 1, and its exit code.
//
// After SIGINT, SIGTERM, SIGUSR1 or SIGHUP nothing more is read, every run ends with its checkpoint
// and kInterrupted or kRequeue is returned. A run whose kernels have broken the device ends the
// process at once with kFailure, without a line for any that was under way. Error kUsage for a line
// that is something else.
int ServeRuns(int in, int out, int at_once, const RunProcess& run);

}  // namespace weft
