"""Agents, policies and environments for TF-Agents, which has to be installed."""

from tfrz.extras import LIBRARIES, needs

try:
    import tf_agents  # noqa: F401
except ImportError as error:
    raise ImportError(needs("tfrz.agents", LIBRARIES["tf_agents"])) from error

from tfrz.agents.environments import BanditEnvironment, logged_experience
from tfrz.agents.top_k_reinforce_agent import (
    TopKReinforceAgent,
    TopKReinforceLossInfo,
    TopKReinforcePolicy,
)

__all__ = [
    "BanditEnvironment",
    "TopKReinforceAgent",
    "TopKReinforceLossInfo",
    "TopKReinforcePolicy",
    "logged_experience",
]
