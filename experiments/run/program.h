#pragma once
// What all programs share: flags that are config keys, --help, error reporting and exit codes.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "kernels/base/check.h"

namespace weft {

// Thrown by ParseCommandLine for --help.
struct HelpWanted {};

// Numbers from `low` to `high`, for options that take fractions: CLI::Range lets nan pass.
inline CLI::Validator Between(double low, double high) {
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const bool fits = CLI::detail::lexical_cast(text, value) && value >= low && value <= high;
        return fits ? "" : Cat("Value ", text, " not in range ", low, " to ", high);
      },
      Cat("FLOAT in [", low, " - ", high, "]"));
}

// Parses argv with `app` and returns what is left as overrides: "--model.d_model=512" and "--set
// model.d_model=512" become "model.d_model=512". Anything else that is left is an Error kUsage.
inline std::vector<std::string> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  std::vector<std::string> overrides;
  app.add_option("--set", overrides, "KEY=VALUE: the same as --KEY=VALUE")->expected(1)->take_all();
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    throw HelpWanted();
  }
  for (const std::string& extra : app.remaining(/*recurse=*/true)) {
    if (!extra.starts_with("--") || extra.find('=') == std::string::npos) {
      Fail(ExitCode::kUsage, "unexpected argument \"", extra,
           "\"; config keys are given as --KEY=VALUE, see --help");
    }
    overrides.push_back(extra.substr(2));
  }
  return overrides;
}

// The exit code of `body`; what it throws becomes one line on `err` that begins with the program's
// name.
inline int ReportErrors(const char* name, std::FILE* err, const std::function<int()>& body) {
  const auto report = [&](std::string what, ExitCode code) {
    std::fflush(stdout);
    std::replace(what.begin(), what.end(), '\n', ' ');
    std::fprintf(err, "weft %s: %s\n", name, what.c_str());
    std::fflush(err);
    return static_cast<int>(code);
  };
  try {
    return body();
  } catch (const CLI::ParseError& e) {
    return report(Cat(e.what(), "; see --help"), ExitCode::kUsage);
  } catch (const Error& e) {
    return report(e.what(), e.code());
  } catch (const std::bad_alloc&) {
    return report("out of memory", ExitCode::kOutOfMemory);
  } catch (const std::exception& e) {
    return report(e.what(), ExitCode::kFailure);
  }
}

// Runs a program's body under ReportErrors. `more_help` follows CLI11's text for --help: the config
// keys. Output that stdout does not take is an error.
inline int RunProgram(const char* name, CLI::App& app, const std::function<int()>& body,
                      const std::function<std::string()>& more_help = {}) {
  app.name(std::string("weft ") + name);
  std::signal(SIGXFSZ,
              SIG_IGN);  // a write beyond the limit on file sizes is an error that names the file
  return ReportErrors(name, stderr, [&] {
    int code = 0;
    try {
      code = body();
    } catch (const HelpWanted&) {
      std::cout << app.help() << (more_help ? more_help() : "");
    }
    std::cout.flush();
    if (code == 0 && (std::fflush(stdout) != 0 || !std::cout || std::ferror(stdout))) {
      Fail(ExitCode::kFailure,
           "standard output cannot be written; free some space or redirect it to another place");
    }
    return code;
  });
}

}  // namespace weft
