"""How gog-nano is made: scenes, trajectories, training, evaluation. Run ``python -m recipe --help`` in models/gog-nano."""
