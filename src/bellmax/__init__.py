"""bellmax: losses, agents and experiments for preference optimisation and reinforcement learning.

Import the part that you need: `from bellmax import losses`. The root imports nothing, so that
reading the version costs nothing.
"""

__version__ = "0.1.0"
