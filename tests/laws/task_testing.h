#pragma once
// What the tests of tasks share.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "arch/core/config.h"
#include "kernels/base/check.h"
#include "synth-tasks/core/task.h"
#include "tests/errors.h"
#include "tests/process.h"

namespace weft {

inline std::unique_ptr<Task> MakeTask(const std::string& name,
                                      const std::vector<std::string>& knobs = {}) {
  const auto config = FindTask(name).config();
  ConfigVisitor visitor;
  visitor.Section("task", *config);
  Settings settings;
  for (const std::string& knob : knobs) settings.push_back(ParseOverride("task." + knob, "test"));
  Apply(settings, visitor.fields());
  return config->Make();
}

struct Variant {
  std::string task;
  std::vector<std::string> knobs;
  std::unique_ptr<Task> Make() const { return MakeTask(task, knobs); }
};

inline void PrintTo(const Variant& variant, std::ostream* out) {
  *out << variant.task;
  for (const std::string& knob : variant.knobs) *out << " " << knob;
}

inline std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const TaskSpec& spec : AllTasks()) {
    variants.push_back({spec.name, {}});
    const auto config = spec.config();
    ConfigVisitor visitor;
    config->Visit(visitor);
    for (const ConfigField& field : visitor.fields()) {
      for (const std::string& choice : field.choices) {
        if (choice == *std::get<std::string*>(field.value)) continue;
        variants.push_back({spec.name, {field.path + "=" + choice}});
      }
      if (const auto value = std::get_if<bool*>(&field.value)) {
        variants.push_back({spec.name, {field.path + (**value ? "=false" : "=true")}});
      }
    }
  }
  return variants;
}

inline std::string Text(const Task& task, const Sample& sample) {
  return task.vocabulary().Text(sample.tokens);
}
inline int32_t AnswerToken(const Sample& sample, int32_t position) {
  return sample.labels[static_cast<size_t>(position)];
}
inline std::string Answer(const Task& task, const Sample& sample, int32_t position) {
  const std::string& text = task.vocabulary().text(AnswerToken(sample, position));
  return text.substr(text.find_first_not_of(' '));
}
inline std::string TextBeforeAnswer(const Task& task, const Sample& sample, int32_t position) {
  return task.vocabulary().Text(std::span(sample.tokens).first(static_cast<size_t>(position) + 1));
}
inline int64_t CountOf(const std::string& part, const std::string& text) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// What a Python script prints, a number, when it is given the path of a file that holds `input`.
inline int64_t RunPython(const std::string& script, const std::string& input) {
  const Scratch scratch;
  Spill(scratch / "input", input);
  return std::stoll(Python(scratch, script, {"input"}));
}

// Counts against equal expectations: at most 5 sigma above the mean of chi squared.
inline void ExpectUniform(const std::map<std::string, int64_t>& counts, size_t cells) {
  ASSERT_EQ(counts.size(), cells);
  double total = 0, chi_squared = 0;
  for (const auto& [cell, count] : counts) total += static_cast<double>(count);
  const double expected = total / static_cast<double>(cells);
  for (const auto& [cell, count] : counts) {
    chi_squared += (static_cast<double>(count) - expected) *
                   (static_cast<double>(count) - expected) / expected;
  }
  const double freedom = static_cast<double>(cells) - 1;
  EXPECT_LE(chi_squared, freedom + 5 * std::sqrt(2 * freedom));
}

}  // namespace weft
