#include "analysis/fit/answers.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/check.h"

namespace weft {
namespace {

class Answers {
 public:
  Answers(const Ensemble& ensemble, const Asked& asked) : ensemble_(ensemble), asked_(asked) {
    const auto& names = ensemble.architectures;
    const auto found = std::find(names.begin(), names.end(), asked.reference);
    if (found == names.end()) {
      std::string known;
      for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
      Fail(ExitCode::kUsage, "--reference is \"", asked.reference, "\", expected one of ", known);
    }
    reference_ = static_cast<size_t>(found - names.begin());
  }

  // A cell of statistic(laws).
  TableCell Of(Style style, const Statistic& statistic) const {
    TableCell cell(style, statistic(ensemble_.laws));
    if (!ensemble_.draws.empty()) cell.interval = IntervalOf(ensemble_, asked_.level, statistic);
    return cell;
  }
  // Adds one row per architecture: `fixed`, its name, and what `more` adds. Comparisons with the
  // reference are left out where there is nothing to compare.
  template <class More>
  void Rows(Table& table, const std::vector<TableCell>& fixed, const More& more) const {
    for (size_t k = 0; k < ensemble_.architectures.size(); ++k) {
      std::vector<TableCell> row = fixed;
      row.push_back(Named(k));
      more(k, row);
      table.rows.push_back(std::move(row));
    }
  }
  // Appends quantity(reference's law, own law), or "" for the reference itself.
  void Compare(std::vector<TableCell>& row, size_t k, Style style,
               const std::function<double(const Law&, const Law&)>& quantity) const {
    if (!several()) return;
    if (k == reference_) {
      row.push_back("");
    } else {
      row.push_back(
          Of(style, [&](std::span<const Law> l) { return quantity(l[reference_], l[k]); }));
    }
  }
  std::vector<std::string> Columns(std::vector<std::string> columns,
                                   const std::vector<std::string>& comparisons) const {
    if (several()) columns.insert(columns.end(), comparisons.begin(), comparisons.end());
    return columns;
  }

 private:
  bool several() const { return ensemble_.architectures.size() > 1; }
  std::string Named(size_t k) const {
    return ensemble_.architectures[k].empty() ? "all" : ensemble_.architectures[k];
  }

  const Ensemble& ensemble_;
  const Asked& asked_;
  size_t reference_ = 0;
};

}  // namespace

std::vector<Table> Answer(const Ensemble& ensemble, const Asked& asked) {
  const Answers all(ensemble, asked);
  if (!asked.n.empty() && asked.d.empty() && asked.loss.empty())
    Fail(ExitCode::kUsage, "--n needs --d or --loss beside it");
  if (!asked.d.empty() && asked.n.empty() && asked.loss.empty())
    Fail(ExitCode::kUsage, "--d needs --n or --loss beside it");

  Table loss{"loss",
             "Loss",
             all.Columns({"n", "d", "architecture", "loss"}, {"difference", "tokens", "savings"}),
             {}};
  for (const double n : asked.n) {
    for (const double d : asked.d) {
      all.Rows(loss, {{Style::kCount, n}, {Style::kCount, d}}, [&](size_t k, auto& row) {
        row.push_back(all.Of(Style::kNumber, [&](auto laws) { return laws[k].Loss(n, d); }));
        all.Compare(row, k, Style::kNumber, [&](const Law& reference, const Law& own) {
          return own.Loss(n, d) - reference.Loss(n, d);
        });
        const auto tokens = [&](const Law& reference, const Law& own) {
          return own.TokensFor(n, reference.Loss(n, d));
        };
        all.Compare(row, k, Style::kCount, tokens);
        all.Compare(row, k, Style::kRatio, [&](const Law& reference, const Law& own) {
          return d / tokens(reference, own);
        });
      });
    }
  }

  Table tokens{"tokens",
               "Tokens that reach a loss",
               all.Columns({"loss", "n", "architecture", "d"}, {"savings"}),
               {}};
  Table parameters{"parameters",
                   "Parameters that reach a loss",
                   all.Columns({"loss", "d", "architecture", "n"}, {"savings"}),
                   {}};
  Table compute{"compute",
                "Least compute that reaches a loss",
                all.Columns({"loss", "architecture", "flops", "n", "d"}, {"savings"}),
                {}};
  for (const double target : asked.loss) {
    for (const double n : asked.n) {
      all.Rows(tokens, {{Style::kNumber, target}, {Style::kCount, n}}, [&](size_t k, auto& row) {
        row.push_back(
            all.Of(Style::kCount, [&](auto laws) { return laws[k].TokensFor(n, target); }));
        all.Compare(row, k, Style::kRatio, [&](const Law& reference, const Law& own) {
          return reference.TokensFor(n, target) / own.TokensFor(n, target);
        });
      });
    }
    for (const double d : asked.d) {
      all.Rows(
          parameters, {{Style::kNumber, target}, {Style::kCount, d}}, [&](size_t k, auto& row) {
            row.push_back(
                all.Of(Style::kCount, [&](auto laws) { return laws[k].ParametersFor(d, target); }));
            all.Compare(row, k, Style::kRatio, [&](const Law& reference, const Law& own) {
              return reference.ParametersFor(d, target) / own.ParametersFor(d, target);
            });
          });
    }
    if (!asked.n.empty() || !asked.d.empty()) continue;
    all.Rows(compute, {{Style::kNumber, target}}, [&](size_t k, auto& row) {
      const auto flops = [&](const Law& law) { return law.FlopsFor(target); };
      row.push_back(all.Of(Style::kNumber, [&](auto laws) { return flops(laws[k]); }));
      row.push_back(
          all.Of(Style::kCount, [&](auto laws) { return laws[k].Optimal(flops(laws[k])).n; }));
      row.push_back(
          all.Of(Style::kCount, [&](auto laws) { return laws[k].Optimal(flops(laws[k])).d; }));
      all.Compare(row, k, Style::kRatio, [&](const Law& reference, const Law& own) {
        return flops(reference) / flops(own);
      });
    });
  }

  Table optimal{"optimal",
                "Compute-optimal split of a budget",
                all.Columns({"flops", "architecture", "n", "d", "loss"}, {"difference"}),
                {}};
  for (const double flops : asked.flops) {
    all.Rows(optimal, {{Style::kNumber, flops}}, [&](size_t k, auto& row) {
      row.push_back(all.Of(Style::kCount, [&](auto laws) { return laws[k].Optimal(flops).n; }));
      row.push_back(all.Of(Style::kCount, [&](auto laws) { return laws[k].Optimal(flops).d; }));
      row.push_back(all.Of(Style::kNumber, [&](auto laws) { return laws[k].Optimal(flops).loss; }));
      all.Compare(row, k, Style::kNumber, [&](const Law& reference, const Law& own) {
        return own.Optimal(flops).loss - reference.Optimal(flops).loss;
      });
    });
  }

  std::vector<Table> tables;
  for (Table* table : {&loss, &tokens, &parameters, &compute, &optimal}) {
    if (!table->rows.empty()) tables.push_back(std::move(*table));
  }
  return tables;
}

}  // namespace weft
