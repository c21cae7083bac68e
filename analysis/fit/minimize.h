#pragma once
// Damped Newton in a box, for a few dozen variables.

#include <Eigen/Dense>
#include <functional>

namespace weft {

// A function's value and, at the same place, what a step is made from. `metric` is positive
// semidefinite, a bound of the curvature along which small steps always go down: the step solves
// (hessian + lambda metric) p = -gradient with the smallest lambda that works, and
// lambda metric p = -gradient where the hessian has negative curvature.
struct Local {
  double value = 0;
  Eigen::VectorXd gradient;
  Eigen::MatrixXd hessian, metric;
};
using Landscape = std::function<void(const Eigen::VectorXd& x, Local& at)>;

struct Descent {
  Eigen::VectorXd x;
  double value = 0;
  int steps = 0;
  bool stationary = false;  // no step in the box promises more than 1e-10 of the value
};
Descent Descend(const Landscape& landscape, Eigen::VectorXd x, const Eigen::VectorXd& low,
                const Eigen::VectorXd& high);

}  // namespace weft
