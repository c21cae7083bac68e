#pragma once
// Values of written expressions, for oracles.

#include <cstdint>
#include <string_view>

namespace weft {

// The value of `text` modulo `modulus`, in 0..modulus-1. Operators from the loosest to the tightest
// binding: | and &, of bits; + and -; *; - in front. Anything else is an Error that quotes the
// text.
int64_t EvaluateInfix(std::string_view text, int64_t modulus);

// The same operators but - in front, each before its two operands; operands are digits.
int64_t EvaluatePolish(std::string_view text, int64_t modulus);

}  // namespace weft
