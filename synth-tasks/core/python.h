#pragma once
// An interpreter of the Python that the tasks write; their oracle.

#include <string>

namespace weft {

// The value that completes a program whose last line is an unfinished `assert <sum> ==`, or a
// `print(<sum>)` with or without a comment.
//
//   block   := statements of one indentation
//   simple  := target ("," target)* "=" sum ("," sum)*    all sums are read before a target is set
//            | name ("," name)* "=" "range(" integer ")"
//            | name "=" "[" integer ("," integer)* "]"
//            | "assert" sum "==" sum
//   if      := "if" sum ("<" | "==") sum ":" block        while: likewise
//   def     := "def" name "(" name "):" and one line "return" sum
//   target  := name | name "[" sum "]"
//   sum     := product (("+" | "-") product)*
//   product := factor (("*" | "%") factor)*
//   factor  := integer | "-" factor | "(" sum ")" | name | name "[" sum "]" | name "(" sum ")"
//
// Every other assertion has to hold. Anything else, or a program of more than a million steps or a
// hundred calls in calls, is an Error that quotes the line.
std::string CompletePython(const std::string& program);

}  // namespace weft
