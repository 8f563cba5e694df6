"""Agents, policies and environments for TF-Agents. They need the extra `agents`."""

try:
    import tf_agents  # noqa: F401
except ImportError as error:
    raise ImportError("tfrz.agents needs TF-Agents: pip install 'tfrz[agents]'") from error

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
