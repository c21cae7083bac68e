#pragma once
// What a law is fitted to: losses of trained models, from a CSV file or a sweep.
//
// A CSV file has a heading. Columns: n, loss and d or flops (then D = flops / (6 N)) must be there;
// architecture, seed, size, unique (unique tokens) and flops may be. Other columns are ignored.
// A sweep is sweep.h5 or its directory: of every finished cell, a point for each evaluation of
// decayed weights on held-out text, at the end of the run and of each period of its schedule. The
// variant is the architecture, case and axes of several values are the size: all but the seed, and
// optim.lr or ladder.lr_factor, of which the best value is taken. FLOPs are those that a step of
// the run counts.
//
// Errors: ExitCode::kData, naming file, line and column, for what is missing, no number, not
// finite, not positive, or there twice; kUsage for a column or count that does not exist.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace weft {

struct Point {
  std::string architecture;  // "" where there is no such column
  std::string size;          // label of the size, the same for all architectures; "" if unknown
  double n = 0;              // parameters
  double d = 0;              // tokens
  double loss = 0;
  double flops = 0;   // 6 N D unless given or counted
  double unique = 0;  // unique tokens; 0 = unknown
  int64_t seed = 0;
  std::string origin;  // "points.csv:12", "cell gdn seed=1"
};

// A row filter such as loss<4.5 or n>=1e7.
struct Filter {
  std::string column, comparison;
  double bound = 0;
  static Filter Parse(const std::string& text);
  bool Keeps(const Point& point) const;
  std::string ToString() const;
};

struct Excluded {
  std::string what, why;
};

struct Points {
  std::string source;  // the path
  std::string hash;    // of the file's bytes
  std::vector<Point> points;
  // Loss against tokens while training, for sweeps; for CSV files the points themselves.
  std::vector<Point> curves;
  std::vector<Excluded> excluded;  // cells of a sweep, rows by a filter
  std::vector<std::string> notes;  // what a reader should know
  bool has_seeds = false;          // some (architecture, n, d) has several losses
  // In the order of first appearance.
  std::vector<std::string> Architectures() const;
  std::vector<Point> Of(const std::string& architecture) const;
};

struct ReadOptions {
  std::map<std::string, std::string> columns;  // ours -> the file's heading
  std::vector<Filter> filters;
  std::string count = "parameters";  // column of /cells that is N
  std::string evaluation = "text";   // /eval's name
};

// FLOPs per token as k N^g: 6 N where all points say so, else the line through their logs, its
// slope 1 where there is one size only.
struct TrainingCost {
  double k = 6, g = 1;
  double worst = 0;  // largest relative error at a point
};
TrainingCost CostOf(std::span<const Point> points);

Points ReadPoints(const std::string& path, const ReadOptions& options);
// The text of a CSV file; `path` names it in errors.
Points ParseCsv(const std::string& text, const std::string& path, const ReadOptions& options);

}  // namespace weft
