#pragma once
// Errors: one exception type that carries the process exit code, and checks that print names and
// values.

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace weft {

// What the process exits with. Documented in README.md and tested in tests/cli.
enum class ExitCode : int {
  kOk = 0,
  kFailure = 1,   // run-time failure
  kUsage = 2,     // command line or configuration
  kData = 3,      // missing, empty or broken data
  kDiverged = 4,  // loss is not finite
  kOutOfMemory = 5,
  kRequeue = 75,      // checkpointed after SIGTERM, SIGUSR1 or SIGHUP: run me again
  kInterrupted = 130  // checkpointed after SIGINT
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// Concatenates anything that an ostream prints. Used instead of fmt because nvcc rejects fmt 9.
template <class... Parts>
std::string Cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class... Parts>
[[noreturn]] void Fail(ExitCode code, const Parts&... parts) {
  throw Error(code, Cat(parts...));
}

// Run-time failure unless `ok`; the parts are formatted only when the check fails.
template <class... Parts>
void Check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    Fail(ExitCode::kFailure, parts...);
}

}  // namespace weft
