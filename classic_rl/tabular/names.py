"""The tabular commands by name, each with one line of help."""

from __future__ import annotations

PLANNING = {
    "value-iteration": "exact optimum: V ← max_a [r + γPV]",
    "policy-iteration": "exact optimum: evaluate, improve, repeat",
    "modified-policy-iteration": "exact optimum: improve, a few sweeps of evaluation, repeat",
    "policy-evaluation": "exact values of a given policy",
    "soft-value-iteration": "exact optimum of reward − β · KL to a reference policy",
}
PREDICTION = {
    "monte-carlo-prediction": "values of a policy from whole episodes",
    "td": "values of a policy by TD(0), n-step TD or TD(λ)",
}
CONTROL = {
    "monte-carlo-control": "control from whole episodes",
    "sarsa": "on-policy TD control",
    "expected-sarsa": "SARSA with the expectation over the next action",
    "q-learning": "off-policy TD control",
    "double-q-learning": "Q-learning without its upward bias, by two tables",
}
COMMANDS = PLANNING | PREDICTION | CONTROL
# The settings that --sweep takes.
SWEPT = ("alpha", "gamma", "epsilon")
