"""The scaling laws of a study: weft fit asked for all that figures and tables show."""

import json
import math
import os
import subprocess
from pathlib import Path

from studies.results import EXIT_DATA, StudyError

FIT = Path(__file__).resolve().parents[2] / "build/release/bin/weft-fit"


class NoLaw(Exception):
    """Why nothing was fitted, in weft fit's words."""


def add_options(parser, default_count="parameters"):
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples behind each interval; default: 1000")
    parser.add_argument("--count", default=default_count, help=f"what N counts, as in weft fit; default: {default_count}")
    parser.add_argument("--reference", help="architecture that others are compared with; default: the first")
    parser.add_argument("--fit", metavar="PROGRAM", type=Path, default=FIT, help="weft-fit; default: the one that ./weft built")


def verdict(row):
    """What an architecture needs to get to the reference's loss, of a row of Laws.savings."""
    low, high = row.get("savings_low"), row.get("savings_high")
    if row["savings"] is not None and low is not None and low > 1:
        return "fewer tokens"
    if high is not None and high < 1:
        return "more tokens"
    return "a number of tokens that these runs cannot tell from the reference's"


class Laws:
    """The law of each architecture, L(N, D) = E + A / N^alpha + B / D^beta, and what it says at the sizes of the reference and
    two beyond: loss and savings after the most tokens that such a size was trained with, tokens that reach the best loss that
    all architectures reached, and, where there are curves to compare, the measured tokens to parity."""

    def __init__(self, source, options):
        self.source, self.options = source, options
        self.fit = self.ask()
        self.names = [f["architecture"] for f in self.fit["fits"]]
        self.laws = {f["architecture"]: f for f in self.fit["fits"]}
        self.rows = self.fit["points"]["rows"]
        self.reference = self.fit["options"]["reference"]
        self.target = max(min(r["loss"] for r in self.rows if r["architecture"] == name) for name in self.names)
        most = {}
        for r in self.rows:
            if r["architecture"] == self.reference:
                most[r["n"]] = max(r["d"], most.get(r["n"], 0))
        self.sizes = sorted(most)
        largest = self.sizes[-1]
        most |= {largest * by: most[largest] * by for by in (10 ** 0.5, 10.0)}
        questions = ["--n", ",".join(map(repr, most)), "--d", ",".join(map(repr, sorted(set(most.values())))),
                     "--loss", repr(self.target)]
        try:
            answers = self.ask(*questions, "--parity")
        except NoLaw:  # no two curves to compare
            answers = self.ask(*questions)
        self.savings = [r for r in answers["loss"] if r["d"] == most[r["n"]]]
        self.tokens = [r for r in answers["tokens"] if r["d"] is not None]
        self.parity = answers.get("parity", [])
        try:
            self.isoflop = self.ask("--form", "isoflop")
        except NoLaw:
            self.isoflop = None

    def ask(self, *questions):
        """weft fit's JSON."""
        if not os.access(self.options.fit, os.X_OK):
            raise StudyError(f"{self.options.fit}: is not there; build it with: ./weft build")
        arguments = ["--bootstrap", str(self.options.bootstrap), "--count", self.options.count]
        if self.options.reference:
            arguments += ["--reference", self.options.reference]
        done = subprocess.run([self.options.fit, str(self.source), "--json", *arguments, *questions], capture_output=True,
                              text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"weft fit ended with code {done.returncode}"]
            why = lines[-1].removeprefix("weft fit: ")
            if done.returncode == EXIT_DATA:
                raise NoLaw(why)
            raise StudyError(f"{self.source}: {why}", max(done.returncode, 1))
        return json.loads(done.stdout)

    def loss(self, name, n, d):
        law = self.laws[name]
        return law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]

    def findings(self):
        """A sentence on each architecture beside the reference, at the largest size that was trained."""
        size = next(r["size"] for r in self.rows if (r["architecture"], r["n"]) == (self.reference, self.sizes[-1]))
        share = {r["architecture"]: r["share"] for r in self.parity if r["size"] == size and r.get("share") is not None}
        for r in self.savings:
            if r["n"] != self.sizes[-1] or r["architecture"] == self.reference:
                continue
            factor, low, high = (math.inf if r.get(c) is None else r[c] for c in ["savings", "savings_low", "savings_high"])
            said = (f"{r['architecture']} needs {verdict(r)}: after {r['d']:.3g} tokens of {self.reference} with n = {r['n']:.3g}, the "
                    f"laws say a factor of {factor:.2f} [{low:.2f}, {high:.2f}]")
            if r["architecture"] in share:
                said += f"; as measured, it gets to the last loss there with {100 * share[r['architecture']]:.1f} % of the tokens"
            yield said + "."
