#pragma once
// toml++, which in a debug build asserts what its parser then reports as an error: "[\n"
// (github.com/marzer/tomlplusplus/pull/301).

#define TOML_ASSERT(expr) static_assert(true)
#include <toml++/toml.h>
