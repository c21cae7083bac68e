#pragma once
// What a run would be, printed before it starts.

#include <istream>
#include <string>
#include <vector>

#include "experiments/train/experiment.h"

namespace weft {

void PrintPlan(Experiment& e, const std::string& out);
// One line: run_id, run_dir, device, share of a GPU that it keeps busy, parameters, FLOPs, tokens,
// steps, batch, learning rate, memory, time.
void PrintPlanJson(Experiment& e, const std::string& out);

// Plans many runs of one config in one process. A line of `in` is
//   {"set": ["KEY=VALUE", ...],
//    "match": {"quantity": Q, "by": KEY, "tolerance": %, "multiple": n, "to": ["KEY=VALUE", ...]}}
// with "match" optional; `to` are the settings of the reference. For each a line is printed: the
// plan, with "match" the solved value and both quantities. {"exit_code": n, "error": text} is the
// answer to a line with wrong settings, and the last one.
void PlanCells(const std::string& config, const std::vector<std::string>& overrides,
               const std::string& out, std::istream& in);

}  // namespace weft
