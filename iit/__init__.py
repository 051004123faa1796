"""Integrated information of hidden states: measure, null, minimum cut, probe on a transformer, training objective.

Phi here is an observational statistic of hidden states and nothing more. Pure torch; knows nothing of text or HTTP.
"""

from iit.measures import phi_g
from iit.objective import PhiObjective, PhiTerm
from iit.probe import HeadProbe

__all__ = ["HeadProbe", "PhiObjective", "PhiTerm", "phi_g"]
