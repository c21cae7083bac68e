#pragma once
// The loss of a model with N parameters after D tokens, and what follows from it in closed form.
//
//   L(N, D) = E + A / N^alpha + B / D^beta                       Hoffmann et al. 2022
//
// E is the loss that no size and no amount of data removes, in the unit of the losses that were
// fitted. Training takes C = k N^g D FLOPs, 6 N D unless they were counted.
//
// With U unique tokens that are repeated D / U times              Muennighoff et al. 2023
//
//   L(N, D, U) = E + A / N'^alpha + B / D'^beta
//   D' = U   + U   R_D (1 - exp(-(D / U   - 1) / R_D))            D' = D where D <= U
//   N' = U_N + U_N R_N (1 - exp(-(N / U_N - 1) / R_N))            U_N = min(N, N_opt(U))
//
// where N_opt(U) = G (U G)^(beta/alpha), G = (alpha A / (beta B))^(1/(alpha+beta)), is the size for
// which U tokens are compute-optimal with C = 6 N D.

namespace weft {

struct Law {
  double E = 0, A = 0, alpha = 0, B = 0, beta = 0;
  double k = 6, g = 1;  // FLOPs per token, k N^g

  double Loss(double n, double d) const;
  // The tokens with which N parameters reach `loss`, and the parameters with which D tokens do:
  // infinity where none suffice.
  double TokensFor(double n, double loss) const;
  double ParametersFor(double d, double loss) const;

  // The split of a budget that minimises the loss, where alpha A / N^alpha = g beta B / D^beta:
  //   N = (alpha A / (g beta B))^(1/(alpha + g beta)) (C/k)^a,   D = C / (k N^g)
  struct Allocation {
    double n, d, loss;
  };
  Allocation Optimal(double flops) const;
  // The smallest budget that reaches `loss`, infinity for loss <= E.
  double FlopsFor(double loss) const;
  // a: N grows as C^a in the optimal split, D as C^(1 - g a).
  double SizeExponent() const { return beta / (alpha + g * beta); }
};

// R_D and R_N: the number of repetitions after which another one is worth 1/e of a fresh one.
struct Repetition {
  double tokens = 0, parameters = 0;
};
double LossWithRepetition(const Law& law, const Repetition& repetition, double n, double d,
                          double unique);
// D' and N' of the equations above.
struct Effective {
  double n, d;
};
Effective EffectiveOf(const Law& law, const Repetition& repetition, double n, double d,
                      double unique);
// U_N: the parameters that U unique tokens can use.
double UsefulParameters(const Law& law, double n, double unique);

}  // namespace weft
