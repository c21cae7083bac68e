#include "sweeps/collect.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "experiments/run/environment.h"
#include "experiments/run/files.h"
#include "experiments/run/journal.h"
#include "kernels/base/check.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;
using Texts = std::vector<std::string>;

constexpr int64_t kSchemaVersion = 2;

// The values of an axis, one per cell: integers or numbers where all are, texts otherwise.
H5Column AxisColumn(const Study& study, size_t axis) {
  const auto value_of = [axis](const PlannedCell& planned) -> const Setting::Value& {
    return planned.cell.axes.at(axis).value;
  };
  const auto all = [&](auto holds) {
    return std::all_of(study.cells.begin(), study.cells.end(),
                       [&](const auto& cell) { return holds(value_of(cell)); });
  };
  const auto is_integer = [](const Setting::Value& v) {
    return std::holds_alternative<int64_t>(v);
  };
  const auto is_number = [&](const Setting::Value& v) {
    return is_integer(v) || std::holds_alternative<double>(v);
  };
  Integers integers;
  Numbers numbers;
  Texts texts;
  for (const PlannedCell& planned : study.cells) {
    const Setting::Value& value = value_of(planned);
    if (const auto* i = std::get_if<int64_t>(&value)) {
      integers.push_back(*i);
      numbers.push_back(static_cast<double>(*i));
    } else if (const auto* x = std::get_if<double>(&value)) {
      numbers.push_back(*x);
    }
    const auto* text = std::get_if<std::string>(&value);
    texts.push_back(text ? *text : ToToml(value));
  }
  if (all(is_integer)) return {study.axes[axis], "1", integers};
  if (all(is_number)) return {study.axes[axis], "1", numbers};
  return {study.axes[axis], "1", texts};
}

template <class T>
H5Column Repeat(std::string name, const T& value, int64_t rows) {
  return {std::move(name), "1", std::vector<T>(static_cast<size_t>(rows), value)};
}

// Appends the rows of `part`, which has the same columns.
void Append(H5Table& table, const H5Table& part) {
  if (table.columns.empty()) table.columns.resize(part.columns.size());
  for (size_t c = 0; c < table.columns.size(); ++c) {
    H5Column& to = table.columns[c];
    const H5Column& from = part.columns[c];
    if (to.name.empty()) {
      to = from;
      continue;
    }
    std::visit(
        [&](auto& values) {
          const auto* more = std::get_if<std::decay_t<decltype(values)>>(&from.values);
          Check(more != nullptr, "column ", from.name, " of ", part.name,
                " differs in type between runs");
          values.insert(values.end(), more->begin(), more->end());
        },
        to.values);
  }
}

// The rows of /eval that `streams`, the tables of the cell's journal, hold; with no streams the
// columns alone.
H5Table EvalOf(const Study& study, size_t i, const std::vector<H5Table>& streams) {
  const Cell& cell = study.cells[i].cell;
  const H5Table none{"/eval/",
                     {{"step", "step", Integers()},
                      {"tokens", "token", Integers()},
                      {"decayed", "1", Integers()},
                      {"difficulty", "1", Integers()},
                      {"accuracy", "1", Numbers()},
                      {"exact_match", "1", Numbers()},
                      {"nll", "nat/label", Numbers()},
                      {"labels", "label", Integers()},
                      {"chance", "1", Numbers()}}};
  H5Table all{"/eval", {}};
  const auto append = [&](const H5Table& stream) {
    const int64_t rows = stream.rows();
    H5Table part{stream.name,
                 {Repeat("cell", static_cast<int64_t>(i), rows),
                  Repeat("variant", cell.variant, rows), Repeat("case", cell.case_name, rows)}};
    for (const Setting& axis : cell.axes) {
      if (axis.path == "seed")
        part.columns.push_back(Repeat("seed", std::get<int64_t>(axis.value), rows));
    }
    part.columns.push_back(stream.Column("step"));
    part.columns.push_back(stream.Column("tokens"));
    part.columns.push_back(stream.Column("decayed"));
    part.columns.push_back(Repeat("name", stream.name.substr(none.name.size()), rows));
    for (const char* name : {"difficulty", "accuracy", "exact_match", "nll", "labels", "chance"})
      part.columns.push_back(stream.Column(name));
    Append(all, part);
  };
  append(none);
  for (const H5Table& stream : streams) {
    if (stream.name.starts_with(none.name)) append(stream);
  }
  return all;
}

