#pragma once
// What all programs share: flags that are config keys, --help, error reporting and exit codes.

#include <fcntl.h>

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

// Thrown by ParseArguments for --help.
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

// Parses argv with `app`, where no value is empty and an option takes one word: CLI11 gives
// "--out=" the next argument, and a list all that follow it.
inline void ParseArguments(CLI::App& app, int argc, const char* const* argv) {
  const auto check = [](const std::string& value) {
    return std::string(value.empty() ? "the value is empty" : "");
  };
  std::vector<CLI::App*> apps = app.get_subcommands({});
  apps.push_back(&app);
  for (CLI::App* one : apps) {
    for (CLI::Option* option : one->get_options()) {
      option->check(check);
      if (!option->get_positional()) option->allow_extra_args(false);
      for (const std::string& name : option->get_lnames()) {
        for (int i = 1; i < argc; ++i) {
          if (argv[i] == "--" + name + "=") throw CLI::ValidationError("--" + name, check(""));
        }
      }
    }
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    throw HelpWanted();
  }
}

// Parses argv with `app` and returns what is left as overrides: "--model.d_model=512" and "--set
// model.d_model=512" become "model.d_model=512". Anything else that is left is an Error kUsage.
inline std::vector<std::string> ParseCommandLine(CLI::App& app, int argc, const char* const* argv) {
  std::vector<std::string> overrides;
  app.add_option("--set", overrides, "KEY=VALUE: the same as --KEY=VALUE")->expected(1)->take_all();
  app.allow_extras();
  ParseArguments(app, argc, argv);
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

// Keeps the numbers of closed standard streams from files that are opened later, which would get
// what is written to the stream. Reading and writing fail as before.
inline void HoldStandardStreams() {
  for (const int fd : {0, 1, 2}) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
  }
}

// Runs a program's body under ReportErrors. `more_help` follows CLI11's text for --help: the config
// keys. Output that stdout does not take is an error.
inline int RunProgram(const char* name, CLI::App& app, const std::function<int()>& body,
                      const std::function<std::string()>& more_help = {}) {
  HoldStandardStreams();
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
