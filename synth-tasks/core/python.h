#pragma once
// An interpreter of the Python that the tasks write; their oracle.

#include <string>

namespace weft {

// The value that completes a program whose last line is an unfinished `assert <term> ==`.
//
//   line   := name ("," name)* "=" term ("," term)*     all terms are read before any name is set
//           | name ("," name)* "=" "range(" integer ")"
//           | name "=" "[" integer ("," integer)* "]"
//           | "assert" term "==" integer
//   term   := integer | name | name "[" term "]"
//
// Every other assertion has to hold. Anything else is an Error that quotes the line.
std::string CompletePython(const std::string& program);

}  // namespace weft