// Likewise of /train.
H5Table TrainOf(size_t i, const std::vector<H5Table>& streams) {
  H5Table all{"/train",
              {{"cell", "1", Integers()},
               {"step", "step", Integers()},
               {"tokens", "token", Integers()},
               {"loss", "nat/label", Numbers()}}};
  for (const H5Table& stream : streams) {
    if (stream.name != all.name) continue;
    Append(all, {stream.name,
                 {Repeat("cell", static_cast<int64_t>(i), stream.rows()), stream.Column("step"),
                  stream.Column("tokens"), stream.Column("loss")}});
  }
  return all;
}

// Rows of /train as means over ranges of equal width in log tokens.
H5Table Thinned(const H5Table& train) {
  const int64_t rows = train.rows();
  if (rows <= kSlimRows) return train;
  const auto& cell = std::get<Integers>(train.Column("cell").values);
  const auto& step = std::get<Integers>(train.Column("step").values);
  const auto& tokens = std::get<Integers>(train.Column("tokens").values);
  const auto& loss = std::get<Numbers>(train.Column("loss").values);
  const double first = std::log(static_cast<double>(std::max<int64_t>(tokens.front(), 1)));
  const double last = std::log(static_cast<double>(std::max<int64_t>(tokens.back(), 1)));
  const auto range_of = [&](size_t r) {
    const double at = std::log(static_cast<double>(std::max<int64_t>(tokens[r], 1)));
    const double share = last > first ? (at - first) / (last - first) : 0;
    return std::clamp<int64_t>(static_cast<int64_t>(share * kSlimRows), 0, kSlimRows - 1);
  };
  Integers steps, means;
  Numbers losses;
  for (size_t r = 0, end = 0; r < static_cast<size_t>(rows); r = end) {
    double sum_tokens = 0, sum_loss = 0;
    for (end = r; end < static_cast<size_t>(rows) && range_of(end) == range_of(r); ++end) {
      sum_tokens += static_cast<double>(tokens[end]);
      sum_loss += loss[end];
    }
    const auto count = static_cast<double>(end - r);
    steps.push_back(step[end - 1]);
    means.push_back(std::llround(sum_tokens / count));
    losses.push_back(sum_loss / count);
  }
  return {train.name,
          {Repeat("cell", cell.front(), static_cast<int64_t>(steps.size())),
           {"step", "step", steps},
           {"tokens", "token", means},
           {"loss", "nat/label", losses}}};
}

// A value of environment.json; the type's own empty one where it has none of that name.
template <class T>
T FromEnvironment(const Attributes& environment, const std::string& name) {
  for (const auto& [key, value] : environment) {
    if (key == name && std::holds_alternative<T>(value)) return std::get<T>(value);
  }
  return {};
}

// "0123456789ab" or "0123456789ab, modified"
std::string CommitOf(const Attributes& environment) {
  constexpr size_t kDigits = 12;
  const std::string commit = FromEnvironment<std::string>(environment, "git_commit");
  return commit.substr(0, kDigits) +
         (FromEnvironment<bool>(environment, "git_dirty") ? ", modified" : "");
}

// The tables of a run. Those of a run that is done are in run.h5, which is read faster than the
// journal.
std::vector<H5Table> StreamsOf(const std::string& run, bool done) {
  const std::string journal = run + "/journal.jsonl", snapshot = run + "/run.h5";
  std::vector<H5Table> streams;
  if (done && fs::exists(snapshot)) {
    for (const std::string& table : ListTables(snapshot))
      streams.push_back(ReadTable(snapshot, table));
  } else if (fs::exists(journal)) {
    streams = ReadJournal(journal).tables;
  }
  return streams;
}

double SecondsOf(const std::vector<H5Table>& streams) {
  for (const H5Table& stream : streams) {
    if (stream.name == "/train" && stream.rows() > 0) return stream.Numbers("seconds").back();
  }
  return 0;
}

Texts Distinct(const Study& study, std::string Cell::*member) {
  Texts names;
  for (const PlannedCell& planned : study.cells) {
    const std::string& name = planned.cell.*member;
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end())
      names.push_back(name);
  }
  return names;
}

}  // namespace

