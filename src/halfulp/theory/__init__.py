"""The theory of stalling: closed forms (:mod:`~halfulp.theory.stall`), resets (:mod:`~halfulp.theory.planner`)."""
