#pragma once
// Matching: the value of one key at which a quantity of an experiment equals that of another.

#include <functional>
#include <string>
#include <vector>

#include "experiments/train/experiment.h"

namespace weft {

// What experiments can be matched in. The definitions are what --help prints.
struct Quantity {
  const char *name, *unit, *definition;
};
const std::vector<Quantity>& Quantities();
// The definitions of all counts, for --help: of the model, of each mixer, of what can be matched.
std::string DefinitionsText();

struct MatchRequest {
  std::string quantity;  // name of a Quantity
  std::string by;        // an integer key: "model.d_ff"
  double tolerance = 1;  // per cent
  int64_t multiple = 1;  // values of the key that are tried
};

struct Match {
  MatchRequest request;
  int64_t value = 0;                  // of the key
  double reference = 0, matched = 0;  // the quantity, of the reference and at that value
  double ResidualPercent() const { return 100 * (matched - reference) / reference; }
};

// The quantity of an experiment as it stands. Throughput comes from `measure`: tokens per second.
using Measure = std::function<double(const Experiment&)>;
double QuantityOf(const Experiment& e, const std::string& quantity, const Measure& measure = {});

// A short measurement: median tokens per second of `steps` training steps on the device that the
// experiment chooses, after three that are not timed.
double MeasureThroughput(const Experiment& e, int64_t steps);

// Tries every value of a key with at most 2048 of them; on keys with more it bisects, which finds
// the best value of a quantity that rises or falls with the key. Values that the model refuses are
// passed over; 0, "automatic", is never tried. Of two values that come equally close the smaller.
//
// Error kUsage: unknown quantity; unknown or not an integer key; a key that does not change the
// quantity; a residual above the tolerance, with the nearest value.
Match SolveMatch(const Experiment& e, const Experiment& reference, const MatchRequest& request,
                 const Measure& measure = {});

// The experiment with the matched value.
std::unique_ptr<Experiment> Apply(const Match& match, const Experiment& e);

}  // namespace weft