Collected Collect(const Study& study, const CollectOptions& options) {
  Collected collected;
  H5Table eval = EvalOf(study, 0, {}), train = TrainOf(0, {});
  Integers index, exit_codes, parameters, embeddings, heads, bodies, tokens, memory, decode_state,
      values;
  Texts variants, cases, run_ids, states, devices, commits;
  Numbers flops, training_flops, seconds, residuals;
  for (size_t i = 0; i < study.cells.size(); ++i) {
    const PlannedCell& planned = study.cells[i];
    const Plan& plan = planned.plan;
    CellState state{"broken", -1, 0, 0, ""};
    std::vector<H5Table> streams;
    Attributes environment;
    try {
      state = StateOf(study, planned);
      if (state.state == "done" || options.unfinished) {
        const std::string run = study.RunDirectoryOf(planned), file = run + "/environment.json";
        if (fs::exists(file)) environment = ParseJson(ReadFile(file), file);
        streams = StreamsOf(run, state.state == "done");
        const H5Table cell_eval = EvalOf(study, i, streams), cell_train = TrainOf(i, streams);
        Append(eval, cell_eval);
        Append(train, options.slim ? Thinned(cell_train) : cell_train);
      }
    } catch (const Error& error) {
      state.state = "broken";
      collected.broken.push_back(Cat("cell ", planned.cell.name, ": ", error.what()));
    }
    if (state.state == "done") {
      ++collected.done;
    } else if (!options.unfinished || state.state == "broken") {
      collected.left_out.push_back(Cat(planned.cell.name, ": ", state.state,
                                       state.message.empty() ? "" : ", ", state.message));
    }
    index.push_back(static_cast<int64_t>(i));
    variants.push_back(planned.cell.variant);
    cases.push_back(planned.cell.case_name);
    run_ids.push_back(plan.run_id);
    states.push_back(state.state);
    exit_codes.push_back(state.exit_code);
    parameters.push_back(plan.total);
    embeddings.push_back(plan.embedding);
    heads.push_back(plan.head);
    bodies.push_back(plan.body);
    flops.push_back(plan.flops_per_token);
    training_flops.push_back(plan.training_flops_per_token);
    tokens.push_back(plan.decayed_tokens.empty() ? plan.tokens : plan.decayed_tokens.back());
    seconds.push_back(SecondsOf(streams));
    memory.push_back(plan.memory_bytes);
    decode_state.push_back(plan.state_bytes);
    devices.push_back(FromEnvironment<std::string>(environment, "device"));
    commits.push_back(CommitOf(environment));
    values.push_back(plan.match ? plan.match->value : 0);
    residuals.push_back(plan.match ? plan.match->residual_percent : std::nan(""));
  }
  H5Table cells{"/cells", {{"cell", "1", index}, {"variant", "1", variants}, {"case", "1", cases}}};
  for (size_t a = 0; a < study.axes.size(); ++a) cells.columns.push_back(AxisColumn(study, a));
  for (const H5Column& column :
       {H5Column{"run_id", "1", run_ids}, H5Column{"state", "1", states},
        H5Column{"exit_code", "1", exit_codes}, H5Column{"parameters", "1", parameters},
        H5Column{"embedding_parameters", "1", embeddings}, H5Column{"head_parameters", "1", heads},
        H5Column{"body_parameters", "1", bodies}, H5Column{"flops_per_token", "FLOP/token", flops},
        H5Column{"training_flops_per_token", "FLOP/token", training_flops},
        H5Column{"tokens", "token", tokens}, H5Column{"seconds", "s", seconds},
        H5Column{"memory_bytes", "byte", memory}, H5Column{"state_bytes", "byte", decode_state},
        H5Column{"device", "1", devices}, H5Column{"commit", "1", commits}}) {
    cells.columns.push_back(column);
  }
  const auto matched = [](const PlannedCell& cell) { return cell.plan.match.has_value(); };
  if (std::any_of(study.cells.begin(), study.cells.end(), matched)) {
    cells.columns.push_back({"matched_value", "1", values});
    cells.columns.push_back({"residual_percent", "%", residuals});
  }

  collected.path = study.directory + "/sweep.h5";
  WriteH5(collected.path, {cells, eval, train},
          {{"/",
            {{"format", std::string("weft-sweep")},
             {"schema_version", kSchemaVersion},
             {"study", study.name},
             {"question", study.question},
             {"base", study.base},
             {"axes", study.axes},
             {"variants", Distinct(study, &Cell::variant)},
             {"cases", Distinct(study, &Cell::case_name)},
             {"cells_done", collected.done},
             {"cells_left_out", static_cast<int64_t>(collected.left_out.size())},
             {"sweep_toml", study.sweep_toml},
             {"base_toml", study.base_toml}}}});
  return collected;
}

}  // namespace weft
