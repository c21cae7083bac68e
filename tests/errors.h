#pragma once
// Errors as a test sees them.

#include <gtest/gtest.h>

#include <string>

#include "kernels/base/check.h"

namespace weft {

// The message of the error that `action` throws: one line, with that code.
template <class Action>
std::string ErrorOf(ExitCode code, const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}
template <class Action>
std::string DataError(const Action& action) {
  return ErrorOf(ExitCode::kData, action);
}
template <class Action>
std::string UsageError(const Action& action) {
  return ErrorOf(ExitCode::kUsage, action);
}
template <class Action>
std::string CheckError(const Action& action) {
  return ErrorOf(ExitCode::kFailure, action);
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

}  // namespace weft
