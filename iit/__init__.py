"""Integrated information of hidden states: measure, null, minimum cut, probe on a transformer, training objective.

Phi here is an observational statistic of hidden states and nothing more. Measures and objective
need torch and numpy; only the command line and the plots take more. Knows nothing of training loops or HTTP.
"""

from iit.gaussian import effective_rank, joint_covariance
from iit.guards import GradientGate, PhiWatch, hinge
from iit.measurement import MIN_PAIRS, Phi, measure, measure_states, project_units
from iit.measures import minimum_cut, phi_g, phi_r, stochastic_interaction, time_delayed_mutual_information
from iit.nulls import block_bootstrap
from iit.objective import PhiObjective, PhiTerm
from iit.probe import HeadProbe
from iit.schedules import ClosedLoopWeight, WeightSchedule

__all__ = [
    "MIN_PAIRS",
    "ClosedLoopWeight",
    "GradientGate",
    "HeadProbe",
    "Phi",
    "PhiObjective",
    "PhiTerm",
    "PhiWatch",
    "WeightSchedule",
    "block_bootstrap",
    "effective_rank",
    "hinge",
    "joint_covariance",
    "measure",
    "measure_states",
    "minimum_cut",
    "phi_g",
    "phi_r",
    "project_units",
    "stochastic_interaction",
    "time_delayed_mutual_information",
]
