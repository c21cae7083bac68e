// weft-task: lists the synthetic tasks and prints samples of them.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "arch/core/config.h"
#include "experiments/run/program.h"
#include "synth-tasks/core/task.h"

namespace weft {
namespace {

using nlohmann::json;

std::vector<ConfigField> Knobs(TaskConfig& config) {
  ConfigVisitor visitor;
  visitor.Section("task", config);
  return visitor.fields();
}

// "--interval=1" and "--task.interval=1" mean the same.
Settings ParseKnobs(const std::vector<std::string>& arguments) {
  Settings settings;
  for (const std::string& argument : arguments) {
    if (!argument.starts_with("--") || argument.find('=') == argument.npos) {
      Fail(ExitCode::kUsage, "unexpected argument \"", argument,
           "\"; expected a knob of the task as --<knob>=<value>");
    }
    std::string assignment = argument.substr(2);
    if (!assignment.starts_with("task.")) assignment = "task." + assignment;
    settings.push_back(ParseOverride(assignment, argument.substr(0, argument.find('='))));
  }
  return settings;
}

json ToJson(const Setting::Value& value) {
  return std::visit([](const auto& v) { return json(v); }, value);
}

json KnobsToJson(const std::vector<ConfigField>& knobs) {
  json rows = json::array();
  for (const ConfigField& knob : knobs) {
    json row = {{"key", knob.path}, {"default", ToJson(ValueOf(knob))}, {"help", knob.help}};
    if (!knob.choices.empty()) row["choices"] = knob.choices;
    if (std::isfinite(knob.range.low)) row["low"] = knob.range.low;
    if (std::isfinite(knob.range.high)) row["high"] = knob.range.high;
    rows.push_back(row);
  }
  return rows;
}

void ListJson() {
  json rows = json::array();
  for (const TaskSpec& spec : AllTasks()) {
    rows.push_back({{"name", spec.name},
                    {"group", spec.group},
                    {"summary", spec.summary},
                    {"chance", spec.chance},
                    {"difficulty", spec.difficulty},
                    {"knobs", KnobsToJson(Knobs(*spec.config()))}});
  }
  std::cout << rows.dump(2) << "\n";
}

void List(bool with_knobs) {
  size_t width = 0;
  for (const TaskSpec& spec : AllTasks()) width = std::max(width, std::string(spec.name).size());
  const std::string indent(width + 4, ' ');
  for (const auto& [group, title] : {std::pair<std::string, const char*>{"state", "State"},
                                     {"recall", "Recall"},
                                     {"both", "State and recall"}}) {
    std::cout << (group == "state" ? "" : "\n") << title << "\n";
    for (const TaskSpec& spec : AllTasks()) {
      if (spec.group != group) continue;
      std::cout << fmt::format("  {:<{}}  {}\n", spec.name, width, spec.summary) << indent
                << "difficulty: " << spec.difficulty << "\n"
                << indent << "chance: " << spec.chance << "\n";
      if (with_knobs) std::cout << HelpText(Knobs(*spec.config())) << "\n";
    }
  }
}

struct SampleOptions {
  std::string task, split = "eval";
  std::optional<int64_t> difficulty;
  int64_t seed = 0, index = 0, count = 1;
  bool strict = false, as_json = false;
  std::vector<std::string> knobs;
};

// The texts of the answers, without the spaces that may begin them.
std::string Answers(const Task& task, const Sample& sample) {
  std::string answers;
  for (const int32_t position : sample.answers) {
    const std::string& text = task.vocabulary().text(sample.labels[static_cast<size_t>(position)]);
    if (!answers.empty()) answers += ' ';
    answers += text.substr(text.find_first_not_of(' '));
  }
  return answers;
}

void PrintSample(const Task& task, const Sample& sample, const json& row) {
  const auto quoted = [&](int32_t token) {
    return token == kIgnoreLabel ? "" : json(task.vocabulary().text(token)).dump();
  };
  std::cout << "# difficulty " << row["difficulty"] << ", index " << row["index"] << ", "
            << sample.tokens.size() << " tokens, answer " << row["answer"].get<std::string>()
            << "\n"
            << row["text"].get<std::string>()
            << "\n\nposition  token   label  text                  to predict\n";
  for (size_t i = 0; i < sample.tokens.size(); ++i) {
    const bool graded = std::ranges::binary_search(sample.answers, static_cast<int32_t>(i));
    std::string line = fmt::format("{:8}  {:5}  {:6}  {:<20}  {}{}", i, sample.tokens[i],
                                   sample.labels[i], quoted(sample.tokens[i]),
                                   quoted(sample.labels[i]), graded ? "  <- answer" : "");
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << "\n";
  }
}

void PrintSamples(const SampleOptions& options) {
  const auto config = FindTask(options.task).config();
  std::vector<ConfigField> knobs = Knobs(*config);
  Apply(ParseKnobs(options.knobs), knobs);
  const auto task = config->Make();
  const int64_t difficulty = options.difficulty.value_or(task->Curriculum().front().difficulty);
  const Split split = options.split == "train" ? Split::kTrain : Split::kEval;

  json rows = json::array();
  Sample sample;
  for (int64_t i = 0; i < options.count; ++i) {
    const int64_t index = options.index + i;
    task->Generate(static_cast<uint64_t>(options.seed), split, static_cast<uint64_t>(index),
                   difficulty, options.strict, sample);
    const json row = {{"text", task->vocabulary().Text(sample.tokens)},
                      {"tokens", sample.tokens},
                      {"labels", sample.labels},
                      {"answers", sample.answers},
                      {"answer", Answers(*task, sample)},
                      {"difficulty", difficulty},
                      {"index", index}};
    if (options.as_json) {
      rows.push_back(row);
    } else {
      PrintSample(*task, sample, row);
    }
  }
  if (options.as_json) std::cout << rows.dump() << "\n";
}

int Main(CLI::App& app, int argc, char** argv) {
  app.require_subcommand(0, 1);

  bool with_knobs = false, as_json = false;
  CLI::App* list = app.add_subcommand("list", "what there is, by what is probed");
  list->add_flag("--knobs", with_knobs, "also every knob with its default and what it may hold");
  list->add_flag("--json", as_json, "a JSON array, with knobs");

  const CLI::Range count(int64_t{0}, int64_t{1000000000000});
  SampleOptions options;
  CLI::App* sample = app.add_subcommand(
      "sample",
      "text, tokens and labels of samples; a knob of the task is given as --<knob>=<value>");
  sample->add_option("task", options.task, "name of the task, see list")->required();
  sample->add_option("--difficulty", options.difficulty,
                     "default: the first difficulty that the task trains on");
  sample->add_option("--seed", options.seed, "seed of the data")
      ->check(count)
      ->capture_default_str();
  sample->add_option("--index", options.index, "index of the first sample")
      ->check(count)
      ->capture_default_str();
  sample->add_option("--n", options.count, "number of samples")
      ->check(count)
      ->capture_default_str();
  sample->add_option("--split", options.split, "stream of the samples")
      ->check(CLI::IsMember({"train", "eval"}))
      ->capture_default_str();
  sample->add_flag("--strict", options.strict,
                   "without intermediate supervision, as in evaluation; default: as in training");
  sample->add_flag("--json", options.as_json, "a JSON array of rows");
  sample->allow_extras();

  ParseArguments(app, argc, argv);
  if (*list) {
    as_json ? ListJson() : List(with_knobs);
  } else if (!*sample) {
    Fail(ExitCode::kUsage, "no command is given, expected list or sample; see --help");
  } else {
    options.knobs = sample->remaining();
    PrintSamples(options);
  }
  return 0;
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  CLI::App app("Synthetic tasks: what there is, and what a sample looks like.");
  return weft::RunProgram("task", app, [&] { return weft::Main(app, argc, argv); });
}
